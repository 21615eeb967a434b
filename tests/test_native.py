"""Attention in C++, which is compiled here."""

import shutil
import subprocess

import pytest
import torch
from conftest import small_model
from decode_checks import HEADS, check_a_step, check_a_step_in_bf16, check_what_is_read

from nanotir import native

needs_a_compiler = pytest.mark.skipif(
    not shutil.which(native.COMPILER), reason=f"there is no {native.COMPILER}"
)


@needs_a_compiler
@pytest.mark.parametrize("name", HEADS)
def test_a_decoding_step_in_cpp_is_that_of_pytorch(name):
    check_a_step(native.decode_attention, name, "cpu")


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
def test_small_numbers_are_not_set_to_0_in_the_process():
    """As they were if the code that gcc adds for -ffast-math ran."""
    native.program.cache_clear()
    native.program(16, 1, torch.float32)
    smallest = torch.tensor(2.0**-149)
    assert smallest * 1.0 > 0


def test_a_cache_in_float64_has_no_kernel():
    assert native.kernel(small_model(50).config, torch.float64) is None


def test_without_a_compiler_there_is_one_line_that_says_what_to_install(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    native.program.cache_clear()
    with pytest.raises(ValueError, match="needs a C.. compiler: install"):
        native.kernel(small_model(50).config, torch.float32)


def test_a_compiler_that_fails_is_quoted_in_one_line(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, stderr="cc1plus: no such option\nmore")
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(subprocess, "run", lambda *given, **settings: failed)
    native.program.cache_clear()
    with pytest.raises(ValueError, match="cc1plus: no such option") as error:
        native.kernel(small_model(50).config, torch.float32)
    assert "\n" not in str(error.value)
