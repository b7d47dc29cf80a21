#!/usr/bin/env python3
"""The screened LM head and repacked experts from the outside: the same ids as without them, what is kept in the cache folder, what is refused."""
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

from program import DONE, TINY, USAGE, measured_cache, program_path, run

PROMPT = ["-p", "Write a story about a cat.", "--cpu-only", "--ignore-end", "-n", "60"]


class Head(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.cache = pathlib.Path(self.folder.name) / "forethought"
        measured_cache(self.folder.name)

    def run_here(self, *args):
        done = subprocess.run([program_path(), *map(str, args)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
                              env={**os.environ, "XDG_CACHE_HOME": self.folder.name})
        self.assertEqual(done.returncode, DONE, done.stderr)
        return done

    def test_the_same_ids(self):
        for sampling in ([], ["--repeat-penalty", "1.1"], ["--temp", "0.9", "--top-k", "20", "--top-p", "0.9", "--seed", "5"]):
            exact = self.run_here("run", "-m", TINY, *PROMPT, *sampling, "--print-ids")
            screened = self.run_here("run", "-m", TINY, *PROMPT, *sampling, "--print-ids", "--lm-head", "screened")
            self.assertEqual(exact.stdout, screened.stdout)
            self.assertIn("LM head: screened, 2 bits a weight", screened.stderr)
            self.assertNotIn("LM head", exact.stderr)
        (kept,) = json.loads((self.cache / "head.json").read_text())["heads"]
        self.assertGreaterEqual(kept["positions"], 32)
        # Known from then on: no token needs the exact head.
        again = self.run_here("run", "-m", TINY, *PROMPT, "--json", "--lm-head", "screened")
        self.assertEqual(json.loads(again.stdout)["stats"]["lm_head"]["exact"], 0)

    def test_a_damaged_cache_is_measured_again(self):
        for content in ("{", '{"heads": [{"model": 1}]}', '{"heads": [{"model": "445e478b6490744c", "format": 1, "positions": 1e99}]}'):
            (self.cache / "head.json").write_text(content)
            done = self.run_here("run", "-m", TINY, *PROMPT, "--json", "--lm-head", "screened")
            self.assertGreater(json.loads(done.stdout)["stats"]["lm_head"]["exact"], 0)

    def test_what_needs_every_logit(self):
        done = self.run_here("run", "-m", TINY, *PROMPT, "--temp", "0.8", "--seed", "1", "--lm-head", "screened")
        self.assertIn("these sampling options look at every logit", done.stderr)
        for command in (["perplexity", "-p", "a b c"], ["logits", "--tokens", "x", "--out", "y"]):
            refused = run(*command, "-m", TINY, "--lm-head", "screened")
            self.assertEqual(refused.returncode, USAGE, refused.stderr)
        self.assertEqual(run("run", "-m", TINY, *PROMPT, "--lm-head", "quick").returncode, USAGE)

    def test_bench_compares(self):
        done = self.run_here("bench", "-m", TINY, "--cpu-only", "--pp", 0, "--tg", 64, "-r", 1, "--lm-head", "screened", "--json", "-q")
        heads = json.loads(done.stdout)["lm_head"]
        self.assertEqual((heads["tokens"], heads["same_first"], heads["same_largest_40"]), (64, 64, 64))

    def test_repacked(self):
        model = pathlib.Path(self.folder.name) / "model.gguf"
        shutil.copy(TINY, model)
        ids = {how: self.run_here("run", "-m", model, *PROMPT, "--print-ids", "-v", "--repack", how) for how in ("off", "auto", "memory", "file")}
        self.assertEqual(len({done.stdout for done in ids.values()}), 1)
        self.assertIn("repacked: down matrices of 8 layers in neuron-major order", ids["auto"].stderr)
        (copy,) = (self.cache / "packed").glob("*.gguf")
        written = copy.stat().st_mtime_ns
        self.run_here("run", "-m", model, *PROMPT, "--repack", "file", "--experts", "streamed", "--expert-slots", "16")
        self.assertEqual(copy.stat().st_mtime_ns, written)
        self.assertIn("packed copy", self.run_here("doctor", "-m", TINY).stdout)
        os.utime(model, ns=(1, 1))
        self.assertIn("has changed", self.run_here("doctor", "-m", TINY).stdout)
        self.run_here("run", "-m", model, *PROMPT, "--repack", "file")
        self.assertGreater(copy.stat().st_mtime_ns, written)
        self.assertEqual(len(list((self.cache / "packed").iterdir())), 1)
        self.assertEqual(run("run", "-m", model, *PROMPT, "--repack", "disk").returncode, USAGE)


if __name__ == "__main__":
    unittest.main()
