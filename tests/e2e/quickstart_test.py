"""The quickstart's job on the real demo model, and its result in the real peft and transformers."""

import json
import os
import pathlib
import re
import subprocess
import tempfile
import unittest

import cluster

DEMO_MODEL = os.environ["OFFSHOOT_DEMO_MODEL"]


class QuickstartTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.work = pathlib.Path(tempfile.mkdtemp(prefix="offshoot-quickstart-"))
        job = pathlib.Path("configs/jobs/quickstart.yaml").read_text()
        # All formats are wanted here, and absolute paths since the file moves.
        job = re.sub(r"(?m)^base_model:.*$", f"base_model: {DEMO_MODEL}", job)
        job = re.sub(r"path: (\.\./data/|configs/data/)?", f"path: {pathlib.Path('configs/data').resolve()}/", job, count=1)
        if "publish:" in job:
            job = re.sub(r"(?ms)^publish:.*?(?=^\S|\Z)", "", job)
        job += "\npublish:\n  formats: [adapter, merged, gguf]\n"
        cls.job = cls.work / "quickstart.yaml"
        cls.job.write_text(job)
        cls.output = cls.work / "derivative"
        cls.done = cluster.run_offshoot("run", cls.job, "--state-dir", cls.work / "state", "--output",
                                       cls.output, timeout=900)

    def test_ends_well_and_shows_what_was_learned(self):
        self.assertEqual(self.done.returncode, 0, self.done.stdout + self.done.stderr)
        self.assertIn(str(self.output), self.done.stdout)

    def test_held_out_loss_falls_by_30_percent(self):
        evaluation = json.loads((self.output / "offshoot.json").read_text())["evaluation"]
        base, derived = evaluation["base_eval_loss"], evaluation["eval_loss"]
        print(f"held-out loss: base {base:.3f}, derivative {derived:.3f}", flush=True)
        self.assertLess(derived, 0.7 * base)

    def test_training_took_under_three_minutes(self):
        # Not a benchmark: the bound of the quickstart's promise, with room for a busy machine.
        text = (self.output / "training_metrics.jsonl").read_text()
        steps = [json.loads(line) for line in text.splitlines()]
        seconds = sum(step.get("step_seconds", 0.0) for step in steps)
        print(f"training took {seconds:.0f} s", flush=True)
        self.assertLess(seconds, 360)

    def test_loads_in_peft_and_transformers(self):
        done = subprocess.run([os.environ.get("OFFSHOOT_TEST_PYTHON", "python3"),
                               str(pathlib.Path(__file__).with_name("compare_with_transformers.py")),
                               str(cluster.BIN / "offshoot-trainer"), DEMO_MODEL, str(self.output)],
                              capture_output=True, text=True, timeout=900)
        print(done.stdout, flush=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_repeated_run_goes_on_with_the_finished_job(self):
        again = cluster.run_offshoot("run", self.job, "--state-dir", self.work / "state", "--output",
                                     self.work / "again")
        self.assertEqual(again.returncode, 0, again.stdout + again.stderr)
        name = "adapter_model.safetensors"
        self.assertEqual((self.work / "again" / name).read_bytes(), (self.output / name).read_bytes())


if __name__ == "__main__":
    unittest.main(verbosity=2)
