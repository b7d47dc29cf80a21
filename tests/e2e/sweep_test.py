#!/usr/bin/env python3
"""forethought plan --sweep and what it rests on: table, JSON and plot; the prediction's sources; the kept figures of the disk. The bundled tiny model."""
import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest
import xml.etree.ElementTree as xml

import program
from program import FAILED, NO_FIT, TINY, USAGE

RANGE = "20MiB:40MiB:9"
SVG = "{http://www.w3.org/2000/svg}"


@functools.cache
def budget(context=64):
    """One that experts are streamed under, whatever the program itself takes here: the smallest that works, and a little."""
    with tempfile.TemporaryDirectory() as folder:
        program.measured_cache(pathlib.Path(folder))
        refused = subprocess.run([program.program_path(), "plan", "-m", TINY, "--cpu-only", "-c", str(context), "--ram", "1MiB"], capture_output=True, text=True,
                                 timeout=300, env={**os.environ, "XDG_CACHE_HOME": folder})
    return f"{int(re.search(r'smallest budget that works is --ram ([0-9]+)MiB', refused.stderr)[1]) + 1}MiB"


class Program(unittest.TestCase):
    """Runs the program with a cache folder of its own."""
    measured = True

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(dir=program.models_folder() if program.models_folder().exists() else None)
        self.addCleanup(self.folder.cleanup)
        self.path = pathlib.Path(self.folder.name)
        self.cache = self.path / "cache"
        if self.measured:
            program.measured_cache(self.cache)

    def run_program(self, *args, cache=None):
        environment = {**os.environ, "XDG_CACHE_HOME": str(cache or self.cache)}
        return subprocess.run([program.program_path(), *map(str, args)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
                              env=environment)

    def plan(self, *args, cache=None):
        done = self.run_program("plan", "-m", TINY, "--cpu-only", "-c", 64, *args, cache=cache)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout


class Sweep(Program):
    def test_rows_go_from_what_does_not_fit_to_resident(self):
        sweep = json.loads(self.plan("--sweep", RANGE, "--storage-speed", "500MB/s", "--json"))
        rows = sweep["rows"]
        self.assertEqual(len(rows), 9)
        self.assertEqual([rows[0]["budget"], rows[-1]["budget"]], [20 << 20, 40 << 20])
        self.assertFalse(rows[0]["fits"])
        self.assertIn("does not fit", rows[0]["reason"])
        streamed = [row for row in rows if row["fits"] and not row["resident"]]
        resident = [row for row in rows if row["fits"] and row["resident"]]
        self.assertTrue(streamed and resident)
        self.assertEqual(rows, [r for r in rows if not r["fits"]] + streamed + resident)
        for before, after in zip(streamed, streamed[1:]):
            self.assertLess(before["expert_slots"], after["expert_slots"])
            self.assertLessEqual(before["hit_rate"], after["hit_rate"])
            self.assertLessEqual(before["tok_s"], after["tok_s"] * 1.001)
        for row in streamed:
            self.assertLessEqual(row["ram_bytes"], row["budget"])
            self.assertGreater(row["storage_bytes_per_token"], 0)
            self.assertLess(row["tok_s"], sweep["resident"]["tok_s"])
            self.assertLessEqual(row["tok_s"], row["bound_tok_s"] * 1.000001)
            self.assertIn(row["bound_by"], ("compute", "storage"))
        for row in resident:
            self.assertEqual(row["hit_rate"], 1)
            self.assertAlmostEqual(row["tok_s"] / sweep["resident"]["tok_s"], 1, delta=0.05)  # smaller steps, smaller KV rings
            self.assertGreaterEqual(row["budget"], sweep["resident_bytes"])
        self.assertEqual(sweep["uses"], "assumed")
        self.assertEqual(sweep["storage_bytes_per_second"], 5e8)

    def test_faster_storage_is_faster(self):
        def speed(storage):
            return json.loads(self.plan("--ram", budget(), "--storage-speed", storage, "--json"))["predicted_tok_s"]
        slow, fast = speed("10MB/s"), speed("10GB/s")
        self.assertGreater(fast, 2 * slow)

    def test_table_and_plot(self):
        svg = self.path / "sweep.svg"
        table = self.plan("--sweep", RANGE, "--storage-speed", "500MB/s", "--svg", svg)
        for words in ("budget", "tok/s", "bound by", "prefill tok/s", "does not fit", "all experts in memory from", "ASSUMED", "0.50 GB/s"):
            self.assertIn(words, table)
        root = xml.parse(svg).getroot()
        self.assertEqual(root.tag, SVG + "svg")
        lines = {line.get("class"): line.get("points").split() for line in root.iter(SVG + "polyline")}
        fitting = sum(1 for _ in root.iter(SVG + "circle"))
        self.assertEqual(len(lines["speed"]), fitting)
        self.assertEqual(len(lines["hits"]), fitting)
        self.assertEqual(sum(1 for t in root.iter(SVG + "text") if t.get("class") == "unfit"), 9 - fitting)
        self.assertEqual(sum(1 for t in root.iter(SVG + "line") if t.get("class") == "resident"), 1)
        for points in lines.values():
            for point in points:
                x, y = map(float, point.split(","))
                self.assertTrue(0 <= x <= float(root.get("width")) and 0 <= y <= float(root.get("height")), point)
        self.assertNotIn("href", svg.read_text())  # needs nothing but itself

    def test_plan_says_what_storage_costs(self):
        text = self.plan("--ram", budget(), "--storage-speed", "1GB/s")
        for words in ("from storage per token", "ASSUMED", "bound by", "if all experts were in memory", "prefill:"):
            self.assertIn(words, text)

    def test_a_trace_is_what_counts(self):
        trace = self.path / "run.trace"
        done = self.run_program("run", "-m", TINY, "--cpu-only", "-c", 128, "-n", 60, "--ignore-end", "-q", "--trace-routing", trace, "-p", "Sort: pear, fig.")
        self.assertEqual(done.returncode, 0, done.stderr)
        with_trace = json.loads(self.plan("--ram", budget(), "--trace", trace, "--storage-speed", "1GB/s", "--json"))["expected"]
        self.assertEqual(with_trace["uses"], "trace")
        assumed = json.loads(self.plan("--ram", budget(), "--storage-speed", "1GB/s", "--json"))["expected"]
        self.assertNotEqual(with_trace["hit_rate"], assumed["hit_rate"])
        other = self.path / "other.trace"
        other.write_text(trace.read_text().replace("shape 8 16 4", "shape 9 16 4"))
        done = self.run_program("plan", "-m", TINY, "--cpu-only", "--ram", budget(), "-c", 64, "--trace", other)
        self.assertEqual(done.returncode, USAGE, done.stderr)
        self.assertIn("9 layers", done.stderr)

    def test_a_warm_set_is_the_next_best(self):
        warm = self.path / "warm"
        run = ("run", "-m", TINY, "--cpu-only", "-c", 64, "-n", 40, "--ignore-end", "-q", "--ram", budget(), "--warm-set", warm, "-p", "Sort: pear, fig.")
        self.assertEqual(self.run_program(*run).returncode, 0)
        self.assertEqual(json.loads(self.plan("--ram", budget(), "--warm-set", warm, "--json"))["expected"]["uses"], "warm set")
        warm.write_text(warm.read_text().replace("layers", "leyers"))
        expected = json.loads(self.plan("--ram", budget(), "--warm-set", warm, "--json"))["expected"]
        self.assertEqual(expected["uses"], "assumed")
        self.assertIn("warm set not used", expected["uses_label"])

    def test_usage(self):
        for options, says in ((("--sweep", "1GiB"), "LOW:HIGH"), (("--sweep", "2GiB:1GiB"), "LOW:HIGH"), (("--sweep", "1GiB:2GiB:1"), "LOW:HIGH"),
                              (("--sweep", "1GiB:2GiB:999"), "LOW:HIGH"), (("--sweep", RANGE, "--ram", "1GiB"), "exclude"),
                              (("--svg", "x.svg"), "--sweep"), (("--storage-speed", "fast"), "3.5GB/s"), (("-ub", "513"), "1 to 512")):
            done = self.run_program("plan", "-m", TINY, "--cpu-only", *options)
            self.assertEqual(done.returncode, USAGE, f"{options}: {done.stderr}")
            self.assertIn(says, done.stderr)
        done = self.run_program("plan", "-m", TINY, "--cpu-only", "--sweep", RANGE, "--svg", self.path / "none/x.svg")
        self.assertEqual(done.returncode, FAILED, done.stderr)
        done = self.run_program("plan", "-m", TINY, "--cpu-only", "--sweep", "1MiB:2MiB")
        self.assertEqual(done.returncode, NO_FIT, done.stderr)


class Ubatch(Program):
    def test_smaller_steps_where_larger_ones_do_not_fit(self):
        smallest = budget(1024)
        refused = self.run_program("plan", "-m", TINY, "--cpu-only", "-c", 1024, "-ub", 512, "--ram", smallest)
        self.assertEqual(refused.returncode, NO_FIT, refused.stdout)
        done = self.run_program("plan", "-m", TINY, "--cpu-only", "-c", 1024, "--ram", smallest, "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertLess(json.loads(done.stdout)["ubatch"], 512)
        self.assertIn("note: prefill in steps of", done.stderr)


class Machine(Program):
    def test_a_busy_machine_is_measured_a_few_times(self):
        """Not at every start: that is what a machine that is always busy would wait for."""
        kept = self.cache / "forethought/machine.json"
        (entry,) = json.loads(kept.read_text())["machines"][-1:]

        def starts(n, **change):
            kept.write_text(json.dumps({"machines": [{**entry, "busy": True, "bytes_per_second": 12e9, **change}]}))
            return ["measured now" in self.run_program("devices", "-v", "--cpu-only", "-t", entry["threads"]).stdout for _ in range(n)]
        self.assertEqual(starts(1, tries=3), [True])
        after = json.loads(kept.read_text())["machines"][0]
        self.assertTrue(not after["busy"] or after["tries"] == 4, after)
        self.assertGreaterEqual(after["bytes_per_second"], 12e9)
        self.assertLessEqual(sum(starts(3, tries=4)), 1)  # one where it is quiet now
        for tries in ("many", 1e300):
            self.assertEqual(starts(1, tries=tries), [True], tries)


class Storage(Program):
    """storage.json. Skipped where the file system has no O_DIRECT: nothing is measured there."""
    measured = False

    def note(self, cache=None):
        return json.loads(self.plan("--ram", budget(), "--json", cache=cache))["expected"]["storage_note"]

    first = None  # cache folder and note of the first measurement, which all tests begin with

    def setUp(self):
        super().setUp()
        if Storage.first is None:
            folder = tempfile.TemporaryDirectory()
            self.addClassCleanup(folder.cleanup)
            Storage.first = pathlib.Path(folder.name), self.note(cache=folder.name)
        cache, note = self.first
        if "no O_DIRECT" in note:
            self.skipTest(note)
        self.assertIn("measured now", note)
        shutil.copytree(cache, self.cache)
        self.file = self.cache / "forethought/storage.json"

    def calm(self):
        """The kept entry, marked as measured on a quiet machine."""
        root = json.loads(self.file.read_text())
        root["disks"][0].update(busy=False, bytes_per_second=123e6, queue_depth=32)
        return root

    def test_is_measured_once(self):
        self.file.write_text(json.dumps(self.calm()))
        self.assertIn("measured before", self.note())
        expected = json.loads(self.plan("--ram", budget(), "--json"))["expected"]
        self.assertEqual(expected["storage_bytes_per_second"], 123e6)
        done = self.run_program("run", "-m", TINY, "--cpu-only", "-c", 64, "-n", 4, "--ram", budget(), "-v", "-p", "Hello")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("queue 32", done.stderr)
        self.assertIn("0.12 GB/s measured", done.stderr)

    def test_the_users_queue_wins(self):
        self.file.write_text(json.dumps(self.calm()))
        done = self.run_program("run", "-m", TINY, "--cpu-only", "-c", 64, "-n", 4, "--ram", budget(), "-v", "--expert-queue", 3, "-p", "Hello")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("queue 3,", done.stderr)

    def test_implausible_and_damaged_entries_are_measured_again(self):
        root, changes = self.calm(), ({"bytes_per_second": 1e30}, {"bytes_per_second": "fast"}, {"queue_depth": 1e300}, {"request_bytes": 5}, {"disk": 5})
        root["disks"] = [{**root["disks"][0], **change} for change in changes]  # believed, each of them would do
        self.file.write_text(json.dumps(root))
        self.assertIn("measured now", self.note())
        for text in ("{", '{"disks": [3, null, {}]}', "[" * 100000):
            self.file.write_text(text)
            self.assertIn("measured now", self.note(), repr(text[:20]))
        self.assertGreaterEqual(len(json.loads(self.file.read_text())["disks"]), 1)

    def test_a_cache_that_cannot_be_written_stops_nothing(self):
        self.assertIn("it cannot be kept", self.note(cache="/proc/none"))
        done = self.run_program("run", "-m", TINY, "--cpu-only", "-c", 64, "-n", 4, "--ram", budget(), "-p", "Hello", cache="/proc/none")
        self.assertEqual(done.returncode, 0, done.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
