#!/usr/bin/env python3
"""Writes docs/ops.md: which op runs on which backend, by element type, from the conformance cases and each backend's conformance.txt.

The lists are held to what the devices do: a case that a list calls unsupported must be refused, any other must run and be right (docs/testing.md). With --check
nothing is written; exit 1 when the page is not what this would write.
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/ops.md"
CASES = ROOT / "tests/conformance/cases"
FIRST = ["cpu", "vulkan", "opencl"]  # in this order, then the others by name, the template last
TYPES = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q4_k", "q6_k"]
# What the element type of a case line is that of: of weights, or of the cache.
OF = {"embed": ("w", None), "matmul": ("w", None), "matmuls": ("w", None), "experts": ("w", None), "attention": ("state", "f16"),
      "attention_block": ("w", None), "dense_block": ("w", None), "moe_block": ("w", None), "head": ("w", None)}
SEGMENTS = {"attention_block": "attention segment", "dense_block": "dense layer segment", "moe_block": "experts, from router to combine", "head": "head segment",
            "matmuls": "several products of one input"}


def globbed(pattern):
    return re.compile(".*".join(re.escape(part) for part in pattern.split("*")), re.S)


def case_lines():
    for path in sorted(CASES.glob("*.txt")):
        if path.name == "perf.txt":
            continue
        for line in path.read_text().splitlines():
            line = line.strip()
            if line and not line.startswith("#"):
                yield line


def backends():
    """Name: (patterns of what it refuses, patterns of what it gets wrong)."""
    found = {}
    for path in [*sorted(ROOT.glob("backends/*/conformance.txt")), ROOT / "plugins/null/conformance.txt"]:
        refused, wrong = [], []
        for line in path.read_text().splitlines():
            word, _, rest = line.strip().partition(" ")
            if word == "unsupported":
                refused.append(globbed(rest))
            elif word == "expected_failure":
                wrong.append(globbed(rest))
        found[path.parent.name] = (refused, wrong)
    order = [n for n in FIRST if n in found] + sorted(n for n in found if n not in FIRST and n != "null") + ["null"]
    return {name: found[name] for name in order}


def row_of(line):
    """(op, element type) of a case line; the type is '' where the op has none."""
    words = line.split()
    values = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    if words[0] not in OF:
        return words[0], ""
    key, default = OF[words[0]]
    kind = values.get(key, default) or ""
    if words[0] == "attention" and "pages" in values:
        kind += ", pages"
    return words[0], kind


def page():
    rows, known = {}, backends()
    for line in case_lines():
        rows.setdefault(row_of(line), []).append(line)
    rank = {t: i for i, t in enumerate(TYPES)}
    ordered = sorted(rows, key=lambda r: (r[0] in SEGMENTS, r[0], rank.get(r[1].split(",")[0], -1), r[1]))
    out = ["# Ops", "",
           "Which op runs on which backend, by the element type of its weights (attention: of its cache). Written by `tools/support_matrix.py` from the conformance",
           "cases and the lists of what each backend refuses; the conformance tests hold the lists to what the devices do. What a device takes depends on its sizes as well:",
           "`forethought plan` names each refusal with its numbers. Meaning and shapes of the ops: `plugins/abi/fth_ops.def`.", "",
           "`yes`: every case runs and is right. `3 of 9`: the others are refused, and run on the CPU. `no`: all are refused. A `*` marks known wrong answers.", "",
           "| op | type | cases | " + " | ".join(known) + " |", "|---|---|---|" + "---|" * len(known)]
    for op, kind in ordered:
        lines = rows[(op, kind)]
        cells = []
        for refused, wrong in known.values():
            runs = [line for line in lines if not any(p.fullmatch(line) for p in refused)]
            cell = "yes" if len(runs) == len(lines) else f"{len(runs)} of {len(lines)}" if runs else "no"
            cells.append(cell + ("*" if any(p.fullmatch(line) for line in runs for p in wrong) else ""))
        out.append(f"| {SEGMENTS.get(op, op)} | {kind or '-'} | {len(lines)} | " + " | ".join(cells) + " |")
    return "\n".join(out) + "\n"


def main():
    text = page()
    if "--check" in sys.argv[1:]:
        if not PAGE.exists() or PAGE.read_text() != text:
            print("docs/ops.md is not current: run tools/support_matrix.py")
            return 1
        return 0
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
