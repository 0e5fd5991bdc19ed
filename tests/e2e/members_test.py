"""A cluster with a CA of its own, made by `offshoot ca`: workers that join by a token and renew their
certificates while they train, models over HTTPS for the real huggingface_hub, pushes, and a crowd of
idle connections."""

import contextlib
import json
import os
import pathlib
import re
import resource
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
import unittest

import cluster
import tiny_model

PYTHON = os.environ.get("OFFSHOOT_TEST_PYTHON", "python3")
HERE = pathlib.Path(__file__).parent
CERTIFICATE_MS = 15_000
IDLE_CONNECTIONS = 10_000


class MembersTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.work = pathlib.Path(tempfile.mkdtemp(prefix="offshoot-members-"))
        cls.pki = cls.work / "pki"
        cls.run_cli("ca", "init", cls.pki, "--host", "localhost", "--host", "127.0.0.1")
        users = [("alice", "red", "submit"), ("bob", "blue", "submit"), ("root", "staff", "admin")]
        cls.tokens = {name: cls.run_cli("ca", "user", cls.pki, name, "--team", team, "--role", role).stdout.strip()
                      for name, team, role in users}
        settings = {name: cls.pki / file for name, file in {
            "tls_certificate": "server.pem", "tls_key": "server.key", "tls_client_ca": "ca.pem",
            "tls_client_ca_key": "ca.key", "users_file": "users.yaml"}.items()}
        settings["worker_certificate_ms"] = CERTIFICATE_MS
        settings["push_namespaces"] = '["*"]'
        (cls.work / "coordinator.yaml").write_text("".join(f"{k}: {v}\n" for k, v in settings.items()))
        cls.ports = ["0", "0"]
        cls.start_coordinator()
        cls.workers = []

    @classmethod
    def tearDownClass(cls):
        for process in cls.workers + [cls.coordinator]:
            process.kill()
            process.wait()
        shutil.rmtree(cls.work, ignore_errors=True)

    @classmethod
    def start_coordinator(cls):
        files = [cls.work / "address", cls.work / "http_address"]
        for file in files:
            file.unlink(missing_ok=True)
        with open(cls.work / "coordinator.log", "ab") as log:
            cls.coordinator = subprocess.Popen(
                [cluster.BIN / "offshoot-coordinator", "--config", cls.work / "coordinator.yaml", "--listen",
                 f"127.0.0.1:{cls.ports[0]}", "--http-listen", f"127.0.0.1:{cls.ports[1]}", "--state-dir",
                 cls.work / "state", "--allowed-root", cls.work, "--address-file", files[0],
                 "--http-address-file", files[1]], stdout=log, stderr=log,
                # It pushes to itself.
                env={**os.environ, "SSL_CERT_FILE": str(cls.pki / "ca.pem"),
                     "HF_TOKEN": cls.tokens["alice"], "HF_HUB_CACHE": str(cls.work / "hub"),
                     "HF_ENDPOINT": f"https://localhost:{cls.ports[1]}"})
        cluster.wait_until(lambda: all(f.exists() for f in files) or cls.coordinator.poll() is not None,
                           20, "the coordinator listens")
        cls.ports = [file.read_text().strip().rsplit(":", 1)[1] for file in files]
        cls.address = f"localhost:{cls.ports[0]}"

    @classmethod
    def run_cli(cls, *words, user=None, check=True):
        environment = {**os.environ, "OFFSHOOT_CA": str(cls.pki / "ca.pem")}
        environment.pop("OFFSHOOT_TOKEN", None)
        if user:
            environment |= {"OFFSHOOT_TOKEN": cls.tokens[user], "OFFSHOOT_COORDINATOR": cls.address}
        done = subprocess.run([cluster.BIN / "offshoot", *map(str, words)], env=environment,
                              capture_output=True, text=True, timeout=60)
        if check and done.returncode != 0:
            raise AssertionError(f"{words}: {done.stdout}{done.stderr}")
        return done

    def start_worker(self, name, token=None):
        words = ["--ca", self.pki / "ca.pem", "--coordinator", self.address, "--name", name, "--state-dir",
                 self.work / name, "--devices", "cpu:0@1"]
        if token:
            (self.work / f"{name}.token").write_text(token + "\n")
            words += ["--join-token-file", self.work / f"{name}.token"]
        log = self.work / f"{name}.log"
        with open(log, "ab") as file:
            process = subprocess.Popen([cluster.BIN / "offshoot-worker", *words], stdout=file, stderr=file)
        self.workers.append(process)
        return process, log

    def listed(self, name):
        workers = json.loads(self.run_cli("workers", "-o", "json", user="root").stdout).get("workers", [])
        return [w for w in workers if w["name"] == name and w["state"] == "WORKER_STATE_READY"]

    def python(self, user, code, *words):
        environment = {**os.environ, "HF_ENDPOINT": f"https://localhost:{self.ports[1]}",
                       "SSL_CERT_FILE": str(self.pki / "ca.pem"), "HF_TOKEN": self.tokens[user],
                       "HF_HOME": str(self.work / f"home-{user}"), "HF_HUB_DISABLE_XET": "1",
                       "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return subprocess.run([PYTHON, "-c", code, *map(str, words)], env=environment,
                              capture_output=True, text=True, timeout=120)

    def fetch(self, user, repository):
        return self.python(user, "import sys, huggingface_hub as h; print(h.snapshot_download(sys.argv[1]))",
                           repository)

    def certificate(self, name):
        return (self.work / name / "identity" / "worker.pem").read_text()

    def test_worker_joins_trains_while_it_renews_and_its_result_is_its_teams(self):
        invitation = self.run_cli("workers", "invite", user="root").stdout.strip()
        self.assertIn("may not do this", self.run_cli("workers", "invite", user="alice", check=False).stderr)
        process, log = self.start_worker("w0", invitation)
        cluster.wait_until(lambda: self.listed("w0"), 20, "it is listed")
        key = self.work / "w0" / "identity" / "worker.key"
        self.assertEqual(key.stat().st_mode & 0o7777, 0o600)
        for file in (self.work / "state").rglob("*"):  # the key never leaves the worker
            if file.is_file():
                self.assertNotIn(invitation.encode(), file.read_bytes(), file)
        first = self.certificate("w0")

        model = tiny_model.make_model(self.work / "model")
        data = tiny_model.make_data(self.work / "data.jsonl", rows=64)
        job_file = tiny_model.make_job(self.work / "job.yaml", model, data, name="glosses", max_steps=400,
                                       save_steps=100, team="blue", publish={"push_to": ["red/pushed"]})
        job = self.run_cli("submit", job_file, user="alice").stdout.strip().splitlines()[-1]
        cluster.wait_until(lambda: self.certificate("w0") != first, 30, "the certificate is renewed")
        status = lambda: json.loads(self.run_cli("status", job, "-o", "json", user="alice").stdout)
        done = cluster.wait_until(lambda: (s := status())["state"] in cluster.TERMINAL and s, 120, "it ends")
        self.assertEqual(done["state"], "JOB_STATE_SUCCEEDED", done)
        self.assertEqual((done["attempt"], done["team"]), (1, "red"))
        self.assertNotIn("no session", log.read_text())

        # The coordinator is away for longer than any certificate lasts: the worker's key lets it back in.
        self.coordinator.kill()
        self.coordinator.wait()
        time.sleep(CERTIFICATE_MS / 1000)
        self.start_coordinator()
        cluster.wait_until(lambda: log.read_text().count("welcomed by coordinator") >= 2, 60, "it is back")

        fetched = self.fetch("alice", "red/glosses")
        self.assertEqual(fetched.returncode, 0, fetched.stderr)
        self.run_cli("pull", done["derivativeId"], self.work / "pulled", user="alice")
        for file in (self.work / "pulled").rglob("*"):
            if file.is_file():
                there = pathlib.Path(fetched.stdout.strip()) / file.relative_to(self.work / "pulled")
                self.assertEqual(there.read_bytes(), file.read_bytes())
        for repository in ("red/glosses", done["derivativeId"]):
            self.assertIn("RepositoryNotFoundError", self.fetch("bob", repository).stderr)
        # What publish.push_to pushed to this very port is the same files.
        shown = lambda: json.loads(self.run_cli("derivatives", "show", done["derivativeId"], "-o", "json",
                                                user="alice").stdout)["pushes"][0]
        push = cluster.wait_until(lambda: (p := shown())["state"] != "pending" and p, 60, "it is pushed")
        self.assertEqual(push["state"], "done", push)
        pushed = self.fetch("alice", "red/pushed")
        self.assertEqual(pushed.returncode, 0, pushed.stderr)
        self.assertEqual((pathlib.Path(pushed.stdout.strip()) / "adapter_model.safetensors").read_bytes(),
                         (self.work / "pulled" / "adapter_model.safetensors").read_bytes())

        self.run_cli("workers", "expel", "w0", user="root")
        self.assertNotEqual(process.wait(timeout=30), 0)
        self.assertIn("expelled", log.read_text())

    def test_token_that_was_used_lets_nobody_else_in(self):
        invitation = self.run_cli("workers", "invite", user="root").stdout.strip()
        first, _ = self.start_worker("first", invitation)
        cluster.wait_until(lambda: self.listed("first"), 20, "it is listed")
        second, log = self.start_worker("second", invitation)
        self.assertNotEqual(second.wait(timeout=20), 0)
        self.assertIn("used by another worker", log.read_text())
        first.terminate()
        first.wait()
        again, _ = self.start_worker("first", invitation)  # it has a certificate now
        cluster.wait_until(lambda: self.listed("first"), 20, "it is back")
        again.kill()

    def test_real_client_pushes_to_its_team_alone(self):
        folder = self.work / "folder"
        (folder / "sub").mkdir(parents=True)
        (folder / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
        (folder / "config.json").write_text("{}")
        (folder / "sub" / "empty.txt").write_text("")
        (folder / "model.safetensors").write_bytes(os.urandom(3 << 20))
        code = ("import sys, huggingface_hub as h; api = h.HfApi(); "
                "api.create_repo(sys.argv[1], exist_ok=True); "
                "print(api.upload_folder(folder_path=sys.argv[2], repo_id=sys.argv[1]).oid)")
        pushed = self.python("alice", code, "red/mine", folder)
        self.assertEqual(pushed.returncode, 0, pushed.stderr)
        first = pushed.stdout.strip().splitlines()[-1]
        fetched = self.fetch("alice", "red/mine")
        self.assertEqual(fetched.returncode, 0, fetched.stderr)
        snapshot = pathlib.Path(fetched.stdout.strip())
        self.assertEqual(snapshot.name, first)
        for file in folder.rglob("*"):
            if file.is_file():
                self.assertEqual((snapshot / file.relative_to(folder)).read_bytes(), file.read_bytes())
        self.assertIn("RepositoryNotFoundError", self.fetch("bob", "red/mine").stderr)
        for name in ("red/mine", "red/other"):
            refused = self.python("bob", code, name, folder)
            self.assertNotEqual(refused.returncode, 0)
            self.assertIn("403", refused.stderr)
        self.assertNotIn("red/mine", self.run_cli("models", user="bob").stdout)
        self.assertIn("red/mine", self.run_cli("models", user="alice").stdout)
        # A second commit is a second revision; the first one stays.
        (folder / "config.json").write_text('{"a": 1}')
        second = self.python("alice", code, "red/mine", folder).stdout.strip().splitlines()[-1]
        self.assertNotEqual(second, first)
        for revision, text in ((first, "{}"), (second, '{"a": 1}')):
            got = self.python("alice", "import sys, huggingface_hub as h; "
                              "print(open(h.hf_hub_download(sys.argv[1], 'config.json', revision=sys.argv[2])).read())",
                              "red/mine", revision)
            self.assertEqual(got.stdout.strip(), text, got.stderr)
        log = (self.work / "coordinator.log").read_text()
        for token in self.tokens.values():
            self.assertNotIn(token, log)

    def test_ten_thousand_idle_connections_keep_nobody_out(self):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = IDLE_CONNECTIONS + 1000
        if hard != resource.RLIM_INFINITY and hard < needed:
            self.skipTest(f"{hard} descriptors are allowed; {needed} are needed")
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        limits = pathlib.Path(f"/proc/{self.coordinator.pid}/limits").read_text()
        allowed = int(re.search(r"Max open files\s+(\d+)", limits)[1])
        if allowed < needed:
            self.skipTest(f"the coordinator may open {allowed} files; {needed} are needed")
        trust = ssl.create_default_context(cafile=self.pki / "ca.pem")
        trust.set_alpn_protocols(["h2"])
        with contextlib.ExitStack() as stack:
            for number in range(IDLE_CONNECTIONS):
                one = stack.enter_context(socket.create_connection(("127.0.0.1", int(self.ports[0]))))
                if number % 20 == 0:  # some of them with TLS
                    one = stack.enter_context(trust.wrap_socket(one, server_hostname="localhost"))
            self.run_cli("list", user="alice")
            status = pathlib.Path(f"/proc/{self.coordinator.pid}/status").read_text()
            self.assertLess(int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]), 1 << 20, "a GiB")
        self.run_cli("list", user="alice")


if __name__ == "__main__":
    unittest.main()
