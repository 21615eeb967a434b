"""Mixtures of experts: what the routers chose, and the losses that spread the load.

A router's choice is a step function. Float noise between sampler and trainer, or an update between
two passes, sends some tokens to other experts, and their log-probs jump.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from nanotir.model import ModelConfig


@dataclass
class Routing:
    """What the routers decided in one forward pass, one entry a layer. Pass in an empty one."""

    logits: list[Tensor] = field(default_factory=list)  # each (B, T, E)
    chosen: list[Tensor] = field(default_factory=list)  # each (B, T, k), the likeliest first


def load_balancing_loss(routing: Routing, real: Tensor) -> Tensor:
    """E sum_e f_e P_e, the mean over layers (Fedus et al. 2021, eq. 4-6).

    f_e is the share of all choices that fell on expert e, and P_e its mean probability; only P has
    a gradient. 1 if all are uniform, E/k if k experts take everything. `real` (B, T) is False on
    padding. Prompts and tool output count: they load the experts as well.
    """
    losses = []
    for logits, chosen in zip(routing.logits, routing.chosen):
        E = logits.shape[-1]
        picked = chosen[real].flatten()  # (N*k,)
        f = picked.bincount(minlength=E) / len(picked)  # (E,)
        P = logits[real].softmax(-1).mean(0)  # (E,)
        losses.append(E * (f * P).sum())
    return torch.stack(losses).mean()


def router_z_loss(routing: Routing, real: Tensor) -> Tensor:
    """The mean over real tokens and layers of logsumexp(logits)^2 (Zoph et al. 2022, eq. 5).

    Large logits make choices in fp32 fragile.
    """
    means = [logits[real].logsumexp(-1).square().mean() for logits in routing.logits]
    return torch.stack(means).mean()


def router_loss(routing: Routing | None, real: Tensor, num_tokens: int, config: ModelConfig):
    """(a micro-batch's part of both losses, weighted; its part of the load-balancing loss alone).

    Both are 0 for a model without experts, where `routing` is None.
    Its part is its share of the step's num_tokens. So the z-loss adds up to that of one batch. The
    load-balancing loss does not quite: it is a product of two means, and asks every micro-batch to
    be balanced in itself.
    """
    if routing is None:
        return 0.0, 0.0
    balance = load_balancing_loss(routing, real)
    share = real.sum() / num_tokens
    z_loss = router_z_loss(routing, real)
    weighted = config.router_aux_coef * balance + config.router_z_coef * z_loss
    return share * weighted, (share * balance).item()
