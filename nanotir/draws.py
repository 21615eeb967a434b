"""Uniform random numbers by key, and the ids that are drawn with them.

What a row samples depends on (seed, row, position) alone, not on its neighbours or on time.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

BLOCK = 1024  # ids of a large vocabulary that are drawn from together, at most
LARGE = 16384  # vocabulary from which on fp32 is too coarse: many ids have less than 2^-22


def uniforms(seed: int, rows, positions) -> np.ndarray:
    """One number in [0, 1) for every (seed, row, position), by splitmix64 (Steele et al. 2014).

    A position is the number of ids that the row holds before the one that is drawn. 51 bits.
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        seeded = _mix(np.uint64(seed % 2**64))
        streams = _mix(seeded + np.asarray(rows, dtype=np.uint64))  # one stream a row
        mixed = _mix(streams + np.asarray(positions, dtype=np.uint64))
        return (mixed >> np.uint64(13)) / 2.0**51


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


def precise(probs: Tensor) -> Tensor:
    """The probabilities (B, V) in float64 if the vocabulary is large, on a device that has it."""
    if probs.shape[-1] < LARGE:
        return probs
    return probs.to("cpu" if probs.device.type == "mps" else probs.device, torch.float64)


def draw(probs: Tensor, u) -> Tensor:
    """Ids (B,) from probabilities (B, V), which need not sum to 1, and one uniform a row.

    The first id at which the cumulative sum exceeds u times the total. Of u, only as many bits are
    used that u * total < total holds after rounding: a draw never lands beyond the last id.
    """
    large = probs.dtype == torch.float64
    steps = 2.0**51 if large else 2.0**22
    u = np.floor(np.asarray(u) * steps) / steps
    u = torch.as_tensor(u, dtype=probs.dtype, device=probs.device)
    if large:
        return draw_by_block(probs, u)
    cumulative = probs.cumsum(-1)  # (B, V)
    target = u[:, None] * cumulative[:, -1:]  # (B, 1)
    return torch.searchsorted(cumulative, target, right=True)[:, 0]


def draw_by_block(probs: Tensor, u: Tensor) -> Tensor:
    """The same by way of a block of ids, of which one is drawn with what is left of u.

    A sum over all ids takes a quarter of the time of a cumulative one.
    """
    blocks = probs.unflatten(-1, (-1, math.gcd(probs.shape[-1], BLOCK)))  # (B, V) -> (B, V/n, n)
    block, left = land(blocks.sum(-1), u)
    id, _ = land(blocks[torch.arange(len(block)), block], left)
    return block * blocks.shape[-1] + id


def land(weights: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """(where the cumulative sum of weights (B, N) exceeds u (B,) of the total; how far into it).

    The second is a uniform number again, whichever place the first one is.
    """
    cumulative = weights.cumsum(-1)
    target = u[:, None] * cumulative[:, -1:]  # (B, 1)
    at = torch.searchsorted(cumulative, target, right=True)
    at = at.clamp(max=weights.shape[-1] - 1)  # weights may be nan
    left = (target - cumulative.gather(-1, at)) / weights.gather(-1, at) + 1
    return at[:, 0], left[:, 0].clamp(0, 1 - 2.0**-51)
