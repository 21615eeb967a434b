import pytest

from nanotir.checks import one_of, unknown

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
