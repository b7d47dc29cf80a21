"""What holds of every device that runs attention and heads beside the cpu: the same text, the reference's logits. For vulkan_test.py, opencl_test.py,
openvino_test.py and cuda_test.py.

`with_venv.sh` runs their files from other folders; they put this one on the path.
"""
import pathlib
import tempfile

import numpy as np

from program import REFERENCE, models_folder, must, must_json, run

LOGITS = REFERENCE / "logits"
PROMPTS = ("Translate to German: The old teacher buys a red car.", "Translate to German: The small child sees a green house.",
           "Write a sentence: the dog and the big tree")


def devices_of(backend, plugin):
    found = must_json("devices", "--json", "--plugin", plugin)["devices"]
    return [d for d in found if d["backend"] == backend]


def text_on(*where):
    """What the tiny model writes, prompt by prompt, and the reports of the runs."""
    done = [run("run", *where, "-p", prompt) for prompt in PROMPTS]
    for d in done:
        if d.returncode != 0:
            raise AssertionError(d.stderr[-2000:])
    return [d.stdout for d in done], "".join(d.stderr for d in done)


def logits_on(plugin, device, model, *options):
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "out.npy"
        must("logits", "-m", models_folder() / f"{model}.gguf", "--tokens", LOGITS / "tokens-tiny-64.txt", "--out", out, "--plugin", plugin,
             "--device", device, "--kv-type", "f32", *options)
        return np.load(out)


class OnDevice:
    """Each test on each of self.devices(). A subclass has `plugin`, the path of the backend's file."""
    same_bits = True         # whatever the pieces of a prompt
    logits_tolerance = 2e-4  # as on the CPU: sums in another order
    has_clock = True         # device_seconds of its runs
    long_prompt = 40         # tokens; above 512, buckets of every size and more than one step

    def test_same_text(self):
        wanted, _ = text_on("--cpu-only")
        self.assertTrue(all(len(text) > 5 for text in wanted), wanted)
        for device in self.devices():
            got, report = text_on("--plugin", self.plugin, "--device", device)
            self.assertEqual(got, wanted, device)
            self.assertIn(f"{device}  attention", report)
            self.assertIn(f"{device}  head", report)

    def test_profile_by_the_devices_own_clock(self):
        for device in self.devices():
            profile = must_json("profile", "--plugin", self.plugin, "--device", device, "--pp", 8, "--tg", 2, "-r", 1, "--seconds", 4, "--json", timeout=600)
            column = next(c for c in profile["columns"] if c["name"] == device)
            rows = [r for r in column["segments"] if r["device"] == device]
            self.assertEqual({r["segment"] for r in rows}, {"attention", "head"})
            for row in rows:
                self.assertEqual("device_p50_s" in row, self.has_clock, row)
                if self.has_clock:
                    self.assertGreater(row["device_p50_s"], 0)
                    self.assertLessEqual(row["device_p50_s"], row["p50_s"], row)

    def test_a_prompt_longer_than_a_bucket(self):
        """Split, never cut: the last token's logits rest on every one before it."""
        ids = (LOGITS / "tokens-tiny-64.txt").read_text().split()
        with tempfile.TemporaryDirectory() as folder:
            tokens = pathlib.Path(folder) / "tokens.txt"
            tokens.write_text(" ".join((ids * (self.long_prompt // len(ids) + 1))[:self.long_prompt]))

            def last(*where):
                out = pathlib.Path(folder) / "out.npy"
                must("logits", "-m", models_folder() / "tiny-F32.gguf", "--tokens", tokens, "--out", out, "--last", 3, "--kv-type", "f32", *where, timeout=600)
                return np.load(out)

            wanted = last("--cpu-only")
            for device in self.devices():
                for options in ((), ("--ubatch", "30")):
                    self.assertLessEqual(float(np.abs(last("--plugin", self.plugin, "--device", device, *options) - wanted).max()), self.logits_tolerance)

    def test_mixed_placements(self):
        wanted, _ = text_on("--cpu-only")
        for device in self.devices():
            for there, here in (("layer.*.attention", "head"), ("head", "layer.*.attention"), ("layer.2.attention", "head")):
                got, report = text_on("--plugin", self.plugin, "--place", f"{there}={device}", "--place", f"{here}=cpu")
                self.assertEqual(got, wanted, f"{there} on {device}")
                self.assertIn(f"{device}  {there.split('.')[-1]}", report)
                self.assertNotIn(f"{device}  {here.split('.')[-1]}", report)

    def test_reference_logits(self):
        for device in self.devices():
            for model in ("tiny-F32", "tiny-rope-F32"):
                wanted = np.load(LOGITS / f"{model}.plain.logits.npy")
                first = None
                for options in ((), ("--ubatch", "7"), ("--ubatch", "1")):
                    ours = logits_on(self.plugin, device, model, *options)
                    worst = float(np.abs(ours - wanted).max())
                    print(f"{device} {model} {options}: max difference {worst:.2g}")
                    self.assertLessEqual(worst, self.logits_tolerance)
                    first = ours if first is None else first
                    if self.same_bits:
                        self.assertTrue(np.array_equal(ours, first), "a prompt in pieces changes bits")
