"""Run folders that are damaged, incomplete or changed: each is one line that names the file."""

import itertools
import json
import shutil
import struct
import zipfile

import pytest
import torch

import sample
import train
from nanotir import evaluate
from nanotir.policy import load_run
from nanotir.run import Run
from nanotir.run_files import read_evaluations, read_model_config

pytestmark = pytest.mark.usefixtures("shared_tools")
TINY = (
    "--preset probe --problems 20 --data generated:itself --sft.steps 3 --sft.batch_size 4 "
    "--eval.problems 2 --eval.modes text --rl.steps 0 --sampler.max_new_tokens 8 --tools python "
    "--threads 1"
).split()


class Killed(BaseException):
    """The process ends here, as far as the run's files can tell."""


def stopped_run(out, *arguments):
    """A run that was killed after the second step of imitation, whose checkpoint is step 2's."""
    finish = Run.finish_step

    def kill(self, step, *rest, **settings):
        finish(self, step, *rest, **settings)
        if step == 2:
            raise Killed

    with pytest.MonkeyPatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Run, "finish_step", kill)
        train.main([*TINY, "--save_every", "1", "--out", str(out), *arguments])


@pytest.fixture(scope="module")
def stopped(shared_tools, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "stopped"
    stopped_run(out)
    return out


@pytest.fixture
def copy(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "run")


def refused(capsys, command, *arguments) -> str:
    with pytest.raises(SystemExit) as caught:
        command([str(argument) for argument in arguments])
    err = capsys.readouterr().err
    assert caught.value.code == 2
    assert err.count("\n") == 1
    return err


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def state_of(out) -> dict:
    return torch.load(out / "checkpoint" / "state.pt", weights_only=True)


def test_the_run_that_the_other_tests_damage_can_be_resumed(copy):
    train.main(["--resume", str(copy)])
    assert state_of(copy)["done"] == ["sft"]


# Logs.


@pytest.mark.parametrize("name", ["metrics.jsonl", "traces.jsonl"])
@pytest.mark.parametrize(
    "row", ["garbage", "[]", "3", "{}", '{"phase": "sft", "step": "x"}', "[" * 10**5, "\x00"]
)
def test_a_damaged_row_of_a_log_is_named(copy, capsys, name, row):
    first = '{"phase": "sft", "step": 1}\n'
    (copy / name).write_text(first + row + "\n" + first)
    assert f"run/{name}:2' cannot be used: " in refused(capsys, train.main, "--resume", copy)


@pytest.mark.parametrize("text", ["garbage", "[]", "3", '{"before": 3}', "{", "[" * 10**5])
def test_damaged_evaluations_are_named(copy, capsys, text):
    (copy / "eval.json").write_text(text)
    assert "run/eval.json' " in refused(capsys, train.main, "--resume", copy)


# The checkpoint.


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_one_flipped_byte_of_a_checkpoint_is_noticed(copy, capsys, share):
    path = copy / "checkpoint" / "state.pt"
    damaged = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:  # between its files are bytes that nobody reads
        files = [file for file in archive.infolist() if file.file_size]
    file = files[int(share * len(files))]
    name, extra = struct.unpack_from("<HH", damaged, file.header_offset + 26)
    damaged[file.header_offset + 30 + name + extra + file.file_size // 2] ^= 0x40
    path.write_bytes(damaged)
    assert "state.pt' is damaged" in refused(capsys, train.main, "--resume", copy)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9, 0.9999])
def test_a_checkpoint_that_was_cut_is_damaged(copy, capsys, share):
    path = copy / "checkpoint" / "state.pt"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert "state.pt' is damaged" in refused(capsys, train.main, "--resume", copy)


def spoil(out, value: float):
    state = state_of(out)
    state["model"]["embed.weight"][0, 0] = value
    torch.save(state, out / "checkpoint" / "state.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "command", [(train.main, "--resume"), (evaluate.main, "--run"), (sample.main, "1?", "--run")]
)
def test_weights_that_are_not_finite_are_refused(copy, capsys, command, value):
    spoil(copy, value)
    said = refused(capsys, *command, copy)
    assert "state.pt' is damaged: the weights embed.weight are not finite" in said


@pytest.mark.parametrize("key", ["done", "phase", "step", "optimizers", "rng"])
@pytest.mark.parametrize("wrong", [(), 1.5, "missing"])
def test_a_checkpoint_without_one_of_its_parts_is_named(copy, capsys, key, wrong):
    state = state_of(copy) | {key: wrong}
    if wrong == "missing":
        state.pop(key)
        state["phase"] = state.get("phase", 0)  # None is a phase: before the first one
    torch.save(state, copy / "checkpoint" / "state.pt")
    said = refused(capsys, train.main, "--resume", copy)
    assert "state.pt' cannot be used: " in said


@pytest.mark.parametrize("optimizers", [[], [{}], [{}, {}], [1, 2], [{"state": {}}] * 2])
def test_optimizers_that_do_not_fit_are_named(copy, capsys, optimizers):
    torch.save(state_of(copy) | {"optimizers": optimizers}, copy / "checkpoint" / "state.pt")
    said = refused(capsys, train.main, "--resume", copy)
    assert "state.pt' cannot be used: " in said


@pytest.mark.parametrize("rng", [{}, {"torch": 1, "python": 2}, {"python": ()}])
def test_generators_that_cannot_be_restored_are_named(copy, capsys, rng):
    torch.save(state_of(copy) | {"rng": rng}, copy / "checkpoint" / "state.pt")
    said = refused(capsys, train.main, "--resume", copy)
    assert "state.pt' cannot be used: " in said


