"""Which experts a mixture chooses: for each kind of span, and whether decoding chooses the same."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nanotir.batches import micro_batches
from nanotir.model import KVCache
from nanotir.routing import Routing
from nanotir.trajectory import Trajectory

MICRO_BATCH_TOKENS = 4096  # in one forward pass


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
