#!/usr/bin/env python3
"""The program with its attention and head on an OpenVINO device: the same text as on the CPU, and the reference's logits.

    openvino_test.py CPU         on OpenVINO's CPU device, which stands in for an NPU
    openvino_test.py RealDevice  on every device that is not software; skipped where there is none
"""
import os
import pathlib
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from on_device import PROMPTS, OnDevice, devices_of, text_on  # noqa: E402
from program import ROOT, program_path, run, skip  # noqa: E402

PLUGIN = os.environ.get("FTH_OPENVINO_PLUGIN", ROOT / "build/release/plugins/libfth_openvino.so")


def openvino_devices():
    return devices_of("openvino", PLUGIN)


def opened_libraries(*where):
    """Names of the libraries that a run opens, from the loader's own account."""
    done = subprocess.run([program_path(), "run", *map(str, where), "-p", PROMPTS[0], "-n", "2"], capture_output=True, text=True, timeout=300,
                          stdin=subprocess.DEVNULL, env={**os.environ, "LD_DEBUG": "files"})
    if done.returncode != 0:
        raise AssertionError(done.stderr[-2000:])
    return {line.split("file=")[1].split()[0] for line in done.stderr.splitlines() if "file=" in line and "generating link map" in line}


class CPU(OnDevice, unittest.TestCase):
    plugin = PLUGIN
    same_bits = False  # a graph is compiled for its number of rows
    has_clock = False
    long_prompt = 700

    def devices(self):
        return [d["name"] for d in openvino_devices() if d["software"]]

    def test_listed_last_and_not_chosen(self):
        last = openvino_devices()[-1]
        self.assertTrue(last["software"])
        self.assertTrue(last["host_memory"])
        self.assertIn("listed, not chosen", last["refusal"])
        self.assertNotIn("openvino", run("run", "--plugin", PLUGIN, "-p", PROMPTS[0]).stderr)

    def test_same_text_when_the_cpu_begins(self):
        wanted, _ = text_on("--cpu-only")
        for device in self.devices():
            got, report = text_on("--plugin", self.plugin, "--device", device, "--start-on-cpu")
            self.assertEqual(got, wanted)
            self.assertRegex(report, r"cpu +attention")  # of the prompt, whose bucket nobody knew

    def test_plugins_of_openvino_are_opened_to_compile_only(self):
        def of_openvino(*where):
            return {name for name in map(os.path.basename, opened_libraries(*where)) if "openvino" in name and "fth" not in name}

        self.assertEqual(of_openvino("--cpu-only"), set())
        self.assertFalse({name for name in of_openvino("--plugin", PLUGIN) if "_plugin" in name})
        device, = self.devices()
        self.assertIn("libopenvino_intel_cpu_plugin.so", of_openvino("--plugin", PLUGIN, "--device", device))


class RealDevice(OnDevice, unittest.TestCase):
    plugin = PLUGIN
    same_bits = False
    logits_tolerance = 0.5  # they compute in f16
    has_clock = False

    def devices(self):
        return [d["name"] for d in openvino_devices() if not d["software"]]


if __name__ == "__main__":
    seen = openvino_devices()
    if sys.argv[1] == "CPU" and not any(d["software"] for d in seen):
        skip("OpenVINO's libraries are not where the plugin was built against them")
    if sys.argv[1] == "RealDevice" and all(d["software"] for d in seen):
        skip("no OpenVINO device that is not software: " + (", ".join(d["description"] for d in seen) or "none at all"))
    unittest.main(verbosity=2)
