"""Trains a LoRA adapter with TRL 1.16 + PEFT and with orpo, from the same start on the same pairs, and compares.

    python3 tools/check_parity.py PAIRS.jsonl [--steps 5] [--batch-size 2] [--lr 5e-4] [--seed 7] ...

The start is drawn from --seed (A and B both non-zero), and goes to orpo as PEFT itself writes it. One micro-batch a step,
in file order, fp32. Every step's loss, metrics and gradient norm must agree to 2e-5 max(1, |reference|), the adapter to
1e-3 of its own change (global L2). TRL's log-softmax is taken in double (--log-softmax fp32: as it is), for torch's
own loses small exponentials on a CPU (make_trl_golden.py says how). --double runs all of TRL in double precision.
Exit code 1 where something is further away.      (trl 1.16, peft 0.21, transformers 5.23, torch 2.15, gguf)
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from trl.experimental.orpo import ORPOConfig

import reference_model
from make_trl_golden import HF_SCHEDULE, LINEARS, Recorder

OURS = pathlib.Path(__file__).resolve().parent.parent / "orpo"
LIMIT, ADAPTER_LIMIT = 2e-5, 1e-3


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("pairs", type=pathlib.Path)
    p.add_argument("--orpo", default=str(OURS))
    p.add_argument("--first", type=int, default=0, help="the first row that is used")
    p.add_argument("--steps", type=int, default=5)
    p.add_argument("--batch-size", type=int, default=2)
    p.add_argument("--lr", type=float, default=5e-4)
    p.add_argument("--beta", type=float, default=0.1)
    p.add_argument("--schedule", choices=HF_SCHEDULE, default="cosine")
    p.add_argument("--warmup", type=int, default=2)
    p.add_argument("--weight-decay", type=float, default=0.0)
    p.add_argument("--clip", type=float, default=1.0)
    p.add_argument("--max-length", type=int, default=256)
    p.add_argument("--lora-rank", type=int, default=8)
    p.add_argument("--lora-alpha", type=int, default=16)
    p.add_argument("--lora-targets", default=",".join(LINEARS))
    p.add_argument("--rslora", action="store_true")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--b-scale", type=float, default=0.01, help="the start's B is this times a normal deviate")
    p.add_argument("--log-softmax", choices=["fp64", "fp32"], default="fp64")
    p.add_argument("--double", action="store_true")
    return p.parse_args()


def exact_log_softmax(plain=torch.Tensor.log_softmax):
    """In double inside, in the caller's precision outside."""
    return lambda x, *a, **k: plain(x.double(), *a, **k).to(x.dtype)


def reference(args, rows, start):
    """TRL's run; its start is written to the folder `start`. Returns (start, end, every step's numbers)."""
    model, tokenizer = reference_model.load()
    if args.double:
        model = model.double()
    model = get_peft_model(model, LoraConfig(r=args.lora_rank, lora_alpha=args.lora_alpha, use_rslora=args.rslora,
                                             target_modules=args.lora_targets.split(","), task_type="CAUSAL_LM"))
    random = torch.Generator().manual_seed(args.seed)
    for name, p in model.named_parameters():
        if "lora_" in name:
            scale = p.shape[1] ** -0.5 if "lora_A" in name else args.b_scale
            values = (torch.randn(p.shape, generator=random) * scale).float()
            p.data = values.double() if args.double else values
    before = {n: p.detach().double().clone() for n, p in model.named_parameters() if p.requires_grad}
    model.save_pretrained(start)
    for file in [start / "adapter_model.safetensors"] if args.double else []:
        from safetensors.torch import save_file
        save_file({k: v.float() for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    with tempfile.TemporaryDirectory() as out:
        config = ORPOConfig(
            output_dir=out, per_device_train_batch_size=args.batch_size, num_train_epochs=1, learning_rate=args.lr,
            beta=args.beta, lr_scheduler_type=HF_SCHEDULE[args.schedule], warmup_steps=args.warmup,
            weight_decay=args.weight_decay, max_grad_norm=args.clip, max_length=args.max_length, logging_steps=1,
            report_to="none", save_strategy="no", bf16=False, gradient_checkpointing=False, use_cpu=True,
            optim="adamw_torch", disable_tqdm=True, remove_unused_columns=False)
        trainer = Recorder(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
        trainer._get_train_sampler = lambda *a, **k: torch.utils.data.SequentialSampler(trainer.train_dataset)
        if args.log_softmax == "fp64":
            torch.Tensor.log_softmax = exact_log_softmax()
            functional = torch.nn.functional.cross_entropy
            torch.nn.functional.cross_entropy = lambda x, *a, **k: functional(x.double(), *a, **k).to(x.dtype)
            from trl.experimental.orpo import orpo_trainer
            orpo_trainer.selective_log_softmax = lambda logits, index: logits.log_softmax(-1).gather(
                -1, index.unsqueeze(-1)).squeeze(-1)
        trainer.train()
    after = {n: p.detach().double() for n, p in model.named_parameters() if p.requires_grad}
    return before, after, trainer.steps


def main():
    args = arguments()
    lines = [line for line in args.pairs.read_text(encoding="utf-8").splitlines() if line.strip()]
    lines = [lines[(args.first + i) % len(lines)] for i in range(args.steps * args.batch_size)]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        before, after, steps = reference(args, [json.loads(line) for line in lines], folder / "start")
        data = folder / "rows.jsonl"
        data.write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = [args.orpo, "train", str(data), "--semantics", "trl", "--eval", "none", "--no-shuffle", "--epochs", "1",
                   "--quiet", "--dtype", "fp32", "--device", "cpu", "--adapter", str(folder / "start"),
                   "--out", str(folder / "run")]
        for name in ("batch_size", "lr", "beta", "schedule", "warmup", "weight_decay", "clip", "max_length"):
            command += ["--" + name.replace("_", "-"), str(getattr(args, name))]
        subprocess.run(command, check=True)
        log = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
        end = load_file(folder / "run" / "adapter" / "adapter_model.safetensors")
    ours = [row for row in log if row["type"] == "step"]
    assert len(ours) == len(steps) == args.steps, (len(ours), len(steps))
    worst = {}
    for step, (got, want) in enumerate(zip(ours, steps), 1):
        for name, value in want.items():
            if name.startswith("logits/"):  # means over padding too
                continue
            error = abs(got[name] - value) / max(1.0, abs(value))
            if not error <= worst.get(name, (-1,))[0]:
                worst[name] = (error, step, got[name], value)
    change = difference = 0.0
    for name, first in before.items():
        last = end.pop(name.replace(".default", "")).double()
        change += (after[name] - first).square().sum().item()
        difference += (after[name] - last).square().sum().item()
    assert not end, list(end)
    share = (difference / change) ** 0.5 if change else difference
    bad = not share <= ADAPTER_LIMIT
    for name, (error, step, got, value) in sorted(worst.items(), key=lambda w: -w[1][0]):
        ok = error <= LIMIT
        bad |= not ok
        if not ok:
            print(f"{name}: step {step}: orpo {got!r}, TRL {value!r}: off by {error:.2e}")
    metric = max(w[0] for n, w in worst.items() if n != "grad_norm")
    print(f"{args.pairs.name}: largest error of a metric {metric:.1e}, of the gradient norm {worst['grad_norm'][0]:.1e}, "
          f"adapter off by {share:.1e} of its change" + (": TOO FAR" if bad else ""))
    sys.exit(bad)


main()
