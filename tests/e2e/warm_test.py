#!/usr/bin/env python3
"""Warm sets from the outside: kept by model and task, restored at the start, harmless when damaged, unwritable or wrong; the ids never depend on them."""
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time
import unittest

from program import DONE, NO_FIT, TINY, USAGE, measured_cache, program_path

PROMPT = "Write every word with a capital letter: the warm zebra in the village"
# Half of the experts (8 layers of 16) in slots. No guesses: then a hit is an expert that was there before.
STREAMED = ("-m", TINY, "--cpu-only", "--experts", "streamed", "--expert-slots", 64, "--expert-guess", "off")


class Warm(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.cache = pathlib.Path(folder.name)
        measured_cache(self.cache)
        self.sets = self.cache / "forethought/warm"

    def program(self, *args, stdin=""):
        return subprocess.run([program_path(), *map(str, args)], input=stdin, capture_output=True, text=True, timeout=120,
                              env={**os.environ, "XDG_CACHE_HOME": str(self.cache)})

    def answer(self, *options, code=DONE):
        """(object that `run --json` printed, standard error)."""
        done = self.program("run", *STREAMED, "-p", PROMPT, "-n", 8, "--json", "-v", *options)
        self.assertEqual(done.returncode, code, done.stderr)
        return (json.loads(done.stdout) if code == DONE else None), done.stderr

    def names(self):
        return sorted(p.name for p in self.sets.iterdir()) if self.sets.exists() else []

    def test_second_run_begins_warm(self):
        cold, said = self.answer()
        self.assertIn("warm set: none yet", said)
        self.assertEqual(len(self.names()), 1)
        self.assertRegex(self.names()[0], r"^[0-9a-f]{16}\.warm$")
        warm, said = self.answer()
        self.assertRegex(said, r"warm set: 64 experts read in [\d.]+ s")
        rates = [answer["stats"]["prompt_io"]["hits"] / answer["stats"]["prompt_io"]["requested"] for answer in (cold, warm)]
        print(f"prompt hit rate: cold {rates[0]:.2f}, warm {rates[1]:.2f}")
        self.assertEqual(cold["ids"], warm["ids"])
        self.assertEqual(rates[0], 0, "each of a layer's experts is asked for once in a prompt")
        self.assertGreater(rates[1], 0.3)
        off, said = self.answer("--warm-set", "off")
        self.assertNotIn("warm set", said)
        self.assertEqual(off["stats"]["prompt_io"], {**off["stats"]["prompt_io"], "hits": 0})

    def test_tasks_have_their_own(self):
        self.answer()
        general = self.names()
        _, said = self.answer("--task", "mail")
        self.assertIn("general set: task mail has none yet", said)
        self.assertEqual(len(self.names()), 2)
        self.assertIn(general[0].replace(".warm", ".mail.warm"), self.names())
        before = (self.sets / general[0]).read_bytes()
        _, said = self.answer("--task", "mail")
        self.assertIn(".mail.warm", said)
        self.answer("--task", "code-2")
        self.assertEqual(len(self.names()), 3)
        self.assertEqual((self.sets / general[0]).read_bytes(), before, "a task's run leaves the general set alone")

    def test_damaged_is_said_and_ignored(self):
        cold, _ = self.answer()
        path = self.sets / self.names()[0]
        content = bytearray(path.read_bytes())
        for damage in (content[:-9], b"", content[:40] + b"9" + content[41:], os.urandom(3000)):
            path.write_bytes(damage)
            again, said = self.answer()
            self.assertIn("warm set not used", said)
            self.assertEqual(again["ids"], cold["ids"])
            self.assertEqual(again["stats"]["prompt_io"]["hits"], 0)
            self.assertRegex(self.answer()[1], r"64 experts read", "the run wrote a sound one")

    def test_unwritable_cache_is_a_note(self):
        self.sets.parent.mkdir(parents=True, exist_ok=True)
        self.sets.write_text("a file where the folder should be")
        answer, said = self.answer()
        self.assertIn("note: warm set not kept", said)
        self.assertTrue(answer["ids"])

    def test_a_file_of_ones_own(self):
        path = self.cache / "mine.warm"
        self.answer("--warm-set", path)
        self.assertTrue(path.exists())
        self.assertEqual(self.names(), [])
        self.assertIn(str(path), self.answer("--warm-set", path)[1])

    def test_pins(self):
        cold, said = self.answer("--pin-experts", 8)
        self.assertIn("0 experts pinned of the 8", said)
        pinned, said = self.answer("--pin-experts", 60)
        self.assertNotIn("experts pinned of", said)
        self.assertEqual(pinned["ids"], cold["ids"])
        _, said = self.answer("--pin-experts", 61, code=NO_FIT)
        self.assertRegex(said, r"61 of 64 expert slots would be pinned, and 4 \(top_k\) have to be left")

    def test_interrupted_runs_keep_theirs(self):
        self.answer()
        path = self.sets / self.names()[0]
        before = path.read_bytes()
        child = subprocess.Popen([program_path(), "run", *map(str, STREAMED), "-p", PROMPT, "--ignore-end", "-c", "16384",
                                  "--override", "context_length=16384"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                 env={**os.environ, "XDG_CACHE_HOME": str(self.cache)})
        child.stdout.read(200)  # it is decoding
        child.send_signal(signal.SIGINT)
        begin = time.monotonic()
        child.communicate(timeout=60)
        self.assertEqual(child.returncode, 130)
        self.assertLess(time.monotonic() - begin, 30)
        self.assertNotEqual(path.read_bytes(), before)
        self.assertRegex(self.answer()[1], r"64 experts read", "a whole file")
        self.assertEqual(len(self.names()), 1, "and nothing beside it")

    def test_chat_and_bench(self):
        done = self.program("chat", *STREAMED, "-n", 4, stdin=PROMPT + "\n")
        self.assertEqual(done.returncode, DONE, done.stderr)
        self.assertEqual(len(self.names()), 1)
        before = (self.sets / self.names()[0]).read_bytes()
        bench = ("bench", *STREAMED, "--pp", 16, "--tg", 4, "-r", 1, "-v")
        self.assertNotIn("warm set", self.program(*bench).stderr)
        self.assertEqual((self.sets / self.names()[0]).read_bytes(), before, "random tokens do not touch a set unless asked to")
        self.assertRegex(self.program(*bench, "--warm-set", "auto").stderr, r"64 experts read")

    def test_usage(self):
        for options in (("--task", "Mail"), ("--task", "../x"), ("--task", "a" * 65), ("--pin-experts", -1),
                        ("--warm-set", "off", "--pin-experts", 1), ("--warm-set", "off", "--task", "mail"), ("--warm-set", "x.warm", "--task", "mail")):
            done = self.program("run", *STREAMED, "-p", "x", *options)
            self.assertEqual((done.returncode, done.stdout), (USAGE, ""), f"{options}: {done.stderr}")
        resident = self.program("run", "-m", TINY, "-p", PROMPT, "-n", 2, "--task", "mail", "-v")
        self.assertEqual(resident.returncode, DONE)
        self.assertIn("all experts are resident", resident.stderr)
        self.assertEqual(self.names(), [])


if __name__ == "__main__":
    unittest.main(verbosity=2)
