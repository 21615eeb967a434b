import dataclasses
import functools

import pytest

from nanotir.config import PRESETS, RECIPES, RunConfig, build, flags, parse


def refused(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as stopped:
        parse(list(arguments))
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == "" and err.count("\n") == 1
    return err


def test_every_setting_has_a_flag_a_default_and_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0
    for name, (kind, default, comment) in flags().items():
        assert (
            f"--{name.replace('_', '-')} {kind.__name__.upper()}" in text
            and comment
            and repr(default) in text
        )
    assert len(flags()) > 60


def test_flags_reach_their_fields_with_their_types():
    config = parse(
        [
            "--seed",
            "3",
            "--rl.lr",
            "1e-3",
            "--sampler.sessions",
            "true",
            "--model.n_layers=2",
            "--data",
            "generated:mul",
        ]
    )
    assert (
        config.seed,
        config.rl.lr,
        config.sampler.sessions,
        config.model.n_layers,
        config.data,
    ) == (3, 1e-3, True, 2, "generated:mul")


def test_a_flag_may_be_spelled_with_dashes_or_as_its_field():
    for flag in ("--eval-data", "--eval_data"):
        assert (
            parse([flag, "jsonl:my_file.jsonl"]).eval_data
            == parse([f"{flag}=jsonl:my_file.jsonl"]).eval_data
            == "jsonl:my_file.jsonl"
        )


def test_a_flag_wins_over_the_preset_and_the_preset_over_the_default():
    assert (
        parse([]).sft.steps
        != parse(["--preset", "probe"]).sft.steps
        == PRESETS["probe"]["sft.steps"]
    )
    assert parse(["--sft.steps", "7", "--preset", "probe"]).sft.steps == 7


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_a_recipe_sets_lies_between_the_defaults_and_the_flags(recipe):
    config, settings = parse(["--recipe", recipe]), RECIPES[recipe].SETTINGS
    assert all(
        functools.reduce(getattr, name.split("."), config) == value
        for name, value in settings.items()
    )
    assert config == build(
        {"recipe": recipe, **settings}
    )  # and nothing else differs from the defaults
    assert parse(["--recipe", recipe, "--sft.steps", "7"]).sft.steps == 7


def test_a_preset_wins_over_the_recipe_and_leaves_alone_what_it_does_not_name():
    recipe, both = parse(["--recipe", "cir"]), parse(["--preset", "probe", "--recipe", "cir"])
    assert (
        recipe.sft.steps
        == RECIPES["cir"].SETTINGS["sft.steps"]
        != both.sft.steps
        == PRESETS["probe"]["sft.steps"]
    )
    assert recipe.format == both.format == "fences" != RunConfig().format
    assert (
        parse(
            ["--preset", "probe", "--recipe", "cir", "--sft.steps", "7", "--format", "tags"]
        ).format
        == "tags"
    )


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_goes_with_every_preset(recipe, preset):
    config = parse(["--recipe", recipe, "--preset", preset])
    assert (config.recipe, config.preset) == (recipe, preset) and build(
        dataclasses.asdict(config)
    ) == config


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_valid_config(preset):
    config = parse(["--preset", preset])
    assert config.preset == preset
    assert (
        config.reward.max_completion_len <= config.sampler.max_new_tokens + 1 or preset == "probe"
    )


def test_small_has_about_fifteen_million_parameters():
    from nanotir.model import Transformer

    assert (
        12e6
        < sum(p.numel() for p in Transformer(parse(["--preset", "small"]).model).parameters())
        < 18e6
    )


def test_a_config_survives_the_way_through_its_file():
    config = parse(["--preset", "small", "--seed", "5", "--rl.epsilon", "0.1"])
    assert build(dataclasses.asdict(config)) == config


@pytest.mark.parametrize(
    "arguments, hint",
    [
        (["--rl.stepz", "3"], "--rl.steps"),
        (["--sed=3"], "--seed"),
        (["--preset", "tinny"], "'tiny'"),
        (["--recipe", "tappo"], "no recipe 'tappo': did you mean 'tapo'"),
        (["--rl.observations", "learned"], "needs --sampler.forge true"),
        (["--seed", "x"], "invalid int value"),
        (["--sampler.sessions", "maybe"], "neither true nor false"),
        (["generated"], "belongs to no flag"),
        (["--seed"], "expected one argument"),
        (["--model.n_heads", "3"], "multiple of"),
        (["--teacher.quality", "2"], "between 0 and 1"),
        (["--resume", "x", "--seed", "1"], "leave out --seed"),
        (["--eval.k", "4"], "number of samples"),
        (["--level", "0"], "at least 1"),
        (["--rl.scale", "std"], "no scale 'std'"),
        (["--sampler.top_p", "0.9"], "RL needs"),
        (["--sampler.top_k", "5"], "RL needs"),
        (["--sampler.temperature", "0"], "RL needs"),
        (["--reward.length", "2"], "wrong answer could earn more"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_remedy(capsys, arguments, hint):
    assert hint in refused(capsys, *arguments)


@pytest.mark.parametrize(
    "values, hint",
    [
        ({"rl.stepz": 1}, "did you mean 'steps'"),
        ({"sede": 1}, "did you mean 'seed'"),
        ({"rl": {"lrr": 1}}, "did you mean 'lr'"),
    ],
)
def test_an_unknown_key_of_a_config_names_the_nearest(values, hint):
    with pytest.raises(ValueError, match=hint):
        build(values)


def test_no_two_configs_share_their_parts():
    assert RunConfig().rl is not RunConfig().rl
