import dataclasses
import functools
import json
import re

import pytest

from nanotir.config import PRESETS, RECIPES, RunConfig, build, comments_of, flags, parse
from nanotir.model import Transformer


def refused(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as stopped:
        parse(list(arguments))
    out, err = capsys.readouterr()
    assert stopped.value.code == 2
    assert out == ""
    assert err.count("\n") == 1
    return err


@pytest.fixture
def help_text(monkeypatch, capsys) -> list[str]:
    """The lines of --help, one a flag, on a terminal where none is wrapped."""
    monkeypatch.setenv("COLUMNS", "500")
    with pytest.raises(SystemExit) as stopped:
        parse(["--help"])
    assert stopped.value.code == 0
    flags = re.split(r"\n  (?=-)", capsys.readouterr().out)
    return [" ".join(line.split()) for line in flags]


def test_every_setting_has_a_flag_its_type_its_comment_and_its_default(help_text):
    for name, (kind, default, comment) in flags().items():
        flag = f"--{name.replace('_', '-')} {kind.__name__.upper()}"
        assert comment
        assert f"{flag} {comment} (default: {default!r})" in help_text
    assert len(help_text) == len(flags()) + 2  # the usage, and --help itself


def fields_of(cls=RunConfig, prefix: str = "") -> list[str]:
    found = []
    for item in dataclasses.fields(cls):
        if dataclasses.is_dataclass(item.default_factory):
            found += fields_of(item.default_factory, f"{item.name}.")
        else:
            found.append(prefix + item.name)
    return found


def test_every_field_is_a_flag():
    assert list(flags()) == fields_of()
    assert len(flags()) > 100


@dataclasses.dataclass
class Settings:
    # Not about a field.
    one: str = "# not a comment"  # a comment
    two: int = 0  # a comment
    # that goes on
    # and on: 100% of it

    # Not about a field either.
    three: float = 1.0  # the third


def test_a_comment_goes_on_on_the_lines_below_its_field():
    assert comments_of(Settings) == {
        "one": "a comment",
        "two": "a comment that goes on and on: 100% of it",
        "three": "the third",
    }


def test_comments_of_two_lines_are_whole_in_the_help(help_text):
    assert any(
        "or grammar (tags for thoughts and the answer as well) (" in line for line in help_text
    )
    assert any("2 say; 0: no weights [at least 0] (default: 0.0)" in line for line in help_text)


def test_no_comment_ends_in_the_middle_of_a_sentence():
    for name, (_, _, comment) in flags().items():
        assert not comment.endswith((",", ";", ":", " and", " or", " the", " of")), name
        assert comment.count("(") == comment.count(")"), name


def test_flags_reach_their_fields_with_their_types():
    given = "--seed 3 --rl.lr 1e-3 --sampler.sessions true --model.n_layers=2 --data generated:mul"
    config = parse(given.split())
    assert config.seed == 3
    assert config.rl.lr == 1e-3
    assert config.sampler.sessions is True
    assert config.model.n_layers == 2
    assert config.data == "generated:mul"


@pytest.mark.parametrize("flag", ["--eval-data", "--eval_data"])
def test_a_flag_may_be_spelled_with_dashes_or_as_its_field(flag):
    spaced = parse([flag, "jsonl:my_file.jsonl"])
    assert spaced == parse([f"{flag}=jsonl:my_file.jsonl"])
    assert spaced.eval_data == "jsonl:my_file.jsonl"


def test_a_flag_wins_over_the_preset_and_the_preset_over_the_default():
    preset = PRESETS["probe"]["sft.steps"]
    assert parse([]).sft.steps != preset
    assert parse(["--preset", "probe"]).sft.steps == preset
    assert parse(["--sft.steps", "7", "--preset", "probe"]).sft.steps == 7


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_a_recipe_sets_lies_between_the_defaults_and_the_flags(recipe):
    config = parse(["--recipe", recipe])
    for name, value in RECIPES[recipe].SETTINGS.items():
        assert functools.reduce(getattr, name.split("."), config) == value
    assert config == build({"recipe": recipe, **RECIPES[recipe].SETTINGS})  # and nothing else
    assert parse(["--recipe", recipe, "--sft.steps", "7"]).sft.steps == 7


def test_a_preset_wins_over_the_recipe():
    config = parse(["--preset", "probe", "--recipe", "cir"])
    assert config.sft.steps == PRESETS["probe"]["sft.steps"]
    assert config.sft.steps != RECIPES["cir"].SETTINGS["sft.steps"]


def test_a_preset_adds_no_phase_that_the_recipe_leaves_out():
    config = parse(["--preset", "probe", "--recipe", "tora", "--sampler.top-p", "0.9"])
    assert (config.rl.steps, config.sampler.top_p) == (0, 0.9)


def test_a_preset_leaves_alone_what_it_does_not_name():
    both = ["--preset", "probe", "--recipe", "cir"]
    assert parse(both).format == "fences" != RunConfig().format
    assert parse([*both, "--format", "tags"]).format == "tags"


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_goes_with_every_preset(recipe, preset):
    config = parse(["--recipe", recipe, "--preset", preset, "--init", "folder"])
    assert (config.recipe, config.preset) == (recipe, preset)
    assert build(dataclasses.asdict(config)) == config


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "probe"])
def test_every_preset_charges_for_length_before_an_answer_is_cut(preset):
    config = parse(["--preset", preset, "--init", "folder"])
    assert config.reward.max_completion_len <= config.sampler.max_new_tokens + 1


