#!/usr/bin/env python3
"""Reads what a run wrote with the programs that it was written for: TensorBoard's own reader, and PEFT's file format.

    python tools/read_run.py runs/2026-01-31-data-model

Fails when TensorBoard and metrics.jsonl disagree, or a tensor of the adapter has no counterpart. Needs tensorboard and
safetensors.
"""
import json
import math
import pathlib
import sys

from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

run = pathlib.Path(sys.argv[1])
lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
events = EventAccumulator(str(run), size_guidance={"scalars": 0})
events.Reload()
tags = events.Tags()["scalars"]

compared = 0
for line in lines:
    if line["type"] not in ("step", "eval"):
        continue
    for name, value in line.items():
        tag = name if line["type"] == "step" else "eval/" + name.removeprefix("eval_")
        if tag not in tags or not isinstance(value, (int, float)):
            continue
        # A resumed run repeats steps in a further file; the last value counts.
        found = [e.value for e in events.Scalars(tag) if e.step == line["step"]]
        assert found, (tag, line["step"])
        if name in ("seconds", "tokens_per_second", "peak_bytes", "gemm_share"):
            continue
        assert any(math.isclose(v, value, rel_tol=1e-6, abs_tol=1e-12) for v in found), (tag, line["step"], found, value)
        compared += 1
assert compared > 0
print(f"TensorBoard reads {len(tags)} scalars; {compared} values equal metrics.jsonl")

config = json.loads((run / "adapter" / "adapter_config.json").read_text())
with safe_open(run / "adapter" / "adapter_model.safetensors", "numpy") as file:
    shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
for key, shape in shapes.items():
    if ".lora_A." in key:
        other = shapes[key.replace(".lora_A.", ".lora_B.")]
        assert shape[0] == config["r"] == other[1], (key, shape, other)
print(f"adapter: {len(shapes)} tensors of rank {config['r']}, alpha {config['lora_alpha']}, {config['target_modules']}")
