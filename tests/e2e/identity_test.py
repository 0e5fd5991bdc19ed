"""TLS, tokens, roles and teams with the real programs: who may do what, and what a stranger sees."""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

import cluster

TOKENS = {"alice": "alice-secret", "bob": "bob-secret", "olga": "olga-secret", "node": "node-secret"}


def openssl(*words):
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


@unittest.skipUnless(shutil.which("openssl"), "the openssl program is not installed")
class IdentityTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.work = pathlib.Path(tempfile.mkdtemp(prefix="offshoot-identity-"))
        cls.make_certificates()
        users = [("alice", "red", "submit"), ("bob", "blue", "submit"), ("olga", "staff", "operate"),
                 ("node", "none", "worker")]
        (cls.work / "users.yaml").write_text("".join(
            f'{name}: {{team: {team}, role: {role}, token: "sha256:'
            f'{hashlib.sha256(TOKENS[name].encode()).hexdigest()}"}}\n' for name, team, role in users))
        (cls.work / "node.token").write_text(TOKENS["node"] + "\n")
        (cls.work / "model.gguf").write_bytes(b"weights")
        (cls.work / "data.jsonl").write_text('{"text": "a"}\n')
        (cls.work / "job.yaml").write_text(
            f"name: mine\nteam: blue\nbase_model: {cls.work}/model.gguf\nbase_model_id: org/m\n"
            f"datasets:\n  - path: {cls.work}/data.jsonl\n    type: text\n")
        (cls.work / "coordinator.yaml").write_text(
            f"tls_certificate: {cls.work}/server.pem\ntls_key: {cls.work}/server.key\n"
            f"tls_client_ca: {cls.work}/ca.pem\nusers_file: {cls.work}/users.yaml\n")
        address_file = cls.work / "address"
        with open(cls.work / "log", "wb") as log:
            cls.coordinator = subprocess.Popen(
                [cluster.BIN / "offshoot-coordinator", "--config", cls.work / "coordinator.yaml",
                 "--listen", "127.0.0.1:0", "--state-dir", cls.work / "state", "--allowed-root",
                 cls.work, "--address-file", address_file], stdout=log, stderr=log)
        cluster.wait_until(address_file.exists, 20, "the coordinator listens")
        port = address_file.read_text().strip().rsplit(":", 1)[1]
        cls.address = f"localhost:{port}"

    @classmethod
    def tearDownClass(cls):
        cls.coordinator.terminate()
        cls.coordinator.wait()
        shutil.rmtree(cls.work, ignore_errors=True)

    @classmethod
    def make_certificates(cls):
        work = cls.work
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test CA", "-days", "2",
                "-keyout", work / "ca.key", "-out", work / "ca.pem")
        for name in ("server", "worker"):
            openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout",
                    work / f"{name}.key", "-out", work / f"{name}.csr")
            extension = work / f"{name}.ext"
            extension.write_text("subjectAltName=DNS:localhost\n")
            openssl("x509", "-req", "-in", work / f"{name}.csr", "-CA", work / "ca.pem", "-CAkey",
                    work / "ca.key", "-CAcreateserial", "-days", "2", "-extfile", extension, "-out",
                    work / f"{name}.pem")

    def offshoot(self, user, *words, ca=True):
        environment = {**os.environ, "OFFSHOOT_COORDINATOR": self.address}
        for name in ("OFFSHOOT_CA", "OFFSHOOT_TOKEN"):
            environment.pop(name, None)
        if ca:
            environment["OFFSHOOT_CA"] = str(self.work / "ca.pem")
        if user:
            environment["OFFSHOOT_TOKEN"] = TOKENS.get(user, user)
        return subprocess.run([cluster.BIN / "offshoot", *map(str, words)], env=environment,
                              capture_output=True, text=True, timeout=60)

    def submit(self, user):
        done = self.offshoot(user, "submit", self.work / "job.yaml", "-o", "json")
        self.assertEqual(done.returncode, 0, done.stderr)
        answer = json.loads(done.stdout)
        return answer.get("jobId") or answer["job_id"]

    def status(self, user, job):
        return self.offshoot(user, "status", job, "-o", "json")

    def test_team_is_the_tokens_and_not_the_job_files(self):
        job = self.submit("alice")  # the file says blue
        self.assertEqual(json.loads(self.status("alice", job).stdout)["team"], "red")

    def test_other_teams_jobs_are_refused_and_not_listed(self):
        job = self.submit("alice")
        for words in (("status", job), ("cancel", job), ("logs", job), ("pause", job)):
            done = self.offshoot("bob", *words)
            self.assertNotEqual(done.returncode, 0, words)
            self.assertIn("another team", done.stderr)
        self.assertNotIn(job, self.offshoot("bob", "list").stdout)
        self.assertIn(job, self.offshoot("olga", "list").stdout)
        self.assertEqual(self.status("olga", job).returncode, 0)

    def test_strangers_are_told_what_is_missing(self):
        self.assertIn("OFFSHOOT_TOKEN", self.offshoot(None, "list").stderr)
        self.assertIn("not known", self.offshoot("wrong", "list").stderr)
        done = self.offshoot("alice", "list", ca=False)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("--ca", done.stderr)  # a token is never sent in the clear

    def test_roles_bound_what_users_and_workers_do(self):
        self.assertIn("may not do this", self.offshoot("node", "list").stderr)
        process = self.worker("drained", f"ca_file: {self.work}/ca.pem\ntoken_file: {self.work}/node.token\n")
        try:
            cluster.wait_until(lambda: "drained" in self.offshoot("alice", "workers").stdout, 20, "it is listed")
            refused = self.offshoot("alice", "workers", "drain", "drained")
            self.assertIn("may not do this", refused.stderr)
            self.assertEqual(self.offshoot("olga", "workers", "drain", "drained").returncode, 0)
        finally:
            process.kill()
            process.wait()
            process.stderr.close()

    def worker(self, name, settings):
        file = self.work / f"{name}.yaml"
        file.write_text(settings)
        trainer = self.work / "offshoot-trainer"
        trainer.write_text("#!/bin/sh\nexit 4\n")
        trainer.chmod(0o755)
        return subprocess.Popen(
            [cluster.BIN / "offshoot-worker", "--config", file, "--coordinator", self.address, "--name",
             name, "--state-dir", self.work / name, "--devices", "cpu:0@1", "--trainer", trainer],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def test_workers_join_by_certificate_or_token(self):
        ways = {"by-certificate": f"certificate_file: {self.work}/worker.pem\nkey_file: {self.work}/worker.key\n",
                "by-token": f"token_file: {self.work}/node.token\n"}
        for name, settings in ways.items():
            process = self.worker(name, f"ca_file: {self.work}/ca.pem\n" + settings)
            try:
                cluster.wait_until(lambda: name in self.offshoot("olga", "workers").stdout, 20,
                                   f"{name} is listed")
            finally:
                process.kill()
                process.wait()
                process.stderr.close()


if __name__ == "__main__":
    unittest.main()
