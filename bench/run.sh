#!/usr/bin/env bash
# The project's own end-to-end figures: prefill and decode of the bundled model, of SmolLM2 when it is in build/cache, and of any files given.
#
#   bench/run.sh                              appends to bench/results/<date>-<cpu>.csv
#   bench/run.sh 4b.packed.gguf 21b.gguf      these files too
#   REPS=9 PP=128 TG=64 THREADS=1 bench/run.sh
#
# Columns: commit (with + when the tree has other changes), CPU, the command, and of each row the least, median and 90th-percentile time, bytes per second, and
# their share of the memory bandwidth measured before the rows. Leave the machine alone meanwhile. FTH_PROGRAM names another program.
set -eu
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PROGRAM=${FTH_PROGRAM:-build/release/forethought}
[ -x "$PROGRAM" ] || { echo "bench: $PROGRAM is not built; ./quickstart builds it" >&2; exit 1; }
export REPS=${REPS:-5} PP=${PP:-512} TG=${TG:-128} THREADS=${THREADS:-0} CSV=${CSV:-}
files=(tools/tiny_model/tiny-smallthinker-q4_0.gguf)
for smollm2 in build/cache/smollm2/*.gguf; do
  [ ! -f "$smollm2" ] || files+=("$smollm2")
done
exec python3 -B - "${files[@]}" "$@" <<'PYTHON'
import json, os, pathlib, subprocess, sys
sys.path.insert(0, "bench")
from figures import RESULTS, cpu_slug, median, percentile, table, today, warn_when_busy, where, write_csv

env = os.environ
warn_when_busy()
rows, shown = [], []
for file in sys.argv[1:]:
    command = [env["PROGRAM"], "bench", "-m", file, "--pp", env["PP"], "--tg", env["TG"], "-r", env["REPS"], "--json", "-q"]
    if env["THREADS"] != "0":
        command += ["-t", env["THREADS"]]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr[-2000:]}")
    report = json.loads(done.stdout)
    for row in report["rows"]:
        seconds = [row["tokens"] / speed for speed in row["samples"]]
        share = row.get("bandwidth_share")
        rows.append({**where(), "isa": report["isa"], "threads": report["threads"], "file": pathlib.Path(file).name, "measure": row["name"],
                     "reps": len(seconds), "min_s": round(min(seconds), 6), "median_s": round(median(seconds), 6), "p90_s": round(percentile(seconds, 0.9), 6),
                     "median_tok_s": round(row["tokens"] / median(seconds), 3), "bytes_per_s": round(row["gb_s"] * 1e9),
                     "bandwidth_share": round(share, 4) if share is not None else "", "bandwidth_bytes_per_s": round(report["bytes_per_second"]),
                     "peak_rss_bytes": report["peak_rss_bytes"], "experts": report["experts"], "command": " ".join(["forethought", *command[1:3], pathlib.Path(file).name, *command[4:]])})
        r = rows[-1]
        shown.append([r["file"], r["measure"], f"{r['median_tok_s']:.2f}", f"{row['tokens'] / r['min_s']:.2f}", f"{row['tokens'] / r['p90_s']:.2f}",
                      f"{r['bytes_per_s'] / 1e9:.2f}", f"{100 * share:.0f} %" if share is not None else "-"])
print(f"{rows[0]['cpu']}, {rows[0]['isa']}, {rows[0]['threads']} threads, commit {rows[0]['commit']}")
print(table(["file", "measure", "tok/s", "best", "at p90", "GB/s", "of bandwidth"], shown))
write_csv(env["CSV"] or RESULTS / f"{today()}-{cpu_slug()}.csv", rows, append=True)
PYTHON
