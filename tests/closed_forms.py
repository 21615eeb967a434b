"""The policy losses and their gradients one token at a time, derived by hand from the papers' formulas, in Python's own floats.

Nothing here is differentiated by a machine: where a loss depends on a log-prob through a ratio, the chain rule is written out.
"""

import functools
import math

import torch

B, T, L_MAX = 6, 9, 12
CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
MASKS = (
    ("holes", False),
    ("holes", True),
    ("empty", False),
    ("full", False),
    ("full", True),
)  # and whether the policy is still the old one


def case(mask_kind="holes", on_policy=False, spread=0.3):
    """A batch in float64: masks with a prompt, a hole (tool output), padding and an empty row; advantages of both signs and 0."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda scale: scale * torch.randn(B, T, generator=generator, dtype=torch.float64)
    old = -1 - draw(0.5).abs()
    new = old.clone() if on_policy else old + draw(spread)
    mask = (
        torch.ones(B, T, dtype=torch.bool)
        if mask_kind != "empty"
        else torch.zeros(B, T, dtype=torch.bool)
    )
    if mask_kind == "holes":
        mask[:, :2], mask[1, 4:6], mask[2, 6:], mask[5] = False, False, False, False
    return {
        "new": new,
        "old": old,
        "ref": old + draw(0.2),
        "mask": mask,
        "A": torch.tensor([1.0, -1.0, 0.5, -0.5, 0.0, -2.0], dtype=torch.float64),
        "weights": draw(0.3).exp(),
        "entropy": draw(1.0).abs(),
    }


def by_hand(
    data,
    *,
    loss_type,
    ratio_level="token",
    epsilon=0.2,
    epsilon_high=None,
    delta=None,
    beta=0.0,
    kl="k3",
    num_active_tokens=None,
    num_rows=None,
    entropy_coef=0.0,
    weighted=False,
):
    """(loss, d loss / d logps (B, T), d loss / d entropy (B, T))."""
    gradient, per_entropy = (
        torch.zeros(B, T, dtype=torch.float64),
        torch.zeros(B, T, dtype=torch.float64),
    )
    mask, loss, high = data["mask"], 0.0, epsilon if epsilon_high is None else epsilon_high
    active = max(int(mask.sum()), 1)
    step_tokens = num_active_tokens if num_active_tokens and loss_type != "bnpo" else active
    for i in range(B):
        tokens = mask[i].nonzero()[:, 0].tolist()
        n, rows = max(len(tokens), 1), num_rows or B
        share = {
            "grpo": 1 / (rows * n),
            "sapo": 1 / (rows * n),
            "gmpo": 1 / (rows * n),
            "dr_grpo": 1 / (rows * L_MAX),
            "luspo": 1 / rows,
        }.get(loss_type, 1 / step_tokens)
        x = {t: (data["new"][i, t] - data["old"][i, t]).item() for t in tokens}  # log-ratios
        weight = {t: data["weights"][i, t].item() if weighted else 1.0 for t in tokens}
        for t in tokens:
            a = (data["A"][i] if data["A"].dim() == 1 else data["A"][i, t]).item()
            logp = data["new"][i, t].item()
            ratio = math.exp(x[t] if ratio_level == "token" else sum(x.values()) / n)
            value, d_ratio, d_logp, elsewhere = policy_term(
                loss_type, a, logp, ratio, x, weight, epsilon, high, delta
            )
            w = 1.0 if loss_type == "vespo" else weight[t]
            value, d_ratio, d_logp, elsewhere = (
                value * w,
                d_ratio * w,
                d_logp * w,
                {s: g * w for s, g in elsewhere.items()},
            )
            if beta:
                d = (data["ref"][i, t] - data["new"][i, t]).item()
                k3 = math.exp(d) - d - 1
                k, by_logp, by_ratio = {
                    "k1": (-d, 1.0, 0.0),
                    "k2": (d * d / 2, -d, 0.0),
                    "k3": (k3, 1 - math.exp(d), 0.0),
                    "k3_weighted": (ratio * k3, ratio * (1 - math.exp(d)), k3),
                }[kl]
                value, d_logp, d_ratio = (
                    value + beta * k,
                    d_logp + beta * by_logp,
                    d_ratio + beta * by_ratio,
                )
            loss += share * value
            gradient[i, t] += share * d_logp
            for s, g in elsewhere.items():
                gradient[i, s] += share * g
            for s in (
                [t] if ratio_level == "token" else tokens
            ):  # d ratio / d logp is the ratio itself, or its n-th part in every token of the row
                gradient[i, s] += share * d_ratio * ratio / (1 if ratio_level == "token" else n)
            if entropy_coef:
                loss -= entropy_coef * data["entropy"][i, t].item() / step_tokens
                per_entropy[i, t] -= entropy_coef / step_tokens
    return loss, gradient, per_entropy


@functools.cache
def solved(mask_kind, on_policy, settings):
    """by_hand of a case, once for all variants of losses.py that are held against it."""
    return by_hand(case(mask_kind, on_policy), **dict(settings))


def policy_term(loss_type, a, logp, ratio, x, weight, low, high, delta):
    """(value, its derivative by the ratio, by this token's log-prob, by {token: its log-prob}) of one token's policy loss."""
    if loss_type in CLIPPED:
        delta = math.inf if delta is None else delta
        value = -min(min(ratio, delta) * a, min(max(ratio, 1 - low), 1 + high) * a)
        stopped = (
            ratio > min(1 + high, delta)
            if a > 0
            else ratio < 1 - low or ratio > max(1 + high, delta)
        )
        return value, 0.0 if stopped else -a, 0.0, {}
    if loss_type == "cispo":
        return -min(ratio, high) * a * logp, 0.0, -min(ratio, high) * a, {}
    if loss_type == "sapo":
        tau = 1.0 if a > 0 else 1.05
        gate = 1 / (1 + math.exp(-tau * (ratio - 1)))
        return -a * gate * 4 / tau, -a * 4 * gate * (1 - gate), 0.0, {}
    if loss_type == "vespo":
        k, c = (2, 3) if a >= 0 else (3, 2)
        log_w = sum(x[s] + math.log(weight[s]) for s in x)
        phi = math.exp(c + k * log_w - c * math.exp(log_w))
        return -phi * a * logp, 0.0, -phi * a, {}
    clipped = {s: min(v, high) if a > 0 else max(v, -low) for s, v in x.items()}
    mean = math.exp(sum(clipped.values()) / len(x))
    return -a * mean, 0.0, 0.0, {s: -a * mean / len(x) for s in x if clipped[s] == x[s]}


def matrix(quick=False):
    """(mask kind, on-policy, settings of policy_loss) over everything that the losses are told."""
    for loss_type in (*CLIPPED, "cispo", "sapo", "gmpo", "vespo"):
        for level in ("token", "sequence"):
            for low, high in ((0.2, 0.28),) if quick else ((0.2, None), (0.2, 0.28), (0.05, 0.1)):
                high = 1.1 if loss_type == "cispo" and high else high
                for delta in (
                    (None, 1.35)
                    if quick
                    else (None, 1.35, 1.15)
                    if loss_type in CLIPPED
                    else (None,)
                ):
                    distances = (
                        ("k1", "k2", "k3", "k3_weighted")
                        if quick or low == 0.2 and high and delta is None
                        else ("k3",)
                    )
                    for beta, kl in ((0.0, "k3"), *((0.1, kl) for kl in distances)):
                        for mask_kind, on_policy in MASKS[:3] if quick else MASKS:
                            yield (
                                mask_kind,
                                on_policy,
                                dict(
                                    loss_type=loss_type,
                                    ratio_level=level,
                                    epsilon=low,
                                    epsilon_high=high,
                                    delta=delta,
                                    beta=beta,
                                    kl=kl,
                                ),
                            )


def check_case(
    losses, mask_kind, on_policy, settings, weighted=False, entropy_coef=0.0, nonsense=None, **step
):
    """Assert that losses.policy_loss gives the value and the gradients that were derived by hand, to 1e-9, and moves nothing else.

    On-policy the old log-probs are the new ones themselves, the same tensor, as in a trainer that skips the second forward pass.
    `nonsense` is written wherever the mask is not set.
    """
    data = case(mask_kind, on_policy)
    asked = settings | step | dict(weighted=weighted, entropy_coef=entropy_coef)
    expected, gradient, per_entropy = solved(mask_kind, on_policy, tuple(sorted(asked.items())))
    given = {
        name: x
        if nonsense is None or x.dim() == 1 or name == "mask"
        else x.masked_fill(~data["mask"], nonsense)
        for name, x in data.items()
    }
    new, ref, weights, entropy = (
        given[name].clone().requires_grad_() for name in ("new", "ref", "weights", "entropy")
    )
    loss, metrics = losses.policy_loss(
        new,
        new if on_policy else given["old"],
        given["A"],
        data["mask"],
        **settings,
        ref_logps=ref,
        max_completion_length=L_MAX,
        importance_weights=weights if weighted else None,
        entropy=entropy,
        entropy_coef=entropy_coef,
        **step,
    )
    loss.backward()
    assert abs(loss.item() - expected) <= 1e-9, f"loss {loss.item()} is not {expected}"
    assert (new.grad - gradient).abs().max() <= 1e-9, "gradient"
    assert ref.grad is None and weights.grad is None, (
        "the reference or the importance weights got a gradient"
    )
    if entropy_coef:
        assert (entropy.grad - per_entropy).abs().max() <= 1e-9, "gradient of the entropy"
    return loss, metrics


def check_everything(losses):
    """Every setting once, quickly: what the wrong variants of losses.py are tried on."""
    for mask_kind, on_policy, settings in matrix(quick=True):
        check_case(losses, mask_kind, on_policy, settings)
        if settings["kl"] != "k2":
            check_case(
                losses,
                mask_kind,
                on_policy,
                settings,
                weighted=True,
                entropy_coef=0.05,
                nonsense=float("nan"),
                num_active_tokens=50,
                num_rows=8,
            )
