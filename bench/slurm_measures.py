"""The control plane beside a Slurm of one node on the same machine."""

import concurrent.futures
import statistics
import subprocess
import sys
import time
import unittest

import harness
import service_measures

sys.path.insert(0, str(harness.ROOT / "tests" / "e2e"))

SUBMITS = 200
JOBS = 1000
AT_A_TIME = 8
SLOTS = 8

# What suits Slurm best here. By default it counts memory, too (CR_Core_Memory), of which a job that
# asks for none gets the node's whole: one job at a time, however many CPUs there are. It looks
# for jobs to start at most every three seconds (batch_sched_delay), and at all of them once a
# minute; here at each change, and at all every second. Its daemons log errors only.
SETTINGS = "\n".join((
    "SelectTypeParameters=CR_CPU",
    "SchedulerType=sched/builtin",
    "SchedulerParameters=" + ",".join((
        "batch_sched_delay=0", "sched_interval=1",
        "default_queue_depth=1000")),
    "EpilogMsgTime=0",
    "SlurmctldDebug=error",
    "SlurmdDebug=error"))


def _per_second(command, environment=None, count=SUBMITS, at_a_time=1):
    """Starts the command so often, so many at a time; returns how many ended per second."""
    def one(_):
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True,
                              env=environment, stdin=subprocess.DEVNULL, check=False)
        if done.returncode != 0:
            raise harness.Failure(f"{command[0]} ended with {done.returncode}: {done.stderr}")
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(at_a_time) as pool:
        list(pool.map(one, range(count)))
    return count / (time.monotonic() - began)


class _Coordinator:
    """A coordinator process without workers, and a job file for it."""

    def __init__(self, directory):
        directory.mkdir()
        (directory / "m.gguf").write_text("weights", encoding="utf-8")
        (directory / "d.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
        self.job = directory / "job.yaml"
        self.job.write_text(f"name: bench\nbase_model: {directory}/m.gguf\nbase_model_id: org/m\n"
                            f"datasets:\n  - path: {directory}/d.jsonl\n    type: text\n",
                            encoding="utf-8")
        address = directory / "address"
        self.process = subprocess.Popen(
            [harness.BUILD / "bin" / "offshoot-coordinator", "--listen", "127.0.0.1:0",
             "--state-dir", directory / "state", "--allowed-root", directory, "--address-file",
             address, "--log-level", "error"], stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while not address.exists():
            if time.monotonic() > deadline:
                self.stop()
                raise harness.Failure("the coordinator did not start")
            time.sleep(0.01)
        self.address = address.read_text(encoding="utf-8").strip()

    def submit_command(self):
        return [harness.BUILD / "bin" / "offshoot", "submit", self.job, "--coordinator",
                self.address]

    def stop(self):
        self.process.terminate()
        self.process.wait()


def _seconds_of_true_jobs(peer):
    """From the first of JOBS calls of sbatch until the last `true` has ended."""
    began = time.monotonic()
    _per_second(["sbatch", "--output=/dev/null", "--wrap=true"], peer.environment, JOBS,
                AT_A_TIME)
    submitted = time.monotonic() - began
    while peer.run("squeue", "-h").stdout.strip():
        if time.monotonic() - began > 600:
            raise harness.Failure("Slurm has not run all jobs within ten minutes")
        time.sleep(0.5)
    return submitted, time.monotonic() - began


def slurm(bench):
    """Submitting processes per second and 1,000 jobs that end at once, beside Slurm's."""
    import slurm_test  # needs Slurm's programs only when it is run
    rates = {f"{who}_{way}": [] for who in ("offshoot_submit", "sbatch")
             for way in ("one_at_a_time", "eight_at_a_time")}
    seconds = {"offshoot": [], "slurm": []}
    try:
        peer = slurm_test.Slurm(cpus=SLOTS, settings=SETTINGS)
    except unittest.SkipTest as reason:
        raise harness.Failure(str(reason)) from reason
    try:
        for run in range(bench.pairs):
            ours = _Coordinator(bench.scratch / f"cluster{run}")
            try:
                for way, at_a_time in (("one_at_a_time", 1), ("eight_at_a_time", AT_A_TIME)):
                    rates[f"offshoot_submit_{way}"].append(
                        _per_second(ours.submit_command(), at_a_time=at_a_time))
                    rates[f"sbatch_{way}"].append(
                        _per_second(["sbatch", "--hold", "--output=/dev/null", "--wrap=true"],
                                    peer.environment, at_a_time=at_a_time))
            finally:
                ours.stop()
            peer.run("scancel", "--user", "root")
            while peer.run("squeue", "-h").stdout.strip():
                time.sleep(0.5)
            seconds["slurm"].append(_seconds_of_true_jobs(peer)[1])
            seconds["offshoot"].append(service_measures.run_program(
                bench, "cluster_bench", "jobs", "--count", JOBS, "--devices", SLOTS)["seconds"])
    finally:
        peer.stop()
    for name, values in rates.items():
        bench.figure(f"{name}_per_second", statistics.median(values))
    for name, values in seconds.items():
        bench.figure(f"{name}_seconds_for_{JOBS}_jobs", statistics.median(values))
    bench.bar("`offshoot submit` processes per second, beside sbatch's", 1.0,
              statistics.median(rates["offshoot_submit_one_at_a_time"]) /
              statistics.median(rates["sbatch_one_at_a_time"]))
    bench.bar("1,000 jobs to the end, Slurm's seconds by ours", 1.0,
              statistics.median(seconds["slurm"]) / statistics.median(seconds["offshoot"]))


ALL = {"slurm": slurm}
