"""Starts the real programs, kills them, asks them. Standard library alone."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

BIN = pathlib.Path(os.environ.get("OFFSHOOT_BIN", "build/release/bin")).resolve()
TERMINAL = {"JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED"}


def wait_until(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"after {seconds} s: not {what}")
        time.sleep(0.02)


def processes(pattern, root=None):
    """Pids whose command line holds pattern (and root, if given); zombies do not count."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            line = b" ".join(words).decode(errors="replace")
            state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
            if words[0].decode(errors="replace").endswith(pattern) and state != "Z":
                if root is None or str(root) in line:
                    found.append(int(entry.name))
    return found


class Cluster:
    """One coordinator and one worker below a temporary directory."""

    def __init__(self, devices="cpu:0@1", coordinator_options=(), worker_options=(), environment=None):
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="offshoot-e2e-"))
        self.environment = {**os.environ, **(environment or {})}
        self.devices = devices
        self.coordinator_options = list(coordinator_options)
        self.worker_options = list(worker_options)
        self.coordinator = self.worker = None
        self.address = None

    def __enter__(self):
        self.start_coordinator()
        self.start_worker()
        return self

    def __exit__(self, kind, value, trace):
        for process in (self.worker, self.coordinator):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
        wait_until(lambda: not processes("offshoot-trainer", self.root), 10, "all trainers gone")
        if kind is None:
            shutil.rmtree(self.root, ignore_errors=True)
        else:
            print(f"kept for a look: {self.root}", flush=True)

    def spawn(self, name, *words):
        with open(self.root / f"{name}.log", "ab") as log:
            return subprocess.Popen([BIN / f"offshoot-{name}", *words], stdin=subprocess.DEVNULL,
                                    stdout=log, stderr=subprocess.STDOUT, env=self.environment)

    def start_coordinator(self):
        address_file = self.root / "address"
        listen = self.address or "127.0.0.1:0"  # a restart keeps the address
        address_file.unlink(missing_ok=True)
        self.coordinator = self.spawn(
            "coordinator", "--listen", listen, "--state-dir", self.root / "coordinator",
            "--address-file", address_file, "--allowed-root", "/", *self.coordinator_options)
        wait_until(lambda: address_file.exists() or self.coordinator.poll() is not None, 20,
                   "the coordinator listens")
        assert self.coordinator.poll() is None, (self.root / "coordinator.log").read_text()
        self.address = address_file.read_text().strip()

    def start_worker(self):
        self.worker = self.spawn(
            "worker", "--coordinator", self.address, "--state-dir", self.root / "worker",
            "--name", "w0", "--devices", self.devices, *self.worker_options)

    def trainers(self):
        return processes("offshoot-trainer", self.root)

    def kill(self, what):
        """kill -9; the killed daemon is started again."""
        if what == "trainer":
            for pid in self.trainers():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        elif what == "worker":
            self.worker.kill()
            self.worker.wait()
            self.start_worker()
        elif what == "coordinator":
            self.coordinator.kill()
            self.coordinator.wait()
            self.start_coordinator()
        else:
            raise ValueError(what)

    def cli(self, *words, check=True, timeout=120):
        """Runs `offshoot WORDS`; returns the finished process with its text."""
        done = subprocess.run([BIN / "offshoot", *map(str, words), "--coordinator", self.address],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
        if check and done.returncode != 0:
            raise AssertionError(f"offshoot {words}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def submit(self, job_file):
        return self.cli("submit", job_file).stdout.strip().splitlines()[-1]

    def job(self, job_id):
        return json.loads(self.cli("status", job_id, "-o", "json").stdout)

    def wait_for(self, job_id, states, seconds=120):
        states = {states} if isinstance(states, str) else set(states)

        def reached():
            job = self.job(job_id)
            if job["state"] in states:
                return job
            assert job["state"] not in TERMINAL, job
            return None

        return wait_until(reached, seconds, f"{job_id} in {states}")

    def pull(self, job, directory):
        self.cli("pull", job["derivativeId"], directory)
        return pathlib.Path(directory)


def run_offshoot(*words, timeout=300, environment=None):
    """`offshoot WORDS` without a cluster."""
    return subprocess.run([BIN / "offshoot", *map(str, words)], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=timeout,
                          env={**os.environ, **(environment or {})})