# The config.


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"threads": "many"}, "--threads must be a whole number: 'many'"),
        ({"rl": 3}, "--rl must be a section of settings: 3"),
        ({"rl": None}, "--rl must be a section of settings: None"),
        ({"threads": {"a": 1}}, "--threads must be a whole number: {'a': 1}"),
        ({"sft": {"lr": "x"}}, "--sft.lr must be a number: 'x'"),
        ({"seed": None}, "--seed must be a whole number: None"),
        ({"data": ["generated"]}, "--data must be text"),
        ({"sft": {"stepz": 3}}, "no setting 'stepz': did you mean 'steps'?"),
        ({"recipe": "tapoo"}, "no recipe 'tapoo'"),
    ],
)
def test_a_config_with_a_setting_of_a_wrong_type_is_named(copy, capsys, changes, message):
    change(copy / "config.json", **changes)
    said = refused(capsys, train.main, "--resume", copy)
    assert f"run/config.json' cannot be used: {message}" in said


ALL = [(evaluate.main, "--run"), (sample.main, "1?", "--run")]
KEYS = list(itertools.product(("sampler", "tools", "format", "threads", "seed"), ALL))
KEYS += list(itertools.product(("eval", "level", "eval_data", "rl"), ALL[:1]))


@pytest.mark.parametrize("key, command", KEYS)
def test_a_config_without_what_it_takes_to_use_the_model_is_named(copy, capsys, key, command):
    config = json.loads((copy / "config.json").read_text())
    config.pop(key)
    (copy / "config.json").write_text(json.dumps(config))
    said = refused(capsys, *command, copy)
    assert f"run/config.json' cannot be used: KeyError: '{key}'" in said


@pytest.mark.parametrize("changes", [{"sampler": {"topp": 1}}, {"sampler": {"top_p": "x"}}])
def test_a_section_of_another_version_is_named(copy, changes):
    change(copy / "config.json", **changes)
    with pytest.raises(ValueError, match="run/config.json' cannot be used"):
        load_run(copy)


# What a run is resumed with.


def test_a_run_that_started_from_another_is_resumed_without_it(stopped, tmp_path):
    first = shutil.copytree(stopped, tmp_path / "first")
    stopped_run(tmp_path / "whole", "--init", str(first))
    stopped_run(tmp_path / "run", "--init", str(first))
    train.main(["--resume", str(tmp_path / "whole")])
    shutil.rmtree(first)
    train.main(["--resume", str(tmp_path / "run")])
    for name, weight in state_of(tmp_path / "whole")["model"].items():
        assert torch.equal(weight, state_of(tmp_path / "run")["model"][name])


def test_a_retrained_run_that_started_from_another_is_resumed_without_it(stopped, tmp_path):
    recipe = ["--recipe", "tora", "--tora.samples", "1", "--data", "generated:itself"]
    first = shutil.copytree(stopped, tmp_path / "first")
    arguments = [*TINY, *recipe, "--save_every", "1", "--init", str(first)]
    train.main([*arguments, "--out", str(tmp_path / "whole")])
    stopped_run(tmp_path / "run", *recipe, "--init", str(first))
    shutil.rmtree(first)
    train.main(["--resume", str(tmp_path / "run")])
    for name, weight in state_of(tmp_path / "whole")["model"].items():
        assert torch.equal(weight, state_of(tmp_path / "run")["model"][name])


def test_a_run_is_not_resumed_with_other_problems(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "1?", "answer": "1"}\n' * 4)
    stopped_run(tmp_path / "run", "--data", f"jsonl:{path}", "--eval-data", "generated")
    path.write_text('{"question": "1?", "answer": "2"}\n' * 4)
    capsys.readouterr()
    said = refused(capsys, train.main, "--resume", tmp_path / "run")
    assert "the problems of" in said and "have changed since it began" in said
    assert f"restore 'jsonl:{path}' and 'generated'" in said


def test_a_resumed_run_is_evaluated_on_all_of_its_sets_of_problems(tmp_path):
    stopped_run(tmp_path / "run", "--eval-data", "generated:itself,plain@2:last")
    train.main(["--resume", str(tmp_path / "run")])
    found = read_evaluations(tmp_path / "run")
    assert list(found) == ["before", "after_sft", "plain@2:last", "final"]
    families = [list(modes["text"]["by_family"]) for modes in found.values()]
    assert families == [["itself"], ["itself"], ["last"], ["itself"]]


def test_the_clock_of_a_resumed_run_goes_on(copy):
    state = state_of(copy)
    torch.save(state | {"seconds": 1000.0}, copy / "checkpoint" / "state.pt")
    train.main(["--resume", str(copy)])
    rows = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["time"] > 1000 > rows[-2]["time"]


def test_the_generators_of_two_runs_with_one_seed_are_the_same(stopped, tmp_path):
    torch.manual_seed(99)
    stopped_run(tmp_path / "run")
    assert torch.equal(
        state_of(stopped)["rng"]["torch"], state_of(tmp_path / "run")["rng"]["torch"]
    )


@pytest.mark.parametrize("flag", ["--resume", "--init", "--out", "--search.path"])
def test_a_path_that_the_shell_left_empty_or_unfilled_is_one_line(
    tmp_path, monkeypatch, capsys, flag
):
    monkeypatch.chdir(tmp_path)
    assert f"{flag} is empty: is a variable not set?" in refused(capsys, train.main, flag, "")
    assert f"{flag}=~/x: " in refused(capsys, train.main, f"{flag}=~/x")
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_a_version_without_token_shifts_has_none(copy):
    config = json.loads((copy / "config.json").read_text())
    del config["model"]["token_shifts"]
    (copy / "config.json").write_text(json.dumps(config))
    assert read_model_config(copy).token_shifts == 0
