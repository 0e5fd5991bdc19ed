"""One random model of every family through the real packages: adapters that PEFT wrote and that we
wrote, merged models, greedy answers, losses of rows; and GGUF files of the families that llama.cpp
knows. The seeds are fixed; random_configs.py draws others. Skipped without OFFSHOOT_TEST_PYTHON (a
Python with torch, transformers, peft and gguf)."""

import os
import pathlib
import subprocess
import unittest

PYTHON = os.environ.get("OFFSHOOT_TEST_PYTHON", "")
TRAINER = pathlib.Path(os.environ.get("OFFSHOOT_BIN", "build/release/bin")) / "offshoot-trainer"
FOLDER = pathlib.Path(__file__).parent


@unittest.skipUnless(PYTHON and pathlib.Path(PYTHON).exists(), "OFFSHOOT_TEST_PYTHON is not set")
class Families(unittest.TestCase):
    def test_every_family_equals_transformers_and_peft(self):
        self.run_script("random_configs.py", "--count", "12", "--seed", "5")

    def test_gguf_of_every_family_equals_peft_transformers_and_the_gguf_package(self):
        self.run_script("gguf_families.py")

    def run_script(self, name, *arguments):
        process = subprocess.run([PYTHON, FOLDER / name, "--trainer", TRAINER, *arguments],
                                 capture_output=True, text=True, check=False)
        self.assertEqual(process.returncode, 0, process.stdout + process.stderr[-2000:])
        print(process.stdout.splitlines()[-1])


if __name__ == "__main__":
    unittest.main()
