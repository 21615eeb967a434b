"""A measurement of the head with a large vocabulary on the CPU: log-probs in chunks, or at once.

No policy is needed.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import torch

from nanotir.bench.timing import medians, timed
from nanotir.logps import ChunkedLogps


def head_memory(policy) -> dict:
    """Log-probs of 2,048 ids out of 32,768, forward and backward.

    In chunks, against log_softmax and gather of all logits at once. Memory is what the process
    grows by beyond weights and hidden states. Linux only.
    """
    hidden = torch.randn(2048, 384, requires_grad=True)
    weight = (0.05 * torch.randn(32768, 384)).requires_grad_()
    ids = torch.randint(32768, (2048,))
    none = torch.tensor([], dtype=torch.long)

    def plain():
        # In one expression: a name would keep the logits in memory during the backward pass.
        (hidden @ weight.T).log_softmax(-1).gather(-1, ids[:, None]).sum().backward()

    def chunked():
        ChunkedLogps.apply(hidden, weight, ids, 1.0, none, False)[0].sum().backward()

    def cost(run):
        hidden.grad = weight.grad = None
        before = reset_peak_memory()
        seconds, _ = timed(run)
        return seconds, process_memory("VmHWM") - before

    def measure(number):
        seconds, mb = cost(chunked)
        seconds_plain, mb_plain = cost(plain)
        return {
            "seconds": seconds,
            "seconds_plain": seconds_plain,
            "time_ratio": seconds / seconds_plain,
            "mb": mb,
            "mb_plain": mb_plain,
            "memory_ratio": mb / mb_plain,
        }

    return medians(measure)


def reset_peak_memory() -> float:
    """Reset the peak of the process's memory. Returns what it holds now, in MB.

    Free memory of the heap is given back to the system first.
    """
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return process_memory("VmRSS")


def process_memory(field: str) -> float:
    """VmRSS, the memory of the process, or VmHWM, its peak, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+)", status)[1]) / 1024
