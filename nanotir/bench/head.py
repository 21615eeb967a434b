"""A measurement of what a large vocabulary costs on the CPU: log-probs in chunks against all at once. No policy is needed."""

from __future__ import annotations

import ctypes
import re
import time
from pathlib import Path

import torch

from nanotir.bench import medians
from nanotir.logps import ChunkedLogps


def head_memory(policy) -> dict:
    """Log-probs of 2,048 ids out of 32,768, forward and backward: in chunks, against log_softmax and gather of all logits at once.

    Memory is what the process grows by beyond what it holds before, weights and hidden states excluded; Linux only."""
    hidden, weight, ids = (
        torch.randn(2048, 384, requires_grad=True),
        (0.05 * torch.randn(32768, 384)).requires_grad_(),
        torch.randint(32768, (2048,)),
    )
    none = torch.tensor([], dtype=torch.long)
    plain = lambda: (hidden @ weight.T).log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    chunked = lambda: ChunkedLogps.apply(hidden, weight, ids, 1.0, none, False)[0]

    def measure(head):
        hidden.grad = weight.grad = None
        start, before = time.perf_counter(), reset_peak_memory()
        head().sum().backward()
        return time.perf_counter() - start, process_memory("VmHWM") - before

    def both(round):
        chunks, whole = measure(chunked), measure(plain)
        return {
            "seconds": chunks[0],
            "seconds_plain": whole[0],
            "time_ratio": chunks[0] / whole[0],
            "mb": chunks[1],
            "mb_plain": whole[1],
            "memory_ratio": chunks[1] / whole[1],
        }

    return medians(both)


def reset_peak_memory() -> float:
    """Forget the process's peak of resident memory; return what it holds now, in MB, once free heap is given back to the system."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return process_memory("VmRSS")


def process_memory(field: str) -> float:
    """VmRSS or VmHWM (its peak) in MB."""
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
