"""The experiments' code on models that learn nothing: every kind of arm runs."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import train
from nanotir.config import build
from nanotir.lab import toy
from nanotir.lab.experiments import EXPERIMENTS
from nanotir.lab.grpo import BadLine
from nanotir.recipes import tora
from nanotir.tools import Tool, ToolResult

pytestmark = pytest.mark.usefixtures("shared_tools")
LEAST = {
    "model.n_layers": 1,
    "model.d_model": 32,
    "model.n_heads": 2,
    "model.n_kv_heads": 1,
    "model.d_ff": 32,
    "problems": 12,
    "sft.steps": 1,
    "sft.batch_size": 4,
    "rl.steps": 2,
    "rl.problems": 2,
    "rl.group_size": 2,
    "rl.updates": 1,
    "sampler.max_new_tokens": 8,
    "eval.problems": 4,
    "tora.samples": 1,
    "autocode.samples": 2,
    "threads": 1,  # a worker would import PyTorch first
}

# One arm of each function that makes them.
KINDS = [
    ("formats", "program"),
    ("sft-mask", "learned"),
    ("shaping", "4"),
    ("shaping", "control"),
    ("rl-mask", "learned"),
    ("matching", "stop string"),
    ("ablations", "KL"),
    ("pass-at-k", "RL code"),
    ("autocode", "EM"),
    ("autocode", "words + RL"),
    ("calls", "TAPO"),
    ("experts", "experts, sequence"),
    ("overlap", "blocking"),
    ("overlap", "barrier"),
    ("lengths", "grpo"),
    ("void-turns", "filtered"),
    ("resampling", "8 of 16"),
    ("ladder", "+ dynamic sampling"),
    ("penalty", "penalty"),
    ("pruning", "RL"),
    ("needless-tools", "RL in words"),
    ("lies", "lies"),
    ("format-bonus", "bonus"),
]


@pytest.fixture
def least(monkeypatch, tmp_path):
    """Every run as small as can be, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    build = toy.build

    def build_small(values):
        small = {name: min(values.get(name, size), size) for name, size in LEAST.items()}
        small["rl.keep"] = min(values.get("rl.keep", 0), small["rl.group_size"])
        return build({**values, **small})

    monkeypatch.setattr(toy, "build", build_small)


@pytest.mark.parametrize("experiment, arm", KINDS)
def test_every_kind_of_arm_gives_what_its_experiment_compares_and_draws(
    least, tmp_path, experiment, arm
):
    metrics = EXPERIMENTS[experiment].arms[arm].run(0, True, tmp_path / "arm")
    assert set(EXPERIMENTS[experiment].metrics) <= set(metrics)
    curves = {name for name, value in metrics.items() if isinstance(value, list)}
    assert set(EXPERIMENTS[experiment].figure) <= curves
    assert json.dumps(metrics)


def logged(out) -> list[dict]:
    clocks = ("time", "seconds_rollout", "seconds_update", "logp_gap")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if key not in clocks} for row in rows]


def asked(out) -> set[str]:
    """The questions of a run's evaluations."""
    rows = [json.loads(line) for line in (out / "traces.jsonl").read_text().splitlines()]
    return {row["question"] for row in rows if row["phase"] == "eval"}


@pytest.mark.parametrize("recipe", ["tapo", "tora"])
def test_a_run_of_the_laboratory_is_the_run_that_the_command_makes(tmp_path, recipe):
    values = {**LEAST, "recipe": recipe, "model.vocab_size": 400, "data": "generated:mul,home"}
    train.train(build({**values, "out": str(tmp_path / "command")}))
    with toy.make_run(build({**values, "out": str(tmp_path / "laboratory")})) as run:
        toy.train(run)
    assert logged(run.out) == logged(tmp_path / "command")
    assert asked(tmp_path / "command") == {problem.question for problem in run.held_out}
    assert not (run.out / "eval.json").exists()


def test_a_run_can_start_from_the_weights_and_the_tokenizer_of_another(tmp_path):
    values = {**LEAST, "model.vocab_size": 400, "tools": "python"}
    with toy.make_run(build({**values, "out": str(tmp_path / "first")})) as first:
        toy.train(first)
    later = {**LEAST, "tools": "python", "init": str(first.out), "out": str(tmp_path / "second")}
    with toy.make_run(build({**later, "data": "generated:det", "sft.steps": 0})) as second:
        assert second.config.model == first.config.model
        assert second.tokenizer.encode("What is 12 * 7?") == first.tokenizer.encode(
            "What is 12 * 7?"
        )
        torch.testing.assert_close(second.model.state_dict(), first.model.state_dict())


def test_a_cold_start_is_trained_once_and_shared(least, monkeypatch):
    trained, seeds = toy.trained, []

    def counted(folder, recipe, settings, seed, quick):
        seeds.append(seed)
        return trained(folder, recipe, settings, seed, quick)

    monkeypatch.setattr(toy, "trained", counted)
    settings = {"data": "generated:mul", "tools": "", "rl.steps": 0}
    first = toy.cold_start("one", settings, 0, True)
    assert toy.cold_start("one", settings, 0, True) == first
    assert toy.cold_start("one", settings, 1, True) != first
    assert seeds == [0, 1]


