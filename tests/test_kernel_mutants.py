"""Wrong variants of kernels.py: each makes one plausible mistake, and a test must see it."""

import functools
import importlib.util
from pathlib import Path

import pytest
import test_kernels

from nanotir import kernels

TOTAL = "total = total * tl.exp(peak - higher) + tl.exp(x - higher)"
GRADIENT = "slope * (tl.where(at == id, 1.0, 0.0) - tl.exp(x - lse))"
LOGP = "tl.load(row + tl.load(ids + token)).to(tl.float32) * scale"
FALLBACK = "torch.where(mask, token_logps(logits, ids, temperature), 0.0)"
BY_PYTORCH = "without_a_gpu_the_log_probs_are_pytorchs"
BLOCKS = "the_vocabulary_may_need_several_blocks_and_a_part_of_one"
BF16 = "bf16_logits_lose_nothing_but_the_rounding_of_their_gradient"
MASKED = "masked_tokens_are_not_read_and_get_a_gradient_of_zero"

MUTANTS = {  # name: (what is replaced, by what, the test that sees it)
    "no temperature in the gradient": (
        "load(slopes + token) * scale",
        "load(slopes + token)",
        BF16,
    ),
    "no temperature in the log-prob": (LOGP, LOGP.removesuffix(" * scale"), BF16),
    "the temperature multiplied": (
        "contiguous(), 1 / temperature",
        "contiguous(), temperature",
        BF16,
    ),
    "the sum not scaled to the new peak": (TOTAL, "total = total + tl.exp(x - higher)", BLOCKS),
    "the peak forgotten": ("peak = higher", "peak = -1e30", BLOCKS),
    "no peak": (
        "higher = tl.maximum(peak, tl.max(x, 0))",
        "higher = 0.0",
        "large_logits_neither_overflow_nor_underflow",
    ),
    "a peak of -inf": (
        "peak = -1e30",
        'peak = float("-inf")',
        "a_whole_block_of_minus_infinity_is_no_nan",
    ),
    "the gradient of the wrong sign": (GRADIENT, f"-{GRADIENT}", BF16),
    "no one-hot": (GRADIENT, "slope * (0.0 - tl.exp(x - lse))", BF16),
    "masked tokens read": ("if tl.load(mask + token) != 0:", "if token >= 0:", MASKED),
    "masked slopes kept": (
        "torch.where(mask, grad_logps.float(), 0.0)",
        "grad_logps.float()",
        "a_slope_of_nan_on_a_masked_token_is_left_out",
    ),
    "tokens of slope 0 read": (
        "if slope != 0.0:",
        "if token >= 0:",
        "a_clipped_token_is_not_read_in_the_backward_pass",
    ),
    "the gradient beside the logits": (
        "return logits, None, None, None",
        "return logits.clone(), None, None, None",
        "the_gradient_takes_the_place_of_the_logits",
    ),
    "a second backward pass": (
        "ctx.spent = True",
        "ctx.spent = False",
        "a_second_backward_pass_is_refused",
    ),
    "a leaf overwritten": (
        "if logits.is_leaf and logits.requires_grad:",
        "if False:",
        "a_leaf_is_not_overwritten",
    ),
    "rows taken to be dense": (
        "logits.stride(0), V",
        "V, V",
        "rows_of_logits_may_stand_apart_in_memory",
    ),
    "no mask without a GPU": (FALLBACK, "token_logps(logits, ids, temperature)", BY_PYTORCH),
    "no temperature without a GPU": (FALLBACK, FALLBACK.replace(", temperature", ""), BY_PYTORCH),
}


def mutant_of(name: str, folder: Path):
    """kernels.py with one mistake, in a file of its own, because Triton reads a kernel's source."""
    right, wrong, _ = MUTANTS[name]
    source = Path(kernels.__file__).read_text()
    assert source.count(right) == 1, (
        "what the mutant replaces must stand in kernels.py exactly once"
    )
    path = folder / "mutant.py"
    path.write_text(source.replace(right, wrong))
    spec = importlib.util.spec_from_file_location("mutant", path)
    mutant = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutant)
    return mutant


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_variant_is_caught(name, monkeypatch, tmp_path):
    pytest.importorskip("triton", reason="Triton is optional, and not installed")
    mutant = mutant_of(name, tmp_path)
    _, _, seen_by = MUTANTS[name]
    test = getattr(test_kernels, f"test_{seen_by}")
    monkeypatch.setattr(test_kernels, "kernels", mutant)
    if seen_by != BY_PYTORCH:
        test = functools.partial(test, None)  # the fixture, which patches the real kernels.py
        monkeypatch.setattr(mutant, "kernel_runs_on", lambda device: True)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test()
