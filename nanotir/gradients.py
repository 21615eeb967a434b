"""Two formulas of the model with their gradients in closed form. (Skip it at first reading.)

Autograd differentiates a formula operation by operation: it keeps what each one needs, and writes
the gradient of each to memory. One function for the whole formula keeps less, and passes over
memory less often. Its results are those of the formula, bit for bit. Gradients differ by rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class ClosedRMSNorm(Function):
    """y * weight (..., d) with y = x r and r = 1 / sqrt(mean(x^2) + eps), for a CPU.

    With g = dL/dout:

        dL/dx = r (g weight - y mean(g y weight))        dL/dweight = the sum of g y over positions
    """

    @staticmethod
    def forward(ctx, x, weight, eps):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        r = (wide.square().mean(-1, keepdim=True) + eps).rsqrt()  # (..., 1)
        ctx.save_for_backward(x, r, weight)
        return (wide * r).mul_(weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, r, weight = ctx.saved_tensors
        grad, scale = grad.to(r.dtype), weight.to(r.dtype)
        y = x * r
        product = grad * y
        mean = (product @ scale)[..., None] / len(scale)  # (..., 1)
        grad_weight = None
        if ctx.needs_input_grad[1]:  # beside adapters it is frozen
            grad_weight = product.flatten(0, -2).sum(0).to(weight.dtype)
        grad_x = torch.mul(grad, scale, out=product).addcmul_(y, mean, value=-1).mul_(r)
        return grad_x.to(x.dtype), grad_weight, None


class ClosedSwiGLU(Function):
    """silu(gate) * up from both in one: (..., 2 d_ff) -> (..., d_ff). With g = dL/dout:

    dL/dgate = g up silu'(gate)        dL/dup = g silu(gate)
    """

    @staticmethod
    def forward(ctx, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        active = F.silu(gate)
        ctx.save_for_backward(gate_up, active)
        return active * up

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        gate_up, active = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        grad_gate_up = torch.empty_like(gate_up)
        grad_gate, grad_up = grad_gate_up.chunk(2, dim=-1)
        torch.mul(grad, active, out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
        return grad_gate_up
