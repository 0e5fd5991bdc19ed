"""Loading a base: time and peak memory, beside transformers' from_pretrained."""

import json
import statistics

import harness


def _median(values):
    return statistics.median(values)


# name: the model's kind (peers/make_models.py), what our side asks for, what the peer is told, if it
# can load it on a CPU.
CASES = {
    "bfloat16": ("qwen3-0.6b", [], []),
    "fp8": ("qwen3-0.6b-fp8", [], ["--fp8"]),
    "nf4": ("qwen3-0.6b", ["--load-in-4bit"], None),
    "gguf_q4_k": ("qwen3-0.6b-q4_k", [], ["--gguf"]),
}


def load(bench):
    """Process start to a loaded base and one token's logits, and peak memory, of four kinds of base."""
    request, output = bench.scratch / "in.safetensors", bench.scratch / "out.safetensors"
    header = json.dumps({"input_ids": {"dtype": "I64", "shape": [1, 1], "data_offsets": [0, 8]}}).encode()
    header += b" " * (-len(header) % 8)
    request.write_bytes(len(header).to_bytes(8, "little") + header + (1).to_bytes(8, "little"))

    def ours(model, flags):
        _, _, peak = bench.run_timed(
            [harness.BUILD / "bin" / "offshoot-trainer", "logits", "--model", model, "--dtype", "bfloat16",
             "--threads", str(bench.threads), "--input", request, "--output", output, *flags])
        return {"step_seconds": [bench.last_seconds], "peak_bytes": peak}

    for name, (kind, flags, peer_flags) in CASES.items():
        model = bench.random_model(kind)
        sides = {"offshoot": lambda model=model, flags=flags: ours(model, flags)}
        if peer_flags is not None:
            sides["transformers"] = lambda model=model, extra=peer_flags: bench.peer(
                "load_model.py", "--model", model, *extra)
        results, _ = bench.alternate(sides)
        for side, runs in results.items():
            bench.figure(f"{name}_{side}_seconds", _median([r["step_seconds"][0] for r in runs]))
            bench.figure(f"{name}_{side}_peak_bytes", _median([r["peak_bytes"] for r in runs]))
        weights = sum(f.stat().st_size for f in model.iterdir() if f.suffix in (".safetensors", ".gguf"))
        bench.figure(f"{name}_file_bytes", weights)


ALL = {"load": load}
