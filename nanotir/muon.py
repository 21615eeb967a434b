"""Muon (Jordan et al. 2024): momentum whose directions are all made equally strong, for matrices.

torch.optim.Muon is the same in bfloat16 only. A processor without instructions for that (most laptops) then spends more time here than on the
gradient itself, so this one computes in the weights' own precision.
"""

from __future__ import annotations

import torch


class Muon(torch.optim.Optimizer):
    """weight -= lr * sqrt(max(1, rows / columns)) * orthogonal(Nesterov momentum of the gradient). Parameters are matrices."""

    def __init__(self, matrices, lr: float, momentum: float = 0.95):
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for weight in (weight for weight in group["params"] if weight.grad is not None):
                state, momentum, (rows, columns) = (
                    self.state[weight],
                    group["momentum"],
                    weight.shape,
                )
                average = state.setdefault("momentum_buffer", torch.zeros_like(weight)).lerp_(
                    weight.grad, 1 - momentum
                )
                update = orthogonal(weight.grad.lerp(average, momentum))
                weight.add_(update, alpha=-group["lr"] * max(1, rows / columns) ** 0.5)


def orthogonal(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """About U V^T for the matrix U S V^T (m, n), by Newton-Schulz iteration: every step takes a singular value s to a s + b s^3 + c s^5.

    The coefficients make small values grow as fast as can be; after five steps those above 1/500 of the norm lie between 0.68 and 1.21.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = len(matrix) > matrix.shape[1]
    x = (matrix.T if tall else matrix) / matrix.norm().clamp(
        min=1e-7
    )  # (k, l), k <= l; singular values are at most 1
    for _ in range(steps):
        gram = x @ x.T  # (k, k)
        x = torch.addmm(
            x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a
        )  # a x + (b G + c G^2) x
    return x.T if tall else x
