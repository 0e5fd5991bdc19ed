"""TRL's SFTTrainer on chat rows (a JSONL of messages), loss on the assistant's tokens only, batches
grouped by length."""

import argparse
import json
import tempfile

import common

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--rows", type=int, default=160, help="rows of the data to train on, once")
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--learning-rate", type=float, default=2e-4)
parser.add_argument("--output", required=True, help="where the adapter goes")
options = parser.parse_args()

import datasets
import peft
import torch
import transformers
import trl

torch.set_num_threads(options.threads)
transformers.set_seed(1)
datasets.disable_progress_bars()
with open(options.data, encoding="utf-8") as file:
    rows = [json.loads(line)["messages"] for line in file][: options.rows]
data = datasets.Dataset.from_list([{"prompt": r[:-1], "completion": r[-1:]} for r in rows])
model = transformers.AutoModelForCausalLM.from_pretrained(
    options.model, dtype=torch.bfloat16, attn_implementation="sdpa")
tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
clock = common.Clock()


class Watch(transformers.TrainerCallback):
    def on_step_begin(self, *_, **__):
        clock.begin()

    def on_step_end(self, *_, **__):
        clock.end()


with tempfile.TemporaryDirectory() as scratch:
    trainer = trl.SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=data,
        callbacks=[Watch()],
        args=trl.SFTConfig(
            output_dir=scratch, num_train_epochs=1, per_device_train_batch_size=options.batch,
            gradient_accumulation_steps=1, learning_rate=options.learning_rate,
            lr_scheduler_type="linear", max_grad_norm=1.0, bf16=True, use_cpu=True,
            optim="adamw_torch_fused", train_sampling_strategy="group_by_length",
            gradient_checkpointing=False, completion_only_loss=True, save_strategy="no",
            logging_strategy="no", report_to="none", disable_tqdm=True, seed=1),
        peft_config=peft.LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0,
                                    target_modules="all-linear", task_type="CAUSAL_LM"))
    tokens = sum(len(row["input_ids"]) for row in trainer.train_dataset)
    trainer.train()
trainer.model.save_pretrained(options.output)
common.report(step_seconds=clock.steps, tokens=tokens, peak_bytes=common.peak_bytes())
