import pytest
import torch

from nanotir import losses
from nanotir.bench import fused, medians

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def test_every_figure_is_its_median_over_the_rounds_but_for_the_one_that_warms_up():
    assert medians(
        lambda number: {"same": 1.0, "number": 1000.0 if number < 0 else number**2 / 3}, rounds=5
    ) == {"same": 1.0, "number": 1.33333}


def test_the_losses_that_are_timed_are_one_loss_and_their_errors_are_those_of_bf16(monkeypatch):
    pytest.importorskip("triton", reason="Triton is optional, and not installed")
    monkeypatch.setattr(losses, "kernel_runs_on", lambda device: True)
    case = fused.make_case(12, 40, DEVICE)
    gradients = [
        fused.gradient(loss, case, case.logits.clone())
        for loss in (fused.fused, fused.kernels, fused.twin)
    ]
    assert torch.equal(gradients[0], gradients[1]) and gradients[0].abs().max() > 0.1
    torch.testing.assert_close(gradients[0], gradients[2], atol=1e-4, rtol=2**-6)
    assert all(0 < error < 2**-7 for error in fused.errors(case, 8).values())
