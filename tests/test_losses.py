"""policy_loss: its values and gradients against closed forms, and what must leave it unchanged."""

import doctest

import pytest
import torch
from closed_forms import CLIPPED, KL_ESTIMATORS, L_MAX, LOSS_TYPES, B, T, case, fill_masked, matrix
from loss_checks import NAN, check_case, check_far, check_stopped, run

from nanotir import losses
from nanotir.advantages import group_advantages
from nanotir.losses import policy_loss

EVERY_TERM = {"beta": 0.1, "entropy_coef": 0.05}
LEVELS = ("token", "sequence")


def assert_close(a, b, tolerance=1e-9):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def plain(data: dict, **options):
    """The loss of a batch without importance weights, and the gradient of the log-probs."""
    new = data["new"].clone().requires_grad_()
    given = {"ref_logps": data["ref"], "max_completion_length": L_MAX} | options
    loss, _ = policy_loss(new, data["old"], data["A"], data["mask"], **given)
    loss.backward()
    return loss.detach(), new.grad


def test_the_closed_forms_cover_every_loss_and_every_kl_estimator():
    missing = set(losses.LOSSES) - set(LOSS_TYPES)
    assert not missing, f"derive {missing} by hand in tests/closed_forms.py"
    assert losses.KL_ESTIMATORS == KL_ESTIMATORS and losses.RATIO_LEVELS == LEVELS


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_and_gradient_equal_those_derived_by_hand(loss_type):
    for mask_kind, on_policy, options in matrix([loss_type]):
        check_case(losses, mask_kind, on_policy, options)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_entropy_bonus_and_importance_weights_equal_those_derived_by_hand(loss_type):
    extra = {"weighted": True, "entropy_coef": 0.05, "num_active_tokens": 50, "num_rows": 8}
    for mask_kind, on_policy, options in matrix([loss_type], quick=True):
        check_case(losses, mask_kind, on_policy, options, **extra)


