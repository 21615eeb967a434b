import json

import pytest
import torch

from nanotir import losses
from nanotir.bench import __main__ as bench
from nanotir.bench import fused
from nanotir.bench.timing import medians, timed

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def test_every_figure_is_its_median_over_the_rounds_without_the_warm_up():
    def measure(number):
        return {"same": 1.0, "number": 1000.0 if number < 0 else number**2 / 3}

    assert medians(measure, rounds=5) == {"same": 1.0, "number": 1.33333}


def test_a_timed_call_gives_its_result_too():
    seconds, result = timed(divmod, 7, 2)
    assert result == (3, 1)
    assert 0 <= seconds < 1


def test_a_measurement_is_one_line_of_json(monkeypatch, capsys):
    monkeypatch.setattr(bench, "latest_run", lambda: "some run")
    monkeypatch.setattr(bench, "policy_of", Nothing)
    monkeypatch.setitem(bench.MEASUREMENTS, "decode", lambda policy: {"ms": 1 / 3, "rows": 4})
    bench.main(["--only", "decode"])
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert json.loads(said) == {"name": "decode", "ms": 0.33333, "rows": 4}


class Nothing:
    """A policy without tools."""

    def __init__(self, folder):
        self.tools = []


def test_the_losses_that_are_timed_are_one_loss_and_their_errors_are_those_of_bf16(monkeypatch):
    pytest.importorskip("triton", reason="Triton is optional, and not installed")
    monkeypatch.setattr(losses, "kernel_runs_on", lambda device: True)
    case = fused.make_case(12, 40, DEVICE)
    whole, kernels, twin = (
        fused.gradient(loss, case, case.logits.clone())
        for loss in (fused.fused, fused.kernels, fused.twin)
    )
    assert torch.equal(whole, kernels)
    assert whole.abs().max() > 0.1
    torch.testing.assert_close(whole, twin, atol=1e-4, rtol=2**-6)
    assert all(0 < error < 2**-7 for error in fused.errors(case, 8).values())
