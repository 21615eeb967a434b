import itertools
import json

import pytest

from nanotir import evaluate
from nanotir.problems import Problem, load
from nanotir.scores import (
    bootstrap_interval,
    maj_at_k,
    pass_at_k,
    says,
    says_answer,
    statistics,
    table,
    wilson_interval,
)
from nanotir.tools import PythonTool, ToolResult
from nanotir.trajectory import Call, Format

# Estimates.


def test_pass_at_k_is_the_share_of_k_subsets_with_a_right_answer():
    for n in range(1, 7):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_needs_k_samples(k):
    with pytest.raises(ValueError, match="samples"):
        pass_at_k(4, 2, k)


@pytest.mark.parametrize(
    "answers, k, value",
    [
        (["1", "2", "2"], 3, 0),
        (["1", "2", "1"], 3, 1),
        (["2", "1", "1"], 1, 0),
        (["1", "2"], 2, 1),
        (["2", "1"], 2, 0),
        ([None, None, "1"], 3, 1),
        ([None], 1, 0),
        ([], 1, 0),
        (["0.5", "1/2", "1", "1/2"], 4, 0),
        (["1.0", "2", "2/2"], 3, 1),
        (["1", "", "1", "", " "], 5, 0),  # empty boxes are one answer
        (["1", "", " ", "1", "1"], 5, 1),
    ],
)
def test_the_majority_decides_and_the_first_wins_a_tie(answers, k, value):
    assert maj_at_k(answers, "1", k) == value


@pytest.mark.parametrize("successes, n", [(0, 10), (3, 10), (10, 10), (95, 100)])
def test_wilson_interval_solves_its_equation(successes, n):
    """(p - edge)^2 = z^2 edge (1 - edge) / n."""
    p = successes / n
    low, high = wilson_interval(successes, n)
    assert 0 <= low <= p <= high <= 1
    for edge in (low, high):
        distance = 1.96**2 * edge * (1 - edge) / n
        assert (p - edge) ** 2 == pytest.approx(distance, abs=1e-12)


def test_a_bootstrap_interval_of_shares_is_near_the_normal_one():
    values = [1.0] * 300 + [0.0] * 100
    error = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert bootstrap_interval(values) == pytest.approx((0.75 - error, 0.75 + error), abs=0.003)


def test_problems_that_all_score_the_same_leave_nothing_to_resample():
    assert bootstrap_interval([0.25] * 7) == (0.25, 0.25)


def test_wilson_interval_of_nothing_is_everything():
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("estimate", [pass_at_k, maj_at_k, wilson_interval])
def test_the_estimates_are_in_evaluate_too(estimate):
    assert getattr(evaluate, estimate.__name__) is estimate


# Statistics.

PROBLEMS = [Problem("a", "1", "f", "A"), Problem("b", "1", "g", "A"), Problem("c", "1", "g", "B")]


def answer(tokenizer, text: str, *calls: Call):
    trajectory = Format().trajectory(tokenizer, "q", [("text", text)])
    trajectory.calls += calls
    return trajectory


@pytest.fixture
def groups(tokenizer):
    """Two answers to each of PROBLEMS: one right, two right, none right."""
    ok = Call("python", "1", ToolResult("1"))
    error = Call("python", "(", ToolResult("SyntaxError", False, "error"))
    search = Call("search", "1", ToolResult("x"))
    right, wrong = "\\boxed{1}", "\\boxed{2}"
    return [
        [answer(tokenizer, right, ok, error), answer(tokenizer, wrong)],
        [answer(tokenizer, right), answer(tokenizer, right)],
        [answer(tokenizer, wrong, search), answer(tokenizer, "none")],
    ]


@pytest.fixture
def found(tokenizer, groups):
    return statistics(PROBLEMS, groups, tokenizer, [1, 2])


def test_accuracy_is_the_mean_share_of_right_answers_with_its_interval(found):
    assert found["accuracy"] == 0.5
    assert (found["low"], found["high"]) == wilson_interval(1.5, 3)
    assert (found["n"], found["samples"]) == (3, 2)


SAID = {  # (right where it is named, right wherever it is said) of the gold answer 12
    "The answer is \\boxed{12}.": (1, 1),
    "It is 12.": (0, 1),
    "The answer is 13. It is 12.": (0, 0),  # what is named counts
    "<think>12</think>": (0, 0),
    "12 of 13": (0, 0),
    "": (0, 0),
}


