import pytest
from conftest import ScriptedModel, follow

from nanotir.config import build
from nanotir.lab.analysis import analyse, due_values, fate_of_code, misleads
from nanotir.problems import Problem
from nanotir.rollout import Sample
from nanotir.run import Run
from nanotir.tools.tool import ToolResult
from nanotir.trajectory import Call, Format, Trajectory

PROBLEM = Problem("?", "4", "f")
OK = Call("python", "", ToolResult("4"))
FAILED = Call("python", "", ToolResult("NameError", False, "error"))
MISLED = Call("python", "", ToolResult("5"))
SEARCH = Call("search", "", ToolResult("The price of silk is 9."))


def sample(correct: bool, *calls: Call) -> Sample:
    """An answer of ten ids."""
    trajectory = Trajectory(mask=[1] * 10, calls=list(calls))
    return Sample(PROBLEM, trajectory, float(correct), float(correct))


@pytest.fixture
def fate():
    return fate_of_code(
        [
            sample(True, OK),
            sample(True, FAILED, OK),  # repaired
            sample(False, FAILED, FAILED),  # not
            sample(False, MISLED),
            sample(True),
        ],
        values={},
    )


def test_answers_with_code_are_counted(fate):
    assert fate["code_ratio"] == 4 / 5


def test_code_that_ran_is_counted_by_call_in_right_and_wrong_answers(fate):
    assert fate["pass_ratio"] == 3 / 6
    assert fate["pass_ratio_right"] == 2 / 3
    assert fate["pass_ratio_wrong"] == 1 / 3


def test_failures_that_the_next_call_repairs_are_counted(fate):
    assert fate["repair_rate"] == 1 / 2


def test_right_answers_after_failures_and_after_wrong_values_are_counted(fate):
    assert fate["right_after_failure"] == 1 / 2
    assert fate["right_after_wrong_value"] == 0.0


def test_accuracy_and_its_cost_in_ids_are_counted(fate):
    assert fate["accuracy"] == 3 / 5
    assert fate["tokens_per_correct"] == 50 / 3


def test_what_never_happened_has_no_rate():
    fate = fate_of_code([sample(False)], {})
    rates = ("pass_ratio", "repair_rate", "right_after_failure", "right_after_wrong_value")
    assert [fate[rate] for rate in rates] == [None] * 4


def test_a_program_is_compared_with_what_it_should_have_printed():
    """The answer is put into words. (123, 0) is right for "quotient 123 remainder 0"."""
    problem = Problem("Divide 246 by 2.", "quotient 123 remainder 0")
    values = {problem.question: "(123, 0)"}

    def misleading(output: str) -> bool:
        trajectory = Trajectory(calls=[Call("python", "", ToolResult(output))])
        return misleads(Sample(problem, trajectory, 1.0, 1.0), values)

    assert not misleading("(123, 0)")
    assert not misleading("quotient 123 remainder 0")
    assert misleading("(122, 0)")


def test_searches_are_no_code():
    fate = fate_of_code([sample(True, SEARCH), sample(False, OK, SEARCH)], {})
    assert fate["code_ratio"] == 1 / 2
    assert fate["pass_ratio"] == 1.0
    assert fate["right_after_wrong_value"] is None  # the search prints another value than 4


def test_the_value_that_is_due_is_what_the_solution_s_last_program_prints(
    tokenizer, python, tmp_path
):
    model = ScriptedModel(len(tokenizer), None)
    program = (("text", "I divide."), ("python", "divmod(247,2)"))
    held_out = [Problem("Divide.", "quotient 123 remainder 1", solution=program), PROBLEM]
    run = Run(tmp_path, build({}), model, tokenizer, Format(), [python], [], held_out)
    assert due_values(run) == {"Divide.": "(123, 1)"}


def test_the_fate_of_code_is_told_by_family(tokenizer, python, tmp_path):
    """A model computes 4 and answers 4. That is right for one problem, and wrong for the other."""
    program = tokenizer.encode("```python\n2+2\n```\n")
    answer = tokenizer.encode("\\boxed{4}<|end|>")
    fence = tokenizer.tags["\n```\n"]

    def script(ids):
        if ids.count(fence) < 2:  # the call's own, and then the output's
            return program[len(ids)]
        return answer[ids[::-1].index(fence)]

    model = ScriptedModel(len(tokenizer), follow(tokenizer, script))
    held_out = [PROBLEM, Problem("!", "6", "g")]
    config = build({"recipe": "cir", "format": "fences", "sampler.temperature": 0.5})
    run = Run(tmp_path, config, model, tokenizer, Format("fences"), [python], [], held_out)
    found = analyse(run)
    assert {name: row["accuracy"] for name, row in found.items()} == {"all": 0.5, "f": 1, "g": 0}
    assert found["g"]["right_after_wrong_value"] == 0.0
