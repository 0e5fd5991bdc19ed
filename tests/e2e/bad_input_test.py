"""Bad input ends in one clear sentence that names the thing; nothing crashes, nothing is left half."""

import json
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import tempfile
import unittest

import cluster
import tiny_model


class BadInputTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.work = pathlib.Path(tempfile.mkdtemp(prefix="offshoot-bad-"))
        cls.model = tiny_model.make_model(cls.work / "model", hidden=64, layers=2, feed_forward=128)
        cls.data = tiny_model.make_data(cls.work / "data.jsonl", rows=64, length=32)
        cls.count = 0

    def job(self, **settings):
        type(self).count += 1
        settings.setdefault("max_steps", 3)
        return tiny_model.make_job(self.work / f"job{self.count}.yaml", settings.pop("model", self.model),
                                   settings.pop("data", self.data), **settings)

    def refused(self, job_file, *fragments):
        """`offshoot run` fails with a sentence that holds every fragment, and leaves no output."""
        output = self.work / f"output{self.count}"
        done = cluster.run_offshoot("run", job_file, "--state-dir", self.work / f"state{self.count}",
                                    "--output", output)
        text = done.stdout + done.stderr
        self.assertIn(done.returncode, (1, 2), text)
        for fragment in fragments:
            self.assertIn(fragment, text)
        for trace in ("terminate called", "Segmentation", "Aborted", "Traceback", "c10::Error", "frame #"):
            self.assertNotIn(trace, text)
        self.assertFalse(output.exists(), "half-written output")
        return text

    def copy_model(self, name):
        target = self.work / name
        shutil.copytree(self.model, target)
        return target

    # --- the job file ---

    def test_malformed_yaml(self):
        file = self.work / "malformed.yaml"
        file.write_text("base_model: [unclosed\nlora_r: 4\n")
        done = cluster.run_offshoot("validate", file)
        self.assertEqual(done.returncode, 2)
        self.assertIn("line", done.stdout + done.stderr)

    def test_unknown_key_names_the_nearest(self):
        done = cluster.run_offshoot("validate", self.job(learning_rat=0.1))
        self.assertEqual(done.returncode, 2)
        self.assertIn("learning_rat", done.stdout + done.stderr)
        self.assertIn("learning_rate", done.stdout + done.stderr)

    def test_all_faults_in_one_answer(self):
        done = cluster.run_offshoot("validate", self.job(lora_r=-1, learning_rate="fast", dtype="int7"))
        text = done.stdout + done.stderr
        self.assertEqual(done.returncode, 2)
        for fragment in ("lora_r", "learning_rate", "dtype"):
            self.assertIn(fragment, text)

    def test_explained_before_it_is_submitted(self):
        done = cluster.run_offshoot("validate", "--explain", self.job(sequence_len=64))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        for fragment in ("rows to train on", "3 steps", "memory of each rank on a cpu device: about",
                         "gradient_checkpointing: true", "not known here"):
            self.assertIn(fragment, done.stdout)
        done = cluster.run_offshoot("validate", "--explain", self.job(lora_target_modules="nothing_proj"))
        self.assertEqual(done.returncode, 2, done.stdout + done.stderr)
        self.assertIn("nothing_proj", done.stdout + done.stderr)

    def test_missing_job_file(self):
        done = cluster.run_offshoot("run", self.work / "nowhere.yaml")
        self.assertEqual(done.returncode, 2)
        self.assertIn("nowhere.yaml", done.stderr)

    def test_wrong_flag(self):
        done = cluster.run_offshoot("run", self.job(), "--no-such-flag")
        self.assertEqual(done.returncode, 2)
        self.assertIn("no-such-flag", done.stdout + done.stderr)

    # --- the data ---

    def test_missing_data(self):
        self.refused(self.job(data=self.work / "nowhere.jsonl"), "nowhere.jsonl")

    def test_broken_json_on_line_7(self):
        data = self.work / "broken.jsonl"
        lines = self.data.read_text().splitlines()
        lines[6] = lines[6][:-5]
        data.write_text("\n".join(lines))
        self.refused(self.job(data=data), "broken.jsonl", "line 7")

    def test_empty_data(self):
        data = self.work / "empty.jsonl"
        data.write_text("")
        self.refused(self.job(data=data), "empty.jsonl", "empty")

    def test_wrong_utf8(self):
        data = self.work / "latin.jsonl"
        data.write_bytes(self.data.read_bytes() + b'{"input_ids": [1, 2], "x": "caf\xe9"}\n')
        self.refused(self.job(data=data), "latin.jsonl", "UTF-8")

    def test_every_label_masked(self):
        data = self.work / "masked.jsonl"
        data.write_text("".join(json.dumps({"input_ids": [5, 6, 7], "labels": [-100] * 3}) + "\n"
                                for _ in range(8)))
        self.refused(self.job(data=data, val_set_size=0), "masked.jsonl")

    def test_token_outside_the_vocabulary(self):
        data = self.work / "large.jsonl"
        data.write_text(json.dumps({"input_ids": [5, 600], "labels": [5, 600]}) + "\n")
        self.refused(self.job(data=data, val_set_size=0), "600")

    # --- the base model ---

    def test_missing_model(self):
        self.refused(self.job(model=self.work / "nowhere"), "nowhere")

    def test_unknown_model_type(self):
        model = self.copy_model("unknown-type")
        config = json.loads((model / "config.json").read_text())
        config["model_type"] = "not_a_model"
        (model / "config.json").write_text(json.dumps(config))
        self.refused(self.job(model=model), "not_a_model")

    def test_truncated_safetensors(self):
        model = self.copy_model("truncated")
        path = model / "model.safetensors"
        with open(path, "r+b") as file:
            file.truncate(path.stat().st_size - 1000)
        self.refused(self.job(model=model), "model.safetensors")

    def test_absurd_header_size(self):
        model = self.copy_model("absurd")
        (model / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
        self.refused(self.job(model=model), "model.safetensors", "header")

    def test_missing_tensor(self):
        model = self.copy_model("missing-tensor")
        config = json.loads((model / "config.json").read_text())
        config["num_hidden_layers"] = 3
        (model / "config.json").write_text(json.dumps(config))
        self.refused(self.job(model=model), "model.layers.2.self_attn.q_proj.weight")

    def test_corrupt_gguf(self):
        path = self.work / "corrupt.gguf"
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60) + b"\0" * 64)
        self.refused(self.job(model=path), "corrupt.gguf")

    def test_lora_target_that_matches_nothing(self):
        self.refused(self.job(lora_target_modules=["no_such_proj"]), "no_such_proj", "q_proj")

    def test_nan_loss_names_the_step(self):
        model = tiny_model.make_model(self.work / "model-nan", hidden=64, layers=2, feed_forward=128)
        path = model / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[-4:] = struct.pack("<f", float("nan"))
        path.write_bytes(content)
        self.refused(self.job(model=model), "step 1")

    # --- the machine ---

    def test_busy_port(self):
        with socket.socket() as busy:
            busy.bind(("127.0.0.1", 0))
            busy.listen()
            address = "127.0.0.1:%d" % busy.getsockname()[1]
            done = subprocess.run([cluster.BIN / "offshoot-coordinator", "--listen", address,
                                   "--state-dir", self.work / "busy"], capture_output=True, text=True,
                                  timeout=30)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn(address, done.stderr)

    def test_non_loopback_without_tls(self):
        done = subprocess.run([cluster.BIN / "offshoot-coordinator", "--listen", "0.0.0.0:0",
                               "--state-dir", self.work / "open"], capture_output=True, text=True,
                              timeout=30)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("--insecure", done.stderr)

    def test_second_coordinator_and_second_worker(self):
        with cluster.Cluster() as running:
            for words in (["offshoot-coordinator", "--listen", "127.0.0.1:0", "--state-dir",
                           running.root / "coordinator"],
                          ["offshoot-worker", "--coordinator", running.address, "--state-dir",
                           running.root / "worker"]):
                done = subprocess.run([cluster.BIN / words[0], *words[1:]], capture_output=True,
                                      text=True, timeout=30)
                self.assertNotEqual(done.returncode, 0)
                self.assertIn(str(words[-1]), done.stderr)

    def test_coordinator_that_is_not_there(self):
        done = cluster.run_offshoot("list", "--coordinator", "127.0.0.1:1", "--wait-ms", "300")
        self.assertEqual(done.returncode, 3)
        self.assertIn("127.0.0.1:1", done.stderr)

    @unittest.skipUnless(os.geteuid() == 0, "mounting a small tmpfs needs root")
    def test_full_disk(self):
        disk = self.work / "small-disk"
        disk.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", disk],
                                 capture_output=True)
        if mounted.returncode != 0:
            self.skipTest("mounting a tmpfs is not allowed here")
        try:
            self.count_job = self.job(max_steps=10, save_steps=1, lora_r=64)
            done = cluster.run_offshoot("run", self.count_job, "--state-dir", disk / "state", "--output",
                                        self.work / "full-output")
            text = done.stdout + done.stderr
            self.assertIn(done.returncode, (1, 2), text)
            self.assertRegex(text.lower(), "no space|disk")
            self.assertFalse((self.work / "full-output").exists())
        finally:
            subprocess.run(["umount", disk], check=True)


if __name__ == "__main__":
    unittest.main(verbosity=2)
