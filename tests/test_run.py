"""Runs that are stopped, killed, resumed and repeated, and what their folders hold."""

import itertools
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

import train
from nanotir import evaluate
from nanotir.config import parse
from nanotir.model import ModelConfig, Transformer
from nanotir.policy import load_run, use_device
from nanotir.run import Run, Stopped
from nanotir.run_files import (
    latest_run,
    load_state,
    read_config,
    write_atomically,
    write_json,
)

TINY = (
    "--preset probe --problems 60 --data plain:itself,cancel --sft.steps 60 --sft.batch_size 8 "
    "--eval.problems 2 --rl.steps 3 --rl.lr 4e-4 --sampler.max_new_tokens 32 --tools python "
    "--threads 1"
).split()
pytestmark = pytest.mark.usefixtures("shared_tools")


def start(out, *arguments):
    train.train(parse([*TINY, "--out", str(out), *arguments]))


def resume(out):
    train.train(parse(["--resume", str(out)]))


def lines(out, name: str) -> list[dict]:
    return [json.loads(line) for line in (Path(out) / name).read_text().splitlines()]


def rows(out) -> list[dict]:
    """What was logged, but for the clocks and for `logp_gap`.

    `logp_gap` measures float noise, which depends on the tools' timing.
    """
    noise = ("time", "seconds_rollout", "seconds_update", "logp_gap")
    logged = lines(out, "metrics.jsonl")
    return [{key: row[key] for key in row if key not in noise} for row in logged]


def saved(out) -> dict:
    return torch.load(Path(out) / "checkpoint" / "state.pt", weights_only=True)


def contents(folder) -> dict:
    return {path: path.read_bytes() for path in Path(folder).rglob("*.json*")}


class Killed(BaseException):
    """The process ends here, as far as the run's files can tell."""


def stop_at(monkeypatch, phase, step):
    finish = Run.finish_step

    def and_stop(self, number, *arguments, **settings):
        self.stop_requested = self.state["phase"] == phase and number == step
        finish(self, number, *arguments, **settings)

    monkeypatch.setattr(Run, "finish_step", and_stop)


@pytest.fixture(scope="module")
def unbroken(shared_tools, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    start(out)
    return out


# Stopped and resumed.


def test_the_run_that_the_other_tests_repeat_calls_its_tool_and_learns(unbroken):
    steps = [row for row in rows(unbroken) if row["phase"] == "rl"]
    assert sum(row["groups_kept"] for row in steps) > 10
    assert sum(row["calls"] for row in steps) > 0.2
    assert max(row.get("logp_gap", 0) for row in lines(unbroken, "metrics.jsonl")) <= 1e-4


def stop(out, begin, phase, step):
    with pytest.MonkeyPatch.context() as patched, pytest.raises(Stopped):
        stop_at(patched, phase, step)
        begin(out)
    assert rows(out)[-1]["step"] == step


@pytest.fixture(scope="module")
def resumed(shared_tools, tmp_path_factory):
    """{phase: a run that was stopped in it and resumed}; in imitation twice."""
    folder = tmp_path_factory.mktemp("resumed")
    stop(folder / "sft", start, "sft", 13)
    stop(folder / "sft", resume, "sft", 60)
    stop(folder / "rl", start, "rl", 2)
    for out in folder.iterdir():
        resume(out)
    return {out.name: out for out in folder.iterdir()}


@pytest.mark.parametrize("phase", ["sft", "rl"])
def test_a_stopped_and_resumed_run_equals_an_unbroken_one_bit_for_bit(unbroken, resumed, phase):
    out = resumed[phase]
    assert rows(out) == rows(unbroken)
    for name, weight in saved(unbroken)["model"].items():
        assert torch.equal(weight, saved(out)["model"][name])
    evaluations = json.loads((out / "eval.json").read_text())
    assert set(evaluations) == {"before", "after_sft", "final"}


def test_a_resumed_run_goes_on_with_the_tosses_of_its_coin(tmp_path, monkeypatch):
    coin = "--reward.coin true --sft.steps 0 --rl.steps 3 --eval.modes text --eval.problems 1"
    start(tmp_path / "unbroken", *coin.split())
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        stop_at(patched, "rl", 1)
        start(tmp_path / "run", *coin.split())
    random.seed(99)
    resume(tmp_path / "run")
    assert rows(tmp_path / "run") == rows(tmp_path / "unbroken")
    for row in rows(tmp_path / "unbroken"):  # the coin has paid for wrong answers
        assert row["accuracy"] == 0 < row["reward"] + 0.4
        assert row["groups_kept"]


def test_what_was_logged_after_the_last_checkpoint_is_dropped_and_done_again(
    unbroken, tmp_path, monkeypatch
):
    """A kill at step 18 with a checkpoint every 8 steps.

    Step 17 and half of step 18 are in the log; the weights are those of step 16.
    """
    out = tmp_path / "run"
    finish = Run.finish_step

    def kill(self, number, *arguments, **settings):
        if number == 18:
            with open(self.out / "metrics.jsonl", "a") as file:
                file.write('{"phase": "sft", "step": 18, "by_kind": {}')
            raise Killed
        finish(self, number, *arguments, **settings)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Run, "finish_step", kill)
        start(out, "--save_every", "8")
    assert saved(out)["step"] == 16
    resume(out)
    assert rows(out) == rows(unbroken)


