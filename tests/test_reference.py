"""The reference policy: where RL started, and how it follows the policy."""

from types import SimpleNamespace

import pytest
import torch
from conftest import small_model

from nanotir import reference
from nanotir.rl import RLConfig


def run_with(**settings):
    return SimpleNamespace(state={}, config=SimpleNamespace(rl=RLConfig(beta=0.1, **settings)))


def assert_same_weights(a, b):
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(x, y)


@pytest.fixture
def policies():
    """A policy at the start of RL, its reference, and what it has become."""
    run = run_with(sync_every=3, sync_mix=0.25)
    start = small_model(40)
    return run, start, reference.starting_policy(start, run), small_model(40, seed=1)


def test_the_reference_is_a_frozen_copy_of_the_policy_that_rl_starts_from():
    model = small_model(40)
    frozen = reference.starting_policy(model, SimpleNamespace(state={}))
    assert_same_weights(frozen, model)
    assert not any(weight.requires_grad for weight in frozen.parameters())
    assert all(weight.requires_grad for weight in model.parameters())


def test_a_resumed_run_goes_on_with_the_reference_of_its_start():
    run = SimpleNamespace(state={})
    first = reference.starting_policy(small_model(40), run)
    resumed = reference.starting_policy(small_model(40, seed=1), run)
    assert_same_weights(first, resumed)


def test_the_reference_stays_where_it_is_between_the_steps_at_which_it_follows(policies):
    run, start, frozen, later = policies
    for step in (0, 1, 3, 4):
        reference.follow(frozen, later, run, step)
    assert_same_weights(frozen, start)


def test_the_reference_moves_by_its_share_towards_the_policy(policies):
    run, start, frozen, later = policies
    reference.follow(frozen, later, run, step=2)
    for moved, old, new in zip(frozen.parameters(), start.parameters(), later.parameters()):
        torch.testing.assert_close(moved, 0.75 * old + 0.25 * new)


def test_a_reference_that_has_followed_is_the_one_that_a_resumed_run_has(policies):
    run, start, frozen, later = policies
    reference.follow(frozen, later, run, step=2)
    assert_same_weights(frozen, reference.starting_policy(small_model(40, seed=2), run))


def test_the_policy_itself_is_not_moved(policies):
    run, start, frozen, later = policies
    reference.follow(frozen, later, run, step=2)
    assert_same_weights(later, small_model(40, seed=1))


def test_following_without_a_reference_is_refused():
    with pytest.raises(ValueError, match="rl.sync_every needs a reference"):
        RLConfig(sync_every=3)