@pytest.mark.parametrize("text", SAID)
def test_a_lenient_accuracy_counts_what_is_said_where_no_answer_is_named(tokenizer, text):
    found = statistics([Problem("q", "12")], [[answer(tokenizer, text)]], tokenizer, [1])
    assert (found["accuracy"], found["lenient"]["accuracy"]) == SAID[text]


def test_what_a_tool_has_printed_is_not_said(tokenizer):
    pieces = [("text", "I multiply."), ("python", "3*4"), ("output", "12")]
    silent = Format().trajectory(tokenizer, "q", pieces)
    found = statistics([Problem("q", "12")], [[silent]], tokenizer, [1])
    assert found["lenient"]["accuracy"] == 0


def test_a_lenient_accuracy_has_the_interval_of_its_own_shares(tokenizer):
    texts = [["It is 12.", "It is 13."], ["\\boxed{12}", "12"], ["", "1"]]
    groups = [[answer(tokenizer, text) for text in group] for group in texts]
    found = statistics([Problem("q", "12")] * 3, groups, tokenizer, [1])
    low, high = wilson_interval(1.5, 3)
    assert found["lenient"] == {"accuracy": 0.5, "low": low, "high": high}
    assert found["accuracy"] == pytest.approx(1 / 6)


def test_no_answer_is_right_where_it_is_named_and_wrong_leniently(tokenizer):
    parts = (
        "It is 12.",
        "\\boxed{12}",
        "\\boxed{1",
        "the answer is 12",
        "<answer>12</answer>",
        "7",
    )
    for a, b in itertools.product(parts, repeat=2):
        groups = [[answer(tokenizer, f"{a} {b}")]]
        found = statistics([Problem("q", "12")], groups, tokenizer, [1])
        assert found["accuracy"] <= found["lenient"]["accuracy"]


def test_pass_and_majority_are_means_over_problems(found):
    assert found["pass@k"] == {1: 0.5, 2: pytest.approx(2 / 3)}
    assert found["maj@k"] == {1: pytest.approx(2 / 3), 2: pytest.approx(2 / 3)}
    for name in ("pass@k", "maj@k"):
        for k, (low, high) in found[f"{name}_interval"].items():
            assert 0 <= low <= found[name][k] <= high <= 1


def test_calls_are_counted_per_answer_and_per_right_answer(found):
    assert found["calls_per_problem"] == 3 / 6
    assert found["calls_per_correct"] == 3 / 3
    assert found["call_status"] == {"ok": 2 / 3, "error": 1 / 3}


def test_new_tokens_and_ends_are_those_of_all_answers(found, groups):
    lengths = [t.new_tokens for group in groups for t in group]
    assert found["mean_new_tokens"] == pytest.approx(sum(lengths) / 6)
    assert found["finish"] == {"stop": 6}


def test_families_and_kinds_have_their_own_numbers(found):
    assert found["by_family"]["g"] == {
        "accuracy": 0.5,
        "n": 2,
        "calls_per_problem": 0.25,
        "calls_by_tool": {"search": 1},
    }
    assert {kind: row["accuracy"] for kind, row in found["by_kind"].items()} == {"A": 0.75, "B": 0}


def test_a_problem_without_a_kind_is_counted_by_its_family(tokenizer, groups):
    found = statistics([Problem("c", "1", "g")], groups[2:], tokenizer, [1])
    assert set(found["by_kind"]) == {"g"}


def test_nothing_right_leaves_calls_per_correct_undefined(tokenizer, groups):
    found = statistics([Problem("c", "7", "g")], groups[2:], tokenizer, [1])
    assert found["calls_per_correct"] is None


def test_a_table_has_a_line_for_each_evaluation_and_mode(found):
    said = table({"before": {"tools": found}, "final": {"tools": found, "text": found}})
    head, *lines = said.splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["before", "tools", "50.0%"],
        ["final", "tools", "50.0%"],
        ["final", "text", "50.0%"],
    ]
    assert max(map(len, lines)) <= len(head) <= 100


