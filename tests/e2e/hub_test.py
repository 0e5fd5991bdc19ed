"""Base models by name, and derivatives for the tools that people have: against a server that speaks
the hub's protocol, beside the real huggingface_hub, transformers and peft."""

import contextlib
import http.client
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

import cluster
import hub_server
import tiny_model

PYTHON = os.environ.get("OFFSHOOT_TEST_PYTHON", "python3")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_do_not_show_me"


def client(*words, timeout=300, **environment):
    """Runs hub_clients.py with the real packages; returns what it printed."""
    done = subprocess.run([PYTHON, pathlib.Path(__file__).with_name("hub_clients.py"), *map(str, words)],
                          capture_output=True, text=True, timeout=timeout,
                          env={**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                               "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", **environment})
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


class HubTest(unittest.TestCase):
    def setUp(self):
        self.work = pathlib.Path(tempfile.mkdtemp(prefix="offshoot-hub-"))
        self.addCleanup(shutil.rmtree, self.work, ignore_errors=True)
        self.data = tiny_model.make_data(self.work / "data.jsonl", rows=64)

    def repository(self, **options):
        folder = tiny_model.make_model(self.work / "model")
        (folder / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
        (folder / "pytorch_model.bin").write_bytes(b"a pickle that nobody reads" * 100)
        return hub_server.Repository.of_folder(folder, COMMIT, **options)

    def environment(self, hub, home="hf"):
        return {"HF_ENDPOINT": hub.endpoint, "HF_HUB_CACHE": str(self.work / home), "HF_TOKEN": TOKEN}

    def job(self, base_model, **settings):
        return tiny_model.make_job(self.work / "job.yaml", base_model, self.data,
                                   **{"base_model_id": None, "max_steps": 4, "val_set_size": 4, **settings})

    def test_base_model_by_name_is_fetched_once_and_shared_with_the_hubs_own_client(self):
        with hub_server.HubServer({"org/tiny": self.repository(private=True)}, token=TOKEN) as hub:
            hub.redirect_files = True
            stored = "/stored/" + hub_server.sha256(hub.repositories["org/tiny"].files["model.safetensors"])
            hub.cut_after[stored] = 100_000
            with cluster.Cluster(environment=self.environment(hub)) as one:
                job = one.wait_for(one.submit(self.job("org/tiny")), "JOB_STATE_SUCCEEDED")
                lineage = json.loads((one.pull(job, self.work / "out") / "offshoot.json").read_text())
                self.assertEqual(lineage["base_model"]["id"], "org/tiny")
                self.assertEqual(lineage["base_model"]["revision"], COMMIT)
                adapter = json.loads((self.work / "out" / "adapter_config.json").read_text())
                self.assertEqual((adapter["base_model_name_or_path"], adapter["revision"]),
                                 ("org/tiny", COMMIT))
                # A new worker that shares the cache fetches nothing.
                fetched = [request for request in hub.requests if request[1] == stored]
                self.assertEqual([request[2] for request in fetched], [None, "bytes=100000-"])
                shutil.rmtree(one.root / "worker" / "cache")
                one.kill("worker")
                again = self.job("org/tiny@" + COMMIT, seed=8, name="again")
                one.wait_for(one.submit(again), "JOB_STATE_SUCCEEDED")
                self.assertEqual(len([r for r in hub.requests if r[1] == stored]), 2)
                self.assertEqual(hub.tokens, {f"Bearer {TOKEN}"})
                self.assertFalse(any("pytorch_model.bin" in request[1] for request in hub.requests))
                for log in one.root.rglob("*"):
                    if log.is_file():
                        self.assertNotIn(TOKEN.encode(), log.read_bytes(), log)
            # The hub's own client makes the same files of it (and fetches the pickle, too).
            theirs = client("cache", "org/tiny", **self.environment(hub, "theirs"))
            ours = self.cache_files("hf")
            pickle = {name: value for name, value in theirs.items() if name not in ours}
            self.assertEqual({k: v for k, v in theirs.items() if k in ours}, ours)
            self.assertEqual(len(pickle), 2, pickle)
            snapshot = client("offline", "org/tiny", **self.environment(hub))
            self.assertEqual(pathlib.Path(snapshot).name, COMMIT)
            self.assertEqual((pathlib.Path(snapshot) / "model.safetensors").read_bytes(),
                             hub.repositories["org/tiny"].files["model.safetensors"])
        # Without any hub, from the cache alone.
        offline = {**self.environment(hub), "HF_HUB_OFFLINE": "1"}
        with cluster.Cluster(environment=offline) as one:
            one.wait_for(one.submit(self.job("org/tiny")), "JOB_STATE_SUCCEEDED")
            self.assertIn("HF_HUB_OFFLINE is set", self.refusal(one, "org/other"))

    def cache_files(self, home):
        code = ("import sys, json; sys.path.insert(0, sys.argv[1]); import hub_clients; "
                "print(json.dumps(hub_clients.cache_files()))")
        done = subprocess.run(["python3", "-c", code, pathlib.Path(__file__).parent], check=True,
                              capture_output=True, text=True,
                              env={**os.environ, "HF_HUB_CACHE": str(self.work / home)})
        return json.loads(done.stdout)

    def test_what_a_hub_refuses_is_a_sentence(self):
        repositories = {"org/gated": self.repository(gated=True), "org/tiny": self.repository(),
                        "org/pickled": hub_server.Repository({"config.json": b"{}",
                                                              "pytorch_model.bin": b"x"}, COMMIT)}
        with hub_server.HubServer(repositories, token="another") as hub:
            with cluster.Cluster(environment=self.environment(hub)) as one:
                for name, sentence in {
                        "org/gated": "org/gated is gated: accept its terms",
                        "org/missing": "there is no model org/missing",
                        "org/tiny@v9": "has no revision v9",
                        "org/pickled": "only as pickles"}.items():
                    self.assertIn(sentence, self.refusal(one, name))
                hub.rate_limited = 1000
                self.assertIn("too many requests (429)", self.refusal(one, "org/tiny"))

    def refusal(self, one, base_model):
        """Why a job with this base model fails."""
        job = one.wait_for(one.submit(self.job(base_model)), "JOB_STATE_FAILED")
        self.assertEqual(job["reasonCode"], "INPUT_MISSING")
        self.assertNotIn(TOKEN, job["message"])
        return job["message"]

    def test_real_clients_load_base_and_derivative_from_the_coordinator(self):
        model = tiny_model.make_model(self.work / "model")
        address = self.work / "http"
        with cluster.Cluster(coordinator_options=["--http-listen", "127.0.0.1:0", "--http-address-file",
                                                  address]) as one:
            one.cli("models", "register", "team/tiny", "--path", model)
            job = one.wait_for(one.submit(self.job("team/tiny", base_model_id="team/tiny",
                                                   publish={"formats": ["adapter", "merged"]})),
                               "JOB_STATE_SUCCEEDED")
            pulled = one.pull(job, self.work / "out")
            where = address.read_text().strip()
            result = client("models", "team/tiny", "default/tiny", model, pulled,
                            HF_ENDPOINT=f"http://{where}", HF_HUB_CACHE=str(self.work / "theirs"))
            self.assertEqual(result["difference"], 0.0)
            self.assertLess(result["merged_difference"], 1e-4)
            self.assertTrue(result["same"])
            self.assertIn("merged/model.safetensors", result["files"])
            self.assertEqual(result["refused"], {
                "repository": "RepositoryNotFoundError", "revision": "RevisionNotFoundError",
                "entry": "RemoteEntryNotFoundError"})
            self.check_requests(where, job["derivativeId"], pulled)

    def test_derivative_is_pushed_to_a_directory_and_to_a_hub(self):
        model = tiny_model.make_model(self.work / "model")
        shelf = self.work / "shelf"
        with hub_server.HubServer({}, token=TOKEN) as hub:
            hub.break_puts = 2
            with cluster.Cluster(environment=self.environment(hub),
                                 coordinator_options=["--http-listen", "127.0.0.1:0"]) as one:
                refused = one.cli("submit", self.job(model, publish={"push_to": [str(one.root / "coordinator")]}),
                                  check=False)
                self.assertIn("may write", refused.stderr)
                spec = self.job(model, base_model_id="org/tiny", publish={
                    "formats": ["adapter", "merged"], "push_to": [str(shelf), "org/mine"]})
                job = one.wait_for(one.submit(spec), "JOB_STATE_SUCCEEDED")
                pulled = one.pull(job, self.work / "out")
                shown = lambda: json.loads(one.cli("derivatives", "show", job["derivativeId"], "-o",
                                                   "json").stdout).get("pushes", [])
                settled = lambda: shown() if [p["state"] for p in shown()] == ["done"] * 2 else None
                pushes = cluster.wait_until(settled, 60, "both are pushed")
                files = {str(path.relative_to(pulled)): path.read_bytes()
                         for path in pulled.rglob("*") if path.is_file()}
                self.assertEqual(files, {str(path.relative_to(shelf)): path.read_bytes()
                                         for path in shelf.rglob("*") if path.is_file()})
                self.assertEqual(hub.repositories["org/mine"].files, files)
                self.assertTrue(hub.repositories["org/mine"].private)
                self.assertEqual(pushes[1]["commit"], hub.repositories["org/mine"].commit)
                # The same once more changes nothing, and sends nothing large.
                puts = sum(request[0] == "PUT" for request in hub.requests)
                again = one.wait_for(one.submit(self.job(model, base_model_id="org/tiny", name="again",
                                                         publish={"push_to": ["org/mine"]})),
                                     "JOB_STATE_SUCCEEDED")
                self.assertNotEqual(again["derivativeId"], job["derivativeId"])
                for log in one.root.rglob("*"):
                    if log.is_file():
                        self.assertNotIn(TOKEN.encode(), log.read_bytes(), log)
                self.assertEqual(hub.tokens, {f"Bearer {TOKEN}"})
                self.assertGreater(puts, 2)
            # The server does with the real client's calls what it did with ours.
            client("push", pulled, "org/theirs", **self.environment(hub, "theirs"))
            self.assertEqual(hub.repositories["org/theirs"].files, files)

    def check_requests(self, where, derivative, pulled):
        def ask(path, method="GET", **headers):
            connection = http.client.HTTPConnection(where, timeout=10)
            connection.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
            with contextlib.closing(connection):
                response = connection.getresponse()
                return response, response.read()

        file = f"/{derivative}/resolve/main/adapter_model.safetensors"
        data = (pulled / "adapter_model.safetensors").read_bytes()
        response, body = ask(file, "HEAD")
        self.assertEqual((response.status, body), (200, b""))
        self.assertEqual(int(response.headers["Content-Length"]), len(data))
        etag = response.headers["ETag"]
        self.assertEqual(etag, f'"{hub_server.sha256(data)}"')
        self.assertEqual(len(response.headers["X-Repo-Commit"]), 40)
        for wanted, status, expected in [
                ("bytes=0-9", 206, data[:10]), ("bytes=10-", 206, data[10:]), ("bytes=-7", 206, data[-7:]),
                (f"bytes=5-{len(data) + 9}", 206, data[5:]), ("bytes=9-5", 200, data),
                ("bytes=0-1,4-5", 200, data), ("bytes=x-", 200, data)]:
            response, body = ask(file, Range=wanted)
            self.assertEqual((response.status, body), (status, expected), wanted)
        self.assertEqual(ask(file, Range=f"bytes={len(data)}-")[0].status, 416)
        self.assertEqual(ask(file, If_None_Match=etag)[0].status, 304)
        self.assertEqual(ask(file, Range="bytes=0-9", If_Range='"other"')[1], data)
        for outside in ["/../../etc/passwd", f"/{derivative}/resolve/main/../../../../etc/passwd",
                        f"/{derivative}/resolve/main/..%2f..%2f..%2fetc%2fpasswd",
                        f"/{derivative}/resolve/main//etc/passwd", f"/{derivative}/resolve/..%2f../passwd",
                        f"/api/models/{derivative}/tree/main/..%2f..", "/%00", "/api/models/..%2f../tree/main",
                        f"/{derivative}/resolve/main/", "/coordinator.sqlite3", "/api/models/",
                        f"/{derivative}/resolve/main/adapter_config.json%00.txt", "/%ff%fe"]:
            response, body = ask(outside)
            self.assertIn(response.status, (400, 404), outside)
            self.assertNotIn(b"root:", body)
        self.assertEqual(ask(file, "DELETE")[0].status, 405)
        with contextlib.suppress(ConnectionError):  # it may hang up before all is sent
            self.assertEqual(ask("/metrics", X_Long="x" * 100_000)[0].status, 431)
        self.assertIn(b"offshoot_jobs", ask("/metrics")[1])


if __name__ == "__main__":
    unittest.main(verbosity=2)
