#!/usr/bin/env python3
"""Writes the parity fixtures: tiny random models, and what transformers and PEFT compute on them.

Needed only to regenerate or extend them (torch, transformers, peft, safetensors, bitsandbytes):
    python tests/parity/make_fixtures.py [CASE ...]        writes tests/parity/fixtures/CASE
See fixture.h for the layout. Everything is seeded; the committed files were made on one x86 machine
and another will differ from them in the last bits only.
"""
import argparse
import json
import os
import shutil
import tempfile

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures")
STEPS, RATE, DECAY = 10, 0.01, 0.01

COMMON = dict(
    vocab_size=128, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5,
    bos_token_id=0, eos_token_id=1, pad_token_id=2)
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = ATTENTION + ["gate_proj", "up_proj", "down_proj"]

# name -> (model_type, config beyond COMMON, LoRA settings beyond r and alpha)
MOE = dict(num_hidden_layers=2, moe_intermediate_size=16, tie_word_embeddings=False)

CASES = {
    "mistral": ("mistral", dict(
        sliding_window=6, head_dim=12, rope_parameters=dict(rope_type="default", rope_theta=1000.0)),
        dict(target_modules=ALL)),
    "qwen3_moe": ("qwen3_moe", dict(
        MOE, num_experts=5, num_experts_per_tok=2, norm_topk_prob=False, num_hidden_layers=3,
        mlp_only_layers=[1], output_router_logits=True, router_aux_loss_coef=0.3,
        rope_parameters=dict(rope_type="yarn", rope_theta=1000.0, factor=4.0, truncate=False,
                             beta_fast=8.0, original_max_position_embeddings=32)),
        dict(target_modules=ATTENTION)),
    "deepseek_v3": ("deepseek_v3", dict(
        MOE, num_key_value_heads=4, q_lora_rank=None, kv_lora_rank=10, qk_rope_head_dim=6,
        qk_nope_head_dim=5, v_head_dim=7, n_routed_experts=6, n_group=3, topk_group=2,
        num_experts_per_tok=2, n_shared_experts=2, first_k_dense_replace=1, norm_topk_prob=False,
        routed_scaling_factor=1.7, rope_interleave=False, attention_bias=True,
        rope_parameters=dict(rope_type="default", rope_theta=1000.0)),
        dict(target_modules=["q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"])),
    "ernie4_5_moe": ("ernie4_5_moe", dict(
        MOE, num_hidden_layers=3, use_bias=True, moe_num_experts=4, moe_k=2, moe_num_shared_experts=0,
        moe_layer_start_index=0, moe_layer_end_index=2, moe_layer_interval=2,
        output_router_logits=True, router_aux_loss_coef=0.2,
        rope_parameters=dict(rope_type="linear", rope_theta=1000.0, factor=2.0)),
        dict(target_modules=ATTENTION)),
    "ernie4_5": ("ernie4_5", dict(
        use_bias=True, head_dim=12, tie_word_embeddings=True,
        rope_parameters=dict(rope_type="default", rope_theta=1000.0)),
        dict(target_modules=ALL)),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", dict(
        head_dim=12, attention_bias=True, tie_word_embeddings=True,
        rope_parameters=dict(rope_type="dynamic", rope_theta=1000.0, alpha=100.0, factor=1.0)),
        dict(target_modules=ALL)),
    "hunyuan_v1_moe": ("hunyuan_v1_moe", dict(
        num_experts=4, moe_topk=[1, 3], head_dim=10, attention_bias=True,
        tie_word_embeddings=False, intermediate_size=16,
        rope_parameters=dict(rope_type="default", rope_theta=1000.0)),
        dict(target_modules=ATTENTION)),
    "minimax": ("minimax", dict(
        num_local_experts=4, num_experts_per_tok=2, head_dim=10, intermediate_size=16,
        num_hidden_layers=3, layer_types=["linear_attention", "full_attention", "linear_attention"],
        full_attn_alpha_factor=1.3, linear_attn_beta_factor=0.7, mlp_alpha_factor=1.6, block_size=5,
        output_router_logits=True, router_aux_loss_coef=0.25, tie_word_embeddings=True,
        rope_parameters=dict(rope_type="default", rope_theta=1000.0)),
        dict(target_modules=["qkv_proj", "out_proj", "output_gate", "q_proj", "o_proj"])),
    "llama": ("llama", dict(
        attention_bias=True, mlp_bias=True, tie_word_embeddings=False,
        rope_parameters=dict(rope_type="llama3", rope_theta=1000.0, factor=8.0, low_freq_factor=1.0,
                             high_freq_factor=4.0, original_max_position_embeddings=32)),
        dict(target_modules=ALL)),
    # As Kimi K2 is published: FP8 matrices with a scale per 128x128 block, sizes that no block
    # divides, and a layer of multi-token prediction that is not used.
    "kimi_k2_fp8": ("deepseek_v3", dict(
        MOE, hidden_size=144, intermediate_size=200, moe_intermediate_size=136,
        num_attention_heads=2, num_key_value_heads=2, q_lora_rank=136, kv_lora_rank=132,
        qk_rope_head_dim=8, qk_nope_head_dim=12, v_head_dim=10, n_routed_experts=3, n_group=1,
        topk_group=1, num_experts_per_tok=2, n_shared_experts=1, first_k_dense_replace=1,
        norm_topk_prob=True, routed_scaling_factor=2.8,
        rope_parameters=dict(rope_type="yarn", rope_theta=50000.0, factor=32.0, beta_fast=1.0,
                             beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0,
                             original_max_position_embeddings=32)),
        dict(target_modules=["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj"])),
    "llama_tied": ("llama", dict(
        tie_word_embeddings=True, head_dim=12,
        rope_parameters=dict(rope_type="linear", rope_theta=500.0, factor=2.0)),
        dict(target_modules=r".*\.(self_attn|mlp)\.(q_proj|v_proj|down_proj)", use_rslora=True)),
    "llama_dynamic": ("llama", dict(
        tie_word_embeddings=True, max_position_embeddings=12,
        rope_parameters=dict(rope_type="dynamic", rope_theta=500.0, factor=3.0)),
        dict(target_modules=ATTENTION)),
    "qwen2": ("qwen2", dict(
        tie_word_embeddings=True, use_sliding_window=True, sliding_window=5, max_window_layers=1,
        rope_parameters=dict(rope_type="yarn", rope_theta=1000.0, factor=4.0, beta_fast=8.0,
                             original_max_position_embeddings=32)),
        dict(target_modules=ALL, rank_pattern={"q_proj": 2, "layers.1.mlp.up_proj": 6},
             alpha_pattern={"q_proj": 3, "v_proj": 5})),
    "qwen3": ("qwen3", dict(
        tie_word_embeddings=False, head_dim=12, attention_bias=True,
        rope_parameters=dict(rope_type="default", rope_theta=1000.0)),
        dict(target_modules=ALL)),
}


