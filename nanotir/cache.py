"""The KV cache: what a row's ids need of those before them, kept between forward passes.

The id at position p of a row is written to slot p and attends to slots 0 to p. The rows of a batch
may stand at different positions, because tools answer them with texts of different lengths.
"""

from __future__ import annotations

import copy
import math
import mmap

import torch
from torch import Tensor

from nanotir.rope import rope_angles

PASS = 32768  # ids that are read in one pass, padding included


class KVCache:
    """Ids, keys and values of every layer for `batch` rows of up to `capacity` positions.

    An id reads slots up to its own position only. So what lies beyond a row's end is overwritten
    before it is read. Position -1 means padding: it is written to one spare slot at the end.
    """

    def __init__(self, config, batch: int, capacity: int, device="cpu", dtype=None):
        """`config` is the model's ModelConfig."""
        shape = (config.n_layers, 2, batch, config.n_kv_heads, capacity + 1, config.d_head)
        # Zeros, because a masked slot still counts as 0 * value, and 0 * nan is nan.
        self.kv = zeros(shape, torch.device(device), dtype)  # (L, 2, B, K, S, D)
        self.dtype = self.kv.dtype
        self.ids = torch.zeros(batch, capacity + 1, dtype=torch.long, device=device)  # (B, S)
        self.lengths = torch.zeros(batch, dtype=torch.long, device=device)  # (B,)
        self.rows = torch.arange(batch, device=device)[:, None]  # (B, 1)
        # What does not change from step to step: the rotations at each position, (2, S, 1, D).
        self.rope = torch.stack(rope_angles(torch.arange(capacity + 1, device=device), config))
        self.width = None  # how many slots are read, where it is fixed beforehand
        self.kernel = None  # what attends for one id a row, where there is something faster

    @property
    def capacity(self) -> int:
        return self.ids.shape[1] - 1

    def extend(self, ids: Tensor, positions: Tensor) -> int:
        """Store ids (B, T) at positions (B, T). Returns how many slots the longest row now has."""
        torch.maximum(self.lengths, positions.amax(1) + 1, out=self.lengths)
        width = int(self.lengths.max()) if self.width is None else self.width
        assert width <= self.capacity, f"position {width - 1}, capacity {self.capacity}"
        self.ids[self.rows, positions] = ids
        return width

    def write(self, layer: int, k: Tensor, v: Tensor, positions: Tensor, width: int):
        """Store k, v (B, T, K, D) at positions (B, T); return the first `width` slots of all."""
        keys, values = self.kv[layer]  # each (B, K, S, D)
        keys[self.rows, :, positions] = k.to(keys.dtype)
        values[self.rows, :, positions] = v.to(values.dtype)
        return keys[:, :, :width].transpose(1, 2), values[:, :, :width].transpose(1, 2)

    def first(self, n: int, width: int | None = None) -> KVCache:
        """The first n rows, as a view: writing to it writes here."""
        first = self._with(self.kv[:, :, :n], self.ids[:n], self.lengths[:n], self.rows[:n])
        first.width = width
        return first

    def take(self, rows, capacity: int | None = None) -> KVCache:
        """A copy of some rows, in the order given, or of their first `capacity` positions."""
        rows = torch.tensor(list(rows), dtype=torch.long, device=self.kv.device)
        slots = self.capacity + 1 if capacity is None else capacity + 1
        kv = self.kv[:, :, :, :, :slots][:, :, rows]
        own = torch.arange(len(rows), device=rows.device)[:, None]
        return self._with(kv, self.ids[rows, :slots], self.lengths[rows], own)

    def put(self, rows, other: KVCache):
        """Overwrite rows with the rows of another cache, whose capacity may be smaller."""
        rows = torch.tensor(list(rows), dtype=torch.long, device=self.kv.device)
        self.kv[:, :, rows, :, : other.capacity] = other.kv[..., : other.capacity, :]
        self.ids[rows, : other.capacity] = other.ids[:, : other.capacity]
        self.lengths[rows] = other.lengths

    def _with(self, kv, ids, lengths, rows) -> KVCache:
        other = copy.copy(self)
        other.kv = kv
        other.ids = ids
        other.lengths = lengths
        other.rows = rows
        return other


def zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype | None) -> Tensor:
    """torch.zeros. On a CPU, each page is cleared only once it is used: most rows end early."""
    dtype = dtype or torch.get_default_dtype()
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or not size:
        return torch.zeros(shape, device=device, dtype=dtype)
    own = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # a forked process writes to a copy
    return torch.frombuffer(mmap.mmap(-1, size, flags=own), dtype=dtype).view(shape)


def new_cache(model, batch: int, capacity: int) -> KVCache:
    """An empty cache of a model, in the dtype in which it makes keys and values."""
    device, dtype = model.embed.weight.device, model.embed.weight.dtype
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    return KVCache(model.config, batch, capacity, device, dtype)


def extend(model, cache: KVCache, chunks, starts):
    """Append its own chunk of ids to every row of `cache`, from its start on, in one pass."""
    width = max(map(len, chunks))
    if not width:  # prompts of one id: there is nothing to read before the first step
        return
    ids = torch.zeros(len(chunks), width, dtype=torch.long)
    positions = torch.full((len(chunks), width), -1)  # -1 is padding
    for i, (chunk, start) in enumerate(zip(chunks, starts)):
        ids[i, : len(chunk)] = torch.tensor(chunk)
        positions[i, : len(chunk)] = torch.arange(start, start + len(chunk))
    device = cache.kv.device
    model.hidden(ids.to(device), positions.to(device), cache)


def passes(rows: list[tuple]) -> list[list[tuple]]:
    """Rows of ids in passes of similar lengths, or all in one, in their order, if they fit."""
    if len(rows) * max(map(len, rows)) <= PASS:
        return [rows]
    made = []
    for row in sorted(rows, key=len, reverse=True):
        if not made or (len(made[-1]) + 1) * len(made[-1][0]) > PASS:
            made.append([])
        made[-1].append(row)
    return made
