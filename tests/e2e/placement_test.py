"""The plan's choice among devices of known speeds, run against every other placement; and costs that a profile measured.

beside:0 is the cpu backend with its best kernels on a thread of its own, beside:1 the same with the delays that FTH_BESIDE names (tests/engine/beside_backend.cpp).
The CPU is held to its slowest kernels on one thread, so that beside:0 is faster.
"""
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

from program import DONE, FAILED, TINY, USAGE, measured_cache, program_path

BUILD = pathlib.Path(os.environ["FTH_BUILD_DIR"])
BESIDE = (BUILD / "tests/fake_plugins/libfth_beside.so").resolve()
SLOW_CPU = ("--cpu-isa", "generic", "--threads", "1", "--ctx", "1024")


class Placement(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.program = pathlib.Path(self.folder.name) / "forethought"
        shutil.copy(program_path(), self.program)
        self.cache = pathlib.Path(self.folder.name) / "cache"
        measured_cache(self.cache)
        (self.cache / "forethought/segments.json").unlink(missing_ok=True)

    def run_it(self, *args, slow="launch_us=20000"):
        done = subprocess.run([self.program, *map(str, args), "--plugin", BESIDE], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=250,
                              env={**os.environ, "XDG_CACHE_HOME": str(self.cache), "FTH_BESIDE": slow})
        self.assertGreaterEqual(done.returncode, 0, done.stderr)
        return done

    def placements(self, *args, **more):
        done = self.run_it("bench", "-m", TINY, "--placements", "--pp", 384, "--tg", 12, "-r", 3, "--verdict-counts", "--json", *args, **more)
        self.assertIn(done.returncode, (DONE, FAILED), done.stderr)
        found = json.loads(done.stdout)
        self.assertEqual(done.returncode == DONE, found["outcome"] in ("fastest", "equal"), found["verdict"])
        rows = {row["placement"]: row for row in found["placements"]}
        self.assertEqual(rows[found["chosen"]]["chosen"], True)
        self.assertEqual(found["best"], min((r for r in rows.values() if r["job_seconds"]), key=lambda r: r["job_seconds"])["placement"])
        self.assertAlmostEqual(found["ratio"], rows[found["best"]]["job_seconds"] / rows[found["chosen"]]["job_seconds"], places=6)
        self.assertGreater(found["noise"], 0)
        return found, rows

    def test_a_fast_device_is_taken_for_prompts_and_decoding(self):
        found, rows = self.placements(*SLOW_CPU)
        self.assertIn(found["outcome"], ("fastest", "equal"), found)
        self.assertNotEqual(found["chosen"], "cpu", found)
        chosen = rows[found["chosen"]]
        self.assertGreater(chosen["prompt_tok_s"], rows["cpu"]["prompt_tok_s"])
        self.assertGreater(chosen["prompt_tok_s"], rows["beside:1"]["prompt_tok_s"])
        self.assertGreater(chosen["decode_tok_s"], 2 * rows["beside:1"]["decode_tok_s"])

    def test_slow_devices_are_not(self):
        # Faster than this at neither; the self-test would have refused one that is as slow at everything.
        found, rows = self.placements(*SLOW_CPU, "--device-option", "beside:launch_us=20000")
        self.assertNotEqual(found["chosen"], "beside:1", found)
        self.assertIn(found["outcome"], ("fastest", "equal"), found)
        self.assertGreater(rows["cpu"]["decode_tok_s"], 2 * rows["beside:1"]["decode_tok_s"])

    def test_verdict_counts_goes_with_placements(self):
        self.assertEqual(self.run_it("bench", "-m", TINY, "--verdict-counts").returncode, USAGE)

    def test_a_profile_is_what_plans_rest_on(self):
        before = json.loads(self.run_it("plan", "-m", TINY, "--json", *SLOW_CPU).stdout)
        self.assertFalse(any(p["by_profile"] for p in before["placements"]))
        done = self.run_it("profile", "-m", TINY, "--pp", 512, "--tg", 16, "-r", 1, "--json", *SLOW_CPU)
        self.assertEqual(done.returncode, DONE, done.stderr)
        profile = json.loads(done.stdout)
        plan = json.loads(self.run_it("plan", "-m", TINY, "--json", *SLOW_CPU).stdout)
        for p in plan["placements"]:
            self.assertTrue(p["by_profile"], p)
        self.assertIn("measured by profile", self.run_it("plan", "-m", TINY, *SLOW_CPU).stdout)
        # The CPU's experts run there whatever is placed where: the plan's cost is the profile's median.
        cpu = next(c for c in profile["columns"] if c["name"] == "cpu")
        row = next(r for r in cpu["segments"] if r["segment"] == "experts" and r["bucket"] == 1)
        cost = next(p["seconds"] for p in plan["placements"] if p["kind"] == "experts")
        self.assertAlmostEqual(cost / row["p50_s"], 1, delta=0.2)
        # Another program, shape or device knows nothing of it.
        other = json.loads(self.run_it("plan", "-m", TINY, "--json", *SLOW_CPU, "--kv-type", "q8_0").stdout)
        self.assertFalse(any(p["by_profile"] for p in other["placements"] if p["kind"] == "attention"))
        other = json.loads(self.run_it("plan", "-m", TINY, "--json", "--ctx", 1024, "--threads", 2).stdout)
        self.assertFalse(any(p["by_profile"] for p in other["placements"]))


if __name__ == "__main__":
    unittest.main()