def shake(model, seed):
    """Random weights at which every term of the mathematics matters: norms off 1, biases off 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight") or "layernorm" in name:
                parameter.copy_(1.0 + 0.2 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif "mlp.gate" in name or ".gate.wg" in name:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)  # routers and gates: no near ties
            elif "embed_tokens" in name:
                parameter.copy_(0.7 * noise)
            else:
                parameter.copy_(noise * 1.2 / parameter.shape[-1] ** 0.5)


    for name, buffer in model.named_buffers():
        if "e_score_correction_bias" in name:
            buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator))


BLOCK = 128


def to_fp8(weight):
    """e4m3 values and float32 scales, one per block: a block's largest value becomes 448."""
    rows, columns = weight.shape
    values = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
    scales = torch.empty(-(-rows // BLOCK), -(-columns // BLOCK))
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            place = (slice(i * BLOCK, (i + 1) * BLOCK), slice(j * BLOCK, (j + 1) * BLOCK))
            scales[i, j] = weight[place].abs().max() / 448.0
            values[place] = (weight[place] / scales[i, j]).to(torch.float8_e4m3fn)
    return values, scales


def from_fp8(values, scales):
    rows, columns = values.shape
    wide = scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[:rows, :columns]
    return values.float() * wide


def publish_as_fp8(model, directory):
    """Rewrites the saved model as the hub has it; returns the model of the values it now has."""
    path = os.path.join(directory, "model.safetensors")
    published, plain = {}, {}
    for name, tensor in load_file(path).items():
        if name.endswith("_proj.weight") or "kv_a_proj_with_mqa" in name:
            published[name], scale = to_fp8(tensor)
            published[name + "_scale_inv"] = scale
            plain[name] = from_fp8(published[name], scale)
        else:
            published[name] = tensor if "correction_bias" in name else tensor.bfloat16()
            plain[name] = published[name].float()
    save_file(plain, path)
    dequantised = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager").eval()
    extra = f"model.layers.{model.config.num_hidden_layers}."
    published[extra + "eh_proj.weight"], published[extra + "eh_proj.weight_scale_inv"] = to_fp8(
        torch.ones(144, 288))
    published[extra + "enorm.weight"] = torch.ones(144, dtype=torch.bfloat16)
    save_file(published, path, metadata={"format": "pt"})
    config_path = os.path.join(directory, "config.json")
    with open(config_path, encoding="utf-8") as file:
        config = json.load(file)
    config.update(model_type="kimi_k2", torch_dtype="bfloat16", num_nextn_predict_layers=1,
                  quantization_config={"activation_scheme": "dynamic", "fmt": "e4m3",
                                       "quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]})
    config.pop("dtype", None)
    with open(config_path, "w", encoding="utf-8") as file:
        json.dump(config, file, indent=1)
    return dequantised


QUANTISED_CASES = ("llama", "qwen3_moe", "deepseek_v3")


def nf4(weight):
    from bitsandbytes import functional  # only these cases need it
    # Flat: the CPU kernel of bitsandbytes 0.50 misreads rows that are narrower than a block.
    packed, state = functional.quantize_4bit(weight.reshape(1, -1), blocksize=64,
                                             compress_statistics=True, quant_type="nf4")
    return functional.dequantize_4bit(packed, state).reshape(weight.shape)


def int8(weight):
    largest = weight.abs().amax(1, keepdim=True)
    return torch.round(weight * (127.0 / largest)) * (largest * (1.0 / 127.0))


def quantised_traces(directory, inputs):
    """What PEFT trains on the values that a base in 4 or 8 bits has."""
    traces = {}
    for name, rounded in (("nf4", nf4), ("int8", int8)):
        with tempfile.TemporaryDirectory() as copy:
            path = shutil.copytree(os.path.join(directory, "model"), os.path.join(copy, "model"))
            file = os.path.join(path, "model.safetensors")
            save_file({key: rounded(tensor) if key.endswith(("_proj.weight", "_with_mqa.weight"))
                       else tensor for key, tensor in load_file(file).items()}, file)
            base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32,
                                                        attn_implementation="eager").eval()
            model = PeftModel.from_pretrained(base, os.path.join(directory, "lora"),
                                              is_trainable=True)
            losses, norms, _, after = train(model, inputs)
            traces[name] = {"losses": losses, "grad_norms": norms, "loss_after": after}
    return traces


DRAWN_ROWS, DRAWN_WIDTH = 24, 32
FLIP = 4  # an error so many times the median is a token that went to another expert


def drawn_tokens(vocab):
    """Enough tokens for a mean that means something; parity_test.cc makes the same."""
    places = range(DRAWN_ROWS * DRAWN_WIDTH)
    return torch.tensor([(i * 2654435761 % 2**32 // 256) % (vocab - 3) + 3 for i in places]).view(
        DRAWN_ROWS, DRAWN_WIDTH)


def bfloat16_spread(model, inputs, exact_loss):
    """How far transformers in bfloat16 is from itself in float32, with either attention: the root of
    the mean square of the logits' errors over all drawn tokens. Where there are experts, a few tokens
    go to another expert and decide that mean, so there it is the median token and how often a row has
    its first such token: later ones attend to it, and may be off for that alone.
    """
    ids, mask, labels = inputs
    drawn = drawn_tokens(model.config.vocab_size)
    errors, found = {}, {}
    with tempfile.TemporaryDirectory() as directory, torch.no_grad():
        exact = model(input_ids=drawn).logits
        model.save_pretrained(directory)
        for kind in ("eager", "sdpa"):
            rounded = AutoModelForCausalLM.from_pretrained(
                directory, dtype=torch.bfloat16, attn_implementation=kind).eval()
            loss = rounded(input_ids=ids, attention_mask=mask, labels=labels).loss.item()
            found[kind + "_loss_error"] = abs(loss - exact_loss)
            logits = rounded(input_ids=drawn).logits.float()
            errors[kind] = (logits - exact).pow(2).mean(-1)
    if any("expert" in name for name, _ in model.named_parameters()):
        medians = {kind: error.median().sqrt().item() for kind, error in errors.items()}
        found["flip_error"] = FLIP * max(medians.values())
        for kind, error in errors.items():
            found[kind + "_median"] = medians[kind]
            flipped = error.sqrt() > found["flip_error"]
            tokens = torch.where(flipped.any(1), flipped.int().argmax(1) + 1, DRAWN_WIDTH).sum().item()
            found[kind + "_flips_per_token"] = flipped.any(1).sum().item() / tokens
    else:
        for kind, error in errors.items():
            found[kind + "_rms"] = error.mean().sqrt().item()
    return found


def make_inputs(seed, vocab):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocab, (3, 18), generator=generator)
    lengths = [18, 11, 7]
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
        ids[row, length:] = 2
    labels = torch.where(mask == 1, ids, torch.full_like(ids, -100))
    labels[:, :3] = -100
    labels[0, 8:10] = -100
    return ids, mask, labels


def train(model, inputs):
    ids, mask, labels = inputs
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY)
    losses, norms, gradients = [], [], {}
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.sqrt(sum((p.grad.double() ** 2).sum() for p in parameters)).item())
        if step == 0:
            gradients = {"grad." + name.replace(".default", ""): p.grad.clone()
                         for name, p in model.named_parameters() if p.requires_grad}
        optimizer.step()
    with torch.no_grad():
        after = model(input_ids=ids, attention_mask=mask, labels=labels).loss.item()
    return losses, norms, gradients, after


def save_adapter(model, directory):
    model.save_pretrained(directory)
    readme = os.path.join(directory, "README.md")
    if os.path.exists(readme):
        os.remove(readme)
    path = os.path.join(directory, "adapter_config.json")
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    config["base_model_name_or_path"] = None
    if isinstance(config.get("target_modules"), list):
        config["target_modules"].sort()
    with open(path, "w", encoding="utf-8") as file:
        json.dump(config, file, indent=1, sort_keys=True)


def make_model(name, seed, directory):
    """Writes the case's model; returns it and its inputs."""
    model_type, overrides, _ = CASES[name]
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **{**COMMON, **overrides})
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    shake(model, seed)
    inputs = make_inputs(seed + 1, config.vocab_size)
    model.save_pretrained(directory)
    if name.endswith("_fp8"):
        model = publish_as_fp8(model, directory)
    return model, inputs


def write_expected(directory, expected):
    with open(os.path.join(directory, "expected.json"), "w", encoding="utf-8") as file:
        json.dump(expected, file, indent=1)


def measure_bfloat16_again(name):
    """Writes the bfloat16 part of a case's expected.json, the rest of the case as it is."""
    directory = os.path.join(ROOT, name)
    with open(os.path.join(directory, "expected.json"), encoding="utf-8") as file:
        expected = json.load(file)
    with tempfile.TemporaryDirectory() as copy:
        model, inputs = make_model(name, expected["seed"], copy)
    ids, mask, labels = inputs
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=mask, labels=labels)
    stored = load_file(os.path.join(directory, "outputs.safetensors"))["logits"]
    if (output.logits - stored).abs().max() > 1e-5:
        raise SystemExit(f"{name}: this transformers makes another model than the one committed")
    expected["bfloat16"] = bfloat16_spread(model, inputs, output.loss.item())
    write_expected(directory, expected)
    print(f"{name}: {expected['bfloat16']}")


