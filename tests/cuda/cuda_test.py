#!/usr/bin/env python3
"""The program with its attention and head on a CUDA device: the same text as on the CPU, and the reference's logits.

    cuda_test.py Emulated     the backend over the emulated device: its kernels as loops of the host
    cuda_test.py RealDevice   on every GPU; skipped where there is none
"""
import os
import pathlib
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from on_device import PROMPTS, OnDevice, devices_of, text_on  # noqa: E402
from program import ROOT, must_json, run, skip  # noqa: E402

PLUGIN = os.environ.get("FTH_CUDA_PLUGIN", ROOT / "build/release/plugins/libfth_cuda.so")
CASES = ("tests/conformance/cases", "tests/opencl/cases", "tests/cuda/cases")


def cuda_devices():
    return devices_of("cuda", PLUGIN)


class Emulated(OnDevice, unittest.TestCase):
    plugin = PLUGIN

    def devices(self):
        return ["cuda:0"]

    def test_listed_and_not_chosen(self):
        for device in cuda_devices():
            self.assertTrue(device["software"])
            self.assertIn("listed, not chosen", device["refusal"])
        self.assertNotIn("cuda", run("run", "--plugin", PLUGIN, "-p", PROMPTS[0]).stderr)

    def test_two_devices(self):
        self.assertEqual([d["name"] for d in cuda_devices()], ["cuda:0", "cuda:1"])
        got, report = text_on("--plugin", PLUGIN, "--place", "layer.*.attention=cuda:1", "--place", "head=cuda:0")
        self.assertEqual(got, text_on("--cpu-only")[0])
        self.assertIn("cuda:1  attention", report)
        self.assertIn("cuda:0  head", report)

    @unittest.skipUnless(os.environ.get("FTH_CUDA_REAL_PLUGIN"), "the real plugin was not built")
    def test_no_driver(self):
        report = must_json("devices", "--json", "--plugin", os.environ["FTH_CUDA_REAL_PLUGIN"])
        if any(d["backend"] == "cuda" for d in report["devices"]):
            self.skipTest("there is a GPU")
        backend, = [b for b in report["backends"] if b["name"] == "cuda"]
        self.assertTrue(backend["loaded"])
        self.assertIn("driver version is insufficient", backend["reason"])


class RealDevice(OnDevice, unittest.TestCase):
    plugin = PLUGIN

    def devices(self):
        return [d["name"] for d in cuda_devices()]

    def test_conformance(self):
        for device in self.devices():
            for cases in CASES:
                done = subprocess.run([os.environ["FTH_CONFORMANCE"], "--backend", PLUGIN, "--device", device.split(":")[1], "--cases", ROOT / cases,
                                       "--expect", ROOT / "backends/cuda/conformance.txt"], capture_output=True, text=True, timeout=600)
                self.assertEqual(done.returncode, 0, f"{device} {cases}: {done.stdout[-3000:]}{done.stderr[-1000:]}")
                print(done.stdout.strip())


if __name__ == "__main__":
    seen = cuda_devices() if pathlib.Path(PLUGIN).exists() else []
    if sys.argv[1] == "Emulated" and any(not d["software"] for d in seen):
        skip("there is a GPU: its names are the emulated devices' too")
    if sys.argv[1] == "RealDevice" and not seen:
        skip("no GPU with a CUDA driver")
    unittest.main(verbosity=2)
