"""The measures and the rewards of TAPO's experiment."""

from types import SimpleNamespace

import pytest

from nanotir.lab.tapo import COLD, PRICE, TAPO, actions, is_invalid, wrong_tools
from nanotir.problems import Problem
from nanotir.rewards import get_soft_overlong_punishment
from nanotir.tools import ToolResult
from nanotir.trajectory import Call, Format, Trajectory


def price(settings: dict, ids: int) -> float:
    lengths = (settings["reward.max_completion_len"], settings["reward.soft_punish_cache"])
    return get_soft_overlong_punishment(*lengths)([[0] * ids])[0]


def test_tapos_ramp_is_the_second_half_of_the_room_for_an_answer():
    room = COLD["sampler.max_new_tokens"]
    assert [price(TAPO, ids) for ids in (1, room // 2, room)] == [0.0, 0.0, -1.0]
    assert -1 < price(TAPO, room // 2 + 1) < 0


def test_the_price_per_id_is_paid_by_short_answers():
    assert [price(PRICE, ids) for ids in (12, 42, 72)] == [0.0, -0.5, -1.0]


def test_a_tool_that_the_solution_does_without_is_a_wrong_one():
    search, python = (Call(name, "", ToolResult("")) for name in ("search", "python"))
    fact = Problem("?", "1", solution=(("text", "I look it up."), ("search", "1")))
    words = Problem("!", "2", solution=(("text", "I know."),))
    rows = [Trajectory(calls=[search, python]), Trajectory(calls=[python])]
    assert wrong_tools([fact, words], rows) == [False, True, True]


THOUGHT, RIGHT = ("think", "Hm."), ("answer", "4")


@pytest.mark.parametrize(
    "pieces, calls, invalid",
    [
        ([THOUGHT, RIGHT], 0, False),
        ([THOUGHT, ("python", "2+2"), ("output", "4"), RIGHT], 1, False),
        ([THOUGHT, ("python", "2+2"), ("output", "No calls left."), RIGHT], 0, True),
        ([("text", "4"), ("output", "words outside: answer again."), RIGHT], 0, True),
        ([THOUGHT], 0, True),
    ],
)
def test_an_answer_that_is_told_off_or_breaks_the_grammar_is_invalid(
    tokenizer, pieces, calls, invalid
):
    row = Format("grammar").trajectory(tokenizer, "?", pieces)
    row.calls += [Call("python", "2+2", ToolResult("4"))] * calls
    assert is_invalid(row, tokenizer) is invalid


def test_a_bonus_is_hollow_where_the_answer_that_earns_it_is_wrong(tokenizer, monkeypatch):
    pieces = [[THOUGHT, RIGHT], [THOUGHT, ("answer", "5")], [THOUGHT], [RIGHT]]
    rows = [Format("grammar").trajectory(tokenizer, "?", row) for row in pieces]
    sampler = SimpleNamespace(generate=lambda questions, seed: rows)
    monkeypatch.setattr("nanotir.lab.tapo.make_sampler", lambda run: sampler)
    held_out = [Problem("?", "4")] * 4
    config = SimpleNamespace(seed=0)
    found = actions(SimpleNamespace(held_out=held_out, tokenizer=tokenizer, config=config))
    assert (found["bonus_earned"], found["hollow"]) == (0.75, pytest.approx(2 / 3))
