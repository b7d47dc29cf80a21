#!/usr/bin/env python3
"""forethought pack from the outside: killed with SIGKILL and continued, refused with the right exit code, read by another GGUF reader, verified."""
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import program
from program import BAD_MODEL, DONE, FAILED, TINY, USAGE, must, must_json, run

GENERATOR = program.ROOT / "tools/synthetic/make_gguf.py"


def make_model(path):
    """150 MB in 14 layers: long enough to be killed in the middle."""
    arguments = "--preset mini --type Q4_0 --set n_layer=14 --set n_expert=8 --set n_vocab=512"
    subprocess.run([sys.executable, GENERATOR, *arguments.split(), "--out", path], check=True, stderr=subprocess.DEVNULL)


def finished_layers(state):
    try:
        return state.read_bytes().count(b"\nlayer ")
    except FileNotFoundError:
        return 0


class Pack(unittest.TestCase):
    @classmethod
    def long_model(cls):
        """Made once; packing only reads it."""
        if not hasattr(cls, "made"):
            cls.made = tempfile.TemporaryDirectory(dir=program.models_folder() if program.models_folder().exists() else None)
            cls.addClassCleanup(cls.made.cleanup)
            make_model(pathlib.Path(cls.made.name) / "in.gguf")
        return pathlib.Path(cls.made.name) / "in.gguf"

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(dir=program.models_folder() if program.models_folder().exists() else None)
        self.addCleanup(self.folder.cleanup)
        self.path = pathlib.Path(self.folder.name)

    def refused(self, code, *args, says):
        done = run("pack", *args)
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertEqual(done.stdout, "")
        self.assertIn(says, done.stderr)

    def test_killed_and_continued(self):
        model, whole, out = self.long_model(), self.path / "whole.gguf", self.path / "out.gguf"
        part, state = self.path / "out.gguf.part", self.path / "out.gguf.part.state"
        report = must_json("pack", model, whole, "--json")
        self.assertEqual((report["layers"], report["experts_per_layer"], report["down"]), (14, 8, ["neuron_major"] * 14))
        self.assertEqual(report["gate"], ["interleaved"] * 14)
        self.assertEqual(report["bytes_out"], whole.stat().st_size)

        kills, layers = 0, 0
        for _ in range(12):
            process = subprocess.Popen([program.program_path(), "pack", model, out, "-q"])
            while process.poll() is None and finished_layers(state) < layers + 3:
                time.sleep(0.0005)
            process.send_signal(signal.SIGKILL)
            if process.wait() != -signal.SIGKILL:
                break  # it was done first
            kills += 1
            self.assertFalse(out.exists(), "an unfinished output has another name")
            self.assertTrue(part.exists())
            layers = finished_layers(state)
            if layers > 9:
                break
        self.assertGreaterEqual(kills, 1, "never killed in the middle")
        self.assertGreater(layers, 0)
        if not out.exists():
            done = run("pack", model, out)
            self.assertEqual(done.returncode, DONE, done.stderr)
            self.assertIn("continues an unfinished pack", done.stderr)
            self.assertIn(f"{layers} layers done earlier", done.stdout)
        print(f"killed {kills} times, {layers} layers kept at the end")
        self.assertEqual(out.read_bytes(), whole.read_bytes())
        self.assertFalse(part.exists() or state.exists())

    def test_interrupt_is_said(self):
        model, out = self.long_model(), self.path / "out.gguf"
        process = subprocess.Popen([program.program_path(), "pack", model, out], stderr=subprocess.PIPE, text=True)
        while process.poll() is None and finished_layers(self.path / "out.gguf.part.state") < 1:
            time.sleep(0.0005)
        process.send_signal(signal.SIGINT)
        said = process.communicate()[1]
        if process.returncode != DONE:  # it may have been done first
            self.assertEqual(process.returncode, 130, said)
            self.assertRegex(said, r"interrupted with \d+ layers done; the same command continues")

    def test_refusals(self):
        out = self.path / "out.gguf"
        self.refused(USAGE, TINY, says="name two files")
        self.refused(USAGE, TINY, out, "--down", "sideways", says="sideways")
        self.refused(USAGE, TINY, out, "--gate", "sideways", says="sideways")
        self.refused(USAGE, TINY, TINY, "--force", says="over the input")
        self.refused(BAD_MODEL, self.path / "missing.gguf", out, says="missing.gguf")
        out.write_bytes(b"mine")
        self.refused(FAILED, TINY, out, says="--force")
        self.assertEqual(out.read_bytes(), b"mine")
        must("pack", TINY, out, "--force")
        self.refused(USAGE, out, self.path / "again.gguf", says="packed already")
        self.assertEqual([p.name for p in self.path.iterdir()], ["out.gguf"])

    def test_another_reader(self):
        import gguf
        out = self.path / "out.gguf"
        must("pack", TINY, out)
        before, after = gguf.GGUFReader(TINY), gguf.GGUFReader(out)
        for name, field in before.fields.items():
            if name.startswith("GGUF.") or name == "general.alignment":
                continue
            self.assertEqual(field.contents(), after.fields[name].contents(), name)
        self.assertEqual(after.fields["general.alignment"].contents(), 4096)
        dense = {t.name: t for t in after.tensors}
        for tensor in before.tensors:
            if tensor.name.endswith("_exps.weight"):
                self.assertNotIn(tensor.name, dense)
            else:
                self.assertEqual(bytes(tensor.data.tobytes()), bytes(dense[tensor.name].data.tobytes()), tensor.name)
        slabs = [t for t in after.tensors if t.name.endswith("ffn_experts.slab")]
        self.assertEqual(len(slabs), before.fields["smallthinker.block_count"].contents())
        for slab in slabs:
            self.assertEqual(slab.data_offset % 4096, 0)
            self.assertEqual(slab.shape[0] * 4 % 4096, 0)
        self.assertEqual([t.name for t in after.tensors][-len(slabs):], [t.name for t in slabs])

    def test_inspect_and_verify(self):
        out = self.path / "out.gguf"
        must("pack", TINY, out)
        self.assertRegex(must("inspect", out), r"packed: \d+ layers of \d+ slabs of [\d.]+ KiB, [\d.]+ % padding, down neuron_major, gate interleaved, version 2")
        described = must_json("inspect", out, "--json")
        self.assertIn("slab_bytes", described["packed"])
        self.assertEqual((described["packed"]["version"], set(described["packed"]["gate"])), (2, {"interleaved"}))
        rows, again = self.path / "rows.gguf", self.path / "again.gguf"
        must("pack", out, rows, "--gate", "row_major")
        self.assertIn("gate row_major", must("inspect", rows))
        must("pack", rows, again)
        self.assertEqual(again.read_bytes(), out.read_bytes())
        self.assertIn("as they were packed", must("inspect", out, "--verify"))
        self.assertEqual(must_json("inspect", out, "--verify", "--json")["damaged"], [])
        data = bytearray(out.read_bytes())
        slab, n_expert = described["packed"]["slab_bytes"], described["experts"]["per_layer"]
        at = next(t["offset"] for t in described["tensors"] if t["name"] == "blk.2.ffn_experts.slab") + (n_expert - 1) * slab + 7
        data[at] ^= 4
        out.write_bytes(data)
        done = run("inspect", out, "--verify")
        self.assertEqual(done.returncode, BAD_MODEL, done.stderr)
        self.assertIn(f"damaged: layer 2, expert {n_expert - 1}", done.stdout)
        self.assertIn(f"layer 2, expert {n_expert - 1}", done.stderr)
        self.assertEqual(run("inspect", TINY, "--verify").returncode, USAGE)


if __name__ == "__main__":
    unittest.main(verbosity=2)
