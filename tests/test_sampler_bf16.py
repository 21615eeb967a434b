"""Sampling in bfloat16: the matrix products of a decoding step, where a processor has them."""

import pytest
import torch
from conftest import small_model, with_instructions_for_bf16
from doubles import sampler_of
from test_sampler import QUESTIONS, gap
from torch.utils._python_dispatch import TorchDispatchMode


@pytest.fixture(scope="module")
def transformer(tokenizer):
    return small_model(len(tokenizer))


def decoded(transformer, tokenizer, bf16):
    """(rows, dtypes of the matrix products in the first block while they were decoded)"""
    dtypes = []
    linear = transformer.blocks[0].attention.qkv
    hook = linear.register_forward_hook(lambda *call: dtypes.append(call[-1].dtype))
    sampler = sampler_of(transformer, tokenizer, max_new_tokens=12, bf16=bf16)
    try:
        return sampler.generate(QUESTIONS, n=4), set(dtypes)
    finally:
        hook.remove()


def test_rows_in_bf16_end_and_have_log_probs(transformer, tokenizer):
    rows, _ = decoded(transformer, tokenizer, bf16=True)
    for row in rows:
        assert row.finish_reason in ("stop", "length")
        assert all(-40 < logp < 0 for logp, mask in zip(row.logps, row.mask) if mask)


def test_with_instructions_for_bf16_matrix_products_are_in_bfloat16(transformer, tokenizer):
    assert decoded(transformer, tokenizer, bf16=True)[1] == {torch.bfloat16}
    assert decoded(transformer, tokenizer, bf16=False)[1] == {torch.float32}


def conversions(model, tokenizer, steps: int) -> int:
    """How many weights a generation of so many steps turns into another precision."""
    weights = {weight.data_ptr() for weight in model.parameters() if weight.dim() == 2}
    converted = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, arguments=(), options=None):
            if operation is torch.ops.aten._to_copy.default:
                converted.append(arguments[0].data_ptr() in weights)
            return operation(*arguments, **(options or {}))

    sampler = sampler_of(model, tokenizer, max_new_tokens=steps, bf16=True)
    with Watch():
        sampler.generate(["q"], force=(300,) * steps)
    return sum(converted)


def test_weights_are_turned_into_bf16_once_a_generation(transformer, tokenizer):
    few, many = (conversions(transformer, tokenizer, steps) for steps in (2, 9))
    assert many == few >= 4 * transformer.config.n_layers


def test_without_instructions_for_bf16_it_changes_nothing(monkeypatch, transformer, tokenizer):
    with_instructions_for_bf16(monkeypatch, False)
    rows, dtypes = decoded(transformer, tokenizer, bf16=True)
    plain, _ = decoded(transformer, tokenizer, bf16=False)
    assert dtypes == {torch.float32}
    assert [(row.ids, row.logps) for row in rows] == [(row.ids, row.logps) for row in plain]


def test_the_trainer_is_close_to_the_log_probs_of_bf16_but_not_equal(transformer, tokenizer):
    sampler = sampler_of(transformer, tokenizer, max_new_tokens=12, bf16=True)
    rows = sampler.generate(QUESTIONS, n=4)
    assert 1e-4 < gap(transformer, sampler, rows, 1.0) < 0.5
