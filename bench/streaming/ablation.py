#!/usr/bin/env python3
"""What each part of streaming buys: generation under a budget, cold, with one thing changed at a time. Writes bench/results/streaming-ablation.csv.

    bench/streaming/ablation.py --dir FOLDER                  4B at 1 GiB and at two thirds of its size, 21B at 8 GiB: about half an hour
    bench/streaming/ablation.py --dir FOLDER --only 4b-1GiB --rounds 1 --tokens 40
    bench/streaming/ablation.py --dir FOLDER --quick          a model of 229 MB, one round: a smoke test

The models are synthetic (tools/synthetic: random weights in the published shapes, 65 % ReLU zeros, expert popularity as in the SmallThinker report), made and packed
in --dir when they are not there (4B: 5 GB; 21B: 24 GB while packing, 12 GB after: its plain file is then removed). Each run reads a prompt of 256 tokens and generates --tokens more; all runs of a
model must give the same ids, and none may pass its budget, seen from outside the process: either is an error. Rounds go through all rows in turn, so that a slower
quarter of an hour meets every row; the medians are printed and written.

The warm set is left by a run over another prompt, so it knows the model and not the text.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from figures import MIB, RESULTS, ROOT, make_cold, median, program, say, table, warn_when_busy, where, without_folders, write_csv  # noqa: E402
from watched import Watched  # noqa: E402

SYNTHETIC = ROOT / "tools/synthetic"
SHAPED = "--type Q4_0 --popularity report --topic-weight 0.5 --gate-sparsity 0.95:0.65".split()
VOCABULARY = {"mini": 32768, "4b-a0.6b": 151643, "21b-a3b": 151643}
# name: (preset, file, budget in bytes or share of the file, more options of every run)
CASES = {
    "4b-1GiB": ("4b-a0.6b", "4b.packed.gguf", 1 << 30, ()),
    "4b-two-thirds": ("4b-a0.6b", "4b.packed.gguf", 2 / 3, ()),
    "21b-8GiB": ("21b-a3b", "21b.packed.gguf", 8 << 30, ()),
}
QUICK = {"mini-half": ("mini", "mini.packed.gguf", 0.5, ("-c", 512, "-ub", 64))}

SETTLE = 40  # generated tokens that are not counted

BASE = {"resident": False, "prefetch": "on", "early": "on", "guess": "auto", "warm": False, "reader": "uring", "policy": "reuse"}
# Without a budget, the whole model mapped; then one thing changed at a time. The first five add a mechanism each; the others change a part of "auto", which is what the program does by default but for the warm set.
ROWS = {
    "resident": {"resident": True},
    "no prefetch": {"prefetch": "off", "early": "off", "guess": "off"},
    "exact prefetch": {"early": "off", "guess": "off"},
    "+ gates first": {"guess": "off"},
    "+ guess": {"guess": "on"},
    "+ warm set": {"guess": "on", "warm": True},
    "auto": {},
    "auto + warm set": {"warm": True},
    "pread": {"reader": "pread"},
    "lru": {"policy": "lru"},
    "lfu": {"policy": "lfu"},
}


def python():
    """One that has numpy and gguf: ./setup's, or this."""
    ours = ROOT / "build/venv/bin/python"
    return ours if ours.exists() else sys.executable


def make_model(fth, folder, preset, name):
    packed = folder / name
    if packed.exists():
        return packed
    plain = folder / name.replace(".packed", "")
    made = not plain.exists()
    if made:
        say(f"making {plain} (synthetic, {preset})")
        part = plain.with_suffix(".part")
        subprocess.run([python(), SYNTHETIC / "make_gguf.py", "--preset", preset, *SHAPED, "--out", part], check=True)
        part.rename(plain)
    subprocess.run([fth, "pack", plain, packed], check=True, stdout=sys.stderr)
    if made and plain.stat().st_size > 8 << 30:  # rivals.py wants the small one
        plain.unlink()
    return packed


def make_tokens(path, vocabulary, seed):
    if not path.exists():
        done = subprocess.run([python(), SYNTHETIC / "make_tokens.py", "--count", "256", "--vocab", str(vocabulary), "--stay", "0.9", "--seed", str(seed)],
                              check=True, capture_output=True, text=True)
        path.write_text(done.stdout)
    return path


