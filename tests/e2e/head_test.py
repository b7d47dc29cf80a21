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

    def set_format(self, version):
        """Of the packed copies that are kept."""
        kept = json.loads((self.cache / "packed.json").read_text())
        for entry in kept["copies"]:
            entry["format"] = version
        (self.cache / "packed.json").write_text(json.dumps(kept))

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
        self.assertIn("the exact head's largest logits in", heads["how"])
        tokens = pathlib.Path(self.folder.name) / "tokens.txt"
        tokens.write_text(" ".join(str(i * 7919 % 2048) for i in range(300)))
        more = ["bench", "-m", TINY, "--cpu-only", "--pp", 8, "--tg", 1, "-r", 1, "--ctx", 128, "--tokens", tokens, "-q"]
        heads = json.loads(self.run_here(*more, "--lm-head", "screened", "--compare-heads", 300, "--json").stdout)["lm_head"]
        self.assertEqual((heads["tokens"], heads["same_first"], heads["same_largest_40"]), (300, 300, 300))
        (kept,) = json.loads((self.cache / "head.json").read_text())["heads"]
        self.assertGreaterEqual(kept["same"], 728)
        self.assertEqual(kept["checked"], kept["same"])
        for wrong in (["--compare-heads", 300], ["--lm-head", "screened", "--compare-heads", 301]):
            self.assertEqual(run(*more, *wrong).returncode, USAGE)

    def test_a_head_that_disagreed_stays_off(self):
        self.run_here("run", "-m", TINY, *PROMPT, "--lm-head", "screened")
        kept = json.loads((self.cache / "head.json").read_text())
        kept["heads"][0].update(checked=500, same=499)
        (self.cache / "head.json").write_text(json.dumps(kept))
        done = self.run_here("run", "-m", TINY, *PROMPT, "--lm-head", "screened", "--json")
        self.assertEqual(json.loads(done.stdout)["stats"]["lm_head"]["screened"], 0)
        self.assertIn("other largest logits in 1 of 500", self.run_here("run", "-m", TINY, *PROMPT, "--lm-head", "screened").stderr)

    def test_the_crossover_of_up_rows(self):
        measured = json.loads(self.run_here("plan", "-m", TINY, "--cpu-only", "--json").stdout)
        self.assertTrue(40 <= measured["gather_below"] <= 101, measured["gather_below"])
        self.assertRegex(measured["gather_note"], "^measured (before|now)")  # now: what came from a busy machine is measured again
        kept = json.loads((self.cache / "gather.json").read_text())
        (entry,) = kept["gather"]
        self.assertEqual(entry["below"], measured["gather_below"])
        # What is kept is what is used.
        entry["below"] = 57
        (self.cache / "gather.json").write_text(json.dumps(kept))
        done = self.run_here("run", "-m", TINY, *PROMPT, "--print-ids", "-v")
        self.assertIn("live up rows are gathered below 57 % of live neurons (up q4_0, ", done.stderr)
        self.assertIn("cpu: live up rows are gathered below 57 % of live neurons", done.stderr)
        self.assertIn("below 57 % of live neurons", self.run_here("devices", "-v", "--cpu-only").stdout)
        self.assertIn("below 57 % of live neurons", self.run_here("plan", "-m", TINY, "--cpu-only").stdout)
        for percent in (0, 101):
            forced = self.run_here("run", "-m", TINY, *PROMPT, "--print-ids", "-v", "--gather-below", percent)
            self.assertEqual(forced.stdout, done.stdout)
            self.assertIn(f"cpu: live up rows are gathered below {percent} %", forced.stderr)
        # Another number of threads, a damaged file: measured again.
        self.run_here("plan", "-m", TINY, "--cpu-only", "--threads", "1")
        self.assertEqual(len(json.loads((self.cache / "gather.json").read_text())["gather"]), 2)
        (self.cache / "gather.json").write_text('{"gather": [{"machine": 1, "below": 900}]}')
        self.assertIn("measured now", json.loads(self.run_here("plan", "-m", TINY, "--cpu-only", "--json").stdout)["gather_note"])
        for wrong in ("102", "-1", "half"):
            self.assertEqual(run("plan", "-m", TINY, f"--gather-below={wrong}").returncode, USAGE)

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

    def test_streamed_experts_get_a_packed_copy(self):
        model = pathlib.Path(self.folder.name) / "model.gguf"
        shutil.copy(TINY, model)
        streamed = ["run", "-m", model, *PROMPT, "--print-ids", "--experts", "streamed", "--expert-slots", "16"]
        off = self.run_here(*streamed, "--repack", "off")
        self.assertFalse((self.cache / "packed").exists())
        self.assertIn("a run writes it once", self.run_here("plan", "-m", model, "--cpu-only", "--experts", "streamed").stderr)
        quiet = self.run_here(*streamed, "-q")  # gigabytes are not written unsaid
        self.assertEqual(list((self.cache / "packed").iterdir()), [])
        first = self.run_here(*streamed)
        self.assertRegex(first.stderr, r"a packed copy of the model, .* is written now, once, .*--repack off")
        (copy,) = (self.cache / "packed").glob("*.gguf")
        written = copy.stat().st_mtime_ns
        again = self.run_here(*streamed)
        self.assertNotIn("written", again.stderr)
        self.assertEqual(copy.stat().st_mtime_ns, written)
        self.assertEqual({done.stdout for done in (quiet, first, again)}, {off.stdout})
        # One in an earlier format is run where nothing is written, and replaced where something is.
        self.set_format(1)
        def read(*args):
            return json.loads(self.run_here(*[a for a in args if a != "--print-ids"], "-q", "--json").stdout)["stats"]["prompt_io"]["bytes_read"]
        plain, packed = read(*streamed, "--repack", "off"), read(*[copy if a == model else a for a in streamed])
        self.assertNotEqual(plain, packed)
        self.assertEqual(read(*streamed), packed)
        self.assertEqual(copy.stat().st_mtime_ns, written)
        self.assertIn("is written now, once", self.run_here(*streamed).stderr)
        self.assertGreater(copy.stat().st_mtime_ns, written)
        self.assertNotIn("written", self.run_here(*streamed).stderr)
        # Resident experts need none.
        self.assertIn("in neuron-major order", self.run_here("run", "-m", model, *PROMPT, "-v").stderr)
        copy.write_bytes(b"not a model")
        self.assertEqual(self.run_here(*streamed).stdout, off.stdout)
        listed = json.loads(self.run_here("cache", "--json").stdout)
        (packed,) = [f for f in listed["files"] if f["path"] == str(copy)]
        self.assertEqual((packed["bytes"], packed["outdated"]), (copy.stat().st_size, False))
        self.run_here("cache", "--remove", "outdated")
        self.assertTrue(copy.exists())
        os.utime(model, ns=(1, 1))
        self.run_here("cache", "--remove", "outdated")
        self.assertFalse(copy.exists())
        self.run_here(*streamed)
        self.assertIn("removed", self.run_here("cache", "--remove", "packed").stdout)
        self.assertEqual(list((self.cache / "packed").iterdir()), [])
        self.assertTrue((self.cache / "machine.json").exists())
        self.run_here("cache", "--remove", "all")
        self.assertEqual(list(self.cache.iterdir()), [])
        self.assertEqual(run("cache", "--remove", "some").returncode, USAGE)


if __name__ == "__main__":
    unittest.main()
