#!/usr/bin/env python3
"""The program with its attention and head on an OpenCL device: the same text as on the CPU, and the reference's logits.

    opencl_test.py PoCL         on the CPU through PoCL, which CTest names as the only driver
    opencl_test.py RealDevice   on every device that is not software; skipped where there is none
"""
import os
import pathlib
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from on_device import PROMPTS, OnDevice, devices_of, text_on  # noqa: E402
from program import ROOT, must_json, run, skip  # noqa: E402

PLUGIN = os.environ.get("FTH_OPENCL_PLUGIN", ROOT / "build/release/plugins/libfth_opencl.so")


def opencl_devices():
    return devices_of("opencl", PLUGIN)


class environment:
    """Variables set for the runs inside the `with`."""

    def __init__(self, **variables):
        self.variables = variables

    def __enter__(self):
        self.old = {name: os.environ.get(name) for name in self.variables}
        os.environ.update(self.variables)

    def __exit__(self, *_):
        for name, value in self.old.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class PoCL(OnDevice, unittest.TestCase):
    plugin = PLUGIN
    long_prompt = 600

    def devices(self):
        return ["opencl:0"]

    def test_listed_and_not_chosen(self):
        device, = opencl_devices()
        self.assertTrue(device["software"])
        self.assertTrue(device["host_memory"])
        self.assertIn("listed, not chosen", device["refusal"])
        self.assertNotIn("opencl", run("run", "--plugin", PLUGIN, "-p", PROMPTS[0]).stderr)

    def test_cpu_only_does_not_look(self):
        with environment(OCL_ICD_DEBUG="7"):  # the loader then says what it opens; it says it to standard output or error
            done = run("run", "--cpu-only", "-p", PROMPTS[0])
        self.assertEqual(done.returncode, 0)
        self.assertNotIn("opencl", (done.stdout + done.stderr).lower())

    def test_two_devices(self):
        wanted = text_on("--cpu-only")[0]
        with environment(POCL_DEVICES="pthread basic"):
            self.assertEqual([d["name"] for d in opencl_devices()], ["opencl:0", "opencl:1"])
            got, report = text_on("--plugin", PLUGIN, "--place", "layer.*.attention=opencl:1", "--place", "head=opencl:0")
        self.assertEqual(got, wanted)
        self.assertIn("opencl:1  attention", report)
        self.assertIn("opencl:0  head", report)

    def test_no_driver(self):
        with environment(OCL_ICD_VENDORS="/nonexistent/none.icd"):
            report = must_json("devices", "--json", "--plugin", PLUGIN)
            self.assertEqual(run("run", "--plugin", PLUGIN, "-p", PROMPTS[0]).returncode, 0)
        self.assertFalse([d for d in report["devices"] if d["backend"] == "opencl"])
        backend, = [b for b in report["backends"] if b["name"] == "opencl"]
        self.assertTrue(backend["loaded"])
        self.assertIn("no driver", backend["reason"])


class RealDevice(OnDevice, unittest.TestCase):
    plugin = PLUGIN

    def devices(self):
        return [d["name"] for d in opencl_devices() if not d["software"]]

    def test_conformance(self):
        for device in self.devices():
            for options in ("math=f32", "math=int8", "math=f16", "shape=cpu"):
                done = subprocess.run([os.environ["FTH_CONFORMANCE"], "--backend", PLUGIN, "--device", device.split(":")[1], "--options", options,
                                       "--expect", ROOT / "backends/opencl/conformance.txt"], capture_output=True, text=True, timeout=600)
                if options == "math=f16" and "no cl_khr_fp16" in done.stderr:
                    continue
                self.assertEqual(done.returncode, 0, f"{device} {options}: {done.stdout[-3000:]}{done.stderr[-1000:]}")
                print(done.stdout.strip())


if __name__ == "__main__":
    seen = opencl_devices()
    if sys.argv[1] == "PoCL" and not (len(seen) == 1 and seen[0]["software"]):
        skip("no PoCL driver (pocl-opencl-icd)")
    if sys.argv[1] == "RealDevice" and all(d["software"] for d in seen):
        skip("no OpenCL device that is not software: " + (", ".join(d["description"] for d in seen) or "none at all"))
    unittest.main(verbosity=2)
