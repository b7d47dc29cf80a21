#!/usr/bin/env python3
"""Forethought and llama.cpp on the same file, the same token ids, the same threads, in turn: A B A B. Prints medians and their ratio, writes CSV rows.

    bench/peers/setup.sh                                            builds the peer, once
    bench/peers/compare.py --file model.gguf --threads 2 --reps 5 --pp 512 --tg 128

Each repetition is a new process of each program: load, one pass that is not counted, then a prompt of --pp ids and --tg ids decoded one at a time (the same fixed
ids for both, random or from --tokens). The peer is first tried with flash attention on and off and with two batch sizes; for prefill and for decode its
own best setting is then used. With --steal N other processes hold N of the cores meanwhile, and ours alone with the threads that are left is measured too. Before anything is timed, both programs answer a prompt of the bundled model: the likeliest token must be the same.
Exit codes: 0 done, 1 a program failed or the answers differ, 2 the peer is not there (setup.sh says why).
"""
import argparse
import array
import contextlib
import json
import math
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from figures import RESULTS, ROOT, cpu_slug, invocation, median, percentile, program, say, table, today, vocabulary, warn_when_busy, where, write_csv  # noqa: E402

FOLDER = pathlib.Path(__file__).resolve().parent
PEER_PYTHON = ROOT / "build/peers/venv/bin/python"
TINY = ROOT / "tools/tiny_model/tiny-smallthinker-q4_0.gguf"
CHECK_PROMPTS = ("What is 38 + 47?", "Translate to German: The old teacher buys a red car.", "Write every word with a capital letter: the warm zebra in the village")


@contextlib.contextmanager
def held_cores(n):
    """Holds the last n cores that this process may use, each with a process that only computes, as another program of the machine would."""
    holders = []
    try:
        for core in sorted(os.sched_getaffinity(0))[len(os.sched_getaffinity(0)) - n:]:
            code = f"import os\nos.sched_setaffinity(0, {{{core}}})\nwhile True: sum(range(1 << 20))"
            holders.append(subprocess.Popen([sys.executable, "-c", code]))
        yield
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()


def run(command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def peer(args, file, tokens, pp, tg, ctx, setting, more=()):
    """One repetition of llama.cpp with a setting (flash, ubatch): what llama_worker.py prints."""
    return json.loads(run([PEER_PYTHON, "-B", FOLDER / "llama_worker.py", "--file", file, "--tokens", tokens, "--pp", pp, "--tg", tg, "--ctx", ctx,
                           "--threads", args.threads, "--flash", setting[0], "--ubatch", setting[1], "--warmup", args.warmup, *more]))


def ours(args, fth, file, tokens, pp, tg, ctx, threads=None):
    """One repetition of Forethought: the object that `bench --json` prints."""
    return json.loads(run([fth, "bench", "-m", file, "--tokens", tokens, "--pp", pp, "--tg", tg, "-c", ctx, "-r", 1, "--warmup", args.warmup, "-t", threads or args.threads,
                           "--json", "-q", *args.ours]))


def read_npy_row(path):
    """The float32 values of a one-row .npy file, format 1.0."""
    content = path.read_bytes()
    assert content[:8] == b"\x93NUMPY\x01\x00", path
    return array.array("f", content[10 + int.from_bytes(content[8:10], "little"):])


def difference(ours, theirs):
    """Largest difference of the logits, and the Kullback-Leibler divergence in nats of theirs from ours."""
    def log_softmax(x):
        top = max(x)
        total = math.log(math.fsum(math.exp(v - top) for v in x))
        return [v - top - total for v in x]
    p, q = log_softmax(ours), log_softmax(theirs)
    return max(abs(a - b) for a, b in zip(ours, theirs)), math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q))


def same_answer(args, fth, file, tokens, pp, ctx, scratch, what):
    """Compares the logits after the prompt; True when the likeliest token is the same. Prints the difference."""
    prompt = scratch / "prompt.txt"
    prompt.write_text(" ".join(map(str, tokens[:pp])))
    run([fth, "logits", "-m", file, "--tokens", prompt, "--out", scratch / "ours.npy", "--last", 1, "--cpu-only", "-q"])
    theirs = peer(args, file, prompt, pp, 0, ctx, ("on", 512), ("--warmup", 0, "--logits", scratch / "theirs.f32"))
    mine, other = read_npy_row(scratch / "ours.npy"), array.array("f", (scratch / "theirs.f32").read_bytes())
    if len(mine) != len(other):
        raise SystemExit(f"{file}: {len(mine)} logits of ours, {len(other)} of the peer's")
    top = max(range(len(mine)), key=mine.__getitem__)
    largest, divergence = difference(mine, other)
    lead = sorted(mine)[-1] - sorted(mine)[-2]
    say(f"{what}: likeliest token {top} and {theirs['top']}{'' if top == theirs['top'] else ' DIFFER'} (lead {lead:.2f}), logits differ by {largest:.3f} at most, KL {divergence:.2g}")
    return top == theirs["top"], theirs


