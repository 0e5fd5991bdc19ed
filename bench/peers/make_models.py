"""Writes the base models of the benchmarks as Hugging Face directories.

make_models.py demo GGUF DIR     the demo model, dequantised to bfloat16, with its tokenizer
make_models.py KIND DIR          random weights, bfloat16, of the shape KIND: qwen3-0.6b (Qwen3-0.6B's),
                                 moe-qwen3, moe-deepseek (small mixtures of experts of like size)
"""

import os
import sys

import torch
import transformers

# What both mixtures share: 64 experts of width 256, 8 chosen, in layers of width 512.
MIXTURE = dict(hidden_size=512, num_hidden_layers=8, num_attention_heads=8, moe_intermediate_size=256,
               num_experts_per_tok=8, vocab_size=8192, tie_word_embeddings=False,
               max_position_embeddings=4096, rope_theta=1e6)


def random_model(kind):
    if kind == "qwen3-0.6b":
        return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(
            hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
            num_key_value_heads=8, head_dim=128, vocab_size=151936, tie_word_embeddings=True,
            rms_norm_eps=1e-6, max_position_embeddings=40960, rope_theta=1e6))
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
        model = random_model(kind).to(torch.bfloat16)
    model.save_pretrained(directory)


main()
