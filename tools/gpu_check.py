#!/usr/bin/env python3
"""The steps of tools/gpu_check.sh. Every step ends as pass, FAIL or "not run" with a reason; none stops the others.

    gpu_check.py [--peers] [--seconds 520] [--out FILE] [--rehearse]

--rehearse runs the same steps with a tiny model and small sizes: through the stand-in of the tests
(ORPO_CUDA_LIBRARY) everything but the device's own tools can be tried without a GPU. --only NAME... picks steps.
"""
import argparse
import array
import datetime
import glob
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.path.insert(0, HERE)


class NotRun(Exception):
    """A step that cannot be tried here."""


class Failed(Exception):
    """A step whose result is wrong."""


class Check:
    def __init__(self, args):
        self.args, self.start, self.rows, self.facts = args, time.monotonic(), [], []
        self.work = tempfile.mkdtemp(prefix="orpo-gpu-check-")
        self.environment = dict(os.environ)
        packed = os.path.exists(os.path.join(ROOT, "bin", "orpo"))
        self.bin = os.path.abspath(args.bin or os.path.join(ROOT, "bin" if packed else args.build))
        # cuBLASLt comes from the toolkit or from torch's packages.
        libraries = [os.path.join(ROOT, "lib")] if packed else []
        libraries += glob.glob("/usr/local/cuda/lib64")
        for base in {os.path.dirname(p) for p in sys.path if p.endswith("site-packages")} | set(sys.path):
            libraries += glob.glob(os.path.join(base, "site-packages/nvidia/*/lib")) + glob.glob(
                os.path.join(base, "nvidia/*/lib"))
        # For the program alone: python and its torch keep their own.
        old = self.environment.get("LD_LIBRARY_PATH")
        self.libraries = self.environment["GPU_CHECK_LIBRARIES"] = ":".join(libraries + ([old] if old else []))
        tags = ("-py3-none-any.whl", f"-py{sys.version_info[0]}{sys.version_info[1]}-none-any.whl")
        wheels = [w for w in sorted(glob.glob(os.path.join(ROOT, "wheels", "*.whl"))) if w.endswith(tags)]
        if wheels:
            where = os.path.join(self.work, "wheels")
            for wheel in wheels:
                shutil.unpack_archive(wheel, where, "zip")
            self.environment["PYTHONPATH"] = where + ":" + self.environment.get("PYTHONPATH", "")

    # --- running things
    def left(self):
        return self.args.seconds - (time.monotonic() - self.start)

    def program(self, name):
        path = os.path.join(self.bin, name)
        if not os.path.exists(path):
            path = os.path.join(self.bin, "tests/device", name)
        if not os.path.exists(path):
            raise NotRun(f"{name} is not in {self.bin}")
        return path

    def run(self, command, timeout, codes=(0,)):
        timeout = min(timeout, self.left())
        if timeout < 1:
            raise NotRun("out of time")
        try:
            environment = dict(self.environment)
            if command[0] != sys.executable:
                environment["LD_LIBRARY_PATH"] = self.libraries
            out = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment,
                                 cwd=self.work)
        except subprocess.TimeoutExpired:
            raise Failed(f"over {timeout:.0f} s: {' '.join(command[:4])}")
        except OSError as e:
            raise NotRun(str(e))
        if out.returncode not in codes:
            print(f"--- {' '.join(map(str, command))}: exit {out.returncode}", file=sys.stderr)
            for text in (out.stdout, out.stderr):
                print(*text.strip().splitlines()[-60:], sep="\n", file=sys.stderr)
            print("---", file=sys.stderr)
            last = (out.stderr.strip() or out.stdout.strip() or "no message").splitlines()[-1]
            raise (NotRun if out.returncode == 9 else Failed)(f"exit {out.returncode}: {last[:300]}")
        return out.stdout

    def orpo(self, *words, timeout=120):
        return self.run([self.program("orpo"), *map(str, words)], timeout)

    def tool(self, name):
        path = shutil.which(name) or next(iter(glob.glob(f"/usr/local/cuda/bin/{name}")), None)
        if not path:
            raise NotRun(f"{name} is not on this machine")
        return path

    def step(self, name, f):
        if self.args.only and name not in self.args.only:
            return
        start = time.monotonic()
        if self.left() < 1:
            verdict, detail = "not run", "out of time"
        else:
            try:
                verdict, detail = "pass", f() or ""
            except NotRun as e:
                verdict, detail = "not run", str(e)
            except Failed as e:
                verdict, detail = "FAIL", str(e)
            except Exception as e:  # a step's own mistake must not take the others along
                verdict, detail = "FAIL", f"{type(e).__name__}: {e}"
        self.rows.append((name, verdict, time.monotonic() - start, detail))
        print(f"[{time.monotonic() - self.start:5.0f} s] {name}: {verdict} {detail}", file=sys.stderr, flush=True)

    # --- what the steps share
    def model(self, shape, dtype="bfloat16"):
        """Random weights in Hugging Face form, saved once."""
        directory = os.path.join(self.args.models or tempfile.gettempdir(), f"orpo-random-{shape}-{dtype}")
        try:
            from bench_gpu_peers import write_model
            write_model(shape, directory, dtype)
        except ImportError as e:
            raise NotRun(f"no torch or transformers to save random weights: {e}")
        return directory

    def data(self):
        """A few pairs of data/samples, shortened so that the CPU's turn stays short."""
        path = os.path.join(self.work, "pairs.jsonl")
        words = 6 if self.args.rehearse else 40
        with open(os.path.join(ROOT, "data/samples/train.jsonl")) as f, open(path, "w") as out:
            for line in list(f)[:4]:
                row = json.loads(line)
                text = lambda x: " ".join((x if isinstance(x, str) else x[-1]["content"]).split()[:words])
                prompt = row.get("prompt") or row["chosen"][:-1]
                print(json.dumps({k: text(v) for k, v in (("prompt", prompt), ("chosen", row["chosen"]),
                                                           ("rejected", row["rejected"]))}), file=out)
        return path

    def train(self, name, device, dtype, steps=1, *more):
        """(losses, gradient norms, first moments after the last step, adapter bytes)"""
        out = os.path.join(self.work, name)
        shutil.rmtree(out, ignore_errors=True)
        self.orpo("train", self.data(), "--model", self.model(self.small), "--device", device, "--dtype", dtype, "--out", out,
                  "--epochs", steps, "--max-steps", steps, "--batch-size", 4, "--eval", "none", "--save-every", steps, "--lr", 1e-4,
                  "--template", "plain", "--seed", 1, "--quiet", *more, timeout=200)
        with open(os.path.join(out, "metrics.jsonl")) as f:
            lines = [json.loads(line) for line in f]
        rows = [r for r in lines if r["type"] == "step"]
        state = array.array("f")
        with open(os.path.join(out, f"checkpoints/step-{steps}/state.f32"), "rb") as f:
            state.frombytes(f.read())
        with open(os.path.join(out, f"checkpoints/step-{steps}/adapter/adapter_model.safetensors"), "rb") as f:
            adapter = f.read()
        with open(os.path.join(out, f"checkpoints/step-{steps}/manifest.json")) as f:
            json.load(f)
        n = len(state) // 3
        return [r["loss"] for r in rows], [r["grad_norm"] for r in rows], state[n:2 * n], adapter

    @property
    def small(self):
        return "tiny" if self.args.rehearse else "135M"

    @property
    def large(self):
        return "tiny" if self.args.rehearse else "1.7B"

    def shape(self, name):
        return self.model("tiny") if self.args.rehearse else name

    def ceilings(self):
        return ["--gemm-size", 64, "--copy-bytes", 1 << 20, "--repeats", 1] if self.args.rehearse else []

    def lengths(self, p, r):
        return ["--prompt-tokens", 9 if self.args.rehearse else p, "--response-tokens", 5 if self.args.rehearse else r]


