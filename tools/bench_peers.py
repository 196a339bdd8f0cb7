#!/usr/bin/env python3
"""One optimizer step of ORPO with LoRA in torch, beside `orpo bench train` on the same model and the same pairs.

    tools/bench_peers.py --device cuda ...       TRL, Liger and torch on a GPU: tools/bench_gpu_peers.py, same words
    tools/bench_peers.py --device cpu --tiny     the same as a rehearsal on a CPU
    tools/bench_peers.py [--orpo ./orpo] [--model FILE.gguf] [--prompt-tokens 256] [--response-tokens 256]
                         [--pairs 1 4] [--dtypes fp32 bf16] [--threads N] [--steps 5]

Needs torch, transformers, peft and gguf (`pip install torch transformers peft gguf`); each variant runs in a process of
its own, so that its peak memory is its own. The torch step is the usual one: rank 16 on all seven linears, chosen and
rejected padded to one batch (`padded`), or laid out as prompt, chosen, rejected with a 4-D mask (`shared`); TRL's loss;
backward; clip to norm 1; AdamW. The loss before the first step is printed for both: it must be the same.
"""
import argparse
import json
import os
import resource
import subprocess
import sys
import time


def philox(key, counter):
    """Philox4x32-10, as in base/philox.h."""
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    c = list(counter)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k1, p0 & 0xFFFFFFFF]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c


def made_up_pairs(pairs, prompt, response, vocabulary):
    """The pairs of src/bench_command.cpp."""
    ids = lambda p, part, n: [philox(1, (p, part, i, 0))[0] % vocabulary for i in range(n)]
    return [(ids(p, 0, prompt), ids(p, 1, response), ids(p, 2, response)) for p in range(pairs)]


def torch_step(args):
    """Runs one variant and prints a JSON object."""
    import torch
    import torch.nn.functional as F
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    folder, name = os.path.split(os.path.abspath(args.model))
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, torch_dtype=dtype,
                                                 attn_implementation="sdpa")
    model.config.use_cache = False
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, task_type="CAUSAL_LM",
                      target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    model = get_peft_model(model, lora, autocast_adapter_dtype=False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    P, R = args.prompt_tokens, args.response_tokens
    data = made_up_pairs(args.pairs, P, R, model.config.vocab_size)
    B = len(data)

    if args.layout == "padded":
        ids = torch.tensor([p + c for p, c, _ in data] + [p + r for p, _, r in data])
        inputs = {"input_ids": ids}
    else:
        ids = torch.tensor([p + c + r for p, c, r in data])
        positions = torch.tensor([list(range(P + R)) + list(range(P, P + R))] * B)
        seen = torch.ones(P + 2 * R, P + 2 * R, dtype=torch.bool).tril()
        seen[P + R:, P:P + R] = False
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
        inputs = {"input_ids": ids, "position_ids": positions, "attention_mask": mask.expand(B, 1, -1, -1)}

    def token_logps(logits, labels):
        return -F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)

    def loss_of():
        logits = model(**inputs).logits
        if args.layout == "padded":
            logps = token_logps(logits[:, :-1], ids[:, 1:])
            chosen, rejected = logps[:B, P - 1:], logps[B:, P - 1:]
            nll = -logps[:B].mean()
        else:
            own = token_logps(logits[:, :P + R - 1], ids[:, 1:P + R])
            rows = torch.cat([logits[:, P - 1:P], logits[:, P + R:-1]], 1)
            chosen, rejected = own[:, P - 1:], token_logps(rows, ids[:, P + R:])
            nll = -own.mean()
        x, y = chosen.mean(1), rejected.mean(1)
        z = (x - y) - (torch.log1p(-torch.exp(x)) - torch.log1p(-torch.exp(y)))
        return nll - 0.1 * F.logsigmoid(z).mean()

    best, first = 1e30, None
    for step in range(args.steps + 1):
        start = time.perf_counter()
        loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step == 0:
            first = loss.item()
        else:
            best = min(best, time.perf_counter() - start)
    print(json.dumps({"pairs_per_second": B / best, "loss": first,
                      "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def run(command):
    out = subprocess.run(command, capture_output=True, text=True)
    if out.returncode != 0:
        return {"error": (out.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(out.stdout.strip().splitlines()[-1])


def main():
    if "cuda" in sys.argv or "--device=cuda" in sys.argv or "--tiny" in sys.argv:
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bench_gpu_peers.py")
        os.execv(sys.executable, [sys.executable, script] + sys.argv[1:])
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--device", default="cpu", choices=["cpu"])
    a.add_argument("--orpo", default="./orpo")
    a.add_argument("--model", default=os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")),
                                                   "orpo/models/SmolLM2-135M-Instruct.Q4_1.gguf"))
    a.add_argument("--prompt-tokens", type=int, default=256)
    a.add_argument("--response-tokens", type=int, default=256)
    a.add_argument("--pairs", type=int, nargs="+", default=[1, 4])
    a.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"])
    a.add_argument("--layouts", nargs="+", default=["padded", "shared"])
    a.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    a.add_argument("--steps", type=int, default=5)
    a.add_argument("--json", action="store_true")
    a.add_argument("--layout", help=argparse.SUPPRESS)
    a.add_argument("--dtype", help=argparse.SUPPRESS)
    args = a.parse_args()
    if args.layout:
        args.pairs = args.pairs[0]
        return torch_step(args)

    common = ["--prompt-tokens", str(args.prompt_tokens), "--response-tokens", str(args.response_tokens),
              "--threads", str(args.threads), "--steps", str(args.steps), "--model", args.model]
    results = []
    for pairs in args.pairs:
        ours = {d: run([args.orpo, "bench", "train", "--json", "--dtype", d, "--pairs", str(pairs)] + common)
                for d in args.dtypes}
        for dtype, r in ours.items():
            results.append({"who": "orpo", "dtype": dtype, "pairs": pairs, "loss": r.get("base_loss"), **r})
        for dtype in args.dtypes:
            for layout in args.layouts:
                r = run([sys.executable, os.path.abspath(__file__), "--layout", layout, "--dtype", dtype, "--pairs",
                         str(pairs)] + common)
                results.append({"who": "torch " + layout, "dtype": dtype, "pairs": pairs, **r})
    if args.json:
        return print(json.dumps(results))
    best = max((r["pairs_per_second"] for r in results if r["who"] != "orpo" and "error" not in r), default=None)
    print(f"{args.prompt_tokens} + 2 x {args.response_tokens} tokens, rank 16 on all linears, {args.threads} threads")
    print(f"{'':16}{'dtype':>6}{'pairs':>6}{'pairs/s':>9}{'x best torch':>13}{'peak GB':>9}{'first loss':>13}")
    for r in results:
        if "error" in r:
            print(f"{r['who']:16}{r['dtype']:>6}{r['pairs']:>6}  {r['error']}")
            continue
        ratio = f"{r['pairs_per_second'] / best:.2f}" if best else ""
        print(f"{r['who']:16}{r['dtype']:>6}{r['pairs']:>6}{r['pairs_per_second']:>9.3f}{ratio:>13}"
              f"{r['peak_bytes'] / 1e9:>9.2f}{r['loss']:>13.6f}")


if __name__ == "__main__":
    main()
