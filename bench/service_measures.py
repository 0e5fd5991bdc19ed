"""The benchmarks of the control plane: what a user waits for before training begins."""

import json
import shutil
import statistics
import subprocess
import time

import harness


def _submit_bench(bench, *arguments):
    state = bench.scratch / "state"
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir()
    text, _, _ = bench._run([harness.BUILD / "bin" / "submit_bench", *map(str, arguments),
                             "--directory", state])
    return json.loads(text.strip().splitlines()[-1])


def submits(bench):
    """Durable submits per second from 32 clients, each its own RPC, acknowledged after its sync."""
    runs = [_submit_bench(bench, "submits", "--clients", 32, "--seconds", 5)
            for _ in range(bench.pairs)]
    for key in runs[0]:
        if isinstance(runs[0][key], (int, float)):
            bench.figure(key, statistics.median(run[key] for run in runs))
    bench.bar("submits/s from 32 clients", 2000, statistics.median(run["submits_per_second"]
                                                                  for run in runs))


def placement(bench):
    """SubmitJob to the assignment's arrival at an idle worker, with the preflight cached."""
    runs = [_submit_bench(bench, "placement", "--jobs", 200) for _ in range(bench.pairs)]
    for key in runs[0]:
        if isinstance(runs[0][key], (int, float)):
            bench.figure(key, statistics.median(run[key] for run in runs))


def first_step(bench):
    """`offshoot run` to the beginning of the first step, the base's digest cached."""
    job = harness.ROOT / "configs" / "jobs" / "quickstart.yaml"
    text = job.read_text(encoding="utf-8").replace("../data/", f"{harness.ROOT}/configs/data/")
    seconds = []
    state = bench.scratch / "run"
    for seed in range(bench.pairs + 1):  # the first run fills the digest cache and is not counted
        file = bench.scratch / f"job{seed}.yaml"
        file.write_text(text.replace("seed: 42", f"seed: {1000 + seed}"), encoding="utf-8")
        start = time.time()
        process = subprocess.Popen(
            [harness.BUILD / "bin" / "offshoot", "run", file, "--state-dir", state, "--output",
             bench.scratch / f"out{seed}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        began = None
        for line in process.stdout:
            if "started at step 1" in line:
                began = time.time() - start
                break
        process.terminate()
        process.wait()
        if began is None:
            raise harness.Failure("offshoot run ended before its first step")
        if seed > 0:
            seconds.append(began)
        bench.say(f"run {seed}: first step begun after {began:.2f} s")
    bench.figure("seconds_to_first_step", statistics.median(seconds))
    bench.bar("seconds from `offshoot run` to the first step", 3.0, statistics.median(seconds),
              at_least=False)


ALL = {"submits": submits, "placement": placement, "first-step": first_step}
