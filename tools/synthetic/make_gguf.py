#!/usr/bin/env python3
"""Write a synthetic SmallThinker GGUF file: real shapes, random weights.

Needs only numpy and gguf (PyPI).  The file follows the tensor names, shapes and
metadata keys of the `smallthinker` GGUF architecture, so any program that reads
that architecture can load it.  Same arguments, same seed: same bytes.

Random weights alone would make a poor stand-in for a trained model, so a few
things are shaped on purpose:

* Activations stay finite and of unit size.  Matrices get a standard deviation
  of about 1/sqrt(fan-in); the residual stream grows from RMS 1 at the embedding
  to about 1.4 at the last layer; logits have a standard deviation of --logit-std.

* A few channels of the residual stream are "bias channels": every token
  embedding holds the same constant (1.0) there and no layer writes to them.
  They give a bias to layers that have none in this architecture:
    - the gate projection gets a negative shift, so that the share of ReLU zeros
      is --gate-sparsity (the paper reports more than 0.6, near 0.95 in the first
      layers: --gate-sparsity 0.95:0.65);
    - the router gets one constant per expert, so that expert popularity follows
      --popularity (uniform, zipf:A or hot:F:S).

* Temporal locality: token t belongs to topic (t mod --topics).  A share
  --topic-weight of each embedding's variance is common to its topic, so tokens
  of one topic pick similar experts.  Feed token sequences that stay on a topic
  (make_tokens.py writes such sequences) to get expert reuse; feed uniform random
  tokens to get little.

Two ways to fill quantised tensors (--fill):
  quantize  draw float32 values and quantise them.  For one seed the F32, F16,
            Q8_0 and Q4_0 files then hold the same model.
  blocks    draw quantised blocks directly, much faster; for the large presets.
"""
from __future__ import annotations

import argparse
import dataclasses
import hashlib
import math
import sys
import time
from pathlib import Path
from typing import Callable, Iterator

import gguf
import numpy as np
from gguf import GGMLQuantizationType as QType

from blocks import BLOCK_FILLS, STD_NORMAL, to_type
from vocab import CHAT_TEMPLATE, copied_vocab, synthetic_vocab

CHUNK_ELEMENTS = 8 << 20      # floats drawn at a time
GATE_BIAS_SIGMAS = 2.0        # gate weight on a bias channel, in standard deviations
ROUTER_STD = 1.5              # standard deviation of a router logit over tokens


@dataclasses.dataclass
class Hyper:
    """Shape of a model.  Every field can be changed with --set NAME=VALUE."""
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ff: int                 # width of one expert
    n_expert: int
    n_expert_used: int
    n_vocab: int
    n_ctx: int
    window: int               # sliding window; 0: all layers global, all with RoPE
    rope_base: float = 1.5e6
    rms_eps: float = 1e-6
    tied: bool = False        # no output.weight: the embedding is used again


PRESETS = {
    # 21B layout in miniature: NoPE/global layers 0 and 4, odd GQA ratio, n_head * head_dim != n_embd.
    "tiny": Hyper(n_layer=5, n_embd=256, n_head=14, n_head_kv=2, head_dim=32, n_ff=64, n_expert=8,
                  n_expert_used=3, n_vocab=512, n_ctx=16384, window=4096),
    # 4B layout in miniature: RoPE and global attention everywhere, tied embeddings.
    "tiny-rope": Hyper(n_layer=4, n_embd=256, n_head=6, n_head_kv=1, head_dim=64, n_ff=64, n_expert=8,
                       n_expert_used=2, n_vocab=512, n_ctx=16384, window=0, tied=True),
    # Between the two: 230 MB as Q4_0, experts of nearly real size; for storage and cache tests.
    "mini": Hyper(n_layer=8, n_embd=1024, n_head=8, n_head_kv=2, head_dim=128, n_ff=768, n_expert=16,
                  n_expert_used=4, n_vocab=32768, n_ctx=16384, window=4096),
    "4b-a0.6b": Hyper(n_layer=32, n_embd=1536, n_head=12, n_head_kv=2, head_dim=128, n_ff=768, n_expert=32,
                      n_expert_used=4, n_vocab=151936, n_ctx=32768, window=0),
    "21b-a3b": Hyper(n_layer=52, n_embd=2560, n_head=28, n_head_kv=4, head_dim=128, n_ff=768, n_expert=64,
                     n_expert_used=6, n_vocab=151936, n_ctx=16384, window=4096),
}

