#!/usr/bin/env python3
"""Makes trainer/weights/testdata: what the `gguf` package and `transformers` read from GGUF files.

  ggml_blocks.safetensors   per type: random blocks, and the floats that gguf.quants makes of them;
                            floats, and the blocks that it makes of them
  tiny_<arch>.gguf          tiny random models as llama.cpp's converter would write them
  tiny_<arch>.safetensors   their tensors as transformers' from_pretrained(gguf_file=...) has them;
                            of qwen3moe as the gguf package has them (transformers reads no width of
                            experts)

Needed only to make them anew:  python tests/parity/gguf_vectors.py
"""

import pathlib

import gguf
import numpy as np
import torch
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file as save_torch
from transformers import (AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config,
                          Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

OUT = pathlib.Path(__file__).resolve().parents[2] / "trainer" / "weights" / "testdata"
TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K",
         "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4",
         "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"]
# Where in a block its halves (scale, minimum) lie.
HALVES = {"F16": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
          "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
          "IQ4_NL": [0], "IQ4_XS": [0], "TQ1_0": [52], "TQ2_0": [64], "MXFP4": [], "NVFP4": [],
          "IQ1_S": [0], "IQ1_M": [], "IQ2_XXS": [0], "IQ2_XS": [0], "IQ2_S": [0], "IQ3_XXS": [0],
          "IQ3_S": [0]}


def blocks():
    rng = np.random.default_rng(7)
    tensors = {}
    for name in TYPES:
        kind = gguf.GGMLQuantizationType[name]
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        count = max(3, 96 // elements)
        if name == "F32":
            raw = rng.standard_normal(count).astype(np.float32).view(np.uint8)
        elif name == "BF16":
            raw = rng.standard_normal(count).astype(np.float32).view(np.uint16)[1::2].copy().view(np.uint8)
        else:
            raw = rng.integers(0, 256, (count, size), dtype=np.uint8)
            for at in HALVES[name]:
                halves = rng.standard_normal(count).astype(np.float16)
                halves[0] = np.float16(6e-8)  # a subnormal
                raw[:, at:at + 2] = halves.view(np.uint8).reshape(count, 2)
            if name == "IQ1_M":  # its half is in pieces: no infinity, no NaN
                raw[:, 55] = raw[:, 55] & 0x0F | 0x30
            raw = raw.reshape(-1)
        values = gguf.quants.dequantize(raw.copy(), kind)
        tensors[name + ".blocks"] = raw.reshape(-1).copy()
        tensors[name + ".values"] = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    # The other way: 0, halves away from zero, subnormals and large values among them.
    values = rng.standard_normal(320).astype(np.float32)
    values[32:64] = 0
    values[64:96] *= 1e-9
    values[96:104] = [127, 0.5, -0.5, 1.5, -1.5, 2.5, 63.5, -126.5]
    values[104:128] = 0
    tensors["quantise.floats"] = values
    for name in ["F16", "BF16", "Q8_0"]:
        packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType[name])
        tensors["quantise." + name] = np.ascontiguousarray(packed).view(np.uint8).reshape(-1).copy()
    save_numpy(tensors, OUT / "ggml_blocks.safetensors")


