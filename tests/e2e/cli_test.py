#!/usr/bin/env python3
"""What the command line promises to scripts: exit codes, nothing but the answer on standard output, JSON that parses, messages that name things."""
import json
import pathlib
import subprocess
import tempfile
import unittest

import program
from program import BAD_MODEL, DONE, FAILED, NO_FIT, TINY, USAGE, must, must_json, program_path, run

PROMPT, ANSWER = "What is 38 + 47?", "8 + 7 = 15, 3 + 4 + 1 = 8, so 38 + 47 = 85"
GREEDY = ("--temp", 0, "-n", 64, "--cpu-only")  # the other runs look for devices
COMMANDS = ("run", "chat", "bench", "profile", "plan", "devices", "inspect", "pack", "doctor", "logits", "perplexity")


class ExitCodes(unittest.TestCase):
    def fails(self, code, *args, says=(), stdin=""):
        done = run(*args, stdin=stdin)
        self.assertEqual(done.returncode, code, f"{args}: {done.stderr[-500:]}")
        self.assertEqual(done.stdout, "", "standard output of a failed run")
        self.assertTrue(done.stderr.strip(), "a failure says something")
        for word in says:
            self.assertIn(word, done.stderr)
        return done.stderr

    def test_usage(self):
        self.fails(USAGE, "run", "--no-such-option")
        self.fails(USAGE, "no-such-command")
        self.fails(USAGE, "run", "-m", TINY, "-p", "x", "-n", "many")
        self.fails(USAGE, "run", "-m", TINY, "-p", "x", "--kv-type", "q9")
        self.fails(USAGE, "run", "-m", TINY, "-p", "x", "--ram", "lots")

    def test_missing_file(self):
        done = run("run", "-m", "/nonexistent/model.gguf", "-p", "x")
        self.assertIn(done.returncode, (FAILED, USAGE, BAD_MODEL))
        self.assertIn("/nonexistent/model.gguf", done.stderr)

    def test_the_bundled_model_has_a_name(self):
        with tempfile.TemporaryDirectory() as folder:
            named = subprocess.run([program_path(), "inspect", "-m", "tiny", "--json"], cwd=folder, capture_output=True, text=True, timeout=60)
            self.assertEqual(named.returncode, DONE, named.stderr)
            self.assertEqual(json.loads(named.stdout)["metadata"], must_json("inspect", "--json")["metadata"])
            (pathlib.Path(folder) / "tiny").write_text("a file of that name is that file")
            other = subprocess.run([program_path(), "inspect", "-m", "tiny"], cwd=folder, capture_output=True, text=True, timeout=60)
            self.assertEqual(other.returncode, BAD_MODEL, other.stdout)

    def test_bad_model(self):
        whole = TINY.read_bytes()
        broken = {"empty": b"", "text": b"hello\n" * 100, "magic": b"GGUX" + whole[4:4096], "header": whole[:2000], "version": whole[:4] + b"\x63" + whole[5:],
                  "counts": whole[:8] + b"\xff" * 16 + whole[24:4096], "cut": whole[:len(whole) // 2]}
        with tempfile.TemporaryDirectory() as folder:
            for name, content in broken.items():
                path = pathlib.Path(folder) / f"{name}.gguf"
                path.write_bytes(content)
                self.fails(BAD_MODEL, "run", "-m", path, "-p", "x", says=(f"{name}.gguf",))

    def test_budget(self):
        said = self.fails(NO_FIT, "run", "-m", TINY, "-p", "x", "--ram", "1MiB")
        self.assertRegex(said, r"(?i)\d.*\b[KMG]i?B")  # how much it needs

    def test_unknown_device_names_those_that_exist(self):
        done = run("run", "-m", TINY, "-p", "x", "--device", "warp:9")
        self.assertNotEqual(done.returncode, DONE)
        self.assertIn("warp:9", done.stderr)
        self.assertIn("cpu", done.stderr)

    def test_unknown_instruction_set(self):
        done = run("run", "-m", TINY, "-p", "x", "--cpu-isa", "mmx")
        self.assertNotEqual(done.returncode, DONE)
        self.assertIn("generic", done.stderr)

    def test_token_outside_the_vocabulary(self):
        with tempfile.TemporaryDirectory() as folder:
            ids = pathlib.Path(folder) / "ids.txt"
            ids.write_text("1 2 999999\n")
            done = run("run", "-m", TINY, "--tokens", ids, "-n", 4)
            self.assertNotEqual(done.returncode, DONE)
            self.assertIn("999999", done.stderr)
            ids.write_text("no numbers\n")
            self.assertEqual(run("run", "-m", TINY, "--tokens", ids, "-n", 4).returncode, USAGE)

    def test_missing_gating_names_the_override(self):
        path = program.models_folder() / "tiny-nogating-F32.gguf"
        if not path.exists():
            self.skipTest("synthetic models are not made")
        done = run("run", "-m", path, "-p", "x")
        self.assertIn(done.returncode, (FAILED, BAD_MODEL))
        self.assertIn("--override expert_gating_func=sigmoid", done.stderr)
        must("run", "-m", path, "-p", "x", "-n", 1, "--override", "expert_gating_func=sigmoid")


class Output(unittest.TestCase):
    def test_answer_alone(self):
        done = run("run", "-m", TINY, "-p", PROMPT, *GREEDY)
        self.assertEqual(done.returncode, DONE, done.stderr)
        self.assertEqual(done.stdout.strip(), ANSWER)
        self.assertTrue(done.stderr.strip(), "what ran where goes to standard error")

    def test_quiet(self):
        done = run("run", "-m", TINY, "-p", PROMPT, *GREEDY, "-q")
        self.assertEqual((done.stdout.strip(), done.stderr), (ANSWER, ""))

    def test_prompt_from_standard_input_and_file(self):
        self.assertEqual(must("run", "-m", TINY, *GREEDY, stdin=PROMPT + "\n").strip(), ANSWER)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "prompt.txt"
            path.write_text(PROMPT + "\n")
            self.assertEqual(must("run", "-m", TINY, *GREEDY, "-f", path).strip(), ANSWER)

    def test_json(self):
        answer = must_json("run", "-m", TINY, "-p", PROMPT, *GREEDY, "--json")
        self.assertIn(ANSWER, json.dumps(answer))
        for command in (("devices",), ("plan", "-m", TINY), ("inspect", "-m", TINY)):
            self.assertIsInstance(must_json(*command, "--json"), dict, command)

    def test_same_text_every_time(self):
        first = must("run", "-m", TINY, "-p", PROMPT, "-n", 32, "--temp", 0.8, "--seed", 7, "-q")
        self.assertEqual(first, must("run", "-m", TINY, "-p", PROMPT, "-n", 32, "--temp", 0.8, "--seed", 7, "-q"))

    def test_help(self):
        listed = must("--help")
        for command in COMMANDS:
            self.assertIn(command, listed)
            text = must(command, "--help")
            self.assertIn("--help", text)
        self.assertRegex(must("--version"), r"\d+\.\d+\.\d+")

    def test_perplexity(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "text.txt"
            path.write_text("<|im_start|>user\nWhat is 38 + 47?<|im_end|>\n<|im_start|>assistant\n" + ANSWER + "<|im_end|>\n")
            seen = must_json("perplexity", "-m", TINY, "-f", path, "--json")["perplexity"]
            path.write_text("".join(chr(97 + i * 7 % 26) for i in range(200)))
            noise = must_json("perplexity", "-m", TINY, "-f", path, "--json")["perplexity"]
        print(f"perplexity: a text it knows {seen:.2f}, letters without sense {noise:.0f}")
        self.assertLess(seen, 30)
        self.assertGreater(noise, 3 * seen)

    def test_perplexity_is_that_of_the_logits(self):
        """Windows, likelihoods and their error by numpy, from what `logits` gives for the ids that another tokenizer made of the text."""
        import numpy as np
        known = json.loads((program.REFERENCE / "tiny_smallthinker/arithmetic.json").read_text())
        ids, ctx = known["prompt_ids"] + known["reply_ids"], 20
        nll = []
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "ids.txt"
            for begin in range(0, len(ids), ctx):
                window = ids[begin:begin + ctx]
                path.write_text(" ".join(map(str, window)))
                p = program.log_softmax(program.logits(TINY, path))
                nll += list(-p[np.arange(len(window) - 1), window[1:]])
        self.assertEqual(len(nll), len(ids) - 3)  # 48 ids in windows of 20, 20 and 8: the first of each is not scored
        ours = must_json("perplexity", "-m", TINY, "-p", known["text"] + known["reply"], "--ctx", ctx, "--cpu-only", "--json")
        self.assertEqual([ours[k] for k in ("n_ctx", "tokens", "scored", "windows")], [ctx, len(ids), len(nll), 3])
        self.assertAlmostEqual(ours["nll"], np.mean(nll), delta=1e-5)
        self.assertAlmostEqual(ours["perplexity"], np.exp(np.mean(nll)), delta=1e-5 * ours["perplexity"])
        self.assertAlmostEqual(ours["error"], ours["perplexity"] * np.std(nll, ddof=1) / np.sqrt(len(nll)), delta=1e-4 * ours["error"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
