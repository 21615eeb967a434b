"""A measurement of the fused log-probs on a GPU: errors, time and memory, next to PyTorch's.

No policy is needed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch

from nanotir.bench.timing import timed
from nanotir.kernels import fused_logps
from nanotir.logps import token_logps
from nanotir.losses import policy_loss

# Of both losses here. Each is a sum over tokens, so a token's gradient does not depend on others.
OPTIONS = {"epsilon": 0.2, "epsilon_high": 0.28, "beta": 0.05}


class Case(NamedTuple):
    """An update of N tokens, as one row: logits (1, N, V), the rest (1, N)."""

    logits: torch.Tensor
    ids: torch.Tensor
    old: torch.Tensor
    ref: torch.Tensor
    advantages: torch.Tensor
    mask: torch.Tensor


Loss = Callable[[Case, torch.Tensor], torch.Tensor]


def fused_loss(policy, N: int = 16384, V: int = 152064) -> dict:
    """The Triton kernels, forward and backward, on a GPU: alone, and with the policy loss.

    They are compared with the same loss in PyTorch, plain and compiled, and their speed with that
    of a plain copy of the logits.
    """
    if not torch.cuda.is_available():
        return {"skipped": "needs a GPU"}
    case = make_case(N, V, "cuda")
    compiled = torch.compile(twin)
    about = {"device": torch.cuda.get_device_name(), "tokens": N, "vocabulary": V}
    return about | errors(case) | speed(case, compiled) | memory(case, compiled)


def make_case(N: int, V: int, device: str) -> Case:
    """Random logits in bf16, and log-probs of policies nearby."""
    torch.manual_seed(0)
    logits = torch.empty(1, N, V, dtype=torch.bfloat16, device=device)
    ids = torch.randint(V, (1, N), device=device)

    # In parts: as a whole in fp32, the logits would not fit beside what is measured.
    for part in logits.split(1024, 1):
        part.copy_(3 * torch.randn(part.shape, device=device))
    pairs = zip(logits.split(1024, 1), ids.split(1024, 1))
    logps = torch.cat([token_logps(part, part_ids) for part, part_ids in pairs], 1)

    old, ref = logps + 0.2 * torch.randn(2, 1, N, device=device)
    advantages = torch.randn(1, N, device=device)
    mask = torch.ones(1, N, dtype=torch.bool, device=device)
    return Case(logits, ids, old, ref, advantages, mask)


def fused(case: Case, logits: torch.Tensor) -> torch.Tensor:
    """The policy loss of fused log-probs as training uses it, with metrics."""
    logps = fused_logps(logits[0], case.ids[0], mask=case.mask[0])[None]  # (1, N)
    given = (logps, case.old, case.advantages, case.mask)
    loss, _ = policy_loss(*given, ref_logps=case.ref, num_active_tokens=1, **OPTIONS)
    return loss


def kernels(case: Case, logits: torch.Tensor) -> torch.Tensor:
    """The two kernels and almost nothing else."""
    return fused_logps(logits[0], case.ids[0], mask=case.mask[0]).sum()


def twin(case: Case, logits: torch.Tensor) -> torch.Tensor:
    """The same loss in PyTorch: the clipped surrogate plus the k3 estimate of the KL."""
    logps = token_logps(logits, case.ids)
    ratio = (logps - case.old).exp()
    clipped = ratio.clamp(1 - OPTIONS["epsilon"], 1 + OPTIONS["epsilon_high"])
    surrogate = -torch.minimum(ratio * case.advantages, clipped * case.advantages)
    d = case.ref - logps
    return (surrogate + OPTIONS["beta"] * (d.exp() - d - 1)).sum()


def gradient(loss: Loss, case: Case, logits: torch.Tensor) -> torch.Tensor:
    """d loss / d logits. The kernels overwrite the logits by it.

    They refuse a leaf, so the loss is given a view.
    """
    logits = logits.detach().requires_grad_()
    loss(case, logits.view_as(logits)).backward()
    return logits.grad


def errors(case: Case, n: int = 64) -> dict:
    """How far the gradients of n tokens in bf16 are from float64's, relative to the largest."""
    few = Case(*(x[:, :n] for x in case))
    double = Case(*(x.double() if x.is_floating_point() else x for x in few))
    exact = gradient(twin, double, double.logits)

    def error(loss: Loss) -> float:
        off = gradient(loss, few, few.logits.clone()) - exact
        return (off.abs().max() / exact.abs().max()).item()

    return {"gradient_error": error(fused), "gradient_error_twin": error(twin)}


def speed(case: Case, compiled: Loss) -> dict:
    """Milliseconds, and the bandwidths of a copy and of the kernels."""
    work, other = case.logits.clone(), torch.empty_like(case.logits)
    every_second = torch.arange(case.mask.shape[1], device=case.mask.device)[None] % 2 == 0
    half = case._replace(mask=every_second)
    ms = {
        "copy_ms": milliseconds(other.copy_, case.logits),
        "kernels_ms": milliseconds(gradient, kernels, case, work),
        "forward_backward_ms": milliseconds(gradient, fused, case, work),
        "half_masked_ms": milliseconds(gradient, fused, half, work),
        "twin_ms": milliseconds(gradient, twin, case, case.logits),
        "compiled_ms": milliseconds(gradient, compiled, case, case.logits),
    }
    # A copy reads and writes the logits. The kernels read them, then read and write them.
    gb = case.logits.numel() * case.logits.element_size() / 1e9
    copy, own = 2e3 * gb / ms["copy_ms"], 3e3 * gb / ms["kernels_ms"]
    return ms | {"copy_gb_per_s": copy, "gb_per_s": own, "share_of_copy_bandwidth": own / copy}


def milliseconds(function: Callable, *arguments, rounds: int = 9) -> float:
    """The median over rounds; two more come first and do not count."""

    def once():
        function(*arguments)
        torch.cuda.synchronize()

    seconds = [timed(once)[0] for _ in range(rounds + 2)]
    return 1000 * statistics.median(seconds[2:])


def memory(case: Case, compiled: Loss) -> dict:
    """MB at the peak, beyond what was there before."""

    def peak(loss: Loss) -> float:
        logits = case.logits.clone()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gradient(loss, case, logits)
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    return {"mb": peak(fused), "twin_mb": peak(twin), "compiled_mb": peak(compiled)}
