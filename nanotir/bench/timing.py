"""How figures are measured: wall time, and medians over rounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from nanotir.logps import in_bf16

ROUNDS = 7


def medians(measure: Callable[[int], dict], rounds: int = ROUNDS) -> dict:
    """The median of every figure that `measure(number)` returns for the rounds 0, 1, ...

    Round -1 is a warm-up and does not count.
    """
    measure(-1)
    seen = [measure(number) for number in range(rounds)]
    return {name: round(statistics.median(row[name] for row in seen), 5) for name in seen[0]}


def timed(function: Callable, *arguments) -> tuple:
    """(seconds of one call, its result)."""
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def precisions() -> tuple[bool, ...]:
    """Values of `bf16` to measure on a CPU. Without instructions for it, bf16 would be fp32."""
    return (False, True) if in_bf16(torch.device("cpu"), True) else (False,)
