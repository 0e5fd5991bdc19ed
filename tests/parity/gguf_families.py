#!/usr/bin/env python3
"""A tiny random model of every family that llama.cpp knows, with a PEFT adapter, as GGUF.

    python tests/parity/gguf_families.py --trainer build/release/bin/offshoot-trainer

Judges: PEFT's logits of base and adapter (1e-4 in float32) for the F32 file in our own loader, in
llama.cpp (log probabilities of the next token), and in transformers where it reads the architecture;
the gguf package's tables for the names of tensors and keys; its quantisation for the bytes of the
other types. Needs torch, transformers, peft, gguf, xllamacpp.
"""
import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import gguf
import numpy as np
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from llama_cpp import next_token_log_probs  # noqa: E402
from make_fixtures import shake  # noqa: E402

LIMIT = 1e-4
TOKENIZERS = pathlib.Path(__file__).resolve().parents[2] / "trainer/tokenizer/testdata"
VOCABULARY = 654
PLAIN = {"rope_type": "default", "rope_theta": 1000.0}
SIZE = dict(vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
            rms_norm_eps=1e-5, tie_word_embeddings=False, bos_token_id=0, eos_token_id=1,
            rope_parameters=PLAIN)
QWEN_MOE = dict(head_dim=16, num_experts=5, num_experts_per_tok=2, norm_topk_prob=True)
DEEPSEEK = dict(num_key_value_heads=4, kv_lora_rank=32, qk_nope_head_dim=32, qk_rope_head_dim=8,
                v_head_dim=16, moe_intermediate_size=32, n_routed_experts=8, num_experts_per_tok=2,
                n_shared_experts=1, first_k_dense_replace=1, routed_scaling_factor=2.5)
DEEPSEEK_PLAIN = dict(DEEPSEEK, n_group=1, topk_group=1)
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0,
        "original_max_position_embeddings": 32, "beta_fast": 8.0}
DEEPSEEK_YARN = {**YARN, "mscale": 0.7, "mscale_all_dim": 0.7}
ERNIE_MOE = dict(use_bias=False, moe_num_experts=5, moe_k=2, moe_intermediate_size=32)

