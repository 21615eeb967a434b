"""From advantages to a loss: ratios, clipping, KL and one denominator.

All tensors are (B, T), or (B,) with one number a row. `mask` (B, T) is True exactly on the ids that
the model chose. It removes prompt, tool output and padding from the loss, the ratios, the KL term,
the metrics and the denominator.

A new loss is one surrogate function and one row in LOSSES.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nanotir.advantages import group_advantages as group_advantages  # one import for both
from nanotir.checks import one_of
from nanotir.metrics import update_metrics

LOG_LIMIT = 20.0  # log-ratios are clamped to +-20, because e^89 is inf in fp32 and inf * 0 is nan
RATIO_LEVELS = ("token", "sequence")
KL_ESTIMATORS = ("k1", "k2", "k3", "k3_weighted")


@dataclass
class LossOptions:
    """The settings of `policy_loss`. ValueError for an unknown name, or where one is missing."""

    loss_type: str = "dapo"  # a row of LOSSES
    ratio_level: str = "token"  # one ratio for each id, or for each row: "sequence" (GSPO)
    epsilon: float = 0.2  # the ratio is clipped below 1 - epsilon
    epsilon_high: float | None = None  # and above 1 + epsilon_high; None means epsilon
    delta: float | None = None  # bounds the unclipped ratio too (dual clip); None: no bound
    beta: float = 0.0  # weight of the KL term
    kl: str = "k3"  # its estimator, one of KL_ESTIMATORS
    entropy_coef: float = 0.0  # weight of the entropy bonus
    max_completion_length: int | None = None  # the constant that dr_grpo divides by

    def __post_init__(self):
        one_of("loss_type", self.loss_type, LOSSES)
        one_of("ratio_level", self.ratio_level, RATIO_LEVELS)
        one_of("kl", self.kl, KL_ESTIMATORS)
        _, denominator = LOSSES[self.loss_type]
        if denominator is over_longest and self.max_completion_length is None:
            raise ValueError(f"{self.loss_type} needs max_completion_length")
        if self.epsilon_high is None:
            self.epsilon_high = self.epsilon
        if self.delta is None:
            self.delta = math.inf


def policy_loss(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    ref_logps: Tensor | None = None,
    entropy: Tensor | None = None,
    importance_weights: Tensor | None = None,
    num_active_tokens: int | None = None,
    num_rows: int | None = None,
    **options,
) -> tuple[Tensor, dict[str, float]]:
    """The loss of one policy update, to be minimised, and its metrics.

    With the default options this is DAPO (Yu et al. 2025, eq. 8). Everything is (B, T), except that
    advantages may be (B,). `options` are the fields of LossOptions. num_active_tokens and num_rows
    count the whole update, of which this may be a micro-batch; without them, this is the whole.
    importance_weights correct for a sampler that differs from the policy behind old_logps.
    """
    options = LossOptions(**options)
    check_inputs(options, ref_logps, entropy)
    terms = loss_terms(logps, old_logps, advantages, mask, importance_weights, options)
    mask = terms.mask

    # DAPO: -min(ratio * A, clip(ratio) * A) for every id.
    surrogate, _ = LOSSES[options.loss_type]
    per_token, low_hit, high_hit = surrogate(terms, options)
    if terms.weights is not None and surrogate is not vespo:
        per_token = per_token * terms.weights

    # The KL term keeps the policy near a reference. DAPO has none (beta is 0).
    kl = None
    if options.beta:
        kl = kl_estimate(options.kl, masked(ref_logps.detach() - terms.logps, mask), terms.ratio)
        per_token = per_token + options.beta * kl

    # One denominator for the whole update: in DAPO, the number of ids that the model chose.
    counts = {"num_active_tokens": num_active_tokens, "num_rows": num_rows}
    counts["max_completion_length"] = options.max_completion_length
    loss = aggregate(masked(per_token, mask), mask, options.loss_type, **counts)
    if options.entropy_coef:
        over = "bnpo" if options.loss_type == "bnpo" else "dapo"  # entropy counts by tokens
        loss = loss - options.entropy_coef * aggregate(masked(entropy, mask), mask, over, **counts)
    return loss, update_metrics(terms, low_hit, high_hit, kl, entropy)


class Terms(NamedTuple):
    """What a surrogate is computed from, each (B, T), and 0 where the mask is not set."""

    logps: Tensor
    log_ratio: Tensor  # of each id, whatever ratio_level says
    ratio: Tensor  # how much likelier an id (or its row) is now than when it was drawn
    A: Tensor  # advantages
    mask: Tensor
    weights: Tensor | None  # importance weights


def loss_terms(logps, old_logps, advantages, mask, weights, options: LossOptions) -> Terms:
    """The terms of every surrogate. GSPO's ratio of a row is Zheng et al. 2025, eq. 7."""
    mask = mask.bool()
    if advantages.dim() == 1:
        advantages = advantages[:, None]
    A = masked(advantages.expand_as(logps), mask)  # (B, T)
    logps = masked(logps, mask)
    if weights is not None:
        weights = torch.where(mask, weights.detach(), 1.0)

    log_ratio = masked(logps - old_logps.detach(), mask).clamp(-LOG_LIMIT, LOG_LIMIT)  # (B, T)
    if options.ratio_level == "token":
        ratio = log_ratio.exp()
    else:  # the geometric mean of the row's ratios
        ratio = row_mean(log_ratio, mask).exp().expand_as(logps)  # (B, 1) -> (B, T)
    return Terms(logps, log_ratio, ratio, A, mask, weights)


