"""Measurements of what a large vocabulary costs: log-probs in chunks on the CPU, the fused loss on a GPU. No policy is needed."""
from __future__ import annotations

import ctypes
import re
import statistics
import time
from pathlib import Path

import torch

from nanotir.bench import medians
from nanotir.kernels import fused_token_losses
from nanotir.logps import ChunkedLogps, token_logps
from nanotir.losses import aggregate, fused_policy_loss, kl_estimate, policy_loss, surrogate


def head_memory(policy) -> dict:
    """Log-probs of 2,048 ids out of 32,768, forward and backward: in chunks, against log_softmax and gather of all logits at once.

    Memory is what the process grows by beyond what it holds before, weights and hidden states excluded; Linux only."""
    hidden, weight, ids = torch.randn(2048, 384, requires_grad=True), (0.05 * torch.randn(32768, 384)).requires_grad_(), torch.randint(32768, (2048,))
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
        return {"seconds": chunks[0], "seconds_plain": whole[0], "time_ratio": chunks[0] / whole[0],
                "mb": chunks[1], "mb_plain": whole[1], "memory_ratio": chunks[1] / whole[1]}  # fmt: skip

    return medians(both)


def reset_peak_memory() -> float:
    """Forget the process's peak of resident memory; return what it holds now, in MB, once free heap is given back to the system."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return process_memory("VmRSS")


def process_memory(field: str) -> float:
    """VmRSS or VmHWM (its peak) in MB."""
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def fused_loss(policy, N: int = 16384, V: int = 152064, dtype=torch.bfloat16) -> dict:
    """The Triton kernels on a GPU, forward and backward, against their twin in PyTorch, plain and compiled, and against a plain copy.

    Bytes: forward reads the logits, backward reads and writes them; kernels_ms is the two kernels' time, forward_backward_ms that of loss and
    metrics too. Errors are those of 64 tokens against float64, relative to the largest.
    """
    if not torch.cuda.is_available():
        return {"skipped": "needs a GPU"}
    torch.manual_seed(0)
    cuda = dict(device="cuda")
    logits, ids = torch.empty(1, N, V, dtype=dtype, **cuda), torch.randint(V, (1, N), **cuda)
    A, mask, noise = torch.randn(1, N, **cuda), torch.ones(1, N, dtype=torch.bool, **cuda), 0.2 * torch.randn(2, 1, N, **cuda)
    for rows in range(0, N, 1024):
        logits[:, rows : rows + 1024] = 3 * torch.randn(1, min(1024, N - rows), V, **cuda)
    logps = torch.cat([token_logps(logits[:, rows : rows + 1024], ids[:, rows : rows + 1024]) for rows in range(0, N, 1024)], 1)
    old, ref = logps + noise
    options = dict(epsilon_high=0.28, beta=0.05)

    def twin(logits, old=old, ref=ref, ids=ids, A=A, mask=mask):
        logps = token_logps(logits, ids)
        per_token = surrogate("dapo", logps, logps - old, (logps - old).exp(), A, mask, (0.2, 0.28, None))
        return aggregate(per_token + 0.05 * kl_estimate("k3", ref - logps, None), mask, "dapo", num_active_tokens=N)

    def kernel(logits, mask=mask):
        return fused_policy_loss(logits, ids, old, A, mask, ref_logps=ref, num_active_tokens=N, **options)[0]

    def kernels(logits):
        return fused_token_losses(logits.view(N, V), ids[0], old[0], A[0], mask[0], ref[0], **options)[0].sum() / N

    def gradient(loss, logits):
        logits = logits.detach().requires_grad_()
        loss(logits.view_as(logits)).backward()  # a view: the kernel may overwrite what is no leaf
        return logits.grad

    def milliseconds(run, rounds=9):
        seen = []
        for _ in range(rounds + 2):
            torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            torch.cuda.synchronize()
            seen.append(1000 * (time.perf_counter() - start))
        return statistics.median(seen[2:])

    def peak(loss, logits):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gradient(loss, logits)
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    few = slice(0, 64)
    cut = [x[:, few].double() for x in (old, ref)] + [x[:, few] for x in (ids, A, mask)]
    exact = gradient(lambda logits: twin(logits, *cut), logits[:, few].double())
    shown = gradient(kernel, logits.clone())[:, few].double()
    compiled = torch.compile(twin)
    result = {"device": torch.cuda.get_device_name(), "tokens": N, "vocabulary": V}
    result["gradient_error"] = ((shown - exact).abs().max() / exact.abs().max()).item()
    result["gradient_error_twin"] = ((gradient(lambda x: twin(x, *[c.float() if c.is_floating_point() else c for c in cut]), logits[:, few]).double() - exact).abs().max() / exact.abs().max()).item()
    result["loss_error"] = abs(kernel(logits).item() - policy_loss(logps.double(), old.double(), A.double(), mask, ref_logps=ref.double(), **options)[0].item())
    other, work = torch.empty_like(logits), logits.clone()
    result["copy_ms"] = milliseconds(lambda: other.copy_(logits))
    result["kernels_ms"] = milliseconds(lambda: gradient(kernels, work))
    result["forward_backward_ms"] = milliseconds(lambda: gradient(kernel, work))
    result["half_masked_ms"] = milliseconds(lambda: gradient(lambda x: kernel(x, torch.arange(N, **cuda)[None] % 2 == 0), work))
    result["mb"] = peak(kernel, work)
    result["twin_ms"], result["twin_mb"] = milliseconds(lambda: gradient(twin, logits)), peak(twin, logits)
    result["compiled_ms"], result["compiled_mb"] = milliseconds(lambda: gradient(compiled, logits)), peak(compiled, logits)
    gb = logits.numel() * logits.element_size() / 1e9
    result["copy_gb_per_s"], result["gb_per_s"] = 2e3 * gb / result["copy_ms"], 3e3 * gb / result["kernels_ms"]
    result["share_of_copy_bandwidth"] = result["gb_per_s"] / result["copy_gb_per_s"]
    return result
