"""What is logged: each number against the count or the mean that it stands for."""

import math

import pytest
import torch
from closed_forms import case
from loss_checks import run

from nanotir import losses
from nanotir.losses import policy_loss
from nanotir.metrics import (
    combine_metrics,
    first_loss_explained,
    rollout_metrics,
    step_metrics,
    update_metrics,
)
from nanotir.problems import Problem
from nanotir.rollout import Sample
from nanotir.tools import ToolResult
from nanotir.trajectory import Call, Trajectory

RATIOS = (1.5, 1.1, 0.5, 1.0, 0.5, 1.5)  # of the chosen ids; the last two have advantage -1


def metrics_of(**options) -> dict:
    """The metrics of two rows with these ratios; ratios of 9 are masked."""
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    new = torch.tensor([[1.5, 1.1, 0.5, 1.0], [0.5, 1.5, 9.0, 9.0]]).log()
    A = torch.tensor([1.0, -1.0])
    _, metrics = policy_loss(new, torch.zeros(2, 4), A, mask, **options)
    return metrics


def approx(value):
    return pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(
    "options, clip_low, clip_high",
    [
        ({"epsilon_high": 0.28}, 1, 1),  # 0.5 where A < 0, and 1.5 where A > 0
        ({"epsilon_high": 0.28, "delta": 1.4}, 1, 2),  # and 1.5 where A < 0
        ({"epsilon_high": 0.28, "delta": 1.6}, 1, 1),
        ({"loss_type": "cispo", "epsilon_high": 1.2}, 0, 2),
        ({"loss_type": "gmpo", "epsilon": 0.6, "epsilon_high": 0.45}, 1, 0),
        ({"loss_type": "gmpo", "epsilon": 0.8, "epsilon_high": 0.3}, 0, 1),
        ({"loss_type": "sapo"}, 0, 0),
        ({"loss_type": "vespo"}, 0, 0),
    ],
)
def test_clip_low_and_clip_high_count_what_the_bounds_stopped(options, clip_low, clip_high):
    metrics = metrics_of(**options)
    assert metrics["clip_low"] == approx(clip_low / 6)
    assert metrics["clip_high"] == approx(clip_high / 6)


def test_ratios_are_described_by_mean_variance_and_maximum_over_chosen_ids():
    metrics = metrics_of()
    assert metrics["ratio_mean"] == approx(sum(RATIOS) / 6)
    assert metrics["ratio_variance"] == approx(sum((r - 1) ** 2 for r in RATIOS) / 6)
    assert metrics["ratio_max"] == approx(1.5)
    assert metrics["active_tokens"] == 6 and isinstance(metrics["active_tokens"], int)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_approx_kl_is_the_k3_estimate_of_the_distance_from_the_old_policy(level):
    found = metrics_of(ratio_level=level)["approx_kl"]
    assert found == approx(sum(r - 1 - math.log(r) for r in RATIOS) / 6)


def test_the_kl_to_the_reference_is_logged_unweighted_and_is_zero_without_one():
    ref = torch.tensor([[1.5, 1.1, 0.5, 1.0], [0.5, 1.5, 9.0, 9.0]]).log() + 0.3
    logged = metrics_of(ref_logps=ref, beta=0.1)["kl"]
    assert logged == approx(math.exp(0.3) - 0.3 - 1) and metrics_of()["kl"] == 0


def test_zero_advantage_is_the_share_of_ids_from_which_nothing_is_learned():
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    zeros = torch.zeros(2, 4)
    _, metrics = policy_loss(zeros, zeros, torch.tensor([1.0, 0.0]), mask)
    assert metrics["zero_advantage"] == approx(2 / 6) and metrics_of()["zero_advantage"] == 0


def test_entropy_is_logged_where_it_is_known():
    assert metrics_of(entropy=torch.full((2, 4), 0.7))["entropy"] == approx(0.7)
    assert "entropy" not in metrics_of()


def test_a_batch_without_rows_has_metrics():
    nothing = torch.zeros(0, 3)
    mask = nothing.bool()
    terms = losses.Terms(nothing, nothing, nothing, nothing, mask, None)
    metrics = update_metrics(terms, mask, mask)
    assert metrics["active_tokens"] == metrics["ratio_max"] == metrics["ratio_mean"] == 0


