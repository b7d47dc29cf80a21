#!/usr/bin/env python3
"""The rules of the tree that a compiler does not see: who may include whom, how long a file may be, where environment and JSON may appear.

Prints one line per breach, `file:line: what`, and exits with 1 if there is any.
"""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Folder: the folders whose headers its files may include, besides its own. The longest matching folder counts.
ALLOWED = {
    "core/base": (),
    "core/profile": ("core/base",),
    "core/device": ("core/base", "core/profile", "plugins/abi"),
    "core/model": ("core/base",),
    "core/text": ("core/base", "core/model"),
    "core/plan": ("core/base", "core/model", "core/device", "plugins/abi"),
    "core/experts": ("core/base", "core/profile"),
    "core/engine": ("core", "plugins/abi"),
    "plugins": ("core/base", "plugins"),
    "backends": ("core/base", "plugins/abi", "plugins/sdk"),      # each backend its own folder, never another's
    "tools": ("core", "plugins/abi", "tools"),
    "examples": ("core", "plugins"),
    "bench": ("core", "plugins", "backends", "bench"),
    "tests": ("core", "plugins", "backends", "tests", "tools"),
}
EXCEPTIONS = {("backends/builtin.cpp", "core/device/registry.h")}  # the list of linked-in backends
LONGEST = 600
LINE_LIMITS = {"core/engine/step.cpp": 300, "plugins/abi/fth_backend.h": 250}
SOURCES = (".h", ".hpp", ".c", ".cpp", ".cu", ".py", ".sh", ".comp", ".cl", ".def")
CODE = (".h", ".hpp", ".c", ".cpp", ".cu", ".def")
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')
SYSTEM_INCLUDE = re.compile(r"^\s*#\s*include\s+<([^>]+)>")


def tracked():
    """Files of the repository, new ones included, ignored ones not."""
    names = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True)
    return [name for name in sorted(set(names.stdout.splitlines())) if (ROOT / name).is_file()]


def home(name):
    """The folder that owns a file under the rules: core/model, backends/cpu, plugins, tests ..."""
    parts = name.split("/")
    return "/".join(parts[:2]) if parts[0] in ("core", "backends") and len(parts) > 2 else parts[0]


def within(name, folder):
    return name == folder or name.startswith(folder + "/")


def include_breach(name, included):
    """Why `name` may not include `included`, or None."""
    if (name, included) in EXCEPTIONS:
        return None
    if "/" not in included:                      # beside the including file: plugins/abi must compile on its own
        return None if (ROOT / name).with_name(included).exists() else f'"{included}" is not written from the root'
    if not (ROOT / included).exists() and included.split("/")[0] not in ALLOWED:
        return None                              # a vendor's header
    owner = home(name)
    if within(included, owner):
        return None
    allowed = ALLOWED.get(owner, ALLOWED.get(owner.split("/")[0], ()))
    if any(within(included, folder) for folder in allowed):
        return None
    return f"{owner} may not include {included}; it may include {', '.join((owner, *allowed))}"


def breaches(name):
    text = (ROOT / name).read_text(errors="replace")
    lines = text.splitlines()
    limit = LINE_LIMITS.get(name, LONGEST)
    if len(lines) > limit:
        yield len(lines), f"{len(lines)} lines, at most {limit}: split by what changes together"
    if not name.endswith(CODE):
        return
    top = name.split("/")[0]
    for number, line in enumerate(lines, 1):
        found = INCLUDE.match(line)
        if found and (why := include_breach(name, found.group(1))):
            yield number, why
        found = SYSTEM_INCLUDE.match(line)
        if found and found.group(1).startswith("boost/json") and top not in ("tools", "tests", "bench"):
            yield number, "JSON stays in tools/ and tests/"
        if re.search(r"\b(getenv|secure_getenv|setenv|putenv)\s*\(", line) and top not in ("tools", "tests", "bench"):
            yield number, "environment variables are read in tools/ only"


def main():
    count = 0
    for name in tracked():
        if name.endswith(SOURCES):
            for number, what in breaches(name):
                print(f"{name}:{number}: {what}")
                count += 1
    print(f"{count} breaches" if count else "includes, lengths, environment, JSON: as they should be")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
