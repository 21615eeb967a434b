"""Triton kernels: log-probs for large vocabularies; attention and draw of a decoding step.

The logits of 16,000 tokens over 150,000 ids are 5 GB in bf16, and every fp32 copy that log_softmax
and its gradient make of them is 10 GB more. The kernels make no copy: the forward pass keeps two
numbers a token, and the backward pass writes the gradient over the logits. Any loss can follow.

A decoding step has one id a row. Between the two matrix products of an attention layer, PyTorch
launches twenty small kernels and reads as many slots for each row as for the longest. Here it is
one kernel, and a row reads its own past only. Another kernel draws the next ids.

Triton is imported when a kernel is first launched. Without a GPU, PyTorch does the same sums.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from types import FunctionType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nanotir.logps import DAMAGED, token_logps

TRITON = find_spec("triton") is not None


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


def launch(kernel, logits, *arguments, block: int = 1024, warps: int = 2):
    """Run a kernel with one program a token.

    Blocks are small and warps few, so that many tokens are under way on each processor while one
    waits for memory. Few tokens need more of both. Products and sums are rounded one by one, as in
    PyTorch.
    """
    N, V = logits.shape
    block = min(block, max(16, 1 << (V - 1).bit_length()))
    options = {"BLOCK": block, "num_warps": warps, "enable_fp_fusion": False}
    compiled(kernel)[(N,)](logits, *arguments, logits.stride(0), V, **options)


@lru_cache
def compiled(kernel):
    """The kernel as Triton runs it. From here on `tl` exists, and kernels can call functions."""
    global tl
    try:
        import triton
        import triton.language as tl
    except ImportError:
        install = "pip install triton, or leave off rl.fused"
        raise ValueError(f"a kernel needs triton, which cannot be imported: {install}") from None
    for part in (turned, attended, weights):
        if isinstance(part, FunctionType):
            globals()[part.__name__] = triton.jit(part)
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


def fused_pick(
    logits: Tensor, u, temperature: float, banned: Tensor, forced: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`sampler.pick` of ids (B,) and their log-probs (B,) from logits (B, V), all ids being kept.

    Sums are in float64. PyTorch would write ten copies of the logits. ValueError as there.
    """
    logits = logits.index_fill(-1, banned, float("-inf"))
    u = torch.as_tensor(u, dtype=torch.float64, device=logits.device)
    ids, lse = torch.empty_like(u, dtype=torch.long), torch.empty_like(u)
    launch(draw_kernel, logits, u, ids, lse, 1 / temperature, block=8192, warps=16)
    if forced is not None:
        ids = torch.where(forced >= 0, forced, ids)
    chosen = logits.gather(-1, ids[:, None])[:, 0]
    logps = (chosen.double() / temperature - lse).float()
    if logps.isnan().any():
        raise ValueError(DAMAGED)
    return ids, logps


def draw_kernel(logits, uniforms, ids, lse_of, scale: tl.constexpr, stride, V, BLOCK: tl.constexpr):
    """One row: its log-sum-exp, and the first id whose cumulative sum exceeds its number's share.

    Tensors are pointers, as in `forward_kernel`. The three passes over the logits find the largest,
    the sum of all weights, and the id.
    """
    row = tl.program_id(0).to(tl.int64)
    first = logits + row * stride
    lanes = tl.arange(0, BLOCK)
    largest = tl.zeros([BLOCK], tl.float32) - 1e30
    for start in range(0, V, BLOCK):
        at = start + lanes
        x = tl.load(first + at, mask=at < V, other=float("-inf")).to(tl.float32)
        largest = tl.maximum(largest, x)
    peak = tl.max(largest, 0)
    sums = tl.zeros([BLOCK], tl.float64)
    for start in range(0, V, BLOCK):
        sums += weights(first, start + lanes, V, peak, scale)
    total = tl.sum(sums, 0)
    tl.store(lse_of + row, peak.to(tl.float64) * scale + tl.log(total))

    target = tl.load(uniforms + row) * total
    before = total * 0.0
    id = row * 0
    for start in range(0, V, BLOCK):
        if before <= target:
            those = weights(first, start + lanes, V, peak, scale)
            id += tl.sum((before + tl.cumsum(those, 0) <= target).to(tl.int64), 0)
            before += tl.sum(those, 0)
    tl.store(ids + row, tl.minimum(id, V - 1))


def weights(first, at, V, peak, scale: tl.constexpr):
    """exp((logit - peak) * scale) of the logits at `at` of a row, 0 beyond the last."""
    x = tl.load(first + at, mask=at < V, other=float("-inf")).to(tl.float32)
    return tl.exp((x - peak) * scale).to(tl.float64)


def decodes_on(device: torch.device) -> bool:
    """Whether a device decodes by kernels: `decode_attention` and `fused_pick`."""
    return device.type == "cuda" and TRITON


