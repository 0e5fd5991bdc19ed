"""pylint finds in no Python source an error, an unused name, or a name that hides an outer one: the
benchmarks and what generates fixtures take too long for a test to run them. Skipped without pylint."""

import pathlib
import shutil
import subprocess
import unittest

PYLINT = shutil.which("pylint")
ROOT = pathlib.Path(__file__).parents[1]
OPTIONS = ("--rcfile=/dev/null", "--score=n", "--disable=all",
           "--enable=E,redefined-outer-name,unused-import,unused-variable",
           # other packages need not be there
           "--disable=import-error,no-name-in-module,no-member")


@unittest.skipUnless(PYLINT, "pylint is not installed")
class PythonSources(unittest.TestCase):
    def test_pylint_finds_nothing(self):
        files = [ROOT / "bench" / "run"]
        for folder in ("bench", "configs", "scripts", "tests"):
            files += sorted((ROOT / folder).rglob("*.py"))
        process = subprocess.run([PYLINT, *OPTIONS, *files], capture_output=True, text=True,
                                 check=False)
        self.assertEqual(process.returncode, 0, process.stdout + process.stderr)


if __name__ == "__main__":
    unittest.main()
