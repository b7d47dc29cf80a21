#!/usr/bin/env python3
"""The program with the onednn backend: forced, it gives the cpu backend's text; left alone, the plan says by measured times who runs the experts."""
import os
import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from program import ROOT, must_json, run  # noqa: E402

PLUGIN = os.environ.get("FTH_ONEDNN_PLUGIN", ROOT / "build/release/plugins/libfth_onednn.so")
FORCED = ("--plugin", PLUGIN, "--place", "layer.*.experts=onednn:0")
PROMPTS = ("Translate to German: The old teacher buys a red car.", "Translate to German: The small dog sees the house.")


def text(prompt, *arguments):
    done = run("run", "--temp", "0", "-p", prompt, *arguments)
    if done.returncode != 0:
        raise AssertionError(done.stderr)
    return done.stdout, done.stderr


class Onednn(unittest.TestCase):
    def test_same_text_as_on_the_cpu(self):
        for prompt in PROMPTS:
            expected, _ = text(prompt, "--cpu-only")
            got, said = text(prompt, *FORCED)
            self.assertEqual(got, expected)
            self.assertIn("onednn:0", said)

    def test_streamed_is_resident(self):
        for ubatch in ("8", "32"):
            logits = []
            ids = pathlib.Path(os.environ["FTH_BUILD_DIR"]) / "tests/onednn_ids.txt"
            ids.write_text(" ".join(str(10 + 7 * i % 200) for i in range(40)))
            for where in ("resident", "streamed"):
                out = ids.with_name(f"onednn_{where}.npy")
                done = run("logits", "--tokens", ids, "--out", out, "--experts", where, "--ubatch", ubatch, *FORCED)
                self.assertEqual(done.returncode, 0, done.stderr)
                logits.append(out.read_bytes())
            self.assertEqual(logits[0], logits[1])

    def test_plan_shows_the_crossover(self):
        experts = must_json("plan", "--plugin", PLUGIN, "--json")["experts"]
        self.assertEqual(experts["devices"], ["cpu", "onednn:0"])
        self.assertEqual([t["rows"] for t in experts["times"]], [1, 4, 8, 16, 32, 64])
        self.assertEqual([b["tokens"] for b in experts["buckets"]], [1, 8, 32, 128, 512])
        for bucket in experts["buckets"]:
            cpu, onednn = bucket["seconds"]
            self.assertEqual(bucket["device"], "onednn:0" if onednn < 0.95 * cpu else "cpu")
        self.assertIn("rows an expert", run("plan", "--plugin", PLUGIN).stdout)

    def test_cpu_only_and_place_leave_nothing_to_choose(self):
        self.assertEqual(must_json("plan", "--cpu-only", "--json")["experts"]["devices"], [])
        placed = must_json("plan", "--json", *FORCED)
        self.assertEqual(placed["experts"]["devices"], [])
        self.assertIn("--place", placed["experts"]["note"])
        self.assertTrue(all(p["device"] == "onednn:0" for p in placed["placements"] if p["kind"] == "experts"))

    def test_named_device_runs_all_experts(self):
        done = must_json("plan", "--plugin", PLUGIN, "--device", "onednn:0", "--json")
        self.assertTrue(all(b["device"] == "onednn:0" for b in done["experts"]["buckets"]))
        self.assertIn("workspace (onednn:0)", [a["name"] for a in done["arenas"]])
        expected, _ = text(PROMPTS[0], "--cpu-only")
        self.assertEqual(text(PROMPTS[0], "--plugin", PLUGIN, "--device", "onednn:0")[0], expected)


if __name__ == "__main__":
    unittest.main(verbosity=2)
