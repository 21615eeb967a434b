"""Work grows in proportion to the rows. It is counted, not timed."""

import sys
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from conftest import small_model
from doubles import sampler_of, scripted
from torch.utils._python_dispatch import TorchDispatchMode

import nanotir
from nanotir.batches import equal_parts, micro_batches
from nanotir.cache import KVCache
from nanotir.generation import Generation
from nanotir.problems import Problem
from nanotir.rewards import RewardConfig, reward_funcs_registry, score
from nanotir.scores import statistics
from nanotir.tools import Tool, ToolResult
from nanotir.trajectory import Call, Format

PACKAGE = str(Path(nanotir.__file__).parent)
FEW, MANY = 32, 128  # rows
GROWTH = 1.1 * MANY / FEW  # at most
CALL = "<python>1</python>"


def lines_run(work, *arguments) -> int:
    """How many lines of the package a call runs. A loop in a line counts every time around."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        count += event == "line"
        return trace if frame.f_code.co_filename.startswith(PACKAGE) else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work(*arguments)
    finally:
        sys.settrace(before)
    return count


class OneByOne(Tool):
    """Answers its newest call each time that it is told to."""

    name = "python"

    def __init__(self):
        self.asked = []

    def submit(self, text, session=None):
        self.asked.append(Future())
        return self.asked[-1]

    def answer(self):
        if self.asked:
            self.asked.pop().set_result(ToolResult("1"))


@pytest.fixture
def cost(tokenizer, monkeypatch):
    """cost(rows, slots, texts) of a rollout: lines, rows computed, and rows of a cache copied."""
    copied = []
    take = KVCache.take

    def counted(cache, rows, capacity=None):
        copied.append(len(rows))
        return take(cache, rows, capacity)

    monkeypatch.setattr(KVCache, "take", counted)

    @torch.inference_mode()
    def run(rows: int, slots: int, *texts) -> dict[str, int]:
        copied.clear()
        model, tool = scripted(tokenizer, *texts), OneByOne()
        sampler = sampler_of(model, tokenizer, [tool], temperature=0, max_rows=slots)
        prompts = [Format().prompt(tokenizer, f"{i:04}") for i in range(rows)]
        generation = Generation(sampler, prompts, n=1, seed=0)
        lines = lines_run(generation.run, tool.answer)
        assert {row.trajectory.finish_reason for row in generation.rows} == {"stop"}
        computed = sum(batch for batch, _ in model.fed)
        return {"lines": lines, "computed": computed, "copied": sum(copied)}

    return run


def growth(few: dict, many: dict) -> list[float]:
    return [many[name] / few[name] for name in few]


def test_the_work_of_a_rollout_in_few_slots_grows_with_its_rows(cost):
    few, many = (cost(rows, 8, "hi<|end|>") for rows in (FEW, MANY))
    assert max(growth(few, many)) < GROWTH


def test_the_work_of_a_rollout_with_a_slot_for_each_row_grows_with_its_rows(cost):
    few, many = (cost(rows, rows, "hi<|end|>") for rows in (FEW, MANY))
    assert max(growth(few, many)) < GROWTH


@pytest.mark.parametrize("slots", [(8, 8), (FEW, MANY)])
def test_the_work_of_a_rollout_with_a_tool_that_answers_row_by_row_grows_with_its_rows(cost, slots):
    few, many = (cost(*sizes, CALL, "hi<|end|>") for sizes in zip((FEW, MANY), slots))
    assert max(growth(few, many)) < GROWTH


def operations(model, tokenizer) -> int:
    """How many operations of PyTorch one decoding step of one row takes."""
    count = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, arguments=(), options=None):
            nonlocal count
            count += 1
            return operation(*arguments, **(options or {}))

    sampler = sampler_of(model, tokenizer, temperature=0)
    with sampler.decoding():
        generation = Generation(sampler, [[1, 2, 3]], n=1, seed=0)
        generation.admit()
        with Watch():
            generation.decode()
    return count


def test_a_layer_of_a_decoding_step_takes_few_operations(tokenizer):
    """With few rows, a step takes as long as its operations are many."""
    settings = {"token_shifts": 0, "qk_norm": False}
    one, four = (small_model(len(tokenizer), n_layers=n, **settings) for n in (1, 4))
    assert operations(four, tokenizer) - operations(one, tokenizer) <= 3 * 41
    assert operations(one, tokenizer) <= 41 + 45


# What is done with the rows.


@pytest.fixture(scope="module")
def answered(tokenizer):
    """answered(rows): problems, and one right answer by one call to each."""

    def make(rows: int):
        problems = [Problem(f"What is {i:04}?", "7", family="sum") for i in range(rows)]
        pieces = [("python", "7"), ("output", "7"), ("text", "The answer is \\boxed{7}.")]
        answers = [Format().trajectory(tokenizer, p.question, pieces) for p in problems]
        for answer in answers:
            answer.calls.append(Call("python", "7", ToolResult("7")))
        return problems, answers

    return make


def test_the_work_of_rewards_grows_with_the_answers(answered, tokenizer):
    config = RewardConfig(**dict.fromkeys(reward_funcs_registry, 0.1) | {"accuracy": 1.0})
    counts = []
    for rows in (FEW, MANY):
        problems, answers = answered(rows)
        counts.append(lines_run(score, answers, problems, tokenizer, config))
    assert counts[1] / counts[0] < GROWTH


def test_the_work_of_an_evaluation_grows_with_its_problems(answered, tokenizer):
    counts = []
    for rows in (FEW, MANY):
        problems, answers = answered(rows)
        counts.append(lines_run(statistics, problems, [[a] for a in answers], tokenizer, [1]))
    assert counts[1] / counts[0] < GROWTH


def test_the_work_of_micro_batches_grows_with_their_rows(answered):
    few, many = (lines_run(list, micro_batches(answered(rows)[1], 0, 200)) for rows in (FEW, MANY))
    assert many / few < GROWTH


@pytest.mark.parametrize("max_tokens", [60, 119, 120, 200, 1000])
def test_the_work_of_packing_a_row_is_bounded(max_tokens):
    """Equal rows of 60 ids, of which two may just not fit, take the most rounds."""
    rows = 4000
    lines = lines_run(equal_parts, list(range(rows)), [60] * rows, max_tokens)
    assert lines < 40 * rows