def command(fth, model, tokens, budget, n, row, warm_file, more):
    out = [fth, "run", "-m", model, "--tokens", tokens, "-n", n, "--ignore-end", "--json", "-q", "--cpu-only",
           *(["--experts", "resident"] if row["resident"] else ["--ram", budget]),
           "--expert-prefetch", row["prefetch"], "--expert-early-gates", row["early"], "--expert-guess", row["guess"], "--expert-reader", row["reader"], "--expert-policy", row["policy"],
           "--warm-set", warm_file if row["warm"] else "off", *more]
    return [str(c) for c in out]


def measure(run, budget, resident):
    """The columns that are measured, of one run."""
    if run.code != 0:
        raise SystemExit(f"exit {run.code}\n{run.err[-2000:]}")
    answer = json.loads(run.out)
    stats = answer["stats"]
    if "experts" not in stats and not resident:
        raise SystemExit("all experts fit the budget: nothing is streamed, nothing to compare")
    # Steady state: what the prompt left in the slots is its last layers'.
    tokens = stats["tokens"][min(SETTLE, len(stats["tokens"]) // 4):]
    n, seconds = len(tokens), sum(t["seconds"] for t in tokens)
    io = {key: sum(t[key] for t in tokens) for key in tokens[0] if key != "seconds"}
    asked = max(io["requested"], 1)
    return answer["ids"], stats.get("experts", "all in memory"), {
        "tok_s": n / seconds,
        "hit_percent": 100 * io["hits"] / asked,
        "late_percent": 100 * io["late"] / asked,
        "mib_per_token": io["bytes_read"] / n / MIB,
        "compute_ms": 1e3 * (seconds - io["stall_seconds"]) / n,
        "stall_ms": 1e3 * io["stall_seconds"] / n,
        "io_ms": 1e3 * io["io_seconds"] / n,
        "read_gb_s": io["bytes_read"] / io["io_seconds"] / 1e9 if io["io_seconds"] > 0 else 0.0,
        "merit": min(1.0, max(seconds - io["stall_seconds"], io["io_seconds"]) / seconds),
        "prompt_tok_s": stats["prompt_tok_s"],
        "first_tokens_s": run.seconds - seconds,      # start, loading, warm set, prompt
        "major_faults": stats["major_faults"],
        "peak_rss_mib": run.peak_rss / MIB,
        "smaps_mib": run.smaps / MIB,
        "cgroup_mib": run.cgroup / MIB if run.cgroup is not None else 0.0,
        "budget_held": resident or max(run.peak_rss, run.smaps, stats["peak_rss_bytes"]) <= budget,
    }


def one_case(args, fth, name, case, wanted):
    preset, file, size, more = case
    model = make_model(fth, args.dir, preset, file)
    budget = size if isinstance(size, int) else int(size * model.stat().st_size) // MIB * MIB
    tokens = make_tokens(args.dir / f"{preset}-tokens-1.txt", VOCABULARY[preset], 1)
    others = make_tokens(args.dir / f"{preset}-tokens-2.txt", VOCABULARY[preset], 2)
    ids, cold, samples, how = None, None, {row: [] for row in wanted}, {}
    with tempfile.TemporaryDirectory() as scratch:
        env = {**os.environ, "XDG_CACHE_HOME": scratch}
        trained, warm_file = pathlib.Path(scratch) / "trained.warm", pathlib.Path(scratch) / "used.warm"
        # The memory bandwidth is measured once, here, and the warm set is left by another text.
        done = Watched(command(fth, model, others, budget, args.tokens, {**BASE, "warm": True}, trained, more), env=env)
        if done.code != 0:
            raise SystemExit(f"{name}: exit {done.code}\n{done.err[-2000:]}")
        for number in range(args.rounds):
            for row in wanted:
                settings = {**BASE, **ROWS[row]}
                warm_file.write_bytes(trained.read_bytes())     # every run begins with the same set and overwrites its own copy
                cold = make_cold([model], args.cold)
                run = Watched(command(fth, model, tokens, budget, args.tokens, settings, warm_file, more), env=env)
                found, how[row], figures = measure(run, budget, settings["resident"])
                if ids is not None and found != ids:
                    raise SystemExit(f"{name}, {row}: other ids than the first row: results must not depend on streaming")
                ids = found
                if not figures["budget_held"]:
                    raise SystemExit(f"{name}, {row}: peak RSS {figures['peak_rss_mib']:.1f} MiB of a budget of {budget / MIB:.0f} MiB")
                samples[row].append(figures)
                say(f"{name} round {number + 1}: {row:16} {figures['tok_s']:6.2f} tok/s, hit {figures['hit_percent']:.1f} %, stall {figures['stall_ms']:.1f} ms")
    out = []
    for row in wanted:
        figures = samples[row]
        out.append({**where(), "case": name, "model": model.name, "budget_mib": budget // MIB, "row": row, **{**BASE, **ROWS[row]}, "tokens": args.tokens,
                    "rounds": args.rounds, "cold": cold,
                    **{k: round(median([f[k] for f in figures]), 3) for k in figures[0] if k not in ("budget_held", "peak_rss_mib", "smaps_mib", "cgroup_mib")},
                    "tok_s_min": round(min(f["tok_s"] for f in figures), 3), "tok_s_max": round(max(f["tok_s"] for f in figures), 3),
                    **{k: round(max(f[k] for f in figures), 1) for k in ("peak_rss_mib", "smaps_mib", "cgroup_mib")},
                    "budget_held": all(f["budget_held"] for f in figures), "experts": how[row],
                    "command": without_folders(command("forethought", model, tokens, budget, args.tokens, {**BASE, **ROWS[row]}, warm_file, more))})
    columns = ["row", "tok/s", "min", "max", "hit %", "late %", "MiB/tok", "compute ms", "stall ms", "io ms", "merit", "prompt tok/s", "majflt", "peak MiB", "held"]
    keys = ["row", "tok_s", "tok_s_min", "tok_s_max", "hit_percent", "late_percent", "mib_per_token", "compute_ms", "stall_ms", "io_ms", "merit", "prompt_tok_s",
            "major_faults", "peak_rss_mib", "budget_held"]
    def cell(value):
        return ("yes" if value else "no") if isinstance(value, bool) else f"{value:.2f}".removesuffix(".00") if isinstance(value, float) else str(value)
    print(f"\n{name}: {model.name} in {budget // MIB} MiB, {args.tokens} tokens, medians of {args.rounds}, cold by {cold}, synthetic model")
    print(table(columns, [[cell(o[k]) for k in keys] for o in out]), flush=True)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=pathlib.Path, default=ROOT / "build/cache/synthetic", help="where the models are, or are made (default: build/cache/synthetic)")
    parser.add_argument("--program", help="default: $FTH_PROGRAM, else build/release/forethought")
    parser.add_argument("--only", help="cases, with commas: " + ", ".join(CASES))
    parser.add_argument("--rows", help="rows, with commas: " + ", ".join(ROWS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=200, help="generated in each run (default: 200)")
    parser.add_argument("--cold", choices=["auto", "drop_caches", "posix_fadvise"], default="auto", help="how the page cache is emptied (default: auto, drop_caches where permitted)")
    parser.add_argument("--quick", action="store_true", help="a small model, one round of 24 tokens")
    parser.add_argument("--csv", type=pathlib.Path, help="default: bench/results/streaming-ablation.csv; none with --quick")
    args = parser.parse_args()
    cases = CASES
    if args.quick:
        cases, args.rounds, args.tokens = QUICK, 1, min(args.tokens, 24)
    else:
        args.csv = args.csv or RESULTS / "streaming-ablation.csv"
    wanted = [n.strip() for n in args.rows.split(",")] if args.rows else list(ROWS)
    names = [n.strip() for n in args.only.split(",")] if args.only else list(cases)
    for name in [*(n for n in names if n not in cases), *(n for n in wanted if n not in ROWS)]:
        raise SystemExit(f"there is no {name!r}; the cases are {', '.join(cases)}, the rows {', '.join(ROWS)}")
    args.dir.mkdir(parents=True, exist_ok=True)
    fth = program(args.program)
    warn_when_busy()
    rows = []
    for name in names:
        rows += one_case(args, fth, name, cases[name], wanted)
    if args.csv:
        write_csv(args.csv, rows)


if __name__ == "__main__":
    main()
