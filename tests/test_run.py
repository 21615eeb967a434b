import itertools
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

import train
from nanotir.checkpoint import (
    Run,
    Stopped,
    load_run,
    load_state,
    open_tools,
    read_config,
    write_atomically,
    write_json,
)
from nanotir.config import parse
from nanotir.model import ModelConfig, Transformer

TINY = [
    "--preset",
    "probe",
    "--problems",
    "60",
    "--data",
    "generated:itself,cancel",
    "--sft.steps",
    "60",
    "--sft.batch_size",
    "8",
    "--eval.problems",
    "2",
    "--rl.steps",
    "3",
    "--sampler.max_new_tokens",
    "32",
    "--tools",
    "python",
]


pytestmark = pytest.mark.usefixtures("shared_tools")


def start(out, *arguments):
    train.train(parse([*TINY, "--out", str(out), *arguments]))


def rows(out):
    """What was logged, but for the clocks and the one figure that measures float noise itself, which depends on the tools' timing."""
    noise = ("time", "seconds_rollout", "seconds_update", "logp_gap")
    return [
        {k: v for k, v in json.loads(line).items() if k not in noise}
        for line in open(Path(out) / "metrics.jsonl")
    ]


def weights(out):
    return torch.load(Path(out) / "checkpoint" / "state.pt", weights_only=True)["model"]


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


def test_the_run_that_the_other_tests_repeat_calls_its_tool_and_learns(unbroken):
    steps = [row for row in rows(unbroken) if row["phase"] == "rl"]
    assert (
        sum(row["groups_kept"] for row in steps) > 10 and sum(row["calls"] for row in steps) > 0.2
    )
    assert (
        max(json.loads(line).get("logp_gap", 0) for line in open(unbroken / "metrics.jsonl"))
        <= 1e-4
    )


@pytest.mark.parametrize("phase, step", [("sft", 13), ("sft", 60), ("rl", 2)])
def test_a_stopped_and_resumed_run_equals_an_unbroken_one_bit_for_bit(
    unbroken, tmp_path, monkeypatch, phase, step
):
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        stop_at(patched, phase, step)
        start(tmp_path / "run")
    assert rows(tmp_path / "run")[-1]["step"] == step
    train.train(parse(["--resume", str(tmp_path / "run")]))
    assert rows(tmp_path / "run") == rows(unbroken)
    for name, weight in weights(unbroken).items():
        assert torch.equal(weight, weights(tmp_path / "run")[name])
    assert json.loads((tmp_path / "run" / "eval.json").read_text()).keys() == {
        "before",
        "after_sft",
        "final",
    }


def test_a_resumed_run_goes_on_with_the_tosses_of_its_coin(tmp_path, monkeypatch):
    coin = [
        "--reward.coin",
        "true",
        "--sft.steps",
        "0",
        "--rl.steps",
        "3",
        "--eval.modes",
        "text",
        "--eval.problems",
        "1",
    ]
    start(tmp_path / "unbroken", *coin)
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        stop_at(patched, "rl", 1)
        start(tmp_path / "run", *coin)
    random.seed(99)
    train.train(parse(["--resume", str(tmp_path / "run")]))
    assert rows(tmp_path / "run") == rows(tmp_path / "unbroken")
    assert all(
        row["accuracy"] == 0 < row["reward"] + 0.4 and row["groups_kept"]
        for row in rows(tmp_path / "unbroken")
    )


def test_what_was_logged_after_the_last_checkpoint_is_dropped_and_done_again(
    unbroken, tmp_path, monkeypatch
):
    """A kill at step 17 with checkpoints every 8 steps: step 17 and part of step 18 are in the log, the weights are of step 16."""

    class Killed(BaseException):
        pass

    def kill(self, number, *arguments, **settings):
        if number == 18:
            with open(self.out / "metrics.jsonl", "a") as file:
                file.write('{"phase": "sft", "step": 18, "by_kind": {}')
            raise Killed
        finish(self, number, *arguments, **settings)

    finish = Run.finish_step
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Run, "finish_step", kill)
        start(tmp_path / "run", "--save_every", "8")
    assert torch.load(tmp_path / "run" / "checkpoint" / "state.pt", weights_only=True)["step"] == 16
    train.train(parse(["--resume", str(tmp_path / "run")]))
    assert rows(tmp_path / "run") == rows(unbroken)


def test_the_same_seed_gives_the_same_metrics_and_another_seed_others(unbroken, tmp_path):
    start(tmp_path / "same")
    start(tmp_path / "other", "--seed", "1", "--rl.steps", "0", "--sft.steps", "3")
    assert rows(tmp_path / "same") == rows(unbroken)
    assert rows(tmp_path / "other")[0] != rows(unbroken)[0]


