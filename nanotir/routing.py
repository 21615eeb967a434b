"""Mixtures of experts, seen from outside: the losses that spread the load, whom the routers choose, and whether they choose again alike.

A router's choice is a step function: float noise between sampler and trainer, or an update between two passes, sends some tokens to
other experts, and their log-probs jump.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from nanotir.model import KVCache, ModelConfig, Routing
from nanotir.trajectory import micro_batches

MICRO_BATCH_TOKENS = 4096  # in one forward pass


def load_balancing_loss(routing: Routing, mask):
    """E sum_e f_e P_e (Fedus et al. 2021, eq. 4-6), the mean over layers. f_e is the share of all choices that fell on expert e, P_e its
    mean probability; only P has a gradient. 1 if they are uniform, E/k if k experts share all choices and all probability.

    mask (B, T) is set on real tokens, not on padding: prompts and tool output pass through the experts as well, and load them.
    """
    losses = []
    for logits, chosen in zip(routing.logits, routing.chosen):
        picked, E = chosen[mask].flatten(), logits.shape[-1]
        f, P = (
            picked.bincount(minlength=E) / len(picked),
            logits[mask].softmax(-1).mean(0),
        )  # both (E,)
        losses.append(E * (f * P).sum())
    return torch.stack(losses).mean()


def router_z_loss(routing: Routing, mask):
    """The mean over real tokens and layers of logsumexp(logits)^2 (Zoph et al. 2022, eq. 5): large logits make fp32 choices fragile."""
    return torch.stack(
        [logits[mask].logsumexp(-1).square().mean() for logits in routing.logits]
    ).mean()


def router_loss(routing: Routing, mask, num_tokens: int, config: ModelConfig):
    """A micro-batch's part of both losses, weighted by their coefficients, and of the load-balancing loss alone (a float, to be watched).

    Its part is its share of the step's num_tokens. So the z-loss adds up to that of one batch. The load-balancing loss does not: it is a
    product of two means, and asks every micro-batch to be balanced in itself, which is a little more.
    """
    balance, share = load_balancing_loss(routing, mask), mask.sum() / num_tokens
    return share * (
        config.router_aux_coef * balance + config.router_z_coef * router_z_loss(routing, mask)
    ), (share * balance).item()


@torch.no_grad()
def expert_use(model, tokenizer, trajectories) -> dict[str, list[list[float]]]:
    """{kind of token: for every layer, each expert's share of the choices}, all trajectories read again whole. Kinds are those of spans."""
    counts, E = {}, model.config.n_experts
    for micro in micro_batches(
        trajectories, tokenizer.pad_id, MICRO_BATCH_TOKENS, device_of(model)
    ):
        chosen = chosen_experts(model, micro.ids)  # (L, B, T, k)
        for row, number in enumerate(micro.rows):
            for span in trajectories[number].spans:
                picked = chosen[:, row, span.start : span.end].flatten(1)  # (L, n, k) -> (L, n*k)
                counts[span.kind] = counts.get(span.kind, 0) + F.one_hot(picked, E).sum(1)  # (L, E)
    return {kind: (count / count.sum(1, keepdim=True)).tolist() for kind, count in counts.items()}


@torch.no_grad()
def expert_disagreement(model, trajectories, pad_id: int, other=None) -> float:
    """The share of (token, layer) whose set of experts differs between decoding id by id through the KV cache, as the sampler does, and
    one pass over whole rows, as the trainer does, by the same model or by `other`: the policy after an update, say."""
    differing = decided = 0
    for micro in micro_batches(trajectories, pad_id, MICRO_BATCH_TOKENS, device_of(model)):
        cache = KVCache(model.config, *micro.ids.shape, micro.ids.device, model.embed.weight.dtype)
        decoded = torch.cat(
            [chosen_experts(model, id, cache) for id in micro.ids.split(1, dim=1)], dim=2
        )  # (L, B, T, k)
        whole = chosen_experts(model if other is None else other, micro.ids)
        differs = (decoded.sort(-1).values != whole.sort(-1).values).any(-1)[
            :, micro.real
        ]  # (L, B, T) -> (L, N)
        differing, decided = differing + differs.sum().item(), decided + differs.numel()
    return differing / decided


def chosen_experts(model, ids, cache: KVCache | None = None):
    """The experts that every layer chooses for ids (B, T): (L, B, T, k)."""
    routing = Routing()
    model.hidden(ids, cache=cache, routing=routing)
    return torch.stack(routing.chosen)


def device_of(model):
    return next(model.parameters()).device
