#!/usr/bin/env python3
"""Makes tests/golden/formats/: what the reference implementations read and write.

  dequant.json        blocks of every GGUF type, and their values by the `gguf` package
  real_model.json     SHA-256 of every tensor of the real model (fp32), as transformers reads its GGUF
  tiny/, tiny.gguf    one small random model in both layouts (Hugging Face by transformers, GGUF by the `gguf` package)
  peft-*/             adapters that PEFT saved for it, and what each adds to some weights (delta.json)

Needs: pip install torch transformers peft gguf safetensors. Run from the top folder:
  python3 tools/make_format_golden.py [path of SmolLM2-135M-Instruct.Q4_1.gguf]
"""
import hashlib
import json
import os
import pathlib
import shutil
import sys

import gguf
import numpy as np
import peft
import torch
import transformers

OUT = pathlib.Path("tests/golden/formats")
MODEL = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(
    os.path.expanduser("~/.cache/orpo/models/SmolLM2-135M-Instruct.Q4_1.gguf"))
T = gguf.GGMLQuantizationType


def hexed(array):
    return np.ascontiguousarray(array).view(np.uint8).tobytes().hex()


def make_dequant():
    rng = np.random.default_rng(1)
    halfs = {T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q4_K: [0, 2], T.Q5_K: [0, 2],
             T.Q6_K: [208]}
    rows = []
    for kind in (T.F16, T.BF16, *halfs):
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        n = 3 if elements > 1 else 64
        blocks = rng.integers(0, 256, (n, size), dtype=np.uint8)
        if kind == T.F16:  # normal, subnormal, signed zero, largest; no NaN
            bits = rng.integers(0, 1 << 16, n, dtype=np.uint16)
            bits[:6] = [0x0000, 0x8000, 0x0001, 0x83FF, 0x7BFF, 0x0400]
            blocks = np.where((bits & 0x7C00) == 0x7C00, bits & 0x3FF, bits).astype(np.uint16).view(np.uint8).reshape(n, 2)
        if kind == T.BF16:
            bits = rng.integers(0, 1 << 16, n, dtype=np.uint16)
            blocks = np.where((bits & 0x7F80) == 0x7F80, bits & 0x7F, bits).astype(np.uint16).view(np.uint8).reshape(n, 2)
        for at in halfs.get(kind, []):  # scales: usual, negative, subnormal
            scales = np.array([rng.normal() * 0.01, -rng.random(), 3e-7], dtype=np.float16)
            blocks[:, at:at + 2] = scales.view(np.uint8).reshape(3, 2)
        values = gguf.quants.dequantize(blocks.reshape(1, -1), kind).astype(np.float32)
        rows.append({"type": kind.name, "id": int(kind), "blocks": hexed(blocks), "values": hexed(values)})
    (OUT / "dequant.json").write_text("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")


def make_real_model():
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL.parent, gguf_file=MODEL.name, dtype=torch.float32)
    sums = {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
            for name, tensor in sorted(model.state_dict().items()) if name != "lm_head.weight"}
    sums = {"file_sha256": hashlib.sha256(MODEL.read_bytes()).hexdigest(), "tensors": sums}
    (OUT / "real_model.json").write_text(json.dumps(sums, indent=1) + "\n")


def tiny_config():
    return transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5, rope_theta=100000.0, bos_token_id=1,
        eos_token_id=2, pad_token_id=2, tie_word_embeddings=True)


def tiny_model():
    torch.manual_seed(3)
    model = transformers.LlamaForCausalLM(tiny_config())
    for parameter in model.parameters():  # bf16 values, so that both layouts can store them exactly
        parameter.data = (torch.randn_like(parameter) * 0.2 + (1 if parameter.dim() == 1 else 0)).bfloat16().float()
    return model


def permuted(weight, heads):
    """The rows of q and k as llama.cpp wants them: neighbours rotate together."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def make_tiny():
    model = tiny_model()
    model.bfloat16().save_pretrained(OUT / "tiny")
    (OUT / "tiny" / "generation_config.json").unlink()
    writer = gguf.GGUFWriter(OUT / "tiny.gguf", "llama")
    config = model.config
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(100000.0)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        weight = tensor.float().numpy()
        if "q_proj" in name:
            weight = permuted(weight, config.num_attention_heads)
        if "k_proj" in name:
            weight = permuted(weight, config.num_key_value_heads)
        target = names.get_name(name, try_suffixes=(".weight",))
        if weight.ndim == 1:
            writer.add_tensor(target, weight)
        else:
            bits = (np.ascontiguousarray(weight).view(np.uint32) >> 16).astype(np.uint16)
            writer.add_tensor(target, bits.view(np.uint8), raw_dtype=T.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_peft():
    cases = {
        "list": dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], lora_dropout=0.05),
        "all-linear": dict(r=4, lora_alpha=6, target_modules="all-linear", use_rslora=True),
        "regex": dict(r=2, lora_alpha=4, target_modules=r".*layers\.1\..*(k_proj|up_proj)"),
        "layers": dict(r=2, lora_alpha=4, target_modules=["o_proj", "gate_proj"], layers_to_transform=[0]),
        "patterns": dict(r=4, lora_alpha=8, target_modules=["q_proj", "o_proj", "mlp.up_proj"],
                         rank_pattern={"model.layers.0.self_attn.q_proj": 2, "o_proj": 6}, alpha_pattern={"up_proj": 5}),
    }
    for case, options in cases.items():
        torch.manual_seed(5)
        model = peft.get_peft_model(tiny_model(), peft.LoraConfig(task_type="CAUSAL_LM", **options))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn_like(parameter) * 0.1
        folder = OUT / f"peft-{case}"
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        (folder / "README.md").unlink()
        config = json.loads((folder / "adapter_config.json").read_text())
        if isinstance(config["target_modules"], list):  # a set: in any order
            config["target_modules"].sort()
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        rows = []
        for name, module in model.named_modules():
            if isinstance(module, peft.tuners.lora.Linear):
                delta = module.get_delta_weight("default").detach().double().numpy()
                rows.append({"module": name.removeprefix("base_model.model."),
                             "norm": float(np.linalg.norm(delta)),
                             "values": [[int(i), int(j), float(delta[i, j])]
                                        for i, j in ((0, 0), (1, 2), (delta.shape[0] - 1, delta.shape[1] - 1))]})
        (folder / "delta.json").write_text("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    make_dequant()
    make_tiny()
    make_peft()
    make_real_model()
