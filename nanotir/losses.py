"""From rewards to a loss: group advantages, ratios, clipping, KL, aggregation.

Everything here is a function of tensors, (B, T) or (B,), and one `mask` (B, T) that is True exactly on ids the model chose. The same
mask cuts prompt, tool output and padding out of the loss, the ratio, the KL term, every metric, and the denominator.
"""

from __future__ import annotations

import math

import torch

from nanotir.kernels import fused_token_losses
from nanotir.logps import token_logps

LOG_LIMIT = 20.0  # log-ratios are kept within +-20: e^20 is no ratio to learn from, and e^89 would be inf, and inf * 0 nan
CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")  # one surrogate, five ways of adding it up
LOSS_TYPES = (*CLIPPED, "cispo", "sapo", "gmpo", "vespo")
RATIO_LEVELS = ("token", "sequence")
KL_ESTIMATORS = ("k1", "k2", "k3", "k3_weighted")
SCALES = ("group", "batch", "none", "whiten")
BASELINES = ("mean", "leave_one_out")


def group_advantages(
    rewards,
    group_size: int,
    scale: str = "group",
    baseline: str = "mean",
    eps: float = 1e-4,
    num_tokens=None,
):
    """How much better each of `group_size` answers to one prompt did than its siblings: no critic needed. rewards (B,) -> (B,).

    GRPO (Shao et al. 2024, eq. 3): A_i = (r_i - mean(r)) / (std(r) + eps), std with ddof 1. scale="batch" divides by the whole batch's std,
    "none" does not divide (Dr. GRPO). baseline="leave_one_out" subtracts the mean of the others (RLOO). A constant group gives exactly 0.
    scale="whiten" is REINFORCE++ with a baseline (Hu 2025; CIR uses it): what is left is brought to mean 0 and variance 1 over all tokens of
    the groups that are not constant, num_tokens (B,) in each row; without num_tokens every row counts once.
    """
    one_of("scale", scale, SCALES)
    one_of("baseline", baseline, BASELINES)
    rewards = torch.as_tensor(rewards)
    rewards = rewards if rewards.is_floating_point() else rewards.float()
    if not len(rewards):
        return rewards
    if len(rewards) % group_size:
        raise ValueError(f"{len(rewards)} rewards do not divide into groups of {group_size}")
    groups = rewards.view(len(rewards) // group_size, group_size)  # (prompts, G)
    constant = (groups == groups[:, :1]).all(1, keepdim=True)  # (prompts, 1)
    centred = torch.where(
        constant, 0.0, groups - groups.mean(1, keepdim=True)
    )  # a mean of equals may be off by an ulp
    if baseline == "leave_one_out":
        centred = centred * group_size / max(group_size - 1, 1)
    if scale == "group" and group_size > 1:
        centred = centred / (groups.std(1, keepdim=True) + eps)
    elif scale == "batch" and len(rewards) > 1:
        centred = centred / (rewards.std() + eps)
    elif scale == "whiten":
        weights = torch.ones_like(rewards) if num_tokens is None else num_tokens
        return whiten(
            centred.reshape(-1), torch.where(constant, 0, weights.view_as(groups)).reshape(-1)
        )
    return centred.reshape(-1)


def whiten(advantages, num_tokens):
    """Mean 0 and variance 1 over all tokens, when row i's advantage stands at num_tokens[i] of them; 0 in rows without any. (B,) -> (B,)."""
    n = num_tokens.sum()
    centred = advantages - (num_tokens * advantages).sum() / n.clamp(min=1)
    variance = (num_tokens * centred.square()).sum() / (n - 1).clamp(min=1)
    return torch.where(num_tokens > 0, centred * torch.rsqrt(variance + 1e-8), 0.0)


def policy_loss(
    logps,
    old_logps,
    advantages,
    mask,
    *,
    loss_type: str = "dapo",
    ratio_level: str = "token",
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    beta: float = 0.0,
    ref_logps=None,
    kl: str = "k3",
    max_completion_length: int | None = None,
    num_active_tokens=None,
    num_rows=None,
    entropy=None,
    entropy_coef: float = 0.0,
    importance_weights=None,
):
    """One policy update's loss, to be minimised, and what there is to see in it: (loss, metrics: dict of floats).

        ratio = exp(logps - old_logps)
        loss = aggregate(importance_weights * surrogate(ratio, A) + beta * kl) - entropy_coef * mean(entropy)

    logps, old_logps, ref_logps, entropy, importance_weights, mask (B, T); advantages (B,) or (B, T).
    ratio_level="sequence" is GSPO (Zheng et al. 2025, eq. 7): one ratio a row, the geometric mean of its tokens' ratios.
    `surrogate` and `kl_estimate` say what loss_type and kl mean, `aggregate` what num_active_tokens, num_rows (those of the whole optimiser
    step, where this batch is a part of it) and max_completion_length divide. epsilon_high is epsilon where it is None; beware: in cispo
    epsilon_high is the highest ratio itself (5.0, say), as in TRL. importance_weights correct for a sampler that is not quite the old policy;
    the KL term is not weighted. ValueError for an unknown name or a missing ref_logps, entropy or max_completion_length.
    """
    one_of("loss_type", loss_type, LOSS_TYPES)
    one_of("ratio_level", ratio_level, RATIO_LEVELS)
    one_of("kl", kl, KL_ESTIMATORS)
    check_needs(loss_type, beta, ref_logps, max_completion_length, entropy_coef, entropy)
    mask = mask.bool()
    bounds = epsilon, epsilon if epsilon_high is None else epsilon_high, delta
    A = masked(
        (advantages[:, None] if advantages.dim() == 1 else advantages).expand_as(logps), mask
    )  # (B, T)
    logps, weights = (
        masked(logps, mask),
        None if importance_weights is None else torch.where(mask, importance_weights.detach(), 1.0),
    )

    log_ratio = masked(logps - old_logps.detach(), mask).clamp(-LOG_LIMIT, LOG_LIMIT)  # (B, T)
    ratio = (
        log_ratio.exp()
        if ratio_level == "token"
        else row_mean(log_ratio, mask).exp().expand_as(logps)
    )
    per_token = surrogate(loss_type, logps, log_ratio, ratio, A, mask, bounds, weights)
    distance = None
    if beta:
        distance = kl_estimate(kl, masked(ref_logps.detach() - logps, mask), ratio)
        per_token = per_token + beta * distance
    loss = aggregate(
        masked(per_token, mask), mask, loss_type, max_completion_length, num_active_tokens, num_rows
    )
    if entropy_coef:
        loss = loss - entropy_coef * mean_over(
            masked(entropy, mask), tokens_of(mask, loss_type, num_active_tokens)
        )
    return loss, metrics(loss_type, log_ratio, ratio, A, mask, bounds, distance, entropy)


def check_needs(
    loss_type: str,
    beta: float,
    ref_logps,
    max_completion_length,
    entropy_coef: float = 0.0,
    entropy=None,
):
    if beta and ref_logps is None:
        raise ValueError("beta > 0 needs ref_logps")
    if entropy_coef and entropy is None:
        raise ValueError("entropy_coef > 0 needs entropy")
    if loss_type == "dr_grpo" and max_completion_length is None:
        raise ValueError("dr_grpo needs max_completion_length")


FUSED = {
    "ratio_level": "token",
    "kl": "k3",
    "entropy": None,
    "entropy_coef": 0.0,
    "importance_weights": None,
}  # all that the kernel can do


def fused_policy_loss(
    logits,
    ids,
    old_logps,
    advantages,
    mask,
    *,
    temperature: float = 1.0,
    loss_type: str = "dapo",
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    beta: float = 0.0,
    ref_logps=None,
    max_completion_length: int | None = None,
    num_active_tokens=None,
    num_rows=None,
    **others,
):
    """policy_loss from logits, (B, T, V) or those of the active tokens alone (N, V): on a GPU by the Triton kernel, which overwrites the
    logits by their gradient; elsewhere by its twin in PyTorch. The rest is (B, T). ValueError for an option that the kernel does not cover."""
    check_fused(loss_type, **others)
    check_needs(loss_type, beta, ref_logps, max_completion_length)
    mask = mask.bool()
    pick = (lambda x: x.reshape(-1)) if logits.dim() == 3 else (lambda x: x[mask])
    spread = (
        (lambda x: x.view(mask.shape))
        if logits.dim() == 3
        else (lambda x: x.new_zeros(mask.shape).masked_scatter(mask, x))
    )
    logits, ids = logits.reshape(-1, logits.shape[-1]), pick(ids)  # (N, V), (N,)
    options = dict(epsilon=epsilon, epsilon_high=epsilon_high, delta=delta, beta=beta)
    sums = dict(
        max_completion_length=max_completion_length,
        num_active_tokens=num_active_tokens,
        num_rows=num_rows,
    )
    if not kernel_runs_on(logits.device):
        return policy_loss(
            spread(token_logps(logits, ids, temperature)),
            old_logps,
            advantages,
            mask,
            loss_type=loss_type,
            ref_logps=ref_logps,
            **options,
            **sums,
        )
    options["epsilon_high"] = epsilon if epsilon_high is None else epsilon_high
    A = masked(
        (advantages[:, None] if advantages.dim() == 1 else advantages).expand_as(old_logps), mask
    )
    old, A_, ref = (None if x is None else pick(masked(x, mask)) for x in (old_logps, A, ref_logps))
    per_token, logps = map(
        spread,
        fused_token_losses(
            logits, ids, old, A_, pick(mask), ref, temperature=temperature, **options
        ),
    )
    loss = aggregate(per_token, mask, loss_type, **sums)

    log_ratio = masked(logps - old_logps, mask).clamp(-LOG_LIMIT, LOG_LIMIT)
    kl = kl_estimate("k3", masked(ref_logps - logps, mask), None) if beta else None
    return loss, metrics(
        loss_type,
        log_ratio,
        log_ratio.exp(),
        A,
        mask,
        (epsilon, options["epsilon_high"], delta),
        kl,
    )


def check_fused(loss_type: str, **others):
    """ValueError for an option that the fused kernel does not cover: it never quietly does something else."""
    if loss_type not in CLIPPED:
        raise ValueError(
            f"the fused loss does not cover loss_type '{loss_type}'; it does {', '.join(CLIPPED)}"
        )
    for name, value in others.items():
        if name not in FUSED:
            raise TypeError(f"fused_policy_loss has no option '{name}'")
        if value is not FUSED[name] and value != FUSED[name]:
            raise ValueError(f"the fused loss covers {name} {FUSED[name]} only")


def kernel_runs_on(device) -> bool:
    return device.type == "cuda"


def surrogate(loss_type: str, logps, log_ratio, ratio, A, mask, bounds, weights=None):
    """The policy term of every token (B, T), to be minimised. `bounds` are (epsilon, epsilon_high, delta).

        clipped  -min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon_high) A)          PPO (Schulman et al. 2017, eq. 7), clip-higher (DAPO, eq. 10);
                 with delta the first ratio is at most delta: a bound for A < 0 too (dual clip, Ye et al. 2020; INTELLECT-2)
        cispo    -sg[min(ratio, epsilon_high)] A logps                                MiniMax-M1 (2025): no token's gradient is ever stopped
        sapo     -4/tau sigmoid(tau (ratio - 1)) A                                    Gao et al. 2025: a soft gate, tau 1 for A > 0, else 1.05
        gmpo     -exp(mean over the row of the clipped log-ratio) A                   Zhao et al. 2025: bounds are -epsilon, epsilon_high in log space
        vespo    -sg[phi(w)] A logps                                                  phi: see vespo_weight
    Only vespo takes the importance weights into its own weight; everything else is multiplied by them. gmpo's and vespo's weights are a
    row's whatever ratio_level says; delta is a bound of the clipped losses alone.
    """
    low, high, delta = bounds
    if loss_type == "vespo":
        return -vespo_weight(log_ratio, A, mask, weights) * A * logps
    if loss_type == "cispo":
        loss = -ratio.detach().clamp(max=high) * A * logps
    elif loss_type == "sapo":
        tau = torch.full_like(A, 1.05).masked_fill_(A > 0, 1.0)
        loss = -A * torch.sigmoid(tau * (ratio - 1)) * 4 / tau
    elif loss_type == "gmpo":
        clipped = log_ratio.clamp(-low, high)
        clipped = torch.where(
            A > 0, torch.minimum(log_ratio, clipped), torch.maximum(log_ratio, clipped)
        )
        loss = -row_mean(clipped, mask).exp() * A
    else:
        bounded = ratio if delta is None else ratio.clamp(max=delta)
        loss = -torch.minimum(bounded * A, ratio.clamp(1 - low, 1 + high) * A)
    return loss if weights is None else loss * weights


@torch.no_grad()
def vespo_weight(log_ratio, A, mask, weights=None):
    """phi(w) = e^c w^k e^(-c w), which is 1 at w = 1, of a row's whole ratio w = prod ratio: (k, c) = (2, 3) for A >= 0, else (3, 2). (B, T).

    VESPO (arXiv 2602.10693): a smooth stand-in for clipping that bounds the variance of whole rows' ratios. In log space.
    """
    limits = math.log(1e-8), LOG_LIMIT
    log_w = log_ratio if weights is None else log_ratio + weights.log().clamp(*limits)
    log_w = masked(log_w, mask).sum(1, keepdim=True).clamp(*limits)  # (B, 1)
    k, c = torch.where(A >= 0, 2.0, 3.0), torch.where(A >= 0, 3.0, 2.0)  # (B, T)
    return (c + k * log_w - c * log_w.exp()).exp()


def kl_estimate(kl: str, d, ratio):
    """An estimate of KL(policy || reference) for every token (B, T) from d = ref_logps - logps (Schulman 2020).

    k1 = -d (its gradient is 0 on average: to be watched, not minimised), k2 = d^2 / 2, k3 = e^d - d - 1 (never negative), and k3_weighted =
    ratio * k3, differentiated through both: unbiased in value and in gradient also off-policy (DeepSeek-V3.2, eq. 7).
    """
    d = d.clamp(-LOG_LIMIT, LOG_LIMIT)
    if kl == "k1":
        return -d
    if kl == "k2":
        return d.square() / 2
    k3 = d.exp() - d - 1
    return k3 * ratio if kl == "k3_weighted" else k3


def masked(x, mask):
    """x where the mask is set, else 0; by `where`, since nan * 0 would stay nan."""
    return torch.where(mask, x, 0.0)


def row_mean(x, mask):
    """Means over each row's active tokens (B, 1); 0 for a row that has none."""
    return masked(x, mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)


def mean_over(x, n):
    """The sum of x (already masked) over n tokens, 0 where there are none."""
    return x.sum() / max(float(n), 1.0)


def aggregate(
    per_token,
    mask,
    loss_type: str,
    max_completion_length=None,
    num_active_tokens=None,
    num_rows=None,
):
    """One number from the tokens' losses (B, T), already masked. What it is divided by is all that tells these apart:

        grpo, sapo, gmpo    each row's own tokens, then num_rows: long answers count no more than short ones
        dapo, cispo, vespo  num_active_tokens: every token counts alike
        bnpo                this batch's own tokens, so that micro-batches do not add up
        dr_grpo             num_rows * max_completion_length: a constant
        luspo               num_rows: a row counts by its length

    Where num_active_tokens and num_rows are not given, this batch is the whole step. A row without tokens counts as a row, of loss 0.

    >>> mask = torch.tensor([[1, 1, 1, 0], [0, 1, 0, 0]]).bool()
    >>> per_token = torch.tensor([[3.0, 6.0, 3.0, 0.0], [0.0, 8.0, 0.0, 0.0]])
    >>> aggregate(per_token, mask, "grpo").item()  # ((3 + 6 + 3) / 3 + 8 / 1) / 2 rows
    6.0
    >>> aggregate(per_token, mask, "dapo").item()  # (3 + 6 + 3 + 8) / 4 tokens
    5.0
    >>> aggregate(per_token, mask, "dapo", num_active_tokens=10).item()  # 20 / 10: six more tokens are in other micro-batches
    2.0
    >>> aggregate(per_token, mask, "bnpo", num_active_tokens=10).item()  # 20 / 4, whatever the other micro-batches hold
    5.0
    >>> aggregate(per_token, mask, "dr_grpo", max_completion_length=5).item()  # 20 / (2 rows * 5)
    2.0
    >>> aggregate(per_token, mask, "luspo").item()  # 20 / 2 rows
    10.0
    """
    rows = max(len(mask) if num_rows is None else num_rows, 1)
    if loss_type in ("grpo", "sapo", "gmpo"):
        return row_mean(per_token, mask).sum() / rows
    if loss_type == "dr_grpo":
        return per_token.sum() / (rows * max_completion_length)
    if loss_type == "luspo":
        return per_token.sum() / rows
    return mean_over(per_token, tokens_of(mask, loss_type, num_active_tokens))


def tokens_of(mask, loss_type: str, num_active_tokens=None):
    return mask.sum() if loss_type == "bnpo" or num_active_tokens is None else num_active_tokens


@torch.no_grad()
def metrics(
    loss_type: str, log_ratio, ratio, A, mask, bounds, kl=None, entropy=None
) -> dict[str, float]:
    """What there is to see in a policy update, means over active tokens but for the last two; the README's table explains each."""
    low_hit, high_hit = bounds_hit(loss_type, log_ratio, ratio, A, bounds)
    means = {
        "clip_low": low_hit,
        "clip_high": high_hit,
        "ratio_mean": ratio,
        "ratio_variance": (ratio - 1).square(),
        "approx_kl": ratio - 1 - ratio.log(),  # k3 of the old policy against the new one
        "kl": torch.zeros_like(ratio) if kl is None else kl,
        "zero_advantage": A == 0,
    } | ({} if entropy is None else {"entropy": entropy})
    n = mask.sum()
    numbers = [masked(x.float(), mask).sum() / n.clamp(min=1) for x in means.values()] + [
        masked(ratio, mask).amax() if mask.numel() else n,
        n,
    ]
    *values, ratio_max, active_tokens = torch.stack(
        [number.float() for number in numbers]
    ).tolist()  # a GPU is waited for once
    return dict(zip(means, values), ratio_max=ratio_max, active_tokens=int(active_tokens))


def bounds_hit(loss_type: str, log_ratio, ratio, A, bounds):
    """On which tokens the lower and the upper bound stop the gradient (cispo: cap its weight). Two of (B, T); sapo and vespo have none."""
    low, high, delta = bounds
    nowhere = torch.zeros_like(A, dtype=torch.bool)
    delta = float("inf") if delta is None else delta
    if loss_type == "cispo":
        return nowhere, (ratio > high) & (A != 0)
    if loss_type == "gmpo":
        return (log_ratio < -low) & (A < 0), (log_ratio > high) & (A > 0)
    if loss_type not in CLIPPED:
        return nowhere, nowhere
    return (ratio < 1 - low) & (A < 0), (A > 0) & (ratio > min(1 + high, delta)) | (A < 0) & (
        ratio > max(1 + high, delta)
    )


def combine_metrics(parts: list[dict]) -> dict[str, float]:
    """The metrics of several batches as those of one."""
    total = sum(part["active_tokens"] for part in parts)
    means = [name for name in parts[0] if name not in ("ratio_max", "active_tokens")]
    return {
        name: sum(part[name] * part["active_tokens"] for part in parts) / max(total, 1)
        for name in means
    } | {
        "ratio_max": max(part["ratio_max"] for part in parts),
        "active_tokens": total,
    }


def one_of(what: str, name: str, names):
    if name not in names:
        raise ValueError(f"no {what} '{name}'; there are {', '.join(names)}")
