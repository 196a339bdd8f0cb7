#!/usr/bin/env python3
"""Writes tests/golden/optimizer.json: learning-rate factors of transformers' schedules, and 100 steps of PyTorch's
AdamW with gradient clipping. Needs torch and transformers (made with torch 2.15, transformers 5.23).

    python tools/make_optimizer_golden.py > tests/golden/optimizer.json
"""
import json
import math
import sys

import torch
import transformers
from transformers import optimization as opt


def factors(make, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    out = []
    for _ in range(steps):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return out


def schedules():
    cases = []
    for T, W in [(1, 0), (7, 0), (7, 2), (28, 3), (100, 10), (50, 50), (5, 9)]:
        D = min(max(1, (T + 2) // 5), max(0, T - W))
        made = {
            "linear": lambda o: opt.get_linear_schedule_with_warmup(o, W, T),
            "cosine": lambda o: opt.get_cosine_schedule_with_warmup(o, W, T),
            "constant": lambda o: opt.get_constant_schedule_with_warmup(o, W),
            "inverse-sqrt": lambda o: opt.get_inverse_sqrt_schedule(o, W),
            "wsd": lambda o: opt.get_wsd_schedule(o, W, D, num_stable_steps=T - W - D, decay_type="1-sqrt"),
        }
        for name, make in made.items():
            if name == "wsd" and T < W:
                continue  # transformers wants the three parts to be there
            cases.append({"schedule": name, "steps": T, "warmup": W, "factors": factors(make, T)})
    return cases


def adamw():
    """Parameters, gradients and learning rates are formulas that the test repeats."""
    n = 17
    cases = []
    for weight_decay, clip in [(0.0, 0.0), (0.1, 1.0), (0.01, 0.05)]:
        p = torch.nn.Parameter(torch.tensor([math.sin(1.7 * i) for i in range(n)], dtype=torch.float32))
        optimizer = torch.optim.AdamW([p], lr=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay)
        after, norms = {}, []
        for t in range(100):
            # Element 3 never gets a gradient, element 5 a tiny one.
            g = [math.cos(0.37 * i + 0.91 * t) * math.exp(-0.01 * t) for i in range(n)]
            g[3], g[5] = 0.0, g[5] * 1e-7
            p.grad = torch.tensor(g, dtype=torch.float32)
            if clip > 0:
                norms.append(torch.nn.utils.clip_grad_norm_([p], clip).item())
            optimizer.param_groups[0]["lr"] = 1e-2 * (t % 10) / 10  # includes lr 0
            optimizer.step()
            if t in (0, 1, 9, 49, 99):
                after[str(t + 1)] = p.detach().tolist()
        cases.append({"weight_decay": weight_decay, "clip": clip, "norms": norms, "after": after})
    return cases


json.dump({"made_with": f"torch {torch.__version__}, transformers {transformers.__version__}",
           "schedules": schedules(), "adamw": adamw()}, sys.stdout)
print()
