"""A row of a generation: a trajectory in the making, and how far it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from nanotir.blocks import Blocks
from nanotir.tools.calls import Pending
from nanotir.trajectory import Trajectory


class Status(Enum):
    WAITING = "waiting"  # for a slot
    DECODING = "decoding"
    PARKED = "parked"  # in its slot, while its tool runs
    FINISHED = "finished"


@dataclass(eq=False)
class Row:
    """A trajectory in the making."""

    index: int
    prompt: tuple[int, ...]
    tool_room: int  # ids that tool output may still take
    capacity: int  # ids that a slot holds
    blocks: Blocks | None  # finds tool blocks in style text
    trajectory: Trajectory = field(default_factory=Trajectory)
    status: Status = Status.WAITING
    slot: int = -1  # where it sits in the cache
    fed: int = 0  # so many of its ids are in the cache
    tool: str | None = None  # the tool whose block is open
    block_start: int = 0  # where the open block's text begins
    written: int = 0  # ids by the model
    call: Pending | None = None  # the running call, while parked
    told: bool = False  # the harness has told it once what is wrong
    watch: Callable | None = None  # is told of all that is appended, as (index, kind, ids)

    @property
    def room(self) -> int:
        """Free places in the row's slot, less one for the model's next id: -1 if it is full."""
        return self.capacity - len(self.trajectory.ids) - 1

    @property
    def output_room(self) -> int:
        """Ids that a tool's result may take."""
        return min(self.tool_room, self.room)

    def append(self, kind: str, ids: list[int], mask: int, logps: list[float] | None = None):
        self.trajectory.append(kind, ids, mask, logps)
        if self.watch:
            self.watch(self.index, kind, ids)


def intercept(
    row: Row, id: int, logp: float, openers: dict[int, str], closers: dict[str, int]
) -> bool:
    """Append an id that the model chose to a row. Returns whether it closes a tool's block.

    `openers` says which tool's block an id opens, `closers` which id closes it again. All ids of a
    block, these two included, are the tool's. In style text, `row.blocks` finds blocks instead.
    Updates row.tool, row.block_start and row.written.
    """
    opens = row.tool is None and id in openers
    if opens:
        row.tool = openers[id]
        row.block_start = len(row.trajectory.ids) + 1
    row.append(row.tool or "text", [id], 1, [logp])
    row.written += 1
    if row.blocks:
        row.tool, closes = row.blocks.read(row.trajectory)
        return closes
    return row.tool is not None and not opens and id == closers[row.tool]
