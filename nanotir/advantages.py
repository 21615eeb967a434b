"""From rewards to advantages: how much better an answer is than the other answers to its prompt.

The group of answers is its own baseline, so no critic is needed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanotir.checks import one_of

SCALES = ("group", "batch", "none", "whiten", "whiten_all")
BASELINES = ("mean", "leave_one_out")


def group_advantages(
    rewards,
    group_size: int,
    scale: str = "group",
    baseline: str = "mean",
    eps: float = 1e-4,
    num_tokens: Tensor | None = None,
) -> Tensor:
    """How much better each answer did than the other answers to its prompt. (B,) -> (B,).

    Rewards are a list or a tensor. Whole numbers become float32; float64 stays float64.
    GRPO (Shao et al. 2024, section 4.1.2): A_i = (r_i - mean(r)) / (std(r) + eps), std with ddof 1.
    baseline="leave_one_out" subtracts the mean of the others (RLOO). scale="batch" divides by the
    std of the whole batch, "none" by nothing (Dr. GRPO). "whiten" and "whiten_all" are described
    at `whiten`: the first leaves out the tokens of groups of equal rewards, the second, as CIR's
    code, counts them. A group of equal rewards gives exactly 0. With "whiten_all" it does so only
    if all groups are such. ValueError for rewards that do not divide into groups.
    """
    one_of("scale", scale, SCALES)
    one_of("baseline", baseline, BASELINES)
    rewards = torch.as_tensor(rewards)
    rewards = rewards if rewards.is_floating_point() else rewards.float()
    if not len(rewards):
        return rewards
    if group_size < 1 or len(rewards) % group_size:
        raise ValueError(f"{len(rewards)} rewards do not divide into groups of {group_size}")

    # A mean of equal numbers may be off by an ulp, so constant groups are set to 0 explicitly.
    groups = rewards.view(len(rewards) // group_size, group_size)  # (prompts, G)
    constant = (groups == groups[:, :1]).all(1, keepdim=True)  # (prompts, 1)
    centred = torch.where(constant, 0.0, groups - groups.mean(1, keepdim=True))
    if baseline == "leave_one_out":
        centred = centred * group_size / max(group_size - 1, 1)

    if scale == "group" and group_size > 1:
        centred = centred / (groups.std(1, keepdim=True) + eps)
    elif scale == "batch" and len(rewards) > 1:
        centred = centred / (rewards.std() + eps)
    elif scale in ("whiten", "whiten_all"):
        tokens = torch.ones_like(rewards) if num_tokens is None else num_tokens
        if scale == "whiten":  # constant groups do not count
            tokens = torch.where(constant, 0, tokens.view_as(groups)).reshape(-1)
        return whiten(centred.reshape(-1), tokens)
    return centred.reshape(-1)


def whiten(advantages: Tensor, num_tokens: Tensor) -> Tensor:
    """Mean 0 and variance 1 over all tokens, where row i stands for num_tokens[i] of them.

    REINFORCE++ with a baseline (Hu 2025), as CIR uses it. 0 in rows without tokens. (B,) -> (B,).
    """
    n = num_tokens.sum()
    centred = advantages - (num_tokens * advantages).sum() / n.clamp(min=1)
    variance = (num_tokens * centred.square()).sum() / (n - 1).clamp(min=1)
    return torch.where(num_tokens > 0, centred * torch.rsqrt(variance + 1e-8), 0.0)
