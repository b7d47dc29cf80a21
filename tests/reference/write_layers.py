#!/usr/bin/env python3
"""Writes layers/: what every layer of a quantised model gives in exact arithmetic, for comparisons with the routing forced.

    write_layers.py MODELS_FOLDER          MODELS_FOLDER as tests/e2e/make_models.py fills it

Per layer i: l_out-i float32 [64, 256] and ffn_moe_topk-i int32 [64, 3], for logits/tokens-tiny-64.txt. The weights are dequantised, activations are
float64, and the routing is the model's own: whoever compares forces these ids, because a rounding of 1e-3 may choose another expert.
"""
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tools/synthetic"))
import numpy_forward  # noqa: E402


def main():
    tokens = numpy_forward.read_tokens(HERE / "logits/tokens-tiny-64.txt")
    for name in ("tiny-Q4_0",):
        model, keep = numpy_forward.Model(pathlib.Path(sys.argv[1]) / f"{name}.gguf"), {}
        numpy_forward.forward(model, tokens, keep)
        for i in range(model.get("block_count")):
            np.save(HERE / f"layers/{name}.l_out-{i}.npy", keep[f"l_out-{i}"].astype(np.float32))
            np.save(HERE / f"layers/{name}.ffn_moe_topk-{i}.npy", keep[f"ffn_moe_topk-{i}"].astype(np.int32))


if __name__ == "__main__":
    main()
