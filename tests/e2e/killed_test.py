"""kill -9 of trainer, worker and coordinator at random moments: the job completes, its adapter is
bit-identical to an undisturbed run's, and no kill repeats more than save_steps steps."""

import json
import os
import pathlib
import random
import tempfile
import time
import unittest

import cluster
import tiny_model

SAVE_STEPS = 5
MAX_STEPS = 60


def losses(derivative):
    text = (derivative / "training_metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    return [(row["step"], row.get("train_loss"), row.get("eval_loss")) for row in rows]


class KilledTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.work = pathlib.Path(tempfile.mkdtemp(prefix="offshoot-killed-"))
        model = tiny_model.make_model(cls.work / "model", hidden=256, layers=6, feed_forward=768)
        data = tiny_model.make_data(cls.work / "data.jsonl")
        cls.job = tiny_model.make_job(cls.work / "job.yaml", model, data, max_steps=MAX_STEPS,
                                      save_steps=SAVE_STEPS, per_device_train_batch_size=8)
        with cluster.Cluster() as undisturbed:
            job = undisturbed.wait_for(undisturbed.submit(cls.job), "JOB_STATE_SUCCEEDED")
            cls.reference = undisturbed.pull(job, cls.work / "reference")

    def kill_and_compare(self, victims, seed):
        generator = random.Random(seed)
        with cluster.Cluster() as disturbed:
            job_id = disturbed.submit(self.job)
            killed = []
            for victim in victims:
                time.sleep(generator.uniform(0.2, 2.5))
                if disturbed.job(job_id)["state"] in cluster.TERMINAL:
                    break
                disturbed.kill(victim)
                killed.append(victim)
            job = disturbed.wait_for(job_id, "JOB_STATE_SUCCEEDED", 180)
            result = disturbed.pull(job, disturbed.root / "result")
            self.compare(result, f"seed {seed}, killed {killed}")

    def compare(self, result, context):
        name = "adapter_model.safetensors"
        self.assertEqual((result / name).read_bytes(), (self.reference / name).read_bytes(), context)
        self.assertEqual(losses(result), losses(self.reference), context)

        attempts = json.loads((result / "offshoot.json").read_text())["attempts"]
        trained = [a for a in attempts if a.get("first_step")]
        for before, after in zip(trained, trained[1:]):
            repeated = before["last_step"] - (after["first_step"] - 1)
            self.assertLessEqual(repeated, SAVE_STEPS, f"{context}: {attempts}")
        self.assertEqual(trained[-1]["last_step"], MAX_STEPS, context)

    def test_random_moments(self):
        seed = int(os.environ.get("OFFSHOOT_TEST_SEED", "0")) or random.randrange(1, 2**31)
        print(f"seed {seed} (set OFFSHOOT_TEST_SEED to repeat)", flush=True)
        generator = random.Random(seed)
        for round_number in range(3):
            victims = [generator.choice(["trainer", "worker", "coordinator"]) for _ in range(3)]
            with self.subTest(round=round_number, victims=victims):
                self.kill_and_compare(victims, generator.randrange(2**31))

    def test_each_kind(self):
        for victim in ("trainer", "worker", "coordinator"):
            with self.subTest(victim=victim):
                self.kill_and_compare([victim], 11)


if __name__ == "__main__":
    unittest.main(verbosity=2)
