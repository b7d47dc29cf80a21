#!/usr/bin/env python3
"""`forethought profile` and `run --trace` from the outside: every device accounted for, figures that agree with each other, a trace that keeps to its
format, a page that draws itself in a browser (Chromium without a window, where there is one)."""
import collections
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

import program
from program import FAILED, TINY, USAGE, must, must_json, run

BUILD = pathlib.Path(os.environ.get("FTH_BUILD_DIR", program.ROOT / "build/release"))
COPYING = BUILD / "tests/fake_plugins/libfth_copying.so"
QUICK = ("-m", TINY, "--pp", 40, "--tg", 6, "-r", 2, "--seconds", 4)
QUICKEST = ("-m", TINY, "--pp", 8, "--tg", 2, "-r", 1, "--seconds", 1)  # where figures do not matter
SEGMENTS = {"embed", "router", "attention", "experts", "combine", "head"}


def with_copying():
    """A device with memory of its own, for copies and a device's track; needs the tests to be built."""
    return ("--plugin", COPYING) if COPYING.exists() else ()


class Figures(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.profile = must_json("profile", *QUICK, "--json", *with_copying(), timeout=600)
        cls.columns = {c["name"]: c for c in cls.profile["columns"]}

    def test_every_device_is_a_column_or_has_a_reason(self):
        devices = must_json("devices", "--json", *with_copying())["devices"]
        refused = {n["subject"]: n["reason"] for n in self.profile["not_profiled"]}
        self.assertEqual(self.profile["columns"][0]["name"], "cpu")
        for device in devices:
            name = device["name"]
            self.assertTrue((name in self.columns) != (name in refused), f"{name}: columns {list(self.columns)}, not profiled {refused}")
            if name in refused:
                self.assertTrue(refused[name])
        print("columns:", ", ".join(n + (" (software)" if c["software"] else "") for n, c in self.columns.items()), "| not profiled:", ", ".join(refused))
        if with_copying():
            self.assertIn("copying:0", self.columns)

    def test_rows_agree(self):
        for name, column in self.columns.items():
            seen = {row["segment"] for row in column["segments"]}
            self.assertEqual(seen, SEGMENTS, name)
            for row in column["segments"]:
                where = f"{name} {row['segment']} {row['bucket']}"
                self.assertLessEqual(row["p50_s"], row["p95_s"], where)
                self.assertLessEqual(row["p95_s"], row["p99_s"], where)
                self.assertGreater(row["runs"], 0, where)
                self.assertGreaterEqual(row["total_s"] * 1.0001, row["p50_s"], where)
                self.assertAlmostEqual(row["gb_s"], row["bytes"] / row["total_s"] / 1e9, places=6, msg=where)
                self.assertAlmostEqual(row["gflop_s"], row["flop"] / row["total_s"] / 1e9, places=6, msg=where)
                self.assertEqual(row["flop"] == 0, row["segment"] == "embed", where)
                if row["segment"] in ("attention", "head") and row["roofline_share"]:
                    self.assertGreater(row["roofline_share"], 0, where)
            other_steps = {r["bucket"] for r in column["segments"]} != {r["bucket"] for r in self.columns["cpu"]["segments"]}
            # Bytes and FLOPs are the model's, whatever device computes: the same work in every column that was not shortened. A plan may cut the prompt
            # into other steps, for two of them to be under way at once: then it is the decoding that is the same.
            if not column["shortened"]:
                first = {(r["segment"], r["bucket"]): (r["runs"], r["bytes"], r["flop"]) for r in self.columns["cpu"]["segments"]}
                ours = {(r["segment"], r["bucket"]): (r["runs"], r["bytes"], r["flop"]) for r in column["segments"]}
                if other_steps:
                    first, ours = ({key: row for key, row in rows.items() if key[1] == 1} for rows in (first, ours))
                self.assertEqual(ours, first, name)
            # A step holds its segments, its copies and its waits; of two steps at once, one's on a device run beside the other's on the CPU.
            steps = 1.001 * sum(column[p]["total_s"] for p in ("decode", "prefill"))
            by_device = collections.Counter()
            for row in column["segments"]:
                by_device[row["device"] if other_steps else "all"] += row["total_s"]
            copies = sum(column[p]["copy_s"] for p in ("decode", "prefill"))
            for device, seconds in by_device.items():
                self.assertLessEqual(seconds + (0 if other_steps else copies), steps, f"{name}: {device}")
            self.assertGreater(column["decode"]["cpu_per_wall"], 0, name)
            self.assertEqual(column["dropped_events"], 0, name)
            self.assertGreater(column["resident_bytes"], 0, name)

    def test_the_cpu_alone(self):
        cpu = self.columns["cpu"]
        self.assertFalse(cpu["software"])
        self.assertEqual({row["device"] for row in cpu["segments"]}, {"cpu"})
        self.assertEqual((cpu["decode"]["steps"], cpu["prefill"]["tokens"]), (12, 80))
        self.assertEqual(cpu["decode"]["copies"], 0)
        self.assertTrue(all(row["times_cpu"] == 1 for row in cpu["segments"]))
        self.assertEqual(len(self.profile["expert_counts"]), 8)
        # Three repetitions, the third with the CPU clocks: 40 prompt and 6 decoded tokens, two experts in each of eight layers.
        top_k = int(must_json("inspect", "-m", TINY, "--json")["metadata"]["smallthinker.expert_used_count"])
        self.assertEqual(sum(map(sum, self.profile["expert_counts"])), 3 * 46 * 8 * top_k)
        self.assertGreater(self.profile["drift"]["first_s"], 0)
        self.assertGreater(self.profile["drift"]["last_s"], 0)
        self.assertGreater(self.profile["roofline"]["flops_per_second"], 1e9)

    @unittest.skipUnless(with_copying(), "the tests' plugins are not built")
    def test_a_device_with_its_own_memory(self):
        column = self.columns["copying:0"]
        where = {row["segment"]: row["device"] for row in column["segments"]}
        self.assertEqual(where["attention"], "copying:0")
        self.assertEqual(where["head"], "copying:0")
        self.assertEqual(where["experts"], "cpu")
        self.assertGreater(column["decode"]["copies"], 0)
        self.assertGreater(column["decode"]["copied_bytes"], 0)


class Usage(unittest.TestCase):
    def test_devices_named(self):
        only = must_json("profile", *QUICKEST, "--json", "--device", "cpu")
        self.assertEqual([c["name"] for c in only["columns"]], ["cpu"])
        self.assertEqual([c["name"] for c in must_json("profile", *QUICKEST, "--json", "--cpu-only")["columns"]], ["cpu"])
        done = run("profile", *QUICKEST, "--device", "warp:9")
        self.assertEqual(done.returncode, USAGE, done.stderr)
        self.assertIn("warp:9", done.stderr)
        self.assertIn("cpu", done.stderr)

    @unittest.skipUnless(with_copying(), "the tests' plugins are not built")
    def test_one_placement(self):
        named = must_json("profile", *QUICKEST, "--json", *with_copying(), "--device", "copying:0")
        self.assertEqual([c["name"] for c in named["columns"]], ["cpu", "copying:0"])
        placed = must_json("profile", *QUICKEST, "--json", *with_copying(), "--device", "copying:0", "--place", "layer.0.attention=cpu")
        self.assertEqual([c["name"] for c in placed["columns"]], ["cpu", "--place", "copying:0"])
        runs = collections.Counter()
        for row in placed["columns"][1]["segments"]:
            if row["segment"] == "attention":
                runs[row["device"]] += row["runs"]
        self.assertEqual(runs["copying:0"], 7 * runs["cpu"])

    def test_wrong_values(self):
        for wrong in (("-r", 0), ("--pp", -1), ("--seconds", 0), ("--pp", 100000)):
            self.assertEqual(run("profile", "-m", TINY, "--cpu-only", *wrong).returncode, USAGE, wrong)
        done = run("profile", *QUICKEST, "--cpu-only", "--html", "/nonexistent/folder/page.html")
        self.assertEqual(done.returncode, FAILED)
        self.assertIn("/nonexistent/folder/page.html", done.stderr)

    def test_text(self):
        said = must("profile", *QUICKEST, "--cpu-only", "-p", "What is 38 + 47?")
        for word in ("median times", "attention", "p95", "GFLOP/s", "roofline", "drift", "whole step"):
            self.assertIn(word, said)


def check_trace(test, trace):
    """The Trace Event Format's JSON object form, and what makes it readable. Returns spans by (process, track) name."""
    test.assertIsInstance(trace["traceEvents"], list)
    processes, tracks, spans = {}, {}, collections.defaultdict(list)
    for e in trace["traceEvents"]:
        test.assertIn(e["ph"], ("X", "C", "M"))
        test.assertIsInstance(e["pid"], int)
        test.assertIsInstance(e["tid"], int)
        test.assertTrue(e["name"])
        if e["ph"] == "M":
            if e["name"] == "process_name":
                processes[e["pid"]] = e["args"]["name"]
            if e["name"] == "thread_name":
                tracks[e["pid"], e["tid"]] = e["args"]["name"]
            continue
        test.assertGreaterEqual(e["ts"], 0)
        if e["ph"] == "C":
            test.assertTrue(all(isinstance(v, (int, float)) and v >= 0 for v in e["args"].values()))
        else:
            test.assertGreaterEqual(e["dur"], 0)
            spans[e["pid"], e["tid"]].append(e)
    for at, events in spans.items():
        test.assertIn(at, tracks, "a track without a name")
        test.assertIn(at[0], processes)
        open_until, before = [], 0
        for e in events:  # nanoseconds as integers: sums of decimal fractions of microseconds would be off by an ulp
            begin, end = round(e["ts"] * 1000), round(e["ts"] * 1000) + round(e["dur"] * 1000)
            test.assertGreaterEqual(begin, before, f"{tracks[at]}: out of order")
            before = begin
            while open_until and open_until[-1] <= begin:
                open_until.pop()
            if open_until:
                test.assertLessEqual(end, open_until[-1], f"{tracks[at]}: {e['name']} crosses the end of what encloses it")
            open_until.append(end)
    return {(processes[pid], tracks[pid, tid]): events for (pid, tid), events in spans.items()}


def inside(events, step):
    end = step["ts"] + step["dur"]
    return [e for e in events if e is not step and step["ts"] <= e["ts"] and e["ts"] + e["dur"] <= end + 1e-6]


class Trace(unittest.TestCase):
    def test_profile(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "trace.json"
            must("profile", *QUICK, "--trace", path, *with_copying(), *(("--device", "copying:0") if with_copying() else ("--cpu-only",)))
            self.assertEqual(sorted(p.name for p in pathlib.Path(folder).iterdir()), ["trace.json"])
            trace = json.loads(path.read_text())
            self.viewer(path)
        spans = check_trace(self, trace)
        engine = spans["cpu", "engine"]
        tokens = [e for e in engine if e["cat"] == "step" and e["name"].startswith("token ")]
        self.assertEqual(len(tokens), 18)
        for token in tokens:
            part = collections.Counter(e["name"].split()[0] for e in inside(engine, token) if e["cat"] == "segment")
            self.assertEqual(part, {"embed": 1, "router": 8, "attention": 8, "experts": 8, "combine": 8, "head": 1})
        self.assertTrue(any(e["ph"] == "C" and e["name"] == "memory" for e in trace["traceEvents"]))
        if with_copying():
            device = spans["copying:0", "copying:0"]
            self.assertTrue(all(e["cat"] == "device" for e in device))
            self.assertTrue(any(e["cat"] == "copy" and e["args"]["bytes"] > 0 for e in spans["copying:0", "engine"]))

    def test_run_with_streamed_experts(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "trace.json"
            plain = must("run", "-m", TINY, "-p", "What is 38 + 47?", "-n", 12)
            self.assertEqual(must("run", "-m", TINY, "-p", "What is 38 + 47?", "-n", 12, "--experts", "streamed", "--expert-slots", 16, "--trace", path), plain)
            spans = check_trace(self, json.loads(path.read_text()))
            self.viewer(path)
        reads = [e for (_, track), events in spans.items() if track.startswith("read ") for e in events]
        self.assertTrue(reads)
        for e in reads:
            self.assertGreater(e["args"]["bytes"], 0)
            self.assertIn("expert", e["args"])
        self.assertTrue(any(track == "waiting for storage" for _, track in spans))
        engine = next(events for (_, track), events in spans.items() if track == "engine")
        self.assertIn("sample", {e["name"] for e in engine})

    def test_a_trace_that_cannot_be_written(self):
        done = run("run", "-m", TINY, "-p", "x", "-n", 1, "--trace", "/nonexistent/folder/trace.json")
        self.assertEqual(done.returncode, FAILED)
        self.assertIn("/nonexistent/folder/trace.json", done.stderr)

    def viewer(self, path):
        """Perfetto's own parser, where it is installed, reads every span."""
        parser = shutil.which("trace_processor_shell") or shutil.which("trace_processor")
        if parser is None:
            return
        query = path.with_name("query.sql")
        query.write_text("select count(*) from slice;\n")
        counted = subprocess.run([parser, "-q", query, path], capture_output=True, text=True, timeout=120)
        self.assertEqual(counted.returncode, 0, counted.stderr)
        events = json.loads(path.read_text())["traceEvents"]
        self.assertIn(str(sum(e["ph"] == "X" for e in events)), counted.stdout)


class Page(unittest.TestCase):
    HOSTILE = "</script><script>document.title='changed'</script><!-- <b>"

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.path = pathlib.Path(cls.folder.name) / "page.html"
        devices = (*with_copying(), "--device", "copying:0") if with_copying() else ("--cpu-only",)
        must("profile", "-m", TINY, "--tg", 6, "-r", 1, "-p", cls.HOSTILE, "--html", cls.path, "--experts", "streamed", "--expert-slots", 24, *devices)
        cls.html = cls.path.read_text()

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def test_self_contained(self):
        addresses = [a for a in re.findall(r"[a-z]+://[^\s\"'<]+", self.html) if a != "http://www.w3.org/2000/svg"]
        self.assertEqual(addresses, [])
        self.assertEqual(re.findall(r"(?:src|href)\s*=\s*[\"'](?!data:)[^\"']*", self.html), [])
        self.assertNotIn("@import", self.html)

    def test_data(self):
        self.assertEqual(self.html.lower().count("</script>"), 2, "text of the prompt must not end the script")
        data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', self.html, re.S).group(1))
        self.assertIn(self.HOSTILE, data["tokens"])
        self.assertEqual(len(data["median_tokens"]), len(data["columns"]))
        for token in data["median_tokens"]:
            self.assertEqual(token["tracks"][0]["name"], "engine")
            self.assertGreater(len(token["tracks"][0]["spans"]), 30)

    def test_in_a_browser(self):
        browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        if browser is None:
            self.skipTest("no chromium; ./setup --full installs it")
        for dark in (False, True):
            with tempfile.TemporaryDirectory() as home:
                # Root may not use the sandbox; the page is our own.
                done = subprocess.run([browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={home}", "--window-size=1240,2000",
                                       "--enable-logging=stderr", "--virtual-time-budget=5000", f"--blink-settings=preferredColorScheme={0 if dark else 1}",
                                       "--dump-dom", self.path.as_uri()], capture_output=True, text=True, timeout=120)
            self.assertEqual(done.returncode, 0, done.stderr[-2000:])
            said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
            self.assertEqual(said, [], "the page says something on the console")
            dom = done.stdout
            self.assertIn('data-drawn="yes"', dom, "the script did not reach its end")
            self.assertIn("<title>Forethought profile</title>", dom)
            count = {kind: dom.count(f'class="{kind}"') for kind in ("span", "roof", "point", "expert", "arena")}
            print("drawn, dark" if dark else "drawn", count)
            self.assertGreater(count["span"], 30)
            self.assertGreaterEqual(count["roof"], 1)
            self.assertGreater(count["point"], 4)
            self.assertEqual(count["expert"], 8 * 16)
            self.assertGreater(count["arena"], 3)
            self.assertNotIn("NaN", dom)


if __name__ == "__main__":
    unittest.main(verbosity=2)
