"""Cancel in any state ends all processes within 5 s; pause frees the devices and resume goes on."""

import pathlib
import tempfile
import unittest

import cluster
import tiny_model


class CancelledTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.work = pathlib.Path(tempfile.mkdtemp(prefix="offshoot-cancelled-"))
        model = tiny_model.make_model(cls.work / "model", hidden=256, layers=6, feed_forward=768)
        data = tiny_model.make_data(cls.work / "data.jsonl")
        cls.long_job = tiny_model.make_job(cls.work / "long.yaml", model, data, max_steps=100000,
                                           save_steps=20)
        cls.short_job = tiny_model.make_job(cls.work / "short.yaml", model, data, max_steps=40)

    def assert_gone(self, running):
        cluster.wait_until(lambda: not running.trainers(), 5, "no trainer in /proc")

    def test_while_no_worker_is_there(self):
        running = cluster.Cluster()
        running.start_coordinator()
        try:
            job_id = running.submit(self.long_job)
            self.assertEqual(running.job(job_id)["state"], "JOB_STATE_VALIDATING")
            running.cli("cancel", job_id)
            self.assertEqual(running.job(job_id)["state"], "JOB_STATE_CANCELLED")
        finally:
            running.__exit__(None, None, None)

    def test_while_starting_running_and_paused(self):
        with cluster.Cluster() as running:
            for state in ("JOB_STATE_STARTING", "JOB_STATE_RUNNING", "JOB_STATE_PAUSED"):
                with self.subTest(state=state):
                    job_id = running.submit(self.long_job)
                    if state == "JOB_STATE_PAUSED":
                        running.wait_for(job_id, "JOB_STATE_RUNNING")
                        running.cli("pause", job_id)
                        running.wait_for(job_id, state, 20)
                        self.assert_gone(running)
                    else:  # a state may be passed through faster than it can be asked for
                        running.wait_for(job_id, {state, "JOB_STATE_RUNNING"})
                    running.cli("cancel", job_id)
                    self.assert_gone(running)
                    cluster.wait_until(
                        lambda: running.job(job_id)["state"] == "JOB_STATE_CANCELLED", 5, "cancelled")

    def test_while_queued(self):
        with cluster.Cluster() as running:
            first = running.submit(self.long_job)
            running.wait_for(first, "JOB_STATE_RUNNING")
            second = running.submit(self.long_job)
            waiting = running.wait_for(second, "JOB_STATE_QUEUED")
            self.assertTrue(waiting.get("message"), "a waiting job says why")
            running.cli("cancel", second)
            self.assertEqual(running.job(second)["state"], "JOB_STATE_CANCELLED")
            self.assertEqual(running.job(first)["state"], "JOB_STATE_RUNNING")
            running.cli("cancel", first)
            self.assert_gone(running)

    def test_cancel_a_finished_job_is_refused(self):
        with cluster.Cluster() as running:
            job_id = running.submit(self.short_job)
            running.wait_for(job_id, "JOB_STATE_SUCCEEDED")
            refused = running.cli("cancel", job_id, check=False)
            self.assertNotEqual(refused.returncode, 0)
            self.assertIn(job_id, refused.stderr)
            self.assertEqual(running.job(job_id)["state"], "JOB_STATE_SUCCEEDED")

    def test_pause_and_resume_go_on(self):
        with cluster.Cluster() as running:
            undisturbed = running.wait_for(running.submit(self.short_job), "JOB_STATE_SUCCEEDED")
            job_id = running.submit(self.short_job)
            running.wait_for(job_id, "JOB_STATE_RUNNING")
            running.cli("pause", job_id)
            running.wait_for(job_id, {"JOB_STATE_PAUSED"}, 20)
            self.assert_gone(running)
            running.cli("resume", job_id)
            resumed = running.wait_for(job_id, "JOB_STATE_SUCCEEDED")
            name = "adapter_model.safetensors"
            one = running.pull(undisturbed, running.root / "one") / name
            two = running.pull(resumed, running.root / "two") / name
            self.assertEqual(one.read_bytes(), two.read_bytes())

    def test_worker_killed_leaves_no_trainer(self):
        with cluster.Cluster() as running:
            job_id = running.submit(self.long_job)
            running.wait_for(job_id, "JOB_STATE_RUNNING")
            running.worker.kill()
            running.worker.wait()
            cluster.wait_until(lambda: not running.trainers(), 7, "no trainer in /proc")
            running.start_worker()
            running.wait_for(job_id, "JOB_STATE_RUNNING")
            running.cli("cancel", job_id)
            self.assert_gone(running)


if __name__ == "__main__":
    unittest.main(verbosity=2)
