"""C++ for a CPU: attention of a decoding step, and how it is compiled."""

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
    heads[..., 0] = 1.0  # times these, half of what lies between two numbers
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
    sampler = sampler_of(model, tokenizer, bf16=True)
    with pytest.raises(ValueError, match="not finite"):
        sampler.generate(["a"])


@needs_a_compiler
def test_small_numbers_are_not_set_to_0_in_the_process():
    """As they were if the code that gcc adds for -ffast-math ran."""
    assert native.compiled("decode.cpp", torch.float32, "-DD=16", "-DGROUP=1")
    smallest = torch.tensor(2.0**-149)
    assert smallest * 1.0 > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_cache_in_other_numbers_has_no_kernel(dtype):
    assert native.kernel(small_model(50).config, dtype) is None


@pytest.mark.parametrize("x", [torch.zeros(1).double(), torch.zeros(1, device="meta")])
def test_other_numbers_and_other_devices_are_not_served(x):
    assert not native.serves(x)


@needs_a_compiler
def test_formulas_are_served_in_training_alone():
    x = torch.zeros(1)
    assert native.serves(x)
    with torch.no_grad():
        assert native.serves(x)  # log-probs are those of an update, bit for bit
    with torch.inference_mode():
        assert not native.serves(x)


# Compiling


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A folder for what is compiled, and nothing in it."""
    monkeypatch.setattr(native, "cache_from_source", lambda source: str(tmp_path / "native.pyc"))
    return tmp_path


def compiled(*defines: str):
    return native.compiled("formulas.cpp", torch.float32, *defines)


def calls_of_the_compiler(monkeypatch) -> list[list[str]]:
    """The commands that are run from here on, but for those that only ask."""
    calls = []

    def ran(command, **settings):
        calls.extend([command] * ("-###" not in command))
        return run(command, **settings)

    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", ran)
    return calls


@needs_a_compiler
def test_what_is_compiled_is_kept_until_the_source_or_the_options_change(
    cache, monkeypatch, tmp_path_factory
):
    calls = calls_of_the_compiler(monkeypatch)
    assert compiled() and compiled()
    assert len(calls) == 1
    assert compiled("-DOTHER") and compiled()
    assert len(calls) == 2
    sources = tmp_path_factory.mktemp("sources")
    for name in ("formulas.cpp", "heads.h", "numbers.h"):
        shutil.copy(native.FOLDER / name, sources)
    monkeypatch.setattr(native, "FOLDER", sources)
    for number, name in enumerate(("formulas.cpp", "numbers.h"), 3):
        source = sources / name
        source.write_text(source.read_text() + "// changed\n")
        assert compiled() and compiled()
        assert len(calls) == number
    assert {path.suffix for path in cache.iterdir()} == {".so"}


@needs_a_compiler
def test_what_was_compiled_for_another_processor_is_not_used(cache, monkeypatch):
    assert compiled()
    run = subprocess.run

    def elsewhere(command, **settings):
        done = run(command, **settings)
        done.stderr += " -mother"
        return done

    monkeypatch.setattr(subprocess, "run", elsewhere)
    assert compiled()
    assert len(list(cache.iterdir())) == 2


@needs_a_compiler
def test_where_nothing_can_be_kept_it_is_compiled_each_time(cache, monkeypatch):
    cache.rmdir()  # as where Python keeps nothing either
    calls = calls_of_the_compiler(monkeypatch)
    assert compiled() and compiled()
    assert len(calls) == 2
    assert not cache.exists()


def test_without_a_compiler_nothing_is_compiled_and_nothing_said(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert compiled() is None
    assert capsys.readouterr() == ("", "")


def test_a_compiler_that_fails_is_quoted_in_one_line(monkeypatch, capsys):
    stderr = "formulas.cpp: warning: of no account\ncc1plus: error: no such option\nmore"

    def fails(command, **settings):
        raise subprocess.CalledProcessError(1, command, stderr=stderr)

    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(subprocess, "run", fails)
    assert compiled() is None
    (line,) = capsys.readouterr().err.splitlines()
    assert "cc1plus: error: no such option" in line and "PyTorch computes instead" in line


@needs_a_compiler
def test_a_folder_from_which_nothing_may_be_run_is_named_in_one_line(cache, monkeypatch, capsys):
    def fails(library):
        raise OSError(f"{library}: failed to map segment from shared object")

    monkeypatch.setattr(native.ctypes, "CDLL", fails)
    assert compiled() is None
    (line,) = capsys.readouterr().err.splitlines()
    assert "failed to map" in line and "PyTorch computes instead" in line
