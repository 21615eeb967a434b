"""The code of DecodeGraphs, with the graphs left out: there is no GPU here. And compiled steps."""

import shutil
from functools import partial

import pytest
import torch
from conftest import small_model
from doubles import Spy, calling_transformer, ids_of, sampler_of

from nanotir import cache as cache_module
from nanotir import generation, graphs, kernels, lora, native
from nanotir.graphs import DecodeGraphs, by_columns


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Generations decode by DecodeGraphs, with shapes that are rounded up and change often."""
    monkeypatch.setattr(graphs, "ROWS", 3)
    monkeypatch.setattr(graphs, "SLOTS", 16)
    made = []

    class Reusing(DecodeGraphs):
        """As a graph's, its logits are overwritten by the next step."""

        last = torch.zeros(1)

        def __call__(self, ids, positions):
            self.last.fill_(torch.nan)
            self.last = super().__call__(ids, positions)
            return self.last

    def decoder(model, cache, graphs, compiled):
        made.append(Reusing(model, cache))
        return made[-1]

    monkeypatch.setattr(generation, "decoder", decoder)
    return made


def test_the_steps_are_those_of_the_model(tokenizer, python, request):
    model = small_model(len(tokenizer))
    given = (model, tokenizer, [python])
    settings = {"max_rows": 7, "max_new_tokens": 40}
    plain = sampler_of(*given, **settings).generate(["a", "bb", "1+1?"], n=5, seed=1)
    made = request.getfixturevalue("as_on_a_gpu")
    again = sampler_of(*given, **settings).generate(["a", "bb", "1+1?"], n=5, seed=1)
    assert ids_of(again) == ids_of(plain)
    for row, other in zip(plain, again):
        torch.testing.assert_close(torch.tensor(row.logps), torch.tensor(other.logps))
    assert len(made[0].steps) > 3  # pairs of rounded sizes
    assert {rows for rows, _ in made[0].steps} <= {3, 4, 7}


def test_rows_that_fill_up_a_shape_change_no_other(tokenizer):
    model = small_model(len(tokenizer))
    sampler = sampler_of(model, tokenizer, max_rows=64)
    with torch.inference_mode():
        rows = generation.Generation(sampler, [[1, 2, 3]], 40, 0)
        rows.admit()
        step = DecodeGraphs(model, rows.cache)
        padded = step([3, 3, 3], [2, 2, 2])
        assert list(step.steps) == [(32, 128)]
        torch.testing.assert_close(padded, rows.step([3] * 40, [2] * 40)[:3])


def test_steps_attend_by_the_kernel_of_their_device(monkeypatch):
    model = small_model(50)

    def kernel_of_a_step():
        cache = cache_module.new_cache(model, 2, 8)
        graphs.decoder(model, cache, graphs=False)
        return cache.kernel

    monkeypatch.setattr(native, "kernel", lambda config, dtype: native.decode_attention)
    assert kernel_of_a_step() is native.decode_attention
    monkeypatch.setattr(graphs, "decodes_on", lambda device: True)
    assert kernel_of_a_step() is kernels.decode_attention


