"""Runs a program and watches its memory from outside: VmHWM, the sum over its mappings, its cgroup's peak. Standard library only."""
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from figures import Cgroup  # noqa: E402

POLL_S, SMAPS_S = 0.01, 0.5


def kilobytes(path, key, name=None):
    """Bytes of a "Key:  123 kB" line in /proc; 0 when it is gone, or when `name` is given and the process does not have it (yet)."""
    try:
        text = path.read_text()
    except (OSError, ProcessLookupError):
        return 0
    if name is not None and not re.search(rf"^Name:\s+{re.escape(name)}$", text, re.M):
        return 0
    found = re.search(rf"^{key}:\s+(\d+) kB", text, re.M)
    return int(found[1]) * 1024 if found else 0


class Watched:
    """code, out, err, seconds; bytes: peak_rss (the largest VmHWM seen), smaps (Rss over all mappings, sampled), cgroup (None: not known).

    The rusage of a child that ended cannot be used: its maximum covers children of the child, such as the one that measures the memory bandwidth. The cgroup's
    peak covers that one too, when it runs, and the page cache of files that are read through it.
    """
    def __init__(self, command, limit=None, env=None, timeout=3600):
        try:
            group = Cgroup(limit)
        except OSError:
            if limit is not None:
                raise
            group = None
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            begin = time.monotonic()
            child = subprocess.Popen([str(c) for c in command], stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env,
                                     preexec_fn=group.enter if group else None)
            name, proc = pathlib.Path(command[0]).name[:15], pathlib.Path(f"/proc/{child.pid}")
            status, hwm, smaps, sampled = None, 0, 0, begin
            while status is None:
                status = child.poll()
                if time.monotonic() - begin > timeout:
                    child.kill()
                hwm = max(hwm, kilobytes(proc / "status", "VmHWM", name))  # before exec the child is a copy of this script, which does not count
                if time.monotonic() - sampled > SMAPS_S:
                    sampled = time.monotonic()
                    smaps = max(smaps, kilobytes(proc / "smaps_rollup", "Rss"))
                time.sleep(POLL_S)
            self.code, self.seconds = status, time.monotonic() - begin
            out.seek(0), err.seek(0)
            self.out, self.err = out.read(), err.read()
        self.peak_rss, self.smaps = hwm, smaps
        self.cgroup = group.peak() if group else None
        if group:
            group.remove()
