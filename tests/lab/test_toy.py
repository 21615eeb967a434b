"""The experiments' own code, on models that learn nothing: that every kind of arm runs, and that arms share what they should."""

import json
from types import SimpleNamespace

import pytest

from nanotir.lab import toy
from nanotir.lab.experiments import EXPERIMENTS
from nanotir.lab.grpo import BadLine
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
}
KINDS = [  # one arm of each function that makes them
    ("sft-mask", "learned"),
    ("shaping", "4 + corrected"),
    ("rl-mask", "learned"),
    ("pass-at-k", "RL code"),
    ("autocode", "EM"),
    ("calls", "TAPO"),
    ("experts", "experts, sequence"),
    ("overlap", "blocking"),
    ("lengths", "grpo"),
]


@pytest.fixture
def least(monkeypatch, tmp_path):
    """Every run as small as can be, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    build = toy.build
    shrink = lambda values: {
        **values,
        **{name: min(values.get(name, size), size) for name, size in LEAST.items()},
    }
    monkeypatch.setattr(toy, "build", lambda values: build(shrink(values)))


@pytest.mark.parametrize("experiment, arm", KINDS)
def test_every_kind_of_arm_gives_what_its_experiment_compares_and_draws(
    least, tmp_path, experiment, arm
):
    metrics = EXPERIMENTS[experiment].arms[arm].run(0, True, tmp_path / "arm")
    assert set(EXPERIMENTS[experiment].metrics) <= set(metrics)
    curves = {name for name, value in metrics.items() if isinstance(value, list)}
    assert set(EXPERIMENTS[experiment].figure) <= curves and json.dumps(metrics)


def test_a_cold_start_is_trained_once_and_shared(least, monkeypatch):
    trained, count = toy.trained, []
    monkeypatch.setattr(
        toy,
        "trained",
        lambda *arguments, **options: count.append(1) or trained(*arguments, **options),
    )
    settings = {"data": "generated:mul", "tools": "", "rl.steps": 0}
    assert (
        toy.cold_start("one", settings, 0, True) == toy.cold_start("one", settings, 0, True)
        and len(count) == 1
    )
    assert (
        toy.cold_start("one", settings, 1, True) != toy.cold_start("one", settings, 0, True)
        and len(count) == 2
    )


def test_arms_of_one_key_are_one_computation():
    arms = [arm for experiment in EXPERIMENTS.values() for arm in experiment.arms.values()]
    code = lambda arm: (
        arm.run.__code__,
        [str(cell.cell_contents) for cell in arm.run.__closure__ or ()],
    )
    for arm in arms:
        assert all(code(other) == code(arm) for other in arms if other.key == arm.key), arm.key


def test_every_experiment_about_rl_has_an_arm_paid_by_a_coin():
    without = {
        "formats",
        "shaping",
        "sft-mask",
        "pass-at-k",
        "overlap",
    }  # imitation alone, an analysis of the arms of another, and a matter of speed
    assert {name for name, experiment in EXPERIMENTS.items() if not experiment.control} == without


def test_a_bad_line_is_down_for_half_of_the_rows_and_always_for_the_same_ones():
    class Echo(Tool):
        name = "python"

        def run(self, text, session=None):
            return ToolResult(text)

    with Echo() as tool:
        said = lambda line, rows: [
            line.submit("1+1", SimpleNamespace(index=row)).result().output for row in rows
        ]
        answers = said(BadLine(tool), range(400))
        assert said(BadLine(tool), reversed(range(400))) == answers[::-1] and set(answers) == {
            "1+1",
            "The line is down.",
        }
        assert abs(answers.count("1+1") - 200) < 40  # four standard deviations
        assert set(said(BadLine(tool, down=True), range(9))) == {"The line is down."}


def test_mean_of_takes_the_last_share():
    points = [[1, 1.0], [2, 2.0], [3, 3.0], [4, 6.0]]
    assert (
        toy.mean_of(points) == 3.0 and toy.mean_of(points, 0.5) == 4.5 and toy.mean_of([]) is None
    )
