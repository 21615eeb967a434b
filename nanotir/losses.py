"""From rewards to a loss: group advantages, log-probs, ratios, clipping, KL, aggregation.

Everything here is a function of tensors, (B, T) or (B,), and one `mask` (B, T) that is True exactly on ids the model chose. The same
mask cuts prompt, tool output and padding out of the loss, the ratio, the KL term, every metric, and the denominator.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo")
RATIO_LEVELS = ("token", "sequence")
SCALES = ("group", "batch", "none")
BASELINES = ("mean", "leave_one_out")


def group_advantages(rewards, group_size: int, scale: str = "group", baseline: str = "mean", eps: float = 1e-4):
    """How much better each of `group_size` answers to one prompt did than its siblings: no critic needed. rewards (B,) -> (B,).

    GRPO (Shao et al. 2024, eq. 3): A_i = (r_i - mean(r)) / (std(r) + eps), std with ddof 1. scale="batch" divides by the whole batch's std,
    "none" does not divide (Dr. GRPO). baseline="leave_one_out" subtracts the mean of the others (RLOO). A constant group gives exactly 0.
    """
    one_of("scale", scale, SCALES)
    one_of("baseline", baseline, BASELINES)
    rewards = torch.as_tensor(rewards, dtype=torch.get_default_dtype() if not torch.is_tensor(rewards) else None)
    if not len(rewards):
        return rewards
    if len(rewards) % group_size:
        raise ValueError(f"{len(rewards)} rewards do not divide into groups of {group_size}")
    groups = rewards.view(len(rewards) // group_size, group_size)  # (prompts, G)
    centred = groups - groups.mean(1, keepdim=True)
    centred = torch.where((groups == groups[:, :1]).all(1, keepdim=True), 0.0, centred)  # a mean of equals may be off by an ulp
    if baseline == "leave_one_out":
        centred = centred * group_size / max(group_size - 1, 1)
    if scale == "group" and group_size > 1:
        centred = centred / (groups.std(1, keepdim=True) + eps)
    elif scale == "batch" and len(rewards) > 1:
        centred = centred / (rewards.std() + eps)
    return centred.reshape(-1)


def token_logps(logits, ids, temperature: float = 1.0):
    """Log-probs of ids (...) under logits (..., V): logits[b, t] is the distribution that ids[b, t] was drawn from."""
    return (logits.float() / temperature).log_softmax(-1).gather(-1, ids[..., None])[..., 0]


def trained_logps(model, ids, mask, temperature: float = 1.0, banned=()):
    """The model's log-probs (B, T) of the masked ids of whole rows (B, T); 0 elsewhere.

    Position t is predicted from t-1. `banned` are the ids that the sampler masks; leaving them in would make every ratio differ from 1.
    The head, the widest matrix there is, runs only where the mask is set.
    """
    hidden = model.hidden(ids[:, :-1])[mask[:, 1:]]  # (N, d)
    logits = model.head(hidden).float()  # (N, V)
    if len(banned):
        logits = logits.index_fill(-1, torch.tensor(banned, device=logits.device), float("-inf"))
    logps = token_logps(logits, ids[:, 1:][mask[:, 1:]], temperature)  # (N,)
    where = F.pad(mask[:, 1:], (1, 0))
    return torch.zeros(ids.shape, device=ids.device).masked_scatter(where, logps)


def policy_loss(
    logps, old_logps, advantages, mask, *, loss_type: str = "dapo", ratio_level: str = "token", epsilon: float = 0.2,
    epsilon_high: float | None = None, beta: float = 0.0, ref_logps=None, max_completion_length: int | None = None,
    num_active_tokens=None,
):  # fmt: skip
    """The clipped surrogate (Schulman et al. 2017, eq. 7) with clip-higher (DAPO, Yu et al. 2025, eq. 10), to be minimised.

        ratio = exp(logps - old_logps)
        loss_token = -min(ratio * A, clip(ratio, 1 - epsilon, 1 + epsilon_high) * A) + beta * kl

    logps, old_logps, ref_logps, mask (B, T); advantages (B,) or (B, T). The sum over tokens is divided
      grpo     by each row's own tokens, then averaged over all rows (an empty row counts as 0)
      bnpo     by this batch's active tokens
      dr_grpo  by rows * max_completion_length
      dapo     by `num_active_tokens`, those of the whole optimiser step, so that micro-batches add up to one batch
    ratio_level="sequence" is GSPO (Zheng et al. 2025, eq. 7): one ratio a row, the geometric mean of its tokens' ratios.
    Returns (loss, metrics: dict of floats).
    """
    one_of("loss_type", loss_type, LOSS_TYPES)
    one_of("ratio_level", ratio_level, RATIO_LEVELS)
    if beta and ref_logps is None:
        raise ValueError("beta > 0 needs ref_logps")
    if loss_type == "dr_grpo" and max_completion_length is None:
        raise ValueError("dr_grpo needs max_completion_length")
    mask = mask.bool()
    epsilon_high = epsilon if epsilon_high is None else epsilon_high
    advantages = advantages[:, None] if advantages.dim() == 1 else advantages  # (B, 1) or (B, T)

    log_ratio = masked(logps - old_logps.detach(), mask)  # (B, T)
    if ratio_level == "sequence":
        log_ratio = log_ratio.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)  # (B, 1)
    ratio = log_ratio.exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - epsilon, 1 + epsilon_high) * advantages)
    per_token = -surrogate.expand_as(logps)
    kl = torch.zeros_like(logps)
    if beta:  # k3 (Schulman 2020): exp(d) - d - 1 with d = log(ref / policy), unbiased and never negative
        d = masked(ref_logps.detach() - logps, mask)
        kl = d.exp() - d - 1
        per_token = per_token + beta * kl
    loss = aggregate(masked(per_token, mask), mask, loss_type, max_completion_length, num_active_tokens)
    return loss, metrics(ratio.expand_as(logps), advantages.expand_as(logps), kl, mask, epsilon, epsilon_high)


def masked(x, mask):
    """x where the mask is set, else 0; by `where`, since nan * 0 would stay nan."""
    return torch.where(mask, x, 0.0)


def aggregate(per_token, mask, loss_type: str, max_completion_length=None, num_active_tokens=None):
    """One number from the tokens' losses (B, T), already masked; the denominators are listed at policy_loss."""
    if loss_type == "grpo":
        return (per_token.sum(1) / mask.sum(1).clamp(min=1)).mean()
    if loss_type == "dr_grpo":
        return per_token.sum() / (len(mask) * max_completion_length)
    if loss_type == "bnpo" or num_active_tokens is None:
        num_active_tokens = mask.sum()
    return per_token.sum() / max(float(num_active_tokens), 1.0)


