#!/usr/bin/env python3
"""The screened LM head beside the exact one, position by position over many tokens: the largest logit, and the 40 largest with their order and bits. Writes CSV rows.

    bench/head_agreement.py --file model.gguf --tokens 10000

The tokens are the model's own, sampled at temperature 1 from several prompts (--own), ids of a file (--ids), or random ones: for a model with random weights one is as good as the other.
They are gone through in pieces of --piece tokens, so that what was counted stays when the script is stopped: the program keeps sums in the cache folder. Prefill gives
the exact logits of all positions; the screened head runs for each of them twice, with one logit wanted and with 40. Exit codes: 0 done, 1 fewer than 99.99 % agree or a program failed.
"""
import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from figures import RESULTS, cpu_slug, invocation, program, say, table, today, vocabulary, where, write_csv  # noqa: E402

PROMPTS = ("Write a story about a cat.", "What is 38 + 47?", "Explain why the sky is blue.", "Translate to German: The old teacher buys a red car.",
           "List five animals and where they live.", "Write a letter to a friend about the weather.", "How does a bicycle work?", "Tell me about the history of bread.")


def own_tokens(fth, args, n):
    """What the model says at temperature 1, prompt after prompt."""
    ids = []
    seed = 0
    while len(ids) < n:
        done = subprocess.run([fth, "run", "-m", args.file, "-p", PROMPTS[seed % len(PROMPTS)], "--temp", "1", "--seed", str(seed), "-n", str(args.reply), "--ignore-end",
                               "--print-ids", "--cpu-only", "-q"], check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        ids += [int(i) for i in done.stdout.split()]
        seed += 1
    return ids[:n]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--file", required=True)
    p.add_argument("--tokens", type=int, default=10000)
    p.add_argument("--piece", type=int, default=2000)
    p.add_argument("--own", action="store_true", help="tokens that the model samples; default: random ones")
    p.add_argument("--ids", help="a file of token ids, such as those of a text")
    p.add_argument("--reply", type=int, default=480, help="tokens of each reply with --own")
    p.add_argument("--ctx", type=int, default=512, help="a new context begins after so many tokens")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--program")
    p.add_argument("--csv", default=str(RESULTS / f"{today()}-{cpu_slug()}-heads.csv"))
    args = p.parse_args()
    fth = program(args.program)
    n_vocab = vocabulary(fth, args.file)
    draw = random.Random(args.seed)
    if args.ids:
        ids = [int(i) for i in pathlib.Path(args.ids).read_text().split()][:args.tokens]
    else:
        ids = own_tokens(fth, args, args.tokens) if args.own else [draw.randrange(n_vocab) for _ in range(args.tokens)]
    sums = {"tokens": 0, "same_first": 0, "same_largest_40": 0, "rows": 0.0}
    how = ""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "tokens.txt"
        for at in range(0, len(ids), args.piece):
            piece = ids[at:at + args.piece]
            file.write_text(" ".join(map(str, piece)))
            done = subprocess.run([fth, "bench", "-m", args.file, "--tokens", file, "--compare-heads", str(len(piece)), "--pp", "8", "--tg", "1", "-r", "1", "--warmup", "0",
                                   "--ctx", str(args.ctx), "--lm-head", "screened", "--cpu-only", "--json", "-q"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
            if done.returncode != 0:
                raise SystemExit(f"bench: exit {done.returncode}\n{done.stderr[-2000:]}")
            heads = json.loads(done.stdout)["lm_head"]
            for key in ("tokens", "same_first", "same_largest_40"):
                sums[key] += heads[key]
            sums["rows"] += heads["rows_share"] * heads["tokens"]
            how = heads["how"]
            say(f"{sums['tokens']} tokens: {sums['same_first']} with the same largest logit, {sums['same_largest_40']} with the same 40 largest")
    rows = 100 * sums.pop("rows") / max(sums["tokens"], 1)
    row = {**where(), "file": pathlib.Path(args.file).name, "vocabulary": n_vocab, "source": pathlib.Path(args.ids).name if args.ids else "sampled by the model" if args.own else "random", **sums,
           "rows_percent": round(rows, 3), "how": how, "command": invocation()}
    print(table(["file", "tokens", "same largest", "same 40 largest", "rows multiplied"],
                [[row["file"], row["tokens"], row["same_first"], row["same_largest_40"], f"{rows:.2f} %"]]))
    write_csv(args.csv, [row], append=True)
    agree = min(row["same_first"], row["same_largest_40"])
    return 0 if (row["tokens"] - agree) * 10000 <= row["tokens"] else 1


if __name__ == "__main__":
    sys.exit(main())
