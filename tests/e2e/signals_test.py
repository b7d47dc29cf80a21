#!/usr/bin/env python3
"""What ends the program from outside while it works: SIGTERM and SIGHUP end it as orderly as Ctrl-C, with what it keeps written; a model file that is cut
while it is mapped ends it with a message and an exit code, never with a crash."""
import os
import pathlib
import pty
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

from program import BAD_MODEL, DONE, TINY, measured_cache, program_path

PROMPT = "Write every word with a capital letter: the warm zebra in the village"
STREAMED = ("-m", TINY, "--cpu-only", "--experts", "streamed", "--expert-slots", 64)
ENDLESS = ("-p", PROMPT, "--ignore-end", "-c", 16384, "--override", "context_length=16384")


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = pathlib.Path(folder.name)
        measured_cache(self.path)
        self.environment = {**os.environ, "XDG_CACHE_HOME": folder.name, "XDG_STATE_HOME": folder.name}

    def start(self, *args, **more):
        child = subprocess.Popen([program_path(), *map(str, args)], **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more},
                                 env=self.environment)
        self.addCleanup(child.kill)
        return child

    def warm_sets(self):
        return [path.name for path in (self.path / "forethought/warm").glob("*")]


class Ends(Case):
    def ends(self, sent, code, times=1):
        child = self.start("run", *STREAMED, *ENDLESS)
        child.stdout.read(100)  # it is decoding
        for _ in range(times):
            child.send_signal(sent)
        said = child.communicate(timeout=60)[1]
        self.assertEqual(child.returncode, code, said)
        self.assertEqual(len(self.warm_sets()), 1, "the warm set and nothing beside it")
        self.assertIn(b"decode", said, "the figures of a run that was ended")

    def test_sigterm(self):
        self.ends(signal.SIGTERM, 143)

    def test_sighup_may_come_twice(self):
        self.ends(signal.SIGHUP, 129, times=2)  # from the terminal that closes, and from its shell

    def test_a_second_sigterm_is_final(self):
        child = self.start("run", *STREAMED, *ENDLESS)
        child.stdout.read(100)
        os.kill(child.pid, signal.SIGSTOP)  # both are there before it can look
        child.send_signal(signal.SIGTERM)
        os.kill(child.pid, signal.SIGCONT)
        try:
            while child.poll() is None:
                child.send_signal(signal.SIGTERM)
        finally:
            child.communicate(timeout=60)
        self.assertIn(child.returncode, (143, -signal.SIGTERM))

    def test_nohup(self):
        child = self.start("run", *STREAMED, *ENDLESS, "-n", 300, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
        child.stdout.read(100)
        child.send_signal(signal.SIGHUP)
        self.assertEqual((child.communicate(timeout=120), child.returncode)[1], DONE)

    def test_chat_that_waits_for_a_line(self):
        for sent, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
            child = self.start("chat", *STREAMED, "-n", 4, stdin=subprocess.PIPE)
            child.stdin.write(PROMPT.encode() + b"\nthe next li")
            child.stdin.flush()
            self.assertTrue(child.stdout.readline(), "no answer")
            child.send_signal(sent)
            child.wait(timeout=60)  # its standard input stays open
            self.assertEqual(child.returncode, code, child.stderr.read())
            child.communicate()
            self.assertEqual(len(self.warm_sets()), 1)

    def test_chat_reads_the_last_line_without_its_end(self):
        child = self.start("chat", *STREAMED, "-n", 4, "-q", stdin=subprocess.PIPE)
        out, said = child.communicate(b"Hello\n\n" + b"x " * 5000 + b"\n/clear\nWhat is 38 + 47?", timeout=60)
        self.assertEqual(child.returncode, DONE, said)
        self.assertEqual(len(out.splitlines()), 2, "an answer to the first line and the last; the long one is beyond the context")
        self.assertIn(b"the context", said)

    def test_chat_at_a_terminal(self):
        ours, theirs = pty.openpty()
        self.addCleanup(os.close, ours)
        child = self.start("chat", *STREAMED, "-n", 4, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
        os.close(theirs)
        shown = b""

        def until(word):
            nonlocal shown
            end = time.monotonic() + 60
            while word not in shown:
                self.assertLess(time.monotonic(), end, shown)
                shown += os.read(ours, 4096)
            shown = shown[shown.index(word) + len(word):]
        until(b"> ")
        os.write(ours, b"What is 38 + 47?\n")
        until(b"47?")
        until(b"> ")
        os.write(ours, b"/stats\n")
        until(b"prompt")
        until(b"> ")
        os.write(ours, b"half a li")
        until(b"half a li")
        child.send_signal(signal.SIGTERM)
        self.assertEqual(child.wait(timeout=60), 143)
        self.assertEqual(len(self.warm_sets()), 1)
        self.assertIn("What is 38", (self.path / "forethought/history").read_text().replace("\\040", " "))


class Cut(Case):
    def test_a_model_that_is_cut_while_it_is_in_use(self):
        for kept in (1 << 20, 0):
            model = self.path / "cut here.gguf"
            shutil.copy(TINY, model)
            whole = model.stat().st_size
            child = self.start("run", "-m", model, "--cpu-only", *ENDLESS)
            child.stdout.read(100)
            os.truncate(model, kept)
            said = child.communicate(timeout=60)[1].decode()
            self.assertEqual(child.returncode, BAD_MODEL, said)
            mapped = -(-whole // os.sysconf("SC_PAGESIZE")) * os.sysconf("SC_PAGESIZE")
            self.assertIn(f"forethought: {model}: was cut while it was in use: {kept} bytes now, {mapped} when it was mapped", said)
            self.assertIn("put the whole file back", said)
            self.assertEqual(said.count("was cut"), 1, "one thread says it")

    def test_a_model_that_is_replaced_by_renaming_stays_whole(self):
        model, other = self.path / "model.gguf", self.path / "other.gguf"
        shutil.copy(TINY, model)
        other.write_bytes(b"another file")
        child = self.start("run", "-m", model, "--cpu-only", *ENDLESS, "-n", 300)
        child.stdout.read(100)
        other.rename(model)
        said = child.communicate(timeout=120)[1]
        self.assertEqual(child.returncode, DONE, said)

    def test_a_signal_that_somebody_sends_is_no_cut(self):
        child = self.start("run", "-m", TINY, "--cpu-only", *ENDLESS)
        child.stdout.read(100)
        child.send_signal(signal.SIGBUS)
        said = child.communicate(timeout=60)[1]
        self.assertEqual(child.returncode, -signal.SIGBUS)
        self.assertNotIn(b"was cut", said)


if __name__ == "__main__":
    unittest.main(verbosity=2)
