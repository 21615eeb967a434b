"""Gradients in closed form, against finite differences and those of autograd."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import small_model
from torch.autograd import gradcheck

from nanotir import model as model_module
from nanotir.gradients import ClosedRMSNorm, ClosedSwiGLU
from nanotir.lora import adapt

EPS = 1e-5


def swiglu(gate_up):
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


CASES = {  # (in closed form, the formula, shapes of what has a gradient)
    "norm": (
        lambda x, weight: ClosedRMSNorm.apply(x, weight, EPS),
        lambda x, weight: F.rms_norm(x, weight.shape, weight, EPS),
        [(3, 5, 8), (8,)],
    ),
    "norm of each head": (
        lambda x, weight: ClosedRMSNorm.apply(x, weight, EPS),
        lambda x, weight: F.rms_norm(x, weight.shape, weight, EPS),
        [(3, 5, 2, 8), (8,)],
    ),
    "swiglu": (ClosedSwiGLU.apply, swiglu, [(3, 5, 16)]),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def drawn(shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    numbers = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [x.to(dtype).requires_grad_() for x in numbers]


def test_gradients_are_those_of_finite_differences(case):
    closed, _, shapes = case
    assert gradcheck(closed, drawn(shapes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_results_are_those_of_the_formula_bit_for_bit(case, dtype):
    closed, formula, shapes = case
    result, expected = closed(*drawn(shapes, dtype)), formula(*drawn(shapes, dtype))
    assert result.dtype == expected.dtype
    assert torch.equal(result, expected)


@pytest.mark.parametrize("dtype, units", [(torch.float32, 4), (torch.bfloat16, 1)])
def test_gradients_are_as_precise_as_their_inputs(case, dtype, units):
    closed, _, shapes = case
    rounded = drawn(shapes, dtype)
    exact = [x.detach().double().requires_grad_() for x in rounded]
    for inputs in (exact, rounded):
        closed(*inputs).square().sum().backward()
    for expected, x in zip(exact, rounded):
        assert x.grad.dtype == dtype
        largest = expected.grad.abs().max()
        assert (x.grad - expected.grad).abs().max() < units * torch.finfo(dtype).eps * largest


def test_a_frozen_weight_costs_no_gradient():
    x, weight = drawn([(3, 5, 8), (8,)])
    r = torch.ones(3, 5, 1, dtype=x.dtype)
    context = SimpleNamespace(saved_tensors=(x, r, weight), needs_input_grad=(True, False, False))
    for_x, for_weight, _ = ClosedRMSNorm.backward(context, torch.ones_like(x))
    assert for_x.shape == x.shape
    assert for_weight is None


@pytest.mark.parametrize("rank", [0, 4])
def test_a_model_has_the_gradients_that_autograd_finds(rank, monkeypatch):
    model = small_model(40, n_experts=4, d_shared=16).double()
    if rank:
        adapt(model, rank)
        nudge(model)
    ids = torch.arange(24).view(2, 12)
    found = [gradients(model, ids)]
    names = {"ClosedRMSNorm": Plain(norm), "ClosedSwiGLU": Plain(swiglu)}
    for name, plain in names.items():
        monkeypatch.setattr(model_module, name, plain)
    found.append(gradients(model, ids))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], msg=name)


@torch.no_grad()
def nudge(model):
    """Adapters begin with a matrix of zeros, behind which nothing has a gradient."""
    for weight in model.parameters():
        weight += 0.01


class Plain:
    """A formula in place of a function of autograd."""

    def __init__(self, apply):
        self.apply = apply


def norm(x, weight, eps):
    return F.rms_norm(x, weight.shape, weight, eps)


def gradients(model, ids) -> dict:
    model.zero_grad()
    model(ids).square().sum().backward()
    learned = {name: w.grad for name, w in model.named_parameters() if w.requires_grad}
    assert all(grad.any() for name, grad in learned.items() if "router" not in name)
    return {name: grad.clone() for name, grad in learned.items()}