def test_the_same_seed_gives_the_same_metrics(unbroken, tmp_path):
    start(tmp_path / "same")
    assert rows(tmp_path / "same") == rows(unbroken)


def test_another_seed_gives_other_metrics(unbroken, tmp_path):
    start(tmp_path / "other", "--seed", "1", "--rl.steps", "0", "--sft.steps", "3")
    assert rows(tmp_path / "other")[0] != rows(unbroken)[0]


def test_a_finished_run_that_is_resumed_is_left_as_it_is(unbroken):
    before = contents(unbroken)
    resume(unbroken)
    assert contents(unbroken) == before


# The example answers of evaluations, in traces.jsonl.


def examples(out) -> Counter:
    """How often each answer of an evaluation was written down."""
    traces = lines(out, "traces.jsonl")
    asked = [row for row in traces if row["phase"] == "eval"]
    return Counter((row["name"], row["mode"], row["question"]) for row in asked)


def every_example_once(out):
    found = examples(out)
    assert set(found.values()) == {1}
    names = ("before", "after_sft", "final")
    modes = Counter(itertools.product(names, ("tools", "text")))
    assert Counter((name, mode) for name, mode, _ in found) == {
        key: 2 * n for key, n in modes.items()
    }


def test_an_unbroken_run_has_every_example_answer_once(unbroken):
    every_example_once(unbroken)


@pytest.mark.parametrize("phase", ["sft", "rl"])
def test_a_resumed_run_has_every_example_answer_once(unbroken, resumed, phase):
    every_example_once(resumed[phase])
    assert examples(resumed[phase]) == examples(unbroken)


@pytest.mark.parametrize("name", ["before", "after_sft", "final"])
def test_examples_of_an_evaluation_that_was_killed_are_dropped_and_written_again(
    tmp_path, monkeypatch, name
):
    out = tmp_path / "run"
    record = Run.record

    def kill(self, evaluation, *arguments):
        if evaluation == name:
            raise Killed
        record(self, evaluation, *arguments)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Run, "record", kill)
        start(out, "--sft.steps", "1", "--rl.steps", "1")
    assert name in {row.get("name") for row in lines(out, "traces.jsonl")}
    resume(out)
    every_example_once(out)


def test_the_same_problems_are_asked_in_every_evaluation(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "EXAMPLES", 3)
    out = tmp_path / "run"
    start(out, "--sft.steps", "0", "--rl.steps", "0", "--eval.problems", "5")
    asked = {}
    for name, mode, question in examples(out):
        asked.setdefault((name, mode), []).append(question)
    first, *others = asked.values()
    assert len(first) == 3
    assert all(other == first for other in others)


# Files that are never half written.


def test_a_file_is_the_old_one_or_the_new_one_never_half_of_one(tmp_path):
    path = tmp_path / "file"
    write_json(path, {"old": 1})

    def half(temporary):
        temporary.write_text("half a fi")
        raise OSError("disk full")

    with pytest.raises(OSError):
        write_atomically(path, half)
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="fork and kill -9")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_kill_at_any_moment_leaves_the_last_checkpoint_loadable(unbroken, tmp_path):
    """A child that does nothing but save after every step is killed at thirty random moments.

    Before, it saves none, one or two steps, however long a busy machine takes for them.
    """
    config = parse([*TINY, "--save_every", "1"])
    _, model, tokenizer, format, _ = load_run(unbroken)
    run = Run(tmp_path / "run", config, model, tokenizer, format, [], [], []).create()
    rng = random.Random(0)
    steps = [run.restore("sft", [])]
    for _ in range(30):
        saved, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            save_for_ever(run, steps[-1] + 1, tell)
        os.close(tell)
        for _ in range(rng.randrange(3)):
            os.read(saved, 1)
        time.sleep(rng.uniform(0.0, 0.02))
        os.kill(pid, signal.SIGKILL)
        os.close(saved)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        steps.append(run.resume().state["step"])
        assert [row["step"] for row in rows(run.out)] == list(range(1, steps[-1] + 1))
    assert steps == sorted(steps)
    assert len(set(steps)) > 15


