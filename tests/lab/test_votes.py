"""Majority votes of some of the answers."""

from random import Random

import pytest

from nanotir.lab.votes import by_chance, has_output, majorities, none_failed, pruned
from nanotir.tools import ToolResult
from nanotir.trajectory import Call, Trajectory

WORKED, FAILED = ToolResult("1"), ToolResult("", False, "error")


def row(*results) -> Trajectory:
    return Trajectory(calls=[Call("python", "1", result) for result in results])


@pytest.mark.parametrize(
    "results, output, fine",
    [
        ((), False, True),
        ((WORKED,), True, True),
        ((FAILED,), False, False),
        ((FAILED, WORKED), True, False),
    ],
)
def test_an_answer_stands_on_output_or_has_no_failure(results, output, fine):
    assert (has_output(row(*results)), none_failed(row(*results))) == (output, fine)


def test_pruned_answers_have_no_vote():
    assert pruned(["1", "2", "3"], [True, False, True]) == ["1", None, "3"]


def test_where_no_answer_is_left_all_vote():
    assert pruned(["1", "2"], [False, False]) == ["1", "2"]
    assert pruned(["1", None], [False, True]) == ["1", None]


def test_words_that_outvote_a_tool_lose_their_votes():
    rows = [row(), row(), row(WORKED), row(FAILED)]
    found = majorities(["7"], [(rows, ["5", "5", "7", "5"])], seed=0)
    assert (found["maj"], found["output"], found["ran"]) == (0.0, 1.0, 0.0)
    assert found["pruned maj by k"] == [[1, 0.0], [2, 0.0], [4, 1.0], [8, 1.0], [16, 1.0]]


@pytest.mark.parametrize("seed", range(9))
def test_by_chance_as_many_answers_vote_and_none_that_was_not_given(seed):
    answers, output = ["7", None, "7", None, "5", None], ["7", None, "7", None, None, None]
    kept = by_chance(answers, output, Random(seed))
    assert sum(kept) == 2
    assert not any(keep and answer is None for keep, answer in zip(kept, answers))


def test_the_first_answers_are_pruned_among_themselves():
    rows, answers = [row(), row(WORKED), row(WORKED)], ["7", "5", "5"]
    found = majorities(["7"], [(rows, answers)], seed=0)
    assert found["pruned maj by k"][:2] == [[1, 1.0], [2, 0.0]]