def cosine(a, b):
    dot = math.fsum(x * y for x, y in zip(a, b))
    norms = math.sqrt(math.fsum(x * x for x in a) * math.fsum(x * x for x in b))
    return dot / norms if norms > 0 else float("nan")


def expect(condition, text):
    if not condition:  # NaN compares false: it fails
        raise Failed(text)
    return text


# --- the steps -------------------------------------------------------------------------------------------------------

def build(c):
    if os.path.exists(os.path.join(c.bin, "orpo")):
        return f"in {c.bin}"
    c.tool("nvcc"), c.tool("cmake")
    build_dir = os.path.join(ROOT, "build")
    c.run(["cmake", "-S", ROOT, "-B", build_dir, "-DORPO_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=native"], 60)
    c.run(["cmake", "--build", build_dir, "-j", str(os.cpu_count()), "--target", "orpo", "orpo_cuda", "device_kernel_test"],
          400)
    c.bin = build_dir
    return "built here"


def device(c):
    line = next(l for l in c.orpo("--version").splitlines() if l.startswith("cuda"))[4:].strip()
    if line.startswith("no GPU"):
        raise NotRun(line)
    c.facts.append(line)
    c.orpo("bench", "train", "--model", c.shape("135M"), "--device", "cuda", "--pairs", 1, "--steps", 1, *c.lengths(16, 8),
           *c.ceilings())
    return line


