"""Writes the base models of the benchmarks as Hugging Face directories.

make_models.py demo GGUF DIR     the demo model, dequantised to bfloat16, with its tokenizer
make_models.py KIND DIR          random weights, bfloat16, of the shape KIND: qwen3-0.6b (Qwen3-0.6B's),
                                 llama-8b (Llama 3.1 8B's), moe-qwen3, moe-deepseek (small mixtures of experts of like size),
                                 dense-MODEL_TYPE (a small dense model of that family);
                                 qwen3-0.6b-fp8: with FP8 weights and 128x128 scales;
                                 qwen3-0.6b-q4_k: a GGUF file whose matrices are Q4_K
"""

import json
import os
import sys

import torch
import transformers

# What both mixtures share: 64 experts of width 256, 8 chosen, in layers of width 512.
MIXTURE = dict(hidden_size=512, num_hidden_layers=8, num_attention_heads=8, moe_intermediate_size=256,
               num_experts_per_tok=8, vocab_size=8192, tie_word_embeddings=False,
               max_position_embeddings=4096, rope_theta=1e6)

DENSE = dict(hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
             num_key_value_heads=4, head_dim=64, vocab_size=8192, tie_word_embeddings=True,
             max_position_embeddings=4096, pad_token_id=None)


def random_model(kind):
    if kind.startswith("dense-"):
        config = transformers.AutoConfig.for_model(kind.removeprefix("dense-"), **DENSE)
        return transformers.AutoModelForCausalLM.from_config(config)
    if kind == "qwen3-0.6b":
        return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(
            hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
            num_key_value_heads=8, head_dim=128, vocab_size=151936, tie_word_embeddings=True,
            rms_norm_eps=1e-6, max_position_embeddings=40960, rope_theta=1e6))
    if kind == "llama-8b":
        return transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(
            hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
            num_key_value_heads=8, head_dim=128, vocab_size=128256, tie_word_embeddings=False,
            rms_norm_eps=1e-5, max_position_embeddings=8192, rope_theta=5e5), dtype=torch.bfloat16)
    if kind == "moe-qwen3":
        return transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(
            **MIXTURE, num_experts=64, num_key_value_heads=4, head_dim=64, norm_topk_prob=True,
            intermediate_size=1024, decoder_sparse_step=1, mlp_only_layers=[]))
    if kind == "moe-deepseek":
        return transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(
            **MIXTURE, n_routed_experts=64, n_shared_experts=1, n_group=8, topk_group=4,
            num_key_value_heads=8, first_k_dense_replace=1, intermediate_size=1024,
            q_lora_rank=256, kv_lora_rank=128, qk_nope_head_dim=64, qk_rope_head_dim=32,
            v_head_dim=64, norm_topk_prob=True, routed_scaling_factor=2.5))
    raise SystemExit(__doc__)


def is_matrix(name):
    return name.endswith("_proj.weight")


def save_fp8(model, directory):
    """As DeepSeek publishes: e4m3 matrices, each with its weight_scale_inv."""
    from safetensors.torch import save_file
    tensors = {}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied
        if is_matrix(name):
            tensors[name] = (value.float() * 100).to(torch.float8_e4m3fn)
            rows, columns = ((n + 127) // 128 for n in value.shape)
            tensors[name + "_scale_inv"] = torch.full((rows, columns), 0.01)
        else:
            tensors[name] = value
    os.makedirs(directory)
    model.config.save_pretrained(directory)
    path = os.path.join(directory, "config.json")
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    config["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                                     "weight_block_size": [128, 128]}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(config, file)
    save_file(tensors, os.path.join(directory, "model.safetensors"), metadata={"format": "pt"})


def save_q4_k(model, directory):
    """Random Q4_K blocks: what they hold does not matter to the time of loading."""
    import gguf
    import numpy
    config, rng = model.config, numpy.random.default_rng(1)
    os.makedirs(directory)
    writer = gguf.GGUFWriter(os.path.join(directory, "model.gguf"), "qwen3")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(1e6)
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        base, end = name.rsplit(".", 1)
        target = names.get_name(base) + "." + end
        if value.dim() == 1:
            writer.add_tensor(target, value.float().numpy())
            continue
        rows, blocks = value.shape[0], value.shape[1] // 256
        data = rng.integers(0, 256, (rows, blocks, 144), dtype=numpy.uint8)
        data[:, :, 0:4] = numpy.array([1e-4, 1e-4], dtype=numpy.float16).view(numpy.uint8)
        writer.add_tensor(target, data.reshape(rows, blocks * 144), raw_dtype=gguf.GGMLQuantizationType.Q4_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    kind = sys.argv[1]
    if kind == "demo":
        gguf, directory = sys.argv[2:4]
        source = {"pretrained_model_name_or_path": os.path.dirname(gguf), "gguf_file": os.path.basename(gguf)}
        loaded = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
        # A model read from a GGUF file refuses to be saved: copy its weights into a plain one.
        fields = {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
        model = type(loaded)(type(loaded.config).from_dict(fields)).to(torch.bfloat16)
        model.load_state_dict(loaded.state_dict())
        transformers.AutoTokenizer.from_pretrained(**source).save_pretrained(directory)
    else:
        directory = sys.argv[2]
        torch.manual_seed(1)
        save = {"qwen3-0.6b-fp8": save_fp8, "qwen3-0.6b-q4_k": save_q4_k}.get(kind)
        model = random_model("qwen3-0.6b" if save else kind).to(torch.bfloat16)
        if save:
            return save(model, directory)
    model.save_pretrained(directory)


main()
