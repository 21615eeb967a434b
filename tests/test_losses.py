import doctest
import types
from pathlib import Path

import pytest
import torch
from closed_forms import L_MAX, B, T, case, check_case, check_everything, matrix

from nanotir import losses
from nanotir.logps import token_logps
from nanotir.losses import (
    CLIPPED,
    LOSS_TYPES,
    combine_metrics,
    fused_policy_loss,
    group_advantages,
    policy_loss,
)

assert_close = lambda a, b, tolerance=1e-9: torch.testing.assert_close(
    a, b, atol=tolerance, rtol=tolerance
)
EVERY = dict(
    max_completion_length=L_MAX, beta=0.1, entropy_coef=0.05
)  # every term of the loss at once


def run(data, rows=slice(None), width=0, **settings):
    """(loss, metrics, gradient) of some rows, with `width` more columns of padding."""
    pad = lambda x: torch.nn.functional.pad(x[rows], (0, width)) if x.dim() == 2 else x[rows]
    at = {name: pad(x) for name, x in data.items()}
    new = at["new"].clone().requires_grad_()
    given = dict(ref_logps=at["ref"], entropy=at["entropy"], importance_weights=at["weights"])
    loss, metrics = policy_loss(new, at["old"], at["A"], at["mask"], **given, **settings)
    loss.backward()
    return loss.detach(), metrics, new.grad


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_and_gradient_equal_those_derived_by_hand(loss_type):
    for mask_kind, on_policy, settings in matrix():
        if settings["loss_type"] == loss_type:
            check_case(losses, mask_kind, on_policy, settings)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_entropy_bonus_and_importance_weights_equal_those_derived_by_hand(loss_type):
    for mask_kind, on_policy, settings in matrix(quick=True):
        if settings["loss_type"] == loss_type:
            check_case(
                losses,
                mask_kind,
                on_policy,
                settings,
                weighted=True,
                entropy_coef=0.05,
                num_active_tokens=50,
                num_rows=8,
            )


