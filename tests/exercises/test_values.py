"""Outputs as plain values: what is equal, what is told first, how it is shown."""

import json
from dataclasses import dataclass

import pytest
import torch

from nanotir.exercises.values import STRUCTURE, VALUE, difference, plain, shown


@dataclass
class Point:
    x: float
    y: torch.Tensor


def told(yours, right, tolerance=1e-6):
    return difference(json.loads(json.dumps(plain(yours))), plain(right), tolerance)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        10**30,
        "text\n",
        float("inf"),
        float("nan"),
        [],
        {},
        (1, [2.0, {"a": None}]),
        torch.zeros(0, 3),
        torch.tensor([1.0, float("nan")]),
        torch.tensor([True]),
        Point(1.0, torch.arange(4)),
    ],
    ids=repr,
)
def test_a_value_equals_itself_after_it_was_sent(value):
    assert told(value, value) is None


@pytest.mark.parametrize(
    "yours, right, kind, sentence",
    [
        (None, 1.0, STRUCTURE, "the output is None: is a `return` missing?"),
        (1.0, torch.ones(1), STRUCTURE, "the output is of type float, not tensor"),
        (True, 1, STRUCTURE, "the output is of type bool, not int"),
        (1.0, 1, STRUCTURE, "the output is of type float, not int"),
        ([1], (1,), STRUCTURE, "the output is of type list, not tuple"),
        (torch.ones(2), torch.ones(1, 2), STRUCTURE, "the output has the shape (2,), not (1, 2)"),
        (
            torch.ones(2),
            torch.ones(2).int(),
            STRUCTURE,
            "the output has the dtype float32, not int32",
        ),
        ([1, 2], [1], STRUCTURE, "the output has 2 items, not 1"),
        ({"a": 1}, {"b": 1}, STRUCTURE, "the output has an item 'a', not 'b'"),
        (0.5, 0.5 + 2e-6, VALUE, "the output is 0.5, not 0.500002"),
        (-18.00033, -18.0003, VALUE, "the output is -18.00033, not -18.0003"),
        (float("nan"), 0.0, VALUE, "the output is nan, not 0"),
        (float("inf"), 1e30, VALUE, "the output is inf, not 1e+30"),
        (1.0, float("inf"), VALUE, "the output is 1, not inf"),
        ("a", "b", VALUE, "the output is 'a', not 'b'"),
        (
            torch.tensor([[1.0, 2.0]]),
            torch.tensor([[1.0, 3.0]]),
            VALUE,
            "the output[0, 1] is 2, not 3",
        ),
        ((1, [2]), (1, [3]), VALUE, "item 0 of item 1 is 2, not 3"),
    ],
)
def test_a_difference_is_one_sentence(yours, right, kind, sentence):
    assert told(yours, right) == (kind, sentence)


def test_an_int_will_do_for_a_float_and_an_error_below_the_tolerance():
    assert told(1, 1.0) is None
    assert told(1.0 + 5e-7, 1.0) is None
    assert told(torch.tensor(1e6 + 0.5, dtype=torch.float64), torch.tensor(1e6).double()) is None


def test_a_wrong_structure_is_told_before_a_wrong_value():
    assert told((1, None), (2, 3)) == (STRUCTURE, "item 1 is None: is a `return` missing?")


@pytest.mark.parametrize("numbers", [[], [1.0], [1.0, 2.0, 3.0]])
def test_a_forged_tensor_needs_all_its_numbers(numbers):
    assert difference(["tensor", numbers, [2], "float32"], plain(torch.ones(2)), 1e-6)


def test_long_values_are_cut_and_control_characters_shown():
    assert len(shown(plain(torch.rand(100, 100)))) <= 160
    assert shown(plain("\x1b[31m")) == repr("\x1b[31m")
    assert shown(plain({"a": (-0.0, None)})) == "{'a': (0, None)}"
