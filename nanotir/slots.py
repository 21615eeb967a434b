"""Which row sits in which slot of the KV cache, and how rows move from slot to slot."""

from __future__ import annotations

from heapq import heappop, heappush

from nanotir.cache import KVCache
from nanotir.rows import Row, Status


class Slots:
    """The rows in the slots of a cache. Only the first `live` slots take part in decoding steps.

    Rows move only once no row waits for a slot: from then on, `free` is out of date and not used.
    """

    def __init__(self, cache: KVCache):
        self.cache = cache
        self.rows: list[Row | None] = [None] * len(cache.lengths)
        self.free = list(range(len(self.rows)))  # a heap: the lowest is taken first
        self.live = 0

    def seated(self, status: Status | None = None) -> list[Row]:
        """All rows in slots, in their order, or those of one status."""
        return [row for row in self.rows if row and status in (None, row.status)]

    def decoding(self) -> list[Row]:
        return [row for row in self.rows[: self.live] if row and row.status is Status.DECODING]

    def seat(self, row: Row, prefilled: KVCache):
        """Give a row the lowest free slot, with the keys and values of its prompt."""
        row.slot = heappop(self.free)
        self.rows[row.slot] = row
        self.cache.put([row.slot], prefilled)
        self.live = max(self.live, row.slot + 1)

    def leave(self, row: Row):
        self.rows[row.slot] = None
        heappush(self.free, row.slot)

    def compact(self):
        """Close the gaps between the rows that decode.

        Parked rows stay out of decoding until their results come in.
        """
        decoding = self.decoding()
        self.live = len(decoding)
        self.fill(range(self.live), decoding)

    def move_up(self, rows: list[Row]):
        """Seat rows from beyond the live slots next to them."""
        rows = [row for row in rows if row.slot >= self.live]
        end = self.live + len(rows)
        self.fill(range(self.live, end), rows)
        self.live = end

    def fill(self, slots: range, rows: list[Row]):
        """Seat a row in each of `slots`. Rows that sit there stay; parked ones change places."""
        gaps = sorted(set(slots) - {row.slot for row in rows})
        rows = [row for row in rows if row.slot not in slots]
        left = [row.slot for row in rows]
        parked = [self.rows[slot] for slot in gaps if self.rows[slot]]
        self.move(rows + parked, [*gaps, *left[: len(parked)]])

    def move(self, rows: list[Row], slots):
        """Give each row another slot, with its keys and values."""
        width = max((len(row.trajectory.ids) for row in rows), default=0)
        self.cache.put(slots, self.cache.take([row.slot for row in rows], width))
        for row in rows:
            self.rows[row.slot] = None
        for slot, row in zip(slots, rows):
            self.rows[slot], row.slot = row, slot
