#!/usr/bin/env python3
"""Draws random valid tiny configs over all families and flags, and compares logits with transformers.

    python tests/parity/random_configs.py --trainer build/release/bin/offshoot-trainer [--count 200]

Each config either matches (1e-4 in float32, with padding), or is refused by a sentence that names a
key. For each that matches, adapters are drawn too (adapter_checks.py): one that PEFT wrote, one that
the trainer trained and published, the merged model, a greedy answer and losses of rows. "rounding" is
an adapter's difference above the limit but below twice what the reference in float32 is from itself
in float64. Anything else is a failure: its directory is kept and the seed printed. Needs torch,
transformers, peft.
"""
import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from adapter_checks import Checks, copy_reference  # noqa: E402
from make_fixtures import shake  # noqa: E402

LIMIT = 1e-4


def rope(rng, width, kinds):
    kind = rng.choice(kinds)
    parameters = {"rope_type": kind, "rope_theta": rng.choice([100.0, 1000.0, 500000.0])}
    if kind in ("linear", "dynamic"):
        parameters["factor"] = rng.choice([1.5, 4.0])
    if kind == "dynamic" and width <= 2:
        parameters["rope_type"] = "linear"
    if kind == "llama3":
        parameters.update(factor=rng.choice([2.0, 8.0]), low_freq_factor=1.0,
                          high_freq_factor=rng.choice([2.0, 4.0]),
                          original_max_position_embeddings=rng.choice([16, 64]))
    if kind == "yarn":
        parameters.update(factor=rng.choice([2.0, 16.0]),
                          original_max_position_embeddings=rng.choice([16, 64]))
        for key, values in (("beta_fast", [4.0, 32.0]), ("beta_slow", [1.0, 2.0]),
                            ("attention_factor", [0.7, 1.3]), ("truncate", [True, False])):
            if rng.random() < 0.4:
                parameters[key] = rng.choice(values)
        if rng.random() < 0.5:
            parameters.update(mscale=rng.choice([0.7, 1.0]), mscale_all_dim=rng.choice([0.5, 1.0]))
    return parameters


def common(rng):
    heads = rng.choice([2, 4, 6])
    return dict(
        vocab_size=rng.choice([97, 128]), hidden_size=heads * rng.choice([4, 8, 12]),
        intermediate_size=rng.choice([20, 33, 48]), num_hidden_layers=rng.choice([1, 2, 3]),
        num_attention_heads=heads,
        num_key_value_heads=rng.choice([k for k in (1, 2, 3, heads) if heads % k == 0]),
        max_position_embeddings=rng.choice([12, 64, 512]), rms_norm_eps=rng.choice([1e-6, 1e-3]),
        tie_word_embeddings=rng.random() < 0.5, bos_token_id=0, eos_token_id=1, pad_token_id=2)


