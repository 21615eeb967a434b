"""A measurement of the fused loss on a GPU: errors, time and memory of the Triton kernels and of their twin in PyTorch. No policy is needed."""

from __future__ import annotations

import statistics
from typing import NamedTuple

import torch

from nanotir.bench import timed
from nanotir.kernels import fused_token_losses
from nanotir.logps import token_logps
from nanotir.losses import aggregate, fused_policy_loss, kl_estimate, surrogate

OPTIONS = {
    "epsilon_high": 0.28,
    "beta": 0.05,
}  # of every loss here, which is a sum over tokens, so that a part of them has the same gradient


class Case(NamedTuple):
    """What an update of N tokens, as one row, compares: logits (1, N, V), the rest (1, N)."""

    logits: torch.Tensor
    ids: torch.Tensor
    old: torch.Tensor
    ref: torch.Tensor
    advantages: torch.Tensor
    mask: torch.Tensor


def fused_loss(policy, N: int = 16384, V: int = 152064) -> dict:
    """The Triton kernels on a GPU, forward and backward, against their twin in PyTorch, plain and compiled, and against a plain copy of the logits."""
    if not torch.cuda.is_available():
        return {"skipped": "needs a GPU"}
    case, compiled = make_case(N, V, "cuda"), torch.compile(twin)
    return (
        {"device": torch.cuda.get_device_name(), "tokens": N, "vocabulary": V}
        | errors(case)
        | speed(case, compiled)
        | memory(case, compiled)
    )


def make_case(N: int, V: int, device: str) -> Case:
    """Random logits in bf16 and policies nearby. In parts: in fp32 the logits would not fit beside what is measured."""
    torch.manual_seed(0)
    logits, ids = (
        torch.empty(1, N, V, dtype=torch.bfloat16, device=device),
        torch.randint(V, (1, N), device=device),
    )
    for part in logits.split(1024, 1):
        part.copy_(3 * torch.randn(part.shape, device=device))
    logps = torch.cat(
        [token_logps(*parts) for parts in zip(logits.split(1024, 1), ids.split(1024, 1))], 1
    )
    old, ref = logps + 0.2 * torch.randn(2, 1, N, device=device)
    return Case(
        logits,
        ids,
        old,
        ref,
        torch.randn(1, N, device=device),
        torch.ones(1, N, dtype=torch.bool, device=device),
    )


def fused(case: Case, logits):
    """The loss as training asks for it, with metrics."""
    return fused_policy_loss(
        logits,
        case.ids,
        case.old,
        case.advantages,
        case.mask,
        ref_logps=case.ref,
        num_active_tokens=1,
        **OPTIONS,
    )[0]


def kernels(case: Case, logits):
    """The two kernels and next to nothing else."""
    rows = [x[0] for x in (case.ids, case.old, case.advantages, case.mask, case.ref)]
    return fused_token_losses(logits.view(-1, logits.shape[-1]), *rows, **OPTIONS)[0].sum()


def twin(case: Case, logits):
    """The same loss in PyTorch."""
    logps = token_logps(logits, case.ids)
    bounds = (0.2, OPTIONS["epsilon_high"], None)
    per_token = surrogate(
        "dapo",
        logps,
        logps - case.old,
        (logps - case.old).exp(),
        case.advantages,
        case.mask,
        bounds,
    )
    return aggregate(
        per_token + OPTIONS["beta"] * kl_estimate("k3", case.ref - logps, None),
        case.mask,
        "dapo",
        num_active_tokens=1,
    )


def gradient(loss, case: Case, logits):
    """d loss / d logits; the kernels overwrite the logits by it, whose view they get, since a leaf they would refuse."""
    logits = logits.detach().requires_grad_()
    loss(case, logits.view_as(logits)).backward()
    return logits.grad


def errors(case: Case, n: int = 64) -> dict:
    """How far the gradients of n tokens in bf16 are from float64's, relative to the largest number in those."""
    few = Case(*(x[:, :n] for x in case))
    exact = gradient(
        twin, Case(*(x.double() if x.is_floating_point() else x for x in few)), few.logits.double()
    )
    off = lambda loss: (
        (gradient(loss, few, few.logits.clone()) - exact).abs().max() / exact.abs().max()
    ).item()
    return {"gradient_error": off(fused), "gradient_error_twin": off(twin)}


def speed(case: Case, compiled) -> dict:
    """Milliseconds, and bandwidths of copy and kernels: forward reads the logits, backward reads and writes them."""
    work, other = case.logits.clone(), torch.empty_like(case.logits)
    half = case._replace(
        mask=torch.arange(case.mask.shape[1], device=case.mask.device)[None] % 2 == 0
    )
    runs = {
        "copy": lambda: other.copy_(case.logits),
        "kernels": lambda: gradient(kernels, case, work),
        "forward_backward": lambda: gradient(fused, case, work),
        "half_masked": lambda: gradient(fused, half, work),
        "twin": lambda: gradient(twin, case, case.logits),
        "compiled": lambda: gradient(compiled, case, case.logits),
    }
    ms = {f"{name}_ms": milliseconds(run) for name, run in runs.items()}
    gb = case.logits.numel() * case.logits.element_size() / 1e9
    copy, own = 2e3 * gb / ms["copy_ms"], 3e3 * gb / ms["kernels_ms"]
    return ms | {"copy_gb_per_s": copy, "gb_per_s": own, "share_of_copy_bandwidth": own / copy}


def milliseconds(run, rounds: int = 9) -> float:
    def once():
        run()
        torch.cuda.synchronize()

    return 1000 * statistics.median([timed(once) for _ in range(rounds + 2)][2:])


def memory(case: Case, compiled) -> dict:
    """MB at the peak, beyond what was there before."""

    def peak(loss) -> float:
        logits = case.logits.clone()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gradient(loss, case, logits)
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    return {"mb": peak(fused), "twin_mb": peak(twin), "compiled_mb": peak(compiled)}
