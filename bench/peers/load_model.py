"""transformers' from_pretrained in bfloat16 and one token's logits; seconds since the process began."""

import argparse
import pathlib

import common

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", required=True)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--fp8", action="store_true", help="dequantise FP8 blocks, as a CPU must")
parser.add_argument("--gguf", action="store_true", help="the directory's GGUF file")
options = parser.parse_args()

import torch
import transformers

torch.set_num_threads(options.threads)
chosen = {}
if options.fp8:
    chosen["quantization_config"] = transformers.FineGrainedFP8Config(dequantize=True)
if options.gguf:
    chosen["gguf_file"] = next(pathlib.Path(options.model).glob("*.gguf")).name
imported = common.seconds_since_process_start()
model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16, **chosen)
with torch.no_grad():
    model(input_ids=torch.ones(1, 1, dtype=torch.long))
total = common.seconds_since_process_start()
common.report(step_seconds=[total], seconds_after_imports=total - imported, peak_bytes=common.peak_bytes())
