#!/usr/bin/env python3
"""The program with its attention and head on a Vulkan device: the same text as on the CPU, and the reference's logits.

    vulkan_test.py Lavapipe     on the rasteriser alone, which CTest names as the only driver
    vulkan_test.py RealDevice   on every device that is not software; skipped where there is none
"""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from on_device import PROMPTS, OnDevice, devices_of, text_on  # noqa: E402
from program import ROOT, must_json, run, skip  # noqa: E402

PLUGIN = os.environ.get("FTH_VULKAN_PLUGIN", ROOT / "build/release/plugins/libfth_vulkan.so")


def vulkan_devices():
    return devices_of("vulkan", PLUGIN)


class Lavapipe(OnDevice, unittest.TestCase):
    plugin = PLUGIN

    def devices(self):
        return ["vulkan:0"]

    def test_listed_and_not_chosen(self):
        device, = vulkan_devices()
        self.assertTrue(device["software"])
        self.assertIn("listed, not chosen", device["refusal"])
        self.assertNotIn("vulkan", run("run", "--plugin", PLUGIN, "-p", PROMPTS[0]).stderr)

    def test_two_devices(self):
        driver = os.environ["VK_ICD_FILENAMES"]
        with tempfile.TemporaryDirectory() as folder:
            copy = shutil.copy(driver, pathlib.Path(folder) / "second_icd.json")
            both = {"VK_ICD_FILENAMES": f"{driver}:{copy}", "VK_DRIVER_FILES": f"{driver}:{copy}"}
            os.environ.update(both)
            try:
                self.assertEqual([d["name"] for d in vulkan_devices()], ["vulkan:0", "vulkan:1"])
                got, report = text_on("--plugin", PLUGIN, "--device", "vulkan:1")
            finally:
                os.environ.update(dict.fromkeys(both, driver))
        self.assertEqual(got, text_on("--cpu-only")[0])
        self.assertIn("vulkan:1  attention", report)

    def test_no_driver(self):
        none = dict.fromkeys(("VK_ICD_FILENAMES", "VK_DRIVER_FILES"), "/nonexistent/icd.json")
        old = os.environ["VK_ICD_FILENAMES"]
        os.environ.update(none)
        try:
            report = must_json("devices", "--json", "--plugin", PLUGIN)
        finally:
            os.environ.update(dict.fromkeys(none, old))
        self.assertFalse([d for d in report["devices"] if d["backend"] == "vulkan"])
        backend, = [b for b in report["backends"] if b["name"] == "vulkan"]
        self.assertTrue(backend["loaded"])
        self.assertIn("no driver", backend["reason"])


class RealDevice(OnDevice, unittest.TestCase):
    plugin = PLUGIN

    def devices(self):
        return [d["name"] for d in vulkan_devices() if not d["software"]]

    def conformance(self, device, options, *arguments):
        return subprocess.run([os.environ["FTH_CONFORMANCE"], "--backend", PLUGIN, "--device", device.split(":")[1], "--options", options, *arguments],
                              capture_output=True, text=True, timeout=600)

    def test_conformance(self):
        for device in self.devices():
            for options in ("coopmat=off", "coopmat=off,subgroups=off", "coopmat=off,mapped=off"):
                done = self.conformance(device, options, "--expect", ROOT / "backends/vulkan/conformance.txt")
                self.assertEqual(done.returncode, 0, f"{device} {options}: {done.stdout[-3000:]}{done.stderr[-1000:]}")
                print(done.stdout.strip())

    def test_cooperative_matrices(self):
        here = ROOT / "tests/vulkan"
        for device in self.devices():
            done = self.conformance(device, "coopmat=on", "--cases", here / "coop_cases.txt", "--expect", here / "coop_conformance.txt")
            if "coopmat=on: the driver does not have them" not in done.stdout + done.stderr:
                self.assertEqual(done.returncode, 0, f"{device}: {done.stdout[-3000:]}{done.stderr[-1000:]}")
            print(done.stdout.strip(), done.stderr.strip())


if __name__ == "__main__":
    seen = vulkan_devices()
    if sys.argv[1] == "Lavapipe" and not (len(seen) == 1 and seen[0]["software"]):
        skip("no lavapipe driver (mesa-vulkan-drivers)")
    if sys.argv[1] == "RealDevice" and all(d["software"] for d in seen):
        skip("no Vulkan device that is not software: " + (", ".join(d["description"] for d in seen) or "none at all"))
    unittest.main(verbosity=2)
