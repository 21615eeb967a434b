"""The policy losses and their gradients, one id at a time, derived by hand from the papers.

Nothing here is differentiated by a machine. Where a loss depends on a log-prob through a ratio, the
chain rule is written out. All numbers are Python's own floats.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

B, T, L_MAX = 6, 9, 12
CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")  # one surrogate, five denominators
LOSS_TYPES = (*CLIPPED, "cispo", "sapo", "gmpo", "vespo")
KL_ESTIMATORS = ("k1", "k2", "k3", "k3_weighted")
MASKS = (  # kinds of masks, and whether the policy is still the old one
    ("holes", False),
    ("holes", True),
    ("empty", False),
    ("full", False),
    ("full", True),
)


def draw(generator, scale: float):
    return scale * torch.randn(B, T, generator=generator, dtype=torch.float64)


def mask_of(kind: str):
    """A prompt, a hole (tool output), padding and an empty row; or nothing; or everything."""
    mask = torch.full((B, T), kind != "empty")
    if kind == "holes":
        mask[:, :2] = False
        mask[1, 4:6] = False
        mask[2, 6:] = False
        mask[5] = False
    return mask


def case(mask_kind="holes", on_policy=False, spread=0.3) -> dict:
    """A batch in float64, with advantages of both signs and 0."""
    generator = torch.Generator().manual_seed(1)
    old = -1 - draw(generator, 0.5).abs()
    new = old.clone() if on_policy else old + draw(generator, spread)
    return {
        "new": new,
        "old": old,
        "ref": old + draw(generator, 0.2),
        "mask": mask_of(mask_kind),
        "A": torch.tensor([1.0, -1.0, 0.5, -0.5, 0.0, -2.0], dtype=torch.float64),
        "weights": draw(generator, 0.3).exp(),
        "entropy": draw(generator, 1.0).abs(),
    }


def fill_masked(data: dict, nonsense: float) -> dict:
    """The same batch with nonsense wherever the mask is not set."""
    filled = {}
    for name, x in data.items():
        whole = x.dim() == 1 or name == "mask"
        filled[name] = x if whole else x.masked_fill(~data["mask"], nonsense)
    return filled


@dataclass(frozen=True)
class Settings:
    """What policy_loss is told, and whether it is given importance weights."""

    loss_type: str
    ratio_level: str = "token"
    epsilon: float = 0.2
    epsilon_high: float | None = None
    delta: float | None = None
    beta: float = 0.0
    kl: str = "k3"
    num_active_tokens: int | None = None
    num_rows: int | None = None
    entropy_coef: float = 0.0
    weighted: bool = False

    @property
    def high(self) -> float:
        return self.epsilon if self.epsilon_high is None else self.epsilon_high


class Row(NamedTuple):
    """One row's chosen ids: the numbers that its losses are made of, by position."""

    tokens: list[int]
    A: dict[int, float]
    logp: dict[int, float]
    log_ratio: dict[int, float]
    ratio: dict[int, float]
    weight: dict[int, float]
    d: dict[int, float]  # reference minus policy


def row_of(data: dict, i: int, s: Settings) -> Row:
    tokens = data["mask"][i].nonzero()[:, 0].tolist()

    def at(name):
        return {t: data[name][i, t].item() for t in tokens}

    new, old, ref = at("new"), at("old"), at("ref")
    log_ratio = {t: new[t] - old[t] for t in tokens}
    if s.ratio_level == "token":
        ratio = {t: math.exp(log_ratio[t]) for t in tokens}
    else:
        mean = sum(log_ratio.values()) / max(len(tokens), 1)
        ratio = dict.fromkeys(tokens, math.exp(mean))
    A = dict.fromkeys(tokens, data["A"][i].item())
    weight = at("weights") if s.weighted else dict.fromkeys(tokens, 1.0)
    return Row(tokens, A, new, log_ratio, ratio, weight, {t: ref[t] - new[t] for t in tokens})


def by_hand(data: dict, s: Settings):
    """(loss, d loss / d logps (B, T), d loss / d entropy (B, T))."""
    loss = 0.0
    gradient = torch.zeros(B, T, dtype=torch.float64)
    per_entropy = torch.zeros(B, T, dtype=torch.float64)
    for i in range(B):
        row = row_of(data, i, s)
        share = share_of(row, step_tokens(data, s), s)
        for t in row.tokens:
            value, slopes = token_loss(row, t, s)
            loss += share * value
            for other, slope in slopes.items():
                gradient[i, other] += share * slope
            bonus = s.entropy_coef / step_tokens(data, s)
            loss -= bonus * data["entropy"][i, t].item()
            per_entropy[i, t] -= bonus
    return loss, gradient, per_entropy


def step_tokens(data: dict, s: Settings) -> int:
    own = max(int(data["mask"].sum()), 1)
    return own if s.loss_type == "bnpo" else s.num_active_tokens or own


def share_of(row: Row, tokens: int, s: Settings) -> float:
    """What the loss of one id of a row is multiplied by."""
    rows = s.num_rows or B
    if s.loss_type in ("grpo", "sapo", "gmpo"):
        return 1 / (rows * max(len(row.tokens), 1))
    if s.loss_type == "dr_grpo":
        return 1 / (rows * L_MAX)
    if s.loss_type == "luspo":
        return 1 / rows
    return 1 / tokens


