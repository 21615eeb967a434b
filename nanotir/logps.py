"""How likely a model finds what is written: the log-probs of ids.

Imitation raises them and policy losses compare them. The head is the widest matrix there is, and
its logits are the largest tensor. So it runs on the masked ids alone and, where the vocabulary is
large, on a few of them at a time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNKED_FROM = 16384  # vocabulary from which on logits are made chunk by chunk
CHUNK = 128  # rows of logits held at a time


def autocast(device: torch.device, bf16: bool):
    """Matrix products in bfloat16 where that is asked for.

    Not on a CPU without instructions for bfloat16, where they would take seven times as long.
    """
    able = device.type != "cpu" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16 and able)


def token_logps(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probs of ids (B, T) under logits (B, T, V), where logits[b, t] predict ids[b, t]."""
    return (full(logits) / temperature).log_softmax(-1).gather(-1, ids[..., None])[..., 0]


def full(x: Tensor) -> Tensor:
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
    predicted = mask[:, 1:]
    if routing is None:
        return model.hidden(ids[:, :-1], mask=predicted)[0]
    # To record every token's experts, every token must pass through the last layer as well.
    return model.hidden(ids[:, :-1], routing=routing)[predicted]


def masked_logits(model, ids, mask, banned=(), routing=None) -> Tensor:
    """Logits (N, V) for the N masked ids, for kernels.fused_logps, which overwrites them."""
    logits = model.head(masked_hidden(model, ids, mask, routing))
    with torch.no_grad():  # where a logit is -inf, its gradient is 0: autograd needs no copy
        logits[:, list(banned)] = float("-inf")
    return logits


def head_logps(hidden, weight, ids, temperature: float, banned, entropy: bool):
    """(log-probs, entropies or None), each (N,), of ids (N,) from hidden states (N, d).

    The distribution is softmax(hidden @ weight.T / temperature) without the banned ids. For a
    vocabulary of CHUNKED_FROM ids or more, (N, V) numbers are never held: the backward pass makes
    each chunk's logits again.
    """
    if len(weight) < CHUNKED_FROM:
        return chunk_logps(hidden, weight, ids, temperature, banned, entropy)
    # Autocast would round a leaf once for all chunks, and add up their gradients in bf16.
    weight = full(weight).view_as(weight)
    settings = {"temperature": temperature, "banned": banned, "entropy": entropy}
    chunks = [
        checkpoint(chunk_logps, states, weight, chosen, use_reentrant=False, **settings)
        for states, chosen in zip(hidden.split(CHUNK), ids.split(CHUNK))
    ]
    logps, entropies = zip(*chunks)
    return torch.cat(logps), torch.cat(entropies) if entropy else None


def chunk_logps(hidden, weight, ids, temperature: float, banned, entropy: bool):
    """The same from all (N, V) logits at once."""
    logits = full(F.linear(hidden, weight.to(hidden.dtype)))  # (N, V)
    logits = logits.index_fill(-1, banned, float("-inf"))
    all_logps = (logits / temperature).log_softmax(-1)
    logps = all_logps.gather(-1, ids[:, None])[:, 0]
    if not entropy:
        return logps, None
    finite = all_logps.masked_fill(all_logps.isneginf(), 0.0)  # a banned id adds 0 log 0 = 0
    return logps, -(all_logps.exp() * finite).sum(-1)
