#!/usr/bin/env python3
"""Prints "passed failed skipped" of one CTest run, from its JUnit report, or from the log where CTest wrote no report.

    ctest_figures.py REPORT.xml LOG
"""
import pathlib
import re
import sys
import xml.etree.ElementTree as ElementTree


def main():
    report, log = map(pathlib.Path, sys.argv[1:3])
    if report.exists():
        suite = ElementTree.parse(report).getroot()
        total, failed = int(suite.get("tests", 0)), int(suite.get("failures", 0))
        skipped = int(suite.get("skipped", 0)) + int(suite.get("disabled", 0))
    else:
        found = re.search(r"(\d+) tests failed out of (\d+)", log.read_text())
        if not found:
            return 1
        failed, total, skipped = int(found.group(1)), int(found.group(2)), 0
    print(total - failed - skipped, failed, skipped)
    return 0


if __name__ == "__main__":
    sys.exit(main())
