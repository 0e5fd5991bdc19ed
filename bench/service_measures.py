"""The benchmarks of the control plane: what a user waits for before training begins."""

import json
import shutil
import statistics
import subprocess
import time

import harness


def run_program(bench, program, *arguments):
    state = bench.scratch / "state"
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir()
    text, _, _ = bench._run([harness.BUILD / "bin" / program, *map(str, arguments),
                             "--directory", state])
    return json.loads(text.strip().splitlines()[-1])


def _medians(bench, program, *arguments):
    """Runs a program bench.pairs times; its figures' medians, which become the benchmark's."""
    runs = [run_program(bench, program, *arguments) for _ in range(bench.pairs)]
    medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    for key, value in medians.items():
        bench.figure(key, value)
    return medians


def submits(bench):
    """Durable submits per second from 64 clients, each its own RPC, acknowledged after its sync."""
    figures = _medians(bench, "submit_bench", "submits", "--clients", 64, "--seconds", 5)
    bench.bar("submits/s from 64 clients", 5000, figures["submits_per_second"])


def submits_slow_disk(bench):
    """The same with 5 ms added to every sync."""
    figures = _medians(bench, "submit_bench", "submits", "--clients", 64, "--seconds", 5,
                       "--preload", harness.BUILD / "bin" / "libslow_sync.so")
    bench.bar("submits/s from 64 clients, 5 ms added to each sync", 2000,
              figures["submits_per_second"])


def placement(bench):
    """SubmitJob to the assignment's arrival at an idle worker, with the preflight cached."""
    _medians(bench, "submit_bench", "placement", "--jobs", 200)


def submit_to_train(bench):
    """SubmitJob to the start of the `train` process on an idle worker, with the preflight cached."""
    figures = _medians(bench, "cluster_bench", "train-start", "--count", 50)
    bench.bar("ms from submit to the start of `train`, median", 50,
              figures["submit_to_train_median_ms"], at_least=False)


def scripted_jobs(bench):
    """1,000 jobs of a trainer that ends at once, until all have succeeded; one worker, 8 devices."""
    _medians(bench, "cluster_bench", "jobs", "--count", 1000)


def watchers(bench):
    """1,000 watchers of one job: from the answer to a change until all have been told."""
    _medians(bench, "cluster_bench", "watchers", "--count", 1000)


def workers(bench):
    """10,000 workers over 10,000 connections, a heartbeat each 10 s: cores and memory used."""
    figures = _medians(bench, "cluster_bench", "workers", "--count", 10000, "--seconds", 30)
    bench.bar("cores used by the coordinator", 0.5, figures["cores_used"], at_least=False)
    bench.bar("MiB used by the coordinator", 1024, figures["resident_mib"], at_least=False)


def cycle(bench):
    """One scheduling cycle, snapshot, apply and commit included: 10,000 workers, 100,000 jobs."""
    figures = _medians(bench, "schedule_bench")
    bench.bar("ms of a scheduling cycle", 100, figures["cycle_median_ms"], at_least=False)


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


ALL = {"submit-to-train": submit_to_train, "submits": submits,
       "submits-slow-disk": submits_slow_disk, "placement": placement, "cycle": cycle,
       "workers": workers, "jobs": scripted_jobs, "watchers": watchers, "first-step": first_step}
