"""Training on several ranks."""

import contextlib
import json
import os
import pathlib
import statistics
import subprocess

import harness

STEPS = 14
FIRST_SETTLED = 5  # the steps before it are where the shares are found


class _HalfACore:
    """A cgroup that gives half of one core."""

    PERIOD_US = 10_000

    def __init__(self):
        name = f"offshoot-bench-{os.getpid()}"
        old = pathlib.Path("/sys/fs/cgroup/cpu")
        half = self.PERIOD_US // 2
        try:
            if (old / "cpu.cfs_quota_us").exists():
                self.path = old / name
                self.path.mkdir()
                (self.path / "cpu.cfs_period_us").write_text(str(self.PERIOD_US))
                (self.path / "cpu.cfs_quota_us").write_text(str(half))
            else:
                self.path = pathlib.Path("/sys/fs/cgroup") / name
                self.path.mkdir()
                (self.path / "cpu.max").write_text(f"{half} {self.PERIOD_US}")
        except OSError as error:
            raise harness.Failure(f"no cgroup with a CPU quota can be made here: {error}") from error

    def add(self, pid):
        (self.path / "cgroup.procs").write_text(str(pid))

    def remove(self):
        with contextlib.suppress(OSError):
            self.path.rmdir()


def _start(work, rank, port):
    """One rank's trainer; returns the process and its events."""
    (work / str(rank)).mkdir()
    read_end, write_end = os.pipe()
    environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": port, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    with open(work / f"{rank}.log", "wb") as log:
        process = subprocess.Popen(
            [harness.BUILD / "bin" / "offshoot-trainer", "train", "--spec", work / "spec.json",
             "--work-dir", work / str(rank), "--events-fd", str(write_end)],
            env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[write_end])
    os.close(write_end)
    return process, os.fdopen(read_end)


def _steps(work, group):
    """The metrics of each step of two ranks, the second held to half a core."""
    processes, opened = [], []
    try:
        process, events = _start(work, 0, "0")
        processes.append(process)
        opened.append(events)
        port = next((json.loads(line)["port"] for line in events
                     if json.loads(line)["event"] == "listening"), None)
        if port is None:
            raise harness.Failure((work / "0.log").read_text(encoding="utf-8")[-2000:])
        second, second_events = _start(work, 1, str(port))
        processes.append(second)
        opened.append(second_events)
        group.add(second.pid)
        steps = []
        for line in events:
            event = json.loads(line)
            if event["event"] == "metrics":
                steps.append(event)
            if event["event"] == "stage" and event["stage"] != "training" and steps:
                break
        return steps
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for events in opened:
            events.close()


def unequal_ranks(bench):
    """Two ranks of one thread, one held to half a core: how long a rank waits for the other."""
    data = harness.ROOT / "configs" / "data" / "wordnet_nouns.jsonl"
    spec = {"spec_version": 1, "job_id": "bench", "attempt": 1,
            "base_model": {"path": harness.DEMO_GGUF, "digest": "sha256:demo"},
            "datasets": [{"path": str(data), "type": "chat"}], "sequence_len": 256,
            "dtype": "bfloat16", "lora_r": 8, "lora_alpha": 16, "learning_rate": 1e-4,
            "max_steps": STEPS, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2,
            "resources": {"ranks": 2}, "save_steps": 0, "reproducible": False, "threads": 1}
    waits, shares = {0: [], 1: []}, []
    group = _HalfACore()
    try:
        for run in range(bench.pairs):
            work = bench.scratch / str(run)
            work.mkdir()
            (work / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
            steps = _steps(work, group)
            if len(steps) != STEPS:
                raise harness.Failure((work / "0.log").read_text(encoding="utf-8")[-2000:])
            for step in steps[FIRST_SETTLED:]:
                shares.append(step["ranks"][1]["share"])
                for rank, part in enumerate(step["ranks"]):
                    waits[rank].append(part["wait_seconds"] / step["step_seconds"])
    finally:
        group.remove()
    bench.figure("slow_rank_share", statistics.median(shares))
    for rank, values in waits.items():
        bench.bar(f"part of a step that rank {rank} waits", 0.1, statistics.median(values),
                  at_least=False)


ALL = {"unequal-ranks": unequal_ranks}
