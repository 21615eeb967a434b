"""Attention in C++, which is compiled here."""

import shutil
import subprocess

import pytest
import torch
from conftest import small_model
from decode_checks import HEADS, check_a_step, check_a_step_in_bf16, check_what_is_read
from doubles import sampler_of

from nanotir import native

needs_a_compiler = pytest.mark.skipif(
    not shutil.which(native.COMPILER), reason=f"there is no {native.COMPILER}"
)


@needs_a_compiler
@pytest.mark.parametrize("name", HEADS)
def test_a_decoding_step_in_cpp_is_that_of_pytorch(name):
    check_a_step(native.decode_attention, name, "cpu")


@needs_a_compiler
@pytest.mark.parametrize("K, group, D", [(2, 3, 6), (1, 1, 32), (3, 4, 16)])
def test_attention_over_many_slots_is_that_in_float64(K, group, D):
    """Later keys are larger, so that the largest score changes from block to block."""
    generator = torch.Generator().manual_seed(0)
    S, H = 200, K * group
    at = torch.tensor([0, 62, 63, 64, 127, 128, 198])[:, None]
    heads = torch.randn(7, 1, H + 2 * K, D, generator=generator)
    cos, sin = torch.randn(2, 7, 1, 1, D, generator=generator)
    keys, values = torch.randn(2, 7, K, S, D, generator=generator)
    keys[:, :, 64:] *= 3
    found = native._attention(heads, None, None, cos, sin, at, keys, values, H, 0.0)
    for row, position in enumerate(at.flatten().tolist()):
        x = heads[row, 0].double()  # (H+2K, D)
        turned = x * cos[row, 0] + x.roll(D // 2, -1) * sin[row, 0]
        torch.testing.assert_close(keys[row, :, position], turned[H : H + K].float())
        assert torch.equal(values[row, :, position], heads[row, 0, H + K :])
        for h in range(H):
            past, those = (x[row, h // group, : position + 1].double() for x in (keys, values))
            expected = (past @ turned[h] / D**0.5).softmax(0) @ those
            mean = found[row, 0, h * D : h * D + D].double()
            torch.testing.assert_close(mean, expected, atol=1e-5, rtol=1e-5)


@needs_a_compiler
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_a_decoding_step_in_bf16_is_that_of_pytorch_up_to_rounding(weights):
    check_a_step_in_bf16(native.decode_attention, "cpu", weights)


@needs_a_compiler
def test_keys_in_bf16_are_rounded_as_pytorch_rounds_them():
    """Half of what lies between two numbers goes to the even one."""
    B, K, D, S = 3, 2, 8, 5
    heads = torch.randn(B, 1, 3 * K, D, generator=torch.Generator().manual_seed(0)).bfloat16()
    cos = torch.tensor([1.0, 1.00390625, 1.01171875]).view(B, 1, 1, 1).expand(B, 1, 1, D)
    keys, values = torch.zeros(2, B, K, S, D, dtype=torch.bfloat16)
    at = torch.tensor([[0], [2], [4]])
    native._attention(heads, None, None, cos, 0 * cos, at, keys, values, K, 0.0)
    expected = (heads.float() * cos).bfloat16()
    for row, position in enumerate(at.flatten()):
        assert torch.equal(keys[row, :, position], expected[row, 0, K : 2 * K])
        assert torch.equal(values[row, :, position], heads[row, 0, 2 * K :])


@needs_a_compiler
def test_what_lies_beyond_a_rows_position_is_not_read():
    check_what_is_read(native.decode_attention, "cpu")


@needs_a_compiler
@pytest.mark.parametrize("nan", [0x7FC00000, 0x7FFFFFFF])
def test_damaged_weights_are_seen_in_bf16(tokenizer, nan):
    """The second NaN is that of GPUs: with its bits, rounding up would carry into the sign."""
    model = small_model(len(tokenizer))
    model.blocks[-1].attention.q_norm.weight.data.view(torch.int32).fill_(nan)
    sampler = sampler_of(model, tokenizer, compiled=True, bf16=True)
    with pytest.raises(ValueError, match="not finite"):
        sampler.generate(["a"])


@needs_a_compiler
def test_small_numbers_are_not_set_to_0_in_the_process():
    """As they were if the code that gcc adds for -ffast-math ran."""
    native.compiled.cache_clear()
    native.compiled(16, 1, torch.float32)
    smallest = torch.tensor(2.0**-149)
    assert smallest * 1.0 > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_cache_in_other_numbers_has_no_kernel(dtype):
    assert native.kernel(small_model(50).config, dtype) is None


def test_a_folder_from_which_nothing_may_be_run_is_named_in_one_line(monkeypatch):
    def fails(library):
        raise OSError(f"{library}: failed to map segment from shared object")

    done = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(subprocess, "run", lambda *given, **settings: done)
    monkeypatch.setattr(native.ctypes, "CDLL", fails)
    native.compiled.cache_clear()
    with pytest.raises(ValueError, match="failed to map.*set TMPDIR") as error:
        native.kernel(small_model(50).config, torch.float32)
    assert "\n" not in str(error.value)


def test_without_a_compiler_there_is_one_line_that_says_what_to_install(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    native.compiled.cache_clear()
    with pytest.raises(ValueError, match="needs a C.. compiler: install"):
        native.kernel(small_model(50).config, torch.float32)


def test_a_compiler_that_fails_is_quoted_in_one_line(monkeypatch):
    stderr = "attention.cpp: warning: of no account\ncc1plus: error: no such option\nmore"
    failed = subprocess.CompletedProcess([], 1, stderr=stderr)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(subprocess, "run", lambda *given, **settings: failed)
    native.compiled.cache_clear()
    with pytest.raises(ValueError, match="cc1plus: error: no such option.*leave out") as error:
        native.kernel(small_model(50).config, torch.float32)
    assert "\n" not in str(error.value)