# Type of: (matrices, token embedding, output).  The router and the norms are F32.
TYPE_MIXES = {
    "F32": (QType.F32, QType.F32, QType.F32),
    "F16": (QType.F16, QType.F16, QType.F16),
    "BF16": (QType.BF16, QType.BF16, QType.BF16),
    "Q8_0": (QType.Q8_0, QType.Q8_0, QType.Q8_0),
    "Q4_0": (QType.Q4_0, QType.Q4_0, QType.Q6_K),        # what a default Q4_0 file holds
    "Q4_0-pure": (QType.Q4_0, QType.Q4_0, QType.Q4_0),   # quantised without a mix
}
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_0-pure": 2, "Q8_0": 7, "BF16": 32}


@dataclasses.dataclass
class Tensor:
    """One tensor to write: shape in numpy order (rows, cols) or (experts, rows, cols) or (n,)."""
    name: str
    shape: tuple[int, ...]
    qtype: QType
    std: float = 0.0
    fixed: dict[int, float] = dataclasses.field(default_factory=dict)   # column -> value in deviations
    zero_rows: list[int] | None = None                                  # rows (of each expert) that are all zero
    make: Callable[[np.random.Generator], np.ndarray] | None = None     # the whole tensor as float32
    make_rows: Callable[[np.random.Generator, int, int], np.ndarray] | None = None   # rows start..stop, in order
    transpose: bool = False                                             # written with rows and cols exchanged