# (family, what is special, architecture, whether transformers reads it, settings)
CASES = [
    ("mistral", "", "llama", True, dict(head_dim=16, sliding_window=None)),
    ("qwen3", "YaRN", "qwen3", False, dict(
        head_dim=16, rope_parameters=YARN)),
    # transformers reads no width of experts from GGUF and takes 768.
    ("qwen3_moe", "", "qwen3moe", True, dict(QWEN_MOE, moe_intermediate_size=768)),
    ("ernie4_5", "", "ernie4_5", False, dict(head_dim=16, use_bias=False, tie_word_embeddings=True)),
    ("ernie4_5_moe", "shared", "ernie4_5-moe", False, dict(
        ERNIE_MOE, moe_num_shared_experts=2, moe_layer_start_index=1, moe_layer_end_index=-1,
        moe_layer_interval=1)),
    ("hunyuan_v1_dense", "alpha", "hunyuan-dense", False, dict(
        head_dim=16, tie_word_embeddings=True, rope_parameters={
            "rope_type": "dynamic", "rope_theta": 1000.0, "alpha": 100.0, "factor": 1.0})),
    ("hunyuan_v1_moe", "", "hunyuan-moe", False, dict(
        head_dim=16, intermediate_size=32, num_experts=5, moe_topk=2)),
    ("deepseek_v3", "groups", "deepseek2", False, dict(
        DEEPSEEK, q_lora_rank=32, n_group=4, topk_group=2, norm_topk_prob=True,
        rope_parameters=DEEPSEEK_YARN)),
    ("deepseek_v3", "direct queries", "deepseek2", False, dict(
        DEEPSEEK_PLAIN, q_lora_rank=None, norm_topk_prob=False, num_hidden_layers=27,
        first_k_dense_replace=24, rope_parameters=PLAIN)),
    ("kimi_k2", "", "deepseek2", False, dict(
        DEEPSEEK_PLAIN, q_lora_rank=32, norm_topk_prob=True, rope_parameters=DEEPSEEK_YARN)),
]
# (family, settings, what the refusal says)
REFUSALS = [
    ("minimax", dict(head_dim=16, num_local_experts=4, num_experts_per_tok=2, block_size=16),
     "of the type 'minimax'"),
    ("qwen3_moe", dict(QWEN_MOE, moe_intermediate_size=32, norm_topk_prob=False), "norm_topk_prob"),
    ("qwen3_moe", dict(QWEN_MOE, moe_intermediate_size=32, mlp_only_layers=[1]),
     "experts in some layers"),
    ("hunyuan_v1_moe", dict(head_dim=16, intermediate_size=32, num_experts=5, moe_topk=[1, 2, 2]),
     "layer by layer"),
    ("ernie4_5", dict(head_dim=16, use_bias=True), "proj.bias'"),
    ("ernie4_5_moe", dict(ERNIE_MOE, moe_layer_start_index=0, moe_layer_end_index=2,
                          moe_layer_interval=2), "experts in some layers"),
    ("deepseek_v3", dict(DEEPSEEK_PLAIN, q_lora_rank=32, rope_interleave=False, rope_parameters=PLAIN),
     "rotates halves"),
    ("deepseek_v3", dict(DEEPSEEK_PLAIN, q_lora_rank=32, rope_parameters=YARN), "YaRN"),
    ("deepseek_v3", dict(DEEPSEEK_PLAIN, q_lora_rank=None, rope_parameters=PLAIN),
     "latent of the queries"),
]
KEYS = gguf.Keys
COMMON_KEYS = {
    KEYS.LLM.BLOCK_COUNT: "num_hidden_layers", KEYS.LLM.CONTEXT_LENGTH: "max_position_embeddings",
    KEYS.LLM.EMBEDDING_LENGTH: "hidden_size", KEYS.LLM.FEED_FORWARD_LENGTH: "intermediate_size",
    KEYS.Attention.HEAD_COUNT: "num_attention_heads",
    KEYS.Attention.HEAD_COUNT_KV: "num_key_value_heads",
    KEYS.Attention.LAYERNORM_RMS_EPS: "rms_norm_eps",
}
OWN_KEYS = {
    "qwen3moe": {KEYS.LLM.EXPERT_COUNT: 5, KEYS.LLM.EXPERT_USED_COUNT: 2,
                 KEYS.LLM.EXPERT_FEED_FORWARD_LENGTH: 768},
    "ernie4_5-moe": {KEYS.LLM.EXPERT_COUNT: 5, KEYS.LLM.EXPERT_USED_COUNT: 2,
                     KEYS.LLM.EXPERT_FEED_FORWARD_LENGTH: 32},
    "ernie4_5-moe shared": {KEYS.LLM.EXPERT_SHARED_COUNT: 2,
                            KEYS.LLM.EXPERT_SHARED_FEED_FORWARD_LENGTH: 64,
                            KEYS.LLM.LEADING_DENSE_BLOCK_COUNT: 1,
                            KEYS.LLM.INTERLEAVE_MOE_LAYER_STEP: 1},
    "hunyuan-moe": {KEYS.LLM.EXPERT_COUNT: 5, KEYS.LLM.EXPERT_USED_COUNT: 2,
                    KEYS.LLM.EXPERT_FEED_FORWARD_LENGTH: 32,
                    KEYS.LLM.EXPERT_SHARED_FEED_FORWARD_LENGTH: 32},
    "deepseek2": {KEYS.Attention.HEAD_COUNT_KV: 1, KEYS.Attention.KEY_LENGTH: 40,
                  KEYS.Attention.VALUE_LENGTH: 32, KEYS.Attention.KEY_LENGTH_MLA: 40,
                  KEYS.Attention.VALUE_LENGTH_MLA: 16, KEYS.Attention.KV_LORA_RANK: 32,
                  KEYS.LLM.EXPERT_COUNT: 8, KEYS.LLM.EXPERT_USED_COUNT: 2,
                  KEYS.LLM.EXPERT_FEED_FORWARD_LENGTH: 32, KEYS.LLM.EXPERT_SHARED_COUNT: 1,
                  KEYS.LLM.EXPERT_WEIGHTS_SCALE: 2.5, KEYS.LLM.LEADING_DENSE_BLOCK_COUNT: 1,
                  KEYS.LLM.EXPERT_GATING_FUNC: gguf.ExpertGatingFuncType.SIGMOID},
    "deepseek2 groups": {KEYS.Attention.Q_LORA_RANK: 32, KEYS.LLM.EXPERT_GROUP_COUNT: 4,
                         KEYS.LLM.EXPERT_GROUP_USED_COUNT: 2, KEYS.LLM.EXPERT_WEIGHTS_NORM: True,
                         KEYS.Rope.SCALING_YARN_LOG_MUL: 0.07},
    "deepseek2 direct queries": {KEYS.LLM.EXPERT_WEIGHTS_NORM: False,
                                 KEYS.LLM.LEADING_DENSE_BLOCK_COUNT: 24},
    # The base of the rotation is the stretched one.
    "hunyuan-dense": {KEYS.Rope.FREQ_BASE: 1000.0 * 100.0 ** (16 / 14)},
}


