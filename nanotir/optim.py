"""The optimisers, their schedule, and the one place where they step."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from nanotir.logps import at_least_fp32
from nanotir.lora import is_adapter
from nanotir.processes import sum_gradients
from nanotir.threads import each


def learning_rate(step: int, steps: int, warmup: int, decay: float) -> float:
    """The share of the peak learning rate at a step: up linearly, then flat, then down linearly."""
    return min(1.0, (step + 1) / max(1, warmup), (steps - step) / max(1.0, decay * steps))


def schedule(optimizers, step: int, settings) -> float:
    """Set every learning rate to its value at a step, and return its share of the peak.

    `settings` has the fields steps, warmup and decay.
    """
    share = learning_rate(step, settings.steps, settings.warmup, settings.decay)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("peak_lr", group["lr"]) * share
    return share


def step(model, optimizers, grad_clip: float) -> float:
    """Clip the gradient, step, and clear it. Returns the gradient's norm before clipping.

    Of several processes, each has the gradient of its rows' losses: they are added up first.
    A gradient that is not finite would spoil all weights, so it changes none. Run.finish_step stops
    the run when it sees its norm.
    """
    sum_gradients(model)
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip).item()
    for optimizer in optimizers:
        if math.isfinite(grad_norm):
            optimizer.step()
        optimizer.zero_grad()
    return grad_norm


def adamw(parameters, lr: float) -> torch.optim.AdamW:
    parameters = [weight for weight in parameters if weight.requires_grad]
    # Fused: one pass over memory instead of seven.
    return torch.optim.AdamW(parameters, lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)


def muon_and_adamw(model, muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for the rest; AdamW alone for adapters.

    On models this small, Muon learns to copy the question's numbers into a call in a third of
    AdamW's steps.
    """
    matrices, rest = [], []
    for name, weight in model.named_parameters():
        inside = name.startswith("blocks.") and weight.dim() == 2
        if weight.requires_grad:
            (matrices if inside and not is_adapter(name) else rest).append(weight)
    muon = [Muon(matrices, lr=muon_lr)] if matrices else []
    return [*muon, adamw(rest, adam_lr)]


class Muon(torch.optim.Optimizer):
    """Momentum whose directions are all made equally strong (Jordan et al. 2024), for matrices.

    weight -= lr * sqrt(max(1, rows / columns)) * orthogonal(Nesterov momentum of the gradient)

    torch.optim.Muon does the same in bfloat16 only. A CPU without instructions for that, as in most
    laptops, is then very slow, so this one computes in fp32.
    """

    def __init__(self, matrices: list[Tensor], lr: float, momentum: float = 0.95):
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    def step(self):
        for group in self.param_groups:
            update = partial(self.update, lr=group["lr"], momentum=group["momentum"])
            list(each(update, [weight for weight in group["params"] if weight.grad is not None]))

    @torch.no_grad()
    def update(self, weight: Tensor, lr: float, momentum: float):
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        average = state["momentum_buffer"].lerp_(weight.grad, 1 - momentum)
        direction = orthogonal(weight.grad.lerp(average, momentum))
        rows, columns = weight.shape
        weight.add_(direction, alpha=-lr * max(1, rows / columns) ** 0.5)


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """About U V^T for the matrix U S V^T (m, n), by Newton-Schulz iteration.

    Every step takes a singular value s to a s + b s^3 + c s^5. The coefficients make small values
    grow as fast as possible. After five steps, those above 1/500 of the norm lie between 0.68 and
    1.21.
    """
    tall = len(matrix) > matrix.shape[1]
    x = matrix.T if tall else matrix  # (k, l) with k <= l
    x = at_least_fp32(x)  # in bf16 it would not converge
    x = x / matrix.norm().clamp(min=1e-7)  # singular values are at most 1
    gram = x @ x.T  # (k, k), and all steps but the last product are as small
    polynomial = product = polynomial_of(gram)
    for _ in range(steps - 1):
        gram = polynomial @ gram @ polynomial  # polynomials of one matrix commute
        polynomial = polynomial_of(gram)
        product = polynomial @ product
    x = product @ x
    return (x.T if tall else x).to(matrix.dtype)


def polynomial_of(gram: Tensor) -> Tensor:
    """a + b G + c G^2."""
    a, b, c = 3.4445, -4.7750, 2.0315
    polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
    polynomial.diagonal().add_(a)
    return polynomial
