"""Fused log-probs against those of PyTorch and closed forms.

On a GPU where there is one, else by Triton's interpreter, which takes milliseconds for a program.
"""

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from closed_forms import LOSS_TYPES
from conftest import small_model
from decode_checks import HEADS, check_a_step, check_a_step_in_bf16, check_what_is_read

from nanotir import kernels, sampler
from nanotir.draws import uniforms
from nanotir.logps import token_logps
from nanotir.losses import policy_loss
from nanotir.sampler import Sampler, SamplerConfig, pick

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TEMPERATURE = 0.8
OPTIONS = ({}, {"beta": 0.1}, {"delta": 1.35, "beta": 0.05}, {"delta": 1.15, "num_rows": 3})


@pytest.fixture()
def triton(monkeypatch):
    pytest.importorskip("triton", reason="Triton is optional, and not installed")
    monkeypatch.setattr(kernels, "kernel_runs_on", lambda device: True)


def case(N=12, V=37, dtype=torch.float32):
    """(logits (N, V), ids (N,), a mask (N,) with holes)."""
    generator = torch.Generator().manual_seed(0)
    logits = (2 * torch.randn(N, V, generator=generator)).to(dtype)
    ids = torch.randint(V, (N,), generator=generator)
    mask = torch.arange(N) % 7 != 5
    return logits.to(DEVICE), ids.to(DEVICE), mask.to(DEVICE)


def slopes_of(N: int):
    """What a loss may hand back to the log-probs, 0 as well."""
    return torch.tensor([1.0, -2.0, 0.0, 0.5, -0.25], device=DEVICE).repeat(N)[:N]


def fused(logits, ids, mask, temperature=TEMPERATURE):
    """(log-probs, gradient of the logits where the log-probs' is slopes_of)."""
    leaf = logits.clone().requires_grad_()
    own = leaf * 1  # what the kernel overwrites is no leaf, as in training
    logps = kernels.fused_logps(own, ids, temperature, mask)
    logps.backward(slopes_of(len(ids)))
    return logps.detach(), leaf.grad


def exact(logits, ids, mask, temperature=TEMPERATURE):
    """The same by PyTorch, in float64 and without a kernel."""
    leaf = logits.double().requires_grad_()
    logps = torch.where(mask, token_logps(leaf, ids, temperature), 0.0)
    logps.backward(slopes_of(len(ids)).double())
    return logps.detach(), leaf.grad


def assert_equal_to_exact(found, expected, atol=2e-6, rtol=1e-4):
    for a, b in zip(found, expected):
        torch.testing.assert_close(a.double(), b, atol=atol, rtol=rtol)


def by_hand(logits, ids, mask, temperature=TEMPERATURE):
    """Log-probs and gradient one number at a time: slope * (onehot - softmax) / temperature."""
    logps = torch.zeros(len(ids), dtype=torch.float64)
    gradient = torch.zeros(logits.shape, dtype=torch.float64)
    for n, slope in enumerate(slopes_of(len(ids)).tolist()):
        scaled = [x / temperature for x in logits[n].double().tolist()]
        total = sum(math.exp(x) for x in scaled)
        if mask[n]:
            logps[n] = scaled[ids[n]] - math.log(total)
            for v, x in enumerate(scaled):
                gradient[n, v] = slope * (float(v == ids[n]) - math.exp(x) / total) / temperature
    return logps.to(DEVICE), gradient.to(DEVICE)


@pytest.mark.parametrize("V", [1, 2, 16, 64, 129])
def test_log_probs_and_gradients_equal_those_of_pytorch(triton, V):
    assert_equal_to_exact(fused(*case(V=V)), exact(*case(V=V)))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_log_probs_and_gradients_equal_those_derived_by_hand(triton, temperature):
    assert_equal_to_exact(fused(*case(), temperature), by_hand(*case(), temperature))


def test_the_vocabulary_may_need_several_blocks_and_a_part_of_one(triton):
    given = case(N=6, V=20001)
    assert_equal_to_exact(fused(*given), exact(*given), atol=1e-5, rtol=1e-3)