def save_for_ever(run, first: int, tell: int):
    try:
        for step in itertools.count(first):
            run.finish_step(step, {"loss": 1.0}, [])
            os.write(tell, b"!")
    finally:
        os._exit(1)  # whatever goes wrong, the child must not go on with the tests


@pytest.mark.parametrize("folder", ["run", "other"])
def test_an_existing_folder_is_never_written_to(unbroken, tmp_path, folder):
    folder = unbroken if folder == "run" else tmp_path
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(ValueError, match="exists already"):
        start(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot make the run folder"):
        start(tmp_path / "file" / "run")


# What is read from a run folder.


def test_a_new_run_can_start_from_the_weights_of_another(unbroken, tmp_path):
    start(tmp_path / "run", "--init", str(unbroken), "--sft.steps", "0", "--rl.steps", "0")
    for name, weight in saved(unbroken)["model"].items():
        assert torch.equal(weight, saved(tmp_path / "run")["model"][name])
    assert read_config(tmp_path / "run")["model"] == read_config(unbroken)["model"]


def test_a_run_starts_only_from_one_that_writes_its_calls_in_the_same_way(unbroken, tmp_path):
    with pytest.raises(ValueError, match="as tags, not as fences: add --format tags"):
        start(tmp_path / "run", "--init", str(unbroken), "--format", "fences")


def test_a_run_folder_holds_all_it_takes_to_use_the_model(unbroken):
    config, model, tokenizer, format, tools = load_run(unbroken)
    assert [tool.name for tool in tools] == ["python"]
    assert config["recipe"] == "tapo"
    assert format.style == "tags"
    assert len(tokenizer) == model.config.vocab_size == len(model.embed.weight)
    assert not model.training
    files = {"config.json", "metrics.jsonl", "traces.jsonl", "eval.json", "checkpoint"}
    assert {path.name for path in unbroken.iterdir()} >= files


def test_the_command_that_evaluates_a_run_finds_what_the_run_has_recorded(unbroken, capsys):
    evaluate.main(["--run", str(unbroken), "--json"])
    recorded = json.loads((unbroken / "eval.json").read_text())
    assert json.loads(capsys.readouterr().out) == recorded["final"]


def test_the_latest_run_is_the_one_with_the_newest_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, seconds in (("a", 3), ("b", 5), ("c", 4)):
        path = tmp_path / "runs" / name / "checkpoint" / "state.pt"
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (seconds, seconds))
    assert latest_run() == Path("runs/b")


def test_a_checkpoint_of_another_model_is_refused(unbroken):
    other = Transformer(ModelConfig(vocab_size=40, n_layers=1, d_model=32))
    with pytest.raises(ValueError, match="not of this model's config"):
        load_state(unbroken / "checkpoint", other)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint in"):
        load_state(tmp_path, Transformer(ModelConfig(vocab_size=40, n_layers=1, d_model=32)))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 torn"])
def test_a_damaged_checkpoint_is_named(tmp_path, content):
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        load_state(tmp_path, Transformer(ModelConfig(vocab_size=40, n_layers=1, d_model=32)))


def test_a_file_of_tensors_that_is_no_checkpoint_is_named(tmp_path):
    torch.save({"weights": 1}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="damaged"):
        load_state(tmp_path, Transformer(ModelConfig(vocab_size=40, n_layers=1, d_model=32)))


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="not a run folder"):
        read_config(tmp_path)


@pytest.mark.parametrize("text, message", [("{", "not JSON"), ("[]", "not the"), ("{}", "not the")])
def test_a_damaged_config_is_named(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path)


def test_a_config_of_another_version_is_named(unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text('{"model": {"layers": 3}}')
    with pytest.raises(ValueError, match="does not fit"):
        load_run(tmp_path / "run")


def test_no_message_can_spell_out_all_problems_of_a_run():
    assert Run.__repr__ is object.__repr__  # signal.signal asks for it twice


def test_a_device_that_is_not_here_is_named():
    assert use_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="no device 'tpu'"):
        use_device("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_here_is_one_line_with_what_to_do():
    with pytest.raises(ValueError, match="no device cuda here: add --device cpu"):
        use_device("cuda")
