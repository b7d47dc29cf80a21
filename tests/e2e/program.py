"""Runs the program for the end-to-end tests and compares logits. FTH_PROGRAM and FTH_BUILD_DIR come from CTest."""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "tests/reference"
TINY = ROOT / "tools/tiny_model/tiny-smallthinker-q4_0.gguf"
SKIPPED = 77  # CTest's SKIP_RETURN_CODE

# What the program measures of this machine is kept from test to test, and the caller's own cache is left alone.
CACHE = pathlib.Path(os.environ.get("FTH_BUILD_DIR", ROOT / "build/release")).absolute() / "tests/cache"
os.environ["XDG_CACHE_HOME"] = str(CACHE)

# Exit codes, docs/testing.md.
DONE, FAILED, USAGE, NO_FIT, BAD_MODEL, BAD_DEVICE = 0, 1, 2, 3, 4, 5


def skip(reason):
    print(f"skipped: {reason}")
    sys.exit(SKIPPED)


def program_path():
    path = pathlib.Path(os.environ.get("FTH_PROGRAM", ROOT / "build/release/forethought"))
    if not path.exists():
        raise SystemExit(f"{path} is not built")
    return path


def models_folder():
    return pathlib.Path(os.environ.get("FTH_BUILD_DIR", ROOT / "build/release")) / "tests/models"


def run(*args, stdin="", timeout=300):
    """CompletedProcess of the program with text output; never a terminal, never the caller's stdin."""
    return subprocess.run([program_path(), *map(str, args)], input=stdin, capture_output=True, text=True, timeout=timeout)


_figures = {}


def measured_cache(folder):
    """Puts this machine's speed and its disk's into a cache folder as if measured in peace, so that each run there does not measure them again."""
    if not _figures:
        subprocess.run([program_path(), "run", "-m", TINY, "--cpu-only", "--experts", "streamed", "--expert-slots", "16", "--repack", "off", "--warm-set", "off",
                        "-p", "x", "-n", "1"], stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
        for path in (CACHE / "forethought").glob("*.json"):
            if path.name in ("machine.json", "storage.json"):
                _figures[path.name] = path.read_text().replace('"busy": true', '"busy": false')
    kept = pathlib.Path(folder) / "forethought"
    kept.mkdir(parents=True, exist_ok=True)
    for name, text in _figures.items():
        (kept / name).write_text(text)


def must(*args, stdin="", timeout=300):
    """Standard output of a run that has to succeed."""
    done = run(*args, stdin=stdin, timeout=timeout)
    if done.returncode != 0:
        raise AssertionError(f"forethought {' '.join(map(str, args))}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def must_json(*args, **more):
    return json.loads(must(*args, **more))


def kernel_sets():
    """Names of the instruction sets that this machine can run, best first."""
    rows = next(d for d in must_json("devices", "--json")["devices"] if d["name"] == "cpu")["isa"]
    return [row["name"] for row in rows if row["runs"]]


def logits(model, tokens, *options, dump=()):
    """float32 [positions, vocabulary] of `forethought logits`, and the dumped values by name when any are asked for."""
    import numpy as np
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "out.npy"
        extra = ["--dump", ",".join(dump)] if dump else []
        must("logits", "-m", model, "--tokens", tokens, "--out", out, "--cpu-only", *extra, *options, timeout=600)
        values = {name: np.load(pathlib.Path(folder) / f"out.{name}.npy") for name in dump}
        return (np.load(out), values) if dump else np.load(out)


def log_softmax(x):
    import numpy as np
    x = x.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def divergence(exact, ours):
    """Kullback-Leibler divergence per position, in nats, and the share of positions with the same first choice."""
    import numpy as np
    p, q = log_softmax(exact), log_softmax(ours)
    return (np.exp(p) * (p - q)).sum(-1), float((p.argmax(-1) == q.argmax(-1)).mean())
