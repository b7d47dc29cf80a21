"""Quantised blocks for synthetic models: float rows to bytes, and rows drawn as quantised blocks directly."""
from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from gguf import GGMLQuantizationType as QType
from gguf import quants

STD_NORMAL = NormalDist()


def quantize_q6_k(values: np.ndarray) -> np.ndarray:
    """Plain Q6_K (scales from the largest magnitude, no search); rows of a multiple of 256."""
    rows, cols = values.shape
    sub = values.reshape(-1, 16, 16)                               # superblock, sub-block, element
    peak = np.take_along_axis(sub, np.abs(sub).argmax(2)[..., None], 2)[..., 0]
    scale = peak / -32.0
    d = (np.abs(scale).max(1) / 127.0).astype(np.float16)
    d32 = d.astype(np.float32)[:, None]
    int_scale = np.rint(np.divide(scale, d32, out=np.zeros_like(scale), where=d32 != 0))
    step = (d32 * int_scale)[..., None]
    q = np.rint(np.divide(sub, step, out=np.zeros_like(sub), where=step != 0))
    q = (np.clip(q, -32, 31) + 32).astype(np.uint8).reshape(-1, 2, 4, 32)   # halves of 128, quarters of 32
    low, high = q & 15, q >> 4
    ql = np.concatenate([low[:, :, 0:2] | (low[:, :, 2:4] << 4)], axis=2).reshape(-1, 128)
    qh = (high[:, :, 0] | (high[:, :, 1] << 2) | (high[:, :, 2] << 4) | (high[:, :, 3] << 6)).reshape(-1, 64)
    raw = np.concatenate([ql, qh, int_scale.astype(np.int8).view(np.uint8), d.view(np.uint8).reshape(-1, 2)], axis=1)
    return raw.reshape(rows, cols // 256 * 210)


def to_type(values: np.ndarray, qtype: QType) -> np.ndarray:
    """float32 rows -> rows of bytes in the wanted type."""
    if qtype == QType.Q6_K:
        return quantize_q6_k(values)
    return quants.quantize(values, qtype).view(np.uint8).reshape(values.shape[0], -1)


def normal_levels(count: int, peak: int) -> np.ndarray:
    """`count` equally likely integers, symmetric about 0, spread like a normal distribution."""
    z = np.array([STD_NORMAL.inv_cdf((i + 0.5) / count) for i in range(count)])
    return np.rint(z * peak / z[-1]).astype(np.int8)


Q4_LEVELS = normal_levels(16, 7)
Q4_PAIRS = np.array([(Q4_LEVELS[b & 15] + 8) | ((Q4_LEVELS[b >> 4] + 8) << 4) for b in range(256)], dtype=np.uint8)
Q8_LEVELS = normal_levels(256, 127)


def random_bytes(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.integers(0, 256, size=count, dtype=np.uint8)


def block_scales(rng: np.random.Generator, shape: tuple[int, ...], level_std: float, std: float) -> np.ndarray:
    """Block scales, either sign and within 15 % of one another, for values of the wanted deviation."""
    byte = random_bytes(rng, math.prod(shape)).reshape(shape)
    size = std / level_std * (0.85 + 0.3 * (byte >> 1) / 127.0)
    return np.where(byte & 1, -size, size).astype(np.float16)


def random_q4_0(rng, rows: int, cols: int, std: float, fixed: dict[int, float], zero_rows) -> np.ndarray:
    """Rows of random Q4_0 blocks; `fixed` maps a column to its value in standard deviations."""
    n_blocks = cols // 32
    codes = Q4_PAIRS[random_bytes(rng, rows * n_blocks * 16)].reshape(rows, n_blocks, 16)
    d = block_scales(rng, (rows, n_blocks), float(np.std(Q4_LEVELS)), std)
    for col, sigmas in fixed.items():
        block, place = divmod(col, 32)
        q = np.clip(np.rint(sigmas * std / d[:, block].astype(np.float32)), -8, 7).astype(np.int16) + 8
        byte = codes[:, block, place % 16]
        codes[:, block, place % 16] = (byte & 0xF0) | q if place < 16 else (byte & 0x0F) | (q << 4)
    if zero_rows is not None:
        d[zero_rows] = 0
    out = np.empty((rows, n_blocks, 18), dtype=np.uint8)
    out[:, :, :2] = d.view(np.uint8).reshape(rows, n_blocks, 2)
    out[:, :, 2:] = codes
    return out.reshape(rows, -1)


def random_q8_0(rng, rows: int, cols: int, std: float, fixed: dict[int, float], zero_rows) -> np.ndarray:
    n_blocks = cols // 32
    codes = Q8_LEVELS[random_bytes(rng, rows * cols)].reshape(rows, n_blocks, 32)
    d = block_scales(rng, (rows, n_blocks), float(np.std(Q8_LEVELS.astype(np.float64))), std)
    for col, sigmas in fixed.items():
        block, place = divmod(col, 32)
        codes[:, block, place] = np.clip(np.rint(sigmas * std / d[:, block].astype(np.float32)), -127, 127)
    if zero_rows is not None:
        d[zero_rows] = 0
    out = np.empty((rows, n_blocks, 34), dtype=np.uint8)
    out[:, :, :2] = d.view(np.uint8).reshape(rows, n_blocks, 2)
    out[:, :, 2:] = codes.view(np.uint8)
    return out.reshape(rows, -1)


BLOCK_FILLS = {QType.Q4_0: random_q4_0, QType.Q8_0: random_q8_0}