def test_equal_logits_give_minus_the_log_of_the_vocabulary(triton):
    ids = torch.tensor([3], device=DEVICE)
    logits = torch.zeros(1, 10, device=DEVICE)
    logps, gradient = fused(logits, ids, ids > 0, temperature=0.5)
    onehot = torch.nn.functional.one_hot(ids, 10)
    assert logps.item() == pytest.approx(-math.log(10), abs=1e-6)
    torch.testing.assert_close(gradient, (onehot - 0.1) / 0.5, atol=1e-6, rtol=1e-5)


def test_large_logits_neither_overflow_nor_underflow(triton):
    logits, ids, mask = case()
    for shift in (-1e4, 1e4):
        shifted = logits + shift
        assert_equal_to_exact(fused(shifted, ids, mask), exact(shifted, ids, mask), atol=2e-3)


def test_logits_of_minus_infinity_have_probability_and_gradient_zero(triton):
    logits, ids, mask = case()
    ids[:] = 36
    logits[:, [0, 1, 20]] = float("-inf")
    logits[3, :36] = float("-inf")  # one id is left: its log-prob is 0
    logps, gradient = fused(logits, ids, mask)
    expected, _ = exact(logits, ids, mask)
    torch.testing.assert_close(logps.double(), expected, atol=2e-6, rtol=1e-5)
    assert logps[3] == 0 and gradient.isfinite().all()
    assert (gradient[:, [0, 1, 20]] == 0).all() and (gradient[3] == 0).all()


def test_a_whole_block_of_minus_infinity_is_no_nan(triton):
    logits, ids, mask = case(N=2, V=2100)
    logits[:, :1024] = float("-inf")
    ids[:] = 2000
    found = fused(logits, ids, mask)
    assert_equal_to_exact(found, exact(logits, ids, mask))
    assert (found[1][:, :1024] == 0).all()


def test_masked_tokens_are_not_read_and_get_a_gradient_of_zero(triton):
    logits, ids, mask = case()
    clean = fused(logits, ids, mask)
    logits[~mask] = float("nan")
    logps, gradient = fused(logits, ids, mask)
    assert torch.equal(logps, clean[0]) and torch.equal(gradient, clean[1])
    assert (logps[~mask] == 0).all() and (gradient[~mask] == 0).all()


def test_without_a_mask_every_token_counts(triton):
    logits, ids, mask = case()
    given = fused(logits, ids, torch.ones_like(mask))
    for a, b in zip(fused(logits, ids, None), given):
        assert torch.equal(a, b)


def test_a_slope_of_nan_on_a_masked_token_is_left_out(triton):
    logits, ids, mask = case()
    leaf = logits.clone().requires_grad_()
    logps = kernels.fused_logps(leaf * 1, ids, TEMPERATURE, mask)
    logps.backward(torch.where(mask, 1.0, float("nan")))
    assert leaf.grad.isfinite().all()


def test_bf16_logits_lose_nothing_but_the_rounding_of_their_gradient(triton):
    given = case(V=129, dtype=torch.bfloat16)
    logps, gradient = fused(*given)
    expected, exact_gradient = exact(*given)
    torch.testing.assert_close(logps.double(), expected, atol=2e-6, rtol=1e-5)
    assert logps.dtype == torch.float32 and gradient.dtype == torch.bfloat16
    # The interpreter cuts bits off where a GPU rounds.
    torch.testing.assert_close(gradient.double(), exact_gradient, atol=1e-5, rtol=2**-7)


def test_rows_of_logits_may_stand_apart_in_memory(triton):
    logits, ids, mask = case()
    wide = torch.cat([logits, torch.full_like(logits, float("nan"))], 1)
    leaf = wide.clone().requires_grad_()
    logps = kernels.fused_logps((leaf * 1)[:, :37], ids, TEMPERATURE, mask)
    logps.backward(slopes_of(len(ids)))
    for a, b in zip((logps.detach(), leaf.grad[:, :37]), fused(logits, ids, mask)):
        assert torch.equal(a, b)


