"""PEFT on dense batches: LoRA on linear layers of a transformers model, AdamW, sdpa attention.

Adapters have the base's dtype, attention is sdpa, the optimizer is fused: expected to be its fastest
settings. Others can be measured: --adapter-float32, --compile. On a GPU attention is the package
flash-attn's where it is installed, else LibTorch's flash attention through sdpa.
"""

import argparse

import common

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", required=True)
parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
parser.add_argument("--rows", type=int, default=4)
parser.add_argument("--length", type=int, default=256)
parser.add_argument("--steps", type=int, default=4)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--checkpointing", action="store_true")
parser.add_argument("--adapter-float32", action="store_true")
parser.add_argument("--compile", action="store_true")
parser.add_argument("--targets", default="all-linear", help="all-linear, or module names with commas")
parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
parser.add_argument("--experts", help="experts_implementation of a mixture of experts")
options = parser.parse_args()

import contextlib
import importlib.util

import peft
import torch
import transformers

torch.set_num_threads(options.threads)
torch.manual_seed(1)
chosen = {"experts_implementation": options.experts} if options.experts else {}
on_gpu = options.device == "cuda"
attention = "flash_attention_2" if on_gpu and importlib.util.find_spec("flash_attn") else "sdpa"
model = transformers.AutoModelForCausalLM.from_pretrained(
    options.model, dtype=getattr(torch, options.dtype), attn_implementation=attention,
    **chosen).to(options.device)
model.config.use_cache = False
targets = options.targets if options.targets == "all-linear" else options.targets.split(",")
config = peft.LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=targets,
                         task_type="CAUSAL_LM")
model = peft.get_peft_model(model, config, autocast_adapter_dtype=options.adapter_float32)
if options.checkpointing:
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
model.train()
if options.compile:
    model = torch.compile(model)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
vocabulary = model.config.vocab_size

kernel = contextlib.nullcontext()
if on_gpu and attention == "sdpa":
    kernel = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION)
clock = common.Clock()
started = None
loss = None
with kernel:
    for _ in range(options.steps):
        ids = torch.randint(0, vocabulary, (options.rows, options.length), device=options.device)
        if started is None:
            started = common.seconds_since_process_start()
        clock.begin()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if on_gpu:
            torch.cuda.synchronize()
        clock.end()
common.report(step_seconds=clock.steps, tokens_per_step=options.rows * options.length,
              seconds_to_first_step=started, peak_bytes=common.peak_bytes(), loss=loss.item(),
              attention=attention)
