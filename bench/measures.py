"""The benchmarks. Each takes a harness.Bench, runs its sides in turn and states figures and bars."""

import json
import random
import statistics

import harness

ROWS, LENGTH = 4, 256
MIXTURE_VOCAB = 8192
DENSE_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "ernie4_5", "hunyuan_v1_dense")
DENSE_SHAPE = {"hidden": 512, "layers": 8, "query": 512, "key": 256, "intermediate": 1408, "vocab": 8192}
CHAT_ROWS, CHAT_HELD_OUT, CHAT_BATCH, CHAT_RATE = 160, 120, 8, 2e-4
TRL_BATCHES = (8, 16, 32)  # grouped by length; the fastest is the peer


def _median(values):
    return statistics.median(values)


def speed(result, tokens):
    """Tokens/s of one run: the median step, the first (which warms up) left out."""
    return tokens / _median(result["step_seconds"][1:])


def _steadiness(bench, dtype="bfloat16"):
    """A short probe, where the limit itself is not asked for."""
    return bench.probe(harness.SMOLLM2, dtype, 512)


def _row_speed(result):
    """Row tokens/s of one run over all its steps."""
    return result["tokens"] / sum(result["step_seconds"])


def random_rows(bench, rows, length, vocabulary):
    path = bench.scratch / f"rows-{length}.jsonl"
    draw = random.Random(1)
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(rows):
            ids = [draw.randrange(vocabulary) for _ in range(length)]
            file.write(json.dumps({"input_ids": ids, "labels": ids}) + "\n")
    return path


def _dense_runs(bench, model, shape, dtype, rows=ROWS, length=LENGTH, steps=4, checkpointing=False,
                limit=False):
    """Our runs and PEFT's in turn: results and tokens/s of each side, and the probes: of this very
    shape if the limit is wanted."""
    tokens = rows * length
    data = random_rows(bench, rows * steps, length, shape["vocab"])
    sides = {
        "offshoot": lambda: bench.train(
            model, data, "pretokenized", dtype=dtype, per_device_train_batch_size=rows,
            sequence_len=length, max_steps=steps, gradient_checkpointing=checkpointing,
            recompute_granularity="selective"),
        "peft": lambda: bench.peer(
            "peft_dense.py", "--model", model, "--dtype", dtype, "--rows", rows, "--length", length,
            "--steps", steps, *(["--checkpointing"] if checkpointing else [])),
    }
    results, probes = bench.alternate(
        sides, lambda: bench.probe(shape, dtype, tokens) if limit else _steadiness(bench, dtype))
    return results, {side: [speed(r, tokens) for r in runs] for side, runs in results.items()}, probes


def _dense(bench, model, shape, dtype, bars, **options):
    results, speeds, probes = _dense_runs(bench, model, shape, dtype, limit="limit" in bars, **options)
    ours, theirs = speeds["offshoot"], speeds["peft"]
    bench.figure("offshoot_tokens_per_second", _median(ours))
    bench.figure("peft_tokens_per_second", _median(theirs))
    for key, scale in (("peak_bytes", 1), ("seconds_to_first_step", 1)):
        for side, runs in results.items():
            bench.figure(f"{side}_{key}", _median([r[key] * scale for r in runs]))
    ratio = _median([a / b for a, b in zip(ours, theirs)])
    bench.bar("tokens/s against PEFT", bars["peft"], ratio)
    if "limit" in bars:
        limits = [max(p["libtorch"], p.get("onednn_packed", 0)) for p in probes]
        for way in probes[0]:
            bench.figure(f"limit_{way}_tokens_per_second", _median([p[way] for p in probes]))
        bench.bar("tokens/s against the limit", bars["limit"],
                  _median([a / b for a, b in zip(ours, limits)]))
    if "memory" in bars:
        bench.bar("peak memory against PEFT", bars["memory"], _median(
            [a["peak_bytes"] / b["peak_bytes"] for a, b in zip(results["offshoot"], results["peft"])]),
            at_least=False)
    if "start" in bars:
        bench.bar("process start to the first step against PEFT", bars["start"], _median(
            [a["seconds_to_first_step"] / b["seconds_to_first_step"]
             for a, b in zip(results["offshoot"], results["peft"])]), at_least=False)


