#!/usr/bin/env python3
"""Loads an adapter that orpo wrote with PEFT, and compares what it adds with what the files say.

  python3 tools/check_adapter.py ADAPTER MODEL     MODEL: a Hugging Face directory or a .gguf file

Needs: pip install torch transformers peft safetensors (and gguf).
"""
import json
import math
import pathlib
import sys
import warnings

import peft
import torch
import transformers
from safetensors.torch import load_file

adapter, base = pathlib.Path(sys.argv[1]), sys.argv[2]
warnings.simplefilter("error", UserWarning)  # PEFT warns about keys that it does not know or does not find
where = pathlib.Path(base)
source = {"gguf_file": where.name} if where.is_file() else {}
model = transformers.AutoModelForCausalLM.from_pretrained(where.parent if source else base, dtype=torch.float32, **source)
model = peft.PeftModel.from_pretrained(model, str(adapter))
config = json.loads((adapter / "adapter_config.json").read_text())
tensors = load_file(adapter / "adapter_model.safetensors")
scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])
modules = 0
for name, module in model.named_modules():
    if isinstance(module, peft.tuners.lora.Linear):
        a, b = (tensors.pop(f"{name}.lora_{side}.weight") for side in "AB")
        wanted, found = scale * (b @ a), module.get_delta_weight("default").detach()
        worst = (wanted - found).abs().max().item()
        assert worst <= 1e-6 * max(1.0, wanted.abs().max().item()), (name, worst)
        modules += 1
assert modules and not tensors, (modules, list(tensors))
print(f"{adapter}: PEFT {peft.__version__} loads it, {modules} modules")
