from types import SimpleNamespace

import pytest
import torch
from conftest import small_model

from nanotir import optim
from nanotir.optim import Muon, learning_rate, muon_and_adamw, orthogonal, schedule


def test_the_learning_rate_rises_stays_and_falls_linearly():
    shares = [learning_rate(step, steps=10, warmup=4, decay=0.4) for step in range(10)]
    assert shares == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_without_warmup_and_decay_the_learning_rate_is_constant():
    assert {learning_rate(step, 10, 0, 0.0) for step in range(10)} == {1.0}


def test_the_schedule_sets_shares_of_every_groups_own_peak():
    settings = SimpleNamespace(steps=10, warmup=4, decay=0.4)
    weights = [torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2)]
    optimizers = [Muon(weights[:1], lr=0.1), optim.adamw(weights[1:], lr=0.02)]
    assert schedule(optimizers, 3, settings) == 1.0
    assert schedule(optimizers, 1, settings) == 0.5
    assert [group["lr"] for o in optimizers for group in o.param_groups] == [0.05, 0.01]


def test_a_step_clips_the_gradient_of_all_weights_together_and_clears_it():
    model = torch.nn.Linear(2, 1)
    before = [weight.detach().clone() for weight in model.parameters()]
    model.weight.grad, model.bias.grad = torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])
    descent = torch.optim.SGD(model.parameters(), lr=1.0)

    assert optim.step(model, [descent], grad_clip=0.5) == pytest.approx(5.0)
    weight, bias = (old - new for old, new in zip(before, model.parameters()))
    torch.testing.assert_close(weight, torch.tensor([[0.3, 0.0]]))
    torch.testing.assert_close(bias, torch.tensor([0.4]))
    assert model.weight.grad is None and model.bias.grad is None


def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest():
    model = small_model(40)
    muon, adamw = muon_and_adamw(model, muon_lr=0.1, adam_lr=0.01)
    names = {id(weight): name for name, weight in model.named_parameters()}
    inside, rest = ([names[id(w)] for w in o.param_groups[0]["params"]] for o in (muon, adamw))
    assert isinstance(muon, Muon) and isinstance(adamw, torch.optim.AdamW)
    assert sorted(inside + rest) == sorted(names.values())
    assert all(name.startswith("blocks.") and "norm" not in name for name in inside)
    assert all("norm" in name or not name.startswith("blocks.") for name in rest)


@pytest.mark.parametrize("shape", [(64, 24), (24, 64), (32, 32)])
def test_every_direction_of_muons_update_is_about_equally_strong_and_none_is_turned(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s = torch.logspace(0, -2, len(s), dtype=torch.float64)  # from strong to a hundredth
    result = u.T @ orthogonal(u @ s.diag() @ v) @ v.T
    strengths = result.diagonal()
    assert ((0.68 < strengths) & (strengths < 1.21)).all()
    torch.testing.assert_close(result, strengths.diag(), atol=1e-9, rtol=0)


def test_no_direction_explodes_in_bfloat16():
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(64, 4, generator=generator) @ torch.randn(4, 256, generator=generator)
    result = orthogonal(few.bfloat16())
    assert result.dtype == torch.bfloat16
    assert torch.linalg.matrix_norm(result.float(), 2) < 1.3


def test_a_matrix_of_zeros_stays_one():
    assert (orthogonal(torch.zeros(4, 8)) == 0).all()


@pytest.mark.parametrize("shape", [(48, 16), (16, 48), (16, 16)])
def test_muons_steps_are_those_of_torchs_muon_but_for_its_bfloat16(shape):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizers = Muon([ours], lr=0.1), torch.optim.Muon([theirs], lr=0.1, weight_decay=0.0)
    for _ in range(3):
        ours.grad = theirs.grad = torch.randn(shape, generator=generator)
        for optimizer in optimizers:
            optimizer.step()
    assert (ours - theirs).norm() < 0.02 * (theirs - start).norm()


def test_a_weight_without_a_gradient_stays_as_it_is():
    weight = torch.nn.Parameter(torch.ones(3, 5))
    Muon([weight], lr=0.1).step()
    assert (weight == 1).all()
