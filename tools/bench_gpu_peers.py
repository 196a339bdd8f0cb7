#!/usr/bin/env python3
"""ORPO steps of the peers on a GPU, beside `orpo bench train` with the same weights, pairs and adapters' shapes.

    tools/bench_gpu_peers.py --model DIR [--orpo ./orpo] [--lengths 256/256 512/512 ultrafeedback] [--pairs 8]
                             [--who orpo trl-default trl-tuned liger torch] [--steps 10] [--json FILE]
    tools/bench_gpu_peers.py --device cpu --tiny      # a rehearsal: a tiny model, a few tokens, no speed worth a look

Called by `tools/bench_peers.py --device cuda` too. DIR is a directory in Hugging Face form; without it random weights of
--shape 135M|360M|1.7B|tiny are written once under the temporary directory, and every engine reads the same file.

  trl-default  TRL's ORPOTrainer with PEFT, as its configuration comes: gradient checkpointing, bf16
  trl-tuned    the same without checkpointing, with fused AdamW, at the best of several micro-batches
  liger        a plain loop over PEFT's model with Liger's fused linear ORPO loss (no gradient checkpointing)
  torch        by hand: packed and prefix-shared, flex_attention, torch.compile, one-pass head: what torch can do
  orpo         this program

Every variant runs in a process of its own. All have rank 16 on seven linears, beta 0.1, AdamW, clipping at 1, and the
same pairs; tokenisation is left out (TRL is handed ids). The first step's loss stands beside the speed: where it differs
by more than 5e-3 of itself from orpo's (bf16) or 1e-4 (fp32), the speed does not count and the row says so. TF/s has one numerator
for all: the FLOPs that a prefix-shared step without recomputation needs (src/useful_flops.h).
"""
import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bench_peers import philox  # noqa: E402

SHAPES = {  # layers, C, heads, kv heads, I, V
    "tiny": (2, 128, 2, 1, 192, 512),
    "135M": (30, 576, 9, 3, 1536, 49152),
    "360M": (32, 960, 15, 5, 2560, 49152),
    "1.7B": (24, 2048, 32, 32, 8192, 49152),
}
RANK, ALPHA, BETA = 16, 32, 0.1
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def lengths_of(kind, pairs, tiny):
    """(prompt, chosen, rejected) tokens of each pair."""
    if "/" in kind:
        p, r = (int(x) for x in kind.split("/"))
        return [(p, r, r)] * pairs
    # UltraFeedback's shape: log-normal, median of all three parts together about 409, prompts 0.42 of an answer, at most 1024.
    out = []
    for i in range(pairs):
        u = [(w + 0.5) / 2**32 for w in philox(5, (i, 0, 0, 0))]
        normal = [math.sqrt(-2 * math.log(u[0])) * math.cos(2 * math.pi * u[1]),
                  math.sqrt(-2 * math.log(u[0])) * math.sin(2 * math.pi * u[1]),
                  math.sqrt(-2 * math.log(u[2])) * math.cos(2 * math.pi * u[3])]
        scale = 0.05 if tiny else 1
        p, c, r = (max(2, int(scale * min(512, median * math.exp(0.7 * z))))
                   for median, z in zip((71, 169, 169), normal))
        out.append((p, c, r))
    return out


def made_up_pairs(lengths, vocabulary):
    """The pairs of src/bench.cpp."""
    ids = lambda p, part, n: [philox(1, (p, part, i, 0))[0] % vocabulary for i in range(n)]
    return [(ids(i, 0, p), ids(i, 1, c), ids(i, 2, r)) for i, (p, c, r) in enumerate(lengths)]


def useful_flops(shape, lengths):
    """Of one step: src/useful_flops.cpp."""
    L, C, H, KV, I, V = shape
    A, K = 64 * H, 64 * KV
    total = 0.0
    for p, c, r in lengths:
        tokens, heads = p + c + r, p - 1 + c + r
        for layer in range(L):
            for group_in, group_out, outs in ((C, A + 2 * K, (A, K, K)), (A, C, (C,)), (C, 2 * I, (I, I)), (I, C, (C,))):
                first = layer == 0 and len(outs) == 3
                width = RANK * len(outs)
                total += tokens * ((2 if first else 4) * group_in * group_out + (4 if first else 6) * group_in * width
                                   + 6 * RANK * sum(outs))
        triangle = lambda n: n * (n + 1) / 2
        total += 14.0 * 64 * H * L * (triangle(p) + triangle(c) + triangle(r) + p * (c + r)) + 4.0 * heads * C * V
    return total


