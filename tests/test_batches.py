import random

import pytest
import torch

from nanotir.batches import collate, micro_batches
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


@pytest.fixture
def dealt():
    """(201 trajectories, their micro-batches of at most 512 tokens); one row has 700."""
    rng = random.Random(0)
    trajectories = rows([rng.randrange(4, 120) for _ in range(200)] + [700])
    return trajectories, list(micro_batches(trajectories, 0, max_tokens=512))


def lengths_of(trajectories, batch):
    return [len(trajectories[row].ids) for row in batch.rows]


def test_micro_batches_hold_every_row_once(dealt):
    _, batches = dealt
    assert sorted(row for batch in batches for row in batch.rows) == list(range(201))


def test_a_micro_batch_stays_within_the_limit_unless_it_is_one_row(dealt):
    _, batches = dealt
    assert all(batch.ids.numel() <= 512 or len(batch.rows) == 1 for batch in batches)


def test_no_row_of_a_micro_batch_is_shorter_than_two_thirds_of_the_longest(dealt):
    trajectories, batches = dealt
    for batch in batches:
        lengths = lengths_of(trajectories, batch)
        assert 3 * min(lengths) >= 2 * max(lengths)


def test_the_largest_micro_batch_comes_first(dealt):
    _, batches = dealt
    sizes = [batch.ids.numel() for batch in batches]
    assert sizes == sorted(sizes, reverse=True)
