"""Adapters, training, merging and generation of one random model, against PEFT and transformers.

Used by random_configs.py. Each check yields (name, difference); a difference above its limit, or an
exception, is a failure.
"""
import json
import os
import shutil
import subprocess

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

MIXTURES = {"qwen3_moe", "deepseek_v3", "kimi_k2", "ernie4_5_moe", "hunyuan_v1_moe", "minimax"}
EXPERT_NAMES = {"minimax": ["w1", "w2", "w3"]}
ROUTERS = {"gate", "wg", "lm_head"}
LIMIT = 1e-4


def run(trainer, *arguments):
    process = subprocess.run([trainer, *map(str, arguments)], capture_output=True, text=True,
                             timeout=300, check=False)
    if process.returncode != 0:
        raise RuntimeError(f"{arguments[0]}: exit {process.returncode}: {process.stderr.strip()[-800:]}")
    return process.stdout


def load_reference(directory):
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager")
    return model.eval()


class Checks:
    """model: the directory the trainer reads; reference: the same for transformers."""

    def __init__(self, rng, family, trainer, directory, model, reference, ids, mask):
        self.rng, self.family, self.trainer, self.directory = rng, family, trainer, directory
        self.model, self.reference, self.ids, self.mask = model, reference, ids, mask

    def path(self, name):
        return os.path.join(self.directory, name)

    def trainer_logits(self, model, adapter=None):
        output = self.path("out.safetensors")
        run(self.trainer, "logits", "--model", model, "--threads", 1, "--input",
            self.path("in.safetensors"), "--output", output,
            *(["--adapter", adapter] if adapter else []))
        return load_file(output)["logits"]

    @torch.no_grad()
    def difference(self, model, logits):
        expected = model(input_ids=self.ids, attention_mask=self.mask).logits
        difference = (logits - expected)[self.mask == 1].abs().max().item()
        self.noise = self.own_error(model, expected) if difference > LIMIT else 0.0
        return difference

    def own_error(self, model, logits):
        """How far the reference in float32 is from itself in float64."""
        torch.set_default_dtype(torch.float64)
        try:
            exact = model.double()(input_ids=self.ids, attention_mask=self.mask).logits
        finally:
            torch.set_default_dtype(torch.float32)
            model.float()
        return (logits - exact)[self.mask == 1].abs().max().item()

    def names(self, model):
        """The last names of linear layers that are neither routers nor the head: attention, mlp."""
        attention, mlp = set(), set()
        for path, module in model.named_modules():
            name = path.rsplit(".", 1)[-1]
            if isinstance(module, torch.nn.Linear) and name not in ROUTERS:
                (attention if ".self_attn." in path else mlp).add(name)
        return sorted(attention), sorted(mlp)

    def peft_config(self, model):
        rng = self.rng
        attention, mlp = self.names(model)
        targets = rng.sample(attention, rng.randint(1, len(attention)))
        settings = {}
        has_experts = any(name.endswith("experts.gate_up_proj") for name, _ in model.named_parameters())
        if not has_experts:
            drawn = set(rng.sample(mlp, rng.randint(0, len(mlp))))
            if self.family in MIXTURES and drawn & {"gate_proj", "up_proj"}:
                drawn |= {"gate_proj", "up_proj"}  # PEFT takes both or neither there
            targets += sorted(drawn)
        else:
            kind = rng.choice(["none", "modules", "parameters", "gate_up", "down"])
            dense = {name[len("model.layers."):].split(".", 1)[1] for name, _ in model.named_parameters()
                     if name.startswith("model.layers.") and name.endswith("_proj.weight")
                     and ".mlp." in name}
            parameters = sorted(rng.sample(sorted(dense), rng.randint(0, len(dense))))
            if kind == "modules":
                targets += EXPERT_NAMES.get(self.family, ["gate_proj", "up_proj", "down_proj"])
            elif kind != "none":
                fused = {"parameters": ["gate_up_proj", "down_proj"], "gate_up": ["gate_up_proj"],
                         "down": ["down_proj"]}[kind]
                parameters += ["mlp.experts." + name for name in fused]
            if parameters:
                settings["target_parameters"] = parameters
        if rng.random() < 0.3:
            settings["rank_pattern"] = {targets[0]: rng.choice([1, 5])}
        if rng.random() < 0.3:
            settings["alpha_pattern"] = {targets[0]: rng.choice([2, 9])}
        return LoraConfig(r=rng.choice([1, 2, 4]), lora_alpha=rng.choice([3, 8]),
                          use_rslora=rng.random() < 0.4, target_modules=targets,
                          task_type="CAUSAL_LM", **settings)

    def from_peft(self):
        """An adapter that PEFT wrote, read by the trainer."""
        model = load_reference(self.reference)
        config = self.peft_config(model)
        self.drawn = {key: str(value) for key, value in config.to_dict().items() if key in (
            "r", "lora_alpha", "use_rslora", "target_modules", "target_parameters", "rank_pattern")}
        adapted = get_peft_model(model, config).eval()
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(0.2 * torch.randn(parameter.shape))
        adapter = self.path("peft")
        adapted.save_pretrained(adapter)
        yield "PEFT's adapter", self.difference(adapted, self.trainer_logits(self.model, adapter))

    def train(self):
        """An adapter that the trainer trained and published, read by PEFT, and merged."""
        rng = self.rng
        presets = [["all-linear"], ["attention"], ["attention", "mlp"], ["mlp"]]
        if self.family in MIXTURES:
            names = EXPERT_NAMES.get(self.family, ["gate_proj", "up_proj", "down_proj"])
            presets += [["experts"], ["attention", "experts"], ["all-linear"], ["mlp", "experts"],
                        ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
                        ["attention", "mlp.experts.gate_up_proj"], ["mlp.experts.down_proj", "mlp"],
                        [rng.choice(names)], rng.sample(names, 2), [r".*\.experts\.[02]\..*"]]
        rows = self.path("rows.jsonl")
        with open(rows, "w", encoding="utf-8") as file:
            for row in self.ids.tolist():
                file.write(json.dumps({"input_ids": row, "labels": row}) + "\n")
        while True:
            targets = rng.choice(presets)
            spec = {"spec_version": 1, "job_id": "job", "base_model": {"path": self.model},
                    "datasets": [{"path": rows, "type": "pretokenized"}], "sequence_len": 32,
                    "dtype": "float32", "lora_r": rng.choice([2, 4]), "lora_alpha": rng.choice([3, 8]),
                    "use_rslora": rng.random() < 0.4, "lora_target_modules": targets,
                    "lora_dropout": rng.choice([0, 0, 0.1]),
                    "learning_rate": 0.03, "max_steps": 2, "per_device_train_batch_size": 2,
                    "sample_packing": rng.random() < 0.5, "gradient_checkpointing": rng.random() < 0.3,
                    "threads": 1, "publish": {"formats": ["adapter", "merged"]}}
            with open(self.path("spec.json"), "w", encoding="utf-8") as file:
                json.dump(spec, file)
            self.drawn = {key: str(spec[key]) for key in ("lora_target_modules", "lora_r", "use_rslora",
                                                          "sample_packing")}
            try:
                run(self.trainer, "train", "--spec", self.path("spec.json"), "--work-dir",
                    self.path("work"))
                break
            except RuntimeError as error:
                if "matches no linear layer" not in str(error):
                    raise
                presets.remove(targets)  # this model has no such layers
        result = os.path.join(self.path("work"), "result")
        ours = self.trainer_logits(self.model, result)
        base = self.trainer_logits(self.model)
        if (ours - base)[self.mask == 1].abs().max().item() < 1e-3:
            raise RuntimeError("two steps of training changed nothing")
        adapted = PeftModel.from_pretrained(load_reference(self.reference), result).eval()
        yield "adapter in PEFT", self.difference(adapted, ours)
        merged = os.path.join(result, "merged")
        self.as_transformers_calls_it(merged)
        yield "merged in transformers", self.difference(load_reference(merged), ours)

    def as_transformers_calls_it(self, directory):
        """transformers knows no `kimi_k2`."""
        path = os.path.join(directory, "config.json")
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        if config["model_type"] == "kimi_k2":
            config["model_type"] = "deepseek_v3"
            with open(path, "w", encoding="utf-8") as file:
                json.dump(config, file)

    @torch.no_grad()
    def generate(self):
        """Greedy continuation, token by token; a tie of the reference's own logits is no fault."""
        model = load_reference(self.reference)
        prompt = self.ids[0][:5].tolist()
        count = min(6, max(1, model.config.max_position_embeddings - len(prompt)))
        answer = model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False,
                                eos_token_id=None, pad_token_id=2)[0].tolist()
        ours = json.loads(run(self.trainer, "generate", "--model", self.model, "--threads", 1,
                              "--prompt-ids", json.dumps(prompt), "--max-new-tokens", count))
        self.drawn = {"ours": str(ours), "theirs": str(answer[5:])}
        if len(ours) != count:
            raise RuntimeError(f"{len(ours)} tokens instead of {count}")
        for place, token in enumerate(ours):
            if token == answer[5 + place]:
                continue
            logits = model(torch.tensor([answer[:5 + place]])).logits[0, -1]
            yield "greedy token", (logits.max() - logits[token]).item()
            return
        yield "greedy token", 0.0

    @torch.no_grad()
    def score(self):
        rows = self.path("score.jsonl")
        with open(rows, "w", encoding="utf-8") as file:
            for row, length in zip(self.ids.tolist(), self.mask.sum(1).tolist()):
                if length > 1:
                    file.write(json.dumps({"input_ids": row[:length], "labels": row[:length]}) + "\n")
        run(self.trainer, "score", "--model", self.model, "--threads", 1, "--data", rows, "--type",
            "pretokenized", "--output", self.path("score.out"))
        with open(self.path("score.out"), encoding="utf-8") as file:
            ours = [json.loads(line)["loss"] for line in file]
        theirs = []
        for row, length in zip(self.ids, self.mask.sum(1).tolist()):
            if length > 1:
                tokens = row[None, :length]
                model = load_reference(self.reference)  # anew: dynamic rope remembers lengths
                logits = model(tokens).logits[0, :-1]
                theirs.append(torch.nn.functional.cross_entropy(logits, tokens[0, 1:]).item())
        yield "score", max(abs(a - b) for a, b in zip(ours, theirs, strict=True))

    def all(self):
        """Yields (result, detail) as run_one does."""
        for check in (self.from_peft, self.train, self.generate, self.score):
            self.drawn, self.noise = {}, 0.0
            try:
                for name, difference in check():
                    result = ("matches" if difference <= LIMIT else
                              "rounding" if difference <= 2 * self.noise else "differs")
                    own = f" (the reference's own error: {self.noise:.1e})" if self.noise else ""
                    yield result, f"{name}: {difference:.1e}{own} {self.drawn if result == 'differs' else ''}"
            except Exception as error:  # named, with what was drawn
                yield "failed", f"{check.__name__}: {type(error).__name__}: {str(error)[-600:]} {self.drawn}"


def copy_reference(model_directory, directory):
    shutil.copytree(model_directory, directory)