def test_a_table_of_several_samples_shows_pass_and_majority(found):
    for shown in (found, json.loads(json.dumps(found))):  # and as read from eval.json
        head, line = table({"": {"tools": shown}}).splitlines()
        assert head.split()[-4:] == ["pass@1", "maj@1", "pass@2", "maj@2"]
        assert line.split()[-4:] == ["50.0%", "66.7%", "66.7%", "66.7%"]
        assert len(head) == len(line)


def test_a_table_of_one_sample_does_not(tokenizer, groups):
    found = statistics(PROBLEMS, [group[:1] for group in groups], tokenizer, [1])
    assert "pass@" not in table({"": {"tools": found}})


def test_a_table_shows_lenient_accuracies_if_one_differs_and_there_is_room(tokenizer, groups):
    strict, lenient = (
        statistics([Problem("q", "1")], [[answer(tokenizer, text)]], tokenizer, [1])
        for text in ("\\boxed{1}", "It is 1.")
    )
    older = {key: value for key, value in strict.items() if key != "lenient"}
    assert "lenient" not in table({"": {"tools": strict, "text": older}})
    head, first, second = table({"after_sft": {"tools": older, "text": lenient}}).splitlines()
    assert [row.split()[-1] for row in (head, first, second)] == ["lenient", "100.0%", "100.0%"]
    assert len(head) == len(first) == len(second) <= 100
    many = lenient | {"samples": 2, "pass@k": dict.fromkeys((1, 4, 16), 1.0)}
    crowded = table({"": {"tools": many | {"maj@k": many["pass@k"]}}})
    assert "lenient" not in crowded and max(map(len, crowded.splitlines())) <= 100


def test_three_k_fit_on_a_line(found):
    for name in ("pass@k", "maj@k"):
        found[name] = {1: 1.0, 4: 1.0, 16: 1.0}
    assert max(map(len, table({"": {"tools": found}}).splitlines())) <= 100


@pytest.mark.parametrize(
    "text, outputs, right",
    [
        ("\\boxed{1}", ["1"], 1),
        ("\\boxed{1}", ["2", "1.0"], 1),
        ("\\boxed{1}", ["1", "2"], 0),
        ("\\boxed{1}", [], 0),
        ("\\boxed{1}", ["NameError: 1"], 0),
        ("\\boxed{7}", ["0", "1\n"], 1),  # the words do not matter
    ],
)
def test_program_accuracy_asks_whether_the_last_call_printed_the_gold_answer(
    tokenizer, text, outputs, right
):
    calls = [Call("python", "x", ToolResult(output)) for output in outputs]
    found = statistics([Problem("q", "1")], [[answer(tokenizer, text, *calls)]], tokenizer, [1])
    assert found["program_accuracy"] == right


@pytest.mark.parametrize(
    "output, gold, right",
    [
        ("[-1, 5]\n", "-1, 5", True),
        ("The price of hard wool is 16.", "16", True),
        ("[1, 2]", "[1, 2]", True),
        ("[1, 2]", "(1, 2)", False),  # an interval, or a point
        ("[3, 4]", "3", False),
        ("{x: 6, y: 2}", "6", False),
        ("(6, 28)", "6", False),
        ("16\n17", "16", False),
        ("The price of wool is 16. The price of silk is 3.", "3", False),
        ("NameError: name 'x' is not defined", "x", False),
        ("", "0", False),
    ],
)
def test_a_program_says_its_answer_as_it_stands_in_a_list_or_in_a_sentence(output, gold, right):
    assert says(output, gold) == right


@pytest.mark.parametrize(
    "question, right",
    [
        ("What is x if 2x + 3y = 18 and 5x - 2y = 26?", True),
        ("FIND X: 2X + 3Y = 18, 5X - 2Y = 26.", True),
        ("What is y if 2x + 3y = 18 and 5x - 2y = 26?", False),
        ("Find x and y: 2x + 3y = 18, 5x - 2y = 26.", False),
        ("Solve 2x + 3y = 18, 5x - 2y = 26.", False),
    ],
)
def test_of_several_unknowns_a_program_says_the_one_that_is_asked_for(question, right):
    assert says_answer("{x: 6, y: 2}", Problem(question, "6")) == right


def test_the_programs_of_linear_systems_say_their_answers():
    with PythonTool() as tool:
        for problem in load("generated:system", n=20):
            program = dict(problem.solution)["python"]
            assert says_answer(tool.run(program).output, problem)
