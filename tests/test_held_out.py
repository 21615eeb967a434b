"""Held-out accuracy while training, the best weights, and the warning of a collapse."""

import json
import math

import pytest
import torch
from conftest import small_model
from doubles import scripted_by_question

import train
from nanotir import evaluate, held_out
from nanotir.config import build, parse
from nanotir.held_out import PROBLEMS, at_the_end, budget, graded, has_collapsed
from nanotir.policy import load_run
from nanotir.problems import Problem
from nanotir.recipes import tora
from nanotir.run import Run, Stopped
from nanotir.run_files import read_best
from nanotir.sampler import SamplerConfig
from nanotir.scores import share_right
from nanotir.trajectory import Format

TINY = (
    "--preset probe --problems 60 --data plain:itself,cancel --sft.steps 6 --sft.batch_size 8 "
    "--eval.problems 2 --rl.steps 3 --sampler.max_new_tokens 16 --tools python --save_every 4 "
    "--threads 1"
).split()


@pytest.fixture
def run(tokenizer, tmp_path):
    """A run that measures every second step, with twenty held-out problems."""
    config = build({"eval.every": 2})
    problems = [Problem(f"{i}?", "1") for i in range(20)]
    config.model = (model := small_model(len(tokenizer))).config
    given = (tmp_path / "run", config, model, tokenizer, Format(), [], [], problems)
    return Run(*given).create()


@pytest.fixture
def scores(monkeypatch):
    """{(phase, step): right answers among 20}, which the test fills in; others are 0."""
    table = {}

    def graded(run, problems):
        n = table.get((run.state["phase"], run.state["step"]), 0)
        return [i < n for i in range(20)]

    monkeypatch.setattr(held_out, "graded", graded)
    return table


def go(run, phase: str, steps: int):
    """Finish the steps of a phase. At each step the weights are the number of the step."""
    for step in run.remaining(phase, [], steps):
        run.model.embed.weight.data.fill_(step + 1)
        run.finish_step(step + 1, {}, [], last=step + 1 == steps)


def rows(out) -> list[dict]:
    """What was logged, but for the clocks and for float noise."""
    noise = ("time", "seconds_rollout", "seconds_update", "logp_gap")
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if key not in noise} for row in logged]


def weights(out, part: str) -> dict:
    return torch.load(out / part / "state.pt", weights_only=True)["model"]


# What is measured, and when.


def test_the_accuracy_stands_in_the_row_of_every_so_many_steps_and_of_the_last(run, scores):
    scores |= {("sft", 2): 5, ("sft", 4): 10, ("sft", 5): 15}
    go(run, "sft", 5)
    logged = {row["step"]: row.get("held_out/accuracy") for row in rows(run.out)}
    assert logged == {1: None, 2: 0.25, 3: None, 4: 0.5, 5: 0.75}
    found = share_right([1] * 5 + [0] * 15)
    assert {key: rows(run.out)[1][f"held_out/{key}"] for key in found} == found


def test_greedy_answers_with_tools_are_graded(tokenizer, python, run):
    texts = {
        "0?": ("<python>6*7</python>", "\\boxed{42}<|end|>"),
        "1?": ("\\boxed{41}<|end|>",),
        "2?": ("It is 42.<|end|>",),  # it is not named
    }
    run.model, run.tools = scripted_by_question(tokenizer, texts), [python]
    assert graded(run, [Problem(question, "42") for question in texts]) == [True, False, False]


def test_the_first_64_problems_are_asked_and_the_mode_of_the_model_is_left(run, monkeypatch):
    run.held_out = [Problem(f"{i}?", "1") for i in range(PROBLEMS + 9)]
    asked = []

    def generate(sampler, problems, *rest):
        asked.extend(problems)
        assert not sampler.model.training and sampler.config.temperature == 0
        return []

    monkeypatch.setattr(held_out, "generate_with_bar", generate)
    run.model.train()
    graded(run, run.held_out[:PROBLEMS])
    assert run.model.training
    monkeypatch.setattr(held_out, "graded", lambda run, problems: [p in asked for p in problems])
    go(run, "sft", 2)
    assert rows(run.out)[-1]["held_out/accuracy"] == 1.0
    assert read_best(run.out)["problems"] == PROBLEMS