def test_metrics_carry_no_gradient():
    metrics = metrics_of()
    assert all(type(value) in (int, float) for value in metrics.values())


def test_metrics_of_parts_combine_to_those_of_the_whole():
    data = case()
    every = {"beta": 0.1, "entropy_coef": 0.05}
    parts = [run(losses, data, rows, **every)[1] for rows in ([0, 1], [2, 3, 4], [5])]
    _, whole, _ = run(losses, data, **every)
    assert combine_metrics(parts) == pytest.approx(whole, abs=1e-6)


def test_parts_without_chosen_ids_combine_to_zeros():
    _, empty, _ = run(losses, case("empty"))
    assert set(combine_metrics([empty, empty]).values()) == {0}


def test_a_steps_row_has_the_plain_mean_of_its_updates_losses_and_gradient_norms():
    updates = [
        {"loss": 1.0, "grad_norm": 2.0, "ratio_mean": 1.0, "ratio_max": 3.0, "active_tokens": 10},
        {"loss": 2.0, "grad_norm": 6.0, "ratio_mean": 2.0, "ratio_max": 2.0, "active_tokens": 30},
    ]
    assert step_metrics(updates) == {
        "loss": 1.5,
        "grad_norm": 4.0,
        "ratio_mean": 1.75,  # by ids
        "ratio_max": 3.0,
        "active_tokens": 40,
    }


def test_a_step_without_updates_has_no_row_of_updates():
    assert step_metrics([]) == {}


# What was sampled.


def sample(correct, tokens, calls=(), kind="A", reason="stop") -> Sample:
    trajectory = Trajectory(finish_reason=reason)
    trajectory.append("prompt", [1, 2], 0)
    trajectory.append("text", [3] * tokens, 1)
    trajectory.append("output", [4] * 5, 0)
    for status in calls:
        trajectory.calls.append(Call("python", "1", ToolResult("1", status == "ok", status)))
    return Sample(Problem("q", "1", "sums", kind), trajectory, correct - 0.25, correct)


SAMPLES = [
    sample(1.0, 4, ["ok", "error"]),
    sample(0.0, 6, ["ok"]),
    sample(1.0, 8, kind=""),
    sample(1.0, 10, kind="", reason="length"),
]


def test_a_rollout_is_described_by_all_that_was_sampled():
    metrics = rollout_metrics(SAMPLES, SAMPLES[:2], group_size=2)
    assert metrics["reward"] == 0.5 and metrics["accuracy"] == 0.75
    assert (metrics["groups_sampled"], metrics["groups_kept"]) == (2, 1)
    assert metrics["groups_without_spread"] == 0.5
    assert metrics["finish"] == {"stop": 3, "length": 1}


def test_calls_are_counted_by_answer_kind_and_status():
    metrics = rollout_metrics(SAMPLES, [], group_size=2)
    assert metrics["tool_rate"] == 0.5 and metrics["calls"] == 0.75
    assert metrics["calls_by_kind"] == {"A": 1.5, "sums": 0.0}  # a family where no kind is known
    assert metrics["call_status"] == {"ok": 2, "error": 1}


def test_lengths_are_described_for_right_and_wrong_answers_apart_without_tool_output():
    metrics = rollout_metrics(SAMPLES, [], group_size=2)
    assert metrics["new_tokens"] == 7
    assert metrics["new_tokens_right"] == 22 / 3 and metrics["new_tokens_wrong"] == 6


def test_where_no_answer_was_wrong_or_right_there_is_no_length_of_one():
    assert "new_tokens_wrong" not in rollout_metrics(SAMPLES[2:], [], group_size=2)
    assert "new_tokens_right" not in rollout_metrics(SAMPLES[1:2], [], group_size=1)


def test_the_first_loss_is_explained_with_its_own_numbers():
    first = {"loss": -0.0123, "ratio_mean": 1.0, "clip_low": 0.0, "clip_high": 0.01}
    text = first_loss_explained(first | {"grad_norm": 0.4567})
    assert "-0.0123" in text and "1.0000" in text and "0.457" in text and "(1%)" in text
    assert "0 but for the different lengths" in text
