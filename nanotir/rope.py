"""Rotary position embedding: where an id stands turns its queries and keys (Su et al. 2021).

The product of a turned query and a turned key then depends on their distance. `config` is the
model's ModelConfig.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rope_angles(positions: Tensor, config) -> tuple[Tensor, Tensor]:
    """cos and sin of position * theta^(-2i/D) (Su et al. 2021, eq. 15), each (..., 1, D).

    `positions` is (...). Both halves of the last axis are for the same pairs: what `rotate` takes.
    """
    exponents = -torch.arange(0, config.d_head, 2, device=positions.device) / config.d_head
    frequencies = config.rope_theta**exponents
    if config.rope_factor != 1:
        frequencies = stretched(frequencies, config)
    angles = positions[..., None, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def stretched(frequencies: Tensor, config) -> Tensor:
    """Low frequencies divided by rope_factor, high ones as they are, and a mixture between them.

    Llama 3.1 uses this to read rows longer than those of its pretraining.
    """
    low, high = config.rope_low_freq, config.rope_high_freq
    turns = frequencies * config.rope_original_len / (2 * torch.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / config.rope_factor)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pair (x_i, x_{i+d/2}) of every head, as Llama and Qwen do. x (B, T, H, D).

    The pair (a, b) becomes (a cos - b sin, b cos + a sin).
    """
    swapped = x.roll(x.shape[-1] // 2, dims=-1)
    return (x * cos + swapped * sin).to(x.dtype)