def kernels(c):
    if c.args.rehearse and "ORPO_CUDA_LIBRARY" in os.environ:
        raise NotRun("the stand-in has no device; the same cases run in the SIMT runner (ctest -R simt)")
    text = c.run([c.program("device_kernel_test")], 120)
    return re.sub(r"\s+", " ", next(l for l in text.splitlines() if "test cases" in l)).strip("[] ")


def operation_rows(report):
    return [(f"{o['operation']} {o['name']}", f"{o['seconds'] * 1e6:.1f}", f"{o['bytes'] / o['seconds'] / 1e9:.0f}",
             f"{o['flops'] / o['seconds'] / 1e12:.1f}", f"{100 * o['share']:.0f}", o["bound"])
            for o in report["operations"]]


def progress(c):
    r = json.loads(c.orpo("bench", "progress", "--json", "--device", "cuda", "--model", c.shape("135M"), "--pairs",
                          2 if c.args.rehearse else 4, *c.lengths(256, 256), *c.ceilings()))
    for row in r["operations"]:
        expect(row["sound"] is True, f"{row['operation']} {row['name']}: error {row['error']}")
    c.tables[f"Kernels' versions (kernels/progress/), 135M, {r['tokens']} tokens"] = operation_rows(r)
    best = {row["operation"]: f"{row['operation']} {100 * row['share']:.0f} %" for row in r["operations"]}
    return f"{len(r['operations'])} versions agree with the reference; the last ones: {', '.join(best.values())}"


def parity(c, dtype):
    want = c.train("cpu-fp32", "cpu", "fp32")
    got = c.train("cuda-" + dtype, "cuda", dtype)
    loss = abs(got[0][0] - want[0][0]) / abs(want[0][0])
    similar = cosine(got[2], want[2])
    most, least = (1e-5, 0.99999) if dtype == "fp32" else (5e-3, 0.995)
    text = f"loss {got[0][0]:.6f} against {want[0][0]:.6f}, gradient cosine {similar:.6f} (CPU fp32, {c.small})"
    return expect(loss <= most and similar >= least, text)


def bits(c):
    first, second = (c.train("again", "cuda", "bf16", 3) for _ in range(2))
    return expect(first[3] == second[3] and first[0] == second[0], f"adapter of 3 steps, {len(first[3])} bytes, twice")


def tuned(c):
    """--tune chooses other algorithms for the same products."""
    want, got = c.train("untuned", "cuda", "bf16", 2), c.train("tuned", "cuda", "bf16", 2, "--tune")
    with open(os.path.join(c.work, "tuned/tuning.json")) as f:
        products = len(json.load(f)["products"])
    off = max(abs(a / b - 1) for a, b in zip(got[0], want[0]))
    text = f"{products} products chosen, loss off by {off:.1e}, gradient cosine {cosine(got[2], want[2]):.6f}"
    return expect(off <= 5e-3 and cosine(got[2], want[2]) >= 0.995, text)


def sanitizer(c, tool):
    text = c.run([c.tool("compute-sanitizer"), "--tool", tool, "--error-exitcode", "3", c.program("orpo"), "profile",
                  "--model", c.model("tiny"), "--device", "cuda", "--prompt-tokens", "70", "--response-tokens", "40"], 120, (0, 3))
    summary = next((l.strip("= ") for l in text.splitlines() if " SUMMARY: " in l), "no summary")
    return expect(re.match(r"(ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards)", summary) is not None, summary)


def profiler(c, name):
    words = {"ncu": ["--profile-from-start", "off", "--set", "basic", "--launch-count", "20"],
             "nsys": ["profile", "-c", "cudaProfilerApi", "-t", "cuda,nvtx", "-o", os.path.join(c.work, "report")]}[name]
    c.run([c.tool(name), *words, c.program("orpo"), "profile", "--model", c.shape("135M"), "--device", "cuda",
           *map(str, c.lengths(256, 256))], 90)
    return "ran over one step of one layer"


