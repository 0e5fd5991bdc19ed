"""Machines that are network namespaces on one switch: their links can be cut, healed and slowed.

Needs root and `ip netns`; Network() raises unittest.SkipTest with the reason where it cannot be had.
"""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "e2e"))
import cluster  # noqa: E402

PORT = 7070


def run(*words):
    return subprocess.run([str(word) for word in words], capture_output=True, text=True)


class Network:
    def __init__(self, machines):
        self.tag = f"os{os.getpid() % 10000}"
        self.addresses = {name: f"10.213.0.{i + 1}" for i, name in enumerate(machines)}
        self.switch = f"{self.tag}-switch"
        if os.geteuid() != 0:
            raise unittest.SkipTest("network namespaces need root")
        if shutil.which("ip") is None:
            raise unittest.SkipTest("there is no `ip` program (Debian: iproute2)")
        try:
            self.build(machines)
        except AssertionError as error:
            self.remove()
            raise unittest.SkipTest(f"no network namespaces can be made here: {error}")

    def must(self, *words):
        done = run(*words)
        assert done.returncode == 0, f"{' '.join(map(str, words))}: {done.stderr.strip()}"

    def namespace(self, name):
        return f"{self.tag}-{name}"

    def port_of(self, name):
        """The switch's end of a machine's link."""
        return f"p{list(self.addresses).index(name)}"

    def build(self, machines):
        self.must("ip", "netns", "add", self.switch)
        self.must("ip", "-n", self.switch, "link", "add", "bridge", "type", "bridge")
        self.must("ip", "-n", self.switch, "link", "set", "bridge", "up")
        for name in machines:
            inside, port = self.namespace(name), self.port_of(name)
            self.must("ip", "netns", "add", inside)
            self.must("ip", "-n", self.switch, "link", "add", port, "type", "veth", "peer", "name",
                      "eth0", "netns", inside)
            self.must("ip", "-n", self.switch, "link", "set", port, "master", "bridge", "up")
            self.must("ip", "-n", inside, "address", "add", f"{self.addresses[name]}/24", "dev",
                      "eth0")
            self.must("ip", "-n", inside, "link", "set", "eth0", "up")
            self.must("ip", "-n", inside, "link", "set", "lo", "up")

    def remove(self):
        for name in self.addresses:
            run("ip", "netns", "del", self.namespace(name))
        run("ip", "netns", "del", self.switch)

    def cut(self, name):
        """Packets vanish; nobody is told."""
        self.must("ip", "-n", self.switch, "link", "set", self.port_of(name), "nomaster")

    def heal(self, name):
        self.must("ip", "-n", self.switch, "link", "set", self.port_of(name), "master", "bridge")

    def isolate(self, name):
        """Machines that are isolated reach the others, but not each other."""
        self.must("ip", "-n", self.switch, "link", "set", self.port_of(name), "type",
                  "bridge_slave", "isolated", "on")

    def slow(self, name, rate):
        """Everything to and from the machine queues behind `rate` (tc's units)."""
        for where, device in ((self.switch, self.port_of(name)), (self.namespace(name), "eth0")):
            self.must("tc", "-n", where, "qdisc", "replace", "dev", device, "root", "tbf", "rate",
                      rate, "burst", "8kb", "latency", "5s")

    def fast(self, name):
        for where, device in ((self.switch, self.port_of(name)), (self.namespace(name), "eth0")):
            self.must("tc", "-n", where, "qdisc", "del", "dev", device, "root")


class NetworkCluster(cluster.Cluster):
    """A coordinator and workers w0, w1, ..., each on a machine of its own."""

    def __init__(self, workers=2, lease_ms=4000, **options):
        super().__init__(**options)
        self.names = [f"w{number}" for number in range(workers)]
        self.network = Network(["c", *self.names])
        self.lease_ms = lease_ms
        self.daemons = {}

    def inside(self, name):
        return ["ip", "netns", "exec", self.network.namespace(name)]

    def start_on(self, machine, log_name, *words):
        # `ip netns exec` becomes the program, so its process is the program's.
        with open(self.root / f"{log_name}.log", "ab") as log:
            self.daemons[log_name] = subprocess.Popen(
                [*self.inside(machine), *map(str, words)], stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT)

    def start_coordinator(self):
        self.address = f"{self.network.addresses['c']}:{PORT}"
        file = self.root / "address"
        file.unlink(missing_ok=True)
        settings = self.root / "coordinator.yaml"
        settings.write_text(f"lease_ms: {self.lease_ms}\nheartbeat_interval_ms: 500\n")
        self.start_on("c", "coordinator", cluster.BIN / "offshoot-coordinator", "--listen",
                      self.address, "--insecure", "--state-dir", self.root / "coordinator",
                      "--config", settings, "--address-file", file, "--allowed-root", "/",
                      *self.coordinator_options)
        cluster.wait_until(file.exists, 20, "the coordinator listens")

    def start_worker(self):
        for name in self.names:
            self.start_one(name)

    def start_one(self, name):
        self.start_on(name, name, cluster.BIN / "offshoot-worker", "--coordinator", self.address,
                      "--state-dir", self.root / name, "--name", name, "--devices", self.devices,
                      *self.worker_options)

    def kill(self, name):
        self.daemons[name].send_signal(signal.SIGKILL)
        self.daemons[name].wait()

    def cli(self, *words, check=True, timeout=120):
        done = subprocess.run(
            [*self.inside("c"), str(cluster.BIN / "offshoot"), *map(str, words), "--coordinator",
             self.address], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=timeout)
        if check and done.returncode != 0:
            raise AssertionError(f"offshoot {words}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def reaches(self, one, other, port):
        """Whether packets from one machine come to the other and back, refused ones too."""
        script = ("import socket, sys\n"
                  "try: socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)\n"
                  "except ConnectionRefusedError: pass\n"
                  "except OSError: sys.exit(1)")
        return run(*self.inside(one), sys.executable, "-c", script,
                   self.network.addresses[other], port).returncode == 0

    def wait_for_step(self, job_id, step, seconds=90):
        def reached():
            job = self.job(job_id)
            assert job["state"] not in cluster.TERMINAL, job
            return int(job.get("progress", {}).get("step", 0)) >= step and job
        return cluster.wait_until(reached, seconds, f"{job_id} at step {step}")

    def trainers_of(self, name):
        return cluster.processes("offshoot-trainer", self.root / name)

    def __exit__(self, kind, value, trace):
        for process in self.daemons.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
        try:
            super().__exit__(kind, value, trace)
        finally:
            self.network.remove()
