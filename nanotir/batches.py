"""Trajectories as tensors: micro-batches for training."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nanotir.logps import autocast, packs
from nanotir.processes import share
from nanotir.trajectory import Trajectory


@dataclass
class Batch:
    """Trajectories as tensors (B, T), right-padded."""

    ids: Tensor
    mask: Tensor  # True exactly on ids that the model chose
    logps: Tensor  # the sampler's
    old_logps: Tensor  # the trainer's before an update; until it is computed, the sampler's
    real: Tensor  # False exactly on padding
    rows: list[int]  # which trajectory each row is


def collate(trajectories: list[Trajectory], pad_id: int, rows=None, device="cpu") -> Batch:
    """One batch of the trajectories, or of those numbered in `rows`, padded to the longest."""
    rows = list(range(len(trajectories)) if rows is None else rows)
    batch = [trajectories[row] for row in rows]

    def padded(columns, fill) -> Tensor:
        columns = [torch.tensor(column) for column in columns]
        return pad_sequence(columns, batch_first=True, padding_value=fill).to(device)  # (B, T)

    return Batch(
        ids=padded([t.ids for t in batch], pad_id),
        mask=padded([t.mask for t in batch], 0).bool(),
        logps=padded([t.logps for t in batch], 0.0),
        old_logps=padded([t.old_logps or t.logps for t in batch], 0.0),
        real=padded([[1] * len(t.ids) for t in batch], 0).bool(),
        rows=rows,
    )


def micro_batches(
    trajectories: list[Trajectory], pad_id: int, max_tokens: int, device="cpu", packed=False
) -> Iterator[Batch]:
    """All trajectories in batches of at most max_tokens; a longer one is a batch of its own.

    Padding is counted, unless the rows are `packed` (logps.packs). Of several processes, each
    gets its share of the rows. The largest batch comes first: what does not fit in memory fails at
    once, and threads that compute batches side by side end at about the same time.
    """
    lengths = [len(t.ids) for t in trajectories]
    order = share(sorted(range(len(trajectories)), key=lengths.__getitem__, reverse=True))
    parts = equal_parts if packed else similar_rows
    for rows in parts(order, lengths, max_tokens):
        yield collate(trajectories, pad_id, rows, device)


def micro_batches_of(model, trajectories, pad_id: int, settings) -> Iterator[Batch]:
    """The micro-batches of a model, packed if it computes packed rows at this precision.

    `settings` are those of training: an SFTConfig or an RLConfig.
    """
    device = model.embed.weight.device
    with autocast(device, settings.bf16):
        packed = packs(model)
    return micro_batches(trajectories, pad_id, settings.micro_batch_tokens, device, packed)


def similar_rows(order: list[int], lengths: list[int], max_tokens: int) -> list[list[int]]:
    """Rows, given from the longest on, none shorter than two thirds of its batch's longest.

    This halves the padding.
    """
    batches = []
    start = 0
    while start < len(order):
        longest = lengths[order[start]]
        candidates = order[start : start + max(1, max_tokens // longest)]
        fit = sum(3 * lengths[i] >= 2 * longest for i in candidates)
        batches.append(candidates[:fit])
        start += fit
    return sorted(batches, key=lambda rows: len(rows) * lengths[rows[0]], reverse=True)


def equal_parts(order: list[int], lengths: list[int], max_tokens: int) -> list[list[int]]:
    """Rows, given from the longest on, in batches of about the same number of ids.

    There is one batch, or an even number (if there are as many rows), so that two threads have the
    same amount to do.
    """
    number = math.ceil(sum(lengths[row] for row in order) / max_tokens)
    while True:
        number += number % 2 if number > 1 else 0
        parts = [(0, n, []) for n in range(number)]  # (ids, number, rows): a heap
        for row in order:
            ids, n, rows = parts[0]
            rows.append(row)
            heapq.heapreplace(parts, (ids + lengths[row], n, rows))
        if all(ids <= max_tokens or len(rows) == 1 for ids, _, rows in parts):
            return [rows for _, _, rows in sorted(parts, reverse=True) if rows]
        number += math.ceil(number / 8)  # by a share, so that a few rounds are enough


class Drawing(NamedTuple):
    """How ids were drawn, which a trainer must know to recompute their log-probs."""

    temperature: float
    banned: list[int]  # ids masked at the logits
    pad_id: int
    max_new_tokens: int


def drawing_of(sampler) -> Drawing:
    """That of a sampler.Sampler."""
    config = sampler.config
    pad_id = sampler.tokenizer.pad_id
    return Drawing(config.temperature, sampler.banned, pad_id, config.max_new_tokens)