def head_dim(rng, config):
    return rng.choice([config["hidden_size"] // config["num_attention_heads"], 6, 10, 16])


ALL_KINDS = ["default", "default", "linear", "dynamic", "llama3", "yarn"]


def draw(rng, family):
    config = common(rng)
    layers = config["num_hidden_layers"]
    width = config["hidden_size"] // config["num_attention_heads"]
    flag = lambda p=0.5: rng.random() < p
    experts = rng.choice([4, 6, 8])
    if family in ("llama", "mistral"):
        if flag():
            width = config["head_dim"] = head_dim(rng, config)
        if family == "llama":
            config.update(attention_bias=flag(), mlp_bias=flag())
        else:
            config.update(sliding_window=rng.choice([None, 3, 7]))
    elif family in ("qwen2", "qwen3"):
        if family == "qwen3":
            width = config["head_dim"] = head_dim(rng, config)
            config.update(attention_bias=flag())
        if flag():
            config.update(use_sliding_window=True, sliding_window=rng.choice([2, 5]))
            if flag():
                config["layer_types"] = [rng.choice(["full_attention", "sliding_attention"])
                                         for _ in range(layers)]
            else:
                config["max_window_layers"] = rng.choice([0, 1, 5])
    elif family == "qwen3_moe":
        width = config["head_dim"] = head_dim(rng, config)
        config.update(
            attention_bias=flag(), num_experts=experts, num_experts_per_tok=rng.choice([1, 2, 4]),
            moe_intermediate_size=rng.choice([8, 17]), norm_topk_prob=flag(),
            decoder_sparse_step=rng.choice([1, 2]),
            mlp_only_layers=[i for i in range(layers) if flag(0.2)])
        if flag(0.3):
            config.update(use_sliding_window=True, sliding_window=4)
    elif family in ("deepseek_v3", "kimi_k2"):
        config["num_key_value_heads"] = config["num_attention_heads"]
        width = rng.choice([4, 6, 8])
        groups = rng.choice([1, 2]) if family == "deepseek_v3" else 1
        chosen_groups = rng.choice(range(1, groups + 1))
        config.update(
            q_lora_rank=rng.choice([None, 9, 16]), kv_lora_rank=rng.choice([8, 13]),
            qk_rope_head_dim=width, qk_nope_head_dim=rng.choice([5, 8]),
            v_head_dim=rng.choice([4, 7, 8]), n_routed_experts=experts, n_group=groups,
            topk_group=chosen_groups,
            num_experts_per_tok=rng.choice([1, 2]), n_shared_experts=rng.choice([1, 2]),
            first_k_dense_replace=rng.choice([0, 1, layers]), norm_topk_prob=flag(),
            routed_scaling_factor=rng.choice([1.0, 2.5]), attention_bias=flag(),
            moe_intermediate_size=rng.choice([8, 17]), rope_interleave=flag(0.7))
    elif family == "ernie4_5":
        width = config["head_dim"] = head_dim(rng, config)
        config.update(use_bias=flag())
    elif family == "ernie4_5_moe":
        config.update(
            use_bias=flag(), moe_num_experts=experts, moe_k=rng.choice([1, 3]),
            moe_num_shared_experts=rng.choice([0, 1, 2]), moe_intermediate_size=rng.choice([8, 17]),
            moe_layer_start_index=rng.choice([0, 1]),
            moe_layer_end_index=rng.choice([-1, 0, layers - 1]),
            moe_layer_interval=rng.choice([1, 2]))
    elif family in ("hunyuan_v1_dense", "hunyuan_v1_moe"):
        width = config["head_dim"] = head_dim(rng, config)
        config.update(attention_bias=flag())
        if family == "hunyuan_v1_moe":
            config.update(num_experts=experts, moe_topk=rng.choice(
                [1, 2, [rng.choice([1, 3]) for _ in range(layers)]]))
    elif family == "minimax":
        width = config["head_dim"] = head_dim(rng, config)
        config.update(
            num_local_experts=experts, num_experts_per_tok=rng.choice([1, 2]),
            block_size=rng.choice([3, 16]), sliding_window=rng.choice([None, 5]),
            layer_types=[rng.choice(["linear_attention", "full_attention"]) for _ in range(layers)],
            **{f"{part}_{which}_factor": rng.choice([1, 0.7, 2.5])
               for part in ("full_attn", "linear_attn", "mlp") for which in ("alpha", "beta")})
    kinds = ALL_KINDS
    if family.startswith("hunyuan"):
        kinds = ["default", "linear", "alpha"]
    if family in ("ernie4_5_moe", "ernie4_5") and width % 2:
        kinds = ["default"]
    parameters = rope(rng, width, kinds)
    if parameters["rope_type"] == "alpha":
        parameters.update(rope_type="dynamic", alpha=rng.choice([10.0, 1000.0]), factor=1.0)
    config["rope_parameters"] = parameters
    return config


def older_spelling(config):
    parameters = config.pop("rope_parameters")
    config["rope_theta"] = parameters.pop("rope_theta")
    kind = parameters.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **parameters}
    config["torch_dtype"] = config.pop("dtype", "float32")
    return config


def run_one(seed, family, trainer, directory, with_adapters):
    rng = random.Random(seed)
    values = draw(rng, family)
    torch.manual_seed(seed)
    hf_type = "deepseek_v3" if family == "kimi_k2" else family
    config = AutoConfig.for_model(hf_type, **values)
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    shake(model, seed)
    model_directory = os.path.join(directory, "model")
    model.save_pretrained(model_directory)
    reference_directory = os.path.join(directory, "reference")
    copy_reference(model_directory, reference_directory)
    path = os.path.join(model_directory, "config.json")
    with open(path, encoding="utf-8") as file:
        written = json.load(file)
    if family == "kimi_k2":
        written["model_type"] = "kimi_k2"
    if rng.random() < 0.5:
        written = older_spelling(written)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(written, file)
    lengths = [17, rng.choice([1, 5, 16])]
    ids = torch.randint(3, values["vocab_size"], (2, 17))
    mask = torch.tensor([[int(i < n) for i in range(17)] for n in lengths])
    save_file({"input_ids": ids, "attention_mask": mask}, os.path.join(directory, "in.safetensors"))
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits
    output = os.path.join(directory, "out.safetensors")
    process = subprocess.run(
        [trainer, "logits", "--model", model_directory, "--threads", "1",
         "--input", os.path.join(directory, "in.safetensors"), "--output", output],
        capture_output=True, text=True, timeout=120, check=False)
    if process.returncode == 4 and "`" in process.stderr and "config.json" in process.stderr:
        return [("refused", process.stderr.strip())]
    if process.returncode != 0:
        return [("failed", f"exit {process.returncode}: {process.stderr.strip()[-600:]}")]
    difference = (load_file(output)["logits"] - expected)[mask == 1].abs().max().item()
    results = [("matches" if difference <= LIMIT else "differs", f"logits: {difference:.1e}")]
    if with_adapters and results[0][0] == "matches":
        checks = Checks(rng, family, trainer, directory, model_directory, reference_directory, ids, mask)
        results.extend(checks.all())
    return results


FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "deepseek_v3", "kimi_k2", "ernie4_5",
            "ernie4_5_moe", "hunyuan_v1_dense", "hunyuan_v1_moe", "minimax"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trainer", required=True)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--family", choices=FAMILIES)
    parser.add_argument("--without-adapters", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tally, worst = {}, {}
    for index in range(arguments.count):
        family = arguments.family or FAMILIES[index % len(FAMILIES)]
        seed = arguments.seed * 100000 + index
        directory = tempfile.mkdtemp(prefix=f"offshoot-{family}-{seed}-")
        try:
            results = run_one(seed, family, arguments.trainer, directory,
                              not arguments.without_adapters)
        except Exception as error:  # transformers itself refuses some combinations
            results = [("invalid", f"{type(error).__name__}: {str(error)[:200]}")]
        for result, detail in results:
            tally[result] = tally.get(result, 0) + 1
            if result == "matches":
                what, difference = detail.split(": ")
                worst[what] = max(worst.get(what, 0.0), float(difference))
            else:
                print(f"{result}: {family} seed {seed}: {detail}", flush=True)
        if any(result in ("failed", "differs") for result, _ in results):
            print(f"  kept {directory}", flush=True)
        else:
            shutil.rmtree(directory)
    print(json.dumps({**tally, "worst": worst}))
    return 1 if tally.get("failed") or tally.get("differs") else 0


if __name__ == "__main__":
    sys.exit(main())
