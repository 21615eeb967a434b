"""The README of the exercises: its first exercise passes, and its tables are the exercises'."""

import re
from pathlib import Path

import pytest

from nanotir.exercises import check
from nanotir.exercises.exercise import exercises
from nanotir.exercises.stub import load, stub

README = (Path(check.__file__).with_name("README.md")).read_text()
ALL = {exercise.number: exercise for exercise in exercises()}
whole = pytest.mark.skipif(len(ALL) < 14, reason="exercises are missing")


@whole
def test_the_first_exercise_is_done_in_the_two_steps_that_are_shown():
    formula, guard = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    head = stub(ALL[14]).split("    raise NotImplementedError")[0]
    words = []
    for body in (formula, guard + formula):
        source = head + body
        words.append(check.check(ALL[14], load(ALL[14], source, "e14_pass_at_k.py")).word)
    assert words == ["error", "passed"]


@whole
def test_the_labs_minutes_and_points_are_those_of_their_exercises():
    rows = re.findall(r"^\| ([A-D]) \| .* \| (\d+) to (\d+) \| (\d+) \| (\d+) \|$", README, re.M)
    found = {lab: tuple(map(int, numbers)) for lab, *numbers in rows}
    for lab, row in found.items():
        own = [exercise for exercise in ALL.values() if exercise.lab == lab]
        numbers = [exercise.number for exercise in own]
        minutes = sum(exercise.minutes for exercise in own)
        assert row == (min(numbers), max(numbers), minutes, sum(e.points for e in own))
    assert list(found) == ["A", "B", "C", "D"]


def test_the_command_for_reading_questions_prints_them(capsys):
    [code] = re.findall(r'^python -c "(.*)"$', README, re.M)
    exec(code, {})
    assert ALL[8].question in capsys.readouterr().out
