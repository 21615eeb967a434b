"""A row of a generation: a trajectory in the making, and how far it is."""

from __future__ import annotations

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
    blocks: Blocks | None  # finds tool blocks in style text
    trajectory: Trajectory = field(default_factory=Trajectory)
    status: Status = Status.WAITING
    slot: int = -1  # where it sits in the cache
    tool: str | None = None  # the tool whose block is open
    block_start: int = 0  # where the open block's text begins
    written: int = 0  # ids by the model
    call: Pending | None = None  # the running call, while parked
    told: bool = False  # the harness has told it once what is wrong
