import pytest
import torch
from conftest import ScriptedModel, follow

from nanotir.demonstrate import TeacherConfig, corpus, demonstrate
from nanotir.losses import group_advantages
from nanotir.problems import Problem, load
from nanotir.recipes.cir import TextSampler, fate_of_code, spelled_out
from nanotir.sampler import SamplerConfig
from nanotir.tokenizer import Tokenizer
from nanotir.tools.tool import ToolResult
from nanotir.trajectory import Call, Format, Trajectory


@pytest.fixture(scope="module")
def fenced():
    """A tokenizer with a merge for ```, so that a fence can be spelled in more than one way."""
    return Tokenizer.train([*corpus(load("generated", n=50)), *["```python\n1\n```\n"] * 50], 400)


def written_by(tokenizer, python, closing_ids, exact: bool):
    """The row of a model that writes a block, closes it by these ids, and says "So." as soon as it has read a result, or has not got one."""
    program = [*tokenizer.encode_untrusted("```python\n6*7\n"), *closing_ids]
    ending = [*tokenizer.encode_untrusted("So."), tokenizer.end_id]
    output = tokenizer.tags["\n```\n"]  # the last id of a result

    def script(ids):
        done = len(program) + len(ids) - 1 - ids.index(output) if output in ids else len(ids)
        return [*program, *ending][done]

    sampler = TextSampler(
        ScriptedModel(len(tokenizer), follow(tokenizer, script)),
        tokenizer,
        [python],
        Format("fences"),
        SamplerConfig(temperature=0.0),
        exact=exact,
    )
    return sampler.generate(["?"])[0]


@pytest.mark.parametrize("exact", [True, False])
def test_a_fence_in_its_usual_spelling_is_found_by_text_and_by_stop_ids(fenced, python, exact):
    row = written_by(fenced, python, fenced.encode_untrusted("```\n"), exact)
    assert [(call.code, call.result.output) for call in row.calls] == [
        ("6*7", "42")
    ] and row.finish_reason == "stop"


@pytest.mark.parametrize("exact, calls", [(True, 1), (False, 0)])
def test_a_fence_in_another_spelling_is_found_by_text_and_missed_by_stop_ids(
    fenced, python, exact, calls
):
    letter_by_letter = [id for letter in "```\n" for id in fenced.encode_untrusted(letter)]
    assert (
        letter_by_letter != fenced.encode_untrusted("```\n")
        and fenced.decode(letter_by_letter) == "```\n"
    )
    assert len(written_by(fenced, python, letter_by_letter, exact).calls) == calls


def test_a_spelled_out_demonstration_says_the_same_and_trains_the_same_text(fenced, python):
    problems = load("generated:mul,power", n=5)
    for trajectory in demonstrate(
        problems, fenced, Format("fences"), {"python": python}, TeacherConfig(quality=1.0)
    ):
        plain = spelled_out(trajectory, fenced)
        assert fenced.decode(plain.ids) == fenced.decode(trajectory.ids)
        trained = lambda t: fenced.decode([id for id, chosen in zip(t.ids, t.trained) if chosen])
        assert trained(plain) == trained(trajectory)
        assert fenced.tags["```python\n"] not in plain.ids


@pytest.mark.parametrize("rewards", [[1.0, 0, 0, 0, 1, 1, 0, 1]])
def test_plus_and_minus_one_whitened_are_one_and_zero_whitened(rewards):
    signed = [2 * reward - 1 for reward in rewards]
    a, b = (
        group_advantages(r, 4, "whiten", num_tokens=torch.arange(1, 9)) for r in (rewards, signed)
    )
    torch.testing.assert_close(a, b)


def call(output: str, ok: bool = True) -> Call:
    return Call("python", "", ToolResult(output, ok, "ok" if ok else "error"))


def test_the_fate_of_code_is_counted_by_hand():
    problem = Problem("?", "4")
    row = lambda *calls: Trajectory(trained=[1] * 10, calls=list(calls))
    seen = [
        (row(call("4")), True, problem),
        (row(call("NameError", ok=False), call("4")), True, problem),  # repaired
        (row(call("NameError", ok=False), call("NameError", ok=False)), False, problem),  # not
        (row(call("5")), False, problem),  # ran, and misled
        (row(), True, problem),
    ]
    fate = fate_of_code(seen)
    assert (
        fate["code_ratio"] == 4 / 5
        and fate["pass_ratio"] == 3 / 6
        and fate["pass_ratio_right"] == 2 / 3
        and fate["pass_ratio_wrong"] == 1 / 3
    )
    assert (
        fate["repair_rate"] == 1 / 2
        and fate["right_after_failure"] == 1 / 2
        and fate["right_after_wrong_value"] == 0.0
    )
    assert fate["tokens_per_correct"] == 50 / 3 and fate["accuracy"] == 3 / 5


def test_what_never_happened_has_no_rate():
    assert fate_of_code([(Trajectory(), False, Problem("?", "4"))])["repair_rate"] is None
