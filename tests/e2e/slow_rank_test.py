"""Two ranks of one thread, one of them held to half a core by a cgroup quota: shares follow the
speed, and no rank waits for more than a tenth of a step."""

import contextlib
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import tempfile
import unittest

import cluster

DEMO_MODEL = os.environ["OFFSHOOT_DEMO_MODEL"]
STEPS = 14


class HalfACore:
    """A cgroup that gives half of one core; SkipTest where none can be made."""

    PERIOD_US = 10_000

    def __init__(self):
        name = f"offshoot-test-{os.getpid()}"
        old = pathlib.Path("/sys/fs/cgroup/cpu")
        try:
            if (old / "cpu.cfs_quota_us").exists():
                self.path = old / name
                self.path.mkdir()
                (self.path / "cpu.cfs_period_us").write_text(str(self.PERIOD_US))
                (self.path / "cpu.cfs_quota_us").write_text(str(self.PERIOD_US // 2))
            else:
                self.path = pathlib.Path("/sys/fs/cgroup") / name
                self.path.mkdir()
                (self.path / "cpu.max").write_text(f"{self.PERIOD_US // 2} {self.PERIOD_US}")
        except OSError as error:
            raise unittest.SkipTest(f"no cgroup with a CPU quota can be made here: {error}")

    def add(self, pid):
        (self.path / "cgroup.procs").write_text(str(pid))

    def remove(self):
        with contextlib.suppress(OSError):
            self.path.rmdir()


class SlowRankTest(unittest.TestCase):
    def test_no_rank_waits_more_than_a_tenth_of_a_step(self):
        if os.cpu_count() < 2:
            self.skipTest("two ranks of one thread each want two cores")
        work = pathlib.Path(tempfile.mkdtemp(prefix="offshoot-slow-rank-"))
        data = pathlib.Path("configs/data/wordnet_nouns.jsonl").resolve()
        spec = {"spec_version": 1, "job_id": "job-slow", "attempt": 1,
                "base_model": {"path": DEMO_MODEL, "digest": "sha256:demo"},
                "datasets": [{"path": str(data), "type": "chat"}], "sequence_len": 256,
                "dtype": "bfloat16", "lora_r": 8, "lora_alpha": 16, "learning_rate": 1e-4,
                "max_steps": STEPS, "per_device_train_batch_size": 8,
                "gradient_accumulation_steps": 2, "resources": {"ranks": 2}, "save_steps": 0,
                "reproducible": False, "threads": 1}
        (work / "spec.json").write_text(json.dumps(spec))
        group = HalfACore()
        self.addCleanup(group.remove)
        ranks = []
        try:
            port = ""
            for rank in (0, 1):
                (work / str(rank)).mkdir()
                read_end, write_end = os.pipe()
                environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "2",
                               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port or "0",
                               "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
                with open(work / f"{rank}.log", "wb") as log:
                    ranks.append(subprocess.Popen(
                        [cluster.BIN / "offshoot-trainer", "train", "--spec", work / "spec.json",
                         "--work-dir", work / str(rank), "--events-fd", str(write_end)],
                        env=environment, stdout=log, stderr=log, pass_fds=[write_end]))
                os.close(write_end)
                events = os.fdopen(read_end)
                self.addCleanup(events.close)
                if rank == 0:
                    for line in events:
                        event = json.loads(line)
                        if event["event"] == "listening":
                            port = str(event["port"])
                            break
                    leader_events = events
                else:
                    group.add(ranks[1].pid)
            steps = []
            for line in leader_events:
                event = json.loads(line)
                if event["event"] == "metrics":
                    steps.append(event)
                if event["event"] == "stage" and event["stage"] != "training" and steps:
                    break
        finally:
            for process in ranks:
                process.kill()
                process.wait()
        log = (work / "0.log").read_text()
        self.assertEqual(len(steps), STEPS, log)
        for step in steps:
            shown = "; ".join(f"{100 * r['share']:.0f} %, {r['tokens_per_second']:.0f} tok/s, "
                              f"waits {r['wait_seconds']:.2f} s" for r in step["ranks"])
            print(f"step {step['step']}: {step['step_seconds']:.2f} s; {shown}", flush=True)
        late = steps[5:]
        for rank in (0, 1):
            wait = statistics.median(s["ranks"][rank]["wait_seconds"] / s["step_seconds"]
                                     for s in late)
            print(f"rank {rank} waits {100 * wait:.1f} % of a step (median after step 5)", flush=True)
            self.assertLess(wait, 0.1)
        self.assertLess(statistics.median(s["ranks"][1]["share"] for s in late), 0.42)
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    unittest.main(verbosity=2)