SETTINGS = {
    "few slots": {"max_rows": 3},
    "one row": {"max_rows": 1},
    "many slots": {"max_rows": 64, "max_calls": 2},
    "a turn after the last call": {"max_calls": 1, "last_turn": True},
    "a barrier": {"barrier": True},
    "little room for output": {"max_tool_tokens": 5},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_steps_launched_ahead_and_results_fed_by_steps_change_no_row(tokenizer, name, request):
    model = calling_transformer(tokenizer)
    settings = {"max_new_tokens": 24, "max_tool_tokens": 40} | SETTINGS[name]

    def rollout():
        sampler = sampler_of(model, tokenizer, [Spy(delay=0.01)], **settings)
        return sampler.generate(["a", "bb", "1+1?"], n=5, seed=1, force=(300,))

    plain = rollout()
    made = request.getfixturevalue("as_on_a_gpu")
    again = rollout()
    assert made and ids_of(again) == ids_of(plain)
    for row, other in zip(plain, again):
        torch.testing.assert_close(torch.tensor(row.logps), torch.tensor(other.logps))
    assert sum(len(row.calls) for row in plain) > 5


def test_results_are_fed_by_steps_and_prompts_alone_in_a_pass(tokenizer, as_on_a_gpu, monkeypatch):
    read = []

    def extend(model, cache, chunks, starts):
        read.extend(starts)
        cache_module.extend(model, cache, chunks, starts)

    monkeypatch.setattr(generation, "extend", extend)
    sampler = sampler_of(calling_transformer(tokenizer), tokenizer, [Spy()], max_new_tokens=24)
    rows = sampler.generate(["a", "bb"], n=4, seed=1)
    assert any(row.calls for row in rows)
    assert read == [0, 0]


@pytest.mark.parametrize("turns", [1, 7, 20])
def test_a_stop_while_a_step_is_launched_leaves_the_beginnings_of_rows(
    tokenizer, as_on_a_gpu, turns
):
    asked = iter(range(1000))
    sampler = sampler_of(calling_transformer(tokenizer), tokenizer, [Spy()], max_new_tokens=24)
    whole = sampler.generate(["a", "bb"], n=4, seed=1)
    stopped = sampler.generate(["a", "bb"], n=4, seed=1, stop=lambda: next(asked) >= turns)
    assert "cancelled" in {row.finish_reason for row in stopped}
    for row, full in zip(stopped, whole):
        assert row.ids == full.ids[: len(row.ids)]


# torch.compile


@pytest.fixture
def traced(monkeypatch):
    """Chooses a backend of torch.compile that runs what was traced: writing C++ takes long."""
    if not shutil.which(native.COMPILER):
        pytest.skip(f"there is no {native.COMPILER}")

    def choose(backend: str):
        torch.compiler.reset()
        monkeypatch.setattr(graphs.torch, "compile", partial(torch.compile, backend=backend))

    return choose


def test_compiled_steps_are_those_of_the_model(tokenizer, python, traced):
    traced("eager")
    given = (small_model(len(tokenizer)), tokenizer, [python])
    settings = {"max_rows": 7, "max_new_tokens": 12}
    plain, compiled = (
        sampler_of(*given, **settings, compiled=chosen).generate(["a", "1+1?"], n=4, seed=1)
        for chosen in (False, True)
    )
    assert ids_of(compiled) == ids_of(plain)
    for row, other in zip(plain, compiled):
        torch.testing.assert_close(torch.tensor(row.logps), torch.tensor(other.logps))


def test_compiled_steps_write_to_the_cache_itself(tokenizer, traced):
    traced("aot_eager")  # which has no writing in place, as C++ has it
    model = small_model(len(tokenizer))
    written = []
    with torch.inference_mode():
        for compiled in (False, True):
            cache = cache_module.new_cache(model, 3, 8)
            graphs.decoder(model, cache, False, compiled)([5, 6], [0, 3])
            written.append(cache)
    torch.testing.assert_close(written[1].kv, written[0].kv)
    assert written[1].lengths.tolist() == written[0].lengths.tolist() == [1, 4, 0]
    assert torch.equal(written[1].ids, written[0].ids)


def test_steps_are_not_compiled_without_a_compiler(tokenizer, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    sampler = sampler_of(small_model(len(tokenizer)), tokenizer, compiled=True)
    with pytest.raises(ValueError, match="needs a C.. compiler: install"):
        sampler.generate(["a"])


@pytest.mark.parametrize("settings, bf16", [({}, True), ({"n_experts": 4}, False)])
def test_in_bf16_and_with_experts_steps_are_not_compiled(tokenizer, monkeypatch, settings, bf16):
    monkeypatch.setattr(graphs, "compiled_steps", None)
    model = small_model(len(tokenizer), **settings)
    rows = sampler_of(model, tokenizer, compiled=True, bf16=bf16, max_new_tokens=5)
    assert rows.generate(["a", "bb"], n=3)[5].new_tokens


# Matrices by columns.

MODELS = [{}, {"n_experts": 4, "d_shared": 16}, {"tie_embeddings": False}, {"qkv_bias": True}]


@pytest.mark.parametrize("settings", MODELS)
@torch.no_grad()
def test_a_model_by_columns_computes_the_same(settings):
    model = small_model(40, **settings)
    ids = torch.randint(40, (3, 20), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(by_columns(model, 8)(ids), model(ids), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_model_by_columns_computes_with_the_adapters():
    model = small_model(40)
    lora.adapt(model, 4)
    for name, weight in model.named_parameters():
        if lora.is_adapter(name):
            weight += 0.1
    ids = torch.randint(40, (3, 20), generator=torch.Generator().manual_seed(0))
    with lora.merged(model):
        torch.testing.assert_close(by_columns(model, 8)(ids), model(ids), atol=1e-5, rtol=1e-5)


def test_a_model_by_columns_shares_all_but_its_matrices():
    model = small_model(40)
    other = by_columns(model, 8)
    assert other.blocks[0].attention.q_norm.weight is model.blocks[0].attention.q_norm.weight
    assert other.embed.weight is model.embed.weight is model.head.weight
    for linear in (module for module in other.modules() if isinstance(module, torch.nn.Linear)):
        assert linear.weight.stride() == (1, len(linear.weight) + 16)


@torch.no_grad()
def test_a_generation_of_many_rows_has_the_matrices_of_now_by_columns(tokenizer):
    model = small_model(len(tokenizer))
    sampler = sampler_of(model, tokenizer, max_new_tokens=8)
    for _ in range(2):
        made = generation.Generation(sampler, [[3, 4]], 8, 0)
        matrix, expected = made.model.head.weight, model.head.weight
        assert torch.equal(matrix, expected) and matrix.data_ptr() != expected.data_ptr()
        model.head.weight.mul_(2)


def test_few_rows_and_rounded_weights_are_decoded_with_the_model_as_it_is():
    model = small_model(40)
    assert by_columns(model, 7) is model
    with torch.autocast("cpu", torch.bfloat16):
        assert by_columns(model, 8) is model
    rounded = small_model(40).to(torch.bfloat16)
    assert by_columns(rounded, 8) is rounded