def test_the_gradient_takes_the_place_of_the_logits(triton):
    logits, ids, mask = case()
    own = logits.clone().requires_grad_() * 1
    own.retain_grad()
    seen = []
    own.register_hook(lambda gradient: seen.append(gradient.data_ptr()))
    address = own.data_ptr()
    kernels.fused_logps(own, ids, 1.0, mask).sum().backward()
    assert seen == [address] == [own.data_ptr()] and torch.equal(own, own.grad)


def test_a_second_backward_pass_is_refused(triton):
    logits, ids, mask = case()
    logps = kernels.fused_logps(logits.requires_grad_() * 1, ids, 1.0, mask)
    logps.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        logps.sum().backward()


def test_a_leaf_is_not_overwritten(triton):
    logits, ids, mask = case()
    with pytest.raises(ValueError, match="cannot be a leaf"):
        kernels.fused_logps(logits.requires_grad_(), ids, 1.0, mask)


def test_logits_that_need_no_gradient_may_be_a_leaf_and_stay_as_they_are(triton):
    logits, ids, mask = case()
    before = logits.clone()
    logps = kernels.fused_logps(logits, ids, 1.0, mask)
    assert torch.equal(logits, before) and not logps.requires_grad


def test_where_nothing_is_chosen_log_probs_and_gradients_are_zero(triton):
    logits, ids, mask = case()
    logps, gradient = fused(logits, ids, mask & False)
    assert (logps == 0).all() and (gradient == 0).all()


def test_no_tokens_at_all_give_no_log_probs(triton):
    logits, ids, mask = case(N=0)
    logps, gradient = fused(logits, ids, mask)
    assert logps.shape == (0,) and gradient.shape == (0, 37)


# Through policy_loss: a row of N tokens.


def loss_of(logps_of, logits, ids, mask, dtype, **options):
    """(loss, metrics, gradient of the logits) with log-probs by `logps_of`.

    Ratios lie on both sides of every bound, and advantages have both signs and 0.
    """
    N = len(ids)
    generator = torch.Generator().manual_seed(1)
    exact_logps = token_logps(logits.double(), ids, TEMPERATURE)
    steps = torch.tensor([0.0, 0.1, -0.1, 0.4, -0.4, 0.27], device=DEVICE).repeat(N)[:N]
    noise = 0.3 * torch.randn(N, generator=generator)
    old = exact_logps - steps
    A = torch.tensor([1.0, -1.0, 0.5, -2.0, 0.0], device=DEVICE).repeat(N)[:N]
    given = (old + options.pop("shift", 0.0), A, exact_logps + noise.to(DEVICE))
    old, A, ref = (x[None].to(dtype) for x in given)

    leaf = logits.to(dtype if dtype == torch.float64 else logits.dtype, copy=True).requires_grad_()
    logps = logps_of(leaf * 1, ids, TEMPERATURE)[None]
    options = {"epsilon_high": 0.28, "max_completion_length": 20} | options
    loss, metrics = policy_loss(logps, old, A, mask[None], ref_logps=ref, **options)
    loss.backward()
    return loss.item(), metrics, leaf.grad.double()


def both(given, **options):
    """loss_of with fused log-probs, and without a kernel in float64."""
    plain = loss_of(token_logps, *given, torch.float64, **options)
    return loss_of(kernels.fused_logps, *given, torch.float32, **options), plain


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_every_loss_is_the_same_from_fused_log_probs(triton, loss_type):
    for level, options in itertools.product(("token", "sequence"), OPTIONS):
        options = options | {"loss_type": loss_type, "ratio_level": level}
        (loss, metrics, gradient), (expected, others, plain) = both(case(), **options)
        assert loss == pytest.approx(expected, abs=1e-5, rel=1e-5)
        torch.testing.assert_close(gradient, plain, atol=1e-5, rtol=1e-4)
        assert metrics == pytest.approx(others, abs=1e-5)