def compare(args, fth, file, scratch):
    pp, tg = args.pp, args.tg
    ctx = -(-(pp + tg) // 256) * 256
    tokens = args.tokens
    if tokens is None:
        draw, n_vocab = random.Random(1), vocabulary(fth, file)
        tokens = scratch / "tokens.txt"
        tokens.write_text(" ".join(str(draw.randrange(n_vocab)) for _ in range(pp + tg)))
    ids = [int(i) for i in re.findall(r"\d+", tokens.read_text())]
    if len(ids) < pp + tg:
        raise SystemExit(f"{tokens} has {len(ids)} ids, {pp} + {tg} are asked for")
    _, info = same_answer(args, fth, file, ids, min(pp, 64), ctx, scratch, f"{file.name}, {min(pp, 64)} ids")

    # The peer's own best: two short repetitions of each setting, then the best for each measure.
    settings = args.setting or [(flash, ubatch) for flash in ("on", "off") for ubatch in sorted({512, max(512, min(2048, pp))})]
    tries = {s: [] for s in settings}
    for s in settings * (2 if len(settings) > 1 else 1):
        tries[s].append(peer(args, file, tokens, pp, min(tg, 32), ctx, s))
    tried_pp = {s: min(t["pp_s"] for t in tries[s]) for s in settings}
    tried_tg = {s: min(median(t["tg_s"]) for t in tries[s]) if tg else 0 for s in settings}
    best_pp = min(settings, key=tried_pp.get)
    best_tg = min(settings, key=tried_tg.get) if tg else best_pp
    for s in settings:
        say(f"  llama.cpp flash attention {s[0]}, ubatch {s[1]}: pp {pp / tried_pp[s]:.1f} tok/s" + (f", tg {1 / tried_tg[s]:.1f} tok/s" if tg else ""))

    seconds = {("pp", "ours"): [], ("pp", "peer"): [], ("tg", "ours"): [], ("tg", "peer"): []}
    bandwidth, report = [], {}
    fewer = max(args.threads - args.steal, 1)
    alone = {"pp": [], "tg": []}  # ours with the threads that are left, nothing stolen
    for repetition in range(args.reps):
        for row in ours(args, fth, file, tokens, pp, tg, ctx, fewer)["rows"] if args.steal else ():
            alone[row["name"][:2]].append(row["tokens"] / row["samples"][0])
        with held_cores(args.steal):
            report = ours(args, fth, file, tokens, pp, tg, ctx)
        for row in report["rows"]:
            kind = row["name"][:2]
            seconds[kind, "ours"].append(row["tokens"] / row["samples"][0])
            if kind == "tg":
                bandwidth.append(row["gb_s"])
        for setting in dict.fromkeys((best_pp, best_tg)):
            with held_cores(args.steal):
                theirs = peer(args, file, tokens, pp, tg, ctx, setting)
            if setting == best_pp and pp:
                seconds["pp", "peer"].append(theirs["pp_s"])
            if setting == best_tg and tg:
                seconds["tg", "peer"].append(sum(theirs["tg_s"]))
        say(f"{file.name} {repetition + 1} of {args.reps}: " + ", ".join(
            f"{k} {n / seconds[k, 'ours'][-1]:.1f} against {n / seconds[k, 'peer'][-1]:.1f} tok/s" for k, n in (("pp", pp), ("tg", tg)) if n))

    rows = []
    for kind, n, best in (("pp", pp, best_pp), ("tg", tg, best_tg)):
        if not n:
            continue
        mine, other = seconds[kind, "ours"], seconds[kind, "peer"]
        row = {**where(), "file": file.name, "bytes": file.stat().st_size, "threads": args.threads, "measure": f"{kind}{n}", "reps": args.reps}
        for name, values in (("ours", mine), ("peer", other)):
            row |= {f"{name}_median_tok_s": round(n / median(values), 3), f"{name}_min_s": round(min(values), 5), f"{name}_median_s": round(median(values), 5),
                    f"{name}_p90_s": round(percentile(values, 0.9), 5)}
        row |= {"ratio_of_medians": round(median(other) / median(mine), 3), "ratio_of_minima": round(min(other) / min(mine), 3),
                "ours_gb_s": round(median(bandwidth), 2) if kind == "tg" else "", "isa": report["isa"], "peer": f"llama-cpp-python {info['version']}",
                "peer_flash": best[0], "peer_ubatch": best[1], "stolen_cores": args.steal, "ours_alone_threads": fewer if args.steal else "",
                "ours_alone_median_tok_s": round(n / median(alone[kind]), 3) if args.steal else "", "tokens": args.tokens.name if args.tokens else "random", "command": invocation()}
        rows.append(row)
    return rows, info


def peer_setting(text):
    found = re.fullmatch(r"(on|off),(\d+)", text)
    if not found or not 1 <= int(found[2]) <= 1 << 20:
        raise argparse.ArgumentTypeError(f"{text!r}: wants flash attention and ubatch, such as on,512")
    return found[1], int(found[2])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=pathlib.Path, action="append", help="a GGUF file, unpacked (repeatable; default: the bundled model)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--pp", type=int, default=512)
    parser.add_argument("--tg", type=int, default=128)
    parser.add_argument("--steal", type=int, default=0, metavar="N", help="cores that other processes hold while either program runs (default: 0)")
    parser.add_argument("--warmup", type=int, default=1, metavar="N", help="uncounted passes of each process (default: 1; 0 for prompts of many minutes)")
    parser.add_argument("--setting", type=peer_setting, action="append", metavar="FLASH,UBATCH", help="of the peer, such as on,512, instead of trying all (repeatable)")
    parser.add_argument("--tokens", type=pathlib.Path, help="token ids: every run of digits (default: random ids, the same every time)")
    parser.add_argument("--program", help="default: $FTH_PROGRAM, else build/release/forethought")
    parser.add_argument("--ours", nargs="*", default=[], help="further options of ours, such as --ours=--cpu-isa=avx2")
    parser.add_argument("--csv", type=pathlib.Path, help="append the rows here (default: bench/results/<date>-<cpu>-peers.csv)")
    parser.add_argument("--no-csv", action="store_true")
    args = parser.parse_args()
    if args.reps < 1 or args.pp < 1 or args.tg < 0 or args.threads < 1 or args.warmup < 0:
        parser.error("--reps, --pp and --threads want 1 or more, --tg and --warmup 0 or more")
    if not 0 <= args.steal <= len(os.sched_getaffinity(0)):
        parser.error(f"--steal wants 0 to {len(os.sched_getaffinity(0))} here")
    fth = program(args.program)
    if subprocess.run([FOLDER / "setup.sh"]).returncode != 0:
        sys.exit(2)
    warn_when_busy()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        for number, prompt in enumerate(CHECK_PROMPTS, 1):
            ids = json.loads(run([fth, "run", "-m", TINY, "-p", prompt, "-n", 1, "--json", "-q"]))["prompt_ids"]
            same, _ = same_answer(args, fth, TINY, ids, len(ids), 256, scratch, f"bundled model, prompt {number}")
            if not same:
                say("the peer is not comparable: it answers otherwise than this program")
                sys.exit(1)
        rows = []
        for file in args.file or [TINY]:
            found, info = compare(args, fth, file.resolve(), scratch)
            rows += found
    print(f"\n{rows[0]['cpu']}, {args.threads} threads, {args.reps} repetitions in turn; ours {rows[0]['isa']}, {rows[0]['peer']}: {info['features']}")
    print(table(["file", "measure", "ours tok/s", "best", "at p90", "peer tok/s", "best", "at p90", "ratio of medians", "of minima", "peer's setting"],
                [[r["file"], r["measure"], *(f"{int(r['measure'][2:]) / r[f'{who}_{k}_s']:.2f}" for who in ("ours", "peer") for k in ("median", "min", "p90")),
                  f"{r['ratio_of_medians']:.2f}", f"{r['ratio_of_minima']:.2f}", f"flash {r['peer_flash']}, ubatch {r['peer_ubatch']}"] for r in rows]))
    for r in rows if args.steal else ():
        print(f"{r['file']} {r['measure']}: with {args.steal} of the cores held by other processes {r['ours_median_tok_s'] / r['ours_alone_median_tok_s']:.2f} of ours with "
              f"{r['ours_alone_threads']} thread and all cores ({r['ours_alone_median_tok_s']:.2f} tok/s)")
    if not args.no_csv:
        write_csv(args.csv or RESULTS / f"{today()}-{cpu_slug()}-peers.csv", rows, append=True)


if __name__ == "__main__":
    main()
