import pytest
import torch

from nanotir.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(64, 24), (24, 64), (32, 32)])
def test_every_direction_of_the_update_is_about_equally_strong_and_none_is_turned(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s = torch.logspace(0, -2, len(s), dtype=torch.float64)  # from strong to a hundredth
    result = u.T @ orthogonal(u @ s.diag() @ v) @ v.T
    strengths = result.diagonal()
    assert ((0.68 < strengths) & (strengths < 1.21)).all()
    torch.testing.assert_close(result, strengths.diag(), atol=1e-9, rtol=0)


def test_a_matrix_of_zeros_stays_one():
    assert (orthogonal(torch.zeros(4, 8)) == 0).all()


def test_steps_are_those_of_torchs_muon_but_for_its_bfloat16():
    generator = torch.Generator().manual_seed(0)
    start = {
        shape: torch.randn(shape, generator=generator) for shape in ((48, 16), (16, 48), (16, 16))
    }
    ours, theirs = (
        [torch.nn.Parameter(weight.clone()) for weight in start.values()] for _ in range(2)
    )
    optimizers = Muon(ours, lr=0.1), torch.optim.Muon(theirs, lr=0.1, weight_decay=0.0)
    for _ in range(3):
        for a, b in zip(ours, theirs):
            a.grad = b.grad = torch.randn(a.shape, generator=generator)
        for optimizer in optimizers:
            optimizer.step()
    for a, b, before in zip(ours, theirs, start.values()):
        assert (a - b).norm() < 0.02 * (b - before).norm()


def test_a_weight_without_a_gradient_stays_as_it_is():
    weight = torch.nn.Parameter(torch.ones(3, 5))
    Muon([weight], lr=0.1).step()
    assert (weight == 1).all()
