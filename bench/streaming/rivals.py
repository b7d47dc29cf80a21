#!/usr/bin/env python3
"""A model larger than memory, side by side: llama.cpp over mmap in a memory cgroup (v2 or v1), Forethought under the same cap in the same kind of group.

    bench/streaming/rivals.py --dir FOLDER                    4B at 1 GiB; makes the synthetic model when it is not there
    bench/streaming/rivals.py --file a.gguf --packed a.packed.gguf --cap 8GiB

llama.cpp reads the plain file with its weights left in the mapping (repacked ones would be memory that cannot be given back), flash attention on; Forethought the packed one. Same
ids, same threads, in turn, each run with a page cache that has been emptied. Needs root: without it, or without a memory controller, says so and exits 77. Exit codes: 1 a program
failed, 2 the peer is not built.
"""
import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import ablation  # noqa: E402
from figures import MIB, RESULTS, ROOT, Cgroup, cpu_slug, invocation, make_cold, median, program, say, table, today, vocabulary, warn_when_busy, where, write_csv  # noqa: E402
from watched import Watched  # noqa: E402

PEERS = ROOT / "bench/peers"


def size(text):
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if text.endswith(unit):
            return int(float(text[:-3]) * factor)
    return int(text)


def one(args, who, command, files, cap, scratch):
    make_cold(files, args.cold)
    done = Watched(command, limit=cap, env={"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(scratch)}, timeout=args.timeout)
    if done.code != 0:
        killed = " (killed: out of the group's memory, or after --timeout)" if done.code == -9 else ""
        raise SystemExit(f"{who}: exit {done.code}{killed}\n{done.err[-2000:]}")
    return json.loads(done.out), done


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=pathlib.Path, default=ROOT / "build/cache/synthetic")
    parser.add_argument("--file", type=pathlib.Path, help="plain model (default: the synthetic 4B in --dir)")
    parser.add_argument("--packed", type=pathlib.Path, help="the same model, packed")
    parser.add_argument("--cap", type=size, default=1 << 30, help="bytes, or 1GiB, 800MiB (default: 1GiB)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pp", type=int, default=32, help="prompt ids (default: 32)")
    parser.add_argument("--tg", type=int, default=16, help="ids that llama.cpp decodes (default: 16, it takes seconds for each); Forethought decodes --ours-tg")
    parser.add_argument("--ours-tg", type=int, default=200)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--timeout", type=int, default=3600, help="seconds for one run (default: 3600)")
    parser.add_argument("--cold", choices=["auto", "drop_caches", "posix_fadvise"], default="auto")
    parser.add_argument("--program")
    parser.add_argument("--csv", type=pathlib.Path)
    args = parser.parse_args()
    try:
        Cgroup(args.cap).remove()
    except OSError as error:
        print(f"skipped: no memory cgroup can be made here: {error}; it takes root")
        sys.exit(77)
    if subprocess.run([PEERS / "setup.sh"]).returncode != 0:
        sys.exit(2)
    fth = program(args.program)
    warn_when_busy()
    if args.file is None:
        args.dir.mkdir(parents=True, exist_ok=True)
        args.packed = ablation.make_model(fth, args.dir, "4b-a0.6b", "4b.packed.gguf")
        args.file = args.dir / "4b.gguf"
        if not args.file.exists():
            raise SystemExit(f"{args.file} is not there, though {args.packed} is: move the packed one away, or give --file and --packed")
    elif args.packed is None:
        parser.error("--file needs --packed")

    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        tokens = scratch / "tokens.txt"
        n_vocab = vocabulary(fth, args.packed)
        # Ids that stay on a topic, as text does: the synthetic models choose similar experts for ids that are equal modulo 64.
        draw, topic, ids = random.Random(1), 0, []
        for _ in range(args.pp + max(args.tg, args.ours_tg)):
            topic = draw.randrange(64) if draw.random() > 0.9 else topic
            ids.append(min(draw.randrange(n_vocab) // 64 * 64 + topic, n_vocab - 1))
        tokens.write_text(" ".join(map(str, ids)))
        ctx = -(-len(ids) // 256) * 256
        peer = [ROOT / "build/peers/venv/bin/python", "-B", PEERS / "llama_worker.py", "--file", args.file, "--tokens", tokens, "--pp", args.pp, "--tg", args.tg,
                "--ctx", ctx, "--threads", args.threads, "--warmup", 0, "--no-repack"]
        ours = [fth, "bench", "-m", args.packed, "--tokens", tokens, "--pp", args.pp, "--tg", args.ours_tg, "-c", ctx, "-t", args.threads, "-r", 1, "--warmup", 0,
                "--ram", args.cap, "--cpu-only", "--json", "-q"]
        rows = []
        for repetition in range(args.reps):
            mine, watched = one(args, "forethought", ours, [args.packed], args.cap, scratch)
            theirs, other = one(args, "llama.cpp", peer, [args.file], args.cap, scratch)
            speeds = {row["name"][:2]: row["samples"][0] for row in mine["rows"]}
            rows.append({**where(), "file": args.file.name, "cap_mib": args.cap // MIB, "threads": args.threads, "repetition": repetition + 1, "pp": args.pp,
                         "ours_tg": args.ours_tg, "peer_tg": args.tg, "ours_tg_tok_s": round(speeds["tg"], 3), "ours_pp_tok_s": round(speeds["pp"], 3),
                         "peer_tg_tok_s": round(args.tg / sum(theirs["tg_s"]), 4), "peer_pp_tok_s": round(args.pp / theirs["pp_s"], 4),
                         "ours_peak_rss_mib": round(watched.peak_rss / MIB, 1), "ours_cgroup_mib": round((watched.cgroup or 0) / MIB, 1),
                         "peer_cgroup_mib": round((other.cgroup or 0) / MIB, 1), "peer": f"llama-cpp-python {theirs['version']}", "command": invocation()})
            say(f"{repetition + 1} of {args.reps}: decode {rows[-1]['ours_tg_tok_s']} against {rows[-1]['peer_tg_tok_s']} tok/s, "
                f"prompt {rows[-1]['ours_pp_tok_s']} against {rows[-1]['peer_pp_tok_s']}")
    print(f"\n{args.file.name} in {args.cap / (1 << 30):.2f} GiB, {args.threads} threads, medians of {args.reps}, {rows[0]['peer']} over mmap")
    out = []
    for name, key in (("decode", "tg_tok_s"), ("prompt", "pp_tok_s")):
        a, b = (median([r[f"{who}_{key}"] for r in rows]) for who in ("ours", "peer"))
        out.append([name, f"{a:.2f}", f"{b:.3f}", f"{a / b:.1f}x"])
    print(table(["", "ours tok/s", "llama.cpp tok/s", "ratio"], out))
    write_csv(args.csv or RESULTS / f"{today()}-{cpu_slug()}-rivals.csv", rows)


if __name__ == "__main__":
    main()