@pytest.mark.parametrize("shift", [-500.0, 500.0])
def test_far_ratios_stay_finite_and_teach_nothing(triton, shift):
    (loss, _, gradient), (expected, _, plain) = both(case(), shift=shift)
    assert math.isfinite(loss) and loss == pytest.approx(expected, rel=1e-5)
    assert (gradient == 0).all() and (plain == 0).all()


def test_a_clipped_token_is_not_read_in_the_backward_pass(triton):
    logits, ids, mask = case()
    leaf = logits.clone().requires_grad_()
    own = leaf * 1
    logps = kernels.fused_logps(own, ids, TEMPERATURE, mask)
    old = logps.detach() - torch.where(torch.arange(len(ids), device=DEVICE) < 3, 1.0, 0.0)
    A = torch.ones(1, device=DEVICE)
    loss, metrics = policy_loss(logps[None], old[None], A, mask[None])
    own.data[:3] = float("nan")  # their ratio is e, above every bound
    loss.backward()
    assert metrics["clip_high"] == pytest.approx(3 / 11, abs=1e-6)
    assert (leaf.grad[:3] == 0).all() and leaf.grad.isfinite().all()


# Without a kernel.


def test_without_a_gpu_the_log_probs_are_pytorchs():
    logits, ids, mask = (x.cpu() for x in case())
    leaf = logits.clone().requires_grad_()  # a leaf may be: it is not overwritten
    logps = kernels.fused_logps(leaf, ids, 0.7, mask)
    logps.sum().backward()
    assert torch.equal(logps, torch.where(mask, token_logps(logits, ids, 0.7), 0.0))
    assert torch.equal(leaf, logits) and (leaf.grad[mask] != 0).any()


def test_without_triton_there_is_one_line_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(kernels, "kernel_runs_on", lambda device: True)
    kernels.compiled.cache_clear()
    with pytest.raises(ValueError, match="pip install triton") as error:
        kernels.fused_logps(torch.zeros(1, 4), torch.tensor([0]))
    assert "\n" not in str(error.value)


def test_triton_is_imported_only_when_a_kernel_is_launched():
    source = Path(kernels.__file__).read_text()
    top_level = [line for line in source.splitlines() if line.startswith(("import", "from"))]
    assert not any("triton" in line for line in top_level)


# The attention of a decoding step.


@pytest.mark.parametrize("name", HEADS)
def test_a_decoding_step_by_the_kernel_is_that_of_pytorch(triton, name):
    check_a_step(kernels.decode_attention, name, DEVICE)


@pytest.mark.skipif(DEVICE == "cpu", reason="Triton's interpreter multiplies bf16 as integers")
def test_a_decoding_step_in_bf16_is_that_of_pytorch_up_to_rounding(triton):
    check_a_step_in_bf16(kernels.decode_attention, DEVICE)


def test_what_lies_beyond_a_rows_position_is_not_read(triton):
    check_what_is_read(kernels.decode_attention, DEVICE)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from nanotir import kernels

kernel = kernels.compiled(kernels.decode_kernel)
TYPES = {"positions": "*i64", "S": "i32"}
TYPES |= dict.fromkeys(["keys", "values", "heads", "out"], "*TYPE")
for dtype, D in (("fp32", 64), ("fp32", 128), ("fp32", 256), ("bf16", 128)):
    sizes = dict(eps=1e-6, H=8, K=2, D=D, GROUP=16, WIDE=D, BLOCK=kernels.slots_at_a_time(D))
    types = {name: TYPES.get(name, "*fp32").replace("TYPE", dtype) for name in kernel.arg_names}
    types |= dict.fromkeys(sizes, "constexpr")
    source = ASTSource(kernel, types, {(kernel.arg_names.index(n),): v for n, v in sizes.items()})
    print(triton.compile(source, GPUTarget("cuda", 89, 32)).metadata.shared)
