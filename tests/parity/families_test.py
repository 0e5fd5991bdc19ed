"""One random model of every family through the real packages: adapters that PEFT wrote and that we
wrote, merged models, greedy answers, losses of rows. The seeds are fixed; random_configs.py draws
others. Skipped without OFFSHOOT_TEST_PYTHON (a Python with torch, transformers and peft)."""

import os
import pathlib
import subprocess
import unittest

PYTHON = os.environ.get("OFFSHOOT_TEST_PYTHON", "")
TRAINER = pathlib.Path(os.environ.get("OFFSHOOT_BIN", "build/release/bin")) / "offshoot-trainer"
SCRIPT = pathlib.Path(__file__).with_name("random_configs.py")


@unittest.skipUnless(PYTHON and pathlib.Path(PYTHON).exists(), "OFFSHOOT_TEST_PYTHON is not set")
class Families(unittest.TestCase):
    def test_every_family_equals_transformers_and_peft(self):
        process = subprocess.run(
            [PYTHON, SCRIPT, "--trainer", TRAINER, "--count", "12", "--seed", "5"],
            capture_output=True, text=True, check=False)
        self.assertEqual(process.returncode, 0, process.stdout + process.stderr[-2000:])
        print(process.stdout.splitlines()[-1])


if __name__ == "__main__":
    unittest.main()
