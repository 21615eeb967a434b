"""When an answer is flagged, and how the shares of flagged answers are measured."""

import json

import pytest

from nanotir.problems import Problem, load
from nanotir.scores import statistics
from nanotir.tools import ToolResult
from nanotir.trajectory import Call, Format
from nanotir.trust import doubt, left_out, measure

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
    assert doubt(answer(tokenizer, 0.0, text, calls), tokenizer, -1.0, None) == reason


@pytest.mark.parametrize("logp, flagged", [(-1.5, True), (-1.0, False), (-0.5, False)])
def test_an_answer_is_flagged_if_all_its_ids_together_are_less_likely_than_the_lowest(
    tokenizer, logp, flagged
):
    assert doubt(answer(tokenizer, logp), tokenizer, -1.0, None) == (
        "the model was unsure" if flagged else None
    )


def test_without_a_lowest_log_prob_no_answer_is_too_unlikely(tokenizer):
    assert doubt(answer(tokenizer, -100.0), tokenizer, None, None) is None


def answers(tokenizer, logps):
    return [answer(tokenizer, logp) for logp in logps]


def measured(trajectories, right, tokenizer):
    return measure([Problem("q", "1")] * len(right), trajectories, right, tokenizer)


@pytest.mark.parametrize("n, below", [(1, 0), (19, 0), (20, 1), (100, 5)])
def test_five_percent_of_the_right_answers_are_below_the_lowest(tokenizer, n, below):
    logps = [-float(i) for i in range(n)]
    found = measured(answers(tokenizer, [-500.0, *logps]), [False] + [True] * n, tokenizer)
    assert sum(logp < found["lowest"] for logp in logps) == below


def test_each_half_is_flagged_by_the_lowest_of_the_other(tokenizer):
    """By its own half's lowest, -1 and -5, no right answer would be flagged, and both wrong ones.

    By that of all, -5, one wrong answer would be.
    """
    logps, right = [-1, -1, -4, -5, -5, -6], [True, True, False, True, True, False]
    found = measured(answers(tokenizer, logps), right, tokenizer)
    assert found == {"lowest": -5, "wrong_flagged": 0.5, "right_flagged": 0.5}


def test_the_shares_are_those_of_the_whole_rule(tokenizer):
    given = [answer(tokenizer), answer(tokenizer, text="none"), answer(tokenizer, calls=[FAILED])]
    found = measured(given, [True, False, False], tokenizer)
    assert (found["wrong_flagged"], found["right_flagged"]) == (1, 0)


@pytest.mark.parametrize("right, unknown", [(True, ["wrong_flagged"]), (False, ["right_flagged"])])
def test_what_cannot_be_measured_is_none(tokenizer, right, unknown):
    found = measured(answers(tokenizer, [-1.0] * 4), [right] * 4, tokenizer)
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


def called(*programs: str) -> list[Call]:
    return [Call("python", program, ToolResult("1")) for program in programs]


@pytest.mark.parametrize(
    "question, programs, out",
    [
        ("What is 12 + 30?", ["12+30"], False),
        ("What is 12 + 30?", ["12+3"], True),
        ("What is 12 + 30 + 5?", ["12+30"], True),
        ("What is 12 + 30 + 5?", ["12+30", "42+5"], False),
        ("What is 2.50 * 3?", ["2.5*3"], False),
        ("What is 2.5 * 3?", ["25*3"], True),
        ("What is 1,234 * 5?", ["1234*5"], False),
        ("What is 1,234 * 5?", ["1*5"], True),
        ("gcd(12,345)", ["math.gcd(12,345)"], False),
        ("Solve x^2 - 4 = 0.", ["solve(x**2-4,x)"], False),  # a 0 is no loss
        ("What is ² + 3?", ["3"], False),
        ("What is .5 * 4?", ["0.5*4"], False),
        ("What is .5 * 4?", ["5*4"], True),
    ],
)
def test_a_number_of_the_question_that_is_in_no_call_is_left_out(question, programs, out):
    assert left_out(question, called(*programs)) == out


@pytest.mark.parametrize("wording", ["generated", "reworded", "unspaced", "grouped", "longest"])
def test_no_taught_solution_leaves_out_a_number(wording):
    for problem in load(wording, n=2000):
        calls = [Call(tool, text, OK.result) for tool, text in problem.solution if tool != "text"]
        assert not calls or not left_out(problem.question, calls), problem


@pytest.mark.parametrize(
    "question, calls, reason",
    [
        ("What is 1 + 2?", [OK], "a number of the question is in no call"),
        ("What is 1 + 1?", [OK], None),
        ("What is 1 + 2?", [], None),  # without calls, it may have used them all
        (None, [OK], None),
    ],
)
def test_an_answer_is_flagged_if_its_calls_lack_a_number(tokenizer, question, calls, reason):
    assert doubt(answer(tokenizer, calls=calls), tokenizer, None, question) == reason


def test_only_generated_problems_are_said_to_need_all_of_their_numbers(tokenizer):
    given = [answer(tokenizer, calls=[OK])] * 2
    for kind, flagged in (("A", 1.0), ("", 0.0)):
        problems = [Problem("What is 1 + 2?", "1", kind=kind)] * 2
        assert measure(problems, given, [True, True], tokenizer)["right_flagged"] == flagged
