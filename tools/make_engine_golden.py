#!/usr/bin/env python3
"""Writes tests/golden/engine.json: what transformers + PEFT compute, in double, for the tiny model of tests/tiny_model.h.

Needs torch, transformers and peft:  python3 tools/make_engine_golden.py > tests/golden/engine.json
Weights, adapters and pairs come from the hash of tests/tiny_model.h, so only results are stored: the loss with its parts,
logits of one answer, and of every LoRA gradient the norm and a few elements.
"""
import json
import math
import sys

import numpy as np
import peft
import torch
import transformers
from transformers.models.llama import modeling_llama

V, C, L, H, KV, HS, I = 97, 36, 2, 3, 1, 16, 40
BETA = 0.4


def philox(key, block):
    """Philox4x32-10 with counter (block, 0, 0, 0); block: uint64 array. Returns (n, 4) words."""
    mask = np.uint64(0xFFFFFFFF)
    c = [block & mask, np.zeros_like(block), np.zeros_like(block), np.zeros_like(block)]
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(p1 >> np.uint64(32)) ^ c[1] ^ np.uint64(k0), p1 & mask, (p0 >> np.uint64(32)) ^ c[3] ^ np.uint64(k1), p0 & mask]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(c, axis=1)


def hashed(name, n):
    key = 0xCBF29CE484222325
    for byte in name.encode():
        key = ((key ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    words = philox(key, np.arange((n + 3) // 4, dtype=np.uint64)).reshape(-1)[:n]
    return 2 * ((words >> np.uint64(8)).astype(np.float64) * 2.0**-24) - 1


def fp32(values, shape):
    return torch.from_numpy(values.astype(np.float32).astype(np.float64)).reshape(shape)


def ids(salt, n):
    return [int((h + 1) / 2 * V) for h in hashed(salt, n)]


def pairs(count):
    out = []
    for i in range(count):
        at = f"pair{i}"
        tails = (1, i % 2) if i % 3 == 1 else (0, 0)
        out.append((ids(at + "p", 1 + (i * 5 + 3) % 7), ids(at + "c", 2 + (i * 3) % 5), ids(at + "r", 2 + (i * 4 + 1) % 6), tails))
    return out


class Norm(torch.nn.Module):
    """RMSNorm that stays in double (transformers' own goes through fp32)."""

    def __init__(self, size, eps):
        super().__init__()
        self.weight, self.eps = torch.nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


def model(targets, rank, alpha, rslora):
    modeling_llama.LlamaRMSNorm = Norm
    config = transformers.LlamaConfig(
        vocab_size=V, hidden_size=C, intermediate_size=I, num_hidden_layers=L, num_attention_heads=H,
        num_key_value_heads=KV, head_dim=HS, rms_norm_eps=1e-5, max_position_embeddings=128, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, attn_implementation="sdpa")
    net = transformers.LlamaForCausalLM(config).double()
    for name, p in net.named_parameters():
        norm, n = "norm" in name, p.numel()
        scale = 0.2 if norm else 1.0 if "embed" in name else math.sqrt(3.0 / p.shape[1])
        p.data = fp32((1.0 if norm else 0.0) + scale * hashed(name, n), p.shape)
    net = peft.get_peft_model(net, peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, use_rslora=rslora))
    for name, p in net.named_parameters():
        if "lora_" not in name:
            continue
        p.data = p.data.double()
        layer, linear = name.split(".layers.")[1].split(".")[0], name.split(".lora_")[0].split(".")[-1]
        side = "A" if "lora_A" in name else "B"
        scale = 1 / math.sqrt(p.shape[1]) if side == "A" else 0.3
        p.data = fp32(hashed(f"adapter.{layer}.{linear}.{side}", p.numel()) * scale, p.shape)
    return net


def log1mexp(u):
    return torch.where(u < -math.log(2), torch.log1p(-torch.exp(u)), torch.log(-torch.expm1(u)))


def case(name, targets, rank, alpha, rslora, count):
    net, nll, tokens, odds, xs, ys, logits = model(targets, rank, alpha, rslora), 0, 0, 0, [], [], None
    for prompt, chosen, rejected, tails in pairs(count):
        def score(answer, tail):
            whole = torch.tensor([prompt + answer])
            z = net(input_ids=whole).logits[0]
            lp = torch.log_softmax(z[:-1], -1).gather(1, whole[0, 1:, None])[:, 0]
            return z, lp, lp[len(prompt) + tail - 1:].mean()
        z, lp, x = score(chosen, tails[0])
        _, _, y = score(rejected, tails[1])
        logits = z if logits is None else logits
        nll, tokens = nll - lp.sum(), tokens + lp.numel()
        odds = odds - torch.nn.functional.logsigmoid((x - y) - (log1mexp(x) - log1mexp(y))) / count
        xs.append(x.item()), ys.append(y.item())
    loss = nll / tokens + BETA * odds
    loss.backward()
    gradients = {}
    for key, p in net.named_parameters():
        if "lora_" not in key:
            continue
        key = key.replace("base_model.model.", "").replace(".default.weight", "")
        flat = p.grad.reshape(-1)
        gradients[key] = {"norm": flat.norm().item(), "first": flat[:3].tolist(), "last": flat[-1].item()}
    return {"name": name, "targets": targets, "rank": rank, "alpha": alpha, "rslora": rslora, "pairs": count, "beta": BETA,
            "loss": loss.item(), "nll": (nll / tokens).item(), "odds": odds.item(), "x": xs, "y": ys,
            "logits": logits[-1].tolist(), "gradients": gradients}


if __name__ == "__main__":
    torch.manual_seed(0)
    linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    result = {"made_with": {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__, "peft": peft.__version__},
              "cases": [case("all linears", linears, 3, 6, False, 5), case("rslora on some", ["q_proj", "v_proj", "down_proj"], 4, 3, True, 4)]}
    json.dump(result, sys.stdout, indent=0)