METRICS = ("clip_low", "clip_high", "ratio_mean", "kl", "zero_advantage")  # means over active tokens


@torch.no_grad()
def metrics(ratio, advantages, kl, mask, epsilon: float, epsilon_high: float) -> dict[str, float]:
    """What there is to see in a policy update, over active tokens only; the README's table explains each."""
    values = (
        (ratio < 1 - epsilon) & (advantages < 0),  # the lower bound stops this token's gradient
        (ratio > 1 + epsilon_high) & (advantages > 0),  # the upper bound does
        ratio,
        kl,
        advantages == 0,
    )
    n = mask.sum().clamp(min=1)
    means = {name: (masked(value.float(), mask).sum() / n).item() for name, value in zip(METRICS, values)}
    return {**means, "ratio_max": masked(ratio, mask).amax().item() if mask.numel() else 0.0, "active_tokens": mask.sum().item()}


def combine_metrics(parts: list[dict]) -> dict[str, float]:
    """The metrics of several batches as those of one."""
    total = sum(part["active_tokens"] for part in parts)
    means = {name: sum(part[name] * part["active_tokens"] for part in parts) / max(total, 1) for name in METRICS}
    return {**means, "ratio_max": max((part["ratio_max"] for part in parts), default=0.0), "active_tokens": total}


def one_of(what: str, name: str, names):
    if name not in names:
        raise ValueError(f"no {what} '{name}'; there are {', '.join(names)}")