def test_a_finished_run_that_is_resumed_is_left_as_it_is(unbroken):
    before = {path: path.read_bytes() for path in unbroken.rglob("*.json*")}
    train.train(parse(["--resume", str(unbroken)]))
    assert {path: path.read_bytes() for path in unbroken.rglob("*.json*")} == before


def test_a_new_run_can_start_from_the_weights_of_another(unbroken, tmp_path):
    start(tmp_path / "run", "--init", str(unbroken), "--sft.steps", "0", "--rl.steps", "0")
    assert all(
        torch.equal(weight, weights(tmp_path / "run")[name])
        for name, weight in weights(unbroken).items()
    )
    assert read_config(tmp_path / "run")["model"] == read_config(unbroken)["model"]


def test_a_run_folder_holds_all_it_takes_to_use_the_model(unbroken):
    config, model, tokenizer, format, tools = load_run(unbroken)
    assert (
        [tool.name for tool in tools] == ["python"]
        and config["recipe"] == "tapo"
        and format.style == "tags"
    )
    assert (
        len(tokenizer) == model.config.vocab_size == len(model.embed.weight) and not model.training
    )
    assert {path.name for path in unbroken.iterdir()} >= {
        "config.json",
        "metrics.jsonl",
        "eval.json",
        "checkpoint",
    }


def test_a_file_is_the_old_one_or_the_new_one_never_half_of_one(tmp_path):
    path = tmp_path / "file"
    write_json(path, {"old": 1})

    def half(temporary):
        temporary.write_text("half a fi")
        raise OSError("disk full")

    with pytest.raises(OSError):
        write_atomically(path, half)
    assert json.loads(path.read_text()) == {"old": 1} and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="fork and kill -9")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_kill_at_any_moment_leaves_the_last_checkpoint_loadable(unbroken, tmp_path):
    """A child that saves after every step, and does nothing else, is killed at thirty random moments; each time the run goes on from its log and weights."""
    config, (_, model, tokenizer, format, _) = (
        parse([*TINY, "--save_every", "1"]),
        load_run(unbroken),
    )
    run = Run(
        tmp_path / "run", config, model, tokenizer, format, tools=[], problems=[], held_out=[]
    ).create()
    rng, steps = random.Random(0), [run.restore("sft", [])]
    for _ in range(30):
        pid = os.fork()
        if pid == 0:
            try:
                for step in itertools.count(steps[-1] + 1):
                    run.finish_step(step, {"loss": 1.0}, [])
            finally:
                os._exit(1)  # whatever goes wrong, the child is not to go on with the tests
        time.sleep(rng.uniform(0.0, 0.05))
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        steps.append(run.resume().state["step"])
        assert [row["step"] for row in rows(run.out)] == list(range(1, steps[-1] + 1))
    assert steps == sorted(steps) and len(set(steps)) > 5


def test_an_existing_folder_is_never_written_to(unbroken, tmp_path):
    for folder in (unbroken, tmp_path):
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        with pytest.raises(ValueError, match="exists already"):
            start(folder)
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot make the run folder"):
        start(tmp_path / "file" / "run")


def test_a_checkpoint_of_another_model_is_refused(unbroken):
    with pytest.raises(ValueError, match="not of this model's config"):
        load_state(
            unbroken / "checkpoint", Transformer(ModelConfig(vocab_size=40, n_layers=1, d_model=32))
        )


def test_a_missing_or_damaged_checkpoint_is_named(tmp_path):
    model = Transformer(ModelConfig(vocab_size=40, n_layers=1, d_model=32))
    with pytest.raises(ValueError, match="no checkpoint in"):
        load_state(tmp_path, model)
    for content in (b"", b"not a checkpoint", b"PK\x03\x04 torn"):
        (tmp_path / "state.pt").write_bytes(content)
        with pytest.raises(ValueError, match="damaged"):
            load_state(tmp_path, model)
    torch.save({"weights": 1}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="damaged"):
        load_state(tmp_path, model)


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="not a run folder"):
        read_config(tmp_path)
    for text, word in (
        ("{", "not JSON"),
        ("[]", "not the config of a run"),
        ("{}", "not the config of a run"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=word):
            read_config(tmp_path)


def test_a_config_of_another_version_is_named(unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text('{"model": {"layers": 3}}')
    with pytest.raises(ValueError, match="does not fit"):
        load_run(tmp_path / "run")


def test_an_unknown_tool_is_named():
    with pytest.raises(ValueError, match="no tool 'pyton'"):
        open_tools({"tools": "pyton"})
