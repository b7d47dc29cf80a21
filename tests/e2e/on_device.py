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

    def test_same_text(self):
        wanted, _ = text_on("--cpu-only")
        self.assertTrue(all(len(text) > 5 for text in wanted), wanted)
        for device in self.devices():
            got, report = text_on("--plugin", self.plugin, "--device", device)
            self.assertEqual(got, wanted, device)
            self.assertIn(f"{device}  attention", report)
            self.assertIn(f"{device}  head", report)

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
