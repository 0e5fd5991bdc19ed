"""Starting both sides, alternating them, and the report."""

import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = pathlib.Path(os.environ.get("OFFSHOOT_CACHE_DIR") or
                     pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "offshoot")
BUILD = pathlib.Path(os.environ.get("OFFSHOOT_BUILD", ROOT / "build" / "release"))
PYTHON = os.environ.get("OFFSHOOT_BENCH_PYTHON", str(CACHE / "test-python" / "bin" / "python"))
RESULTS = ROOT / "bench" / "results.json"
DEMO_GGUF = os.environ.get("OFFSHOOT_DEMO_MODEL",
                           str(CACHE / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"))
PROBE_STRAY = 0.2   # a pair whose probe differs from the others' median by more is run again
MOST_REPEATS = 3

SMOLLM2 = {"hidden": 576, "layers": 30, "query": 576, "key": 192, "intermediate": 1536, "vocab": 49152}
QWEN3_06B = {"hidden": 1024, "layers": 28, "query": 2048, "key": 1024, "intermediate": 3072,
             "vocab": 151936}


class Failure(Exception):
    pass


def machine():
    facts = {"cores": os.cpu_count(), "kernel": platform.release()}
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        lines = file.read().splitlines()
    said = {}  # of the first core
    for line in lines:
        key, _, value = line.partition(":")
        said.setdefault(key.strip(), value.strip())
    facts["cpu"] = said.get("model name", "?")
    if "cpu family" in said:  # names such as "AMD EPYC" stand for several generations
        facts["cpu_family"] = int(said["cpu family"])
    flags = said.get("flags", "").split()
    facts["isa"] = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags]
    with open("/proc/meminfo", encoding="utf-8") as file:
        facts["memory_gib"] = round(int(file.readline().split()[1]) / 2**20, 1)
    return facts


class Bench:
    """One benchmark: its runs, figures and bars."""

    def __init__(self, name, pairs, threads):
        self.name, self.pairs, self.threads = name, pairs, threads
        self.figures, self.bars = {}, []
        self.scratch = pathlib.Path(tempfile.mkdtemp(prefix="offshoot-bench-"))

    # --- processes ---

    def _run(self, command, events_fd=None, **options):
        """Runs to the end; returns its output, wall seconds and peak resident bytes."""
        log = self.scratch / "log"
        with open(log, "w+", encoding="utf-8") as out:
            began = time.time()
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT,
                                       stdin=subprocess.DEVNULL, **options)
            if events_fd is not None:
                os.close(events_fd)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            out.seek(0)
            text = out.read()
        if process.returncode != 0:
            raise Failure(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{text[-2000:]}")
        return text, began, usage.ru_maxrss * 1024

    def run_timed(self, command):
        """Runs to the end; like _run, and keeps the wall seconds in last_seconds."""
        result = self._run(command)
        self.last_seconds = time.time() - result[1]
        return result

    def train(self, model, data, data_type, **keys):
        """Our trainer on a spec: seconds of each step, tokens/s, peak, time to the first step."""
        work = self.scratch / "train"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        spec = {"spec_version": 1, "job_id": "bench", "attempt": 1, "lineage": {},
                "base_model": {"path": str(model), "id": "bench/base"},
                "datasets": [{"path": str(data), "type": data_type}], "device": "cpu",
                "threads": self.threads, "lora_r": 16, "lora_alpha": 32, "save_steps": 0,
                "lora_target_modules": "all-linear", "max_grad_norm": 1.0, **keys}
        (work / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
        events_path = work / "events"
        descriptor = os.open(events_path, os.O_WRONLY | os.O_CREAT, 0o600)
        _, began, peak = self._run(
            [BUILD / "bin" / "offshoot-trainer", "train", "--spec", work / "spec.json", "--work-dir",
             work, "--events-fd", str(descriptor)], pass_fds=[descriptor], events_fd=descriptor)
        events = [json.loads(line) for line in events_path.read_text(encoding="utf-8").splitlines()]
        started = next(e for e in events if e["event"] == "started")
        steps = [json.loads(line) for line in
                 (work / "training_metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        steps = [s for s in steps if "step_seconds" in s]
        return {"step_seconds": [s["step_seconds"] for s in steps],
                "tokens": sum(s["tokens_per_second"] * s["step_seconds"] for s in steps),
                "peak_bytes": peak, "seconds_to_first_step": started["time"] - began,
                "result": work / "result"}

    def peer(self, program, *arguments):
        text, _, peak = self._run([PYTHON, ROOT / "bench" / "peers" / program, "--threads",
                                   str(self.threads), *map(str, arguments)],
                                  env={**os.environ, "HF_HUB_OFFLINE": "1"})
        figures = json.loads(text.splitlines()[-1])
        return {**figures, "peak_bytes": peak}

    def probe(self, shape, dtype, tokens):
        """Tokens/s of the frozen products alone, three ways."""
        arguments = [f for k, v in {**shape, "dtype": dtype, "tokens": tokens,
                                    "threads": self.threads}.items() for f in (f"--{k}", str(v))]
        text, _, _ = self._run([BUILD / "bench" / "limit_probe", *arguments])
        return json.loads(text)

    def score(self, model, adapter, data):
        text, _, _ = self._run([BUILD / "bin" / "offshoot-trainer", "score", "--model", model,
                                "--adapter", adapter, "--data", data, "--type", "chat"])
        return json.loads(text.strip().splitlines()[-1])["loss"]

    def demo_model(self):
        return self._model("smollm2-135m", "demo", DEMO_GGUF)

    def random_model(self, kind):
        """A directory with random weights; peers/make_models.py names the kinds."""
        return self._model(f"{kind}-shape", kind)

    def _model(self, name, *arguments):
        directory = CACHE / "bench" / name
        if not any(directory.glob("*.safetensors")) and not any(directory.glob("*.gguf")):
            self.say(f"making {directory}")
            partial = directory.with_name(name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            self._run([PYTHON, ROOT / "bench" / "peers" / "make_models.py", *arguments, partial])
            shutil.rmtree(directory, ignore_errors=True)
            partial.rename(directory)
        return directory

    # --- alternating runs ---

    def alternate(self, sides, probe=None):
        """Runs the sides ({name: function}) in turn, `pairs` times, the order reversed each time.

        With a probe (a function giving {way: tokens/s}) it runs before and after each pair; a pair
        during which it strays from what it gave before is run again. Returns {name: [result]} and
        the probes.
        """
        results, probes = {name: [] for name in sides}, []
        repeats = 0
        before = probe() if probe else None
        while len(next(iter(results.values()))) < self.pairs:
            order = list(sides) if len(next(iter(results.values()))) % 2 == 0 else list(sides)[::-1]
            pair = {}
            for name in order:
                pair[name] = sides[name]()
            if probe:
                after = probe()
                levels = [max(p.values()) for p in (before, after)]
                stray = abs(levels[0] - levels[1]) / max(levels) > PROBE_STRAY
                before = after
                if stray and repeats < MOST_REPEATS:
                    repeats += 1
                    self.say("the machine's speed changed during this pair: running it again")
                    continue
                probes.append(after)
            for name, result in pair.items():
                results[name].append(result)
            self.say(f"pair {len(next(iter(results.values())))}/{self.pairs}: " + "  ".join(
                f"{n} {statistics.median(r[-1]['step_seconds'][1:] or r[-1]['step_seconds']):.3f} s/step"
                for n, r in results.items()))
        if repeats:
            self.figures["repeated_pairs"] = repeats
        return results, probes

    # --- report ---

    def say(self, text):
        print(text, file=sys.stderr, flush=True)

    def figure(self, name, value):
        self.figures[name] = round(value, 4) if isinstance(value, float) else value

    def bar(self, what, bar, got, at_least=True):
        met = got >= bar if at_least else got <= bar
        self.bars.append({"what": what, "bar": bar, "got": round(got, 4), "met": met})

    def finish(self):
        shutil.rmtree(self.scratch, ignore_errors=True)
        report = {"name": self.name, "machine": machine(), "figures": self.figures, "bars": self.bars}
        for name, value in self.figures.items():
            print(f"{name:44}{value}")
        for bar in self.bars:
            print(f"{'met    ' if bar['met'] else 'NOT MET'}  {bar['what']:50} {bar['got']}  (bar {bar['bar']})")
        known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        known[self.name] = {**report, "pairs": self.pairs, "threads": self.threads,
                            "date": time.strftime("%Y-%m-%d", time.gmtime())}
        RESULTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(json.dumps(report))
        return 0 if all(bar["met"] for bar in self.bars) else 1
