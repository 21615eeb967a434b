"""Advantages of groups of answers, against their formulas."""

import pytest
import torch

from nanotir import losses
from nanotir.advantages import BASELINES, SCALES, group_advantages, whiten

REWARDS = torch.tensor([1.0, 0, 0, 0, 3, 1, 1, 3], dtype=torch.float64)
CENTRED = torch.tensor([0.75, -0.25, -0.25, -0.25, 1, -1, -1, 1], dtype=torch.float64)


def assert_close(a, b, tolerance=1e-9):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def test_an_answer_is_compared_with_the_mean_of_its_group():
    assert_close(group_advantages(REWARDS, 4, scale="none"), CENTRED)


def test_by_default_advantages_are_divided_by_the_groups_standard_deviation():
    std = torch.tensor([0.5] * 4 + [(4 / 3) ** 0.5] * 4, dtype=torch.float64)  # ddof 1
    assert_close(group_advantages(REWARDS, 4), CENTRED / (std + 1e-4))
    assert_close(group_advantages(REWARDS, 4, eps=0.5), CENTRED / (std + 0.5))


def test_they_may_be_divided_by_the_standard_deviation_of_the_whole_batch():
    expected = CENTRED / (REWARDS.std() + 1e-4)
    assert_close(group_advantages(REWARDS, 4, scale="batch"), expected)


def test_leave_one_out_compares_an_answer_with_the_mean_of_the_others():
    others = [(sum(group) - r) / 3 for group in REWARDS.view(2, 4).tolist() for r in group]
    expected = REWARDS - torch.tensor(others, dtype=torch.float64)
    found = group_advantages(REWARDS, 4, scale="none", baseline="leave_one_out")
    assert_close(found, expected)


@pytest.mark.parametrize("scale", [s for s in SCALES if s != "whiten_all"])
@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("num_tokens", [None, torch.arange(1, 15)])
def test_a_constant_group_gives_exactly_zero_beside_one_that_is_not(scale, baseline, num_tokens):
    rewards = [0.1] * 7 + [1.0] * 6 + [0.0]  # the mean of seven 0.1 is off by an ulp
    found = group_advantages(rewards, 7, scale=scale, baseline=baseline, num_tokens=num_tokens)
    assert (found[:7] == 0).all() and 0 < found[7:].abs().max() < 10


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("baseline", BASELINES)
def test_where_all_groups_are_constant_all_advantages_are_exactly_zero(scale, baseline):
    how = {"scale": scale, "baseline": baseline, "num_tokens": torch.arange(1, 15)}
    assert (group_advantages([0.1] * 14, 7, **how) == 0).all()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("baseline", BASELINES)
def test_a_group_of_one_teaches_nothing(scale, baseline):
    assert (group_advantages([0.3], 1, scale=scale, baseline=baseline) == 0).all()


def test_whitened_advantages_have_mean_zero_and_variance_one_over_all_tokens():
    rewards = torch.tensor([1.0, 0, 0, 1, 1, 1, -1, 0], dtype=torch.float64)
    num_tokens = torch.tensor([3, 9, 2, 5, 1, 4, 7, 8])
    advantages = group_advantages(rewards, 4, scale="whiten", num_tokens=num_tokens)
    tokens = advantages.repeat_interleave(num_tokens)
    assert tokens.mean().abs() < 1e-9 and abs(tokens.var() - 1) < 1e-6

    centred = torch.tensor([0.5, -0.5, -0.5, 0.5, 0.75, 0.75, -1.25, -0.25], dtype=torch.float64)
    over_tokens = centred.repeat_interleave(num_tokens)
    expected = (centred - over_tokens.mean()) / (over_tokens.var() + 1e-8) ** 0.5
    assert_close(advantages, expected)


def test_without_counts_of_tokens_every_row_counts_once_in_whitening():
    rewards = torch.tensor([1.0, 0, 0, 1, 1, 1, -1, 0], dtype=torch.float64)
    centred = torch.tensor([0.5, -0.5, -0.5, 0.5, 0.75, 0.75, -1.25, -0.25], dtype=torch.float64)
    expected = centred / (centred.var() + 1e-8) ** 0.5
    assert_close(group_advantages(rewards, 4, scale="whiten"), expected)


def test_constant_groups_do_not_count_in_whitening():
    rewards = torch.tensor([1.0, 0, 0, 1, 1, 1, 1, 1], dtype=torch.float64)
    found = group_advantages(rewards, 4, scale="whiten")
    assert_close(found[:4], group_advantages(rewards[:4], 4, scale="whiten"))


def test_whitened_over_all_tokens_constant_groups_count_as_those_of_the_mean():
    """The formula of verl's masked_whiten, which CIR uses: tokens of all groups, Bessel's n - 1."""
    rewards = torch.tensor([1.0, 0, 0, 1, 1, 1, 1, 1], dtype=torch.float64)
    num_tokens = torch.tensor([3, 9, 2, 5, 1, 4, 7, 8])
    centred = torch.tensor([0.5, -0.5, -0.5, 0.5, 0, 0, 0, 0], dtype=torch.float64)
    over_tokens = centred.repeat_interleave(num_tokens)
    expected = (centred - over_tokens.mean()) / (over_tokens.var() + 1e-8) ** 0.5
    found = group_advantages(rewards, 4, scale="whiten_all", num_tokens=num_tokens)
    assert_close(found, expected)
    assert (found[4:] > 0).all()  # the wrong answers are longer, so the mean is below 0


def test_where_all_groups_differ_both_ways_of_whitening_are_one():
    tokens = torch.arange(1, 9)
    both = [group_advantages(REWARDS, 4, how, num_tokens=tokens) for how in SCALES[-2:]]
    assert torch.equal(*both)


def test_a_row_without_tokens_is_whitened_to_zero():
    found = whiten(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2, 0, 2]))
    assert found[1] == 0 and found[0] == -found[2] < 0


def test_rewards_may_be_whole_numbers():
    whole = group_advantages(torch.tensor([1, 0, 1, 1]), 2)
    assert_close(whole, group_advantages([1.0, 0.0, 1.0, 1.0], 2))


def test_no_rewards_give_no_advantages():
    assert group_advantages([], 4).shape == (0,)


@pytest.mark.parametrize("size", [4, 0, -2])
def test_a_group_that_is_not_whole_is_refused(size):
    with pytest.raises(ValueError, match=f"6 rewards do not divide into groups of {size}"):
        group_advantages([1.0] * 6, size)


@pytest.mark.parametrize("how", [{"scale": "std"}, {"baseline": "median"}])
def test_an_unknown_scale_or_baseline_is_refused(how):
    with pytest.raises(ValueError, match=f"no {next(iter(how))}"):
        group_advantages([1.0] * 4, 4, **how)


def test_losses_hands_them_on():
    assert losses.group_advantages is group_advantages