# Kimi K2 is DeepSeek-V3 to transformers; its published config.json names its own type.
TRANSFORMERS_NAME = {"kimi_k2": "deepseek_v3"}


def rename(directory, family):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "model_type": family}))


def run(trainer, *arguments):
    return subprocess.run([trainer, *map(str, arguments)], capture_output=True, text=True,
                          timeout=300, check=False)


def make_model(family, settings, directory):
    torch.manual_seed(5)
    config = AutoConfig.for_model(TRANSFORMERS_NAME.get(family, family), **{**SIZE, **settings})
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    shake(model, 5)
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZERS / "qwen2" / name, directory / name)
    (directory / "chat_template.jinja").write_text("{{ messages[0].content }}")
    return model


def expected_names(stored, arch, layers):
    """The names of stored tensors by the gguf package's own map; of experts, their stacks.

    Keys and values of latent attention are apart there."""
    names = gguf.get_tensor_name_map(arch, layers)
    result = set()
    for name in stored:
        stem, suffix = re.sub(r"experts\.\d+\.", "experts.", name).rsplit(".", 1)
        if name.endswith("e_score_correction_bias"):
            stem, suffix = name[:-len("_bias")], "bias"
        parts = [stem.replace("kv_b_proj", part) for part in ("k_b_proj", "v_b_proj")]
        for part in parts if "kv_b_proj" in stem else [stem]:
            mapped = names.get_name(part)
            if mapped is None:
                raise AssertionError(f"the gguf package has no name for {name}")
            result.add(f"{mapped}.{suffix}")
    return result


