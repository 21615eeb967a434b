"""Which answers an update learns from: the best of the right ones, a share of the wrong ones."""

import pytest

from nanotir.problems import Problem
from nanotir.rl import RLConfig
from nanotir.rollout import Sample
from nanotir.selection import chosen, is_void, learned_from
from nanotir.tools import ToolResult
from nanotir.trajectory import Call, Format

PROBLEM = Problem("1+1?", "2")


def answer(tokenizer, correct, failures=0, text="\\boxed{2}", finish="stop"):
    trajectory = Format().trajectory(tokenizer, PROBLEM.question, [("text", text)])
    trajectory.finish_reason = finish
    failed = Call("python", "1/0", ToolResult("", False, "error"))
    worked = Call("python", "1", ToolResult("1"))
    trajectory.calls += [worked] + [failed] * failures
    return Sample(PROBLEM, trajectory, float(correct), float(correct))


def group(tokenizer, failures_of_right, wrong):
    right = [answer(tokenizer, 1, failures) for failures in failures_of_right]
    return right + [answer(tokenizer, 0) for _ in range(wrong)]


def picked(samples, size, keep, seed=0):
    return chosen(samples, RLConfig(group_size=size, keep=keep), seed, step=0)


def test_without_the_setting_all_are_kept(tokenizer):
    samples = group(tokenizer, [2, 0, 1], wrong=3)
    assert picked(samples, 6, 0) == samples


@pytest.mark.parametrize(
    "right, wrong, kept_wrong", [(4, 4, 2), (6, 2, 1), (7, 1, 1), (1, 7, 3), (8, 0, 0), (0, 8, 4)]
)
def test_wrong_answers_keep_their_share_and_neither_kind_vanishes(
    tokenizer, right, wrong, kept_wrong
):
    kept = picked(group(tokenizer, [0] * right, wrong), 8, 4)
    assert len(kept) == 4
    assert sum(not sample.correct for sample in kept) == kept_wrong


def test_right_answers_with_the_fewest_failed_calls_are_kept(tokenizer):
    kept = picked(group(tokenizer, [3, 0, 2, 1], wrong=4), 8, 4)
    failures = [len(sample.trajectory.calls) - 1 for sample in kept if sample.correct]
    assert failures == [0, 1]


def test_which_wrong_answers_are_kept_depends_on_the_seed_alone(tokenizer):
    samples = group(tokenizer, [0] * 4, wrong=12)
    assert picked(samples, 16, 8) == picked(samples, 16, 8)
    assert len({tuple(map(id, picked(samples, 16, 8, seed))) for seed in range(9)}) > 1


def test_each_group_is_chosen_from_by_itself(tokenizer):
    first, second = group(tokenizer, [0] * 4, 0), group(tokenizer, [0] * 4, 0)
    kept = picked(first + second, 4, 2)
    assert [sample in first for sample in kept] == [True, True, False, False]


@pytest.mark.parametrize("keep", [1, 9])
def test_a_number_that_no_group_can_keep_is_refused(keep):
    with pytest.raises(ValueError, match="rl.keep"):
        RLConfig(group_size=8, keep=keep)


@pytest.mark.parametrize(
    "text, finish, expected",
    [
        ("\\boxed{2}", "stop", False),
        ("I think.", "stop", True),
        ("I think and think", "length", True),
        ("I call", "budget", False),
        ("I write its output", "forged", False),
    ],
)
def test_an_answer_is_void_if_its_last_turn_neither_calls_nor_answers(
    tokenizer, text, finish, expected
):
    assert is_void(answer(tokenizer, 0, text=text, finish=finish).trajectory, tokenizer) == expected


def test_an_answer_before_its_last_call_is_none_of_its_last_turn(tokenizer):
    pieces = [("text", "I guess \\boxed{2}."), ("python", "1+1"), ("output", "2")]
    for last, void in (("So I think.", True), ("It is \\boxed{2}.", False)):
        trajectory = Format().trajectory(tokenizer, "1+1?", [*pieces, ("text", last)])
        trajectory.finish_reason = "stop"
        assert is_void(trajectory, tokenizer) == void
    cut = Format().trajectory(tokenizer, "1+1?", pieces)
    cut.append("output", tokenizer.encode_untrusted("\\boxed{2}"), 0)
    cut.finish_reason = "length"
    assert is_void(cut, tokenizer)


@pytest.mark.parametrize("drop_void, rows", [(False, [0, 1, 2]), (True, [0, 2])])
def test_void_answers_are_left_out_if_that_is_asked_for(tokenizer, drop_void, rows):
    samples = [answer(tokenizer, 1), answer(tokenizer, 0, text="Well."), answer(tokenizer, 1)]
    trajectories, taught = learned_from(samples, RLConfig(drop_void=drop_void), tokenizer)
    assert trajectories == [sample.trajectory for sample in samples]
    assert taught == rows
