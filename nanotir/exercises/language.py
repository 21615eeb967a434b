"""Run a Triton kernel without Triton: its language `tl` in PyTorch, and where it is installed, too.

A kernel is a program for one token that reads and writes memory through pointers, some numbers at a
time. The stand-in for `tl` is made of PyTorch's own functions, and of loads and stores that
complain where Triton would read another row or crash. So the same text runs everywhere. With
TRITON_INTERPRET=1 in the environment, Triton's interpreter runs it as well.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from nanotir import kernels

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton") is not None
if INTERPRETED:
    import triton.language


@dataclass
class Pointer:
    """Addresses in a memory of numbers. Adding moves them."""

    memory: Tensor
    at: Tensor | int = 0
    far: int = 0  # if set, rows seem to be so far apart, as in a tensor that is huge
    stride: int = 0  # while they are so far apart

    def __add__(self, steps) -> Pointer:
        return replace(self, at=self.at + steps)

    __radd__ = __add__

    def checked(self, mask) -> Tensor:
        """The addresses as a tensor, 0 where the mask is not set. IndexError outside of memory."""
        at = torch.as_tensor(self.at)
        at = at if mask is None else torch.where(mask, at, 0)
        if self.far:
            at = at // self.far * self.stride + at % self.far
        if ((at < 0) | (at >= len(self.memory))).any():
            far = int(at.max() if at.max() >= len(self.memory) else at.min())
            raise IndexError(f"address {far} in a memory of {len(self.memory)}: use a mask")
        return at


class StandIn:
    """The part of triton.language that a kernel needs, in PyTorch, for the program of one token."""

    constexpr = int

    def __init__(self, token: int):
        self.token = token

    def __getattr__(self, name: str):
        return getattr(torch, name)  # where, float32, int64, ...

    def program_id(self, axis: int) -> Tensor:
        return torch.tensor(self.token if axis == 0 else 0, dtype=torch.int32)

    def arange(self, start: int, end: int) -> Tensor:
        return torch.arange(start, end)

    def load(self, pointer: Pointer, mask=None, other=0.0) -> Tensor:
        values = pointer.memory[pointer.checked(mask)]
        return values if mask is None else torch.where(mask, values, other)

    def store(self, pointer: Pointer, value, mask=None):
        at = pointer.checked(mask)
        value = torch.as_tensor(value).to(pointer.memory.dtype).expand(at.shape)
        chosen = torch.as_tensor(True if mask is None else mask).expand(at.shape)
        pointer.memory[at[chosen]] = value[chosen]

    def zeros(self, shape, dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype)

    def exp(self, x) -> Tensor:
        return torch.as_tensor(x).exp()

    def log(self, x) -> Tensor:
        return torch.as_tensor(x).log()

    def maximum(self, x, y) -> Tensor:
        return torch.maximum(torch.as_tensor(x), torch.as_tensor(y))

    def max(self, x: Tensor, axis: int = 0) -> Tensor:
        return x.amax(axis)

    def sum(self, x: Tensor, axis: int = 0) -> Tensor:
        return x.sum(axis)


@contextmanager
def speaking(kernel, language):
    """The name `tl` of the kernel's file is the language meanwhile."""
    names = kernel.__globals__
    before = {"tl": names["tl"]} if "tl" in names else {}
    names["tl"] = language
    try:
        yield
    finally:
        del names["tl"]
        names.update(before)


def in_torch(kernel, logits, ids, mask, temperature, block, far: int = 0) -> dict[str, Tensor]:
    """What the kernel writes, each (N,): run with the stand-in, once for each token."""
    logps, lse = torch.zeros(2, len(ids))
    size = logits.untyped_storage().nbytes() // logits.element_size()
    memory = logits.as_strided((size,), (1,), 0)
    rows = Pointer(memory, 0, far, logits.stride(0))
    pointers = [rows, *[Pointer(numbers) for numbers in (ids, mask, logps, lse)]]
    sizes = (1 / temperature, far or logits.stride(0), logits.shape[1], block)
    for token in range(len(ids)):
        with speaking(kernel, StandIn(token)):
            kernel(*pointers, *sizes)
    return {"logps": logps, "lse": lse}


def in_triton(kernel, logits, ids, mask, temperature: float) -> dict[str, Tensor]:
    """The same by Triton's interpreter."""
    logps, lse = torch.zeros(2, len(ids))
    with speaking(kernel, triton.language), np.errstate(all="ignore"):
        kernels.launch(kernel, logits, ids, mask, logps, lse, 1 / temperature)
    return {"logps": logps, "lse": lse}
