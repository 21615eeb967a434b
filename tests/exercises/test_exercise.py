"""Every exercise, its reference, its stub and its mistakes: who is told what."""

import contextlib
import inspect
import re
from importlib import import_module

import pytest

from nanotir.exercises.check import UNCHANGED, check, compared, fault_of, outcome, outcomes
from nanotir.exercises.exercise import LABS, Mistake, edited, edited_text, exercises
from nanotir.exercises.stub import load, stub

ALL = exercises()
each = pytest.mark.parametrize("exercise", ALL, ids=lambda exercise: exercise.name)


@each
def test_the_package_passes(exercise):
    verdict = check(exercise, edited(exercise, UNCHANGED))
    assert verdict == ("passed", exercise.look, "", None)


@each
def test_the_stub_is_to_do(exercise):
    verdict = check(exercise, load(exercise, stub(exercise), f"e{exercise.number}.py"))
    assert verdict.word == "to do"


@each
def test_nothing_else_does_the_same_as_the_package_or_as_a_mistake(exercise, request):
    """The confusion matrix is the identity, so every mistake is told by its own message.

    At the seed of the exercise's number; with --mutants, at 0, 1 and 2.
    """
    every = request.config.getoption("--mutants")
    for seed in range(3) if every else [exercise.number % 3]:
        changes = {change.message: change for change in (UNCHANGED, *exercise.mistakes)}
        done = {
            name: outcomes(exercise, edited(exercise, change), seed)
            for name, change in changes.items()
        }
        errors = {one["error"]["kind"] for one in done[""] if "error" in one}
        assert errors <= {"ValueError"}  # raised on purpose
        for one, theirs in done.items():
            same = [other for other, its in done.items() if not compared(exercise, theirs, its)]
            assert same == [one]


@each
def test_a_mistake_is_told_by_its_message(exercise):
    verdict = check(exercise, edited(exercise, exercise.mistakes[-1]))
    assert verdict.word == "wrong"
    assert verdict.sentence == exercise.mistakes[-1].message


def test_an_error_that_is_missing_is_asked_for_by_its_name():
    (exercise,) = exercises(14)
    ours = edited(exercise, UNCHANGED)

    def lenient(n, c, k):
        return ours(n, c, k) if 0 < k <= n else 0.0

    verdict = check(exercise, lenient)
    assert (verdict.word, verdict.sentence) == ("wrong", "it should raise ValueError here")


def test_a_tokenizer_that_is_not_returned_is_told_so():
    (exercise,) = exercises(1)
    ours = edited(exercise, UNCHANGED)

    def forgetful(state):
        ours(state)

    assert check(exercise, forgetful).sentence == "the output is None: is a `return` missing?"


@each
def test_two_mistakes_at_once_do_not_pass(exercise):
    source = inspect.getsource(inspect.unwrap(exercise.function))
    right = outcomes(exercise, edited(exercise, UNCHANGED), 0)
    for one, other in zip(exercise.mistakes, exercise.mistakes[1:]):
        both = Mistake(f"{one.message}; {other.message}", one.edits + other.edits)
        with contextlib.suppress(ValueError):  # they change the same text
            edited_text(source, both)
            assert differs(exercise, edited(exercise, both), right), both.message


def differs(exercise, function, right: list[dict]) -> bool:
    """Whether a function does something else in any case; the cases after that are not run."""
    signature = inspect.signature(exercise.function)
    twice = zip(exercise.cases(0), exercise.cases(0))
    found = (outcome(exercise, function, pair, signature) for pair in twice)
    return any(fault_of(mine, its, exercise) for mine, its in zip(found, right))


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
