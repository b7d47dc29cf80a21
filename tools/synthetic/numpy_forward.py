#!/usr/bin/env python3
"""Forward pass of a SmallThinker GGUF file in plain numpy: slow, short, for checking.

Weights of every type are dequantised and activations stay float64, so the result is
what exact arithmetic on the file's weights gives.  Meant for the tiny presets.
The layer layout is the file's: every fourth layer global and without positions, the
others with RoPE and the window that the file states; without a window RoPE everywhere.
"""
from __future__ import annotations

import argparse
import re
from pathlib import Path

import gguf
import numpy as np
from gguf import quants


class Model:
    def __init__(self, path: Path):
        reader = gguf.GGUFReader(path)
        self.meta = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("tokenizer.")}
        self.raw = {t.name: t for t in reader.tensors}
        if self.meta.get("general.architecture") != "smallthinker":
            raise SystemExit(f"{path}: architecture {self.meta.get('general.architecture')}, not smallthinker")

    def get(self, key: str, default=None):
        return self.meta.get("smallthinker." + key, default)

    def weight(self, name: str) -> np.ndarray:
        """The tensor as float64, numpy order: (rows, cols) or (experts, rows, cols)."""
        t = self.raw[name]
        values = quants.dequantize(t.data, t.tensor_type)
        return values.reshape(tuple(int(d) for d in reversed(t.shape))).astype(np.float64)


def rms_norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def rope(x, positions, base):
    """x: tokens x heads x dim.  Element i is rotated with element i + dim/2 (the 'neox' pairing)."""
    half = x.shape[-1] // 2
    angle = positions[:, None] * base ** (-2.0 * np.arange(half) / x.shape[-1])
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def forward(model: Model, tokens: np.ndarray, keep: dict | None = None) -> np.ndarray:
    """Logits, positions x vocabulary.  `keep` receives the values inside the pass, named as the program names them."""
    keep = {} if keep is None else keep
    n_layer, n_head = model.get("block_count"), model.get("attention.head_count")
    n_head_kv, dim = model.get("attention.head_count_kv"), model.get("attention.key_length")
    eps, base = model.get("attention.layer_norm_rms_epsilon"), model.get("rope.freq_base")
    k_used, gating = model.get("expert_used_count"), model.get("expert_gating_func")
    window = model.get("attention.sliding_window", 0)

    n = len(tokens)
    pos = np.arange(n)
    distance = pos[:, None] - pos[None, :]
    h = model.weight("token_embd.weight")[tokens]
    keep["embd"] = h
    for i in range(n_layer):
        w = lambda name: model.weight(f"blk.{i}.{name}.weight")
        hybrid = window > 0
        global_layer = not hybrid or i % 4 == 0          # full attention
        use_rope = not hybrid or i % 4 != 0

        logits = h @ w("ffn_gate_inp").T                 # the router reads the layer's input, not normalised
        chosen = np.argsort(-logits, axis=1, kind="stable")[:, :k_used]
        picked = np.take_along_axis(logits, chosen, 1)
        score = 1 / (1 + np.exp(-picked)) if gating == 2 else np.exp(picked - picked.max(1, keepdims=True))
        share = score / score.sum(1, keepdims=True)

        x = rms_norm(h, w("attn_norm"), eps)
        q = (x @ w("attn_q").T).reshape(n, n_head, dim)
        k = (x @ w("attn_k").T).reshape(n, n_head_kv, dim)
        v = (x @ w("attn_v").T).reshape(n, n_head_kv, dim)
        if use_rope:
            q, k = rope(q, pos, base), rope(k, pos, base)
        visible = distance >= 0 if global_layer else (distance >= 0) & (distance < window)
        attn = np.empty_like(q)
        for j in range(n_head):                          # head by head, to need less memory
            group = j // (n_head // n_head_kv)
            scores = np.where(visible, q[:, j] @ k[:, group].T / np.sqrt(dim), -np.inf)
            prob = np.exp(scores - scores.max(-1, keepdims=True))
            attn[:, j] = prob / prob.sum(-1, keepdims=True) @ v[:, group]
        y = h + attn.reshape(n, -1) @ w("attn_output").T

        g = rms_norm(y, w("ffn_norm"), eps)
        gate, up, down = w("ffn_gate_exps"), w("ffn_up_exps"), w("ffn_down_exps")
        out = np.zeros_like(h)
        for e in range(gate.shape[0]):
            rows, slot = np.nonzero(chosen == e)
            hidden = np.maximum(g[rows] @ gate[e].T, 0) * (g[rows] @ up[e].T)
            np.add.at(out, rows, share[rows, slot, None] * (hidden @ down[e].T))
        h = y + out
        keep.update({f"attn_norm-{i}": x, f"ffn_moe_logits-{i}": logits, f"ffn_moe_topk-{i}": chosen,
                     f"ffn_moe_weights_norm-{i}": share, f"ffn_inp-{i}": y, f"ffn_norm-{i}": g, f"ffn_out-{i}": out,
                     f"l_out-{i}": h})
    h = rms_norm(h, model.weight("output_norm.weight"), eps)
    keep["result_norm"] = h
    head = "output.weight" if "output.weight" in model.raw else "token_embd.weight"
    return h @ model.weight(head).T


def read_tokens(path: Path) -> np.ndarray:
    return np.array([int(t) for t in re.findall(r"\d+", path.read_text())])


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", type=Path)
    p.add_argument("--tokens", type=Path, required=True, help="file of token ids")
    p.add_argument("--out", type=Path, help="write the logits here (.npy, float32)")
    p.add_argument("--dump", default="", metavar="NAME,...", help="write these values beside --out, as OUT.NAME.npy")
    p.add_argument("--compare", type=Path, help="compare with the logits in this .npy file (its last rows, if fewer)")
    args = p.parse_args()
    keep: dict[str, np.ndarray] = {}
    logits = forward(Model(args.model), read_tokens(args.tokens), keep)
    if args.out:
        np.save(args.out, logits.astype(np.float32))
        for name in filter(None, args.dump.split(",")):
            if name not in keep:
                raise SystemExit(f"no value named {name}; there are {', '.join(keep)}")
            np.save(args.out.with_name(f"{args.out.name.removesuffix('.npy')}.{name}.npy"), keep[name].astype(np.float32))
    if args.compare:
        other = np.load(args.compare)
        ours = logits[-len(other):]
        print(f"max difference {np.abs(ours - other).max():.3g}, rms {np.sqrt(((ours - other) ** 2).mean()):.3g}, "
              f"same first choice {(ours.argmax(1) == other.argmax(1)).mean():.3f}")


if __name__ == "__main__":
    main()
