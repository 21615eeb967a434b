"""Which experts a mixture chooses: for each kind of span or token, and alike when decoding?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nanotir.batches import micro_batches
from nanotir.model import KVCache
from nanotir.routing import Routing
from nanotir.trajectory import Trajectory

MICRO_BATCH_TOKENS = 4096  # in one forward pass
KINDS = ("words", "digits", "code", "tool output", "tags")  # of tokens


def kinds_of_spans(trajectory: Trajectory, tokenizer) -> list[str]:
    """The kind of the span of every id."""
    return [span.kind for span in trajectory.spans for _ in range(span.start, span.end)]


def kinds_of_tokens(trajectory: Trajectory, tokenizer) -> list[str]:
    """One of KINDS for every id. The digits are those of the question and of the model's words."""
    tags = set(tokenizer.tags.values())
    kinds = []
    for id, kind in zip(trajectory.ids, kinds_of_spans(trajectory, tokenizer)):
        if id in tags:
            kinds.append("tags")
        elif kind in ("prompt", "text"):
            kinds.append("digits" if tokenizer.decode([id]).strip().isdigit() else "words")
        else:
            kinds.append("tool output" if kind == "output" else "code")
    return kinds


@torch.no_grad()
def expert_use(
    model, tokenizer, trajectories: list[Trajectory], kinds_of=kinds_of_spans
) -> dict[str, list[list[float]]]:
    """{kind: for every layer, each expert's share of the choices}, by kinds_of spans or tokens."""
    E = model.config.n_experts
    device = model.embed.weight.device
    counts = {}
    for micro in micro_batches(trajectories, tokenizer.pad_id, MICRO_BATCH_TOKENS, device):
        chosen = chosen_experts(model, micro.ids)  # (L, B, T, k)
        for row, number in enumerate(micro.rows):
            kinds = kinds_of(trajectories[number], tokenizer)
            for kind in dict.fromkeys(kinds):
                places = [i for i, other in enumerate(kinds) if other == kind]
                picked = chosen[:, row, places].flatten(1)  # (L, n, k) -> (L, n*k)
                count = F.one_hot(picked, E).sum(1)  # (L, E)
                counts[kind] = counts.get(kind, 0) + count
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
