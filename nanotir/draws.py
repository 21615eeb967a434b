"""Uniform random numbers by key, and the ids that are worth drawing from.

What a row samples depends on (seed, row, position) alone, so it does not matter which rows share a
batch, or when a tool answers.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def uniforms(seed: int, rows, positions) -> np.ndarray:
    """One number in [0, 1) for every (seed, row, position), by splitmix64 (Steele et al. 2014).

    A position is the number of ids that the row holds before the one that is drawn.
    22 bits, so that u * total < total holds in fp32: a draw never lands beyond the last id.
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        seeded = _mix(np.uint64(seed % 2**64))
        streams = _mix(seeded + np.asarray(rows, dtype=np.uint64))  # one stream a row
        mixed = _mix(streams + np.asarray(positions, dtype=np.uint64))
        return (mixed >> np.uint64(42)) / 2.0**22


def _mix(x):
    x = x * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def truncate(probs: Tensor, top_p: float, top_k: int) -> Tensor:
    """Zero all but the top_k likeliest ids, then all but the smallest set with mass top_p.

    Nucleus sampling is by Holtzman et al. 2020. probs (B, V) -> (B, V), not renormalised.
    """
    if top_p == 1.0 and not 0 < top_k < probs.shape[-1]:
        return probs
    ranked, order = probs.sort(-1, descending=True)
    if top_k:
        ranked[:, top_k:] = 0
    before = ranked.cumsum(-1) - ranked  # mass of all likelier ids: the id that crosses top_p stays
    ranked = ranked.masked_fill(before >= top_p * ranked.sum(-1, keepdim=True), 0)
    return torch.zeros_like(probs).scatter(-1, order, ranked)