def test_small_has_about_fifteen_million_parameters():
    model = Transformer(parse(["--preset", "small"]).model)
    assert 12e6 < sum(weight.numel() for weight in model.parameters()) < 18e6


def test_a_config_survives_the_way_through_its_file():
    config = parse(["--preset", "small", "--seed", "5", "--rl.epsilon", "0.1"])
    assert build(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_a_run_goes_on_with_its_settings_on_another_device(tmp_path):
    settings = dataclasses.asdict(parse(["--seed", "5", "--device", "cuda", "--rl.steps", "7"]))
    (tmp_path / "config.json").write_text(json.dumps(settings))
    config = parse(["--resume", str(tmp_path), "--device", "cpu", "--threads", "3"])
    assert (config.device, config.threads, config.seed, config.rl.steps) == ("cpu", 3, 5, 7)
    assert config.out == config.resume == str(tmp_path)
    assert parse(["--resume", str(tmp_path)]).device == "cuda"


@pytest.mark.parametrize(
    "arguments, hint",
    [
        (["--rl.stepz", "3"], "--rl.steps"),
        (["--sed=3"], "--seed"),
        (["--preset", "tinny"], "'tiny'"),
        (["--recipe", "tappo"], "no recipe 'tappo': did you mean 'tapo'"),
        (["--format", "text", "--recipe", "autocode"], "--recipe autocode needs tags"),
        (["--recipe", "autocode", "--tools", "search"], "add it to --tools"),
        (["--recipe", "autocode", "--rl.keep", "2"], "no use for --rl.keep: leave it out"),
        (["--recipe", "autocode", "--rl.drop-void", "true"], "no use for --rl.drop-void"),
        (["--recipe", "autocode", "--rl.beta", "0.1"], "no use for --rl.beta"),
        (["--recipe", "autocode", "--rl.budgets", "1,2"], "no use for --rl.budgets"),
        (
            "--recipe autocode --rl.observations learned --sampler.forge true".split(),
            "no use for --rl.observations",
        ),
        (["--recipe", "autocode", "--rl.scale", "batch"], "needs --rl.scale group or none"),
        ("--reward.coin true --rl.keep 4".split(), "rl.keep needs graded answers"),
        (["--eval.samples", "4", "--sampler.temperature", "0"], "are all the same"),
        (["--format", "text", "--reward.grammar", "0.1"], "--reward.grammar needs tags"),
        (["--sampler.stop-string", "true"], "needs --format text"),
        (["--rl.observations", "learned"], "needs --sampler.forge true"),
        (["--data", "gsm8"], "no data source 'gsm8': did you mean 'gsm8k'?"),
        (["--level", "3000"], "--level must be between 1 and 100"),
        (["--seed", "x"], "invalid int value"),
        (["--sampler.sessions", "maybe"], "neither true nor false"),
        (["generated"], "belongs to no flag"),
        (["--seed"], "expected one argument"),
        (["--model.n_heads", "3"], "multiple of"),
        (["--teacher.quality", "2"], "between 0 and 1"),
        (["--resume", "x", "--seed", "1"], "leave out --seed"),
        (["--eval.k", "4"], "number of samples"),
        (["--level", "0"], "between 1 and 100"),
        (["--rl.scale", "std"], "no scale 'std'"),
        (["--rl.fused", "true", "--rl.entropy_coef", "0.1"], "leave out rl.entropy_coef"),
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


# Numbers.

NUMBERS = {name: kind for name, (kind, _, _) in flags().items() if kind in (int, float)}


def test_every_number_declares_its_range_and_the_help_shows_it(help_text):
    for name, kind in NUMBERS.items():
        flag = f"--{name.replace('_', '-')} {kind.__name__.upper()}"
        (line,) = [line for line in help_text if line.startswith(flag)]
        assert re.search(r"\[(at least|above|between) [^\]]+\] \(default", line), line


@pytest.mark.parametrize("name", NUMBERS)
def test_no_number_may_be_senseless(capsys, name):
    flag = f"--{name.replace('_', '-')}"
    senseless = ("-3", "nan", "inf", "1e-44") if NUMBERS[name] is float else ("-3", "1" + "0" * 99)
    for value in senseless:
        assert f"{flag} must be" in refused(capsys, f"{flag}={value}")
