"""Tools that lie, and the measures of what a policy makes of them."""

from types import SimpleNamespace

import pytest

from nanotir.lab.trust import Liar, Lie, asks_again, habits
from nanotir.problems import Problem
from nanotir.tools import Tool, ToolResult
from nanotir.trajectory import Call, Format, Trajectory


class Echo(Tool):
    name = "python"

    def run(self, text, session=None):
        return ToolResult(text)


def said(liar, text="12+34", rows=range(400), times=1) -> list[ToolResult]:
    """What so many calls of each row give."""
    sessions = [SimpleNamespace(index=row) for row in rows]
    return [liar.run(text, session) for session in map(Hashed, sessions) for _ in range(times)]


class Hashed:
    def __init__(self, session):
        self.index = session.index


def test_lies_come_with_their_probability():
    lies = [isinstance(result, Lie) for result in said(Liar(Echo(), 0.3))]
    assert abs(sum(lies) - 120) < 37  # four standard deviations


def test_a_lie_looks_like_a_result_and_is_wrong():
    for result in said(Liar(Echo(), 1.0), rows=range(20)):
        assert isinstance(result, Lie) and result.ok and result.status == "ok"
        assert result.output != "12+34" and len(result.output) == len("12+34")


def test_a_tool_that_says_so_tells_no_number():
    outputs = {result.output for result in said(Liar(Echo(), 1.0, silent=False), rows=range(9))}
    assert outputs == {"The line is down."}


def test_what_holds_no_digit_is_never_a_lie():
    assert {result.output for result in said(Liar(Echo(), 1.0), "SyntaxError")} == {"SyntaxError"}


def test_a_call_that_is_made_again_may_end_otherwise():
    twice = said(Liar(Echo(), 0.5), times=2)
    pairs = [(isinstance(a, Lie), isinstance(b, Lie)) for a, b in zip(twice[::2], twice[1::2])]
    assert {(True, False), (False, True), (True, True), (False, False)} == set(pairs)


def test_lies_depend_on_no_other_row():
    forth, back = said(Liar(Echo(), 0.5)), said(Liar(Echo(), 0.5), rows=reversed(range(400)))
    assert [result.output for result in forth] == [result.output for result in back[::-1]]


def test_a_session_that_has_ended_is_forgotten():
    liar, session = Liar(Echo(), 0.5), Hashed(SimpleNamespace(index=1))
    first = liar.run("12", session)
    liar.end_session(session)
    assert not liar.calls
    assert liar.run("12", session).output == first.output


def row(tokenizer, *outputs, answer="9") -> Trajectory:
    found = Format().trajectory(tokenizer, "?", [("text", f"\\boxed{{{answer}}}")])
    found.calls += [Call("python", code, result) for code, result in outputs]
    return found


@pytest.mark.parametrize("codes, again", [(["1"], False), (["1", "2"], False), (["1", "1"], True)])
def test_only_the_same_call_is_made_again(tokenizer, codes, again):
    assert asks_again(row(tokenizer, *[(code, ToolResult("1")) for code in codes])) is again


def test_a_lie_is_believed_where_it_is_the_answer(tokenizer, monkeypatch):
    lie, truth = ("1+1", Lie("9")), ("1+1", ToolResult("9"))
    rows = [row(tokenizer, lie), row(tokenizer, lie, answer="2"), row(tokenizer, truth)]
    rows += [row(tokenizer, lie, truth), row(tokenizer), row(tokenizer, truth, truth)]
    rows += [row(tokenizer), row(tokenizer)]
    sampler = SimpleNamespace(generate=lambda questions, n, seed: rows)
    monkeypatch.setattr("nanotir.lab.trust.make_sampler", lambda run: sampler)
    monkeypatch.setattr("nanotir.lab.trust.SAMPLES", 4)
    config = SimpleNamespace(seed=0)
    asked = [Problem("?", "2", kind=kind) for kind in "AC"]  # in the second, words suffice
    run = SimpleNamespace(held_out=asked, tokenizer=tokenizer, config=config)
    assert habits(run) == {
        "calls_easy": 0.5,
        "calls_hard": 1.25,
        "asked_again": 0.25,
        "believed": 0.5,
    }
