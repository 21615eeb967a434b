"""The six tiny worlds: two of them are learned here, the others are measured in BUGS.md."""

import inspect
import itertools

import pytest

from nanotir import advantages
from nanotir.exercises import probes
from nanotir.exercises.probes import WORLDS, Characters, Climb, Deed, Oracle, climb, learn
from nanotir.rows import Row
from nanotir.tools import ToolResult
from nanotir.trajectory import Call, Format, Trajectory

BY_NAME = {world.name: world for world in WORLDS}


@pytest.mark.parametrize("name", ["use the result", "don't call"])
def test_a_world_is_learned_from_random_weights(name):
    found = climb(BY_NAME[name])
    assert found.solved is not None and found.last >= probes.SOLVED, found
    assert found.gap < probes.GAP


def test_equal_seeds_earn_equal_rewards_and_others_do_not():
    def first(seed):
        return [reward for reward, _ in itertools.islice(learn(BY_NAME["copy"], seed), 2)]

    assert first(3) == first(3) != first(4)


@pytest.mark.parametrize(
    "name, answer, digit, told, calls, reward",
    [
        ("constant", "1", "0", None, 0, 1.0),
        ("constant", "0", "0", None, 0, 0.0),
        ("copy", "2", "2", "0", 1, 1.0),
        ("copy", "0", "2", "0", 1, 0.0),
        ("call", "", "2", "0", 1, 1.0),
        ("call", "2", "2", None, 0, 0.0),
        ("use the result", "0", "2", "0", 1, 1.0),
        ("use the result", "2", "2", "0", 1, 0.0),
        ("two calls", "", "2", "", 1, 0.0),
        ("don't call", "2", "2", "2", 2, 0.4),
        ("don't call", "2", "2", None, 0, 1.0),
    ],
)
def test_what_a_deed_earns(name, answer, digit, told, calls, reward):
    assert BY_NAME[name].reward(Deed(answer, digit, told, calls)) == pytest.approx(reward)


def row(tokenizer, *pieces, reason="stop", told=()):
    trajectory = Format().trajectory(tokenizer, "2", list(pieces))
    trajectory.calls = [Call("ask", "", ToolResult(text)) for text in told]
    trajectory.finish_reason = reason
    return trajectory


def test_the_answer_is_the_last_digit_after_the_last_result():
    tokenizer = Characters()
    world, call = BY_NAME["copy"], [("ask", "1"), ("output", "0")]
    after = row(tokenizer, ("text", "0"), *call, ("text", "12"), told="0")
    before = row(tokenizer, ("text", "2"), *call, told="0")
    assert probes.earned(world, after, "2", tokenizer) == 1.0
    assert probes.earned(world, before, "2", tokenizer) == 0.0


def test_a_row_that_does_not_end_itself_earns_nothing():
    tokenizer = Characters()
    cut = row(tokenizer, ("text", "2"), reason="length")
    assert probes.earned(BY_NAME["copy"], cut, "2", tokenizer) == 0.0


def answers_of(name, calls):
    """What the tool of a world says to so many calls of one row."""
    tokenizer = Characters()
    oracle = Oracle(BY_NAME[name], tokenizer, seed=0)
    session = Row(0, tuple(Format().prompt(tokenizer, "2")), 0, 99, None, Trajectory())
    return [oracle.submit("", session).result().output for _ in range(calls)]


def test_the_tool_tells_nothing_new_a_secret_or_a_secret_at_the_second_call():
    assert answers_of("don't call", 3) == ["2", "2", "2"]
    assert set(answers_of("use the result", 30)) == {"0", "1", "2"}
    first, *others = answers_of("two calls", 30)
    assert first == "" and set(others) == {"0", "1", "2"}


def test_an_error_ends_its_own_world_only_and_says_where(monkeypatch):
    def broken(*_):
        raise IndexError("nothing there")

    monkeypatch.setattr(probes.rl, "split", broken)
    found = climb(BY_NAME["constant"])
    assert found.solved is None and "IndexError: nothing there (test_probes.py:" in found.error


def test_the_first_world_that_is_not_learned_says_where_to_look(monkeypatch, capsys):
    def learned(world, seed):
        solved = None if world.name in ("call", "two calls") and seed else 7 + seed
        return Climb(world.name, seed, solved, best=1.0, last=0.5, gap=0.25, seconds=1.0)

    monkeypatch.setattr(probes, "climb", learned)
    assert probes.report(seeds=2) == 1
    out = capsys.readouterr().out
    assert "8 (7 to 8)" in out and "1 of 2" in out
    assert "The first that fails is 'call'. Look at how a block opens" in out
    assert "Sampler and trainer disagree" in out


def test_the_functions_of_a_student_are_plugged_in(tmp_path, monkeypatch, capsys):
    source = inspect.getsource(advantages)
    upside_down = source.replace("groups - groups.mean(1, keepdim=True)", "groups.mean() - groups")
    (tmp_path / "e08_advantages.py").write_text(upside_down)
    monkeypatch.setattr(probes, "WORLDS", WORLDS[:1])
    assert probes.main([]) == 0
    assert probes.main(["--answers", str(tmp_path)]) == 1
    assert "not solved" in capsys.readouterr().out
