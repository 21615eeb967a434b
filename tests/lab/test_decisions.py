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


def test_a_look_at_the_policy_samples_at_temperature_1(run, monkeypatch):
    run.config.sampler.temperature = 0.5
    temperatures = []

    def force(run, sampler, problems, K, seed):
        temperatures.append(sampler.config.temperature)

    monkeypatch.setattr(baselines, "force", force)
    baselines.look(run, run.held_out)
    assert temperatures == [1.0]
