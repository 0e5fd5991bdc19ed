"""Writes the base models of the benchmarks as Hugging Face directories.

make_models.py demo GGUF DIR     the demo model, dequantised to bfloat16, with its tokenizer
make_models.py qwen3-0.6b DIR    random weights of Qwen3-0.6B's shape, bfloat16
"""

import os
import sys

import torch
import transformers


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
    elif kind == "qwen3-0.6b":
        directory = sys.argv[2]
        torch.manual_seed(1)
        config = transformers.Qwen3Config(
            hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
            num_key_value_heads=8, head_dim=128, vocab_size=151936, tie_word_embeddings=True,
            rms_norm_eps=1e-6, max_position_embeddings=40960, rope_theta=1e6)
        model = transformers.Qwen3ForCausalLM(config).to(torch.bfloat16)
    else:
        raise SystemExit(__doc__)
    model.save_pretrained(directory)


main()
