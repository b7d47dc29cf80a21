#!/usr/bin/env python3
"""Prints, of one CTest run's JUnit report, what each failed test said: where it failed and its last lines.

    ctest_failures.py REPORT.xml [LINES]
"""
import re
import sys
import xml.etree.ElementTree as ElementTree

TELLING = re.compile(r"Failure$|^FAIL|^ERROR|\[  FAILED  \]|: error|Error:|ERROR: |assert|terminate called")


def telling(lines, limit):
    """Indices of lines worth reading: those that name a failure with five after each, then the end."""
    chosen = set()
    for i, line in enumerate(lines):
        if TELLING.search(line) and len(chosen) < limit:
            chosen.update(range(i, min(i + 6, len(lines))))
    chosen.update(range(max(len(lines) - limit // 3, 0), len(lines)))
    return sorted(chosen)


def main():
    limit = int(sys.argv[2]) if len(sys.argv) > 2 else 60
    for case in ElementTree.parse(sys.argv[1]).getroot().iter("testcase"):
        if case.get("status") != "fail":
            continue
        print(f"--- {case.get('name')} ({case.get('time')} s)")
        lines = (case.findtext("system-out") or "").splitlines()
        before = -1
        for i in telling(lines, limit):
            if i != before + 1:
                print("  ...")
            print("  " + lines[i][:300])
            before = i
    return 0


if __name__ == "__main__":
    sys.exit(main())
