"""Exercise 11: log-probs in blocks, as a kernel. PyTorch runs it, and Triton where it is installed.

A kernel is a program for one token that reads and writes memory through pointers, some numbers at a
time, in the words of Triton's language `tl`. The stand-in for `tl` is made of PyTorch's functions,
and of loads and stores that complain where Triton would read another row or crash. So the same text
runs everywhere. With TRITON_INTERPRET=1 in the environment, Triton's interpreter runs it as well.
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
from nanotir.exercises.exercise import Case, Exercise, Mistake

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton") is not None
if INTERPRETED:
    import triton.language
BLOCK = 8  # logits that a case loads at a time


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


def lanes(n: int) -> int:
    """n, as Triton allows it. ValueError otherwise."""
    if not 0 < n <= 2**20 or n & (n - 1):
        raise ValueError(f"{n} lanes: their number must be a power of 2, and at most 2^20")
    return n


class StandIn:
    """The part of triton.language that a kernel needs, in PyTorch, for the program of one token."""

    constexpr = int

    def __init__(self, token: int):
        self.token = token

    def __getattr__(self, name: str):
        if not hasattr(torch, name):
            raise AttributeError(f"this stand-in for tl has no {name}: see the words in hint 2")
        return getattr(torch, name)  # where, float32, int64, ...

    def program_id(self, axis: int) -> Tensor:
        return torch.tensor(self.token if axis == 0 else 0, dtype=torch.int32)

    def arange(self, start: int, end: int) -> Tensor:
        return torch.arange(start, start + lanes(end - start))

    def load(self, pointer: Pointer, mask=None, other=0.0) -> Tensor:
        values = pointer.memory[pointer.checked(mask)]
        return values if mask is None else torch.where(mask, values, other)

    def store(self, pointer: Pointer, value, mask=None):
        at = pointer.checked(mask)
        value = torch.as_tensor(value).to(pointer.memory.dtype).expand(at.shape)
        chosen = torch.as_tensor(True if mask is None else mask).expand(at.shape)
        pointer.memory[at[chosen]] = value[chosen]

    def zeros(self, shape, dtype) -> Tensor:
        return torch.zeros([lanes(size) for size in shape], dtype=dtype)

    def full(self, shape, value, dtype) -> Tensor:
        return torch.full([lanes(size) for size in shape], value, dtype=dtype)

    def cast(self, x, dtype) -> Tensor:
        return torch.as_tensor(x).to(dtype)

    def cdiv(self, n: int, size: int) -> int:
        return -(-n // size)

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
    """The same by Triton's interpreter, which an address outside of memory would crash."""
    in_torch(kernel, logits, ids, mask, temperature, block=64)  # so that is an error before
    logps, lse = torch.zeros(2, len(ids))
    with speaking(kernel, triton.language), np.errstate(all="ignore"):
        kernels.launch(kernel, logits, ids, mask, logps, lse, 1 / temperature)
    return {"logps": logps, "lse": lse}


def cases(seed: int) -> list[Case]:
    generator = torch.Generator().manual_seed(seed)

    def case(name: str, V: int, *, add=(), gap=0, temperature=1.0, dtype=None, far=0) -> Case:
        """Five tokens, one of them masked out, with `gap` numbers of no meaning after each row."""
        memory = torch.full((5, V + gap), 30.0)
        memory[:, :V] = 2 * torch.randn(5, V, generator=generator)
        for columns, number in add:
            memory[:, columns] += number
        ids = torch.randint(V, (5,), generator=generator)
        ids[0] = V - 1  # in the last block
        given = (memory.to(dtype)[:, :V], ids, torch.arange(5) != 3, temperature, BLOCK)
        return Case(name, given, {"far": far}, in_torch)

    low, high = float("-inf"), 120.0
    alike = case("one row for all tokens", 21)
    logits, *given = alike.args
    spread = case("by Triton's interpreter", 37, gap=32, temperature=0.8)
    return [
        case("one block", 8),
        case("three whole blocks", 24),
        case("the last block is not full", 21),
        case("fewer logits than a block", 5),
        case("rows with something between them", 21, gap=11),
        case("rows so far apart that 32 bits do not hold an address", 21, gap=11, far=2**30),
        replace(alike, args=(logits[:1].expand(5, -1), *given)),
        case("a temperature", 21, temperature=0.5),
        case("logits whose exponential overflows", 16, add=[(slice(None), high)]),
        case("the largest logit comes late", 24, add=[(slice(20, None), high)]),
        case("the largest logits come first", 24, add=[(slice(0, 4), high)]),
        case("very small logits", 16, add=[(slice(None), -1000.0)]),
        case("one logit in the last block", 17, add=[(slice(16, None), high)]),
        case("the first block is banned", 24, add=[(slice(0, 8), low)]),
        case("the middle block is banned", 24, add=[(slice(8, 16), low)]),
        case("logits in bfloat16", 24, gap=8, temperature=0.7, dtype=torch.bfloat16),
        *([Case(spread.name, spread.args[:-1], through=in_triton)] if INTERPRETED else []),
    ]