def train_rate(c, shape, pairs, p, r, *more):
    r = json.loads(c.orpo("bench", "train", "--json", "--device", "cuda", "--model", c.shape(shape), "--pairs",
                          2 if c.args.rehearse else pairs, "--steps", 1 if c.args.rehearse else 10, *c.lengths(p, r),
                          *c.ceilings(), *more, timeout=150))
    flops = r["useful_flops_per_pair"] * r["pairs_per_second"]
    return r, (f"{r['pairs_per_second']:.2f} pairs/s, {r['tokens_per_second']:.0f} tokens/s, {flops / 1e12:.2f} TF/s = "
               f"{100 * r['gemm_share']:.0f} % of {r['gemm_ceiling_flops'] / 1e12:.2f}, {r['peak_bytes'] / 1e9:.2f} GB")


def memory_cap(c):
    r, text = train_rate(c, "1.7B", 12, 256, 256, "--memory-limit", "1GB" if c.args.rehearse else "22.5GiB")
    expect(r["planned_bytes"] <= (1e9 if c.args.rehearse else 22.5 * 2**30), f"planned {r['planned_bytes']}: {text}")
    return text + f"; {r['micro_batch_tokens']} tokens at once"


def kernel_table(c, shape):
    r = json.loads(c.orpo("bench", "kernels", "--json", "--device", "cuda", "--model", c.shape(shape), "--pairs",
                          1 if c.args.rehearse else 8, *c.lengths(256, 256), *c.ceilings(), "--cached",
                          9 if c.args.rehearse else 512))
    c.facts.append(f"{shape}: copy {r['copy_bytes_per_second'] / 1e9:.0f} GB/s, product "
                   f"{r['gemm_ceiling_flops'] / 1e12:.1f} TF/s")
    c.tables[f"Kernels of the {shape}, {r['tokens']} tokens"] = operation_rows(r)
    attention = next(o for o in r["operations"] if o["operation"] == "attention")
    return f"{len(r['operations'])} operations; attention {100 * attention['share']:.0f} % of the product ceiling"


def decode(c, shape):
    r = json.loads(c.orpo("bench", "decode", "--json", "--device", "cuda", "--model", c.shape(shape), "--cached",
                          9 if c.args.rehearse else 512, "--new-tokens", 3 if c.args.rehearse else 64, *c.ceilings()))
    return (f"{r['tokens_per_second']:.1f} tokens/s, {r['bytes_per_second'] / 1e9:.0f} GB/s = "
            f"{100 * r['copy_share']:.0f} % of the copy bandwidth")


def peers(c, shape, kind, pairs):
    out = os.path.join(c.work, "peers.json")
    words = ["--tiny", "--device", "cpu"] if c.args.rehearse else ["--device", "cuda", "--shape", shape, "--pairs", str(pairs)]
    c.run([sys.executable, os.path.join(HERE, "bench_gpu_peers.py"), "--orpo", c.program("orpo"), "--lengths",
           "12/8" if c.args.rehearse else kind, "--json", out, "--seconds", str(int(min(c.left() - 45, 360))), *words],
          420)
    with open(out) as f:
        rows = json.load(f)
    c.tables[f"Peers, {shape}, {kind}, {pairs} pairs"] = [
        (r["who"], "", "", "", "", r["error"]) if "error" in r else
        (r["who"], f"{r['pairs_per_second']:.2f} pairs/s", f"{r.get('orpo_is_faster', float('nan')):.2f}x",
         f"{r['peak_bytes'] / 1e9:.2f} GB", f"{r['loss']:.5f}", "" if r["loss_agrees"] else "loss differs") for r in rows]
    good = [r for r in rows if "error" not in r and r["loss_agrees"] and r["who"] != "orpo"]
    if not any(r["who"] == "orpo" and "error" not in r for r in rows):
        raise Failed("orpo did not run: " + str(rows[0].get("error")))
    if not good:
        raise NotRun("no peer ran: " + "; ".join(f"{r['who']}: {r.get('error', 'loss differs')}" for r in rows[1:])[:300])
    return ", ".join(f"{r['orpo_is_faster']:.2f}x {r['who']}" for r in good)


