"""Loads a derivative of a GGUF base in the real packages, llama.cpp among them, and compares logits
with the trainer's.

    compare_with_transformers.py TRAINER BASE.gguf DERIVATIVE
"""

import pathlib
import subprocess
import sys
import tempfile

import torch
from gguf import GGUFReader
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "parity"))
from llama_cpp import next_token_log_probs  # noqa: E402

TEXTS = ["Define the noun 'lighthouse'.", "The quick brown fox jumps over the lazy dog.", "α β — 猫"]


def trainer_logits(trainer, inputs, work, *options):
    output = work / "logits.safetensors"
    save_file(inputs, work / "inputs.safetensors")
    subprocess.run([trainer, "logits", "--input", work / "inputs.safetensors", "--output", output,
                    "--dtype", "float32", *options], check=True, stdout=subprocess.DEVNULL)
    return load_file(output)["logits"]


def check(what, ours, reference, mask, limit):
    difference = (ours - reference).abs()[mask.bool()].max().item()
    print(f"{what}: largest difference of logits {difference:.2e} (limit {limit:.0e})")
    if not difference <= limit:
        sys.exit(f"{what}: logits differ by {difference}")


def check_gguf_adapter(derivative):
    """adapter.gguf as the gguf package reads it: llama.cpp's keys, and PEFT's tensors."""
    reader = GGUFReader(derivative / "adapter.gguf")
    field = lambda name: reader.get_field(name).contents()
    if (field("general.type"), field("adapter.type")) != ("adapter", "lora"):
        sys.exit("adapter.gguf is not what llama.cpp calls a LoRA adapter")
    peft = load_file(derivative / "adapter_model.safetensors")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    if len(tensors) != len(peft):
        sys.exit(f"adapter.gguf has {len(tensors)} tensors, the adapter {len(peft)}")
    path = "base_model.model.model.layers.0.mlp.down_proj.lora_"
    for part in ("A", "B"):  # not permuted, unlike queries and keys
        ours = torch.tensor(tensors[f"blk.0.ffn_down.weight.lora_{part.lower()}"])
        if not torch.equal(ours, peft[f"{path}{part}.weight"]):
            sys.exit(f"adapter.gguf has other numbers than the adapter in ffn_down's lora_{part}")


def check_llama_cpp(base, derivative, tokenizer, adapted):
    """The next token by llama.cpp, which rounds activations to 8 bits beside quantised weights, by
    the total variation from PEFT's."""
    rows = [tokenizer(text)["input_ids"] for text in TEXTS]
    wanted = torch.cat([adapted(input_ids=torch.tensor([row])).logits[:, -1] for row in rows])
    wanted = wanted.softmax(-1)
    distance = lambda *files: (next_token_log_probs(files[0], rows, wanted.size(1), *files[1:]).exp()
                               - wanted).abs().sum(-1).max().item() / 2
    alone = distance(base)
    for what, files in (("adapter.gguf", (base, derivative / "adapter.gguf")),
                        ("model.gguf", (derivative / "model.gguf",))):
        got = distance(*files)
        print(f"{what} in llama.cpp: distance {got:.1e} (base alone {alone:.1e}, limit {alone / 3:.1e})")
        if not got <= alone / 3:
            sys.exit(f"{what}: llama.cpp's next token is {got} from PEFT's, the base alone {alone}")


@torch.no_grad()
def main():
    trainer, base, derivative = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    work = pathlib.Path(tempfile.mkdtemp(prefix="offshoot-compare-"))
    tokenizer = AutoTokenizer.from_pretrained(base.parent, gguf_file=base.name)
    tokenizer.padding_side = "right"
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True)
    inputs = {"input_ids": batch["input_ids"].contiguous(),
              "attention_mask": batch["attention_mask"].contiguous()}
    mask = inputs["attention_mask"]

    model = AutoModelForCausalLM.from_pretrained(base.parent, gguf_file=base.name, dtype=torch.float32)
    model.eval()
    check("GGUF base", trainer_logits(trainer, inputs, work, "--model", base),
          model(**inputs).logits, mask, 2e-4)
    adapted = PeftModel.from_pretrained(model, derivative)
    check("adapter in peft",
          trainer_logits(trainer, inputs, work, "--model", base, "--adapter", derivative),
          adapted(**inputs).logits, mask, 5e-4)

    merged_path = derivative / "merged"
    merged = AutoModelForCausalLM.from_pretrained(merged_path, dtype=torch.float32)
    check("merged model in transformers",
          trainer_logits(trainer, inputs, work, "--model", merged_path), merged(**inputs).logits, mask,
          2e-4)
    alone = work / "gguf"  # beside adapter_config.json transformers would look for the adapter's base
    alone.mkdir()
    (alone / "model.gguf").symlink_to((derivative / "model.gguf").resolve())
    gguf = AutoModelForCausalLM.from_pretrained(alone, gguf_file="model.gguf", dtype=torch.float32)
    check("GGUF file in transformers", trainer_logits(trainer, inputs, work, "--model",
                                                      derivative / "model.gguf"),
          gguf(**inputs).logits, mask, 2e-4)
    check_gguf_adapter(derivative)
    check_llama_cpp(base, derivative, tokenizer, adapted)
    merged_tokenizer = AutoTokenizer.from_pretrained(merged_path)
    for text in TEXTS:
        if merged_tokenizer(text)["input_ids"] != tokenizer(text)["input_ids"]:
            sys.exit(f"the merged model's tokenizer differs on {text!r}")
    chat = [{"role": "user", "content": TEXTS[0]}]
    if merged_tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) != \
            tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True):
        sys.exit("the merged model's chat template differs")


main()
