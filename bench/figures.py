"""What the benchmark scripts share: what ran where, statistics, tables, CSV files, a page cache without the model, memory cgroups. Standard library only."""
import csv
import datetime
import json
import os
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench/results"
MIB = 1 << 20


def say(text):
    print(text, file=sys.stderr, flush=True)


def program(given=None):
    path = pathlib.Path(given or os.environ.get("FTH_PROGRAM", ROOT / "build/release/forethought"))
    if not path.exists():
        raise SystemExit(f"{path} is not built; ./quickstart builds it")
    return path.resolve()


def vocabulary(fth, file):
    """How many token ids a model has."""
    report = subprocess.run([fth, "inspect", file, "--json"], check=True, capture_output=True, text=True).stdout
    return next(t["shape"][0] for t in json.loads(report)["tensors"] if t["name"] == "token_embd.weight")


def commit():
    """Short commit, with + when the tree has changes that are not in it."""
    def git(*args):
        return subprocess.run(["git", "-C", ROOT, *args], capture_output=True, text=True)
    found = git("rev-parse", "--short=10", "HEAD")
    if found.returncode != 0:
        return "unknown"
    dirty = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results").stdout.strip()
    return found.stdout.strip() + ("+" if dirty else "")


def cpu():
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return "unknown CPU"


def cpu_slug():
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\(r\)|\(tm\)|processor|cpu", " ", cpu().lower())).strip("-")


def without_folders(words):
    """A command as it goes into a CSV file: files by name, so that no row has paths of one machine."""
    return " ".join(re.sub(r"[^ =]*/", "", str(word)) for word in words)


def invocation():
    """The command line of the script that runs."""
    return " ".join([str(pathlib.Path(sys.argv[0]).resolve().relative_to(ROOT)), without_folders(sys.argv[1:])]).strip()


def warn_when_busy():
    """Two programs that are compared on a machine that does other work are compared by how they bear it."""
    load = os.getloadavg()[0]
    if load > 0.5 * (os.cpu_count() or 1):
        say(f"note: the load average is {load:.1f} on {os.cpu_count()} cores: the machine is busy, figures are too low, and those of programs that spin most of all")


def today():
    return datetime.date.today().isoformat()


def where():
    """The columns that every row of every CSV file begins with."""
    return {"date": today(), "commit": commit(), "cpu": cpu(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2)}


def percentile(values, share):
    """Linear between the two nearest ranks."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def median(values):
    return percentile(values, 0.5)


def write_csv(path, rows, append=False):
    """All rows have the columns of the first. An append to a file with other columns is refused."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(rows[0])
    append = append and path.exists() and path.stat().st_size > 0
    if append and path.read_text().splitlines()[0].split(",") != columns:
        raise SystemExit(f"{path} has other columns; give another --csv or move it away")
    with open(path, "a" if append else "w", newline="") as out:
        writer = csv.DictWriter(out, columns, lineterminator="\n")
        if not append:
            writer.writeheader()
        writer.writerows(rows)
    say(f"{len(rows)} rows in {path}")


def table(columns, rows):
    """Text: numbers to the right."""
    cells = [[str(c) for c in columns]] + [[str(c) for c in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    def number(cell):
        return bool(re.match(r"^[-+]?[\d.,]+( ?(%|x|ms|MiB|s))?$|^-$", cell))
    right = [all(number(row[i]) for row in cells[1:]) for i in range(len(columns))]
    lines = ["  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right)).rstrip() for row in cells]
    return "\n".join(lines)


def make_cold(paths, how="auto"):
    """Takes files out of the page cache; returns how: drop_caches (all of the machine's cache) or posix_fadvise (these files, pages that nobody maps)."""
    if how in ("auto", "drop_caches"):
        try:
            os.sync()
            pathlib.Path("/proc/sys/vm/drop_caches").write_text("3\n")
            return "drop_caches"
        except OSError as error:
            if how == "drop_caches":
                raise SystemExit(f"drop_caches is not permitted here ({error}); use --cold posix_fadvise") from error
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fdatasync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
    return "posix_fadvise"


class Cgroup:
    """A memory cgroup for one child, v2 or v1. `limit` None: only counted. Raises OSError where none can be made."""
    def __init__(self, limit=None):
        v2, v1 = pathlib.Path("/sys/fs/cgroup"), pathlib.Path("/sys/fs/cgroup/memory")
        name = f"forethought-bench-{os.getpid()}-{time.monotonic_ns()}"
        if (v2 / "cgroup.controllers").exists() and "memory" in (v2 / "cgroup.controllers").read_text().split():
            if "memory" not in (v2 / "cgroup.subtree_control").read_text().split():
                (v2 / "cgroup.subtree_control").write_text("+memory")
            self.version, self.path, limit_file, self.peak_file = 2, v2 / name, "memory.max", "memory.peak"
        elif (v1 / "cgroup.procs").exists():
            self.version, self.path, limit_file, self.peak_file = 1, v1 / name, "memory.limit_in_bytes", "memory.max_usage_in_bytes"
        else:
            raise OSError("no memory cgroup controller is mounted")
        self.path.mkdir()
        try:
            if limit is not None:
                (self.path / limit_file).write_text(str(limit))
        except OSError:
            self.path.rmdir()
            raise

    def enter(self):
        """In the child, before exec."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def peak(self):
        """Bytes, page cache and kernel memory of the group included; None where the kernel does not say."""
        try:
            return int((self.path / self.peak_file).read_text())
        except (OSError, ValueError):
            return None

    def remove(self):
        for _ in range(50):
            try:
                self.path.rmdir()
                return
            except OSError:
                time.sleep(0.02)
        say(f"{self.path} could not be removed")