def check_inputs(options: LossOptions, ref_logps: Tensor | None, entropy: Tensor | None):
    """ValueError where an option needs a tensor that is not given."""
    if options.beta and ref_logps is None:
        raise ValueError("beta > 0 needs ref_logps")
    if options.entropy_coef and entropy is None:
        raise ValueError("entropy_coef > 0 needs entropy")


# Surrogates: (terms, options) -> (loss of each id, where the lower bound stops the gradient, where
# an upper bound does), each (B, T).


def clipped(t: Terms, options: LossOptions):
    """-min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon_high) A).

    PPO (Schulman et al. 2017, eq. 7) with DAPO's clip-higher (Yu et al. 2025, eq. 10). delta bounds
    the unclipped ratio, so where A < 0 as well (dual clip, Ye et al. 2020). Returns the losses,
    where the lower bound stops the gradient, and where an upper bound does, (B, T) each.
    """
    low = 1 - options.epsilon
    high = 1 + options.epsilon_high
    bounded = t.ratio.clamp(max=options.delta)
    loss = -torch.minimum(bounded * t.A, t.ratio.clamp(low, high) * t.A)

    low_hit = (t.ratio < low) & (t.A < 0)
    high_hit = (t.A > 0) & (t.ratio > min(high, options.delta))
    delta_hit = (t.A < 0) & (t.ratio > max(high, options.delta))
    return loss, low_hit, high_hit | delta_hit


def cispo(t: Terms, options: LossOptions):
    """-sg[min(ratio, epsilon_high)] A logps (MiniMax-M1, 2025): every id keeps its gradient.

    epsilon_high is the largest weight itself, 5 say, as in TRL. `sg` stops the gradient.
    """
    loss = -t.ratio.detach().clamp(max=options.epsilon_high) * t.A * t.logps
    capped = (t.ratio > options.epsilon_high) & (t.A != 0)
    return loss, torch.zeros_like(t.mask), capped


def sapo(t: Terms, options: LossOptions):
    """-4/tau sigmoid(tau (ratio - 1)) A (Gao et al. 2025): a soft gate instead of the clip."""
    tau = torch.full_like(t.A, 1.05).masked_fill_(t.A > 0, 1.0)
    loss = -t.A * torch.sigmoid(tau * (t.ratio - 1)) * 4 / tau
    return loss, torch.zeros_like(t.mask), torch.zeros_like(t.mask)


def gmpo(t: Terms, options: LossOptions):
    """-exp(mean over the row of the clipped log-ratio) A (Zhao et al. 2025).

    The bounds are log-ratios: -epsilon and epsilon_high.
    """
    bounded = t.log_ratio.clamp(-options.epsilon, options.epsilon_high)
    lower = torch.minimum(t.log_ratio, bounded)
    upper = torch.maximum(t.log_ratio, bounded)
    one_sided = torch.where(t.A > 0, lower, upper)
    loss = -row_mean(one_sided, t.mask).exp() * t.A

    low_hit = (t.log_ratio < -options.epsilon) & (t.A < 0)
    high_hit = (t.log_ratio > options.epsilon_high) & (t.A > 0)
    return loss, low_hit, high_hit


def vespo(t: Terms, options: LossOptions):
    """-sg[phi(w)] A logps (arXiv 2602.10693): a smooth weight of the whole row's ratio w.

    phi(w) = e^c w^k e^(-c w), which is 1 at w = 1, with (k, c) = (2, 3) for A >= 0, else (3, 2).
    It takes the importance weights into w, so policy_loss does not multiply by them again.
    """
    limits = (math.log(1e-8), LOG_LIMIT)
    with torch.no_grad():  # phi is a weight, computed in log space, where it cannot overflow
        log_w = t.log_ratio
        if t.weights is not None:
            log_w = log_w + t.weights.log().clamp(*limits)
        log_w = masked(log_w, t.mask).sum(1, keepdim=True).clamp(*limits)  # (B, 1)
        k = torch.where(t.A >= 0, 2.0, 3.0)  # (B, T)
        c = torch.where(t.A >= 0, 3.0, 2.0)
        phi = (c + k * log_w - c * log_w.exp()).exp()
    return -phi * t.A * t.logps, torch.zeros_like(t.mask), torch.zeros_like(t.mask)


