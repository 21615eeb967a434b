"""How likely a model finds what is written: the log-probs of ids.

Imitation raises them and policy losses compare them. The head is the widest matrix there is, and
its logits are the largest tensor. So it runs on the masked ids alone and, where the vocabulary is
large, on a few of them at a time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nanotir import gradients, native

CHUNKED_FROM = 16384  # vocabulary from which on logits are made chunk by chunk
CHUNK = 256  # rows of logits held at a time; fewer mean more sums of the weight's gradient
CHUNK_ON_GPU = 2048  # which must be kept busy
DAMAGED = "the model's probabilities are not finite: its weights are damaged"


def in_bf16(device: torch.device, bf16: bool) -> bool:
    """Whether matrix products are in bfloat16, if that is asked for.

    Not on a CPU without instructions for it, where they would take seven times as long.
    """
    able = device.type != "cpu" or torch.cpu.get_capabilities().get("avx512_bf16", False)
    return bf16 and able


def autocast(device: torch.device, bf16: bool):
    """Matrix products `in_bf16`.

    Rounded weights are not kept while gradients are recorded: threads would share their graphs.
    """
    kept = not torch.is_grad_enabled()
    return torch.autocast(device.type, torch.bfloat16, in_bf16(device, bf16), cache_enabled=kept)


def token_logps(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probs of ids (B, T) under logits (B, T, V), where logits[b, t] predict ids[b, t]."""
    return (at_least_fp32(logits) / temperature).log_softmax(-1).gather(-1, ids[..., None])[..., 0]


def at_least_fp32(x: Tensor) -> Tensor:
    """x in fp32, or in float64 if it is: bf16 is too coarse for a sum over a vocabulary."""
    return x if x.dtype == torch.float64 else x.float()


def masked_logps(
    model, ids, mask, temperature: float = 1.0, banned=(), entropy: bool = False, routing=None
) -> tuple[Tensor, Tensor | None]:
    """(log-probs, entropies), both (B, T), of the masked ids of whole rows (B, T); 0 elsewhere.

    Entropies are None unless asked for. `banned` are the ids that the sampler masks: if they were
    left in, the ratio of new to old policy would not start at 1. Fills in the model's `routing`.
    """
    hidden = masked_hidden(model, ids, mask, routing)  # (N, d)
    targets = ids[:, 1:][mask[:, 1:]]  # (N,): position t is predicted from t - 1
    banned_ids = torch.tensor(banned, dtype=torch.long, device=ids.device)
    logps, entropies = head_logps(  # each (N,)
        hidden, model.head.weight, targets, temperature, banned_ids, entropy
    )
    if entropies is not None:
        entropies = spread(entropies, mask)
    return spread(logps, mask), entropies


def spread(values: Tensor, mask: Tensor) -> Tensor:
    """Values (N,) at the N masked positions of (B, T), 0 elsewhere. Nothing predicts position 0."""
    predicted = F.pad(mask[:, 1:], (1, 0))
    empty = torch.zeros(mask.shape, dtype=values.dtype, device=values.device)
    return empty.masked_scatter(predicted, values)


def masked_hidden(model, ids, mask, routing=None) -> Tensor:
    """The hidden states (N, d) from which the N masked ids of rows (B, T) are predicted."""
    ids, predicted = ids[:, :-1], mask[:, 1:]
    if routing is not None:
        # To record every token's experts, every token must pass through the last layer as well.
        return model.hidden(ids, routing=routing)[predicted]
    if not packs(model):
        return model.hidden(ids, mask=predicted)[0]
    ids, positions, predicted = packed(ids, predicted)
    return model.hidden(ids, positions, mask=predicted)[0]


def packs(model) -> bool:
    """Whether rows are computed `packed`: in C++, whose attention knows where each begins.

    Routers need whole rows, since they are to spread all of their tokens.
    """
    weight = model.head.weight
    device, dtype = weight.device.type, weight.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    return native.serves(weight.new_empty(0, dtype=dtype)) and not model.config.n_experts


