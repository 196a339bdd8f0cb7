"""Golden numbers of TRL's ORPOTrainer + PEFT on the real 135M: tests/golden/trl/*.json.

Each case trains 20 optimizer steps in fp32, one micro-batch a step, from a LoRA start that is a hash (A and B both
non-zero), on the rows of tests/golden/trl/*.jsonl, in file order. Kept: every step's loss, metrics, gradient norm and
learning rate; of the adapter: its change's norm per tensor, and fixed projections of the whole change.
parity_test.cpp repeats the runs with orpo.

Cases named -double are the same runs with everything in double precision. torch's fp32 log-softmax on a CPU adds a
row's exponentials one after another in as many partial sums as a vector has lanes, and terms below half a unit in the
last place of such a sum are lost: on this model its log-probabilities, those of TRL's NLL, are 1e-5 too high
everywhere. The double runs are free of that, so they can be followed more closely.

    python3 tools/make_trl_golden.py [CASE ...]        (trl 1.16, peft 0.21, transformers 5.23, torch 2.15)
"""

import json
import math
import os
import pathlib
import sys
import tempfile

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

import reference_model

HERE = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden" / "trl"
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROJECTIONS = 64

# name: rows, pairs a step, learning rate, beta, schedule, warm-up steps, rank, alpha, targets, weight decay
CASES = {
    "plain": dict(rows="plain", batch=2, lr=1e-3, beta=0.1, schedule="linear", warmup=0, r=8, alpha=16),
    "chat": dict(rows="chat", batch=2, lr=5e-4, beta=0.5, schedule="cosine", warmup=4, r=16, alpha=32),
    "single": dict(rows="plain", batch=1, lr=2e-3, beta=1.0, schedule="constant", warmup=2, r=4, alpha=8,
                   targets=["q_proj", "v_proj"], rslora=True),
    "wide": dict(rows="implicit", batch=4, lr=8e-4, beta=0.25, schedule="inverse-sqrt", warmup=5, r=8, alpha=8,
                 weight_decay=0.1, max_length=128, clip=0.5),
}
for of in ("plain", "single"):
    CASES[of + "-double"] = dict(CASES[of], double=True)
HF_SCHEDULE = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup", "inverse-sqrt": "inverse_sqrt"}


def splitmix(x):
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def fnv1a(text):
    h = 0xCBF29CE484222325
    for c in text.encode():
        h = ((h ^ c) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return h


def hashed(key, n):
    """n numbers in [-1, 1), a function of the tensor's key alone: splitmix64(fnv1a(key) + index)."""
    with np.errstate(over="ignore"):
        words = splitmix(np.uint64(fnv1a(key)) + np.arange(n, dtype=np.uint64))
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0


def start_values(key, shape):
    """The LoRA start: A as wide as PEFT's own, B small but not zero."""
    scale = 1 / math.sqrt(shape[1]) if key.endswith("lora_A") else 0.01
    return (hashed("start:" + key, shape[0] * shape[1]) * scale).astype(np.float32).reshape(shape)


def tensor_key(name):
    """base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight -> model.layers.0.self_attn.q_proj.lora_A"""
    return name.removeprefix("base_model.model.").removesuffix(".default.weight").removesuffix(".weight")


class Recorder(ORPOTrainer):
    def __init__(self, *args, **kwargs):
        self.steps = []
        super().__init__(*args, **kwargs)

    def get_batch_loss_metrics(self, model, batch, train_eval="train"):
        loss, metrics = super().get_batch_loss_metrics(model, batch, train_eval)
        self.steps.append({"loss": loss.item(), **{k: float(v) for k, v in metrics.items()}})
        return loss, metrics

    def log(self, logs, *args, **kwargs):
        if "grad_norm" in logs:
            self.steps[-1]["grad_norm"] = float(logs["grad_norm"])
            self.steps[-1]["lr"] = float(logs["learning_rate"])
        super().log(logs, *args, **kwargs)


def run(name, case):
    torch.manual_seed(0)
    model, tokenizer = reference_model.load()
    if case.get("double"):
        model = model.double()
    targets = case.get("targets", LINEARS)
    model = get_peft_model(model, LoraConfig(r=case["r"], lora_alpha=case["alpha"], target_modules=targets,
                                             use_rslora=case.get("rslora", False), task_type="CAUSAL_LM"))
    start = {}
    for full, p in model.named_parameters():
        if p.requires_grad:
            key = tensor_key(full)
            start[key] = start_values(key, tuple(p.shape))
            p.data = torch.from_numpy(start[key]).to(torch.float64 if case.get("double") else torch.float32)
    rows = [json.loads(line) for line in (HERE / (case["rows"] + ".jsonl")).read_text().splitlines()]
    steps = 20
    needed = steps * case["batch"]
    rows = [rows[i % len(rows)] for i in range(needed)]
    with tempfile.TemporaryDirectory() as out:
        config = ORPOConfig(
            output_dir=out, per_device_train_batch_size=case["batch"], gradient_accumulation_steps=1, num_train_epochs=1,
            learning_rate=case["lr"], beta=case["beta"], lr_scheduler_type=HF_SCHEDULE[case["schedule"]],
            warmup_steps=case["warmup"], weight_decay=case.get("weight_decay", 0.0), max_grad_norm=case.get("clip", 1.0),
            max_length=case.get("max_length", 256), logging_steps=1, report_to="none", save_strategy="no", bf16=False,
            gradient_checkpointing=False, use_cpu=True, optim="adamw_torch", disable_tqdm=True, remove_unused_columns=False,
        )
        trainer = Recorder(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
        trainer._get_train_sampler = lambda *a, **k: torch.utils.data.SequentialSampler(trainer.train_dataset)
        trainer.train()
    norms, projections, total = {}, np.zeros(PROJECTIONS), 0.0
    for full, p in model.named_parameters():
        if not p.requires_grad:
            continue
        key = tensor_key(full)
        delta = (p.detach().numpy().astype(np.float64) - start[key].astype(np.float64)).ravel()
        norms[key] = float(np.sqrt(np.square(delta).sum()))
        total += float(np.square(delta).sum())
        for j in range(PROJECTIONS):
            signs = np.where(splitmix(np.uint64(fnv1a(f"projection:{j}:{key}")) + np.arange(delta.size, dtype=np.uint64))
                             >> np.uint64(63), -1.0, 1.0)
            projections[j] += float(signs @ delta)
    recorded = dict(case, name=name, steps=trainer.steps, change=math.sqrt(total), change_by_tensor=norms,
                    projections=projections.tolist())
    (HERE / (name + ".json")).write_text(json.dumps(recorded, separators=(",", ":")) + "\n")
    print(name, "loss", trainer.steps[0]["loss"], "->", trainer.steps[-1]["loss"], "change", math.sqrt(total))


if __name__ == "__main__":
    for chosen in sys.argv[1:] or CASES:
        run(chosen, CASES[chosen])
