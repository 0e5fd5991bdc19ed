"""A coordinator and several workers, each with one CPU device, on this machine."""

import contextlib
import json
import struct

import cluster


class Gang(cluster.Cluster):
    def __init__(self, workers=2, **options):
        super().__init__(**options)
        self.count = workers
        self.workers = {}

    def start_worker(self):
        for number in range(self.count):
            self.start_one(number)
        self.wait_for_workers()

    def wait_for_workers(self):
        """A job that takes fewer ranks would start on the first that comes."""
        cluster.wait_until(
            lambda: self.cli("workers", "-o", "json").stdout.count("WORKER_STATE_READY") >= self.count,
            20, "all workers are connected")

    def start_one(self, number):
        self.workers[number] = self.spawn(
            "worker", "--coordinator", self.address, "--state-dir", self.root / f"worker-{number}",
            "--name", f"w{number}", "--devices", self.devices, *self.worker_options)

    def kill_worker(self, number):
        self.workers[number].kill()
        self.workers[number].wait()

    def trainers_of(self, number):
        return cluster.processes("offshoot-trainer", self.root / f"worker-{number}")

    def __exit__(self, kind, value, trace):
        for process in self.workers.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
        super().__exit__(kind, value, trace)

    def metrics(self, job_id):
        text = self.cli("metrics", job_id, "-o", "json").stdout
        return [json.loads(line) for line in text.splitlines()]

    def wait_for_step(self, job_id, step, seconds=120):
        def reached():
            job = self.job(job_id)
            assert job["state"] not in cluster.TERMINAL, job
            return int(job.get("progress", {}).get("step", 0)) >= step and job
        return cluster.wait_until(reached, seconds, f"{job_id} at step {step}")


def read_adapter(directory):
    """All numbers of an adapter in the order of their names."""
    data = (directory / "adapter_model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + size])
    numbers = []
    for name in sorted(header):
        if name != "__metadata__":
            begin, end = header[name]["data_offsets"]
            part = data[8 + size + begin:8 + size + end]
            numbers += struct.unpack(f"<{len(part) // 4}f", part)
    return numbers


def relative_difference(one, other):
    assert len(one) == len(other)
    difference = sum((a - b) ** 2 for a, b in zip(one, other)) ** 0.5
    return difference / sum(b * b for b in other) ** 0.5


def train_losses(derivative):
    text = (derivative / "training_metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    return [row["train_loss"] for row in rows if "train_loss" in row]
