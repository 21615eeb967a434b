"""Mixtures of experts: what the routers chose, and the losses that spread the load.

A router's choice is a step function. Float noise between sampler and trainer, or an update between
two passes, sends some tokens to other experts, and their log-probs jump.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from nanotir.model import KVCache, ModelConfig
from nanotir.trajectory import Trajectory, micro_batches

MICRO_BATCH_TOKENS = 4096  # in one forward pass


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


def router_loss(routing: Routing, real: Tensor, num_tokens: int, config: ModelConfig):
    """(a micro-batch's part of both losses, weighted; its part of the load-balancing loss alone).

    Its part is its share of the step's num_tokens. So the z-loss adds up to that of one batch. The
    load-balancing loss does not quite: it is a product of two means, and asks every micro-batch to
    be balanced in itself.
    """
    balance = load_balancing_loss(routing, real)
    share = real.sum() / num_tokens
    z_loss = router_z_loss(routing, real)
    weighted = config.router_aux_coef * balance + config.router_z_coef * z_loss
    return share * weighted, (share * balance).item()


@torch.no_grad()
def expert_use(model, tokenizer, trajectories: list[Trajectory]) -> dict[str, list[list[float]]]:
    """{kind of span: for every layer, each expert's share of the choices}."""
    E = model.config.n_experts
    device = model.embed.weight.device
    counts = {}
    for micro in micro_batches(trajectories, tokenizer.pad_id, MICRO_BATCH_TOKENS, device):
        chosen = chosen_experts(model, micro.ids)  # (L, B, T, k)
        for row, number in enumerate(micro.rows):
            for span in trajectories[number].spans:
                picked = chosen[:, row, span.start : span.end].flatten(1)  # (L, n, k) -> (L, n*k)
                count = F.one_hot(picked, E).sum(1)  # (L, E)
                counts[span.kind] = counts.get(span.kind, 0) + count
    return {kind: (count / count.sum(1, keepdim=True)).tolist() for kind, count in counts.items()}


@torch.no_grad()
def expert_disagreement(model, trajectories: list[Trajectory], pad_id: int, other=None) -> float:
    """The share of (token, layer) whose set of experts differs between two ways of reading.

    One decodes id by id through the KV cache, as the sampler does. The other reads whole rows, as
    the trainer does, with the same model or with `other`, such as the policy after an update.
    """
    differing = decided = 0
    other = other or model
    device = model.embed.weight.device
    for micro in micro_batches(trajectories, pad_id, MICRO_BATCH_TOKENS, device):
        cache = KVCache(model.config, *micro.ids.shape, device, model.embed.weight.dtype)
        steps = [chosen_experts(model, ids, cache) for ids in micro.ids.split(1, dim=1)]
        decoded = torch.cat(steps, dim=2).sort(-1).values  # (L, B, T, k)
        whole = chosen_experts(other, micro.ids).sort(-1).values
        differs = (decoded != whole).any(-1)[:, micro.real]  # (L, B, T) -> (L, N)
        differing += differs.sum().item()
        decided += differs.numel()
    return differing / decided


def chosen_experts(model, ids: Tensor, cache: KVCache | None = None) -> Tensor:
    """The experts that every layer chooses for ids (B, T): (L, B, T, k)."""
    routing = Routing()
    model.hidden(ids, cache=cache, routing=routing)
    return torch.stack(routing.chosen)
