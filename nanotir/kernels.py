"""Fused log-probs, optional: one Triton kernel forward and one backward, for large vocabularies.

The logits of 16,000 tokens over 150,000 ids are 5 GB in bf16, and every fp32 copy that log_softmax
and its gradient make of them is 10 GB more. The kernels make no copy: the forward pass keeps two
numbers a token, and the backward pass writes the gradient over the logits. Any loss can follow.

Triton is imported when a kernel is first launched. Without a GPU, PyTorch does the same sums.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nanotir.logps import token_logps


def fused_logps(logits: Tensor, ids: Tensor, temperature: float = 1.0, mask=None) -> Tensor:
    """Log-probs (N,) of ids (N,) under logits (N, V). On a GPU the backward pass OVERWRITES logits.

    0 where the mask (N,) is not set; the logits of those tokens are not read. ValueError for
    logits that are a leaf of the graph, and where Triton is not installed.
    """
    mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    if not kernel_runs_on(logits.device):
        return torch.where(mask, token_logps(logits, ids, temperature), 0.0)
    if logits.is_leaf and logits.requires_grad:
        raise ValueError("the fused log-probs overwrite their logits, which cannot be a leaf")
    assert logits.dim() == 2 and logits.stride(1) == 1
    return FusedLogps.apply(logits, ids.contiguous(), mask.contiguous(), 1 / temperature)


def kernel_runs_on(device: torch.device) -> bool:
    return device.type == "cuda"


class FusedLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, ids, mask, inverse_temperature):
        logps, lse = torch.zeros(2, len(ids), device=logits.device)
        if len(ids):
            launch(forward_kernel, logits, ids, mask, logps, lse, inverse_temperature)
        ctx.save_for_backward(logits, ids, mask, lse)
        ctx.inverse_temperature = inverse_temperature
        ctx.spent = False
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logps):
        if ctx.spent:
            raise RuntimeError("a second backward pass: the first one has overwritten the logits")
        ctx.spent = True
        logits, ids, mask, lse = ctx.saved_tensors
        slopes = torch.where(mask, grad_logps.float(), 0.0)
        if len(ids):
            launch(backward_kernel, logits, ids, slopes, lse, ctx.inverse_temperature)
        return logits, None, None, None


def launch(kernel, logits, *arguments):
    """Run a kernel with one program a token.

    Blocks are small and warps few, so that many tokens are under way on each processor while one
    waits for memory. Products and sums are rounded one by one, as in PyTorch.
    """
    N, V = logits.shape
    block = min(1024, max(16, 1 << (V - 1).bit_length()))
    options = {"BLOCK": block, "num_warps": 2, "enable_fp_fusion": False}
    compiled(kernel)[(N,)](logits, *arguments, logits.stride(0), V, **options)


@lru_cache
def compiled(kernel):
    """The kernel as Triton runs it. The name `tl` exists from here on."""
    global tl
    try:
        import triton
        import triton.language as tl
    except ImportError:
        install = "pip install triton, or leave it off"
        raise ValueError(f"rl.fused needs triton, which is not installed: {install}") from None
    return triton.jit(kernel)


def forward_kernel(
    logits, ids, mask, logps, lse_of, scale: tl.constexpr, stride, V, BLOCK: tl.constexpr
):
    """One token: its log-prob and its log-sum-exp, in one pass over the vocabulary.

    All tensors are pointers: to rows of V logits, each `stride` after the last, and to one number a
    token of the others. The distribution is softmax(logits * scale). BLOCK logits are read at a
    time, with the largest so far and the sum relative to it (Milakov and Gimelshein 2018). Writes
    logps and lse_of; nothing is read or written where the mask is not set.
    """
    token = tl.program_id(0).to(tl.int64)
    if tl.load(mask + token) != 0:
        row = logits + token * stride
        lanes = tl.arange(0, BLOCK)
        peak = -1e30  # finite, because logits may be -inf, and -inf - -inf is nan
        total = tl.zeros([BLOCK], tl.float32)
        for start in range(0, V, BLOCK):
            at = start + lanes
            x = tl.load(row + at, mask=at < V, other=float("-inf")).to(tl.float32) * scale
            higher = tl.maximum(peak, tl.max(x, 0))
            total = total * tl.exp(peak - higher) + tl.exp(x - higher)
            peak = higher
        lse = peak + tl.log(tl.sum(total, 0))
        logp = tl.load(row + tl.load(ids + token)).to(tl.float32) * scale - lse
        tl.store(logps + token, logp)
        tl.store(lse_of + token, lse)


def backward_kernel(
    logits, ids, slopes, lse_of, scale: tl.constexpr, stride, V, BLOCK: tl.constexpr
):
    """One token: its logits become slope * (onehot(id) - softmax) * scale, their own gradient.

    Where the slope is 0 (a masked token, or one that was clipped) the logits are not read.
    """
    token = tl.program_id(0).to(tl.int64)
    row = logits + token * stride
    lanes = tl.arange(0, BLOCK)
    slope = tl.load(slopes + token) * scale
    id = tl.load(ids + token)
    lse = tl.load(lse_of + token)
    for start in range(0, V, BLOCK):
        at = start + lanes
        gradient = tl.zeros([BLOCK], tl.float32)
        if slope != 0.0:
            x = tl.load(row + at, mask=at < V, other=float("-inf")).to(tl.float32) * scale
            gradient = slope * (tl.where(at == id, 1.0, 0.0) - tl.exp(x - lse))
        tl.store(row + at, gradient.to(logits.dtype.element_ty), mask=at < V)
