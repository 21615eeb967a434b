"""Checks of a losses.py: what the tests hold the real one and its wrong variants against."""

from __future__ import annotations

import random

import torch
from closed_forms import CLIPPED, L_MAX, LOSS_TYPES, Settings, case, fill_masked, matrix, solved
from torch.nn.functional import pad

NAN = float("nan")


def run(losses, data: dict, rows=slice(None), width=0, **options):
    """(loss, metrics, gradient) of some rows, with `width` more columns of padding."""
    at = {}
    for name, x in data.items():
        at[name] = pad(x[rows], (0, width)) if x.dim() == 2 else x[rows]
    new = at["new"].clone().requires_grad_()
    given = {"ref_logps": at["ref"], "entropy": at["entropy"], "importance_weights": at["weights"]}
    old, A, mask = at["old"], at["A"], at["mask"]
    given["max_completion_length"] = L_MAX
    loss, metrics = losses.policy_loss(new, old, A, mask, **given | options)
    loss.backward()
    return loss.detach(), metrics, new.grad


def check_case(
    losses, mask_kind, on_policy, options, weighted=False, entropy_coef=0.0, nonsense=None, **step
):
    """Assert that losses.policy_loss gives the value and gradients derived by hand, to 1e-9.

    On-policy the old log-probs are the new ones, the same tensor, as in a trainer that skips the
    second forward pass. `nonsense` is written wherever the mask is not set.
    """
    asked = options | step | {"weighted": weighted, "entropy_coef": entropy_coef}
    expected, gradient, per_entropy = solved(mask_kind, on_policy, Settings(**asked))

    given = case(mask_kind, on_policy)
    if nonsense is not None:
        given = fill_masked(given, nonsense)
    leaves = ("new", "ref", "weights", "entropy")
    new, ref, weights, entropy = [given[name].clone().requires_grad_() for name in leaves]
    loss, metrics = losses.policy_loss(
        new,
        new if on_policy else given["old"],
        given["A"],
        given["mask"],
        ref_logps=ref,
        max_completion_length=L_MAX,
        importance_weights=weights if weighted else None,
        entropy=entropy,
        entropy_coef=entropy_coef,
        **options,
        **step,
    )
    loss.backward()
    assert abs(loss.item() - expected) <= 1e-9, f"loss {loss.item()} is not {expected}"
    assert (new.grad - gradient).abs().max() <= 1e-9, "gradient"
    assert ref.grad is None and weights.grad is None, "gradient of the reference or the weights"
    if entropy_coef:
        assert (entropy.grad - per_entropy).abs().max() <= 1e-9, "gradient of the entropy"
    return loss, metrics


def check_everything(losses):
    """Every setting once, quickly: what the wrong variants of losses.py are tried on."""
    step = {"num_active_tokens": 50, "num_rows": 8}
    extra = {"weighted": True, "entropy_coef": 0.05, "nonsense": NAN}
    # Neighbours are alike, so a wrong variant is caught sooner in a shuffled order.
    cases = list(matrix(quick=True))
    random.Random(0).shuffle(cases)
    for mask_kind, on_policy, options in cases:
        check_case(losses, mask_kind, on_policy, options)
        if options["kl"] != "k2":
            check_case(losses, mask_kind, on_policy, options, **extra, **step)


def check_stopped(losses):
    """An id that the metrics call stopped has no gradient, and every other one has."""
    data = case()
    A = torch.where(data["mask"], data["A"][:, None], 0.0)
    given = (data["new"], data["old"], data["A"], data["mask"], None)
    for loss_type in (*CLIPPED, "gmpo"):
        surrogate, _ = losses.LOSSES[loss_type]
        for delta in (None, 1.35, 1.15):
            settings = {"loss_type": loss_type, "delta": delta, "max_completion_length": L_MAX}
            options = losses.LossOptions(**settings)
            _, low, high = surrogate(losses.loss_terms(*given, options), options)
            _, metrics, gradient = run(losses, data, **settings)
            assert torch.equal((gradient == 0) & (A != 0), low | high), "stopped ids"
            assert low.any() and high.any() and not (low & high).any(), "which bound"
            assert not low[A >= 0].any(), "the lower bound stops ids with A < 0"
            count = data["mask"].sum()
            assert abs(metrics["clip_low"] - low.sum() / count) < 1e-6
            assert abs(metrics["clip_high"] - high.sum() / count) < 1e-6


def check_far(losses):
    """Loss, gradient and metrics are finite however far the policy has moved, in fp32."""
    data = {name: x.float() if x.is_floating_point() else x for name, x in case().items()}
    for loss_type in LOSS_TYPES:
        for kl in ("k1", "k2", "k3", "k3_weighted"):
            for shift in (-1000.0, 1000.0):
                moved = data | {"new": data["old"] + shift}
                options = {"loss_type": loss_type, "kl": kl, "beta": 0.1, "entropy_coef": 0.05}
                loss, metrics, gradient = run(losses, moved, **options)
                assert loss.isfinite() and gradient.isfinite().all(), "not finite"
                assert all(abs(value) < float("inf") for value in metrics.values()), "metrics"
