import argparse
from dataclasses import dataclass

import pytest

from nanotir.checks import (
    Amount,
    Count,
    Part,
    Positive,
    Share,
    Whole,
    check_settings,
    one_of,
    unknown,
)
from nanotir.commands import number

NAMES = ("dapo", "grpo", "sapo")


@pytest.mark.parametrize("name", NAMES)
def test_a_known_name_passes(name):
    one_of("loss_type", name, NAMES)


def test_an_unknown_name_is_refused_in_one_line():
    with pytest.raises(ValueError, match="no loss_type 'ppx'") as error:
        one_of("loss_type", "ppx", NAMES)
    assert "\n" not in str(error.value)


def test_the_nearest_name_is_proposed():
    assert unknown("flag", "--rl.step", ["--rl.steps", "--sft.lr"]) == (
        "no flag '--rl.step': did you mean '--rl.steps'?"
    )


def test_where_no_name_is_near_all_of_them_are_listed():
    assert unknown("loss_type", "xyz", NAMES) == "no loss_type 'xyz'; there are dapo, grpo, sapo"


def test_the_keys_of_a_dict_are_names():
    one_of("loss_type", "dapo", {"dapo": 1})
    assert unknown("loss_type", "xyz", {"dapo": 1}) == "no loss_type 'xyz'; there are dapo"


def test_a_part_of_a_name_is_no_name():
    with pytest.raises(ValueError):
        one_of("loss_type", "dap", NAMES)


# Numbers and their ranges.


@dataclass
class Settings:
    steps: Whole = 3
    batch_size: Count = 1
    lr: Positive = 0.1
    weight: Amount = 0.0
    share: Share = 0.5
    part: Part = 1.0
    name: str = "x"
    on: bool = False

    def __post_init__(self):
        check_settings(self, "s")


@pytest.mark.parametrize(
    "given",
    [
        {"steps": 0},
        {"steps": 10**11},
        {"lr": 1e-12},
        {"lr": 3},  # a whole number is a number
        {"weight": 0},
        {"share": 0.0},
        {"share": 1},
        {"part": 1e-9},
    ],
)
def test_numbers_in_the_declared_range_pass(given):
    assert vars(Settings(**given)) == vars(Settings()) | given


@pytest.mark.parametrize(
    "given, message",
    [
        ({"steps": -3}, "--s.steps must be at least 0, not -3"),
        ({"steps": 10**400}, "--s.steps must be at least 0, and of a sensible size, not 1000"),
        ({"batch_size": 0}, "--s.batch-size must be at least 1, not 0"),
        ({"lr": 0.0}, "--s.lr must be above 0, not 0.0"),
        ({"lr": -1.0}, "--s.lr must be above 0, not -1.0"),
        ({"share": 1.5}, "--s.share must be between 0 and 1, not 1.5"),
        ({"part": 0.0}, "--s.part must be above 0 and at most 1, not 0.0"),
        ({"steps": 1.5}, "--s.steps must be a whole number: 1.5"),
        ({"steps": True}, "--s.steps must be a whole number: True"),
        ({"lr": "x"}, "--s.lr must be a number: 'x'"),
        ({"lr": None}, "--s.lr must be a number: None"),
        ({"name": 3}, "--s.name must be text: 3"),
        ({"on": 1}, "--s.on must be true or false: 1"),
    ],
)
def test_a_setting_outside_of_its_type_or_range_is_named_with_both(given, message):
    with pytest.raises(ValueError) as error:
        Settings(**given)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("name", ["lr", "weight", "share", "part"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e-44", "-1e-44", "1e300"])
def test_no_range_holds_what_float32_cannot_compute_with(name, value):
    with pytest.raises(ValueError, match=f"--s.{name} must be"):
        Settings(**{name: float(value)})


def test_a_flag_of_a_command_has_the_ranges_of_settings(capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=number(Count))
    assert parser.parse_args(["--n", "2"]).n == 2
    for text, message in (("0", "it must be at least 1, not 0"), ("x", "invalid int value: 'x'")):
        with pytest.raises(SystemExit):
            parser.parse_args(["--n", text])
        assert f"argument --n: {message}" in capsys.readouterr().err
