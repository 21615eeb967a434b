"""A cache's memory, and prompts dealt out to passes. For what it computes see test_model.py."""

import os

import pytest
import torch

from nanotir import cache
from nanotir.cache import passes, zeros


@pytest.mark.parametrize("shape", [(3, 5), (0, 5), (1,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_an_empty_cache_is_zero_and_can_be_written_to(shape, dtype):
    memory = zeros(shape, torch.device("cpu"), dtype)
    assert memory.dtype == dtype and torch.equal(memory, torch.zeros(shape, dtype=dtype))
    memory += 1
    assert torch.equal(memory, torch.ones(shape, dtype=dtype))


def test_a_forked_process_does_not_write_to_the_cache_of_its_parent():
    memory = zeros((4,), torch.device("cpu"), torch.float32)
    if (child := os.fork()) == 0:
        memory.numpy()[:] = 1
        os._exit(0)
    os.waitpid(child, 0)
    assert torch.equal(memory, torch.zeros(4))


@pytest.mark.parametrize("lengths", [[3, 1, 2], [40] * 10])
def test_a_few_prompts_are_read_in_one_pass_in_their_order(monkeypatch, lengths):
    monkeypatch.setattr(cache, "PASS", 400)
    rows = [(0,) * length for length in lengths]
    assert passes(rows) == [rows]


def test_many_prompts_are_read_in_passes_of_similar_lengths_that_hold_so_many_ids(monkeypatch):
    monkeypatch.setattr(cache, "PASS", 100)
    rows = [(number,) * length for number, length in enumerate([5, 60, 30, 7, 33, 120, 31, 6])]
    dealt = passes(rows)
    assert sorted(sum(dealt, [])) == sorted(rows)
    assert [[len(row) for row in some] for some in dealt] == [[120], [60], [33, 31, 30], [7, 6, 5]]
