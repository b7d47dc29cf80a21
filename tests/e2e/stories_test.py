#!/usr/bin/env python3
"""Stories by the bundled tiny model: generated greedily and checked by the grammar that made the training text (tools/tiny_model/corpus.py).

    stories_test.py [COUNT]

PyTorch tells 23 of the first 24 coherently, from the F32 weights and from the dequantised Q4_0 ones.
"""
import json
import sys

from program import ROOT, TINY, must

sys.path.insert(0, str(ROOT / "tools/tiny_model"))
import corpus  # noqa: E402


def main():
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 24
    rows = [json.loads(line) for line in open(ROOT / "tools/tiny_model/tiny-eval.jsonl")]
    rows = [row for row in rows if row["task"] == "story"][:count]
    good = 0
    for row in rows:
        text = must("run", "-m", TINY, "--no-template", "-p", row["text"], "-n", 256, "--temp", 0, "--cpu-only", "-q").strip()
        coherent = corpus.story_ok(row["prompt"], text)
        good += coherent
        if not coherent:
            print(f"not coherent: {row['prompt']}\n  {text}")
    print(f"{good} of {len(rows)} stories are coherent")
    return 0 if good >= len(rows) - max(1, len(rows) // 8) else 1


if __name__ == "__main__":
    sys.exit(main())