def decode_attention(attention, heads: Tensor, layout, layer: int) -> Tensor:
    """What model.Attention does between its two products, for one id a row: (B, 1, H*D).

    `heads` (B, 1, H+2K, D) are the queries, keys and values of the ids at layout.positions, not yet
    normalised or rotated. Keys and values are written to layout.cache. Not differentiable.
    """
    B, _, _, D = heads.shape
    H, K = attention.heads, attention.kv_heads
    keys, values = layout.cache.kv[layer]  # each (B, K, S, D)
    assert keys.stride() == (K * keys.stride(1), keys.shape[2] * D, D, 1)
    out = torch.empty(B, 1, H * D, device=heads.device, dtype=keys.dtype)
    norms = (attention.q_norm, attention.k_norm) if attention.qk_norm else ()
    weights = [norm.weight for norm in norms] or [heads, heads]  # these are not read
    positions = layout.positions.contiguous()
    tensors = (heads.contiguous(), *weights, layout.cos, layout.sin, positions, keys, values)
    eps = norms[0].eps if norms else 0.0
    group, wide = (max(16, 1 << (n - 1).bit_length()) for n in (H // K, D))
    sizes = (keys.shape[2], eps, H, K, D, group, wide, slots_at_a_time(wide))
    compiled(decode_kernel)[(B, K)](*tensors, out, *sizes)
    return out


def slots_at_a_time(wide: int) -> int:
    """How many slots the kernel reads at a time: more do not fit into every GPU's shared memory."""
    return min(64, max(16, 4096 // wide))


def decode_kernel(
    heads,
    q_weight,
    k_weight,
    cos_of,
    sin_of,
    positions,
    keys,
    values,
    out,
    S,
    eps: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    GROUP: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One key head of one row: its new key and value are stored, its H / K queries attend.

    Tensors are pointers, as in `decode_attention`. GROUP and WIDE are H / K and D, rounded up to
    what a matrix product takes.
    """
    row, k = tl.program_id(0).to(tl.int64), tl.program_id(1)
    position = tl.load(positions + row)
    r, d = tl.arange(0, GROUP)[:, None], tl.arange(0, WIDE)[None, :]
    mask = (r < H // K) & (d < D)  # (GROUP, WIDE)
    stored = keys.dtype.element_ty
    cos = tl.load(cos_of + row * D + d, mask=d < D, other=0.0)
    sin = tl.load(sin_of + row * D + d, mask=d < D, other=0.0)
    mine = heads + row * (H + 2 * K) * D
    q = turned(mine + (k * (H // K) + r) * D, mask, d, q_weight, cos, sin, eps, D).to(stored)
    key = turned(mine + (H + k) * D, d < D, d, k_weight, cos, sin, eps, D).to(stored)  # (1, WIDE)
    value = tl.load(mine + (H + K + k) * D + d, mask=d < D, other=0.0).to(stored)

    # Padding, at position -1, goes to the spare slot and attends to itself.
    past = (row * K + k) * S * D
    here = past + tl.where(position < 0, S - 1, position) * D
    tl.store(keys + here + d, key, mask=d < D)
    tl.store(values + here + d, value, mask=d < D)
    mean = attended(q, key, value, keys + past, values + past, position, d, D, BLOCK)
    tl.store(out + row * H * D + (k * (H // K) + r) * D + d, mean.to(stored), mask=mask)


def turned(first, mask, d, weight, cos, sin, eps: tl.constexpr, D: tl.constexpr):
    """The heads that begin at `first`, in fp32: normalised, unless eps is 0, and rotated."""
    swapped = (d + D // 2) % D  # the other number of each pair that is rotated
    x = tl.load(first + d, mask=mask, other=0.0).to(tl.float32)
    y = tl.load(first + swapped, mask=mask, other=0.0).to(tl.float32)
    if eps > 0:
        scale = tl.rsqrt(tl.sum(x * x, 1, keep_dims=True) / D + eps)
        x = x * scale * tl.load(weight + d, mask=d < D, other=0.0)
        y = y * scale * tl.load(weight + swapped, mask=d < D, other=0.0)
    return x * cos + y * sin


def attended(q, key, value, keys, values, position, d, D: tl.constexpr, BLOCK: tl.constexpr):
    """The mean of values (GROUP, WIDE) that queries give to the slots before `position`, and to it.

    BLOCK slots are read at a time, with the largest score so far and the sums relative to it. These
    begin with the row's own slot, whose key and value are still at hand.
    """
    scale = 1.0 / (D**0.5)
    largest = tl.sum(q.to(tl.float32) * key.to(tl.float32), 1) * scale  # (GROUP,)
    total = tl.zeros_like(largest) + 1.0
    mean = tl.zeros(q.shape, tl.float32) + value.to(tl.float32)
    for start in range(0, position, BLOCK):
        slots = start + tl.arange(0, BLOCK)
        place = slots[:, None] * D + d
        mask = (slots[:, None] < position) & (d < D)
        old_keys = tl.load(keys + place, mask=mask, other=0.0)  # (BLOCK, WIDE)
        old_values = tl.load(values + place, mask=mask, other=0.0)
        scores = tl.dot(q, tl.trans(old_keys), input_precision="ieee") * scale  # (GROUP, BLOCK)
        scores = tl.where(slots[None, :] < position, scores, float("-inf"))
        new = tl.maximum(largest, tl.max(scores, 1))
        shrink = tl.exp(largest - new)
        weights = tl.exp(scores - new[:, None])
        total = total * shrink + tl.sum(weights, 1)
        mean = mean * shrink[:, None]
        mean += tl.dot(weights.to(q.dtype), old_values, input_precision="ieee")
        largest = new
    return mean / total[:, None]