def packed(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (B, T) one behind the other, (1, M): their ids, positions and mask.

    Each goes up to its last masked id, since what follows it is not read.
    """
    read = mask.flip(1).cumsum(1).flip(1) > 0  # (B, T)
    positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
    return ids[read][None], positions[read][None], mask[read][None]


def masked_logits(model, ids, mask, banned=(), routing=None) -> Tensor:
    """Logits (N, V) for the N masked ids, for kernels.fused_logps, which overwrites them."""
    logits = model.head(masked_hidden(model, ids, mask, routing))
    with torch.no_grad():  # where a logit is -inf, its gradient is 0: autograd needs no copy
        logits[:, list(banned)] = float("-inf")
    return logits


def head_logps(hidden, weight, ids, temperature: float, banned, entropy: bool):
    """(log-probs, entropies or None), each (N,), of ids (N,) from hidden states (N, d).

    The distribution is softmax(hidden @ weight.T / temperature) without the banned ids. For a
    vocabulary of CHUNKED_FROM ids or more, (N, V) numbers are never held.
    """
    if len(weight) >= CHUNKED_FROM:
        return ChunkedLogps.apply(hidden, weight, ids, temperature, banned, entropy)
    logits = F.linear(hidden, weight)  # (N, V), large: no copies
    with torch.no_grad():  # what autograd needs is not overwritten
        logits[:, banned] = float("-inf")
    if native.serves(logits):
        logps, entropies = gradients.LogProbs.apply(logits, ids, temperature)
        return logps, entropies if entropy else None
    logits = at_least_fp32(logits)
    if temperature != 1:
        logits = logits / temperature
    all_logps = logits.log_softmax(-1)
    logps = all_logps.gather(-1, ids[:, None])[:, 0]
    if not entropy:
        return logps, None
    finite = all_logps.masked_fill(all_logps.isneginf(), 0.0)  # a banned id adds 0 log 0 = 0
    return logps, -(all_logps.exp() * finite).sum(-1)


class ChunkedLogps(torch.autograd.Function):
    """`head_logps` from CHUNK rows of logits at a time. (Skip it at first reading.)

    The forward pass keeps two numbers a token: its log-sum-exp and its entropy. The backward pass
    makes each chunk's logits again and turns them into their own gradient in place: four matrix
    products instead of three. With p = softmax and H = -sum p log p,

        d logp / d logits = onehot(id) - p        d H / d logits = -p (log p + H)
    """

    @staticmethod
    def forward(ctx, hidden, weight, ids, temperature, banned, entropy):
        device = hidden.device.type
        autocasting = torch.is_autocast_enabled(device)
        ctx.dtype = torch.get_autocast_dtype(device) if autocasting else hidden.dtype
        ctx.temperature = temperature
        ctx.chunk = CHUNK if device == "cpu" else CHUNK_ON_GPU
        cast = weight.to(ctx.dtype)  # once for all chunks
        logps, entropies, lse = torch.zeros(
            3, len(ids), dtype=at_least_fp32(hidden).dtype, device=hidden.device
        )
        for start in range(0, len(ids), ctx.chunk):
            at = slice(start, start + ctx.chunk)
            logits = scaled_logits(ctx, hidden[at], cast, banned)  # (n, V)
            logps[at] = logits.gather(-1, ids[at, None])[:, 0]
            lse[at] = logits.logsumexp(-1)
            if entropy:
                entropies[at] = torch.special.entr(logits.sub_(lse[at, None]).exp_()).sum(-1)
        ctx.save_for_backward(hidden, weight, ids, banned, lse, entropies)
        ctx.set_materialize_grads(False)
        return logps - lse, entropies if entropy else None

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logps, grad_entropies):
        hidden, weight, ids, banned, lse, entropies = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        learned = ctx.needs_input_grad[1]  # a head beside adapters is frozen
        # Not in bf16: it is a sum of many chunks.
        grad_weight = torch.zeros_like(weight, dtype=lse.dtype) if learned else None
        g = torch.zeros_like(lse) if grad_logps is None else grad_logps
        g = g[:, None] / ctx.temperature  # (N, 1)
        cast = weight.to(ctx.dtype)
        for start in range(0, len(ids), ctx.chunk):
            at = slice(start, start + ctx.chunk)
            p = scaled_logits(ctx, hidden[at], cast, banned).sub_(lse[at, None]).exp_()  # (n, V)
            slope = None
            if grad_entropies is not None:
                slope = torch.special.entr(p) - p * entropies[at, None]
                slope.mul_(grad_entropies[at, None] / ctx.temperature)
            grad = p.mul_(-g[at]).scatter_add_(-1, ids[at, None], g[at])
            grad = (grad if slope is None else grad.add_(slope)).to(ctx.dtype)

            # Hand the chunk's gradient on to the hidden states and to the head.
            grad_hidden[at] = grad @ cast
            if learned and ctx.dtype == lse.dtype:
                grad_weight.addmm_(grad.T, hidden[at].to(ctx.dtype))
            elif learned:
                grad_weight += grad.T @ hidden[at].to(ctx.dtype)
        grad_weight = grad_weight.to(weight.dtype) if learned else None
        return grad_hidden, grad_weight, None, None, None, None


def scaled_logits(ctx, hidden, weight, banned) -> Tensor:
    logits = at_least_fp32(hidden.to(ctx.dtype) @ weight.T)  # (n, V)
    return logits.index_fill_(-1, banned, float("-inf")).div_(ctx.temperature)
