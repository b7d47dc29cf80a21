#!/usr/bin/env python3
"""Words that must not be committed: marks of unfinished work, paths of one machine, merge leftovers, trailing blanks, missing first comments.

Prints one line per breach, `file:line: what`, and exits with 1 if there is any. Data files and licences are not read.
"""
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from check_includes import ROOT, tracked  # noqa: E402

UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b|not (yet )?implemented yet|\bplace" r"holder\b")
MACHINE = re.compile(r"(?<![\w.$}/-])/(work|root|home|farm)/\w|/tmp/(build|brief|scr|venv)")
MERGE = re.compile(r"^(<{7}|>{7}|={7})( |$)")
DATA = (".gguf", ".npy", ".npz", ".jsonl", ".csv", ".tsv", ".inp", ".out", ".json", ".txt", ".bin")
CODE = (".h", ".hpp", ".c", ".cpp", ".py", ".sh", ".cmake")
UNREAD = ("LICENSE", "tests/fuzz/corpus/", "tests/golden/", "tests/reference/templates/", "tests/reference/tokenizer/")


def first_comment(lines):
    """Does the file say what it is for within its first lines?"""
    head = [line for line in lines[:6] if line.strip() and not line.startswith(("#!", "#pragma", "#ifndef", "#define"))]
    return bool(head) and head[0].lstrip().startswith(("//", "/*", "#", '"""', 'r"""'))


def main():
    count = 0
    for name in tracked():
        if name.startswith(UNREAD) or (name.endswith(DATA) and not name.endswith("CMakeLists.txt")):
            continue
        try:
            lines = (ROOT / name).read_text().split("\n")
        except UnicodeDecodeError:
            continue
        found = []
        for number, line in enumerate(lines, 1):
            if UNFINISHED.search(line):
                found.append((number, "unfinished work is not committed"))
            if MACHINE.search(line):
                found.append((number, "a path of one machine"))
            if MERGE.match(line) and not name.endswith(".md"):
                found.append((number, "a merge mark"))
            if line != line.rstrip() and not name.endswith(".md"):
                found.append((number, "blanks at the end of the line"))
        if name.endswith(CODE) and not first_comment(lines):
            found.append((1, "the first lines do not say what the file is for"))
        for number, what in found:
            print(f"{name}:{number}: {what}")
        count += len(found)
    print(f"{count} breaches" if count else "words: as they should be")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