"""


def test_the_attention_kernel_fits_into_the_shared_memory_of_a_small_gpu():
    """Compiled, which needs no GPU, for one of 99 KB a block (Ada)."""
    pytest.importorskip("triton", reason="Triton is optional, and not installed")
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    ran = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True)
    sizes = [int(line) for line in ran.stdout.split()]
    assert len(sizes) == 4, ran.stderr.decode()
    assert max(sizes) <= 99 * 1024


# The draw of a decoding step.


def picked(logits, u, forced=None, temperature=TEMPERATURE, banned=()):
    banned = torch.tensor([*banned], dtype=torch.long, device=DEVICE)
    return kernels.fused_pick(logits, u, temperature, banned, forced)


def expected_pick(logits, u, forced=None, temperature=TEMPERATURE, banned=()):
    """The same by PyTorch. Cumulative sums over few ids have 22 bits there."""
    config = SamplerConfig(temperature=temperature)
    return pick(logits, u, config, torch.tensor([*banned], dtype=torch.long, device=DEVICE), forced)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("N, V", [(40, 37), (40, 8192), (6, 20001)])
def test_ids_are_drawn_as_without_a_kernel(triton, N, V, dtype):
    logits, _, _ = case(N, V, dtype)
    given = (logits, uniforms(0, range(N), [1] * N))
    (ids, logps), (expected_ids, expected) = picked(*given), expected_pick(*given)
    assert ids.tolist() == expected_ids.tolist() and ids.dtype == torch.int64
    torch.testing.assert_close(logps, expected, atol=5e-6, rtol=1e-5)


def test_a_uniform_falls_on_the_id_whose_share_it_is(triton):
    logits = torch.tensor([0.25, 0.0, 0.5, 0.25], device=DEVICE).log().expand(6, -1).contiguous()
    ids, _ = picked(logits, [0.0, 0.24, 0.26, 0.74, 0.76, 1 - 2.0**-51], temperature=1.0)
    assert ids.tolist() == [0, 0, 2, 2, 3, 3]


def test_an_id_beyond_the_first_block_can_be_drawn_though_it_is_rare(triton):
    logits = torch.zeros(3, 20001, device=DEVICE)
    logits[:, 0] = 25.0  # 7e10 times as likely as another
    total = math.exp(25) + 20000
    u = [1 - 2.0**-51, 1 - 10000.5 / total, 1 - 20000.5 / total]
    assert picked(logits, u, temperature=1.0)[0].tolist() == [20000, 10000, 0]


def test_banned_ids_are_neither_drawn_nor_counted(triton):
    logits, _, _ = case(N=64)
    u = np.r_[0.0, uniforms(0, range(63), [1] * 63)]  # 0 falls on the first id that is left
    given = (logits, u, None, 1.0, range(0, 37, 2))
    ids, logps = picked(*given)
    assert (ids % 2 == 1).all()
    torch.testing.assert_close(logps, expected_pick(*given)[1], atol=5e-6, rtol=1e-5)


def test_a_forced_id_takes_the_place_of_the_drawn_one_with_its_own_log_prob(triton):
    logits, ids, _ = case()
    forced = torch.where(torch.arange(12, device=DEVICE) % 3 == 0, ids, -1)
    given = (logits, uniforms(0, range(12), [1] * 12), forced)
    for found, expected in zip(picked(*given), expected_pick(*given)):
        torch.testing.assert_close(found, expected, atol=5e-6, rtol=1e-5)


def test_a_row_that_holds_no_numbers_is_an_error(triton):
    logits, _, _ = case()
    logits[3] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        picked(logits, [0.5] * 12)


@pytest.mark.parametrize(
    "settings, kernel", [({}, True), ({"top_p": 0.9}, False), ({"top_k": 5}, False)]
)
def test_the_sampler_draws_by_the_kernel_where_all_ids_are_kept(
    settings, kernel, tokenizer, monkeypatch
):
    called = []
    monkeypatch.setattr(sampler, "decodes_on", lambda device: True)
    monkeypatch.setattr(sampler, "fused_pick", lambda *given: called.append(given))
    model = small_model(len(tokenizer))
    drawing = Sampler(model, tokenizer, config=SamplerConfig(**settings))
    drawing.pick(torch.zeros(2, len(tokenizer)), [0.5, 0.5])
    assert bool(called) == kernel