def token_loss(row: Row, t: int, s: Settings):
    """(value, {position: its derivative by that position's log-prob}) of one id."""
    value, by_ratio, slopes = TERMS[s.loss_type](row, t, s)
    w = 1.0 if s.loss_type == "vespo" else row.weight[t]
    value *= w
    by_ratio *= w
    slopes = {other: w * slope for other, slope in slopes.items()}
    if s.beta:
        k, k_by_logp, k_by_ratio = kl_term(row, t, s.kl)
        value += s.beta * k
        by_ratio += s.beta * k_by_ratio
        slopes[t] = slopes.get(t, 0.0) + s.beta * k_by_logp

    # d ratio / d logp is the ratio itself, or for a row's ratio its n-th part at each of n ids.
    reached = [t] if s.ratio_level == "token" else row.tokens
    for other in reached:
        slopes[other] = slopes.get(other, 0.0) + by_ratio * row.ratio[t] / len(reached)
    return value, slopes


def kl_term(row: Row, t: int, kl: str):
    """(value, its derivative by the log-prob, by the ratio)."""
    d, ratio = row.d[t], row.ratio[t]
    k3 = math.exp(d) - d - 1
    if kl == "k1":
        return -d, 1.0, 0.0
    if kl == "k2":
        return d * d / 2, -d, 0.0
    if kl == "k3":
        return k3, 1 - math.exp(d), 0.0
    return ratio * k3, ratio * (1 - math.exp(d)), k3


# The policy term of one id: (value, its derivative by the ratio, {position: by its log-prob}).


def clipped(row: Row, t: int, s: Settings):
    a, ratio = row.A[t], row.ratio[t]
    low, high = 1 - s.epsilon, 1 + s.high
    delta = math.inf if s.delta is None else s.delta
    value = -min(min(ratio, delta) * a, min(max(ratio, low), high) * a)
    if a > 0:
        stopped = ratio > min(high, delta)
    else:
        stopped = ratio < low or ratio > max(high, delta)
    return value, 0.0 if stopped else -a, {}


def cispo(row: Row, t: int, s: Settings):
    weight = min(row.ratio[t], s.high) * row.A[t]
    return -weight * row.logp[t], 0.0, {t: -weight}


def sapo(row: Row, t: int, s: Settings):
    a = row.A[t]
    tau = 1.0 if a > 0 else 1.05
    gate = 1 / (1 + math.exp(-tau * (row.ratio[t] - 1)))
    return -a * gate * 4 / tau, -a * 4 * gate * (1 - gate), {}


def gmpo(row: Row, t: int, s: Settings):
    a = row.A[t]
    bounded = {}
    for other, x in row.log_ratio.items():
        bounded[other] = min(x, s.high) if a > 0 else max(x, -s.epsilon)
    mean = math.exp(sum(bounded.values()) / len(bounded))
    free = [other for other, x in row.log_ratio.items() if bounded[other] == x]
    return -a * mean, 0.0, dict.fromkeys(free, -a * mean / len(bounded))


def vespo(row: Row, t: int, s: Settings):
    a = row.A[t]
    k, c = (2, 3) if a >= 0 else (3, 2)
    log_w = sum(row.log_ratio[other] + math.log(row.weight[other]) for other in row.tokens)
    phi = math.exp(c + k * log_w - c * math.exp(log_w))
    return -phi * a * row.logp[t], 0.0, {t: -phi * a}


TERMS = {"cispo": cispo, "sapo": sapo, "gmpo": gmpo, "vespo": vespo}
TERMS |= dict.fromkeys(CLIPPED, clipped)


@functools.cache
def solved(mask_kind: str, on_policy: bool, s: Settings):
    """by_hand of a case, once for all variants of losses.py that are held against it."""
    return by_hand(case(mask_kind, on_policy), s)


def matrix(loss_types=LOSS_TYPES, quick=False):
    """(mask kind, on-policy, options of policy_loss) over everything that the losses are told."""
    for loss_type in loss_types:
        for options in options_of(loss_type, quick):
            for mask_kind, on_policy in MASKS[:3] if quick else MASKS:
                yield mask_kind, on_policy, options


def options_of(loss_type: str, quick: bool):
    bounds = ((0.2, 0.28),) if quick else ((0.2, None), (0.2, 0.28), (0.05, 0.1))
    deltas = (None,)
    if quick:
        deltas = (None, 1.35)
    elif loss_type in CLIPPED:
        deltas = (None, 1.35, 1.15)
    for level, (low, high), delta in itertools.product(("token", "sequence"), bounds, deltas):
        every_kl = quick or (low == 0.2 and high and delta is None)
        clip = {"epsilon": low, "epsilon_high": 1.1 if loss_type == "cispo" and high else high}
        for beta, kl in kl_options(every_kl):
            names = {"loss_type": loss_type, "ratio_level": level, "beta": beta, "kl": kl}
            yield names | clip | {"delta": delta}


def kl_options(every_kl: bool):
    yield 0.0, "k3"
    for kl in KL_ESTIMATORS if every_kl else ("k3",):
        yield 0.1, kl