def check_file(path, model, stored, arch_name, special):
    """Names and keys as the gguf package has them."""
    config = model.config
    arch = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[arch_name]
    reader = gguf.GGUFReader(path)
    field = lambda key: reader.fields[key].contents()
    assert field("general.architecture") == arch_name
    written = {tensor.name for tensor in reader.tensors}
    known = {gguf.TENSOR_NAMES[kind].format(bid=layer) for kind in gguf.MODEL_TENSORS[arch]
             for layer in range(config.num_hidden_layers)}
    for name in written:
        assert name.rsplit(".", 1)[0] in known, f"{arch_name} has no {name}"
    wanted = expected_names(stored, arch, config.num_hidden_layers)
    assert written == wanted, f"too many {written - wanted}, missing {wanted - written}"
    keys = {key: getattr(config, name) for key, name in COMMON_KEYS.items()}
    keys.update(OWN_KEYS.get(arch_name, {}))
    keys.update(OWN_KEYS.get(f"{arch_name} {special}", {}))
    for key, value in keys.items():
        got = field(key.format(arch=arch_name))
        assert abs(got - value) <= 1e-6 * abs(value), f"{key}: {got}, not {value}"
    assert len(field("tokenizer.ggml.tokens")) == VOCABULARY
    assert field("tokenizer.chat_template") == "{{ messages[0].content }}"
    return {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


def check_types(trainer, directory, floats):
    """Every other type holds what the gguf package makes of the F32 file's numbers."""
    for kind in ("F16", "BF16", "Q8_0"):
        path = directory / f"{kind}.gguf"
        merge(trainer, directory, path, kind)
        kinds = set()
        for tensor in gguf.GGUFReader(path).tensors:
            wanted = gguf.quants.quantize(floats[tensor.name], tensor.tensor_type)
            same = np.array_equal(np.asarray(tensor.data).view(np.uint8).reshape(-1),
                                  np.ascontiguousarray(wanted).view(np.uint8).reshape(-1))
            assert same, f"{kind}: {tensor.name} has other bytes than the gguf package's"
            kinds.add(tensor.tensor_type.name)
        assert kinds == {"F32", kind}, f"{kind}: the file has {kinds}"


def merge(trainer, directory, path, kind=None):
    """Of safetensors without a kind."""
    process = run(trainer, "merge", "--model", directory / "model", "--adapter",
                  directory / "adapter", "--output", path, "--threads", 1,
                  *(["--gguf", kind] if kind else []))
    if process.returncode != 0:
        raise AssertionError(f"merge {kind}: {process.stderr.strip()[-600:]}")


@torch.no_grad()
def check_case(trainer, directory, family, special, arch_name, in_transformers, settings):
    model = make_model(family, settings, directory / "model")
    ids = torch.randint(3, VOCABULARY - 8, (2, 21), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    save_file({"input_ids": ids, "attention_mask": mask}, directory / "in.safetensors")
    plain = AutoModelForCausalLM.from_pretrained(
        directory / "model", dtype=torch.float32, attn_implementation="eager",
        experts_implementation="eager").eval()
    adapted = get_peft_model(plain, LoraConfig(
        r=4, lora_alpha=8, init_lora_weights=False,
        target_modules=["q_proj", "k_proj", "v_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa",
                        "kv_b_proj", "o_proj"])).eval()
    adapted.save_pretrained(directory / "adapter")
    rename(directory / "model", family)
    expected = adapted(input_ids=ids, attention_mask=mask).logits
    moved = (expected - model(input_ids=ids, attention_mask=mask).logits).abs().max().item()
    assert moved > 100 * LIMIT, f"the adapter changes logits by {moved} only"

    path = directory / "F32.gguf"
    merge(trainer, directory, path, "F32")
    stored = load_file(directory / "model" / "model.safetensors")
    floats = check_file(path, model, stored, arch_name, special)
    check_types(trainer, directory, floats)
    output = directory / "out.safetensors"
    process = run(trainer, "logits", "--model", path, "--threads", 1, "--dtype", "float32",
                  "--input", directory / "in.safetensors", "--output", output)
    assert process.returncode == 0, process.stderr.strip()[-600:]
    differences = {"own loader": (load_file(output)["logits"] - expected).abs().max().item()}
    judged = next_token_log_probs(path, ids.tolist(), VOCABULARY)
    wanted = expected[:, -1].log_softmax(-1)
    differences["llama.cpp"] = (judged - wanted).abs().max().item()
    if in_transformers:
        alone = directory / "alone"
        alone.mkdir()
        shutil.copy(path, alone / "model.gguf")
        read = AutoModelForCausalLM.from_pretrained(
            alone, gguf_file="model.gguf", dtype=torch.float32, attn_implementation="eager").eval()
        logits = read(input_ids=ids, attention_mask=mask).logits
        differences["transformers"] = (logits - expected).abs().max().item()
    for judge, difference in differences.items():
        print(f"{family} {special}: {judge}: largest difference of logits {difference:.1e}")
        assert difference <= LIMIT, f"{judge}: logits differ by {difference}"


def with_every_merge(document):
    """SentencePiece's scores know no pair of pieces that makes a token and is no merge."""
    model = document["model"]
    model["merges"] = [(text[:cut], text[cut:]) for text in map("".join, model["merges"])
                       for cut in range(1, len(text))
                       if text[:cut] in model["vocab"] and text[cut:] in model["vocab"]]


def with_deepseeks_splits(document):
    split = lambda pattern: {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
                             "invert": False}
    steps = document["pre_tokenizer"]["pretokenizers"]
    steps[:-1] = [split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"), split(
        "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
        " ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+")]


# (directory, what is changed in its tokenizer.json)
TOKENIZER_CASES = [("byte_level", None), ("qwen2", None), ("byte_level", with_deepseeks_splits),
                   ("sentencepiece", with_every_merge), ("kimi", None), ("hunyuan", None)]
TEXTS = ["The quick brown fox 12345", "naïve\n\n  café 猫がABC123。", "$HOME.x don't\r\n ☃ "]


@torch.no_grad()
def check_tokenizer(trainer, directory, name, change):
    """llama.cpp makes of a text what transformers does: the next token is as likely as after the
    ids."""
    model_path = directory / "model"
    shutil.copytree(TOKENIZERS / name, model_path)
    if change is not None:
        document = json.loads((model_path / "tokenizer.json").read_text())
        change(document)
        (model_path / "tokenizer.json").write_text(json.dumps(document))
    published = json.loads((model_path / "config.json").read_text())
    has_json = (model_path / "tokenizer.json").exists()
    size = len(AutoTokenizer.from_pretrained(model_path)) if has_json else published["vocab_size"]
    (model_path / "config.json").unlink()
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(
        "llama", **{**SIZE, "vocab_size": size}), dtype=torch.float32).eval()
    shake(model, 7)
    model.save_pretrained(model_path)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["o_proj"]))
    adapted.save_pretrained(directory / "adapter")
    merge(trainer, directory, directory / "F32.gguf", "F32")
    # Of a tiktoken file the merged model has a tokenizer.json, which transformers reads.
    merge(trainer, directory, directory / "merged")
    tokenizer = AutoTokenizer.from_pretrained(directory / "merged")
    assert len(tokenizer) == size, f"the merged model's tokenizer has {len(tokenizer)} tokens, not {size}"
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    by_text, by_ids = (next_token_log_probs(directory / "F32.gguf", rows, len(tokenizer))
                       for rows in (TEXTS, ids))
    difference = (by_text - by_ids).abs().max().item()
    print(f"{name} {change.__name__ if change else ''}: llama.cpp: of texts and of ids {difference:.1e}")
    assert difference <= LIMIT, f"llama.cpp has other ids of a text: {difference}"
    other = next_token_log_probs(directory / "F32.gguf", [row[:-1] for row in ids], len(tokenizer))
    assert (by_ids - other).abs().max().item() > 100 * LIMIT, "one id less changes nothing"


def check_refusal(trainer, directory, family, settings, wanted):
    model = make_model(family, settings, directory / "model")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["o_proj"]))
    adapted.save_pretrained(directory / "adapter")
    try:
        merge(trainer, directory, directory / "x.gguf", "F32")
    except AssertionError as error:
        assert wanted in str(error), f"the refusal says {error}, not {wanted}"
        assert not (directory / "x.gguf").exists()
        print(f"{family}: refused: {error}")
        return
    raise AssertionError(f"{family} with {json.dumps(settings)} was written as GGUF")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trainer", required=True)
    trainer = parser.parse_args().trainer
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    failures = 0
    checks = ((check_case, CASES), (check_tokenizer, TOKENIZER_CASES), (check_refusal, REFUSALS))
    for check, cases in checks:
        for case in cases:
            with tempfile.TemporaryDirectory(prefix="offshoot-gguf-") as directory:
                try:
                    check(trainer, pathlib.Path(directory), *case)
                except Exception as error:  # every case is tried
                    failures += 1
                    print(f"FAILED {case[0]}: {type(error).__name__}: {error}", flush=True)
    count = sum(len(cases) for _, cases in checks)
    print(f"{count - failures} of {count} cases hold")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
