#!/usr/bin/env python3
"""The benchmarks from the outside, small: the roofline's operations are those of the shapes, its parts add up to the whole; the scripts write the columns they promise.

    bench_test.py FOLDER           models are made there
"""
import csv
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

from program import DONE, ROOT, TINY, USAGE, must, must_json, program_path, run

FOLDER = None


def rows_of(path):
    with open(path, newline="") as lines:
        return list(csv.DictReader(lines))


def script(*command, **environment):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL,
                          env={**os.environ, "FTH_PROGRAM": str(program_path()), **environment})
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stderr[-2000:]}"
    return done


class Roofline(unittest.TestCase):
    def test_operations_and_sums(self):
        report = must_json("bench", "-m", TINY, "--pp", 200, "--tg", 8, "-r", 2, "--cpu-only", "--roofline", "--json", "-q")
        found = {(r["test"], r["segment"]): r for r in report["roofline"]["rows"]}
        layers, embd, ff, experts, top_k, vocab, window = 8, 256, 64, 16, 4, 2048, 128
        q, kv = 8 * 32, 2 * 32
        products = 2 * embd * (2 * q + 2 * kv)
        seen = {"pp200": sum(min(p + 1, window) for p in range(200)) / 200, "tg8": sum(range(1, 9)) / 8}
        for test in ("pp200", "tg8"):
            expected = {"router": layers * 2 * embd * experts, "experts": layers * top_k * 3 * 2 * embd * ff, "combine": layers * top_k * 2 * embd,
                        "head": 2 * vocab * embd / (200 if test == "pp200" else 1)}
            for segment, operations in expected.items():
                self.assertAlmostEqual(found[test, segment]["flops_per_token"], operations, msg=f"{test} {segment}")
            # The tiny model's global layers have no window.
            low = layers * (products + 4 * q * seen[test])
            high = layers * (products + 4 * q * (100.5 if test == "pp200" else seen[test]))
            self.assertTrue(low * (1 - 1e-9) <= found[test, "attention"]["flops_per_token"] <= high * (1 + 1e-9))
            parts = [r for (t, s), r in found.items() if t == test and s != "all"]
            whole = found[test, "all"]
            for key in ("seconds_per_token", "bytes_per_token", "flops_per_token"):
                self.assertAlmostEqual(sum(r[key] for r in parts) / whole[key], 1, places=3, msg=key)
        decode = found["tg8", "all"]
        self.assertAlmostEqual(decode["intensity"], decode["flops_per_token"] / decode["bytes_per_token"])
        self.assertGreater(report["roofline"]["int8_ops_per_second"], 1e9)
        self.assertAlmostEqual(decode["int8_share"], decode["flops_per_second"] / report["roofline"]["int8_ops_per_second"])
        self.assertEqual(decode["roof"], "memory" if decode["bandwidth_share"] >= decode["int8_share"] else "int8")

    def test_table(self):
        done = run("bench", "-m", TINY, "--pp", 0, "--tg", 4, "-r", 1, "--cpu-only", "--roofline")
        self.assertEqual(done.returncode, DONE, done.stderr)
        self.assertIn("of int8 peak", done.stdout)
        self.assertIn("roofs: ", done.stderr)
        self.assertNotIn("roofline", must_json("bench", "-m", TINY, "--pp", 0, "--tg", 4, "-r", 1, "--cpu-only", "--json"))
        self.assertIn("FLOP/byte", must("bench", "-m", TINY, "--pp", 0, "--tg", 4, "-r", 1, "--cpu-only", "--roofline", "--csv", "-q"))
        self.assertEqual(run("bench", "-m", TINY, "--roofline", "--json", "--csv").returncode, USAGE)


class Scripts(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.csv = pathlib.Path(folder.name) / "out.csv"

    def test_run(self):
        for _ in range(2):
            script(ROOT / "bench/run.sh", REPS="2", PP="16", TG="4", CSV=str(self.csv))
        rows = [r for r in rows_of(self.csv) if r["file"] == TINY.name]
        self.assertEqual([r["measure"] for r in rows], ["pp16", "tg4"] * 2, "a second run appends")
        for row in rows:
            self.assertTrue(0 < float(row["min_s"]) <= float(row["median_s"]) <= float(row["p90_s"]))
            self.assertTrue(row["commit"] and row["cpu"] and row["command"].startswith("forethought bench"))

    def test_ablation(self):
        if b"__asan_init" in program_path().read_bytes():
            self.skipTest("a sanitizer's own memory does not fit the small budget")
        done = script(sys.executable, "-B", ROOT / "bench/streaming/ablation.py", "--quick", "--dir", FOLDER, "--csv", self.csv, "--cold", "posix_fadvise")
        print(done.stdout)
        rows = {r["row"]: r for r in rows_of(self.csv)}
        self.assertEqual(len(rows), 9)
        for row in rows.values():
            self.assertEqual((row["budget_held"], row["cold"]), ("True", "posix_fadvise"))
            self.assertLessEqual(float(row["peak_rss_mib"]), float(row["budget_mib"]))
        # What does not depend on this machine's speed: a request after attention reads the same experts; a warm set spares reads; guesses begin more of them.
        self.assertEqual(rows["no prefetch"]["mib_per_token"], rows["exact prefetch"]["mib_per_token"])
        self.assertGreater(float(rows["+ warm set"]["hit_percent"]) + float(rows["+ warm set"]["late_percent"]),
                           float(rows["exact prefetch"]["hit_percent"]))
        self.assertIn("pread", rows["pread"]["experts"])
        self.assertIn("policy lru", rows["lru"]["experts"])

    def test_peers(self):
        if not (ROOT / "build/peers/.stamp").exists():
            self.skipTest("bench/peers/setup.sh has not built the peer")
        done = script(sys.executable, "-B", ROOT / "bench/peers/compare.py", "--reps", 1, "--pp", 32, "--tg", 4, "--csv", self.csv)
        rows = rows_of(self.csv)
        self.assertEqual([r["measure"] for r in rows], ["pp32", "tg4"])
        self.assertNotIn("DIFFER", "\n".join(done.stderr.splitlines()[:3]))
        for row in rows:
            self.assertAlmostEqual(float(row["ratio_of_medians"]), float(row["peer_median_s"]) / float(row["ours_median_s"]), delta=0.02 * float(row["ratio_of_medians"]) + 0.01)


if __name__ == "__main__":
    FOLDER = pathlib.Path(sys.argv[1])
    FOLDER.mkdir(parents=True, exist_ok=True)
    unittest.main(argv=sys.argv[:1], verbosity=2)
