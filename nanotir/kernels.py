"""The fused loss: Triton kernels that go from logits to every token's clipped loss in one pass, and write the gradient over the logits.

The logits of 16,000 tokens over 150,000 ids are 5 GB in bf16, and every fp32 copy that log_softmax and its gradient make of them is 10 GB
more. Triton is optional, and imported when a kernel is first launched.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.autograd.function import once_differentiable


def fused_token_losses(
    logits,
    ids,
    old_logps,
    advantages,
    mask,
    ref_logps=None,
    *,
    temperature=1.0,
    epsilon=0.2,
    epsilon_high=0.2,
    delta=None,
    beta=0.0,
):
    """(losses, log-probs), each (N,), of N tokens from their logits (N, V): -min(min(ratio, delta) A, clip(ratio) A) + beta * k3.

    0 where the mask is not set; those tokens' logits are not read. The backward pass OVERWRITES the logits by their gradient, so nothing else
    may use them afterwards. What fp32 needs beside them are five numbers a token. ValueError where Triton is not installed.
    """
    assert logits.dim() == 2 and logits.stride(1) == 1 and (ref_logps is not None or not beta)
    if logits.is_leaf and logits.requires_grad:
        raise ValueError(
            "the fused loss overwrites its logits by their gradient, so they cannot be a leaf: hand on what a model has computed"
        )
    options = (
        1 / temperature,
        1 - epsilon,
        1 + epsilon_high,
        float("inf") if delta is None else delta,
        beta,
    )
    tokens = [
        x.detach().float().contiguous()
        for x in (old_logps, advantages, old_logps if ref_logps is None else ref_logps)
    ]
    return FusedTokenLosses.apply(logits, ids.contiguous(), mask.contiguous(), *tokens, options)


class FusedTokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, ids, mask, old_logps, advantages, ref_logps, options):
        losses, logps, lse, slopes = torch.zeros(
            4, len(ids), device=logits.device
        )  # slope: d loss / d logp
        if len(ids):
            launch(
                forward_kernel,
                logits,
                ids,
                mask,
                old_logps,
                advantages,
                ref_logps,
                losses,
                logps,
                lse,
                slopes,
                *options,
            )
        ctx.save_for_backward(logits, ids, lse, slopes)
        ctx.inverse_temperature, ctx.spent = options[0], False
        ctx.mark_non_differentiable(logps)
        return losses, logps

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_losses, _):
        if ctx.spent:
            raise RuntimeError(
                "a second backward pass through fused_token_losses: the first has turned the logits into their gradient"
            )
        logits, ids, lse, slopes = ctx.saved_tensors
        ctx.spent = True
        if len(ids):
            launch(backward_kernel, logits, ids, lse, slopes * grad_losses, ctx.inverse_temperature)
        return logits, None, None, None, None, None, None


def launch(kernel, logits, *arguments):
    """Run a kernel with one program a token. Small blocks and few warps, so that many tokens are under way on each processor while one waits for
    memory; products and sums are rounded one by one, as in PyTorch."""
    N, V = logits.shape
    block = min(1024, max(16, 1 << (V - 1).bit_length()))
    compiled(kernel)[(N,)](
        logits, *arguments, logits.stride(0), V, BLOCK=block, num_warps=2, enable_fp_fusion=False
    )


@lru_cache
def compiled(kernel):
    """A kernel as Triton runs it. Only from here on does `tl` exist."""
    global tl
    try:
        import triton
        import triton.language as tl
    except ImportError:
        raise ValueError(
            "the fused loss needs triton, which is not installed: pip install triton, or leave it off"
        ) from None
    return triton.jit(kernel)


def forward_kernel(
    logits,
    ids,
    mask,
    old_logps,
    advantages,
    ref_logps,
    losses,
    logps,
    lse_of,
    slopes,
    inverse_temperature: tl.constexpr,
    low: tl.constexpr,
    high: tl.constexpr,
    delta: tl.constexpr,
    beta: tl.constexpr,
    stride,
    V,
    BLOCK: tl.constexpr,
):
    """One token: log-sum-exp over the vocabulary in one pass (Milakov and Gimelshein 2018), log-prob, ratio, clip, k3, and the loss's slope."""
    token = tl.program_id(0).to(tl.int64)
    if tl.load(mask + token) != 0:
        row, lanes = logits + token * stride, tl.arange(0, BLOCK)
        peak, total = (
            -1e30,
            tl.zeros([BLOCK], tl.float32),
        )  # finite, since -inf - -inf is nan: logits may be -inf
        for start in range(0, V, BLOCK):
            x = (
                tl.load(row + start + lanes, mask=start + lanes < V, other=float("-inf")).to(
                    tl.float32
                )
                * inverse_temperature
            )
            higher = tl.maximum(peak, tl.max(x, 0))
            total = total * tl.exp(peak - higher) + tl.exp(x - higher)
            peak = higher
        lse = peak + tl.log(tl.sum(total, 0))
        logp = tl.load(row + tl.load(ids + token)).to(tl.float32) * inverse_temperature - lse

        A = tl.load(advantages + token)
        log_ratio = logp - tl.load(old_logps + token)
        ratio = tl.exp(tl.minimum(tl.maximum(log_ratio, -20.0), 20.0))  # losses.LOG_LIMIT, as below
        clipped = tl.minimum(tl.maximum(ratio, low), high)
        loss = -tl.minimum(tl.minimum(ratio, delta) * A, clipped * A)
        lowest, highest = (
            tl.where(A > 0, 0.0, low),
            tl.where(A > 0, tl.minimum(high, delta), tl.maximum(high, delta)),
        )
        free = tl.where(
            ratio < lowest,
            0.0,
            tl.where(ratio > highest, 0.0, tl.where(tl.abs(log_ratio) > 20.0, 0.0, 1.0)),
        )
        slope = -A * ratio * free
        if beta != 0.0:
            d = tl.load(ref_logps + token) - logp
            bounded = tl.minimum(tl.maximum(d, -20.0), 20.0)
            loss += beta * (tl.exp(bounded) - bounded - 1)
            slope += tl.where(tl.abs(d) > 20.0, 0.0, beta * (1 - tl.exp(bounded)))
        tl.store(losses + token, loss)
        tl.store(logps + token, logp)
        tl.store(lse_of + token, lse)
        tl.store(slopes + token, slope)


def backward_kernel(
    logits, ids, lse_of, slopes, inverse_temperature: tl.constexpr, stride, V, BLOCK: tl.constexpr
):
    """One token: its logits become slope * (onehot(id) - softmax) / temperature. Where the slope is 0 (not ours, or clipped) nothing is read."""
    token = tl.program_id(0).to(tl.int64)
    row, lanes = logits + token * stride, tl.arange(0, BLOCK)
    slope = tl.load(slopes + token) * inverse_temperature
    if slope == 0.0:
        for start in range(0, V, BLOCK):
            tl.store(
                row + start + lanes,
                tl.zeros([BLOCK], logits.dtype.element_ty),
                mask=start + lanes < V,
            )
    else:
        id, lse = tl.load(ids + token), tl.load(lse_of + token)
        for start in range(0, V, BLOCK):
            x = (
                tl.load(row + start + lanes, mask=start + lanes < V, other=float("-inf")).to(
                    tl.float32
                )
                * inverse_temperature
            )
            onehot = tl.where(start + lanes == id, 1.0, 0.0)
            tl.store(
                row + start + lanes,
                (slope * (onehot - tl.exp(x - lse))).to(logits.dtype.element_ty),
                mask=start + lanes < V,
            )
