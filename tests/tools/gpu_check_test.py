"""The logic of tools/gpu_check.py and tools/bench_gpu_peers.py: verdicts, and that no step takes the others along.
Needs neither a GPU nor torch."""
import json
import os
import stat
import subprocess
import sys
import tempfile
import types
import unittest

TOOLS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tools")
sys.path.insert(0, TOOLS)
import bench_gpu_peers as peers  # noqa: E402
import gpu_check  # noqa: E402


def fake_orpo(directory, body):
    path = os.path.join(directory, "orpo")
    with open(path, "w") as f:
        f.write("#!/bin/sh\n" + body)
    os.chmod(path, os.stat(path).st_mode | stat.S_IXUSR)


def check(directory, seconds=60):
    return gpu_check.Check(types.SimpleNamespace(bin=directory, build="build", seconds=seconds, only=None, rehearse=True,
                                                 models=directory, peers=False, out=None))


class Steps(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp()

    def verdict(self, f, seconds=60):
        c = check(self.dir, seconds)
        c.step("s", lambda: f(c))
        return c.rows[0][1], c.rows[0][3]

    def test_every_kind_of_end_is_a_verdict(self):
        fake_orpo(self.dir, 'case "$1" in ok) echo fine;; none) echo "no GPU" >&2; exit 9;; slow) sleep 9;; *) echo broken >&2; exit 1;; esac')
        self.assertEqual(self.verdict(lambda c: c.orpo("ok")), ("pass", "fine\n"))
        self.assertEqual(self.verdict(lambda c: c.orpo("none"))[0], "not run")
        self.assertEqual(self.verdict(lambda c: c.orpo("bad")), ("FAIL", "exit 1: broken"))
        self.assertEqual(self.verdict(lambda c: c.orpo("slow", timeout=1))[0], "FAIL")
        self.assertEqual(self.verdict(lambda c: c.program("missing"))[0], "not run")
        self.assertEqual(self.verdict(lambda c: c.tool("no-such-tool"))[0], "not run")
        self.assertEqual(self.verdict(lambda c: 1 / 0)[0], "FAIL")
        self.assertEqual(self.verdict(lambda c: c.orpo("ok"), seconds=0), ("not run", "out of time"))

    def test_nan_fails(self):
        with self.assertRaises(gpu_check.Failed):
            gpu_check.expect(float("nan") <= 1, "")
        self.assertFalse(gpu_check.cosine([0.0, 0.0], [1.0, 2.0]) >= 0.995)
        self.assertAlmostEqual(gpu_check.cosine([1.0, 2.0], [2.0, 4.0]), 1.0)

    def test_a_wrong_kernel_is_found_and_written_down(self):
        rows = [{"operation": "attention", "name": "5 ours", "sound": False, "error": 0.5, "share": 0.1}]
        fake_orpo(self.dir, f"echo '{json.dumps({'operations': rows})}'")
        c = check(self.dir)
        c.tables = {"Kernels": [("a", "1", "2", "3", "4", "memory")]}
        gpu_check.Check.model = lambda *a: "m"  # no torch
        c.step("progress", lambda: gpu_check.progress(c))
        c.step("after", lambda: "still here")
        self.assertEqual([r[1] for r in c.rows], ["FAIL", "pass"])
        self.assertIn("5 ours", c.rows[0][3])
        path = os.path.join(self.dir, "sub", "table.md")
        gpu_check.write_results(c, path)
        with open(path) as f:
            self.assertIn("| progress | FAIL |", f.read())

    def test_a_machine_with_nothing(self):
        out = subprocess.run([sys.executable, os.path.join(TOOLS, "gpu_check.py"), "--rehearse", "--bin", self.dir, "--only",
                              "device", "kernel tests on the device", "ncu"], capture_output=True, text=True)
        self.assertEqual(out.returncode, 1)  # nothing ran
        self.assertIn("0 of 3 steps ran", out.stdout)


class Peers(unittest.TestCase):
    def test_lengths(self):
        self.assertEqual(peers.lengths_of("256/128", 2, False), [(256, 128, 128)] * 2)
        totals = sorted(sum(x) for x in peers.lengths_of("ultrafeedback", 400, False))
        self.assertTrue(330 < totals[200] < 500, totals[200])
        self.assertEqual(peers.lengths_of("ultrafeedback", 5, False), peers.lengths_of("ultrafeedback", 9, False)[:5])

    def test_flops_of_the_one_point_seven_billion(self):
        # reference: 5,498 GF a pair at 256/256 with rank 16 (prefix-shared, no recomputation).
        flops = peers.useful_flops(peers.SHAPES["1.7B"], [(256, 256, 256)])
        self.assertAlmostEqual(flops / 5.498e12, 1, delta=0.005)


if __name__ == "__main__":
    unittest.main()
