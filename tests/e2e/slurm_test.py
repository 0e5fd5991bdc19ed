"""A real Slurm of one node starts a worker by deploy/slurm's script, and a job runs on it; scancel
makes it leave in peace. Skipped with the reason where Slurm is not there or cannot run."""

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import unittest

import cluster
import tiny_model

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Slurm:
    """munged, slurmctld and slurmd of this machine alone, with all state below a directory."""

    def __init__(self, cpus=None, settings=""):
        """cpus: how many the node says it has; the machine's by default. settings: more lines of
        slurm.conf."""
        missing = [name for name in PROGRAMS if shutil.which(name) is None]
        if missing:
            raise unittest.SkipTest(f"no {', '.join(missing)} here (Debian: slurm-wlm munge)")
        if os.geteuid() != 0:
            raise unittest.SkipTest("slurmd needs root")
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="offshoot-slurm-"))
        os.chmod(self.root, 0o755)
        self.daemons = []
        self.environment = {**os.environ, "SLURM_CONF": str(self.root / "slurm.conf")}
        host = socket.gethostname().split(".")[0]
        key = self.root / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self.socket = self.root / "munge.socket"
        for name in ("state", "spool"):
            (self.root / name).mkdir()
        (self.root / "slurm.conf").write_text(f"""\
ClusterName=offshoot
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={self.socket}
CredType=cred/munge
StateSaveLocation={self.root}/state
SlurmdSpoolDir={self.root}/spool
SlurmctldPidFile={self.root}/slurmctld.pid
SlurmdPidFile={self.root}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=30
{settings}
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus or os.cpu_count()} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
""")
        try:
            self.start("munged", "--foreground", "--force", "--socket", self.socket, "--key-file",
                       key, "--pid-file", self.root / "munged.pid", "--log-file",
                       self.root / "munged.txt", "--seed-file", self.root / "munged.seed")
            cluster.wait_until(self.socket.exists, 10, "munged listens")
            self.start("slurmctld", "-D", "-i")
            self.start("slurmd", "-D", "-N", host)
            cluster.wait_until(lambda: "idle" in self.run("sinfo", "-h", "-o", "%T").stdout, 30,
                               "the node is idle")
        except AssertionError as error:
            logs = "".join((self.root / f"{name}.log").read_text()[-1500:]
                           for name in ("munged", "slurmctld", "slurmd")
                           if (self.root / f"{name}.log").exists())
            self.stop()
            raise unittest.SkipTest(f"Slurm does not come up here: {error}\n{logs}")

    def start(self, name, *words):
        with open(self.root / f"{name}.log", "ab") as log:
            self.daemons.append(subprocess.Popen(
                [name, *map(str, words)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=self.environment))

    def run(self, *words, **environment):
        return subprocess.run([str(word) for word in words], capture_output=True, text=True,
                              env={**self.environment, **environment}, timeout=60)

    def stop(self):
        self.run("scancel", "--user", "root")
        for daemon in reversed(self.daemons):
            daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            daemon.kill()
            daemon.wait()


class SlurmTest(unittest.TestCase):
    def test_job_runs_on_a_worker_that_slurm_started(self):
        slurm = Slurm()
        self.addCleanup(slurm.stop)
        work = slurm.root
        model = tiny_model.make_model(work / "model")
        data = tiny_model.make_data(work / "data.jsonl", rows=64)
        job_file = tiny_model.make_job(work / "job.yaml", model, data, max_steps=5)

        class WithoutWorker(cluster.Cluster):
            def start_worker(self):
                self.worker = None

        with WithoutWorker() as machines:
            job_id = machines.submit(job_file)
            begun = slurm.run("sbatch", "--nodes=1", "--time=10", f"--output={work}/worker.log",
                              "deploy/slurm/offshoot-workers.sbatch",
                              OFFSHOOT_COORDINATOR=machines.address,
                              OFFSHOOT_BIN=str(cluster.BIN),
                              OFFSHOOT_STATE_DIR=str(machines.root / "slurm"))
            self.assertEqual(begun.returncode, 0, begun.stdout + begun.stderr)
            slurm_job = begun.stdout.split()[-1]
            try:
                done = machines.wait_for(job_id, "JOB_STATE_SUCCEEDED", 90)
            except AssertionError:
                print((work / "worker.log").read_text() if (work / "worker.log").exists() else
                      slurm.run("squeue").stdout, flush=True)
                raise
            self.assertEqual(done["attempts"][-1]["workerName"], socket.gethostname().split(".")[0])
            # A long job: told that its time is over it checkpoints and goes back to the queue.
            long_job = machines.submit(tiny_model.make_job(work / "long.yaml", model, data,
                                                           max_steps=100_000, save_steps=1000))
            cluster.wait_until(
                lambda: int(machines.job(long_job).get("progress", {}).get("step", 0)) > 5, 60,
                "the long job trains")
            slurm.run("scancel", "--signal=TERM", "--batch", slurm_job)
            cluster.wait_until(
                lambda: not slurm.run("squeue", "-h", "-j", slurm_job, "-t", "all", "-o",
                                      "%T").stdout.startswith("RUNNING"), 60, "the worker left")
            waiting = machines.wait_for(long_job, "JOB_STATE_QUEUED", 30)
            self.assertEqual(waiting["attempts"][-1]["reasonCode"], "WORKER_LEAVING")
            self.assertGreater(int(waiting["progress"]["checkpointStep"]), 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
