"""Links that are cut, healed and slow, kill -9, a full disk: jobs end once, with the right bits."""

import contextlib
import json
import pathlib
import subprocess
import tempfile
import time
import unittest

import network
from network import cluster

import tiny_model

STEPS = 40
SAVE_STEPS = 5


class FaultsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        network.Network(["probe"]).remove()  # skips the class where there are no namespaces
        cls.work = pathlib.Path(tempfile.mkdtemp(prefix="offshoot-faults-"))
        cls.model = tiny_model.make_model(cls.work / "model", hidden=256, layers=6, feed_forward=768)
        cls.data = tiny_model.make_data(cls.work / "data.jsonl")
        cls.job = cls.make_job("job")
        with network.NetworkCluster(workers=1) as undisturbed:
            job_id = undisturbed.submit(cls.job)
            job = undisturbed.wait_for(job_id, "JOB_STATE_SUCCEEDED", 120)
            cls.reference = cls.adapter(undisturbed.pull(job, cls.work / "reference"))

    @classmethod
    def make_job(cls, name, **settings):
        settings = {"max_steps": STEPS, "save_steps": SAVE_STEPS, "per_device_train_batch_size": 8,
                    **settings}
        return tiny_model.make_job(cls.work / f"{name}.yaml", cls.model, cls.data, **settings)

    @staticmethod
    def adapter(directory):
        return (directory / "adapter_model.safetensors").read_bytes()

    def expect_the_same_bits(self, machines, job_id):
        done = machines.wait_for(job_id, "JOB_STATE_SUCCEEDED", 120)
        self.assertEqual(self.adapter(machines.pull(done, machines.root / "result")), self.reference)
        derivatives = json.loads(machines.cli("derivatives", "-o", "json").stdout or "{}")
        listed = derivatives.get("derivatives", []) if isinstance(derivatives, dict) else derivatives
        self.assertEqual(len([d for d in listed if d.get("jobId") == job_id]), 1, derivatives)
        return done

    def test_link_cut_for_less_than_a_lease_changes_nothing(self):
        with network.NetworkCluster(workers=1, lease_ms=15000) as machines:
            job_id = machines.submit(self.job)
            machines.wait_for_step(job_id, 6)
            machines.network.cut("w0")
            time.sleep(3)
            machines.network.heal("w0")
            done = self.expect_the_same_bits(machines, job_id)
            self.assertEqual(len(done["attempts"]), 1, done["attempts"])

    def test_link_cut_for_longer_moves_the_job_and_fences_the_lost_worker(self):
        with network.NetworkCluster(workers=2) as machines:
            job_id = machines.submit(self.job)
            job = machines.wait_for_step(job_id, 6)
            lost = job["attempts"][0]["workerName"]
            machines.network.cut(lost)
            moved = cluster.wait_until(
                lambda: len(machines.job(job_id)["attempts"]) > 1, 20, "placed elsewhere")
            self.assertTrue(moved)
            self.assertTrue(machines.trainers_of(lost), "it trains on: it may be the network")
            machines.network.heal(lost)
            cluster.wait_until(lambda: not machines.trainers_of(lost), 20, "the stale attempt ended")
            done = self.expect_the_same_bits(machines, job_id)
            self.assertEqual(done["attempts"][0]["reasonCode"], "WORKER_LOST")
            self.assertNotEqual(done["attempts"][1]["workerName"], lost)

    def test_link_of_a_gangs_worker_cut_the_gang_is_rebuilt_without_it(self):
        job = self.make_job("gang", resources={"ranks": 2, "min_ranks": 1, "max_ranks": 2,
                                               "device": "cpu"})
        with network.NetworkCluster(workers=2) as machines:
            job_id = machines.submit(job)
            running = machines.wait_for_step(job_id, 6)
            members = [m["workerName"] for m in running["attempts"][0]["members"]]
            self.assertEqual(len(members), 2)
            machines.network.cut(members[1])
            began = time.monotonic()
            job = cluster.wait_until(
                lambda: len(machines.job(job_id)["attempts"]) > 1 and machines.job(job_id), 30,
                "rebuilt")
            seconds = time.monotonic() - began
            print(f"cut off; rebuilt after {seconds:.1f} s (lease 4 s): "
                  f"{job['attempts'][0]['message']}", flush=True)
            self.assertLess(seconds, 4 + 10)
            self.assertEqual([m["workerName"] for m in job["attempts"][1]["members"]], members[:1])
            done = machines.wait_for(job_id, "JOB_STATE_SUCCEEDED", 120)
            self.assertEqual(int(done["attempts"][-1]["lastStep"]), STEPS)
            machines.network.heal(members[1])
            cluster.wait_until(lambda: not machines.trainers(), 20, "nobody hangs around")

    def test_workers_that_reach_only_the_coordinator_take_local_steps_together(self):
        job = self.make_job("local_steps", resources={"ranks": 2, "device": "cpu"},
                            sync={"local_steps": 5})
        with network.NetworkCluster(workers=2, lease_ms=15000,
                                    worker_options=["--address", "none"]) as machines:
            for name in machines.names:
                machines.network.isolate(name)
            reached = {name: machines.reaches("w0", name, network.PORT) for name in ("c", "w1")}
            self.assertEqual(reached, {"c": True, "w1": False})
            job_id = machines.submit(job)
            machines.wait_for_step(job_id, 10)
            machines.network.cut("w1")
            time.sleep(3)
            machines.network.heal("w1")
            machines.network.isolate("w1")
            done = machines.wait_for(job_id, "JOB_STATE_SUCCEEDED", 120)
            self.assertEqual([len(a["members"]) for a in done["attempts"]], [2])
            self.assertEqual(int(done["attempts"][0]["lastStep"]), STEPS)

    def test_slow_link_the_job_ends_in_one_attempt(self):
        with network.NetworkCluster(workers=1, lease_ms=15000) as machines:
            job_id = machines.submit(self.job)
            machines.wait_for_step(job_id, 6)
            machines.network.slow("w0", "400kbit")
            time.sleep(6)
            machines.network.fast("w0")
            done = self.expect_the_same_bits(machines, job_id)
            self.assertEqual(len(done["attempts"]), 1, done["attempts"])

    def test_coordinator_killed_while_the_worker_is_cut_off(self):
        with network.NetworkCluster(workers=1) as machines:
            job_id = machines.submit(self.job)
            machines.wait_for_step(job_id, 6)
            machines.network.cut("w0")
            machines.kill("coordinator")
            machines.start_coordinator()
            machines.network.heal("w0")
            done = self.expect_the_same_bits(machines, job_id)
            self.assertEqual(len(done["attempts"]), 1, done["attempts"])

    def test_full_disk_is_named_and_the_job_goes_on_when_there_is_room(self):
        with network.NetworkCluster(workers=1) as machines:
            disk = machines.root / "w0"
            job_id = None
            machines.kill("w0")
            disk.mkdir(exist_ok=True)
            mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m", "none", str(disk)],
                                     capture_output=True, text=True)
            if mounted.returncode != 0:
                self.skipTest(f"no small disk can be mounted here: {mounted.stderr.strip()}")
            try:
                machines.start_one("w0")
                job_id = machines.submit(self.job)
                machines.wait_for_step(job_id, 6)
                filler = disk / "filler"
                with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
                    while True:
                        file.write(b"x" * 65536)

                def told():
                    attempt = machines.job(job_id)["attempts"][0]
                    return attempt.get("reasonCode") and attempt

                attempt = cluster.wait_until(told, 60, "the full disk is told")
                print(attempt["message"], flush=True)
                self.assertEqual(attempt["reasonCode"], "DISK_FULL")
                filler.unlink()
                self.expect_the_same_bits(machines, job_id)
            finally:
                machines.kill("w0")
                subprocess.run(["umount", "-l", str(disk)], check=False)


if __name__ == "__main__":
    unittest.main(verbosity=2)
