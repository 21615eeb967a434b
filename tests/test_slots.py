import pytest
import torch

from nanotir.cache import KVCache
from nanotir.model import ModelConfig
from nanotir.rows import Row, Status
from nanotir.slots import Slots

CONFIG = ModelConfig(n_layers=1, d_model=8, n_heads=1, n_kv_heads=1)


@pytest.fixture
def slots():
    """Six rows, whose keys are all the number of the row."""
    slots = Slots(KVCache(CONFIG, 6, 10))
    for number in range(6):
        row = Row(number, (1, 2, 3), 0, 10, None, status=Status.DECODING)
        row.trajectory.append("prompt", [1, 2, 3], 0)
        prompt = KVCache(CONFIG, 1, 3)
        prompt.kv += number
        slots.seat(row, prompt)
    return slots


def seats(slots) -> list[int | None]:
    """The row in each slot, by its number; its keys must have come along."""
    for row in slots.seated():
        assert slots.rows[row.slot] is row
        assert (slots.cache.kv[:, :, row.slot, :, :3] == row.index).all()
    return [row.index if row else None for row in slots.rows]


def test_a_row_that_leaves_gives_the_lowest_free_slot_to_the_next(slots):
    for number in (4, 1):
        slots.leave(slots.rows[number])
    new = Row(9, (1,), 0, 10, None)
    slots.seat(new, KVCache(CONFIG, 1, 1))
    assert new.slot == 1 and slots.free == [4]


def test_compact_puts_decoding_rows_first_and_parked_ones_beyond_the_live_slots(slots):
    slots.rows[0].status = slots.rows[3].status = Status.PARKED
    slots.leave(slots.rows[1])
    slots.compact()
    assert seats(slots) == [4, 5, 2, 3, 0, None]
    assert slots.live == 3
    assert [row.index for row in slots.decoding()] == [4, 5, 2]


def test_compact_moves_only_rows_that_fill_a_gap_and_those_that_were_there(slots, monkeypatch):
    moved = []
    monkeypatch.setattr(slots, "move", lambda rows, places: moved.extend(rows))
    slots.rows[0].status = slots.rows[3].status = Status.PARKED
    slots.leave(slots.rows[1])
    slots.compact()
    assert [row.index for row in moved] == [4, 5, 0]


def test_rows_that_go_on_change_places_with_those_parked_next_to_the_live_slots(slots):
    for number in (0, 1, 2, 3):
        slots.rows[number].status = Status.PARKED
    slots.compact()
    assert seats(slots) == [4, 5, 2, 3, 0, 1] and slots.live == 2
    back = [row for row in slots.seated() if row.index in (1, 3)]
    for row in back:
        row.status = Status.DECODING
    slots.move_up(back)
    assert seats(slots) == [4, 5, 1, 3, 0, 2] and slots.live == 4


def test_rows_in_live_slots_do_not_move_up(slots):
    before = seats(slots)
    slots.move_up([slots.rows[2]])
    assert seats(slots) == before and slots.live == 6


def test_seated_rows_come_in_the_order_of_their_slots(slots):
    slots.rows[2].status = Status.PARKED
    assert [row.index for row in slots.seated(Status.PARKED)] == [2]
    assert [row.slot for row in slots.seated()] == list(range(6))
    assert torch.equal(slots.cache.lengths, torch.zeros(6, dtype=torch.long))
