"""Numbers that are not finite stop a run, and spoil nothing that is saved."""

import json
import math

import pytest
import torch
from conftest import small_model

import train
from nanotir import optim, rl, sft
from nanotir.policy import load_run
from nanotir.rl import Drawing, RLConfig, rescore
from nanotir.run import Run
from nanotir.sampler import Sampler, SamplerConfig
from nanotir.trajectory import Trajectory

pytestmark = pytest.mark.usefixtures("shared_tools")
TINY = (
    "--preset probe --problems 20 --data generated:itself --sft.steps 4 --sft.batch_size 4 "
    "--eval.problems 1 --eval.modes text --rl.steps 3 --rl.dynamic false "
    "--sampler.max_new_tokens 8 --tools python --save_every 1 --threads 1"
).split()


def stopped(capsys, out) -> str:
    """What a run says that stops by itself: one line at the end, with exit code 2."""
    with pytest.raises(SystemExit) as caught:
        train.main([*TINY, "--out", str(out)])
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def saved(out) -> dict:
    return torch.load(out / "checkpoint" / "state.pt", weights_only=True)


def all_finite(out) -> bool:
    rows = (out / "metrics.jsonl").read_text()
    weights = saved(out)["model"].values()
    return "NaN" not in rows and all(weight.isfinite().all() for weight in weights)


def test_a_gradient_that_is_not_finite_changes_no_weight():
    model = torch.nn.Linear(2, 1)
    before = [weight.detach().clone() for weight in model.parameters()]
    model.weight.grad = torch.tensor([[float("nan"), 0.0]])
    model.bias.grad = torch.ones(1)
    descent = torch.optim.SGD(model.parameters(), lr=1.0)
    assert math.isnan(optim.step(model, [descent], grad_clip=1.0))
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters()))
    assert model.weight.grad is None and model.bias.grad is None


def test_imitation_stops_at_a_loss_that_is_not_finite(tmp_path, monkeypatch, capsys):
    imitate = sft.imitate

    def spoiled(*given):
        spoiled.steps += 1
        return imitate(*given) | ({"loss": math.inf} if spoiled.steps == 3 else {})

    spoiled.steps = 0
    monkeypatch.setattr(sft, "imitate", spoiled)
    out = tmp_path / "run"
    said = stopped(capsys, out)
    assert said.startswith("train.py: step 3 of sft: loss is inf; ")
    assert f"the last good checkpoint, step 2 of sft, stands in '{out}/checkpoint'" in said
    assert saved(out)["step"] == 2


def test_one_advantage_that_is_not_finite_stops_rl_and_the_run_can_be_resumed(
    tmp_path, monkeypatch, capsys
):
    advantages_of = rl.advantages_of

    def spoiled(*given):
        spoiled.steps += 1
        advantages = advantages_of(*given)
        if spoiled.steps == 2:
            advantages[0] = float("nan")
        return advantages

    spoiled.steps = 0
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(rl, "advantages_of", spoiled)
        said = stopped(capsys, out)
    assert said.startswith("train.py: step 2 of rl: loss is nan; the last good checkpoint, step 1")
    assert all_finite(out)
    load_run(out)
    train.main(["--resume", str(out)])
    assert saved(out)["done"] == ["sft", "rl"]


def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch, capsys):
    finish = Run.finish_step

    def spoil(self, step, *rest, **settings):
        if step == 3:
            next(self.model.parameters()).data[0, 0] = math.inf
        finish(self, step, *rest, **settings)

    monkeypatch.setattr(Run, "finish_step", spoil)
    out = tmp_path / "run"
    said = stopped(capsys, out)
    assert said.startswith("train.py: step 3 of sft: the weights embed.weight are not finite; ")
    assert all_finite(out)
    assert saved(out)["step"] == 2


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["logp_gap", "loss", "grad_norm", "reward", "router_aux"])
def test_every_metric_is_watched(name, number):
    run = Run("nowhere", None, small_model(40), None, None, [], [], [])
    run.restore("rl", [])
    with pytest.raises(ValueError, match=f"step 7 of rl: {name} is {number}; .* the start, "):
        run.finish_step(7, {"calls": {}, "tokens": 3, name: number}, [])


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_a_gap_that_is_not_finite_is_seen_in_whichever_batch_it_is(order):
    model = small_model(40)
    rows = []
    for row in order:
        logps = [0.0, -1.0 if row else float("nan"), -2.0]
        rows.append(Trajectory([1, 2, 3], [0, 1, 1], logps))
    settings = RLConfig(micro_batch_tokens=3)  # a batch for each
    gap = rescore(model, rows, settings, Drawing(1.0, [], pad_id=0, max_new_tokens=2))
    assert math.isnan(gap)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_is_not_finite_does_not_answer(tokenizer, temperature):
    model = small_model(len(tokenizer))
    model.embed.weight.data[:] = float("nan")
    sampler = Sampler(model, tokenizer, config=SamplerConfig(temperature=temperature))
    with pytest.raises(ValueError, match="probabilities are not finite"):
        sampler.generate(["1?"])


def test_metrics_that_are_logged_are_json(tmp_path, capsys):
    train.main([*TINY, "--out", str(tmp_path / "run")])
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert lines
    for line in lines:
        assert json.loads(line, parse_constant=lambda name: pytest.fail(name))
