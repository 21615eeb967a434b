"""Importance weights: what they correct where the sampler differs from the trainer's policy."""

import copy

import pytest
import torch
from conftest import small_model

from nanotir import rl
from nanotir.batches import collate
from nanotir.logps import masked_logps
from nanotir.losses import policy_loss
from nanotir.trajectory import Trajectory

V = 30
HOW = rl.Drawing(temperature=0.7, banned=[3, 4], pad_id=0, max_new_tokens=16)
A = torch.tensor([1.0, -1.0, 0.5, -0.5, 2.0, -2.0])


class Recorder:
    """An optimiser that keeps the gradient instead of taking a step."""

    def __init__(self, model):
        self.parameters = list(model.parameters())

    def step(self):
        self.gradient = torch.cat([p.grad.flatten() for p in self.parameters])

    def zero_grad(self):
        for p in self.parameters:
            p.grad = None


@pytest.fixture()
def model():
    return small_model(V)


@pytest.fixture()
def rows(model) -> list[Trajectory]:
    """Trajectories whose trainer's and sampler's log-probs are the same."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for n in range(2, 8):
        row = Trajectory()
        row.append("prompt", [5, 6, 7], 0)
        row.append("text", torch.randint(5, V, (n,), generator=generator).tolist(), 1)
        row.append("output", [8, 9], 0)
        row.append("text", torch.randint(5, V, (2,), generator=generator).tolist(), 1)
        rows.append(row)
    rl.rescore(model, rows, rl.RLConfig(), HOW)
    for row in rows:
        row.logps = list(row.old_logps)
    return rows


def disturbed(rows: list[Trajectory]) -> list[Trajectory]:
    """The same, drawn by a sampler that is off by up to 1, both ways."""
    rows = copy.deepcopy(rows)
    generator = torch.Generator().manual_seed(1)
    for row in rows:
        noise = 2 * torch.rand(len(row.ids), generator=generator) - 1
        row.logps = [logp + x * m for logp, x, m in zip(row.logps, noise.tolist(), row.mask)]
    return rows


def moved(model):
    """The policy after an update, so that its ratios are not 1."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.01 * torch.randn(weight.shape, generator=generator)
    return model


def gradient(model, rows, **settings):
    """(metrics, gradient) of one update."""
    model = copy.deepcopy(model)
    recorder = Recorder(model)
    settings = rl.RLConfig(grad_clip=1e9, **settings)
    metrics = rl.update(model, recorder, rows, A, settings, HOW)
    return metrics, recorder.gradient


def expected(model, rows, cap, **options):
    """(loss, gradient) of policy_loss with weights min(exp(old_logps - logps), cap)."""
    model = copy.deepcopy(model)
    batch = collate(rows, HOW.pad_id)
    old = batch.old_logps
    weights = (old - batch.logps).exp().clamp(max=cap)
    logps, _ = masked_logps(model, batch.ids, batch.mask, HOW.temperature, HOW.banned)
    bounds = {"epsilon": 0.2, "epsilon_high": 0.28}
    loss, _ = policy_loss(logps, old, A, batch.mask, importance_weights=weights, **bounds | options)
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("cap", [1.1, 2.0, 100.0])
@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "sapo", "gmpo", "vespo", "luspo"])
def test_an_update_weighs_ids_by_the_capped_ratio_of_trainer_to_sampler(
    model, rows, cap, loss_type
):
    rows = disturbed(rows)
    policy = moved(model)
    metrics, found = gradient(policy, rows, importance_cap=cap, loss_type=loss_type)
    loss, wanted = expected(policy, rows, cap, loss_type=loss_type)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5, abs=1e-6)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)


def test_the_cap_bounds_the_weights(rows, model):
    rows = disturbed(rows)
    _, low = gradient(model, rows, importance_cap=1.1)
    _, high = gradient(model, rows, importance_cap=100.0)
    _, higher = gradient(model, rows, importance_cap=1000.0)
    assert not torch.allclose(low, high, rtol=1e-2) and torch.equal(high, higher)


@pytest.mark.parametrize("micro_batch_tokens", [30, 10_000])
def test_the_mean_weight_of_the_chosen_ids_is_logged(rows, model, micro_batch_tokens):
    rows = disturbed(rows)
    settings = {"importance_cap": 1.5, "micro_batch_tokens": micro_batch_tokens}
    metrics, _ = gradient(model, rows, **settings)
    batch = collate(rows, HOW.pad_id)
    weights = (batch.old_logps - batch.logps).exp().clamp(max=1.5)[batch.mask]
    assert metrics["importance_weight"] == pytest.approx(weights.mean().item(), rel=1e-5)


@pytest.mark.parametrize("settings", [{}, {"micro_batch_tokens": 30}, {"fused": True}])
def test_where_sampler_and_trainer_agree_the_gradient_is_the_same_bit_for_bit(
    model, rows, settings
):
    policy = moved(model)
    without, gradient_without = gradient(policy, rows, **settings)
    weighted, gradient_weighted = gradient(policy, rows, importance_cap=2.0, **settings)
    assert weighted.pop("importance_weight") == 1
    assert torch.equal(gradient_without, gradient_weighted) and weighted == without
    assert gradient_without.abs().max() > 0


def test_without_a_cap_the_samplers_log_probs_have_no_influence(model, rows):
    _, found = gradient(moved(model), disturbed(rows))
    _, wanted = gradient(moved(model), rows)
    assert torch.equal(found, wanted)


def test_rescoring_fills_in_the_trainers_log_probs_and_leaves_the_samplers_alone(model, rows):
    disturbed_rows = disturbed(rows)
    sampled = [list(row.logps) for row in disturbed_rows]
    for row in disturbed_rows:
        row.old_logps = []
    gap = rl.rescore(model, disturbed_rows, rl.RLConfig(), HOW)
    assert [row.logps for row in disturbed_rows] == sampled
    assert [row.old_logps for row in disturbed_rows] == [row.old_logps for row in rows]
    differences = [abs(a - b) for row in disturbed_rows for a, b in zip(row.old_logps, row.logps)]
    assert gap == pytest.approx(max(differences), rel=1e-5) and gap > 0.5