def dense_bf16(bench):
    """SmolLM2-135M, 4 x 256 dense tokens, bfloat16: speed, limit, memory, start."""
    _dense(bench, bench.demo_model(), harness.SMOLLM2, "bfloat16",
           {"peft": 2.0, "limit": 0.6, "memory": 1 / 3, "start": 0.25})


def dense_fp32(bench):
    """SmolLM2-135M, 4 x 256 dense tokens, float32."""
    _dense(bench, bench.demo_model(), harness.SMOLLM2, "float32", {"peft": 1.2, "limit": 0.75})


def long_bf16(bench):
    """SmolLM2-135M, 4 x 1024, bfloat16, activations recomputed: ours selectively, which PEFT has not."""
    _dense(bench, bench.demo_model(), harness.SMOLLM2, "bfloat16", {"peft": 2.0}, length=1024, steps=3,
           checkpointing=True)


def qwen3_shape(bench):
    """Random weights of Qwen3-0.6B's shape, 4 x 256, bfloat16."""
    _dense(bench, bench.random_model("qwen3-0.6b"), harness.QWEN3_06B, "bfloat16", {"peft": 1.7}, steps=3)


def dense_families(bench):
    """Each dense family on random weights of one small shape, 4 x 256, in the machine's own type."""
    fast = {"avx512_bf16", "amx_bf16"} & set(harness.machine()["isa"])
    dtype = "bfloat16" if fast else "float32"  # LibTorch has no fast bfloat16 products elsewhere
    bench.figure("dtype", dtype)
    for family in DENSE_FAMILIES:
        _, speeds, _ = _dense_runs(bench, bench.random_model(f"dense-{family}"), DENSE_SHAPE, dtype)
        for side, values in speeds.items():
            bench.figure(f"{family}_{side}_tokens_per_second", _median(values))
        bench.bar(f"{family}: tokens/s against PEFT", 1.0,
                  _median([a / b for a, b in zip(speeds["offshoot"], speeds["peft"])]))


def _mixture(bench, kind, peer_targets, steps=5):
    """Random mixture of experts, attention LoRA, against transformers' fastest way to run experts."""
    model, tokens = bench.random_model(kind), ROWS * LENGTH
    data = random_rows(bench, ROWS * steps, LENGTH, MIXTURE_VOCAB)

    def peer(way, peer_steps):
        return bench.peer("peft_dense.py", "--model", model, "--rows", ROWS, "--length", LENGTH,
                          "--steps", peer_steps, "--targets", peer_targets, "--experts", way)

    # Not batched_mm: it copies every chosen expert's weights for every token, over 50 GB here.
    tried = {way: speed(peer(way, 3), tokens) for way in ("grouped_mm", "eager")}
    best = max(tried, key=tried.get)
    for way, tokens_per_second in tried.items():
        bench.figure(f"transformers_{way}_tokens_per_second_tried", tokens_per_second)
    bench.say(f"transformers is fastest with experts_implementation={best}")
    results, _ = bench.alternate(
        {"offshoot": lambda: bench.train(
            model, data, "pretokenized", dtype="bfloat16", per_device_train_batch_size=ROWS,
            sequence_len=LENGTH, max_steps=steps, lora_target_modules="attention"),
         "transformers": lambda: peer(best, steps)},
        lambda: _steadiness(bench))
    speeds = {side: [speed(r, tokens) for r in runs] for side, runs in results.items()}
    for side in results:
        bench.figure(f"{side}_tokens_per_second", _median(speeds[side]))
        bench.figure(f"{side}_peak_bytes", _median([r["peak_bytes"] for r in results[side]]))
    bench.bar(f"tokens/s against transformers with {best}", 4.0,
              _median([a / b for a, b in zip(speeds["offshoot"], speeds["transformers"])]))


def moe_qwen3(bench):
    """Qwen3-MoE shape (64 experts, 8 chosen), attention LoRA, 4 x 256, bfloat16."""
    _mixture(bench, "moe-qwen3", "q_proj,k_proj,v_proj,o_proj")


