"""The stub, a student's file, and the student's function in the package's place."""

import ast

import pytest
import torch

from nanotir import losses
from nanotir.exercises.exercise import exercises
from nanotir.exercises.stub import CalledSolution, file_name, forbidden, load, plugged, stub

ALL = exercises()
ADVANTAGES = next(exercise for exercise in ALL if exercise.name == "group_advantages")
CLIPPED = next(exercise for exercise in ALL if exercise.name == "clipped")


@pytest.mark.parametrize("exercise", ALL, ids=lambda exercise: exercise.name)
def test_a_stub_keeps_signature_docstring_and_what_the_function_uses(exercise):
    text = stub(exercise)
    function = load(exercise, text, file_name(exercise))
    assert function.__doc__ == exercise.function.__doc__
    assert function.__annotations__ == exercise.function.__annotations__
    assert len(function_node(text, exercise.name).body) == 1 + (function.__doc__ is not None)


def function_node(text: str, name: str) -> ast.FunctionDef:
    return next(n for n in ast.parse(text).body if getattr(n, "name", "") == name)


def test_a_stub_imports_the_helpers_of_its_module_but_not_the_function():
    assert "from nanotir.advantages import BASELINES, SCALES, whiten" in stub(ADVANTAGES)


def test_a_file_has_the_name_of_its_exercise():
    assert file_name(ADVANTAGES) == "e08_advantages.py"


def test_a_plugged_function_is_called_by_whatever_name_and_only_meanwhile():
    right = losses.group_advantages([1.0, 0.0], 2)
    with plugged(ADVANTAGES, lambda rewards, group_size, **options: (rewards, group_size)):
        assert losses.group_advantages([1.0, 0.0], group_size=2) == ([1.0, 0.0], 2)
    assert torch.equal(losses.group_advantages([1.0, 0.0], 2), right)


def test_tables_of_functions_call_the_plugged_one():
    surrogate, _ = losses.LOSSES["dapo"]
    with plugged(CLIPPED, lambda terms, options: "mine"):
        assert surrogate(None, None) == "mine"


def test_within_a_block_a_second_function_takes_the_place_of_the_first():
    with plugged(CLIPPED, lambda *_: 1):
        with plugged(CLIPPED, lambda *_: 2):
            assert losses.clipped(None, None) == 2
        assert losses.clipped(None, None) == 1


def test_a_call_of_the_package_s_function_is_noticed_even_if_the_error_is_caught():
    with forbidden(CLIPPED) as calls:
        with pytest.raises(CalledSolution):
            losses.clipped(None, None)
    assert calls == ["clipped"]
