"""How likely a model finds what is written: the log-probs of ids, which imitation raises and policy losses compare.

The head is the widest matrix there is, and its logits the largest tensor: it runs on the ids that count alone and, where the vocabulary is
large, on a few of them at a time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

CHUNKED_FROM = 16384  # vocabulary from which logits are made chunk by chunk
CHUNK = 64  # rows of logits held at a time: at a vocabulary of 32,768 they still fit in a core's share of the cache


def autocast(device: torch.device, bf16: bool):
    """Matrix products in bfloat16 where that is asked for, except on a CPU without instructions for it, where they would take seven times as long."""
    able = device.type != "cpu" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16 and able)


def trained_logps(
    model, ids, mask, temperature: float = 1.0, banned=(), entropy: bool = False, routing=None
):
    """(log-probs, entropies), both (B, T), of the masked ids of whole rows (B, T); 0 elsewhere. Entropies are None unless asked for.

    Position t is predicted from t-1. `banned` are the ids that the sampler masks; leaving them in would make every ratio differ from 1.
    """
    hidden, banned = (
        active_hidden(model, ids, mask, routing),
        torch.tensor(banned, dtype=torch.long, device=ids.device),
    )
    flat = head_logps(
        hidden, model.head.weight, ids[:, 1:][mask[:, 1:]], temperature, banned, entropy
    )  # each (N,)
    where = F.pad(mask[:, 1:], (1, 0))
    return tuple(
        None
        if x is None
        else torch.zeros(ids.shape, dtype=x.dtype, device=ids.device).masked_scatter(where, x)
        for x in flat
    )


def active_hidden(model, ids, mask, routing=None):
    """The hidden states (N, d) from which the N masked ids of rows (B, T) are predicted, in order. Fills in the model's `routing`, and
    then every token passes through every router."""
    wanted = mask[:, 1:]
    return (
        model.hidden(ids[:, :-1], wanted=wanted)[0]
        if routing is None
        else model.hidden(ids[:, :-1], routing=routing)[wanted]
    )


def active_logits(model, ids, mask, banned=(), routing=None):
    """Logits (N, V) of the N masked ids, for fused_policy_loss, which will overwrite them."""
    logits = model.head(active_hidden(model, ids, mask, routing))
    with torch.no_grad():  # no copy for autograd: where a logit is -inf its gradient is 0 anyway
        logits[:, list(banned)] = float("-inf")
    return logits


def token_logps(logits, ids, temperature: float = 1.0):
    """Log-probs of ids (...) under logits (..., V): logits[b, t] is the distribution that ids[b, t] was drawn from."""
    return (full(logits) / temperature).log_softmax(-1).gather(-1, ids[..., None])[..., 0]


def full(x):
    """x in fp32, or in float64 where it is already: a log-sum-exp over a vocabulary is no work for bf16."""
    return x if x.dtype == torch.float64 else x.float()


def head_logps(hidden, weight, ids, temperature: float, banned, entropy: bool):
    """(log-probs, entropies or None), each (N,), of ids (N,) under softmax(hidden @ weight.T / temperature) without the banned ids.

    From a vocabulary of CHUNKED_FROM on, without ever holding (N, V) numbers.
    """
    if len(weight) >= CHUNKED_FROM:
        return ChunkedLogps.apply(hidden, weight, ids, temperature, banned, entropy)
    logits = full(F.linear(hidden, weight)).index_fill(-1, banned, float("-inf"))  # (N, V)
    logps = (logits / temperature).log_softmax(-1)
    finite = logps.masked_fill(
        logps.isneginf(), 0.0
    )  # a banned id adds 0 log 0 = 0, and no gradient
    return logps.gather(-1, ids[:, None])[:, 0], -(logps.exp() * finite).sum(
        -1
    ) if entropy else None


class ChunkedLogps(torch.autograd.Function):
    """(log-probs, entropies or None), each (N,), of ids (N,) under softmax(hidden (N, d) @ weight (V, d).T / temperature) without the banned
    ids, from CHUNK rows of logits at a time.

    The forward pass keeps two numbers a token, its log-sum-exp and its entropy; the backward pass makes each chunk's logits again, turns them
    into their own gradient in place, and hands that on: four matrix products instead of three. With p = softmax and H = -sum p log p
        d logp / d logits = onehot(id) - p        d H / d logits = -p (log p + H)
    """

    @staticmethod
    def forward(ctx, hidden, weight, ids, temperature, banned, entropy):
        device = hidden.device.type
        ctx.dtype = (
            torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        )
        ctx.temperature = temperature
        logps, entropies, lse = (
            torch.zeros(len(ids), dtype=full(hidden).dtype, device=device) for _ in range(3)
        )
        for start in range(0, len(ids), CHUNK):
            at = slice(start, start + CHUNK)
            logits = scaled_logits(ctx, hidden[at], weight, banned)  # (n, V)
            logps[at], lse[at] = logits.gather(-1, ids[at, None])[:, 0], logits.logsumexp(-1)
            if entropy:
                entropies[at] = torch.special.entr(logits.sub_(lse[at, None]).exp_()).sum(-1)
        ctx.save_for_backward(hidden, weight, ids, banned, lse, entropies)
        ctx.set_materialize_grads(False)
        return logps - lse, entropies if entropy else None

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logps, grad_entropies):
        hidden, weight, ids, banned, lse, entropies = ctx.saved_tensors
        grad_hidden, grad_weight = (
            torch.empty_like(hidden),
            torch.zeros_like(weight, dtype=lse.dtype),
        )  # a sum of many chunks: not in bf16
        g = (torch.zeros_like(lse) if grad_logps is None else grad_logps)[
            :, None
        ] / ctx.temperature  # (N, 1)
        for start in range(0, len(ids), CHUNK):
            at = slice(start, start + CHUNK)
            p = scaled_logits(ctx, hidden[at], weight, banned).sub_(lse[at, None]).exp_()  # (n, V)
            if grad_entropies is not None:
                slope = (torch.special.entr(p) - p * entropies[at, None]).mul_(
                    grad_entropies[at, None] / ctx.temperature
                )
            grad = p.mul_(-g[at]).scatter_add_(-1, ids[at, None], g[at])
            grad = (grad if grad_entropies is None else grad.add_(slope)).to(ctx.dtype)
            grad_hidden[at] = grad @ weight.to(ctx.dtype)
            if ctx.dtype == lse.dtype:
                grad_weight.addmm_(grad.T, hidden[at].to(ctx.dtype))
            else:
                grad_weight += grad.T @ hidden[at].to(ctx.dtype)
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None, None


def scaled_logits(ctx, hidden, weight, banned):
    logits = full(hidden.to(ctx.dtype) @ weight.to(ctx.dtype).T)  # (n, V)
    return logits.index_fill_(-1, banned, float("-inf")).div_(ctx.temperature)
