#!/usr/bin/env python3
"""The memory budget is a promise: peak resident memory, seen from outside the process, stays within --ram for budgets from the floor to all resident,
and the ids are those of a resident run. A synthetic model of 229 MB (preset mini) and 200 generated tokens.

    budget_test.py FOLDER          the model is made there
"""
import os
import pathlib
import re
import subprocess
import sys
import time
import unittest

from program import program_path, run

MIB = 1 << 20
MODEL = None
GENERATOR = pathlib.Path(__file__).resolve().parents[2] / "tools/synthetic/make_gguf.py"


def generate(*options):
    """Ids, and the largest VmHWM that was seen in /proc while the program ran."""
    arguments = [program_path(), "run", "-m", MODEL, "--tokens", MODEL.parent / "mini-tokens.txt", "-n", "200", "--ignore-end", "--print-ids", "-q", "--cpu-only",
                 "-c", "512", "-ub", "64", *map(str, options)]
    # A cache of its own: the second and third budget begin with the warm set of the one before.
    child = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "XDG_CACHE_HOME": str(MODEL.parent / "cache")})
    status, peak = pathlib.Path(f"/proc/{child.pid}/status"), 0
    while child.poll() is None:
        try:
            # A process that is still this script's copy, before exec, does not count.
            text = status.read_text()
            if re.search(r"^Name:\s+forethought", text, re.M) and (line := re.search(r"VmHWM:\s+(\d+) kB", text)):
                peak = max(peak, int(line[1]) * 1024)
        except (FileNotFoundError, ProcessLookupError):
            break
        time.sleep(0.002)
    out, err = child.communicate()
    assert child.returncode == 0, err
    return out.split(), peak


class Budget(unittest.TestCase):
    def test_peak_memory_stays_within_the_budget(self):
        refused = run("plan", "-m", MODEL, "--ram", "8MiB", "-c", "512", "-ub", "64", "--cpu-only")
        self.assertEqual(refused.returncode, 3, refused.stderr)
        floor = int(re.search(r"smallest budget that works is --ram (\d+)MiB", refused.stderr)[1])
        ids, resident = generate("--experts", "resident")
        self.assertEqual(len(ids), 200)
        print(f"floor {floor} MiB, resident {resident / MIB:.0f} MiB")
        top = resident // MIB
        self.assertLess(floor, top)
        for budget in (floor + 1, floor + (top - floor) // 3, floor + (top - floor) * 2 // 3):
            streamed, peak = generate("--ram", f"{budget}MiB")
            print(f"--ram {budget}MiB: peak {peak / MIB:.1f} MiB")
            self.assertEqual(streamed, ids, f"budget {budget} MiB")
            self.assertLessEqual(peak, budget * MIB)


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    MODEL = folder / "mini-Q4_0.gguf"
    if not MODEL.exists():
        part = MODEL.with_suffix(".part")
        subprocess.run([sys.executable, GENERATOR, "--preset", "mini", "--type", "Q4_0", "--out", part], check=True, stderr=subprocess.DEVNULL)
        part.rename(MODEL)
    (folder / "mini-tokens.txt").write_text(" ".join(str(i * 7 % 500) for i in range(100)))
    unittest.main(argv=sys.argv[:1], verbosity=2)
