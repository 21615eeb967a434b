"""Formulas of the model with their gradients in closed form, in C++. (Skip it at first reading.)

Autograd differentiates a formula operation by operation: it keeps what each one needs, and writes
the gradient of each to memory. One function for the whole formula keeps less, and passes over
memory once. These are for a CPU, see native.py; elsewhere PyTorch's formulas are used.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from nanotir import native


class RMSNorm(Function):
    """y * weight (..., d) with y = x r and r = 1 / sqrt(mean(x^2) + eps); weight in fp32.

    With g = dL/dout:

        dL/dx = r (g weight - y mean(g y weight))        dL/dweight = the sum of g y over positions
    """

    @staticmethod
    def forward(ctx, x, weight, eps):
        x = x.contiguous()
        ctx.sizes = x[..., 0].numel(), x.shape[-1]
        out, scales = torch.empty_like(x), weight.new_empty(x.shape[:-1])
        native.run(native.formulas(x.dtype).rms_norm, x, weight, out, scales, *ctx.sizes, eps)
        ctx.save_for_backward(x, weight, scales)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, weight, scales = ctx.saved_tensors
        grad, grad_weight = torch.empty_like(x), torch.zeros_like(weight)
        function = native.formulas(x.dtype).rms_norm_gradient
        native.run(function, x, weight, scales, g.contiguous(), grad, grad_weight, *ctx.sizes)
        return grad, grad_weight, None


class SwiGLU(Function):
    """silu(gate) * up from both in one: (..., 2 d_ff) -> (..., d_ff). With g = dL/dout:

    dL/dgate = g up silu'(gate)        dL/dup = g silu(gate)

    The backward pass OVERWRITES gate and up by these.
    """

    @staticmethod
    def forward(ctx, gate_up):
        gate_up = gate_up.contiguous()
        d = gate_up.shape[-1] // 2
        out = gate_up.new_empty(*gate_up.shape[:-1], d)
        ctx.sizes = gate_up[..., 0].numel(), d
        native.run(native.formulas(out.dtype).swiglu, gate_up, out, *ctx.sizes)
        ctx.save_for_backward(gate_up)
        ctx.spent = False
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        spend(ctx)
        (gate_up,) = ctx.saved_tensors
        function = native.formulas(g.dtype).swiglu_gradient
        native.run(function, gate_up, g.contiguous(), *ctx.sizes)
        return gate_up


class Attention(Function):
    """Causal attention within rows: heads (B, T, (H+2K) D) of queries, keys, values -> (B, T, H D).

    Queries and keys are normalised, if there are weights (D,), and rotated: cos, sin (B, T, 1, D).
    H is `group` times K. Several rows may lie one behind the other in T: each begins where
    positions (B, T) do not grow. The backward pass computes the probabilities again.
    """

    @staticmethod
    def forward(ctx, heads, q_weight, k_weight, cos, sin, positions, K, group, eps):
        B, T, width = heads.shape
        D = cos.shape[-1]
        places = (x.contiguous() for x in (cos, sin, positions))
        given = heads.contiguous(), q_weight, k_weight, *places
        ctx.functions = native.attention("attention.cpp", D, group, heads.dtype)
        ctx.numbers = B, T, K, eps
        out = heads.new_empty(B, T, K * group * D)
        native.run(ctx.functions.attention, *given, out, *ctx.numbers)
        ctx.save_for_backward(*given)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        given = ctx.saved_tensors
        grads = [None if x is None else torch.zeros_like(x) for x in given[:3]]
        native.run(ctx.functions.attention_gradient, *given, g.contiguous(), *grads, *ctx.numbers)
        return *grads, None, None, None, None, None, None


class LogProbs(Function):
    """(log-probs, entropies), each (N,), of ids (N,) under softmax(logits / temperature) (N, V).

    With p = softmax and H = -sum p log p, the gradient of these is

        d logp / d logits = onehot(id) - p        d H / d logits = -p (log p + H)

    The backward pass OVERWRITES the logits by it.
    """

    @staticmethod
    def forward(ctx, logits, ids, temperature):
        assert logits.is_contiguous()
        logps, entropies, lses = torch.empty(3, len(ids))
        ctx.numbers = *logits.shape, temperature
        function = native.formulas(logits.dtype).log_probs
        native.run(function, logits, ids, logps, entropies, lses, *ctx.numbers)
        ctx.save_for_backward(logits, ids, entropies, lses)
        ctx.set_materialize_grads(False)
        ctx.spent = False
        return logps, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx, g, h):
        spend(ctx)
        logits, ids, *kept = ctx.saved_tensors
        given = [x if x is None else x.contiguous() for x in (g, h)]
        function = native.formulas(logits.dtype).log_probs_gradient
        native.run(function, logits, ids, *kept, *given, *ctx.numbers)
        return logits, None, None


def spend(ctx):
    """Note that a saved tensor is about to be overwritten, which can be done once."""
    assert not ctx.spent, "a second backward pass: a saved tensor was overwritten by its gradient"
    ctx.spent = True


def attention(module, heads: Tensor, layout) -> Tensor:
    """What the heads (B, T, (H+2K) D) of a model.Attention read of their own rows: (B, T, H D)."""
    *weights, eps = native.norms_of(module)
    K, group = module.kv_heads, module.heads // module.kv_heads
    places = layout.cos.float(), layout.sin.float(), layout.positions
    return Attention.apply(heads, *weights, *places, K, group, eps)
