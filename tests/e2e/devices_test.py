"""Devices from the outside: self-tests and what is kept of them, plugins that lie, crash, hang or die, options of devices, figures that plans rest on.

The faulty plugin is the cpu backend behind two devices that fail as FTH_FAULT or their options say (tests/engine/faulty_backend.cpp), the slow one takes its time to
compile (tests/engine/slow_backend.cpp).
"""
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time
import unittest

from program import BAD_DEVICE, DONE, TINY, USAGE, measured_cache, program_path

BUILD = pathlib.Path(os.environ["FTH_BUILD_DIR"])
FAULTY = (BUILD / "tests/fake_plugins/libfth_faulty.so").resolve()
SLOW = (BUILD / "tests/fake_plugins/libfth_slow.so").resolve()
PROMPT = "Translate to German: The old teacher buys a red car."
REPLY = "Der alte Lehrer kauft ein rotes Auto."


class Case(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        # A program of its own: the plugins beside the build's are other tests' business. One for all, since what is kept belongs to a program's file.
        cls.program = pathlib.Path(folder.name) / "forethought"
        shutil.copy(program_path(), cls.program)
        cls.first_cache = pathlib.Path(folder.name) / "cache"
        measured_cache(cls.first_cache)

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.cache = pathlib.Path(self.folder.name) / "cache"
        shutil.copytree(self.first_cache, self.cache)

    def forget(self, name):
        """Of what a first run has kept."""
        (self.cache / "forethought" / name).unlink()

    def run_it(self, *args, fault="", plugin=FAULTY, may_crash=False, **env):
        done = subprocess.run([self.program, *map(str, args), *(["--plugin", plugin] if plugin else [])], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=200,
                              env={**os.environ, "XDG_CACHE_HOME": str(self.cache), "FTH_FAULT": fault, **env})
        if not may_crash:
            self.assertGreaterEqual(done.returncode, 0, done.stderr)
        return done

    def devices(self, *args, **more):
        done = self.run_it("devices", "--json", *args, **more)
        self.assertEqual(done.returncode, DONE, done.stderr)
        found = json.loads(done.stdout)
        return {d["name"]: d for d in found["devices"]}, {b["name"]: b for b in found["backends"]}

    def answers(self, *args, **more):
        done = self.run_it("run", "-m", TINY, "-p", PROMPT, *args, **more)
        self.assertEqual(done.returncode, DONE, done.stderr)
        self.assertEqual(done.stdout.strip(), REPLY)
        return done.stderr


class Devices(Case):
    @classmethod
    def setUpClass(cls):
        """A first run tests the faulty devices and times segments on them, as if the machine were at rest; tests begin with what it has kept."""
        super().setUpClass()
        first = subprocess.run([cls.program, "run", "-m", TINY, "-p", PROMPT, "--plugin", FAULTY], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                               timeout=200, env={**os.environ, "XDG_CACHE_HOME": str(cls.first_cache)})
        if first.returncode != DONE:
            raise AssertionError(first.stderr)
        for path in (cls.first_cache / "forethought").glob("*.json"):
            path.write_text(path.read_text().replace('"busy": true', '"busy": false'))

    def test_both_devices_of_a_kind_are_tested_and_kept(self):
        self.forget("devices.json")
        found, _ = self.devices()
        for name in ("faulty:0", "faulty:1"):
            test = found[name]["self_test"]
            self.assertEqual((test["n_run"], test["failure"]), (test["n_cases"], ""))
            for times in (test["times"], test["cpu"]):
                self.assertGreater(times["batch_s"], times["launch_s"])
            self.assertGreater(test["times"]["write_bytes_per_second"], 1e6)
        self.assertNotIn("self_test", found["cpu"])
        kept = self.cache / "forethought/devices.json"
        rows = json.loads(kept.read_text())["plugins"]
        self.assertEqual([row["file"] for row in rows], [str(FAULTY)])
        # What is kept is believed, until it is asked to be refreshed.
        kept.write_text(kept.read_text().replace('"failure": ""', '"failure": "edited"'))
        self.assertEqual(self.devices()[1]["faulty"]["reason"], "edited")
        self.assertEqual(self.devices("--refresh")[1]["faulty"]["reason"], "")
        # Damaged: as if there were nothing. A device that lies now is found out, by a test that ends at its first case.
        for damage in ("{", '{"plugins": [1, {"file": 3}, {"devices": [{"index": -1}]}]}', '{"plugins": {}}'):
            self.assertEqual(self.devices(fault="lie")[0]["faulty:0"]["self_test"]["failure"] == "", damage == "{", "what is kept is believed")
            kept.write_text(damage)
            self.assertIn("rms_norm", self.devices(fault="lie")[0]["faulty:0"]["self_test"]["failure"])

    def test_a_new_plugin_file_is_tested_again(self):
        plugin = pathlib.Path(self.folder.name) / "libfth_faulty.so"
        shutil.copy(FAULTY, plugin)
        for fault in ("oom", "lie"):  # what is kept of the first is believed
            self.assertIn("self-test failed: rms_norm m=3 e=512: faulty: out of memory", self.devices(plugin=plugin, fault=fault)[0]["faulty:0"]["refusal"])
        os.utime(plugin, (1, 1))  # another file, as far as anybody can tell
        self.assertIn("expected", self.devices(plugin=plugin, fault="lie")[0]["faulty:0"]["refusal"])

    def test_a_device_that_computes_wrong_is_refused_even_when_named(self):
        self.forget("devices.json")
        found, _ = self.devices(fault="lie")
        for word in ("self-test failed: rms_norm", "expected"):
            self.assertIn(word, found["faulty:0"]["refusal"])
        self.assertIn("self-test failed", self.answers("-v", fault="lie"))
        for args in (("--device", "faulty:0"), ("--place", "head=faulty:1")):
            done = self.run_it("run", "-m", TINY, "-p", PROMPT, *args, fault="lie")
            self.assertEqual(done.returncode, BAD_DEVICE)
            self.assertIn("must not be used: self-test failed", done.stderr)

    def test_a_slow_device_is_listed_and_not_chosen(self):
        self.forget("devices.json")
        found, _ = self.devices(fault="slow")
        self.assertIn("slower than the CPU: a product of 2048 x 2048", found["faulty:0"]["refusal"])
        self.assertNotIn("faulty:0  attention", self.answers("-v", fault="slow"))
        self.assertIn("faulty:0  attention", self.answers("-v", "--device", "faulty:0", fault="slow"))

    def test_plugins_that_end_their_process_are_never_loaded(self):
        for fault, word in (("abort", "SIGABRT"), ("segv", "SIGSEGV"), ("kill", "SIGKILL"), ("abort-at-load", "SIGABRT")):
            self.forget("devices.json")
            _, backends = self.devices(fault=fault)
            self.assertFalse(backends["faulty"]["loaded"])
            if fault not in ("segv", "abort") or word in backends["faulty"]["reason"]:  # a sanitizer turns these into an exit code
                self.assertIn(f"its self-test ended with {word}", backends["faulty"]["reason"])
            self.assertIn("ended with", backends["faulty"]["reason"])
            self.answers(fault=fault)

    def test_errors_and_exceptions_in_the_self_test(self):
        for fault, word in (("oom", "out of memory in submit"), ("throw", "threw an exception through the boundary: unguarded")):
            self.forget("devices.json")
            found, _ = self.devices(fault=fault)
            self.assertIn(word, found["faulty:1"]["refusal"])
            self.answers(fault=fault)

    def test_a_self_test_that_hangs_is_ended(self):
        self.forget("devices.json")
        begin = time.monotonic()
        _, backends = self.devices(fault="hang", FORETHOUGHT_SELF_TEST_SECONDS="1")
        self.assertLess(time.monotonic() - begin, 60)
        self.assertIn("did not end within 1 s", backends["faulty"]["reason"])

    def test_a_device_that_fails_while_it_is_in_use(self):
        for fail in ("alloc:9", "compile:2", "submit:30", "lost:17", "throw:25", "read:20"):
            said = self.answers("--device", "faulty:1", "--device-option", f"faulty:1:fail={fail}")
            self.assertIn("faulty:1 failed: ", said)
            self.assertIn("run on cpu from here on", said)

    def test_a_plugin_that_ends_a_run_is_left_out_by_the_next(self):
        notes = self.cache / "forethought/crashed-plugins"
        for fail, name in (("segv:20", "SIGSEGV"), ("abort:20", "SIGABRT"), ("thread:20", "SIGSEGV")):
            crashed = self.run_it("run", "-m", TINY, "-p", PROMPT, "--device", "faulty:1", "--device-option", f"faulty:1:fail={fail}", may_crash=True)
            self.assertNotEqual(crashed.returncode, DONE)
            for word in (f"forethought: {name} ", f"in the plugin {FAULTY};", "devices --refresh"):
                self.assertIn(word, crashed.stderr)
            self.assertEqual(notes.read_text().count("\n"), 1)
            # The next run says so once, and is done by the CPU.
            said = self.answers()
            self.assertIn(f"{FAULTY}: it ended a run with {name}", said)
            self.assertFalse(notes.exists())
            self.assertNotIn("it ended a run", self.answers())
            _, backends = self.devices()
            self.assertFalse(backends["faulty"]["loaded"])
            self.assertIn(f"it ended a run with {name}", backends["faulty"]["reason"])
            named = self.run_it("run", "-m", TINY, "-p", PROMPT, "--device", "faulty:1")
            self.assertEqual(named.returncode, BAD_DEVICE)
            self.assertIn(f"faulty:1: the plugin {FAULTY} is not loaded: it ended a run with {name}", named.stderr)
            kept = self.cache / "forethought/devices.json"
            if name == "SIGABRT":  # tested again when somebody asks
                self.assertTrue(self.devices("--refresh")[1]["faulty"]["loaded"])
            else:
                shutil.copy(self.first_cache / "forethought/devices.json", kept)
            self.assertIn("faulty:1  attention", self.answers("-v", "--device", "faulty:1"))

    def test_notes_of_crashes_that_are_none(self):
        notes = self.cache / "forethought/crashed-plugins"
        notes.write_bytes(f"SIGSEGV\t1 bytes of 1.000000000\t{FAULTY}\nno tabs\n\xff\tx\n\t\t\n".encode("latin-1"))
        self.assertNotIn("it ended a run", self.answers())  # another file had that name
        self.assertFalse(notes.exists())
        self.assertTrue(self.devices()[1]["faulty"]["loaded"])

    def test_a_plugin_file_that_goes_while_it_is_used(self):
        plugin = pathlib.Path(self.folder.name) / "libfth_faulty.so"
        shutil.copy(FAULTY, plugin)
        self.devices(plugin=plugin)
        child = subprocess.Popen([self.program, "run", "-m", TINY, "-p", PROMPT, "--plugin", plugin, "--device", "faulty:0"], stdin=subprocess.DEVNULL,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                 env={**os.environ, "XDG_CACHE_HOME": str(self.cache), "FTH_FAULT": "slow"})  # 10 ms a submit
        first = os.read(child.stdout.fileno(), 1)
        self.assertIsNone(child.poll())
        plugin.unlink()
        rest, said = child.communicate(timeout=200)
        self.assertEqual(child.returncode, DONE, said)
        self.assertEqual((first + rest).decode().strip(), REPLY)
        self.assertNotIn(b"failed", said)
        self.assertEqual(self.run_it("run", "-m", TINY, "-p", PROMPT, plugin=plugin).stdout.strip(), REPLY)  # without it

    def test_the_cpu_begins_for_an_npu_that_compiles(self):
        long_run = ("run", "-m", TINY, "-p", PROMPT, "-n", "400", "--ignore-end", "-v")
        wanted = self.run_it(*long_run, "--cpu-only", plugin=None).stdout
        npu = ("--device", "slow:0", "--device-option", "slow:0:kind=npu", "--device-option", "slow:0:compile_ms=1")
        note = "note: cpu begins while slow:0 compiles, which takes over when it is ready (an NPU takes its time to compile)"
        done = self.run_it(*long_run, *npu, plugin=SLOW)
        self.assertEqual(done.returncode, DONE, done.stderr)
        self.assertEqual(done.stdout, wanted)
        self.assertIn(note, done.stderr)
        self.assertRegex(done.stderr, r"slow:0: \d+ segments compiled in [\d.]+ s; they run there from now on")
        for device in ("cpu", "slow:0"):
            self.assertRegex(done.stderr, rf"{device} +attention")
        self.assertIn(note, self.run_it("plan", "-m", TINY, *npu, plugin=SLOW).stderr)
        for command in (("run", "--start-on-cpu", "off"), ("bench", "--pp", "8", "--tg", "2", "-r", "1")):  # bench waits unless it is told not to
            self.assertNotIn("begins while", self.run_it(command[0], "-m", TINY, *npu, *command[1:], *(["-p", "x", "-n", "2"] if command[0] == "run" else []),
                                                         plugin=SLOW).stderr)
        self.assertEqual(self.run_it(*long_run, "--start-on-cpu=maybe").returncode, USAGE)
        asked = self.run_it("run", "-m", TINY, "--device", "slow:0", "-n", "8", "--start-on-cpu", PROMPT, plugin=SLOW)  # its word may be left out
        self.assertIn("(as asked)", asked.stderr)

    def test_what_compiling_took_decides_for_the_next_run(self):
        gpu = ("--device", "slow:0", "--device-option", "slow:0:kind=gpu", "--device-option", "slow:0:compile_ms=250")
        self.assertNotIn("begins while", self.answers(*gpu, plugin=SLOW))
        said = self.answers(*gpu, plugin=SLOW)
        self.assertRegex(said, r"cpu begins while slow:0 compiles.*compiling took it [1-9][\d.]* s")

    def test_a_plugin_that_is_gone(self):
        done = self.run_it("devices", "--json", plugin=pathlib.Path(self.folder.name) / "libfth_gone.so")
        self.assertEqual(done.returncode, DONE)
        self.assertIn("No such file", done.stdout)

    def test_where_plugins_are_found(self):
        """Beside the program, where an installation has them, and where the environment says; never by a relative path."""
        prefix = pathlib.Path(self.folder.name) / "prefix"
        (prefix / "bin").mkdir(parents=True)
        program = shutil.copy(self.program, prefix / "bin")
        elsewhere = pathlib.Path(self.folder.name) / "elsewhere"
        for place, path in ((prefix / "bin/plugins", ""), (prefix / "bin", ""), (prefix / "lib/forethought", ""), (elsewhere, f"{elsewhere}:not/absolute"),
                            (elsewhere, f"/nonexistent:{elsewhere}/libfth_faulty.so")):
            place.mkdir(parents=True, exist_ok=True)
            plugin = pathlib.Path(shutil.copy2(FAULTY, place))
            done = subprocess.run([program, "devices", "--json"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200, cwd=elsewhere if elsewhere.exists() else None,
                                  env={**os.environ, "XDG_CACHE_HOME": str(self.cache), "FORETHOUGHT_PLUGIN_PATH": path})
            self.assertEqual(done.returncode, DONE, done.stderr)
            backends = {b["path"]: b for b in json.loads(done.stdout)["backends"]}
            found = [b for at, b in backends.items() if at and pathlib.Path(at).resolve() == plugin.resolve()]
            self.assertEqual([b["loaded"] for b in found], [True], done.stdout)
            if "not/absolute" in path:
                self.assertIn("absolute", backends["not/absolute"]["reason"])
            plugin.unlink()
        # In the working directory, and named by nobody.
        shutil.copy2(FAULTY, elsewhere)
        done = subprocess.run([program, "devices", "--json"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200, cwd=elsewhere,
                              env={**os.environ, "XDG_CACHE_HOME": str(self.cache), "FORETHOUGHT_PLUGIN_PATH": ""})
        self.assertNotIn("faulty", done.stdout)

    def test_options_of_devices(self):
        for option, code, word in (("faulty:0:turbo=1", USAGE, "the one option is fail"), ("nobody:a=b", USAGE, "no backend nobody"),
                                   ("faulty", USAGE, "write BACKEND:KEY=VALUE"), ("faulty:x:y=1", USAGE, "write BACKEND:KEY=VALUE")):
            done = self.run_it("run", "-m", TINY, "-p", PROMPT, "--device-option", option)
            self.assertEqual(done.returncode, code, done.stderr)
            self.assertIn(word, done.stderr)

    def test_cpu_only_opens_no_plugin_and_runs_no_self_test(self):
        trace = pathlib.Path(self.folder.name) / "calls"
        tool = ["strace", "-f", "-e", "trace=openat,open,execve", "-o", trace]
        if shutil.which("strace") is None or subprocess.run([*tool, "true"], capture_output=True).returncode != 0:
            self.skipTest("strace is not there or may not trace")
        own = pathlib.Path(self.folder.name) / "forethought"
        shutil.copy(self.program, own)
        (own.parent / "plugins").mkdir()
        shutil.copy(FAULTY, own.parent / "plugins")
        done = subprocess.run([*tool, own, "run", "-m", TINY, "-p", PROMPT, "--cpu-only", "--gather-below", "80"], stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, timeout=200, env={**os.environ, "XDG_CACHE_HOME": str(self.cache),
                                                           "FORETHOUGHT_PLUGIN_PATH": str(FAULTY.parent)})
        self.assertEqual(done.returncode, DONE, done.stderr)
        calls = trace.read_text()
        self.assertIn("tiny-smallthinker", calls)
        self.assertNotIn("libfth_", calls)
        self.assertEqual(calls.count("execve("), 1)

    def test_a_missing_device_says_which_exist(self):
        done = self.run_it("run", "-m", TINY, "-p", PROMPT, "--device", "vulkan:7")
        self.assertEqual(done.returncode, USAGE)
        self.assertIn("there are: cpu, faulty:0, faulty:1", done.stderr)

    def test_plans_rest_on_measured_runs(self):
        self.forget("segments.json")
        plan = json.loads(self.run_it("plan", "-m", TINY, "--json").stdout)
        by_kind = {p["kind"]: p for p in plan["placements"]}
        self.assertTrue(by_kind["attention"]["measured"])
        self.assertTrue(by_kind["head"]["measured"])
        self.assertFalse(by_kind["experts"]["measured"])
        kept = self.cache / "forethought/segments.json"
        rows = json.loads(kept.read_text())
        self.assertGreaterEqual(len({row["device"] for row in rows["runs"]}), 3)
        # The device's word counts for nothing against what is kept: with its runs a thousand times as fast, the work goes there; a thousand times slower, it stays.
        for factor, there in ((1e-3, True), (1e3, False)):
            changed = [{**row, "busy": False, "seconds": row["seconds"] * (factor if "fails when" in row["device"] else 1)} for row in rows["runs"]]
            kept.write_text(json.dumps({"runs": changed}))
            plan = json.loads(self.run_it("plan", "-m", TINY, "--json").stdout)
            heads = next(p for p in plan["placements"] if p["kind"] == "head")
            self.assertEqual(heads["device"] != "cpu", there, heads)
        kept.write_text('{"runs": [{"device": "x"}, 4, {"shape": 1}]}')
        self.answers()

    def test_bench_runs_every_placement(self):
        done = self.run_it("bench", "-m", TINY, "--placements", "--pp", "16", "--tg", "4", "-r", "1", "--json")
        self.assertEqual(done.returncode, DONE, done.stderr)
        result = json.loads(done.stdout)
        rows = {row["placement"]: row for row in result["placements"]}
        for name in ("cpu", "faulty:0", "attention on faulty:0", "head on faulty:1"):
            self.assertIn(name, rows)
        self.assertEqual(sum(row["chosen"] for row in rows.values()), 1)
        for row in rows.values():
            if not row["reason"]:
                self.assertGreater(min(row["prompt_tok_s"], row["decode_tok_s"], row["expected_decode_tok_s"]), 0, row)
        self.assertIn("chosen placement", result["verdict"])
        self.assertEqual(self.run_it("bench", "-m", TINY, "--placements", "--device", "faulty:0").returncode, USAGE)


class Drivers(Case):
    def test_what_drivers_compiled_is_kept_and_may_be_damaged(self):
        for backend, pattern in (("vulkan", "vulkan-0.pipelines"), ("opencl", "opencl/*")):
            plugin = BUILD / f"plugins/libfth_{backend}.so"
            found = self.devices(plugin=plugin)[0] if plugin.exists() else {}
            if f"{backend}:0" not in found:
                print(f"no {backend} device here")
                continue
            self.answers("--device", f"{backend}:0", plugin=plugin)
            kept = list((self.cache / "forethought").glob(pattern))
            self.assertTrue(kept, f"{backend} keeps nothing")
            for path in kept:
                path.write_bytes(path.read_bytes()[:-5][::-1])
            said = self.answers("--device", f"{backend}:0", plugin=plugin)
            self.assertIn(f"{backend}:0  attention", said)


if __name__ == "__main__":
    unittest.main(verbosity=2)
