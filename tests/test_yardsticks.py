"""The fixed shapes that bench measures, and what it asks of them."""

from types import SimpleNamespace

import pytest
import torch
from conftest import with_instructions_for_bf16

from nanotir.bench import yardsticks
from nanotir.problems import load

PROBLEMS = load("generated", n=64, seed=1)
TINY = {"n_layers": 1, "d_model": 16, "n_heads": 2, "n_kv_heads": 1, "d_ff": 32}


@pytest.mark.parametrize(
    "name, vocab_size, weights",
    [("T", 512, 1_050_752), ("S", 4096, 14_557_824), ("SmolLM2", 49152, 134_515_008)],
)
def test_the_shapes_have_as_many_weights_as_the_models_they_stand_for(name, vocab_size, weights):
    with torch.device("meta"):
        model = yardsticks.shape(name, vocab_size)
    assert sum(weight.numel() for weight in model.parameters()) == weights


def test_operations_count_each_weight_of_a_product_six_times_an_id():
    with torch.device("meta"):
        model = yardsticks.shape("T", 512)
    a_block = 128 * (8 * 32) + 128 * 128 + 3 * 128 * 512
    assert yardsticks.operations(model, 10) == 6 * 10 * (4 * a_block + 512 * 128)


def test_the_products_alone_are_the_operations_that_are_counted(monkeypatch):
    def counted(product, a, b):
        return 2 * a.shape[0] * a.shape[1] * b.shape[1], None

    monkeypatch.setattr(yardsticks, "busy", counted)
    with torch.device("meta"):
        model = yardsticks.shape("T", 512)
    assert yardsticks.products(model, 10) == yardsticks.operations(model, 10)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(yardsticks, "SHAPES", dict.fromkeys(yardsticks.SHAPES, TINY))
    monkeypatch.setattr(yardsticks, "NEW_IDS", 12)
    monkeypatch.setattr(yardsticks, "medians", lambda measure, rounds: measure(0))
    monkeypatch.setattr(yardsticks, "gemm_rate", lambda *given: 1e9)


def test_every_answer_of_the_rl_step_is_as_long_as_it_says_with_a_tool_too(small):
    asked = SimpleNamespace(
        problems=PROBLEMS, questions=lambda n: [problem.question for problem in PROBLEMS[:n]]
    )
    found = yardsticks.rl_step_of_t(asked)
    assert found["new_ids"] == found["new_ids_with_tool"] == 12
    assert found["rollout_with_tool"] > 0.05 and found["cpu_seconds"] > 0


def test_imitation_is_measured_in_both_precisions(small):
    found = yardsticks.imitation_of_s(None)
    assert found["share_of_gemm_rate"] > 0 and found["share_of_gemm_rate_bf16"] > 0
    assert found["share_of_products"] > 0 and found["share_of_products_bf16"] > 0


def test_without_instructions_for_bf16_fp32_is_not_measured_in_its_name(small, monkeypatch):
    with_instructions_for_bf16(monkeypatch, False)
    assert not [name for name in yardsticks.imitation_of_s(None) if "bf16" in name]
    assert "needs a processor" in yardsticks.imitation_of_smollm2(None)["skipped"]
