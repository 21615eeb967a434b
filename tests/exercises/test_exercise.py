"""Every exercise, its reference, its stub and its mistakes: who is told what."""

import contextlib
import inspect
import itertools
import re
from importlib import import_module

import pytest

from nanotir.exercises.check import UNCHANGED, check, compared, outcomes
from nanotir.exercises.exercise import LABS, Mistake, edited, edited_text, exercises
from nanotir.exercises.stub import load, stub

ALL = exercises()
MISTAKES = [(exercise, number) for exercise in ALL for number in range(len(exercise.mistakes))]


def name_of(value) -> str:
    return getattr(value, "name", str(value))


each = pytest.mark.parametrize("exercise", ALL, ids=name_of)
seeded = pytest.mark.parametrize("seed", range(3))


@each
@seeded
def test_the_package_passes(exercise, seed):
    verdict = check(exercise, edited(exercise, UNCHANGED), seed)
    assert verdict == ("passed", exercise.look, "", None)


@each
def test_the_stub_is_to_do(exercise):
    verdict = check(exercise, load(exercise, stub(exercise), f"e{exercise.number}.py"))
    assert verdict.word == "to do"


@pytest.mark.parametrize("exercise, number", MISTAKES, ids=name_of)
@seeded
def test_a_mistake_is_named_and_no_other(exercise, number, seed):
    mistake = exercise.mistakes[number]
    verdict = check(exercise, edited(exercise, mistake), seed)
    assert (verdict.word, verdict.sentence) == ("wrong", mistake.message)


@each
def test_two_mistakes_at_once_do_not_pass(exercise):
    right = outcomes(exercise, edited(exercise, UNCHANGED), 0)
    source = inspect.getsource(inspect.unwrap(exercise.function))
    for one, other in itertools.combinations(exercise.mistakes, 2):
        both = Mistake(f"{one.message}; {other.message}", one.edits + other.edits)
        with contextlib.suppress(ValueError):  # they change the same text
            edited_text(source, both)
            assert compared(exercise, outcomes(exercise, edited(exercise, both), 0), right), both


@each
def test_what_to_read_exists(exercise):
    for place in exercise.read:
        if place.startswith("nanotir/"):
            file, name = re.fullmatch(r"(nanotir/[\w/]+)\.py(?::(\w+))?", place).groups()
            module = import_module(file.replace("/", "."))
            assert not name or hasattr(module, name)


def test_exercises_are_numbered_in_order():
    numbers = [exercise.number for exercise in ALL]
    assert numbers == sorted(set(numbers))


@each
def test_an_exercise_is_whole(exercise):
    assert exercise.lab in LABS
    assert 1 <= exercise.stars <= 4
    assert len(exercise.mistakes) >= 6
    assert len({mistake.message for mistake in exercise.mistakes}) == len(exercise.mistakes)
    assert exercise.name == exercise.target.split(":")[1]
    assert any(place.startswith("nanotir/") for place in exercise.read)
