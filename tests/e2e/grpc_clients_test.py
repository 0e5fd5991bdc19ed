"""The API as others use it: grpcurl with reflection and health, without any proto file."""

import json
import os
import pathlib
import re
import subprocess
import tempfile
import unittest

import cluster
import tiny_model

GRPCURL = os.environ.get("OFFSHOOT_GRPCURL", "grpcurl")


def read(text):
    """JSON whose keys are the proto's own names, whichever spelling this grpcurl prints."""
    snake = lambda pairs: {re.sub("([A-Z])", lambda m: "_" + m[1].lower(), key): value
                           for key, value in pairs}
    return json.loads(text, object_pairs_hook=snake)


class GrpcClientsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.work = pathlib.Path(tempfile.mkdtemp(prefix="offshoot-grpc-"))
        cls.model = tiny_model.make_model(cls.work / "model", hidden=64, layers=2, feed_forward=128)
        cls.data = tiny_model.make_data(cls.work / "data.jsonl", rows=64, length=32)
        cls.running = cluster.Cluster()
        cls.running.__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.running.__exit__(None, None, None)

    def call(self, method, request=None, check=True):
        words = [GRPCURL, "-plaintext"]
        if request is not None:
            words += ["-d", json.dumps(request)]
        done = subprocess.run([*words, self.running.address, *method.split()], capture_output=True,
                              text=True, timeout=120)
        if check:
            self.assertEqual(done.returncode, 0, done.stderr)
        return done

    def submit(self, request_id="", **settings):
        spec = tiny_model.make_job(self.work / "job.yaml", self.model, self.data,
                                   **{"max_steps": 5, **settings}).read_text()
        return self.call("offshoot.v1.Jobs/SubmitJob", {"specYaml": spec, "requestId": request_id},
                         check=False)

    def test_reflection_lists_the_services(self):
        listed = self.call("list").stdout
        for service in ("offshoot.v1.Jobs", "offshoot.v1.Models", "offshoot.v1.Cluster",
                        "grpc.health.v1.Health"):
            self.assertIn(service, listed)
        self.assertIn("rpc SubmitJob", self.call("describe offshoot.v1.Jobs").stdout)

    def test_health(self):
        self.assertIn("SERVING", self.call("grpc.health.v1.Health/Check", {}).stdout)

    def test_submit_watch_get(self):
        job_id = read(self.submit().stdout)["job_id"]
        watched = self.call("offshoot.v1.Jobs/WatchJob", {"jobId": job_id}).stdout
        self.assertIn("JOB_STATE_SUCCEEDED", watched)
        sequences = [int(number) for number in re.findall(r'"sequence": "(\d+)"', watched)]
        self.assertEqual(sequences, list(range(1, len(sequences) + 1)))
        later = self.call("offshoot.v1.Jobs/WatchJob", {"jobId": job_id, "fromSequence": 3}).stdout
        self.assertNotIn('"sequence": "2"', later)
        job = read(self.call("offshoot.v1.Jobs/GetJob", {"jobId": job_id}).stdout)
        self.assertEqual(job["state"], "JOB_STATE_SUCCEEDED")
        self.assertTrue(job["derivative_id"])
        metrics = self.call("offshoot.v1.Jobs/StreamMetrics", {"jobId": job_id}).stdout
        self.assertRegex(metrics, '"train_?[lL]oss"')
        self.assertTrue(self.call("offshoot.v1.Jobs/StreamLogs", {"jobId": job_id}).stdout)

    def test_request_id(self):
        first = read(self.submit("once").stdout)["job_id"]
        self.assertEqual(read(self.submit("once").stdout)["job_id"], first)
        other = self.submit("once", seed=8)
        self.assertIn("AlreadyExists", other.stderr)

    def test_status_codes(self):
        missing = self.call("offshoot.v1.Jobs/GetJob", {"jobId": "job-none"}, check=False)
        self.assertIn("NotFound", missing.stderr)
        self.assertIn("job-none", missing.stderr)
        wrong = self.submit(lora_r=-3)
        self.assertIn("InvalidArgument", wrong.stderr)
        self.assertIn("lora_r", wrong.stderr)

    def test_pages(self):
        ids = {read(self.submit(seed=seed).stdout)["job_id"] for seed in range(100, 105)}
        seen, token = [], ""
        while True:
            page = read(self.call("offshoot.v1.Jobs/ListJobs",
                                        {"pageSize": 2, "pageToken": token}).stdout)
            self.assertLessEqual(len(page["jobs"]), 2)
            seen += [job["job_id"] for job in page["jobs"]]
            token = page.get("next_page_token", "")
            if not token:
                break
        self.assertEqual(len(seen), len(set(seen)))
        self.assertLessEqual(ids, set(seen))


if __name__ == "__main__":
    unittest.main(verbosity=2)