@pytest.mark.usefixtures("shared_tools")
def test_measuring_changes_nothing_of_the_run_and_without_it_nothing_is_measured(tmp_path):
    for name, every in (("without", 0), ("with", 2)):
        train.train(parse([*TINY, "--out", str(tmp_path / name), "--eval.every", str(every)]))
    own = [{k: row[k] for k in row if "held_out" not in k} for row in rows(tmp_path / "with")]
    assert own == rows(tmp_path / "without") != rows(tmp_path / "with")
    for name, weight in weights(tmp_path / "without", "checkpoint").items():
        assert torch.equal(weight, weights(tmp_path / "with", "checkpoint")[name])
    assert (tmp_path / "with" / "best").exists() and not (tmp_path / "without" / "best").exists()


@pytest.mark.usefixtures("shared_tools")
@pytest.mark.parametrize("recipe, phases", [("tora", "sft retrain"), ("autocode", "sft em")])
def test_recipes_with_loops_and_phases_of_their_own_measure_too(tmp_path, recipe, phases):
    own = "--sft.steps 1 --eval.every 1 --rl.problems 2 --rl.steps 1 --tora.samples 1".split()
    train.train(parse([*TINY, *own, "--recipe", recipe, "--out", str(tmp_path / "run")]))
    assert [row["phase"] for row in rows(tmp_path / "run")] == phases.split()
    assert all("held_out/accuracy" in row for row in rows(tmp_path / "run"))


# The best weights.


def test_the_best_weights_are_those_of_the_highest_accuracy_and_of_equals_the_first(run, scores):
    scores |= {("sft", 2): 4, ("sft", 4): 9, ("sft", 6): 8, ("rl", 2): 9, ("rl", 4): 3}
    go(run, "sft", 6)
    go(run, "rl", 4)
    best = read_best(run.out)
    assert (best["phase"], best["step"], best["accuracy"]) == ("sft", 4, 0.45)
    assert (weights(run.out, "best")["embed.weight"] == 4).all()
    assert (weights(run.out, "checkpoint")["embed.weight"] == 4).all()


def test_a_better_step_of_rl_replaces_one_of_imitation(run, scores):
    scores |= {("sft", 2): 4, ("rl", 2): 5}
    go(run, "sft", 2)
    go(run, "rl", 3)
    assert (read_best(run.out)["phase"], read_best(run.out)["step"]) == ("rl", 2)
    assert (weights(run.out, "best")["embed.weight"] == 2).all()


def test_the_best_is_a_model_without_optimizers_that_can_be_used(run, scores):
    scores |= {("sft", 2): 4}
    go(run, "sft", 3)
    assert {path.name for path in (run.out / "best").iterdir()} == {
        "best.json",
        "state.pt",
        "tokenizer.json",
    }
    saved = torch.load(run.out / "best" / "state.pt", weights_only=True)
    assert set(saved) == {"model", "frozen"}


def test_weights_that_are_not_finite_are_never_the_best(run, scores):
    scores |= {("sft", 2): 20}
    with pytest.raises(ValueError, match="weights embed.weight are not finite"):
        for step in run.remaining("sft", [], 3):
            run.model.embed.weight.data.fill_(math.inf if step else 0.0)
            run.finish_step(step + 1, {}, [])
    assert not (run.out / "best").exists()


class Killed(BaseException):
    """The process ends here, as far as the run's files can tell."""


@pytest.mark.usefixtures("shared_tools")
@pytest.mark.parametrize("error, phase, step", [(Killed, "sft", 6), (Stopped, "rl", 2)])
def test_a_resumed_run_has_the_best_of_an_unbroken_one(
    tmp_path, monkeypatch, scores, error, phase, step
):
    scores |= {("sft", 2): 6, ("sft", 4): 12, ("sft", 6): 14, ("rl", 2): 14, ("rl", 3): 13}
    every = ["--eval.every", "2"]
    train.train(parse([*TINY, *every, "--out", str(tmp_path / "unbroken")]))

    finish = Run.finish_step

    def end(self, number, *arguments, **settings):
        here = (self.state["phase"], number) == (phase, step)
        self.stop_requested = here and error is Stopped
        if here and error is Killed:
            held_out.watch(self, number, last=False)  # the best is written, and no checkpoint
            raise Killed
        finish(self, number, *arguments, **settings)

    out = tmp_path / "run"
    with monkeypatch.context() as patched, pytest.raises(error):
        patched.setattr(Run, "finish_step", end)
        train.train(parse([*TINY, *every, "--out", str(out)]))
    train.train(parse(["--resume", str(out)]))
    assert rows(out) == rows(tmp_path / "unbroken")
    assert read_best(out) == read_best(tmp_path / "unbroken")
    assert read_best(out)["step"] == 6
    for name, weight in weights(tmp_path / "unbroken", "best").items():
        assert torch.equal(weight, weights(out, "best")[name])