def write_model(name, directory, dtype="bfloat16"):
    """Random weights as a Hugging Face directory, made once."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    if os.path.exists(os.path.join(directory, "model.safetensors")):
        return
    L, C, H, KV, I, V = SHAPES[name]
    torch.manual_seed(1)
    config = LlamaConfig(vocab_size=V, hidden_size=C, intermediate_size=I, num_hidden_layers=L, num_attention_heads=H,
                         num_key_value_heads=KV, max_position_embeddings=8192, rope_theta=100000.0, rms_norm_eps=1e-5,
                         tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(directory, max_shard_size="8GB")
    # What a model directory also has; no text is tokenised here.
    from tokenizers import Tokenizer, models, pre_tokenizers, decoders
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] + alphabet
    words += [f"<w{i}>" for i in range(V - len(words))]
    tokenizer = Tokenizer(models.BPE({w: i for i, w in enumerate(words[:V])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(words[:3])
    tokenizer.save(os.path.join(directory, "tokenizer.json"))
    with open(os.path.join(directory, "tokenizer_config.json"), "w") as f:
        json.dump({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": words[1], "eos_token": words[2],
                   "pad_token": words[2], "model_max_length": 8192}, f)


# ---- the variants, each in its own process --------------------------------------------------------------------------

def clock(args):
    import torch
    if args.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def memory(args):
    import torch
    if args.device == "cuda":
        return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return rss, rss


def dtype_of(args):
    import torch
    return torch.bfloat16 if args.dtype == "bf16" else torch.float32


def report(args, seconds, loss, pairs, **more):
    seconds = sorted(seconds)
    allocated, reserved = memory(args)
    print(json.dumps({"pairs_per_second": pairs / seconds[len(seconds) // 2], "step_seconds": seconds[len(seconds) // 2],
                      "loss": loss, "peak_bytes": allocated, "reserved_bytes": reserved, **more}))


def loop(args, loss_of, parameters, pairs, **more):
    """Warm-up, then timed steps; the loss of the first one."""
    import torch
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=args.device == "cuda")
    first, seconds = None, []
    for step in range(args.warmup + args.steps):
        start = clock(args)
        loss = loss_of()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if first is None:
            first = float(loss)
        if step >= args.warmup:
            seconds.append(clock(args) - start)
    report(args, seconds, first, pairs, **more)


def run_trl(args, tuned):
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    data = args.data
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    losses, seconds = [], []

    class Trainer(ORPOTrainer):
        def tokenize_row(self, row, model=None):
            p, c, r = data[int(row["prompt"])]
            out = {"prompt_input_ids": p, "prompt_attention_mask": [1] * len(p)}
            for name, answer in (("chosen", c), ("rejected", r)):
                out[f"{name}_input_ids"] = p + answer
                out[f"{name}_attention_mask"] = [1] * len(p + answer)
                out[f"{name}_labels"] = [-100] * len(p) + answer
            return out

        def compute_loss(self, *a, **k):
            out = super().compute_loss(*a, **k)
            loss = out[0] if isinstance(out, tuple) else out
            if len(losses) < args.accumulate:  # of the first step; reading it waits for the device
                losses.append(float(loss.detach()))
            return out

        def log(self, *a, **k):  # nothing is written; the metrics are computed in every step, as users have it
            pass

    class Clock(TrainerCallback):
        def on_step_begin(self, *a, **k):
            self.start = clock(args)

        def on_step_end(self, *a, **k):
            seconds.append(clock(args) - self.start)

    extra = dict(gradient_checkpointing=False, optim="adamw_torch_fused" if args.device == "cuda" else "adamw_torch") \
        if tuned else {}
    accumulate = args.accumulate if tuned else 1
    config = ORPOConfig(output_dir=tempfile.mkdtemp(), per_device_train_batch_size=len(data) // accumulate,
                        gradient_accumulation_steps=accumulate, max_steps=args.warmup + args.steps, max_length=8192,
                        beta=BETA, bf16=args.dtype == "bf16" and args.device == "cuda", use_cpu=args.device == "cpu",
                        report_to="none", save_strategy="no", logging_steps=10**9, remove_unused_columns=False,
                        dataloader_drop_last=False, **extra)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype_of(args), attn_implementation="sdpa")
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, task_type="CAUSAL_LM", target_modules=LINEARS)
    rows = Dataset.from_list([{"prompt": str(i), "chosen": "a", "rejected": "b"} for i in range(len(data))])
    trainer = Trainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer, peft_config=lora,
                      callbacks=[Clock()])
    trainer.train()
    report(args, seconds[args.warmup:], sum(losses[:accumulate]) / accumulate, len(data),
           micro_batch=len(data) // accumulate)


def padded(args):
    """(input ids, attention mask, labels of the answers): chosen rows, then rejected rows."""
    import torch
    rows = [(p, c) for p, c, _ in args.data] + [(p, r) for p, _, r in args.data]
    longest = max(len(p) + len(a) for p, a in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, (p, a) in enumerate(rows):
        n = len(p) + len(a)
        ids[i, :n] = torch.tensor(p + a)
        mask[i, :n] = 1
        labels[i, len(p):n] = torch.tensor(a)
    return [t.to(args.device) for t in (ids, mask, labels)]


def run_liger(args):
    import torch
    from liger_kernel.chunked_loss import LigerFusedLinearORPOLoss
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype_of(args), attn_implementation="sdpa")
    model.config.use_cache = False
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, task_type="CAUSAL_LM", target_modules=LINEARS)
    model = get_peft_model(model, lora, autocast_adapter_dtype=False).to(args.device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    causal = model.base_model.model
    ids, mask, labels = padded(args)
    B = len(args.data)
    nll = torch.where(mask == 1, ids, -100)[:, 1:].contiguous()  # Liger takes the chosen half of it
    loss_fn = LigerFusedLinearORPOLoss(beta=BETA, compiled=args.device == "cuda")
    equal = bool(mask.all())

    def loss_of():
        hidden = causal.model(input_ids=ids, attention_mask=None if equal else mask).last_hidden_state
        out = loss_fn(causal.lm_head.weight, hidden[:, :-1].contiguous(), labels[:, 1:].contiguous(), None, nll)
        loss = out[0] if isinstance(out, tuple) else out
        loss.backward()
        return loss.detach()

    loop(args, loss_of, parameters, B)


def run_torch(args):
    """[prompt | chosen | rejected] end to end, one bin; LoRA, head and loss written out."""
    import torch
    import torch.nn.functional as F
    from safetensors.torch import load_file
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    L, C, H, KV, I, V = args.shape_numbers
    dtype, device = dtype_of(args), args.device
    w = {k: t.to(device, dtype) for k, t in load_file(os.path.join(args.model, "model.safetensors")).items()}
    E = w["model.embed_tokens.weight"]
    ids, positions, owner, branch = [], [], [], []
    rows, targets, nll_row, side, pair_of = [], [], [], [], []
    for i, (p, c, r) in enumerate(args.data):
        at = len(ids)
        ids += p + c + r
        positions += list(range(len(p) + len(c))) + list(range(len(p), len(p) + len(r)))
        owner += [i] * len(p + c + r)
        branch += [0] * len(p) + [1] * len(c) + [2] * len(r)
        for j in range(1, len(p) + len(c)):
            rows.append(at + j - 1), targets.append((p + c)[j]), nll_row.append(1)
            side.append(1 if j >= len(p) else 0), pair_of.append(i)
        for j in range(len(r)):
            rows.append(at + len(p) - 1 if j == 0 else at + len(p) + len(c) + j - 1)
            targets.append(r[j]), nll_row.append(0), side.append(2), pair_of.append(i)
    N, B = len(ids), len(args.data)
    tensor = lambda x: torch.tensor(x, device=device)
    ids, positions, owner, branch = map(tensor, (ids, positions, owner, branch))
    rows, targets, nll_row, side, pair_of = map(tensor, (rows, targets, nll_row, side, pair_of))

    def visible(b, h, q, k):
        return (q >= k) & (owner[q] == owner[k]) & ~((branch[q] == 2) & (branch[k] == 1))

    on_gpu = device == "cuda"
    if on_gpu:
        block_mask = create_block_mask(visible, None, None, N, N, device=device)
    else:
        q, k = torch.arange(N)[:, None], torch.arange(N)[None, :]
        dense = visible(0, 0, q, k)
    half = torch.arange(0, 64, 2, device=device, dtype=torch.float32) / 64
    angles = positions[:, None].float() / (args.rope_theta ** half)[None, :]
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)

    def rope(x):  # (N, heads, 64)
        a, b = x[..., :32], x[..., 32:]
        return torch.cat([a * cos[:, None] - b * sin[:, None], b * cos[:, None] + a * sin[:, None]], -1)

    def norm(x, weight):
        return (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5)).to(dtype) * weight

    parameters, layers = [], []
    for l in range(L):
        name = f"model.layers.{l}."
        get = lambda n: w[name + n + ".weight"]
        groups = [(torch.cat([get("self_attn.q_proj"), get("self_attn.k_proj"), get("self_attn.v_proj")]), 3),
                  (get("self_attn.o_proj"), 1), (torch.cat([get("mlp.gate_proj"), get("mlp.up_proj")]), 2),
                  (get("mlp.down_proj"), 1)]
        splits = [(64 * H, 64 * KV, 64 * KV), (C,), (I, I), (C,)]
        lora = []
        for (W, n), outs in zip(groups, splits):
            A = torch.nn.Parameter(torch.empty(n * RANK, W.shape[1], device=device, dtype=dtype).uniform_(-0.02, 0.02))
            Bs = [torch.nn.Parameter(torch.zeros(o, RANK, device=device, dtype=dtype)) for o in outs]
            parameters += [A, *Bs]
            lora.append((W, A, Bs))
        layers.append((get("input_layernorm"), get("post_attention_layernorm"), lora))

    def linear(x, group):
        W, A, Bs = group
        s = F.linear(x, A) * (ALPHA / RANK)
        return F.linear(x, W) + torch.cat([F.linear(s[:, i * RANK:(i + 1) * RANK], b) for i, b in enumerate(Bs)], -1)

    def layer_forward(x, n1, n2, lora):
        qkv = linear(norm(x, n1), lora[0])
        q, k, v = qkv.split([64 * H, 64 * KV, 64 * KV], -1)
        q, k = rope(q.view(N, H, 64)), rope(k.view(N, KV, 64))
        q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v.view(N, KV, 64)))
        if on_gpu:
            o = flex_attention(q, k, v, block_mask=block_mask, enable_gqa=H != KV)
        else:
            k, v = (t.repeat_interleave(H // KV, 1) for t in (k, v))
            o = F.scaled_dot_product_attention(q, k, v, attn_mask=dense)
        x = x + linear(o[0].transpose(0, 1).reshape(N, H * 64), lora[1])
        g, u = linear(norm(x, n2), lora[2]).split([I, I], -1)
        return x + linear(F.silu(g) * u, lora[3])

    class Head(torch.autograd.Function):
        """Log-probabilities and their gradient in one pass over the vocabulary."""
        @staticmethod
        def forward(ctx, h):
            U, logp = torch.empty_like(h), torch.empty(h.shape[0], device=device)
            for i in range(0, h.shape[0], 2048):
                z = F.linear(h[i:i + 2048], E).float()
                t = targets[i:i + 2048, None]
                lse = torch.logsumexp(z, -1, keepdim=True)
                logp[i:i + 2048] = (z.gather(1, t) - lse)[:, 0]
                p = (z - lse).exp_().scatter_add_(1, t, torch.full_like(lse, -1.0))
                U[i:i + 2048] = p.to(dtype) @ E
            ctx.save_for_backward(U)
            return logp

        @staticmethod
        def backward(ctx, g):
            return (-g[:, None] * ctx.saved_tensors[0].float()).to(dtype)

    if on_gpu:
        layer_forward = torch.compile(layer_forward, dynamic=False)
    zeros = lambda: torch.zeros(B, device=device)
    counts = [zeros().index_add_(0, pair_of[side == s], torch.ones_like(pair_of[side == s], dtype=torch.float32))
              for s in (1, 2)]

    def loss_of():
        x = F.embedding(ids, E)
        for n1, n2, lora in layers:
            x = layer_forward(x, n1, n2, lora)
        logp = Head.apply(norm(x, w["model.norm.weight"])[rows])
        mean = [zeros().index_add(0, pair_of[side == s], logp[side == s]) / n for s, n in zip((1, 2), counts)]
        z = (mean[0] - mean[1]) - (torch.log1p(-torch.exp(mean[0])) - torch.log1p(-torch.exp(mean[1])))
        loss = -logp[nll_row == 1].mean() - BETA * F.logsigmoid(z).mean()
        loss.backward()
        return loss.detach()

    loop(args, loss_of, parameters, B)


# ---- the table ------------------------------------------------------------------------------------------------------

def child(args, who, kind, accumulate=1):
    command = [sys.executable, os.path.abspath(__file__), "--child", who, "--device", args.device, "--dtype", args.dtype,
               "--model", args.model, "--shape", args.shape, "--lengths", kind, "--pairs", str(args.pairs), "--steps",
               str(args.steps), "--warmup", str(args.warmup), "--accumulate", str(accumulate)]
    command += ["--tiny"] if args.tiny else []
    return run(command, args)


def run(command, args):
    timeout = min(args.timeout, args.end - time.monotonic())
    if timeout < 1:
        return {"error": "out of time"}
    environment = dict(os.environ)
    if command[0] == args.orpo and "GPU_CHECK_LIBRARIES" in environment:  # of tools/gpu_check.py
        environment["LD_LIBRARY_PATH"] = environment["GPU_CHECK_LIBRARIES"]
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)
    except subprocess.TimeoutExpired:
        return {"error": f"over {timeout:.0f} s"}
    except OSError as e:
        return {"error": str(e)}
    lines = out.stdout.strip().splitlines()
    if out.returncode != 0 or not lines:
        return {"error": (out.stderr.strip().splitlines() or [f"exit {out.returncode}"])[-1][:160]}
    return json.loads(lines[-1])


def run_orpo(args, kind):
    with tempfile.NamedTemporaryFile("w", suffix=".txt", delete=False) as f:
        for p, c, r in lengths_of(kind, args.pairs, args.tiny):
            print(p, c, r, file=f)
    command = [args.orpo, "bench", "train", "--json", "--device", args.device, "--dtype", args.dtype, "--model",
               args.model, "--lengths", f.name, "--pairs", str(args.pairs), "--steps", str(args.steps)]
    command += ["--gemm-size", "256", "--copy-bytes", "1048576", "--threads", "2"] if args.tiny else []
    r = run(command, args)
    os.unlink(f.name)
    if "error" not in r:
        r["loss"] = r["base_loss"]
    return r


def measure(args, kind):
    rows = []
    for who in args.who:
        if who == "orpo":
            r = run_orpo(args, kind)
        elif who == "trl-tuned":
            tried = [child(args, who, kind, n) for n in (1, 2, 4) if args.pairs % n == 0]
            good = [t for t in tried if "error" not in t]
            r = max(good, key=lambda t: t["pairs_per_second"]) if good else tried[0]
        else:
            r = child(args, who, kind)
        rows.append({"who": who, "lengths": kind, **r})
    flops = useful_flops(args.shape_numbers, lengths_of(kind, args.pairs, args.tiny))
    tokens = sum(2 * p + c + r for p, c, r in lengths_of(kind, args.pairs, args.tiny))
    ours = next((r for r in rows if r["who"] == "orpo" and "error" not in r), None)
    reference = ours or next((r for r in rows if "error" not in r), None)
    allowed = 5e-3 if args.dtype == "bf16" else 1e-4
    for r in rows:
        if "error" in r:
            continue
        if abs(r.get("useful_flops_per_pair", flops / args.pairs) * args.pairs / flops - 1) > 1e-6:
            raise SystemExit("bench_gpu_peers: its FLOP count is not that of src/useful_flops.cpp")
        r["useful_flops_per_pair"] = flops / args.pairs
        r["flops_per_second"] = flops / args.pairs * r["pairs_per_second"]
        r["useful_tokens_per_second"] = tokens / args.pairs * r["pairs_per_second"]  # as TRL counts: the prompt twice
        r["loss_agrees"] = abs(r["loss"] - reference["loss"]) <= allowed * max(1.0, abs(reference["loss"]))
        if ours:
            r["orpo_is_faster"] = ours["pairs_per_second"] / r["pairs_per_second"]
    return rows


def print_table(args, rows):
    print(f"{'':14}{'lengths':>15}{'pairs/s':>10}{'orpo is':>9}{'useful tok/s':>14}{'TF/s':>8}{'peak GB':>9}"
          f"{'first loss':>12}")
    for r in rows:
        if "error" in r:
            print(f"{r['who']:14}{r['lengths']:>15}  did not run: {r['error']}")
            continue
        faster = f"{r['orpo_is_faster']:.2f}x" if "orpo_is_faster" in r else ""
        note = "" if r["loss_agrees"] else "  LOSS DIFFERS: this speed does not count"
        print(f"{r['who']:14}{r['lengths']:>15}{r['pairs_per_second']:>10.3f}{faster:>9}"
              f"{r['useful_tokens_per_second']:>14.0f}{r['flops_per_second'] / 1e12:>8.3f}"
              f"{r['peak_bytes'] / 1e9:>9.2f}{r['loss']:>12.5f}{note}")


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    a.add_argument("--tiny", action="store_true", help="a tiny model and few tokens")
    a.add_argument("--orpo", default="./orpo")
    a.add_argument("--model", help="directory in Hugging Face form; default: random weights of --shape")
    a.add_argument("--shape", choices=list(SHAPES))
    a.add_argument("--dtype", choices=["bf16", "fp32"])
    a.add_argument("--lengths", nargs="+")
    a.add_argument("--pairs", type=int, help="pairs of a step")
    a.add_argument("--who", nargs="+", default=["orpo", "trl-default", "trl-tuned", "liger", "torch"])
    a.add_argument("--steps", type=int)
    a.add_argument("--warmup", type=int)
    a.add_argument("--timeout", type=int, default=300, help="seconds of one variant")
    a.add_argument("--seconds", type=int, default=3600, help="of all variants together")
    a.add_argument("--json", metavar="FILE", help="write the rows there, too")
    a.add_argument("--child", help=argparse.SUPPRESS)
    a.add_argument("--accumulate", type=int, default=1, help=argparse.SUPPRESS)
    args = a.parse_args()
    args.shape = args.shape or ("tiny" if args.tiny else "1.7B")
    args.dtype = args.dtype or ("fp32" if args.device == "cpu" else "bf16")
    args.lengths = args.lengths or (["12/8", "ultrafeedback"] if args.tiny else ["256/256", "512/512", "ultrafeedback"])
    args.pairs = args.pairs or (4 if args.tiny else 8)
    args.steps = args.steps or (2 if args.tiny else 10)
    args.warmup = 1 if args.warmup is None and args.tiny else 3 if args.warmup is None else args.warmup
    if args.model is None:
        args.model = os.path.join(tempfile.gettempdir(), f"orpo-random-{args.shape}-{args.dtype}")
        write_model(args.shape, args.model, "float32" if args.dtype == "fp32" else "bfloat16")
    with open(os.path.join(args.model, "config.json")) as f:
        c = json.load(f)
    args.shape_numbers = (c["num_hidden_layers"], c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"],
                          c["intermediate_size"], c["vocab_size"])
    args.rope_theta = c.get("rope_theta") or c["rope_parameters"]["rope_theta"]
    if args.child:
        if args.tiny:
            import torch
            torch.set_num_threads(1)
        args.data = made_up_pairs(lengths_of(args.lengths[0], args.pairs, args.tiny), args.shape_numbers[5])
        return {"trl-default": lambda: run_trl(args, False), "trl-tuned": lambda: run_trl(args, True),
                "liger": lambda: run_liger(args), "torch": lambda: run_torch(args)}[args.child]()
    args.end = time.monotonic() + args.seconds
    rows = [row for kind in args.lengths for row in measure(args, kind)]
    print(f"{args.model}, {args.device} {args.dtype}, {args.pairs} pairs a step, rank {RANK}")
    print_table(args, rows)
    if args.json:
        with open(args.json, "w") as f:
            json.dump(rows, f, indent=1)


if __name__ == "__main__":
    main()
