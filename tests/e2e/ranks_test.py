"""Several ranks, on one worker and over several: they train what one would, the gang is rebuilt
when a worker is killed, and a rank that hangs is found and named. Workers that cannot reach each
other train jobs with local steps."""

import json
import os
import pathlib
import signal
import tempfile
import time
import unittest

import cluster
import gang
import tiny_model

DEMO_MODEL = os.environ["OFFSHOOT_DEMO_MODEL"]


def demo_job(path, ranks, **settings):
    """A job of the demo model on WordNet's rows that saves no checkpoint but the last."""
    data = pathlib.Path("configs/data/wordnet_nouns.jsonl").resolve()
    return tiny_model.make_job(
        path, DEMO_MODEL, data, datasets=[{"path": str(data), "type": "chat"}], learning_rate=1e-3,
        save_steps=1000, resources={"ranks": ranks, "device": "cpu"}, **settings)


class DemoModelRanksTest(unittest.TestCase):
    """2 ranks on one worker and 4 over two workers against 1, on the same global batch."""

    def test_ranks_equal_one(self):
        work = pathlib.Path(tempfile.mkdtemp(prefix="offshoot-ranks-"))
        results = {}
        with gang.Gang(workers=2, devices="cpu:0@1,cpu:1@1") as machines:
            for ranks in (1, 2, 4):
                job = demo_job(work / f"job{ranks}.yaml", ranks, max_steps=10, val_set_size=0,
                               per_device_train_batch_size=1,
                               gradient_accumulation_steps=4 // ranks)
                done = machines.wait_for(machines.submit(job), "JOB_STATE_SUCCEEDED", 240)
                workers = {member["workerName"] for member in done["attempts"][-1]["members"]}
                self.assertEqual(len(workers), 2 if ranks == 4 else 1, done["attempts"])
                results[ranks] = machines.pull(done, work / f"result{ranks}")
        one = gang.train_losses(results[1])
        self.assertEqual(len(one), 10)
        for ranks in (2, 4):
            many = gang.train_losses(results[ranks])
            worst = max(abs(a - b) / b for a, b in zip(many, one))
            adapter = gang.relative_difference(gang.read_adapter(results[ranks]),
                                               gang.read_adapter(results[1]))
            print(f"{ranks} ranks: losses differ by {worst:.1e}, adapters by {adapter:.1e}",
                  flush=True)
            self.assertLess(worst, 1e-5)
            self.assertLess(adapter, 1e-3)


class DemoModelLocalStepsTest(unittest.TestCase):
    """Two ranks that agree every 8 steps, on workers that cannot reach each other, learn what two do
    that sum their gradients in every step."""

    def test_local_steps_converge(self):
        work = pathlib.Path(tempfile.mkdtemp(prefix="offshoot-local-steps-"))
        held_out = {}
        for name, sync, rounds, options in (
                ("every_step", "every_step", 32, []),
                ("local_steps", {"local_steps": 8}, 4, ["--address", "none"])):
            with gang.Gang(workers=2, devices="cpu:0@1", worker_options=options) as machines:
                job = demo_job(work / f"{name}.yaml", 2, max_steps=32, val_set_size=16,
                               per_device_train_batch_size=4, gradient_accumulation_steps=1,
                               dtype="bfloat16", sync=sync)
                done = machines.wait_for(machines.submit(job), "JOB_STATE_SUCCEEDED", 240)
                self.assertEqual([len(a["members"]) for a in done["attempts"]], [2])
                result = machines.pull(done, work / name)
                evaluation = json.loads((result / "offshoot.json").read_text())["evaluation"]
                held_out[name] = evaluation["eval_loss"]
                self.assertEqual(len(gang.train_losses(result)), rounds)
        base = evaluation["base_eval_loss"]
        print(f"held-out loss of the base {base:.4f}, {held_out}", flush=True)
        self.assertLess(held_out["every_step"], 0.9 * base)
        self.assertLess(held_out["local_steps"], 1.05 * held_out["every_step"])


class ExchangeTest(unittest.TestCase):
    """Workers that cannot reach each other: what ranks exchange outlives the coordinator's death, and
    a worker's death costs what it costs any gang."""

    def test_coordinator_and_worker_killed(self):
        work = pathlib.Path(tempfile.mkdtemp(prefix="offshoot-exchange-"))
        model = tiny_model.make_model(work / "model", hidden=256, layers=6, feed_forward=768)
        data = tiny_model.make_data(work / "data.jsonl")
        job = tiny_model.make_job(work / "job.yaml", model, data, max_steps=160, save_steps=8,
                                  resources={"ranks": 2, "device": "cpu"},
                                  sync={"local_steps": 4})
        whole = tiny_model.make_job(work / "every_step.yaml", model, data,
                                    resources={"ranks": 2, "device": "cpu"})
        with gang.Gang(workers=2, worker_options=["--address", "none"]) as machines:
            refused = machines.submit(whole)
            job_id = machines.submit(job)
            for step in (8, 20, 32):
                machines.wait_for_step(job_id, step)
                machines.kill("coordinator")
            still = machines.wait_for_step(job_id, 48)
            self.assertEqual(len(still["attempts"]), 1, "the coordinator's death ends no attempt")
            self.assertEqual(len(still["attempts"][0]["members"]), 2)
            self.assertEqual(machines.job(refused)["state"], "JOB_STATE_QUEUED",
                             "ranks that sum in every step must reach each other")
            machines.kill_worker(1)
            machines.start_one(1)
            done = machines.wait_for(job_id, "JOB_STATE_SUCCEEDED", 240)
            self.assertEqual(len(done["attempts"]), 2, done["attempts"])
            first, second = done["attempts"]
            print(f"worker killed after step {first['lastStep']} ({first['message']}), went on with "
                  f"step {second['firstStep']}", flush=True)
            self.assertEqual(first["reasonCode"], "WORKER_RESTARTED")
            self.assertGreater(int(second["firstStep"]), 32)
            self.assertEqual(int(second["lastStep"]), 160)
            losses = gang.train_losses(machines.pull(done, work / "result"))
            self.assertEqual(len(losses), 40)
            self.assertLess(losses[-1], 0.9 * losses[0])
            machines.cli("cancel", refused)
            self.assertEqual(machines.trainers(), [])


class LostRanksTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.work = pathlib.Path(tempfile.mkdtemp(prefix="offshoot-gang-"))
        cls.model = tiny_model.make_model(cls.work / "model", hidden=256, layers=6, feed_forward=768)
        cls.data = tiny_model.make_data(cls.work / "data.jsonl")

    def job(self, name, **settings):
        settings = {"device": "cpu", **settings}
        own = {key: settings.pop(key) for key in ("max_steps", "save_steps") if key in settings}
        return tiny_model.make_job(self.work / f"{name}.yaml", self.model, self.data,
                                   val_set_size=0, resources=settings, **own)

    def kill_one(self, machines, leads):
        job_id = machines.submit(self.job(f"kill-{leads}", ranks=2, min_ranks=1, max_ranks=2))
        members = machines.wait_for_step(job_id, 8)["attempts"][0]["members"]
        victim = int(members[0 if leads else 1]["workerName"][1:])
        machines.kill_worker(victim)
        began = time.monotonic()

        def rebuilt():
            job = machines.job(job_id)
            assert job["state"] not in cluster.TERMINAL - {"JOB_STATE_SUCCEEDED"}, job
            return len(job["attempts"]) > 1 and job

        job = cluster.wait_until(rebuilt, 30, "the gang is rebuilt")
        seconds = time.monotonic() - began
        print(f"w{victim} killed, rebuilt after {seconds:.1f} s: {job['attempts'][0]['message']}",
              flush=True)
        self.assertLess(seconds, 10)
        self.assertEqual([m["workerName"] for m in job["attempts"][1]["members"]],
                         [f"w{1 - victim}"])
        done = machines.wait_for(job_id, "JOB_STATE_SUCCEEDED", 120)
        trained = [a for a in done["attempts"] if int(a.get("firstStep", 0))]
        for before, after in zip(trained, trained[1:]):
            self.assertLessEqual(int(before["lastStep"]) - (int(after["firstStep"]) - 1), 10)
        self.assertEqual(int(trained[-1]["lastStep"]), 60)
        self.assertEqual(machines.trainers(), [])

    def test_worker_without_rank_0_killed(self):
        with gang.Gang(workers=2) as machines:
            self.kill_one(machines, leads=False)

    def test_worker_of_rank_0_killed(self):
        with gang.Gang(workers=2) as machines:
            self.kill_one(machines, leads=True)

    def test_rank_that_hangs_is_named(self):
        settings = self.work / "worker.yaml"
        settings.write_text("progress_timeout_ms: 4000\n")
        with gang.Gang(workers=2, worker_options=["--config", settings]) as machines:
            job_id = machines.submit(self.job("hang", ranks=2))
            job = machines.wait_for_step(job_id, 3)
            hung = job["attempts"][0]["members"][1]["workerName"]
            for pid in machines.trainers_of(int(hung[1:])):
                os.kill(pid, signal.SIGSTOP)

            def ended():
                attempt = machines.job(job_id)["attempts"][0]
                return attempt.get("reasonCode") and attempt

            attempt = cluster.wait_until(ended, 30, "the hung rank is found")
            print(attempt["message"], flush=True)
            self.assertEqual(attempt["reasonCode"], "RANK_HUNG")
            self.assertRegex(attempt["message"], rf"{hung}.*rank 1 in step \d+")
            done = machines.wait_for(job_id, "JOB_STATE_SUCCEEDED", 120)
            self.assertEqual(len(done["attempts"]), 2)


if __name__ == "__main__":
    unittest.main(verbosity=2)