@pytest.mark.parametrize("loss_type", [*CLIPPED, "sapo", "gmpo"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("kl", ["k1", "k2", "k3", "k3_weighted"])
def test_the_gradient_is_that_of_the_value_by_finite_differences(loss_type, level, kl):
    """cispo and vespo hold a weight constant on purpose, so their gradient is not their value's."""
    data = case()
    value = lambda new: policy_loss(
        new,
        data["old"],
        data["A"],
        data["mask"],
        loss_type=loss_type,
        ratio_level=level,
        kl=kl,
        delta=1.35,
        ref_logps=data["ref"],
        max_completion_length=L_MAX,
        beta=0.1,
    )[0]
    assert torch.autograd.gradcheck(value, data["new"].clone().requires_grad_())


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_on_policy_the_gradient_is_reinforces(loss_type, level):
    """REINFORCE with each loss's own weights; gmpo and sequence ratios spread a row's over its tokens, which is the same for one advantage a row."""
    data = case(on_policy=True)
    n = data["mask"].sum(1, keepdim=True).clamp(min=1).double()
    share = {"dr_grpo": 1 / (B * L_MAX), "luspo": 1 / B} | dict.fromkeys(
        ("grpo", "sapo", "gmpo"), 1 / (B * n)
    )
    new = data["new"].clone().requires_grad_()
    settings = dict(
        loss_type=loss_type,
        ratio_level=level,
        max_completion_length=L_MAX,
        epsilon_high=5.0 if loss_type == "cispo" else None,
    )
    policy_loss(new, new, data["A"], data["mask"], **settings)[0].backward()
    assert_close(
        new.grad,
        -(data["A"][:, None] * data["mask"] * share.get(loss_type, 1 / int(data["mask"].sum()))),
    )


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_what_is_masked_touches_nothing(loss_type, level):
    data = case()
    settings = dict(loss_type=loss_type, ratio_level=level, **EVERY)
    loss, metrics, gradient = run(data, **settings)
    assert (gradient[~data["mask"]] == 0).all() and (gradient[data["mask"]] != 0).any()
    for nonsense in (7.0, float("nan"), float("inf"), float("-inf")):
        filled = {
            name: x.masked_fill(~data["mask"], nonsense) if x.dim() == 2 and name != "mask" else x
            for name, x in data.items()
        }
        other, others, again = run(filled, **settings)
        assert other == loss and others == metrics and torch.equal(again, gradient)


@pytest.mark.parametrize("loss_type", [name for name in LOSS_TYPES if name != "bnpo"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_micro_batches_and_processes_add_up_to_one_batch(loss_type, level):
    data = case()
    settings = dict(
        loss_type=loss_type,
        ratio_level=level,
        num_active_tokens=data["mask"].sum(),
        num_rows=B,
        **EVERY,
    )
    whole, _, gradient = run(data, **settings)
    for parts in (([0], [1, 2], [3, 4, 5]), ([5, 3, 1], [0, 2, 4]), ([5], [0, 1, 2, 3, 4])):
        seen = [
            run(data, rows, width, **settings) for width, rows in enumerate(parts)
        ]  # each with padding of its own
        assert_close(sum(loss for loss, *_ in seen), whole)
        again = torch.zeros(B, T, dtype=torch.float64)
        for rows, (*_, grad) in zip(parts, seen):
            again[rows] = grad[:, :T]
        assert_close(again, gradient)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_padding_changes_nothing(loss_type, level):
    data, settings = case(), dict(loss_type=loss_type, ratio_level=level, **EVERY)
    loss, metrics, gradient = run(data, **settings)
    padded, others, again = run(data, width=5, **settings)
    assert_close(padded, loss), assert_close(again[:, :T], gradient)
    assert (again[:, T:] == 0).all() and others == pytest.approx(metrics)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_an_empty_mask_gives_zero_and_finite_gradients(loss_type, level):
    loss, metrics, gradient = run(case("empty"), loss_type=loss_type, ratio_level=level, **EVERY)
    assert loss.item() == 0 and (gradient == 0).all() and metrics["active_tokens"] == 0
    assert all(value == value for value in metrics.values())


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_zero_advantages_teach_nothing_however_far_the_policy_has_moved(loss_type, level):
    data = case() | {"A": torch.zeros(B, dtype=torch.float64)}
    for shift in (0.3, 50.0, 500.0, -500.0):
        loss, metrics, gradient = run(
            data | {"new": data["old"] + shift},
            loss_type=loss_type,
            ratio_level=level,
            max_completion_length=L_MAX,
        )
        assert loss.item() == 0 and (gradient == 0).all() and metrics["zero_advantage"] == 1


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("kl", ["k1", "k2", "k3", "k3_weighted"])
def test_loss_and_gradient_stay_finite_however_far_the_policy_has_moved(loss_type, kl):
    for shift in (-1000.0, 1000.0):
        data = {name: x.float() if x.is_floating_point() else x for name, x in case().items()}
        loss, metrics, gradient = run(
            data | {"new": data["old"] + shift}, loss_type=loss_type, kl=kl, **EVERY
        )
        assert (
            loss.isfinite()
            and gradient.isfinite().all()
            and all(abs(value) < float("inf") for value in metrics.values())
        )


def test_advantages_may_differ_from_token_to_token():
    for loss_type in LOSS_TYPES:
        data, settings = case(), dict(loss_type=loss_type, max_completion_length=L_MAX)
        per_token = data["A"][:, None].expand(B, T).clone()
        assert_close(run(data | {"A": per_token}, **settings)[0], run(data, **settings)[0])
        per_token[0, 4] += 1
        assert run(data | {"A": per_token}, **settings)[0] != run(data, **settings)[0]


def test_every_per_token_advantage_reaches_its_own_token_alone():
    data = case(on_policy=True)
    per_token = torch.randn(B, T, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    new = data["new"].clone().requires_grad_()
    policy_loss(new, data["old"], per_token, data["mask"])[0].backward()
    assert_close(new.grad, -(per_token * data["mask"] / data["mask"].sum()))


def test_dapo_with_equal_bounds_and_rows_of_one_length_is_grpo():
    data = case("full")
    assert_close(run(data, loss_type="dapo", **EVERY)[2], run(data, loss_type="grpo", **EVERY)[2])


def test_the_worked_examples_of_the_docstrings_hold():
    results = doctest.testmod(losses)
    assert results.failed == 0 and results.attempted >= 8


MUTANTS = {  # wrong variants of losses.py: what is replaced, and by what
    "old log-probs not detached": ("logps - old_logps.detach()", "logps - old_logps"),
    "reference not detached": ("ref_logps.detach() - logps", "ref_logps - logps"),
    "importance weights not detached": ("importance_weights.detach()", "importance_weights"),
    "cispo's ratio not detached": ("ratio.detach().clamp(max=high)", "ratio.clamp(max=high)"),
    "the KL's weight detached": ("k3 * ratio if", "k3 * ratio.detach() if"),
    "vespo's weight not detached": ("@torch.no_grad()\ndef vespo_weight", "def vespo_weight"),
    "the larger of the two surrogates": ("-torch.minimum(bounded", "-torch.maximum(bounded"),
    "only the clipped surrogate": (
        "-torch.minimum(bounded * A, ratio.clamp(1 - low, 1 + high) * A)",
        "-ratio.clamp(1 - low, 1 + high) * A",
    ),
    "no clipping": (
        "-torch.minimum(bounded * A, ratio.clamp(1 - low, 1 + high) * A)",
        "-bounded * A",
    ),
    "the bounds swapped": ("ratio.clamp(1 - low, 1 + high)", "ratio.clamp(1 - high, 1 + low)"),
    "epsilon_high ignored": (
        "epsilon if epsilon_high is None else epsilon_high, delta",
        "epsilon, delta",
    ),
    "delta ignored": ("ratio if delta is None", "ratio if True"),
    "delta for every ratio": (
        "ratio.clamp(1 - low, 1 + high) * A)",
        "bounded.clamp(1 - low, 1 + high).clamp(max=1.0 if delta else 9.9) * A)",
    ),
    "the sign of the policy term": (
        "return loss if weights is None",
        "return -loss if weights is None",
    ),
    "the sign of the KL's difference": (
        "masked(ref_logps.detach() - logps, mask)",
        "masked(logps - ref_logps.detach(), mask)",
    ),
    "k3 without its -1": ("d.exp() - d - 1", "d.exp() - d"),
    "k2 without its half": ("d.square() / 2", "d.square()"),
    "k1 of the wrong sign": ("return -d", "return d"),
    "the KL subtracted": ("per_token + beta * distance", "per_token - beta * distance"),
    "the KL multiplied by the importance weights": (
        "per_token + beta * distance",
        "per_token + beta * distance * (1 if weights is None else weights)",
    ),
    "sequence ratios by the sum": (
        "row_mean(log_ratio, mask).exp()",
        "masked(log_ratio, mask).sum(1, keepdim=True).exp()",
    ),
    "row means over padding too": ("/ mask.sum(1, keepdim=True).clamp(min=1)", "/ mask.shape[1]"),
    "empty rows do not count": (
        "len(mask) if num_rows is None else num_rows",
        "int(mask.any(1).sum()) if num_rows is None else num_rows",
    ),
    "num_rows ignored": ("len(mask) if num_rows is None else num_rows", "len(mask)"),
    "the mean over padding too": (
        "return mask.sum() if loss_type",
        "return mask.numel() if loss_type",
    ),
    "num_active_tokens ignored": (
        'return mask.sum() if loss_type == "bnpo" or num_active_tokens is None else num_active_tokens',
        "return mask.sum()",
    ),
    "bnpo over the whole step": (
        'if loss_type == "bnpo" or num_active_tokens',
        "if num_active_tokens",
    ),
    "dr_grpo by the padded length": ("(rows * max_completion_length)", "(rows * mask.shape[1])"),
    "luspo as a mean over tokens": (
        "return per_token.sum() / rows\n",
        "return row_mean(per_token, mask).sum() / rows\n",
    ),
    "masked by multiplication": ("return torch.where(mask, x, 0.0)", "return x * mask"),
    "gmpo clipped on both sides": (
        "clipped = torch.where(A > 0, torch.minimum(log_ratio, clipped), torch.maximum(log_ratio, clipped))",
        "",
    ),
    "gmpo's bounds on the ratio": (
        "log_ratio.clamp(-low, high)",
        "log_ratio.clamp(math.log(1 - low), math.log(1 + high))",
    ),
    "sapo's temperatures swapped": ("masked_fill_(A > 0, 1.0)", "masked_fill_(A < 0, 1.0)"),
    "sapo without its scale": ("(ratio - 1)) * 4 / tau", "(ratio - 1)) * 4"),
    "vespo by the mean": (
        ".sum(1, keepdim=True).clamp(*limits)",
        ".mean(1, keepdim=True).clamp(*limits)",
    ),
    "vespo's constants swapped": (
        "torch.where(A >= 0, 2.0, 3.0), torch.where(A >= 0, 3.0, 2.0)",
        "torch.where(A >= 0, 3.0, 2.0), torch.where(A >= 0, 2.0, 3.0)",
    ),
    "vespo weighted twice": (
        "return -vespo_weight(log_ratio, A, mask, weights) * A * logps",
        "return -vespo_weight(log_ratio, A, mask, weights) * A * logps * (1 if weights is None else weights)",
    ),
    "the sign of the entropy bonus": ("loss - entropy_coef", "loss + entropy_coef"),
    "entropy of masked tokens": ("mean_over(masked(entropy, mask)", "mean_over(entropy"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_variant_is_caught(name):
    right, wrong = MUTANTS[name]
    source = Path(losses.__file__).read_text()
    assert source.count(right) == 1, "what the mutant replaces must stand in losses.py exactly once"
    mutant = types.ModuleType("mutant")
    exec(compile(source.replace(right, wrong), "mutant of losses.py", "exec"), mutant.__dict__)
    with pytest.raises(AssertionError):
        check_everything(mutant)


def test_the_three_bugs_that_leave_the_value_alone_are_seen_in_the_gradient():
    for name in (
        "old log-probs not detached",
        "cispo's ratio not detached",
        "the KL's weight detached",
    ):
        mutant = types.ModuleType("mutant")
        exec(Path(losses.__file__).read_text().replace(*MUTANTS[name]), mutant.__dict__)
        with pytest.raises(AssertionError, match="gradient"):
            check_everything(mutant)


def test_metrics_count_what_the_bounds_stopped():
    old, mask = torch.zeros(2, 4), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    new = torch.tensor([[1.5, 1.1, 0.5, 1.0], [0.5, 1.5, 9.0, 9.0]]).log()
    metrics = lambda **settings: policy_loss(new, old, torch.tensor([1.0, -1.0]), mask, **settings)[
        1
    ]
    seen = metrics(epsilon=0.2, epsilon_high=0.28)
    assert_close(seen["clip_high"], 1 / 6, 1e-6)  # 1.5 with a positive advantage
    assert_close(seen["clip_low"], 1 / 6, 1e-6)  # 0.5 with a negative one
    assert_close(seen["ratio_mean"], (1.5 + 1.1 + 0.5 + 1 + 0.5 + 1.5) / 6, 1e-6)
    assert_close(
        seen["approx_kl"],
        sum(r - 1 - torch.tensor(r).log().item() for r in (1.5, 1.1, 0.5, 1.0, 0.5, 1.5)) / 6,
        1e-6,
    )
    assert_close(seen["ratio_max"], 1.5, 1e-6)
    assert seen["active_tokens"] == 6 and seen["zero_advantage"] == 0 and "entropy" not in seen
    assert_close(
        metrics(epsilon_high=0.28, delta=1.4)["clip_high"], 2 / 6, 1e-6
    )  # and 1.5 with a negative one
    assert_close(metrics(loss_type="cispo", epsilon_high=1.2)["clip_high"], 2 / 6, 1e-6)
    assert_close(metrics(loss_type="gmpo", epsilon=0.6, epsilon_high=0.45)["clip_high"], 0.0)
    assert metrics(loss_type="sapo")["clip_high"] == metrics(loss_type="vespo")["clip_low"] == 0
    assert_close(metrics(entropy=torch.full((2, 4), 0.7))["entropy"], 0.7, 1e-6)


@pytest.mark.parametrize("loss_type", [*CLIPPED, "gmpo"])
def test_a_token_that_the_metrics_call_stopped_has_no_gradient_and_every_other_has(loss_type):
    data = case()
    for delta in (None, 1.35, 1.15):
        *_, gradient = run(data, loss_type=loss_type, delta=delta, max_completion_length=L_MAX)
        log_ratio = torch.where(data["mask"], data["new"] - data["old"], 0.0)
        A = data["A"][:, None] * data["mask"]
        low, high = losses.bounds_hit(loss_type, log_ratio, log_ratio.exp(), A, (0.2, 0.2, delta))
        assert torch.equal((gradient == 0) & (A != 0), low | high) and (low | high).any()


def test_metrics_of_parts_combine_to_those_of_the_whole():
    data = case()
    parts = [run(data, rows, **EVERY)[1] for rows in ([0, 1], [2, 3, 4], [5])]
    assert combine_metrics(parts) == pytest.approx(run(data, **EVERY)[1], abs=1e-6)


def test_advantages_compare_each_sample_with_its_siblings():
    rewards = torch.tensor([1.0, 0, 0, 0, 3, 1, 1, 3], dtype=torch.float64)
    expected = torch.tensor([0.75, -0.25, -0.25, -0.25, 1, -1, -1, 1], dtype=torch.float64)
    assert_close(group_advantages(rewards, 4, scale="none"), expected)
    stds = torch.tensor([0.5] * 4 + [(4 / 3) ** 0.5] * 4, dtype=torch.float64)  # ddof 1
    assert_close(group_advantages(rewards, 4), expected / (stds + 1e-4))
    assert_close(group_advantages(rewards, 4, scale="batch"), expected / (rewards.std() + 1e-4))
    assert_close(
        group_advantages(rewards, 4, scale="none", baseline="leave_one_out"), expected * 4 / 3
    )


@pytest.mark.parametrize("scale", ["group", "batch", "none", "whiten"])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
def test_a_constant_group_gives_exactly_zero(scale, baseline):
    for num_tokens in (None, torch.arange(1, 15)):
        advantages = group_advantages(
            [0.1] * 7 + [1.0] * 6 + [0.0], 7, scale=scale, baseline=baseline, num_tokens=num_tokens
        )
        assert (advantages[:7] == 0).all() and 0 < advantages[7:].abs().max() < 10
    assert (
        group_advantages(
            [0.1] * 14, 7, scale=scale, baseline=baseline, num_tokens=torch.arange(1, 15)
        )
        == 0
    ).all()
    assert (group_advantages([0.3], 1, scale=scale, baseline=baseline) == 0).all()


def test_whitened_advantages_have_mean_zero_and_variance_one_over_all_tokens():
    rewards, num_tokens = (
        torch.tensor([1.0, 0, 0, 1, 1, 1, -1, 0], dtype=torch.float64),
        torch.tensor([3, 9, 2, 5, 1, 4, 7, 8]),
    )
    advantages = group_advantages(rewards, 4, scale="whiten", num_tokens=num_tokens)
    tokens = advantages.repeat_interleave(num_tokens)
    assert_close(tokens.mean(), torch.tensor(0.0, dtype=torch.float64))
    assert_close(tokens.var(), torch.tensor(1.0, dtype=torch.float64), 1e-6)
    centred = torch.tensor([0.5, -0.5, -0.5, 0.5, 0.75, 0.75, -1.25, -0.25], dtype=torch.float64)
    assert_close(
        group_advantages(rewards, 4, scale="whiten"), centred / (centred.var() + 1e-8) ** 0.5
    )
    shifted = centred - centred.repeat_interleave(num_tokens).mean()
    assert_close(advantages, shifted / (centred.repeat_interleave(num_tokens).var() + 1e-8) ** 0.5)


def test_a_constant_group_is_moved_by_the_kl_alone():
    data = case() | {"A": group_advantages(torch.full((B,), 0.1, dtype=torch.float64), 3)}
    *_, gradient = run(data, beta=0.1)
    *_, distance = run(data | {"A": torch.zeros(B, dtype=torch.float64)}, beta=0.1)
    assert (data["A"] == 0).all() and torch.equal(gradient, distance) and (gradient != 0).any()


def test_rewards_may_be_whole_numbers():
    assert_close(
        group_advantages(torch.tensor([1, 0, 1, 1]), 2), group_advantages([1.0, 0.0, 1.0, 1.0], 2)
    )


def test_a_group_that_is_not_whole_is_refused():
    with pytest.raises(ValueError, match="groups of 4"):
        group_advantages([1.0] * 6, 4)


@pytest.mark.parametrize("loss_type", CLIPPED)
def test_without_a_gpu_the_fused_loss_is_its_twin(loss_type):
    """From (B, T, V) logits or from those of the active tokens alone: the same loss, metrics and gradient as policy_loss."""
    data, generator = case(), torch.Generator().manual_seed(0)
    logits, ids = (
        torch.randn(B, T, 20, generator=generator, dtype=torch.float64),
        torch.randint(20, (B, T), generator=generator),
    )
    settings = dict(
        loss_type=loss_type,
        beta=0.1,
        delta=1.35,
        epsilon_high=0.28,
        max_completion_length=L_MAX,
        ref_logps=data["ref"],
    )
    given = (data["old"], data["A"], data["mask"])
    whole, active = logits.clone().requires_grad_(), logits[data["mask"]].requires_grad_()
    expected, metrics = policy_loss(token_logps(whole, ids, 0.7), *given, **settings)
    expected.backward()
    loss, others = fused_policy_loss(active, ids, *given, temperature=0.7, **settings)
    loss.backward()
    assert_close(loss, expected), assert_close(active.grad, whole.grad[data["mask"]])
    assert others == pytest.approx(metrics)
    assert_close(
        fused_policy_loss(logits, ids, *given, temperature=0.7, **settings)[0], expected.detach()
    )


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"loss_type": "cispo"}, "loss_type 'cispo'"),
        ({"ratio_level": "sequence"}, "ratio_level token"),
        ({"kl": "k1"}, "kl k3"),
        ({"beta": 0.1}, "needs ref_logps"),
        ({"loss_type": "dr_grpo"}, "needs max_completion_length"),
        ({"entropy_coef": 0.1}, "entropy_coef 0.0"),
        ({"entropy": torch.zeros(B, T)}, "entropy None"),
        ({"importance_weights": torch.ones(B, T)}, "importance_weights None"),
    ],
)
def test_what_the_fused_loss_does_not_cover_is_refused(settings, word):
    data = case()
    with pytest.raises(ValueError, match=word):
        fused_policy_loss(
            torch.zeros(B, T, 5),
            torch.zeros(B, T, dtype=torch.long),
            data["old"],
            data["A"],
            data["mask"],
            **settings,
        )


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"loss_type": "ppo"}, "no loss_type 'ppo'"),
        ({"ratio_level": "word"}, "no ratio_level"),
        ({"kl": "k4"}, "no kl 'k4'"),
        ({"beta": 0.1}, "ref_logps"),
        ({"entropy_coef": 0.1}, "entropy_coef > 0 needs entropy"),
        ({"loss_type": "dr_grpo"}, "max_completion"),
    ],
)
def test_impossible_settings_are_refused(settings, word):
    data = case()
    with pytest.raises(ValueError, match=word):
        policy_loss(data["new"], data["old"], data["A"], data["mask"], **settings)
