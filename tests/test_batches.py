import random

import pytest
import torch
from conftest import small_model

from nanotir import batches as module
from nanotir.batches import collate, micro_batches, micro_batches_of
from nanotir.sft import SFTConfig
from nanotir.trajectory import Trajectory


def rows(lengths):
    made = []
    for n in lengths:
        trajectory = Trajectory()
        trajectory.append("prompt", list(range(1, n // 2 + 1)), 0)
        written = n - n // 2
        trajectory.append("text", list(range(100, 100 + written)), 1, [-0.5] * written)
        made.append(trajectory)
    return made


def assert_batched(column, values, fill):
    """Row i of the column (B, T) is values[i], and its padding is `fill`."""
    for row, expected in zip(column.tolist(), values):
        assert row[: len(expected)] == expected
        assert set(row[len(expected) :]) <= {fill}


def test_a_batch_holds_the_rows_that_are_asked_for():
    trajectories = rows([5, 9, 3])
    batch = collate(trajectories, pad_id=0, rows=[2, 0])
    assert batch.rows == [2, 0]
    assert_batched(batch.ids, [trajectories[2].ids, trajectories[0].ids], 0)
    assert_batched(batch.logps, [trajectories[2].logps, trajectories[0].logps], 0.0)


def test_padding_is_neither_real_nor_masked():
    trajectories = rows([5, 9, 3])
    batch = collate(trajectories, pad_id=0)
    assert_batched(batch.real, [[True] * len(t.ids) for t in trajectories], False)
    assert_batched(batch.mask, [list(map(bool, t.mask)) for t in trajectories], False)


def test_old_logps_are_the_sampler_s_until_the_trainer_s_are_known():
    one, other = rows([4, 4])
    other.old_logps = [0.0, 0.0, -0.75, -0.75]
    batch = collate([one, other], pad_id=0)
    torch.testing.assert_close(batch.old_logps, torch.tensor([one.logps, other.old_logps]))
    torch.testing.assert_close(batch.logps, torch.tensor([one.logps, other.logps]))


def drawn_rows():
    rng = random.Random(0)
    return rows([rng.randrange(4, 120) for _ in range(200)] + [700])


@pytest.fixture(params=[False, True], ids=["padded", "packed"])
def dealt(request):
    """(201 trajectories, their micro-batches of at most 512 tokens, the sizes of these).

    One row has 700. What is packed is counted without padding.
    """
    trajectories, packed = drawn_rows(), request.param
    batches = list(micro_batches(trajectories, 0, max_tokens=512, packed=packed))
    counted = [batch.real.sum().item() if packed else batch.ids.numel() for batch in batches]
    return trajectories, batches, counted


def lengths_of(trajectories, batch):
    return [len(trajectories[row].ids) for row in batch.rows]


def test_micro_batches_hold_every_row_once(dealt):
    _, batches, _ = dealt
    assert sorted(row for batch in batches for row in batch.rows) == list(range(201))


def test_a_micro_batch_stays_within_the_limit_unless_it_is_one_row(dealt):
    _, batches, sizes = dealt
    assert all(size <= 512 or len(batch.rows) == 1 for batch, size in zip(batches, sizes))


def test_the_largest_micro_batch_comes_first(dealt):
    *_, sizes = dealt
    assert sizes == sorted(sizes, reverse=True)


def test_no_row_of_a_padded_micro_batch_is_shorter_than_two_thirds_of_the_longest():
    trajectories = drawn_rows()
    for batch in micro_batches(trajectories, 0, 512):
        lengths = lengths_of(trajectories, batch)
        assert 3 * min(lengths) >= 2 * max(lengths)


@pytest.mark.parametrize("max_tokens", [300, 512, 5000, 100_000])
def test_packed_micro_batches_are_one_or_an_even_number_of_equal_parts(max_tokens):
    trajectories = drawn_rows()[:-1]
    batches = list(micro_batches(trajectories, 0, max_tokens, packed=True))
    sizes = [sum(lengths_of(trajectories, batch)) for batch in batches]
    assert len(batches) % 2 == (sum(sizes) <= max_tokens)
    assert max(sizes) - min(sizes) <= 0.05 * max(sizes)
    assert len(batches) <= sum(sizes) / max_tokens * 1.1 + 2


@pytest.mark.parametrize("packs", [False, True])
def test_a_model_that_packs_rows_gets_them_packed(monkeypatch, packs):
    monkeypatch.setattr(module, "packs", lambda model: packs)
    trajectories = drawn_rows()
    settings = SFTConfig(micro_batch_tokens=512)
    found = micro_batches_of(small_model(20), trajectories, 0, settings)
    expected = micro_batches(trajectories, 0, 512, packed=packs)
    assert [micro.rows for micro in found] == [micro.rows for micro in expected]


def test_a_single_row_is_one_packed_micro_batch():
    (batch,) = micro_batches(rows([9]), 0, 512, packed=True)
    assert batch.rows == [0]