def moe_deepseek(bench):
    """DeepSeek-V3 shape (latent attention, sigmoid routing in groups, shared expert), the same."""
    _mixture(bench, "moe-deepseek", "q_a_proj,q_b_proj,kv_a_proj_with_mqa,kv_b_proj,o_proj")


def _chat_files(bench):
    source = harness.ROOT / "configs" / "data" / "wordnet_nouns.jsonl"
    lines = source.read_text(encoding="utf-8").splitlines()
    train, held_out = bench.scratch / "train.jsonl", bench.scratch / "held_out.jsonl"
    train.write_text("\n".join(lines[:CHAT_ROWS]) + "\n", encoding="utf-8")
    held_out.write_text("\n".join(lines[CHAT_ROWS:CHAT_ROWS + CHAT_HELD_OUT]) + "\n", encoding="utf-8")
    return train, held_out


def chat(bench):
    """WordNet chat rows, loss on assistant tokens, beside TRL's SFTTrainer at its fastest batch size."""
    model = bench.demo_model()
    train, held_out = _chat_files(bench)
    adapter = bench.scratch / "trl-adapter"

    def ours():
        result = bench.train(model, train, "chat", dtype="bfloat16", num_train_epochs=1,
                             per_device_train_batch_size=CHAT_BATCH, learning_rate=CHAT_RATE,
                             lr_scheduler_type="linear", sequence_len=512, group_by_length=True)
        return {**result, "loss": bench.score(model, result["result"], held_out)}

    def peer(batch):
        return bench.peer("trl_chat.py", "--model", model, "--data", train, "--rows", CHAT_ROWS,
                          "--batch", batch, "--learning-rate", CHAT_RATE, "--output", adapter)

    tried = {batch: _row_speed(peer(batch)) for batch in TRL_BATCHES}
    best = max(tried, key=tried.get)
    for batch, tokens_per_second in tried.items():
        bench.figure(f"trl_batch_{batch}_row_tokens_per_second_tried", tokens_per_second)
    bench.say(f"TRL is fastest with batches of {best}")

    def theirs():
        return {**peer(best), "loss": bench.score(model, adapter, held_out)}

    results, _ = bench.alternate({"offshoot": ours, "trl": theirs},
                                 lambda: _steadiness(bench))
    speeds = {side: [_row_speed(r) for r in runs] for side, runs in results.items()}
    losses = {side: _median([r["loss"] for r in runs]) for side, runs in results.items()}
    for side in results:
        bench.figure(f"{side}_row_tokens_per_second", _median(speeds[side]))
        bench.figure(f"{side}_held_out_loss", losses[side])
        bench.figure(f"{side}_peak_bytes", _median([r["peak_bytes"] for r in results[side]]))
    bench.bar(f"row tokens/s against TRL with batches of {best}", 2.5,
              _median([a / b for a, b in zip(speeds["offshoot"], speeds["trl"])]))
    bench.bar("held-out loss against TRL", 1.01, losses["offshoot"] / losses["trl"], at_least=False)


def packing(bench):
    """Short chat rows packed to 2,048 tokens against the same packed to 256."""
    model = bench.demo_model()
    train, _ = _chat_files(bench)

    def packed(length):
        return bench.train(model, train, "chat", dtype="bfloat16", num_train_epochs=1, sample_packing=True,
                           sequence_len=length, per_device_train_batch_size=2048 // length)

    results, _ = bench.alternate({"2048": lambda: packed(2048), "256": lambda: packed(256)},
                                 lambda: _steadiness(bench))
    speeds = {side: [_row_speed(r) for r in runs] for side, runs in results.items()}
    for side in results:
        bench.figure(f"packed_{side}_tokens_per_second", _median(speeds[side]))
    bench.bar("tokens/s packed to 2,048 against 256", 0.9,
              _median([a / b for a, b in zip(speeds["2048"], speeds["256"])]))


ALL = {"dense-bf16": dense_bf16, "dense-fp32": dense_fp32, "long-bf16": long_bf16,
       "qwen3-shape": qwen3_shape, "dense-families": dense_families, "moe-qwen3": moe_qwen3,
       "moe-deepseek": moe_deepseek, "chat": chat, "packing": packing}