# Denominators: (masked losses of the ids, mask, the step's tokens, its rows, longest completion).


def over_tokens(per_token, mask, tokens, rows, longest):
    """Every id of the step counts alike (DAPO)."""
    return per_token.sum() / max(float(tokens), 1.0)


def over_own_tokens(per_token, mask, tokens, rows, longest):
    """The mean over this batch's own ids. The means of several micro-batches do not add up."""
    return over_tokens(per_token, mask, mask.sum(), rows, longest)


def over_each_row(per_token, mask, tokens, rows, longest):
    """The mean of the rows' own means (GRPO): an id of a long answer counts less."""
    return row_mean(per_token, mask).sum() / rows


def over_longest(per_token, mask, tokens, rows, longest):
    """A constant for each row (Dr. GRPO)."""
    return per_token.sum() / (rows * longest)


def over_rows(per_token, mask, tokens, rows, longest):
    """The mean of the rows' sums (LUSPO): a row counts by its length."""
    return per_token.sum() / rows


LOSSES = {  # name: (surrogate, denominator)
    "dapo": (clipped, over_tokens),
    "grpo": (clipped, over_each_row),
    "dr_grpo": (clipped, over_longest),
    "bnpo": (clipped, over_own_tokens),
    "luspo": (clipped, over_rows),
    "cispo": (cispo, over_tokens),
    "sapo": (sapo, over_each_row),
    "gmpo": (gmpo, over_each_row),
    "vespo": (vespo, over_tokens),
}


def aggregate(
    per_token: Tensor,
    mask: Tensor,
    loss_type: str,
    max_completion_length: int | None = None,
    num_active_tokens: int | None = None,
    num_rows: int | None = None,
) -> Tensor:
    """One number from the losses of all ids (B, T), already masked, by the loss's denominator.

    Without num_active_tokens and num_rows this batch is the whole step. A row without any chosen id
    still counts as a row, with a loss of 0.

    >>> mask = torch.tensor([[1, 1, 1, 0], [0, 1, 0, 0]]).bool()
    >>> per_token = torch.tensor([[3.0, 6.0, 3.0, 0.0], [0.0, 8.0, 0.0, 0.0]])
    >>> aggregate(per_token, mask, "grpo").item()  # ((3 + 6 + 3) / 3 + 8 / 1) / 2 rows
    6.0
    >>> aggregate(per_token, mask, "dapo").item()  # (3 + 6 + 3 + 8) / 4 tokens
    5.0
    >>> aggregate(per_token, mask, "dapo", num_active_tokens=10).item()  # 6 are in other batches
    2.0
    >>> aggregate(per_token, mask, "bnpo", num_active_tokens=10).item()  # 20 / 4 of its own
    5.0
    >>> aggregate(per_token, mask, "dr_grpo", max_completion_length=5).item()  # 20 / (2 rows * 5)
    2.0
    >>> aggregate(per_token, mask, "luspo").item()  # 20 / 2 rows
    10.0
    """
    tokens = mask.sum() if num_active_tokens is None else num_active_tokens
    rows = max(len(mask) if num_rows is None else num_rows, 1)
    _, denominator = LOSSES[loss_type]
    return denominator(per_token, mask, tokens, rows, max_completion_length)


def kl_estimate(kl: str, d: Tensor, ratio: Tensor | None = None) -> Tensor:
    """An estimate of KL(policy || reference) at every id (B, T), from d = ref_logps - logps.

    Schulman (2020): k1 = -d, whose gradient is 0 on average; k2 = d^2 / 2; k3 = e^d - d - 1, which
    is never negative. k3_weighted = ratio * k3, differentiated through both, is unbiased in value
    and in gradient also where the policy has moved on (DeepSeek-V3.2, eq. 7), if the ratio is that
    of the id. With ratio_level="sequence" it is that of the row, and the estimate is biased.
    """
    d = d.clamp(-LOG_LIMIT, LOG_LIMIT)
    if kl == "k1":
        return -d
    if kl == "k2":
        return d.square() / 2
    k3 = d.exp() - d - 1
    return k3 * ratio if kl == "k3_weighted" else k3


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """x where the mask is set, else 0. By `where`, because nan * 0 is nan."""
    return torch.where(mask, x, 0.0)


def row_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean over each row's chosen ids (B, 1); 0 for a row without any."""
    return masked(x, mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