def test_a_resumed_run_remembers_a_best_that_is_not_reached_again(run, scores):
    scores |= {("sft", 2): 9, ("sft", 4): 5}
    go(run, "sft", 2)
    run.resume()
    go(run, "rl", 4)
    assert (read_best(run.out)["phase"], read_best(run.out)["step"]) == ("sft", 2)


@pytest.fixture
def trained(run, scores):
    scores |= {("sft", 2): 9, ("sft", 4): 5}
    go(run, "sft", 4)
    run.close()
    return run.out


def test_a_run_is_used_with_its_last_weights_or_its_best(trained):
    for best, step in ((False, 4), (True, 2)):
        _, model, *_ = load_run(trained, best=best)
        assert (model.embed.weight == step).all()


def test_the_command_evaluates_the_best_weights(trained, monkeypatch, capsys):
    asked = []

    def statistics(model, *rest):
        asked.append(model.embed.weight[0, 0].item())
        return {}

    monkeypatch.setattr(evaluate, "evaluate", statistics)
    for flags in ([], ["--best"]):
        evaluate.main(["--run", str(trained), "--problems", "2", "--json", *flags])
    assert asked == [4, 2]


# A collapse.


def said(capsys) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if "fallen" in line]


def test_a_collapse_is_told_once_with_both_steps(run, scores, capsys):
    scores |= {("sft", 2): 16, ("sft", 4): 17, ("rl", 2): 12, ("rl", 4): 4}
    go(run, "sft", 4)
    go(run, "rl", 3)
    assert said(capsys) == [
        "held-out accuracy has fallen to 0.0% at step 3 of rl, from 85.0% at step 4 of sft; "
        f"'{run.out}/best' has the best weights"
    ]
    run.resume()
    go(run, "rl2", 8)  # lower still
    assert said(capsys) == []


@pytest.mark.parametrize(
    "peak, now, n, collapsed",
    [
        (16, 8, 20, True),
        (16, 9, 20, False),
        (2, 0, 20, False),
        (2, 0, 64, False),
        (12, 6, 64, False),
        (60, 30, 64, True),
    ],
)
def test_a_collapse_is_a_fall_to_half_that_is_no_chance(peak, now, n, collapsed):
    shares = [share_right([i < right for i in range(n)]) for right in (now, peak)]
    assert has_collapsed(*shares) == collapsed


def test_a_retrained_model_that_starts_over_has_not_collapsed(run, scores, capsys, monkeypatch):
    scores |= {("sft", 2): 18, ("retrain", 2): 1, ("retrain", 4): 17, ("retrain", 6): 2}
    run.state["base"] = run.model.state_dict()
    go(run, "sft", 2)
    monkeypatch.setattr(tora.sft, "train", lambda run, shown, phase: go(run, phase, 6))
    tora.retrain(run, [])
    (line,) = said(capsys)
    assert "to 10.0% at step 6 of retrain, from 85.0% at step 4 of retrain" in line
    assert read_best(run.out)["phase"] == "sft"


@pytest.mark.parametrize(
    "budgets, steps, calls",
    [
        ("2,3,4", 9, [2, 2, 2, 3, 3, 3, 4, 4, 4]),
        ("2, 3,4", 7, [2, 2, 2, 3, 3, 4, 4]),
        ("5", 3, [5, 5, 5]),
        ("", 3, [9, 9, 9]),
        ("2,3,4", 1, [2]),
    ],
)
def test_the_budget_of_calls_changes_in_equal_parts_of_the_run(budgets, steps, calls):
    assert [budget(budgets, step, steps, otherwise=9) for step in range(steps)] == calls


@pytest.mark.parametrize(
    "budgets, steps, calls", [("2,3,4", 9, 4), ("2,3,4", 2, 3), ("2,3,4", 0, 4), ("", 2, 9)]
)
def test_a_run_is_measured_with_the_budget_of_its_last_step(budgets, steps, calls):
    assert at_the_end(SamplerConfig(max_calls=9), budgets, steps).max_calls == calls