def steps(c):
    yield "program", lambda: build(c)
    yield "device", lambda: device(c)
    yield "kernel tests on the device", lambda: kernels(c)
    yield "progress: checked and timed", lambda: progress(c)
    yield "parity fp32", lambda: parity(c, "fp32")
    yield "parity bf16", lambda: parity(c, "bf16")
    yield "same bits twice", lambda: bits(c)
    yield "--tune", lambda: tuned(c)
    yield "memcheck", lambda: sanitizer(c, "memcheck")
    yield "racecheck", lambda: sanitizer(c, "racecheck")
    yield "train 135M, 4 pairs 256/256", lambda: train_rate(c, "135M", 4, 256, 256)[1]
    yield "train 1.7B, 22.5 GiB cap", lambda: memory_cap(c)
    yield "train 1.7B, 16 pairs 256/256", lambda: train_rate(c, "1.7B", 16, 256, 256)[1]
    yield "kernels 135M", lambda: kernel_table(c, "135M")
    yield "kernels 1.7B", lambda: kernel_table(c, "1.7B")
    yield "decode 135M", lambda: decode(c, "135M")
    yield "decode 1.7B", lambda: decode(c, "1.7B")
    yield "ncu", lambda: profiler(c, "ncu")
    yield "nsys", lambda: profiler(c, "nsys")
    if c.args.peers:
        yield "peers 135M, 4 pairs 256/256", lambda: peers(c, "135M", "256/256", 4)
        yield "peers 1.7B, 8 pairs 256/256", lambda: peers(c, "1.7B", "256/256", 8)


def write_results(c, path):
    gpu = c.facts[0] if c.facts else "no device"
    lines = [f"# GPU check, {datetime.date.today()}", "", gpu, ""]
    lines += [f"- {fact}" for fact in c.facts[1:]] + [""] if c.facts[1:] else []
    lines += ["| step | verdict | s | |", "|---|---|---|---|"]
    lines += [f"| {name} | {verdict} | {seconds:.0f} | {detail} |" for name, verdict, seconds, detail in c.rows]
    for title, rows in c.tables.items():
        head = ["", "us", "GB/s", "TF/s", "% of ceiling", "limit"] if title.startswith("Kernels") else \
            ["", "speed", "orpo is faster", "peak", "first loss", ""]
        lines += ["", f"## {title}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "w") as f:
        f.write("\n".join(lines) + "\n")


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--peers", action="store_true", help="TRL, Liger and torch beside orpo (minutes)")
    a.add_argument("--seconds", type=float, default=520, help="steps that would begin later are not run")
    a.add_argument("--out", help="where the table goes; default: docs/results/<date>-<gpu>.md when a GPU was found")
    a.add_argument("--rehearse", action="store_true", help="tiny sizes, to try the script itself")
    a.add_argument("--only", nargs="+", help="names of steps")
    a.add_argument("--build", default="build", help="the build folder, when nothing was carried along")
    a.add_argument("--bin", help="the folder of the program, in place of all that")
    a.add_argument("--models", help="where random weights are kept; default: the temporary directory")
    c = Check(a.parse_args())
    c.tables = {}
    for name, f in steps(c):
        c.step(name, f)
    width = max(len(name) for name, *_ in c.rows)
    for name, verdict, seconds, detail in c.rows:
        print(f"{name:{width}}  {verdict:8}{seconds:5.0f} s  {detail}")
    ran = sum(verdict != "not run" and name != "program" for name, verdict, *_ in c.rows)
    failed = sum(verdict == "FAIL" for _, verdict, *_ in c.rows)
    print(f"{ran} of {len(c.rows)} steps ran, {failed} failed, {time.monotonic() - c.start:.0f} s")
    on_gpu = any(name == "device" and verdict == "pass" for name, verdict, *_ in c.rows)
    out = c.args.out
    if not out and on_gpu and not c.args.rehearse:
        gpu = re.sub(r"[^A-Za-z0-9]+", "-", c.facts[0]).strip("-").lower()[:40]
        out = os.path.join(ROOT, "docs/results", f"{datetime.date.today()}-{gpu}.md")
    if out:
        write_results(c, out)
        print(f"written: {out}")
    shutil.rmtree(c.work, ignore_errors=True)
    return 1 if failed or not ran else 0


if __name__ == "__main__":
    sys.exit(main())