@pytest.mark.parametrize("loss_type", [*CLIPPED, "sapo", "gmpo"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kl", KL_ESTIMATORS)
def test_the_gradient_is_that_of_the_value_by_finite_differences(loss_type, level, kl):
    """cispo and vespo hold a weight constant on purpose: their gradient is not their value's."""
    data = case()
    options = {"loss_type": loss_type, "ratio_level": level, "kl": kl, "delta": 1.35, "beta": 0.1}
    options |= {"ref_logps": data["ref"], "max_completion_length": L_MAX}

    def value(new):
        return policy_loss(new, data["old"], data["A"], data["mask"], **options)[0]

    assert torch.autograd.gradcheck(value, data["new"].clone().requires_grad_())


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("level", LEVELS)
def test_on_policy_the_gradient_is_reinforces(loss_type, level):
    """REINFORCE with each loss's own denominator.

    gmpo and sequence ratios spread a row's gradient over its ids, which is the same where a row has
    one advantage.
    """
    data = case(on_policy=True)
    n = data["mask"].sum(1, keepdim=True).clamp(min=1).double()
    share = {"dr_grpo": 1 / (B * L_MAX), "luspo": 1 / B}
    share |= dict.fromkeys(("grpo", "sapo", "gmpo"), 1 / (B * n))
    expected = (
        -data["A"][:, None] * data["mask"] * share.get(loss_type, 1 / int(data["mask"].sum()))
    )
    high = 5.0 if loss_type == "cispo" else None
    options = {"loss_type": loss_type, "ratio_level": level, "max_completion_length": L_MAX}
    new = data["new"].clone().requires_grad_()
    loss, _ = policy_loss(new, new, data["A"], data["mask"], epsilon_high=high, **options)
    loss.backward()
    assert_close(new.grad, expected)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("level", LEVELS)
def test_what_is_masked_touches_nothing(loss_type, level):
    data = case()
    options = {"loss_type": loss_type, "ratio_level": level, **EVERY_TERM}
    loss, metrics, gradient = run(losses, data, **options)
    assert (gradient[~data["mask"]] == 0).all() and (gradient[data["mask"]] != 0).any()
    for nonsense in (7.0, NAN, float("inf"), float("-inf")):
        other, others, again = run(losses, fill_masked(data, nonsense), **options)
        assert other == loss and others == metrics and torch.equal(again, gradient)


@pytest.mark.parametrize("loss_type", [name for name in LOSS_TYPES if name != "bnpo"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "parts", [([0], [1, 2], [3, 4, 5]), ([5, 3, 1], [0, 2, 4]), ([5], [*range(5)])]
)
def test_micro_batches_add_up_to_one_batch(loss_type, level, parts):
    data = case()
    step = {"num_active_tokens": data["mask"].sum(), "num_rows": B}
    options = {"loss_type": loss_type, "ratio_level": level, **step, **EVERY_TERM}
    whole, _, gradient = run(losses, data, **options)
    total = 0.0
    again = torch.zeros(B, T, dtype=torch.float64)
    for width, rows in enumerate(parts):  # each with padding of its own
        loss, _, part = run(losses, data, rows, width, **options)
        total += loss
        again[rows] = part[:, :T]
    assert_close(total, whole)
    assert_close(again, gradient)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("level", LEVELS)
def test_padding_changes_nothing(loss_type, level):
    options = {"loss_type": loss_type, "ratio_level": level, **EVERY_TERM}
    loss, metrics, gradient = run(losses, case(), **options)
    padded, others, again = run(losses, case(), width=5, **options)
    assert_close(padded, loss)
    assert_close(again[:, :T], gradient)
    assert (again[:, T:] == 0).all() and others == pytest.approx(metrics)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("level", LEVELS)
def test_an_empty_mask_gives_zero_and_finite_gradients(loss_type, level):
    options = {"loss_type": loss_type, "ratio_level": level, **EVERY_TERM}
    loss, metrics, gradient = run(losses, case("empty"), **options)
    assert loss == 0 and (gradient == 0).all() and metrics["active_tokens"] == 0
    assert all(value == value for value in metrics.values())  # no nan


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shift", [0.3, 50.0, 500.0, -500.0])
def test_zero_advantages_teach_nothing_however_far_the_policy_has_moved(loss_type, level, shift):
    data = case() | {"A": torch.zeros(B, dtype=torch.float64)}
    moved = data | {"new": data["old"] + shift}
    loss, metrics, gradient = run(losses, moved, loss_type=loss_type, ratio_level=level)
    assert loss == 0 and (gradient == 0).all() and metrics["zero_advantage"] == 1


def test_loss_gradient_and_metrics_stay_finite_however_far_the_policy_has_moved():
    check_far(losses)


@pytest.mark.parametrize("loss_type", CLIPPED)
@pytest.mark.parametrize("shift", [-500.0, 500.0])
def test_a_ratio_beyond_its_limit_has_no_gradient(loss_type, shift):
    data = case()
    far = data | {"new": data["old"] + shift, "ref": data["old"]}
    loss, gradient = plain(far, loss_type=loss_type, beta=0.1)
    assert loss.isfinite() and (gradient == 0).all()


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_advantages_may_differ_from_token_to_token(loss_type):
    data = case()
    per_token = data["A"][:, None].expand(B, T).clone()
    expected, _, _ = run(losses, data, loss_type=loss_type)
    same, _, _ = run(losses, data | {"A": per_token}, loss_type=loss_type)
    assert_close(same, expected)
    per_token[0, 4] += 1
    other, _, _ = run(losses, data | {"A": per_token}, loss_type=loss_type)
    assert other != expected


def test_every_per_token_advantage_reaches_its_own_token_alone():
    data = case(on_policy=True)
    generator = torch.Generator().manual_seed(0)
    per_token = torch.randn(B, T, generator=generator, dtype=torch.float64)
    _, gradient = plain(data | {"A": per_token})
    assert_close(gradient, -(per_token * data["mask"] / data["mask"].sum()))


def test_dapo_with_equal_bounds_and_rows_of_one_length_is_grpo():
    data = case("full")
    _, _, dapo = run(losses, data, loss_type="dapo", **EVERY_TERM)
    _, _, grpo = run(losses, data, loss_type="grpo", **EVERY_TERM)
    assert_close(dapo, grpo)


def test_a_constant_group_is_moved_by_the_kl_alone():
    constant = torch.full((B,), 0.1, dtype=torch.float64)
    data = case() | {"A": group_advantages(constant, 3)}
    _, _, gradient = run(losses, data, beta=0.1)
    _, _, by_kl = run(losses, data | {"A": torch.zeros(B, dtype=torch.float64)}, beta=0.1)
    assert (data["A"] == 0).all() and torch.equal(gradient, by_kl) and (gradient != 0).any()


def test_an_id_that_the_metrics_call_stopped_has_no_gradient_and_every_other_has():
    check_stopped(losses)


def test_the_worked_examples_of_the_docstrings_hold():
    results = doctest.testmod(losses)
    assert results.failed == 0 and results.attempted >= 8


@pytest.mark.parametrize(
    "options, word",
    [
        ({"loss_type": "ppo"}, "no loss_type 'ppo'"),
        ({"ratio_level": "word"}, "no ratio_level"),
        ({"kl": "k4"}, "no kl 'k4'"),
        ({"beta": 0.1}, "beta > 0 needs ref_logps"),
        ({"entropy_coef": 0.1}, "entropy_coef > 0 needs entropy"),
        ({"loss_type": "dr_grpo"}, "dr_grpo needs max_completion_length"),
    ],
)
def test_impossible_options_are_refused(options, word):
    data = case()
    with pytest.raises(ValueError, match=word):
        policy_loss(data["new"], data["old"], data["A"], data["mask"], **options)
