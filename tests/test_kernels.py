"""The Triton kernels against their twin in PyTorch and against closed forms: on a GPU where there is one, else by Triton's interpreter."""

import math

import pytest
import torch

from nanotir import losses
from nanotir.kernels import compiled, fused_token_losses
from nanotir.logps import token_logps
from nanotir.losses import fused_policy_loss, policy_loss

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class TestTriton:
    """Few and small programs: the interpreter takes milliseconds for each."""

    @pytest.fixture(autouse=True)
    def triton(self, monkeypatch):
        pytest.importorskip("triton", reason="Triton is optional, and not installed")
        monkeypatch.setattr(losses, "kernel_runs_on", lambda device: True)

    @staticmethod
    def case(N=12, V=37, dtype=torch.float32, seed=0):
        """Ratios on both sides of every bound, with advantages of both signs and 0, and a mask with holes."""
        generator = torch.Generator().manual_seed(seed)
        logits = (2 * torch.randn(N, V, generator=generator)).to(dtype)
        ids = torch.randint(V, (N,), generator=generator)
        logps = token_logps(logits, ids, 0.8)
        steps = torch.tensor([0.0, 0.1, -0.1, 0.4, -0.4, 0.27])
        old, ref = logps - steps.repeat(N)[:N], logps + 0.3 * torch.randn(N, generator=generator)
        A = torch.tensor([1.0, -1.0, 0.5, -2.0, 0.0]).repeat(N)[:N]
        mask = torch.arange(N) % 7 != 5
        return [x.to(DEVICE) for x in (logits, ids, old, A, mask, ref)]

    @staticmethod
    def both(case, dtype=None, **settings):
        """(loss, metrics, gradient of the logits) of the kernel and of the twin in float64, on one row of N tokens."""
        logits, ids, old, A, mask, ref = case
        row = lambda x: x[None].double()
        settings = (
            dict(temperature=0.8, epsilon=0.2, epsilon_high=0.28, max_completion_length=20)
            | settings
        )
        kernel, twin = logits.clone().requires_grad_(), row(logits).requires_grad_()
        own = kernel * 1  # what the kernel overwrites is no leaf, as in training
        loss, metrics = fused_policy_loss(
            own[None], ids[None], old[None], A[None], mask[None], ref_logps=ref[None], **settings
        )
        loss.backward()
        temperature = settings.pop("temperature")
        expected, others = policy_loss(
            token_logps(twin, ids[None], temperature),
            row(old),
            row(A),
            mask[None],
            ref_logps=row(ref),
            **settings,
        )
        expected.backward()
        return (loss, metrics, kernel.grad.double()), (expected, others, twin.grad[0])

    @pytest.mark.parametrize(
        "V, loss_type",
        [*((V, "dapo") for V in (1, 2, 16, 64, 129)), *((37, name) for name in losses.CLIPPED)],
    )
    def test_loss_metrics_and_gradient_equal_those_of_the_twin(self, V, loss_type):
        for settings in (
            {},
            {"beta": 0.1},
            {"delta": 1.35, "beta": 0.05},
            {"delta": 1.15, "num_active_tokens": 40, "num_rows": 3},
        ):
            (loss, metrics, gradient), (expected, others, twin) = self.both(
                self.case(V=V), loss_type=loss_type, **settings
            )
            assert loss.item() == pytest.approx(expected.item(), abs=2e-6)
            torch.testing.assert_close(gradient, twin, atol=2e-6, rtol=1e-4)
            assert metrics == pytest.approx(others, abs=2e-6)

    def test_the_vocabulary_may_need_several_blocks_and_a_part_of_one(self):
        (loss, _, gradient), (expected, _, twin) = self.both(self.case(N=6, V=20001), beta=0.1)
        assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
        torch.testing.assert_close(gradient, twin, atol=1e-6, rtol=1e-3)

    def test_loss_slope_and_gradient_equal_the_closed_form(self):
        """Logits 0 everywhere: p = 1/V, logp = -log V; the loss of one token and its gradient, by hand."""
        V = 10
        for ratio, A, slope in (
            (1.0, 1.0, -1.0),
            (1.1, 2.0, -2.2),
            (1.5, 1.0, 0.0),
            (1.5, -1.0, 1.5),
            (0.5, -1.0, 0.0),
            (0.5, 1.0, -0.5),
            (4.0, -1.0, 0.0),
        ):
            logits = torch.zeros(1, V, device=DEVICE).requires_grad_()
            old = torch.tensor([-math.log(V) - math.log(ratio)], device=DEVICE)
            tokens = [torch.tensor([x], device=DEVICE) for x in (3,)] + [
                old,
                torch.tensor([A], device=DEVICE),
                torch.tensor([True], device=DEVICE),
            ]
            per_token, logps = fused_token_losses(logits * 1, *tokens, temperature=0.5, delta=3.0)
            per_token.sum().backward()
            assert logps.item() == pytest.approx(-math.log(V), abs=1e-6)
            assert per_token.item() == pytest.approx(
                -min(min(ratio, 3.0) * A, min(max(ratio, 0.8), 1.2) * A), abs=1e-5
            )
            onehot = torch.nn.functional.one_hot(torch.tensor(3), V).to(DEVICE)
            torch.testing.assert_close(
                logits.grad[0], slope * (onehot - 1 / V) / 0.5, atol=1e-5, rtol=1e-5
            )

    def test_logits_of_minus_infinity_have_probability_and_gradient_zero(self):
        case = self.case(V=37)
        case[1][:] = 36
        case[0][:, [0, 1, 20]] = float("-inf")
        case[0][3, :36] = float("-inf")  # one id is left: its log-prob is 0
        (loss, metrics, gradient), (expected, *_) = self.both(case, beta=0.1)
        assert (
            loss.item() == pytest.approx(expected.item(), rel=1e-6)
            and metrics["active_tokens"] == 11
        )
        assert (
            (gradient[:, [0, 1, 20]] == 0).all()
            and gradient.isfinite().all()
            and (gradient[3] == 0).all()
        )

    def test_masked_tokens_are_not_read_and_get_a_gradient_of_zero(self):
        case = self.case()
        clean, _ = self.both(case)
        case[0][~case[4]] = float("nan")
        (loss, metrics, gradient), _ = self.both(case)
        assert (
            loss == clean[0]
            and metrics == clean[1]
            and torch.equal(gradient, clean[2])
            and (gradient[~case[4]] == 0).all()
        )

    def test_bf16_logits_lose_nothing_but_the_rounding_of_their_gradient(self):
        (loss, _, gradient), (expected, _, twin) = self.both(
            self.case(V=129, dtype=torch.bfloat16), beta=0.1
        )
        assert loss.item() == pytest.approx(expected.item(), abs=2e-6)
        torch.testing.assert_close(
            gradient, twin, atol=1e-5, rtol=2**-7
        )  # the interpreter cuts bits off where a GPU rounds

    def test_the_gradient_takes_the_place_of_the_logits(self):
        logits, ids, old, A, mask, _ = self.case()
        own = logits.clone().requires_grad_() * 1
        own.retain_grad()
        at = own.data_ptr()
        per_token, _ = fused_token_losses(own, ids, old, A, mask)
        per_token.sum().backward(retain_graph=True)
        assert own.data_ptr() == at and torch.equal(own, own.grad)
        with pytest.raises(RuntimeError, match="second backward"):
            per_token.sum().backward()

    def test_a_leaf_is_not_overwritten(self):
        logits, ids, old, A, mask, _ = self.case()
        with pytest.raises(ValueError, match="cannot be a leaf"):
            fused_token_losses(logits.requires_grad_(), ids, old, A, mask)

    def test_far_ratios_stay_finite_and_teach_nothing(self):
        logits, ids, old, A, mask, ref = self.case()
        for shift in (-500.0, 500.0):
            (loss, _, gradient), (expected, _, twin) = self.both(
                [logits, ids, old + shift, A, mask, ref + shift], beta=0.1
            )
            assert loss.isfinite() and loss.item() == pytest.approx(expected.item(), rel=1e-5)
            assert (gradient == 0).all() and (twin == 0).all()

    def test_nothing_at_all_gives_zero(self):
        logits, ids, old, A, mask, _ = self.case()
        (loss, metrics, gradient), _ = self.both([logits, ids, old, A, mask & False, old])
        assert loss == 0 and (gradient == 0).all() and metrics["active_tokens"] == 0
        empty = fused_policy_loss(
            torch.zeros(0, 5, device=DEVICE, requires_grad=True) * 1,
            ids[None],
            old[None],
            A[None],
            mask[None] & False,
        )
        empty[0].backward()
        assert empty[0] == 0


def test_without_triton_there_is_one_line_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "triton", None)
    compiled.cache_clear()
    with pytest.raises(ValueError, match="pip install triton"):
        fused_token_losses(
            torch.zeros(1, 4),
            torch.tensor([0]),
            torch.zeros(1),
            torch.zeros(1),
            torch.tensor([True]),
        )
