"""Faster decoding: CUDA graphs, torch.compile, transposed matrices. (Skip it at first reading.)

On a GPU a step launches hundreds of kernels, too small to keep it busy: the time goes into
launching them. A graph records the launches once and replays them all at once. It is bound to its
shapes and to its memory, so numbers of rows and of slots are rounded up, and each pair has a graph
of its own. With kernels.decode_attention a row reads its own slots alone, and one number of slots
does for all.

While the GPU computes a step, `Generation` appends the ids of the one before: it launches a step as
soon as it knows what to feed. A row that has ended meanwhile is computed for nothing, and one that
is new or has moved waits for the next step. A pass takes as long as several steps, so results are
fed by steps, an id at a time.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable

import torch
import torch.nn as nn
from torch import Tensor

from nanotir import native
from nanotir.cache import KVCache
from nanotir.kernels import decode_attention, decodes_on

ROWS, SLOTS = 32, 128  # the fewest rows of a graph; multiples of so many slots
FEW = 8  # rows of a generation from which on a copy of its matrices pays
APART = 16  # numbers between its columns


def decoder(model, cache: KVCache, graphs: bool, compiled: bool = False) -> Callable:
    """What makes a decoding step of the first B rows of `cache`.

    Given an id and its position for each, it returns logits (B, 1, V). Experts are left out of
    graphs and programs, because the router waits for its counts.
    """
    device, dense = cache.kv.device, not model.config.n_experts
    if decodes_on(device):
        cache.kernel = decode_attention
    elif device.type == "cpu":
        cache.kernel = native.kernel(model.config, cache.dtype)
    if graphs and device.type == "cuda" and dense:
        return DecodeGraphs(model, cache)
    # In bf16 a program rounds the weights at every step.
    if compiled and device.type == "cpu" and dense and cache.dtype == torch.float32:
        return compiled_steps(model, cache)

    def step(ids: list[int], positions: list[int]) -> Tensor:
        inputs = torch.tensor([ids, positions], device=device)[..., None]  # (2, B, 1)
        return model(inputs[0], inputs[1], cache.first(len(ids)))

    return step


def compiled_steps(model, cache: KVCache) -> Callable:
    """A decoder by torch.compile, which turns several small operations into one loop.

    It compiles before the first step of several rows, and of a single one: tens of seconds each.
    """
    if not shutil.which(native.COMPILER):
        raise ValueError(f"sampler.compiled needs a C++ compiler: install {native.COMPILER}")
    forward = torch.compile(model, dynamic=True)  # one program for all numbers of rows and slots

    def step(ids: list[int], positions: list[int]) -> Tensor:
        inputs = torch.tensor([ids, positions])[..., None]  # (2, B, 1)
        own = cache.first(len(ids), max(positions) + 1)
        # Of a single tensor, the program would copy the whole to write to a part.
        own.kv = [layer.unbind() for layer in own.kv]
        return forward(inputs[0], inputs[1], own)

    return step


def by_columns(model, rows: int):
    """A model for a generation of so many rows: on a CPU in fp32, a copy stored by columns.

    A product of up to 128 rows with a matrix (N, K) is faster, 8 rows twice and 64 rows 1.3 times,
    if the N numbers of each column are neighbours. All but the matrices is shared with the model.
    """
    weight = model.embed.weight
    fp32 = weight.dtype == torch.float32 and not torch.is_autocast_enabled(weight.device.type)
    if weight.device.type != "cpu" or not fp32 or rows < FEW:
        return model
    kept = {id(x): x for x in (*model.parameters(), *model.buffers())}  # deepcopy takes these
    read_by_rows = []  # a head whose matrix is the embedding's
    for name, layer in model.named_modules():
        matrix = getattr(layer, "whole", None)  # of a layer with an adapter, the sum
        if matrix is None and isinstance(layer, nn.Linear):
            matrix = layer.weight
        if matrix is weight:
            read_by_rows.append(name)
        elif matrix is not None:
            kept[id(matrix)] = transposed(matrix)
    other = copy.deepcopy(model, kept)
    for name in read_by_rows:
        other.get_submodule(name).weight = transposed(weight)
    return other


@torch.no_grad()
def transposed(weight: Tensor) -> nn.Parameter:
    """An equal matrix (N, K), stored by columns.

    They lie a little more than N apart. Apart by a power of two, they would compete for the same
    few places of the processor's caches.
    """
    N, K = weight.shape
    columns = weight.new_empty(K, N + APART)[:, :N]
    return nn.Parameter(columns.copy_(weight.T).T, requires_grad=False)


class DecodeGraphs:
    """A decoder, by graphs where there is a GPU. The next step reuses the memory of the logits."""

    def __init__(self, model, cache: KVCache):
        self.model, self.cache = model, cache
        self.device = cache.kv.device
        self.steps: dict[tuple[int, int], tuple[Tensor, Callable]] = {}
        self.pool = None  # memory that all graphs share

    def __call__(self, ids: list[int], positions: list[int]) -> Tensor:
        rows = min(max(ROWS, 1 << (len(ids) - 1).bit_length()), len(self.cache.lengths))
        slots = self.cache.capacity
        if not decodes_on(self.device):
            slots = min(round_up(max(positions) + 1, SLOTS), slots)
        if (rows, slots) not in self.steps:
            self.steps[rows, slots] = self.record(rows, slots)
        inputs, step = self.steps[rows, slots]

        # Rows that only fill up the shape are padding, at position -1.
        padding = rows - len(ids)
        values = [ids + [0] * padding, positions + [-1] * padding]
        inputs.copy_(torch.tensor(values)[..., None])
        return step()[: len(ids)]

    def record(self, rows: int, slots: int) -> tuple[Tensor, Callable]:
        """(what the step reads: ids and positions, (2, rows, 1); the step, which gives logits)."""
        inputs = torch.zeros(2, rows, 1, dtype=torch.long, device=self.device)
        inputs[1] = -1
        cache = self.cache.first(rows, slots)

        def forward():
            return self.model(inputs[0], inputs[1], cache)

        if self.device.type != "cuda":
            return inputs, forward
        forward()  # what libraries do once only, for these shapes too, must not be recorded
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            logits = forward()
        self.pool = graph.pool()

        def replay():
            graph.replay()
            return logits

        return inputs, replay


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
