"""When an answer is flagged, and how the shares of flagged answers are measured."""

import json

import pytest

from nanotir.problems import Problem, load
from nanotir.scores import statistics
from nanotir.tools import ToolResult
from nanotir.trajectory import Call, Format
from nanotir.trust import doubt, measure, unlike_generated

OK = Call("python", "1", ToolResult("1"))
FAILED = Call("python", "(", ToolResult("SyntaxError", False, "error"))


def answer(tokenizer, logp: float = 0.0, text: str = "\\boxed{1}", calls=()):
    """An answer whose ids have together this log-prob."""
    trajectory = Format().trajectory(tokenizer, "q", [("text", text)])
    trajectory.logps[-2:] = [logp / 2, logp / 2]
    trajectory.calls += calls
    return trajectory


@pytest.mark.parametrize(
    "text, calls, reason",
    [
        ("\\boxed{1}", [], None),
        ("\\boxed{1}", [OK], None),
        ("I multiply.", [OK], "it has no final answer"),
        ("I multiply.", [FAILED], "it has no final answer"),
        ("\\boxed{1}", [FAILED], "the call failed"),
        ("\\boxed{1}", [FAILED, OK], None),  # it has mended its call
        ("\\boxed{1}", [OK, FAILED], "the call failed"),
    ],
)
def test_an_answer_is_flagged_for_what_it_lacks(tokenizer, text, calls, reason):
    assert doubt(answer(tokenizer, 0.0, text, calls), tokenizer, lowest=-1.0) == reason


@pytest.mark.parametrize("logp, flagged", [(-1.5, True), (-1.0, False), (-0.5, False)])
def test_an_answer_is_flagged_if_all_its_ids_together_are_less_likely_than_the_lowest(
    tokenizer, logp, flagged
):
    assert doubt(answer(tokenizer, logp), tokenizer, lowest=-1.0) == (
        "the model was unsure" if flagged else None
    )


def test_without_a_lowest_log_prob_no_answer_is_too_unlikely(tokenizer):
    assert doubt(answer(tokenizer, -100.0), tokenizer, lowest=None) is None


def answers(tokenizer, logps):
    return [answer(tokenizer, logp) for logp in logps]


@pytest.mark.parametrize("n, below", [(1, 0), (19, 0), (20, 1), (100, 5)])
def test_five_percent_of_the_right_answers_are_below_the_lowest(tokenizer, n, below):
    logps = [-float(i) for i in range(n)]
    found = measure(answers(tokenizer, [-500.0, *logps]), [False] + [True] * n, tokenizer)
    assert sum(logp < found["lowest"] for logp in logps) == below


def test_each_half_is_flagged_by_the_lowest_of_the_other(tokenizer):
    """By its own half's lowest, -1 and -5, no right answer would be flagged, and both wrong ones.

    By that of all, -5, one wrong answer would be.
    """
    logps, right = [-1, -1, -4, -5, -5, -6], [True, True, False, True, True, False]
    found = measure(answers(tokenizer, logps), right, tokenizer)
    assert found == {"lowest": -5, "wrong_flagged": 0.5, "right_flagged": 0.5}


def test_the_shares_are_those_of_the_whole_rule(tokenizer):
    given = [answer(tokenizer), answer(tokenizer, text="none"), answer(tokenizer, calls=[FAILED])]
    found = measure(given, [True, False, False], tokenizer)
    assert (found["wrong_flagged"], found["right_flagged"]) == (1, 0)


@pytest.mark.parametrize("right, unknown", [(True, ["wrong_flagged"]), (False, ["right_flagged"])])
def test_what_cannot_be_measured_is_none(tokenizer, right, unknown):
    found = measure(answers(tokenizer, [-1.0] * 4), [right] * 4, tokenizer)
    assert (found["lowest"] is None) == (not right)
    assert [name for name in ("wrong_flagged", "right_flagged") if found[name] is None] == unknown


def test_an_evaluation_of_one_answer_each_records_it(tokenizer):
    groups = [[answer(tokenizer, -1.0)], [answer(tokenizer, -2.0, "none")]]
    found = statistics([Problem("a", "1"), Problem("b", "1")], groups, tokenizer, [1])
    assert json.loads(json.dumps(found))["trust"] == {
        "lowest": -1.0,
        "wrong_flagged": 1.0,
        "right_flagged": 0.0,
    }


def test_an_evaluation_of_drawn_answers_does_not(tokenizer):
    group = answers(tokenizer, [-1.0, -2.0])
    assert statistics([Problem("a", "1")], [group], tokenizer, [1])["trust"] is None


@pytest.mark.parametrize("question", ["What is 3.5 * 2?", "15% of 80", "20 % of 50"])
def test_decimals_and_percentages_are_unlike_all_generated_problems(question):
    assert unlike_generated(question)


@pytest.mark.parametrize("wording", ["generated", "reworded", "unspaced", "longest"])
def test_no_generated_problem_is_unlike_them(wording):
    assert not any(unlike_generated(problem.question) for problem in load(wording, n=2000))