def make_case(name, seed):
    model_type, _, lora = CASES[name]
    directory = os.path.join(ROOT, name)
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory)
    model, inputs = make_model(name, seed, os.path.join(directory, "model"))
    ids, mask, labels = inputs
    generation = os.path.join(directory, "model", "generation_config.json")
    if os.path.exists(generation):
        os.remove(generation)
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=mask, labels=labels)
    expected = {"family": model_type, "seed": seed, "loss": output.loss.item(),
                "reference": {"torch": torch.__version__},
                "optimizer": {"type": "AdamW", "lr": RATE, "weight_decay": DECAY}}
    save_file({"input_ids": ids, "attention_mask": mask, "labels": labels},
              os.path.join(directory, "inputs.safetensors"))
    save_file({"logits": output.logits.contiguous()}, os.path.join(directory, "outputs.safetensors"))

    expected["bfloat16"] = bfloat16_spread(model, inputs, output.loss.item())

    prompt = [5, 9, 33, 70, 21]
    answer = model.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False,
                            eos_token_id=None, pad_token_id=2)
    expected["greedy"] = {"prompt": prompt, "ids": answer[0][len(prompt):].tolist()}

    peft_model = get_peft_model(model, LoraConfig(
        **{"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", **lora}))
    generator = torch.Generator().manual_seed(seed + 2)
    with torch.no_grad():  # B off zero, so that the first logits show the adapter
        for parameter_name, parameter in sorted(peft_model.named_parameters()):
            if parameter.requires_grad and "lora_B" in parameter_name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    save_adapter(peft_model, os.path.join(directory, "lora"))
    with torch.no_grad():
        logits = peft_model(input_ids=ids, attention_mask=mask).logits.contiguous()
    losses, norms, gradients, after = train(peft_model, inputs)
    save_adapter(peft_model, os.path.join(directory, "lora_final"))
    save_file({"logits": logits, **gradients}, os.path.join(directory, "lora_outputs.safetensors"))
    expected["lora"] = {"loss_trace": losses, "grad_norm_trace": norms, "loss_after": after}
    if name in QUANTISED_CASES:
        expected["quantised"] = quantised_traces(directory, inputs)
    write_expected(directory, expected)
    print(f"{name}: loss {losses[0]:.4f} -> {after:.4f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--bfloat16-only", action="store_true",
                        help="measure the spread of bfloat16 again and leave the rest as it is")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.cases:
        if arguments.bfloat16_only:
            measure_bfloat16_again(name)
            continue
        make_case(name, arguments.seed)


if __name__ == "__main__":
    main()