class Model:
    """Decides the contents of every tensor from the shape, the options and the seed."""

    def __init__(self, hyper: Hyper, args: argparse.Namespace):
        self.h = hyper
        self.args = args
        n_bias = min(16, hyper.n_embd // 32)
        self.bias_channels = [i * (hyper.n_embd // n_bias) + 5 for i in range(n_bias)]
        self.sparsity = parse_range(args.gate_sparsity, hyper.n_layer)
        matrices, embd, output = TYPE_MIXES[args.type]
        self.matrix_type = QType[args.expert_type] if args.expert_type else matrices
        self.attn_type = QType[args.attn_type] if args.attn_type else matrices
        self.output_type = QType[args.output_type] if args.output_type else output
        self.embd_type = QType[args.embd_type] if args.embd_type else (self.output_type if hyper.tied else embd)

    def rng(self, name: str) -> np.random.Generator:
        digest = hashlib.sha256(f"{self.args.seed}/{name}".encode()).digest()
        return np.random.Generator(np.random.SFC64(list(digest)))

    def residual_rms(self, layer: float) -> float:
        """Expected RMS of the residual stream that enters a layer."""
        return math.sqrt(1.0 + layer / self.h.n_layer)

    # -- single tensors

    def norm(self, bias_value: float, scale: float = 1.0, random_sign: bool = False):
        def make(rng):
            weight = rng.normal(1.0, 0.15, self.h.n_embd).clip(0.5, 1.5) * scale
            if random_sign:
                weight *= rng.choice([-1.0, 1.0], self.h.n_embd)
            weight[self.bias_channels] = bias_value
            return weight.astype(np.float32)
        return make

    def embedding_rows(self):
        """Unit-variance rows: topic part + own part, and 1.0 on the bias channels."""
        h, a = self.h, self.args
        topics = self.rng("topics").standard_normal((a.topics, h.n_embd), dtype=np.float32)

        def rows(rng, start, stop):
            values = rng.standard_normal((stop - start, h.n_embd), dtype=np.float32)
            if a.topic_weight > 0:
                values *= math.sqrt(1.0 - a.topic_weight)
                values += math.sqrt(a.topic_weight) * topics[np.arange(start, stop) % a.topics]
            values[:, self.bias_channels] = 1.0
            return values
        return rows

    def router(self, layer: int, popularity: np.ndarray):
        """Random directions, plus a constant for each expert that yields the wanted popularity."""
        h = self.h

        def make(rng):
            order = rng.permutation(h.n_expert)
            biases = router_biases(rng, popularity, h.n_expert_used)[order]
            direction_std = ROUTER_STD / (math.sqrt(h.n_embd) * self.residual_rms(layer))
            weight = rng.normal(0.0, direction_std, (h.n_expert, h.n_embd))
            weight[:, self.bias_channels] = biases[:, None] / len(self.bias_channels)
            return weight.astype(np.float32)
        return make

    # -- the list

    def tensors(self) -> Iterator[Tensor]:
        h, bias = self.h, self.bias_channels
        popularity = popularity_profile(self.args.popularity, h.n_expert, h.n_expert_used)
        unit = 1.0 / math.sqrt(h.n_embd)
        branch = math.sqrt(0.5 / h.n_layer)      # RMS that attention, and the experts, add per layer
        q_width, kv_width = h.n_head * h.head_dim, h.n_head_kv * h.head_dim
        router_type = QType[self.args.router_type]

        yield Tensor("token_embd.weight", (h.n_vocab, h.n_embd), self.embd_type, make_rows=self.embedding_rows())
        for i in range(h.n_layer):
            # Input of the gate on a bias channel, for the wanted share of zeros (normal gate values).
            shift = STD_NORMAL.inv_cdf(self.sparsity[i]) * math.sqrt(h.n_embd) / (len(bias) * GATE_BIAS_SIGMAS)
            active = 1.0 - self.sparsity[i]
            experts_rms = math.sqrt(0.5 * active / h.n_expert_used)      # RMS of the gated hidden values, weighted
            blk = f"blk.{i}."
            yield Tensor(blk + "attn_norm.weight", (h.n_embd,), QType.F32, make=self.norm(0.0))
            yield Tensor(blk + "attn_q.weight", (q_width, h.n_embd), self.attn_type, 2 * unit)
            yield Tensor(blk + "attn_k.weight", (kv_width, h.n_embd), self.attn_type, unit)
            yield Tensor(blk + "attn_v.weight", (kv_width, h.n_embd), self.attn_type, unit)
            yield Tensor(blk + "attn_output.weight", (h.n_embd, q_width), self.attn_type,
                         branch / math.sqrt(q_width), zero_rows=bias)
            yield Tensor(blk + "ffn_norm.weight", (h.n_embd,), QType.F32,
                         make=self.norm(shift * self.residual_rms(i)))
            yield Tensor(blk + "ffn_gate_inp.weight", (h.n_expert, h.n_embd), router_type,
                         make=self.router(i, popularity))
            yield Tensor(blk + "ffn_gate_exps.weight", (h.n_expert, h.n_ff, h.n_embd), self.matrix_type, unit,
                         fixed=dict.fromkeys(bias, -GATE_BIAS_SIGMAS))
            yield Tensor(blk + "ffn_up_exps.weight", (h.n_expert, h.n_ff, h.n_embd), self.matrix_type, unit,
                         fixed=dict.fromkeys(bias, 0.0))
            yield Tensor(blk + "ffn_down_exps.weight", (h.n_expert, h.n_embd, h.n_ff), self.matrix_type,
                         branch / (math.sqrt(h.n_ff) * experts_rms), zero_rows=bias,
                         transpose=self.args.down_layout == "transposed")
        if h.tied:
            # Random signs keep the current token's own embedding from winning every time.
            yield Tensor("output_norm.weight", (h.n_embd,), QType.F32,
                         make=self.norm(0.0, self.args.logit_std * unit, random_sign=True))
        else:
            yield Tensor("output_norm.weight", (h.n_embd,), QType.F32, make=self.norm(0.0))
            yield Tensor("output.weight", (h.n_vocab, h.n_embd), self.output_type, self.args.logit_std * unit)

    def data(self, t: Tensor) -> np.ndarray:
        """The tensor's bytes, rows x bytes per row."""
        rng = self.rng(t.name)
        if t.make is not None:
            values = t.make(rng)
            return to_type(values.reshape(-1, values.shape[-1]), t.qtype)

        *experts, rows, cols = t.shape
        fill = BLOCK_FILLS.get(t.qtype) if self.args.fill == "blocks" and t.make_rows is None else None
        if fill and t.transpose:                  # what is a zero row of the matrix is a zero column of the file
            columns = dict.fromkeys(t.zero_rows, 0.0)
            return self.fill_blocks(rng, fill, t, math.prod(experts) * cols, rows, columns, None)
        if fill:
            zero = np.isin(np.arange(rows), t.zero_rows) if t.zero_rows else None
            return self.fill_blocks(rng, fill, t, math.prod(experts) * rows, cols, t.fixed, zero)

        out, total = [], math.prod(experts) * rows
        step = rows if t.transpose else max(1, CHUNK_ELEMENTS // cols)
        for start in range(0, total, step):
            stop = min(total, start + step)
            if t.make_rows is not None:
                values = t.make_rows(rng, start, stop)
            else:
                values = rng.standard_normal((stop - start, cols), dtype=np.float32)
                for col, sigmas in t.fixed.items():
                    values[:, col] = sigmas
                values *= np.float32(t.std)
                if t.zero_rows is not None:
                    values[np.isin(np.arange(start, stop) % rows, t.zero_rows)] = 0
            out.append(to_type(np.ascontiguousarray(values.T) if t.transpose else values, t.qtype))
        return np.concatenate(out)

    def fill_blocks(self, rng, fill, t: Tensor, total: int, cols: int, fixed, zero) -> np.ndarray:
        out = []
        step = max(1, CHUNK_ELEMENTS // cols)
        if zero is not None:                      # whole matrices, so that the row mask repeats
            step = max(len(zero), step // len(zero) * len(zero))
        for start in range(0, total, step):
            n = min(total, start + step) - start
            mask = None if zero is None else np.tile(zero, n // len(zero))
            out.append(fill(rng, n, cols, t.std, fixed, mask))
        return np.concatenate(out)

    def file_shape(self, t: Tensor) -> tuple[int, ...]:
        return (*t.shape[:-2], t.shape[-1], t.shape[-2]) if t.transpose else t.shape


def popularity_profile(text: str, n_expert: int, n_used: int) -> np.ndarray:
    """Probability that an expert is among the chosen, most popular first; sums to n_used."""
    kind, *numbers = text.split(":")
    if kind == "report":                          # as the paper's figures show it: few hot, many cold
        kind, numbers = "hot", ["0.22", "0.8"]
    if kind == "uniform":
        share = np.ones(n_expert)
    elif kind == "zipf":
        share = (1.0 + np.arange(n_expert)) ** -float(numbers[0])
    elif kind == "hot":
        n_hot = max(1, round(float(numbers[0]) * n_expert))
        share = np.full(n_expert, (1 - float(numbers[1])) / (n_expert - n_hot))
        share[:n_hot] = float(numbers[1]) / n_hot
    else:
        raise SystemExit(f"unknown popularity: {text}")
    share = share / share.sum() * n_used
    for _ in range(n_expert):                     # nobody is chosen more than 95 % of the time
        excess = np.maximum(share - 0.95, 0).sum()
        share = np.minimum(share, 0.95)
        room = share < 0.95
        if excess < 1e-9 or not room.any():
            break
        share[room] *= 1 + excess / share[room].sum()
    return share


def router_biases(rng: np.random.Generator, wanted: np.ndarray, n_used: int) -> np.ndarray:
    """Constants that make the top-n_used of (constant + noise) follow the wanted popularity."""
    if np.ptp(wanted) < 1e-9:
        return np.zeros(len(wanted))
    noise = rng.normal(0.0, ROUTER_STD, (2048, len(wanted)))
    biases = np.log(wanted)
    for step in range(150):
        chosen = np.argpartition(-(noise + biases), n_used - 1, axis=1)[:, :n_used]
        found = np.bincount(chosen.ravel(), minlength=len(wanted)) / len(noise)
        biases += (1.0 if step < 60 else 0.3) * (np.log(wanted) - np.log(found + 2e-4))
        biases -= biases.max()
    threshold = np.median(np.sort(noise + biases, axis=1)[:, -n_used])
    return biases - threshold                     # the last one chosen gets a logit of about 0


def write_metadata(writer: gguf.GGUFWriter, h: Hyper, args: argparse.Namespace, vocab: dict) -> None:
    writer.add_type("model")
    writer.add_name(args.name or f"SmallThinker synthetic {args.preset}")
    writer.add_file_type(FILE_TYPES[args.type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)

    writer.add_context_length(h.n_ctx)
    writer.add_embedding_length(h.n_embd)
    writer.add_block_count(h.n_layer)
    writer.add_feed_forward_length(h.n_ff)
    writer.add_expert_feed_forward_length(h.n_ff)
    writer.add_head_count(h.n_head)
    writer.add_head_count_kv(h.n_head_kv)
    writer.add_key_length(h.head_dim)
    writer.add_value_length(h.head_dim)
    writer.add_rope_dimension_count(h.head_dim)
    writer.add_rope_freq_base(h.rope_base)
    writer.add_layer_norm_rms_eps(h.rms_eps)
    writer.add_expert_count(h.n_expert)
    writer.add_expert_used_count(h.n_expert_used)
    writer.add_vocab_size(h.n_vocab)
    if args.gating != "omit":
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType[args.gating.upper()])
    if h.window > 0:
        writer.add_sliding_window(h.window)

    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocab["pre"])
    writer.add_token_list(vocab["tokens"])
    writer.add_token_types(vocab["types"])
    writer.add_token_merges(vocab["merges"])
    writer.add_bos_token_id(vocab["bos"])
    writer.add_eos_token_id(vocab["eos"])
    writer.add_pad_token_id(vocab["pad"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)

    writer.add_uint64("synthetic.seed", args.seed)
    writer.add_string("synthetic.fill", args.fill)
    writer.add_string("synthetic.popularity", args.popularity)
    writer.add_string("synthetic.gate_sparsity", args.gate_sparsity)
    writer.add_string("synthetic.down_layout", args.down_layout)
    writer.add_uint32("synthetic.topics", args.topics)
    writer.add_float32("synthetic.topic_weight", args.topic_weight)


def byte_shape(shape: tuple[int, ...], qtype: QType) -> tuple[int, ...]:
    block, size = gguf.GGML_QUANT_SIZES[qtype]
    if shape[-1] % block:
        raise SystemExit(f"rows of {shape[-1]} values do not fit {qtype.name} blocks of {block}")
    return (*shape[:-1], shape[-1] // block * size)


def write_model(path: Path, hyper: Hyper, args: argparse.Namespace, vocab: dict) -> None:
    model = Model(hyper, args)
    tensors = list(model.tensors())
    n_params = sum(math.prod(t.shape) for t in tensors)
    sizes = [math.prod(byte_shape(model.file_shape(t), t.qtype)) for t in tensors]
    print(f"{path}: {len(tensors)} tensors, {n_params / 1e9:.3f} B parameters, {sum(sizes) / 2**30:.3f} GiB",
          file=sys.stderr)
    if args.dry_run:
        for t, size in zip(tensors, sizes):
            print(f"{t.name:32} {t.qtype.name:5} {'x'.join(map(str, reversed(model.file_shape(t)))):>18} {size:>12}")
        return

    writer = gguf.GGUFWriter(path, "smallthinker")
    write_metadata(writer, hyper, args, vocab)
    for t, size in zip(tensors, sizes):
        writer.add_tensor_info(t.name, byte_shape(model.file_shape(t), t.qtype), np.dtype(np.uint8), size, t.qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    started = time.monotonic()
    for number, (t, size) in enumerate(zip(tensors, sizes), 1):
        data = model.data(t)
        assert data.nbytes == size, (t.name, data.nbytes, size)
        writer.write_tensor_data(data)
        if sys.stderr.isatty():
            print(f"{number}/{len(tensors)} {t.name:32}", end="\r" if number < len(tensors) else "\n",
                  file=sys.stderr, flush=True)
    writer.close()
    print(f"{path}: written in {time.monotonic() - started:.1f} s", file=sys.stderr)


def parse_range(text: str, count: int) -> np.ndarray:
    """'0.65' -> constant; '0.95:0.65' -> falls from the first to the second within the first layers."""
    first, _, last = text.partition(":")
    start = float(first)
    end = float(last) if last else start
    if not (0 < start < 1 and 0 < end < 1):
        raise SystemExit("--gate-sparsity wants shares between 0 and 1")
    return end + (start - end) * np.exp(-np.arange(count) / max(1.0, count / 10))


def parse_args() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--preset", required=True, choices=PRESETS)
    p.add_argument("--out", required=True, type=Path, help="file to write")
    p.add_argument("--type", default="Q4_0", choices=TYPE_MIXES,
                   help="weight types; Q4_0 has a Q6_K output matrix, Q4_0-pure has Q4_0 throughout (default: Q4_0)")
    for part in ("expert", "attn", "embd", "output"):
        p.add_argument(f"--{part}-type", metavar="TYPE", choices=["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q6_K"],
                       help=f"another type for the {part} matrices")
    p.add_argument("--router-type", default="F32", choices=["F32", "F16"])
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--fill", choices=["quantize", "blocks"],
                   help="default: quantize for the tiny presets, blocks for the others")
    p.add_argument("--gating", default="sigmoid", choices=["sigmoid", "softmax", "omit"],
                   help="expert_gating_func; omit leaves the key out, as some converters do (default: sigmoid)")
    tie = p.add_mutually_exclusive_group()
    tie.add_argument("--tied", action="store_true", help="no output.weight")
    tie.add_argument("--untied", action="store_true", help="with output.weight")
    p.add_argument("--down-layout", default="standard", choices=["standard", "transposed"],
                   help="transposed: ffn_down_exps as n_embd x n_ff, as PowerInfer's sparse engine wants it")
    p.add_argument("--gate-sparsity", default="0.65", metavar="S[:E]",
                   help="share of ReLU zeros in the experts; S:E falls from S to E in the first layers (default: 0.65)")
    p.add_argument("--popularity", default="uniform", metavar="P",
                   help="uniform, zipf:A, hot:F:S (a fraction F of the experts gets a share S of the choices) or "
                        "report (hot:0.22:0.8) (default: uniform)")
    p.add_argument("--topics", type=int, default=64, help="number of topics (default: 64)")
    p.add_argument("--topic-weight", type=float, default=0.0, help="share of embedding variance that is the topic's "
                                                                  "(default: 0, no topics)")
    p.add_argument("--logit-std", type=float, default=3.0, help="standard deviation of the logits (default: 3)")
    p.add_argument("--vocab-gguf", type=Path, metavar="FILE",
                   help="take the tokenizer of this GGUF file (default: a small made-up byte-level BPE tokenizer, "
                        "filled up with unused tokens)")
    p.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                   help="change a number of the preset: " + ", ".join(f.name for f in dataclasses.fields(Hyper)))
    p.add_argument("--name", help="general.name")
    p.add_argument("--dry-run", action="store_true", help="list the tensors, write nothing")
    args = p.parse_args()
    args.fill = args.fill or ("quantize" if args.preset.startswith("tiny") else "blocks")
    return args


def main() -> None:
    args = parse_args()
    hyper = dataclasses.replace(PRESETS[args.preset])
    for text in args.set:
        name, _, value = text.partition("=")
        if not value or not hasattr(hyper, name):
            raise SystemExit(f"--set wants NAME=VALUE with one of the names in --help, not {text!r}")
        current = getattr(hyper, name)
        setattr(hyper, name, value.lower() in ("1", "true") if isinstance(current, bool) else type(current)(value))
    hyper.tied = (hyper.tied or args.tied) and not args.untied
    if hyper.window > 0 and hyper.n_layer == 4:
        print("note: llama.cpp gives layer 0 of a windowed 4-layer model RoPE; take another number of layers",
              file=sys.stderr)

    vocab = copied_vocab(args.vocab_gguf, hyper.n_vocab) if args.vocab_gguf else synthetic_vocab(hyper.n_vocab)
    write_model(args.out, hyper, args, vocab)


if __name__ == "__main__":
    main()