LOAD = 'tl.load(row + at, mask=at < V, other=float("-inf"))'
HIGHER = "higher = tl.maximum(peak, tl.max(x, 0))"
CHOSEN = "tl.load(row + tl.load(ids + token))"

EXERCISE = Exercise(
    number=11,
    name="forward_kernel",
    lab="D",
    target="nanotir.kernels:forward_kernel",
    teaches="A softmax over a row too long to hold, in one pass: PyTorch runs it, then Triton.",
    minutes=60,
    points=40,
    stars=4,
    cases=cases,
    tolerance=1e-4,
    mistakes=(
        Mistake(
            "you exponentiate without taking off the largest logit so far: exp(120) is inf in fp32",
            ((HIGHER, "higher = 0.0"),),
        ),
        Mistake(
            "you do not rescale the sum where the peak moves: old terms are relative to the old "
            "peak, so multiply them by exp(peak - higher)",
            (("total * tl.exp(peak - higher) + ", "total + "),),
        ),
        Mistake(
            "you take off the largest logit of this block, though an earlier one was larger: "
            "exp(peak - higher) overflows",
            ((HIGHER, "higher = tl.max(x, 0)"),),
        ),
        Mistake(
            "the lanes beyond the row are 0, and exp(0) counts: load -inf there",
            (('other=float("-inf")', "other=0.0"),),
        ),
        Mistake(
            "you read beyond the end of the row: give the load a mask",
            ((LOAD, "tl.load(row + at)"),),
        ),
        Mistake(
            "you leave out the last block where it is not full",
            (("range(0, V, BLOCK)", "range(0, V - BLOCK + 1, BLOCK)"),),
        ),
        Mistake(
            "you leave out the last block where it holds a single logit",
            (("range(0, V, BLOCK)", "range(0, V - 1, BLOCK)"),),
        ),
        Mistake(
            "you take V for the distance of two rows: it is `stride`, because a tensor may be a "
            "part of a wider one",
            (("token * stride", "token * V"),),
        ),
        Mistake(
            "16,000 tokens times 150,000 logits are more than 2^31: convert the token to tl.int64",
            ((".to(tl.int64)", ""),),
        ),
        Mistake(
            "you look the id's logit up inside one block: ids count from the row's beginning",
            ((CHOSEN, "tl.load(row + tl.load(ids + token) % BLOCK)"),),
        ),
        Mistake(
            "your peak starts at -inf: where the first block is banned, -inf - -inf is nan",
            (("peak = -1e30", 'peak = float("-inf")'),),
        ),
        Mistake(
            "your peak starts too high: logits may all lie far below it",
            (("peak = -1e30", "peak = -100.0"),),
        ),
        Mistake(
            "you scale the logits in the sum, but not the id's own",
            ((CHOSEN + ".to(tl.float32) * scale", CHOSEN + ".to(tl.float32)"),),
        ),
        Mistake(
            "you scale the id's own logit, but not those in the sum",
            ((LOAD + ".to(tl.float32) * scale", LOAD + ".to(tl.float32)"),),
        ),
        Mistake(
            "you sum in the logits' own type: bfloat16 has three digits; convert to tl.float32",
            ((LOAD + ".to(tl.float32)", LOAD), (CHOSEN + ".to(tl.float32)", CHOSEN)),
        ),
        Mistake(
            "you write where the mask is not set: such a token has log-prob 0, and its logits need "
            "not be read at all",
            (("if tl.load(mask + token) != 0:", "if True:"),),
        ),
        Mistake(
            "the sum is relative to the peak, so add the peak to its logarithm",
            (("lse = peak + tl.log(", "lse = tl.log("),),
        ),
        Mistake(
            "you do not write lse_of: the backward kernel needs it",
            (("tl.store(lse_of + token, lse)", "pass"),),
        ),
    ),
    hints=(
        "You see a row's logits eight at a time and may keep two numbers. Which two are enough "
        "for log(sum(exp(x))), and what becomes of them when a larger logit comes?",
        "Keep the largest logit so far and the sum of exp(x - largest). When the largest moves, "
        "multiply the sum by exp(old - new). Lanes beyond the row are -inf, so they add 0. The "
        "words are tl.program_id, arange, load, store, maximum, max, sum, exp, log and zeros.",
        "m' = max(m, max(x)); s' = s exp(m - m') + sum exp(x - m'); lse = m + log s; "
        "log-prob = x[id] - lse. Token i's row begins at logits + i * stride.",
    ),
    read=(
        "nanotir/kernels.py:launch",
        "nanotir/kernels.py:FusedLogps",
        "arXiv 1805.02867",
        "https://triton-lang.org/main/getting-started/tutorials/02-fused-softmax.html",
    ),
    look="`total` has one sum for each lane: the lanes are added once, after the loop",
    question="The logits of 16,000 tokens over 150,000 ids are 4.8 GB in bf16. How much more does "
    "log_softmax in fp32 take, how much does the kernel, and what does its backward pass need?",
    answer="log_softmax writes 9.6 GB, and its gradient as much again. The kernel writes two "
    "numbers a token, 128 KB. The backward pass makes exp(x - lse) from logits and lse once more.",
)