def computation(arm):
    """What an arm runs: its code, and the values that the code is given."""
    values = [str(cell.cell_contents) for cell in arm.run.__closure__ or ()]
    return arm.run.__code__, values


def test_the_arms_of_lengths_share_a_cold_start_that_saw_the_tool_down(least, tmp_path):
    for arm in ("grpo", "dapo"):
        EXPERIMENTS["lengths"].arms[arm].run(0, True, tmp_path / arm)
    (start,) = Path("runs/lab/cold").glob("lengths-*/run")
    runs = [json.loads(line) for line in (start / "metrics.jsonl").read_text().splitlines()]
    assert {row["phase"] for row in runs} == {"sft"}
    for arm in ("grpo", "dapo"):
        config = json.loads((tmp_path / arm / "run" / "config.json").read_text())
        assert (config["init"], config["sft"]["steps"]) == (str(start), 0)


def test_a_cold_start_imitates_what_it_is_given(least, monkeypatch):
    shown = []
    monkeypatch.setattr(toy.sft, "train", lambda run, taught: shown.append(taught))
    settings = {"data": "generated:mul", "tools": "", "rl.steps": 0}
    toy.cold_start("taught", settings, 0, True, teach=lambda run: [len(run.problems)])
    assert shown == [[LEAST["problems"]]]


def test_arms_of_one_key_are_one_computation():
    known = {}
    for experiment in EXPERIMENTS.values():
        for arm in experiment.arms.values():
            assert computation(known.setdefault(arm.key, arm)) == computation(arm), arm.key


def test_every_experiment_about_rl_has_an_arm_with_random_rewards():
    imitation, speed = {"formats", "shaping", "sft-mask", "gsm8k"}, {"overlap"}
    analysis = {"pass-at-k", "pruning", "needless-tools"}
    without = {name for name, experiment in EXPERIMENTS.items() if not experiment.control}
    assert without == imitation | analysis | speed


class Echo(Tool):
    name = "python"

    def run(self, text, session=None):
        return ToolResult(text)


def answers(line, rows) -> list[str]:
    return [line.submit("1+1", SimpleNamespace(index=row)).result().output for row in rows]


def test_a_bad_line_is_down_for_half_of_the_rows():
    with Echo() as tool:
        said = answers(BadLine(tool), range(400))
    assert set(said) == {"1+1", "The line is down."}
    assert abs(said.count("1+1") - 200) < 40  # four standard deviations


def test_a_bad_line_is_down_for_the_same_rows_in_any_order():
    with Echo() as tool:
        said = answers(BadLine(tool), range(50))
        assert answers(BadLine(tool), reversed(range(50))) == said[::-1]


def test_a_bad_line_can_be_down_always():
    with Echo() as tool:
        assert set(answers(BadLine(tool, down=True), range(9))) == {"The line is down."}


def test_mean_of_takes_the_last_share():
    points = [[1, 1.0], [2, 2.0], [3, 3.0], [4, 6.0]]
    assert toy.mean_of(points) == 3.0
    assert toy.mean_of(points, 0.5) == 4.5
    assert toy.mean_of([]) is None


def test_the_control_of_shaping_learns_from_as_many_demonstrations_alone(
    least, tmp_path, monkeypatch
):
    seen = []
    corpora = []
    demonstrations = tora.demonstrations

    def demonstrated(run):
        corpora.append(demonstrations(run))
        return corpora[-1]

    monkeypatch.setattr(tora, "is_valid", lambda *_: True)
    monkeypatch.setattr(tora, "demonstrations", demonstrated)
    monkeypatch.setattr(tora, "retrain", lambda run, shown: seen.extend(shown))
    metrics = EXPERIMENTS["shaping"].arms["control"].run(0, True, tmp_path / "arm")
    corpus = corpora[-1]
    assert len(seen) == len(corpus) + metrics["shaped"] > len(corpus)
    assert {tuple(t.ids) for t in seen} == {tuple(t.ids) for t in corpus}


def shaped_by(arm: str, folder, monkeypatch) -> tuple[int, list]:
    """(how many problems the corpus covers, the questions of the answers beyond it)."""
    sizes, seen = [], []
    monkeypatch.setattr(tora, "is_valid", lambda *_: True)

    def retrain(run, shown):
        sizes.append(round(run.config.tora.covered * run.config.problems))
        seen.extend(t.ids[: t.spans[0].end] for t in shown)

    monkeypatch.setattr(tora, "retrain", retrain)
    EXPERIMENTS["shaping"].arms[arm].run(0, True, folder)
    return sizes[0], seen


def test_an_arm_of_shaping_answers_the_demonstrated_problems_alone(least, tmp_path, monkeypatch):
    n, prompts = shaped_by("4, covered", tmp_path / "arm", monkeypatch)
    assert len(prompts) > n
    assert {tuple(ids) for ids in prompts} == {tuple(ids) for ids in prompts[:n]}


def test_the_other_arms_of_shaping_answer_all_problems(least, tmp_path, monkeypatch):
    n, prompts = shaped_by("4", tmp_path / "arm", monkeypatch)
    assert {tuple(ids) for ids in prompts[n:]} > {tuple(ids) for ids in prompts[:n]}