def permute(weights, heads):
    """llama.cpp's order of rows, for a rotation of neighbouring elements."""
    width = weights.shape[0] // heads
    return (weights.reshape(heads, 2, width // 2, *weights.shape[1:]).swapaxes(1, 2)
            .reshape(weights.shape))


def write_gguf(path, arch, model, kinds):
    config = model.config
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if arch == "llama":
        writer.add_rope_dimension_count(config.head_dim)
    else:
        width = model.model.layers[0].self_attn.head_dim
        writer.add_key_length(width)
        writer.add_value_length(width)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    names = gguf.get_tensor_name_map(
        {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[arch], config.num_hidden_layers)
    for index, (name, tensor) in enumerate(model.state_dict().items()):
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        data = tensor.float().numpy()
        if arch == "llama" and ".q_proj." in name:
            data = permute(data, config.num_attention_heads)
        if arch == "llama" and ".k_proj." in name:
            data = permute(data, config.num_key_value_heads)
        stem, suffix = name.rsplit(".", 1)
        kind = gguf.GGMLQuantizationType.F32
        if data.ndim == 2:
            kind = gguf.GGMLQuantizationType[kinds[index % len(kinds)]]
        writer.add_tensor(names.get_name(stem) + "." + suffix, gguf.quants.quantize(data, kind),
                          raw_dtype=kind)
    if config.rope_parameters["rope_type"] == "llama3":
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
        exponent = torch.arange(0, config.head_dim, 2).double() / config.head_dim
        plain = config.rope_parameters["rope_theta"] ** -exponent
        writer.add_tensor("rope_freqs.weight", (plain / scaled.double()).float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def models():
    size = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, vocab_size=48, max_position_embeddings=131072,
                bos_token_id=1, eos_token_id=2)
    llama3 = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0,
                  high_freq_factor=4.0, original_max_position_embeddings=8192)
    plain = dict(rope_type="default", rope_theta=1000000.0)
    # transformers reads no key_length for qwen3: its heads are 128 wide.
    wide = dict(size, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=1)
    cases = [
        ("llama", LlamaForCausalLM(LlamaConfig(**size, rope_parameters=llama3, head_dim=8,
                                               tie_word_embeddings=True)),
         ["Q4_1", "Q8_0", "F16"]),
        ("qwen2", Qwen2ForCausalLM(Qwen2Config(**dict(size, num_hidden_layers=1), rope_parameters=plain,
                                               tie_word_embeddings=False)), ["Q8_0", "BF16"]),
        ("qwen3", Qwen3ForCausalLM(Qwen3Config(**wide, rope_parameters=plain, head_dim=128,
                                               tie_word_embeddings=True)), ["Q5_0", "F32"]),
    ]
    for arch, model, kinds in cases:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        path = OUT / f"tiny_{arch}.gguf"
        write_gguf(path, arch, model, kinds)
        read = AutoModelForCausalLM.from_pretrained(OUT, gguf_file=path.name, dtype=torch.float32)
        tensors = {k: v.clone().contiguous() for k, v in read.state_dict().items()
                   if not (k == "lm_head.weight" and model.config.tie_word_embeddings)}
        save_torch(tensors, OUT / f"tiny_{arch}.safetensors", metadata={"format": "pt"})


def random_q4_k(rng, shape):
    """The gguf package dequantises Q4_K but does not quantise to it."""
    kind = gguf.GGMLQuantizationType.Q4_K
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    count = int(np.prod(shape)) // elements
    raw = rng.integers(0, 256, (count, size), dtype=np.uint8)
    for at in HALVES["Q4_K"]:
        halves = (rng.random(count) * 2e-3).astype(np.float16)
        raw[:, at:at + 2] = halves.view(np.uint8).reshape(count, 2)
    return raw.reshape(*shape[:-1], shape[-1] // elements * size)


def experts():
    """tiny_qwen3moe: the experts of a layer in one tensor, of types that differ."""
    rng = np.random.default_rng(11)
    hidden, heads, kv_heads, width, count, inner, vocab = 256, 4, 2, 8, 3, 32, 48
    layer = "model.layers.0."
    shapes = {  # Hugging Face's name -> shape, GGUF type
        "model.embed_tokens": ((vocab, hidden), "Q8_0"), "model.norm": ((hidden,), "F32"),
        "lm_head": ((vocab, hidden), "F16"), layer + "input_layernorm": ((hidden,), "F32"),
        layer + "post_attention_layernorm": ((hidden,), "F32"),
        layer + "self_attn.q_proj": ((heads * width, hidden), "Q5_0"),
        layer + "self_attn.k_proj": ((kv_heads * width, hidden), "Q8_0"),
        layer + "self_attn.v_proj": ((kv_heads * width, hidden), "Q4_K"),
        layer + "self_attn.o_proj": ((hidden, heads * width), "BF16"),
        layer + "self_attn.q_norm": ((width,), "F32"), layer + "self_attn.k_norm": ((width,), "F32"),
        layer + "mlp.gate": ((count, hidden), "F32"),
        layer + "mlp.experts.gate_proj": ((count, inner, hidden), "Q4_K"),
        layer + "mlp.experts.up_proj": ((count, inner, hidden), "Q4_0"),
        layer + "mlp.experts.down_proj": ((count, hidden, inner), "Q8_0"),
    }
    path = OUT / "tiny_qwen3moe.gguf"
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_block_count(1)
    writer.add_context_length(4096)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(96)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1000000.0)
    writer.add_vocab_size(vocab)
    writer.add_expert_count(count)
    writer.add_expert_used_count(2)
    writer.add_expert_feed_forward_length(inner)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(vocab)])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3MOE, 1)
    tensors = {}
    for name, (shape, kind_name) in shapes.items():
        kind = gguf.GGMLQuantizationType[kind_name]
        if kind_name == "Q4_K":
            raw = random_q4_k(rng, shape)
        else:
            raw = gguf.quants.quantize((rng.standard_normal(shape) * 0.2).astype(np.float32), kind)
        writer.add_tensor(names.get_name(name) + ".weight", raw, raw_dtype=kind)
        values = np.ascontiguousarray(gguf.quants.dequantize(raw, kind), dtype=np.float32)
        if len(shape) < 3:
            tensors[name + ".weight"] = values.reshape(shape)
            continue
        for expert, matrix in enumerate(values.reshape(shape)):
            one = name.replace("experts.", f"experts.{expert}.")
            tensors[one + ".weight"] = np.ascontiguousarray(matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_numpy(tensors, OUT / "tiny_qwen3moe.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    torch.manual_seed(7)
    OUT.mkdir(parents=True, exist_ok=True)
    blocks()
    models()
    experts()
