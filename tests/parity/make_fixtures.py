#!/usr/bin/env python3
"""Writes the parity fixtures: tiny random models, and what transformers and PEFT compute on them.

Needed only to regenerate or extend them (torch, transformers, peft, safetensors):
    python tests/parity/make_fixtures.py [CASE ...]        writes tests/parity/fixtures/CASE
See fixture.h for the layout. Everything is seeded; the committed files were made on one x86 machine
and another will differ from them in the last bits only.
"""
import argparse
import json
import os
import shutil

import torch
from peft import LoraConfig, get_peft_model
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


def make_case(name, seed):
    model_type, overrides, lora = CASES[name]
    directory = os.path.join(ROOT, name)
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory)
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **{**COMMON, **overrides})
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    shake(model, seed)
    inputs = make_inputs(seed + 1, config.vocab_size)
    ids, mask, labels = inputs
    model.save_pretrained(os.path.join(directory, "model"))
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
    with open(os.path.join(directory, "expected.json"), "w", encoding="utf-8") as file:
        json.dump(expected, file, indent=1)
    print(f"{name}: loss {losses[0]:.4f} -> {after:.4f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--seed", type=int, default=11)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.cases:
        make_case(name, arguments.seed)


if __name__ == "__main__":
    main()
