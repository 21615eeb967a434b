"""AutoCode's experiment: how decisions are graded."""

import math

import pytest

from nanotir.config import PRESETS, build
from nanotir.lab import autocode as baselines
from nanotir.lab.toy import make_run
from nanotir.problems import Problem
from nanotir.recipes import autocode
from nanotir.recipes.autocode import Explored

pytestmark = pytest.mark.usefixtures("shared_tools")


@pytest.fixture
def run(tmp_path):
    values = {**autocode.SETTINGS, **PRESETS["probe"], "recipe": "autocode", "problems": 30}
    with make_run(build({**values, "out": str(tmp_path / "run")})) as run:
        yield run


def test_ties_are_reported_apart_from_problems_whose_decisions_differ():
    words = Explored(Problem("?", "1"), logps=[math.log(0.9), math.log(0.1)], accuracy=[1.0, 0.0])
    code = Explored(Problem("!", "1"), logps=[math.log(0.2), math.log(0.8)], accuracy=[0.5, 0.5])
    found = baselines.metrics([words, code, code, code], gaps=[-1.0, 0.5, 0.0, 0.0])
    assert (found["clear_selection"], found["clear"], found["ties"]) == (1.0, 0.5, 0.5)
    assert found["code_rate_on_ties"] == pytest.approx(0.8)
    assert found["selection_accuracy"] == 0.5  # words win ties
    found = baselines.metrics([code], gaps=[0.0])
    assert found["clear_selection"] is None is found["own_clear_selection"]


def test_a_look_at_the_policy_forces_n_rollouts_of_each_decision(run):
    explored = baselines.look(run, run.held_out[:3], n=3, seed=5)
    assert [row.problem for row in explored] == run.held_out[:3]
    assert [len(rollouts) for row in explored for rollouts in row.rollouts] == [3] * 6


def test_rates_of_code_are_the_priors_of_the_two_decisions(run):
    rates = baselines.code_rates(run)
    priors = [row.prior[1] for row in baselines.look(run, run.held_out, n=2)]
    assert rates == pytest.approx(priors, abs=1e-5)


def test_rates_are_written_down_at_the_start_and_after_every_step(run, monkeypatch):
    seen = iter("abc")
    monkeypatch.setattr(baselines, "code_rates", lambda run: next(seen))
    rates = baselines.watched(run)
    run.state["phase"] = "em"
    for step in (1, 2):
        run.finish_step(step, {"accuracy": 0.5}, [])
    assert rates == {0: "a", 1: "b", 2: "c"}
    assert baselines.curve(run, "accuracy", "em") == [[1, 0.5], [2, 0.5]]


def test_histograms_count_problems_by_tenths_of_their_rates():
    found = baselines.histograms(
        {0: [0.5, 0.5], 1: [0.2, 0.8], 2: [0.0, 0.3], 3: [0.0, 0.3], 4: [0.0, 1.0]}
    )
    assert list(found) == [f"code rate: {percent}%" for percent in (0, 25, 50, 75, 100)]
    assert found["code rate: 0%"][5] == [0.55, 1.0]
    assert [x for x, _ in found["code rate: 100%"]] == pytest.approx(
        [0.05 + i / 10 for i in range(10)]
    )
    assert [share for _, share in found["code rate: 100%"]] == [0.5, *[0] * 8, 0.5]


def test_selection_by_step_is_over_clear_problems():
    rates = {0: [0.9, 0.9, 0.1], 1: [0.1, 0.9, 0.9]}
    assert baselines.by_step(rates, gaps=[-1.0, 0.5, 0.1]) == [[0, 0.5], [1, 1.0]]
    assert baselines.by_step(rates, gaps=[0.0, 0.0, 0.25]) == []


def test_accuracy_is_drawn_over_the_rollouts_of_a_step(run):
    run.state["phase"] = "rl"
    run.finish_step(1, {"accuracy": 0.25}, [])
    assert baselines.by_rollouts(run, 0.5) == [[128, 0.25]]
    (run.out / "metrics.jsonl").unlink()
    assert baselines.by_rollouts(run, 0.5) == [[0, 0.5], [128 * 20, 0.5]]


def test_em_and_rl_pay_for_as_many_rollouts_a_step():
    rounds = baselines.ROUNDS
    assert rounds["rl.group_size"] == 2 * rounds["autocode.samples"]


def test_a_look_at_the_policy_samples_at_temperature_1(run, monkeypatch):
    run.config.sampler.temperature = 0.5
    temperatures = []

    def force(run, sampler, problems, K, seed):
        temperatures.append(sampler.config.temperature)

    monkeypatch.setattr(baselines, "force", force)
    baselines.look(run, run.held_out)
    assert temperatures == [1.0]
