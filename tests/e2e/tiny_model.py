"""A small random Llama and token data for it, made with the standard library alone."""

import array
import json
import pathlib
import random
import struct


def write_safetensors(path, tensors):
    """tensors: {name: (shape, array('f'))}, stored as float32."""
    header, offset = {}, 0
    for name in sorted(tensors):
        shape, values = tensors[name]
        size = 4 * len(values)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(tensors):
            file.write(tensors[name][1].tobytes())


def make_model(directory, hidden=128, layers=4, heads=4, feed_forward=256, vocab=512, seed=1):
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    generator = random.Random(seed)

    def matrix(*shape):
        count = 1
        for side in shape:
            count *= side
        scale = shape[-1] ** -0.5
        return list(shape), array.array("f", (generator.gauss(0.0, scale) for _ in range(count)))

    ones = lambda n: ([n], array.array("f", [1.0] * n))
    tensors = {"model.embed_tokens.weight": matrix(vocab, hidden), "model.norm.weight": ones(hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors[f"{prefix}self_attn.{name}.weight"] = matrix(hidden, hidden)
        tensors[prefix + "mlp.gate_proj.weight"] = matrix(feed_forward, hidden)
        tensors[prefix + "mlp.up_proj.weight"] = matrix(feed_forward, hidden)
        tensors[prefix + "mlp.down_proj.weight"] = matrix(hidden, feed_forward)
        tensors[prefix + "input_layernorm.weight"] = ones(hidden)
        tensors[prefix + "post_attention_layernorm.weight"] = ones(hidden)
    write_safetensors(directory / "model.safetensors", tensors)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": feed_forward, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": heads, "vocab_size": vocab, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": True, "torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": 2,
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def make_data(path, rows=256, length=96, vocab=512, seed=2):
    """Rows that can be learned: each token follows from the one before, with some noise."""
    generator = random.Random(seed)
    follows = [generator.randrange(3, vocab) for _ in range(vocab)]
    with open(path, "w") as file:
        for _ in range(rows):
            ids = [generator.randrange(3, vocab)]
            while len(ids) < length:
                noise = generator.random() < 0.1
                ids.append(generator.randrange(3, vocab) if noise else follows[ids[-1]])
            file.write(json.dumps({"input_ids": ids, "labels": ids}) + "\n")
    return pathlib.Path(path)


def make_job(path, model, data, **settings):
    """Writes a job file; settings override the defaults here. Returns its path."""
    job = {
        "name": "tiny", "base_model": str(model), "base_model_id": "example/tiny-llama",
        "datasets": [{"path": str(data), "type": "pretokenized"}], "val_set_size": 16,
        "sequence_len": 128, "dtype": "float32", "lora_r": 4, "lora_alpha": 8,
        "lora_target_modules": "all-linear", "learning_rate": 0.003, "max_steps": 60,
        "per_device_train_batch_size": 4, "save_steps": 5, "seed": 7,
    }
    job.update(settings)
    # JSON is YAML.
    pathlib.Path(path).write_text(json.dumps({k: v for k, v in job.items() if v is not None}, indent=1))
    return pathlib.Path(path)
