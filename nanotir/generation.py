"""The rows of one call of `Sampler.generate`: who waits, who decodes, who is parked at a tool.

Each distinct prompt is prefilled once, and its keys and values are copied to its n rows. A row sits
in a slot of one KV cache until it ends; then a waiting row takes the slot. When a row closes a tool
block, the text between the tags goes to the tool and the row is parked. The result is appended as
untrusted ids in one forward pass. No step waits for a tool while one row can go on. Equal calls of
several rows to a deterministic tool without sessions run once.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from concurrent.futures import Future
from contextlib import suppress
from itertools import islice
from queue import Empty, SimpleQueue

import numpy as np
import torch
from torch import Tensor

from nanotir.cache import KVCache, extend, new_cache, passes
from nanotir.draws import uniforms
from nanotir.grammar import grammar_error
from nanotir.graphs import DecodeGraphs, by_columns, decoder
from nanotir.room import slot_for
from nanotir.rows import Row, Status, intercept
from nanotir.slots import Slots
from nanotir.tools.calls import Calls, Pending
from nanotir.tools.tool import ToolResult
from nanotir.trajectory import Call, Trajectory

NO_CALLS_LEFT = "No calls left: answer now."


class Generation:
    """One call of `generate`: rows move from waiting to decoding, parked and finished.

        slot 0   A A A A c . . . r A A A |  D D D D        c  a call is closed: the row is parked
        slot 1   B B B B B B B B B B |  E E E E c . .      .  its tool runs, the others decode
        slot 2   C C c . r C C c . . . r C C |             r  the result is appended in one pass
                 ------------------------------->  steps   |  the row ends, the next one is seated

    Invariant of every seated row: the cache holds its first `fed` ids, and not the last one, which
    has been sampled, or appended, and not yet been fed to the model. (A row that is parked, or that
    ends, may feed it early. That does no harm: it is fed again, to the same place, or not read.)
    """

    def __init__(self, sampler, prompts, n: int, seed: int, watch=None, force=(), numbers=None):
        """`numbers` are those of the prompts, which decide what is drawn: by default 0, 1, ..."""
        self.sampler, self.config = sampler, sampler.config
        self.model = by_columns(sampler.model, len(prompts) * n)
        self.tokenizer = sampler.tokenizer
        self.seed, self.force = seed, force
        self.device = self.model.embed.weight.device

        prompts = [tuple(prompt) for prompt in prompts]
        room = self.config.max_tool_tokens
        slot = slot_for(prompts, self.config, self.model.config.max_seq_len)
        copies = [prompt for prompt in prompts for _ in range(n)]
        numbers = range(len(prompts)) if numbers is None else numbers
        indices = [number * n + copy for number in numbers for copy in range(n)]
        self.rows = [Row(i, p, room, slot, sampler.blocks()) for i, p in zip(indices, copies)]
        for row in self.rows:
            row.trajectory.append("prompt", list(row.prompt), 0)
            row.watch = watch

        self.waiting = deque(self.rows)
        self.to_seat = Counter(copies)  # how many rows of each prompt wait
        self.unfinished = len(self.rows)
        self.returned: SimpleQueue[Row] = SimpleQueue()  # parked rows whose results have come in
        self.prefilled: dict[tuple, KVCache] = {}  # by prompt, for the rows that still wait
        self.calls = Calls(sampler.tools, self.config.sessions)
        self.cache = new_cache(self.model, min(self.config.max_rows, len(self.rows)), slot)
        self.slots = Slots(self.cache)
        self.step = decoder(self.model, self.cache, self.config.graphs, self.config.compiled)
        self.ahead = isinstance(self.step, DecodeGraphs)
        self.launched: tuple[Tensor, dict] | None = None  # a step's logits, and whom it fed, where

    def run(self, stop=None) -> list[Trajectory]:
        try:
            while self.unfinished:
                if stop and stop():
                    for row in [*self.waiting, *self.slots.seated()]:
                        self.finish(row, "cancelled")
                    break
                self.admit()
                self.collect()
                self.decode()
        finally:
            for row in self.rows:
                self.calls.end(row, row.call)
        return [row.trajectory for row in self.rows]

    # Waiting -> decoding.

    def admit(self):
        """Seat waiting rows in free slots, with the keys and values of their prompts."""
        while self.waiting and self.slots.free:
            if self.waiting[0].prompt not in self.prefilled:
                self.prefill()
            row = self.waiting.popleft()
            row.status, row.fed = Status.DECODING, len(row.prompt) - 1
            self.slots.seat(row, self.prefilled[row.prompt])
            self.to_seat[row.prompt] -= 1
            if not self.to_seat[row.prompt]:
                del self.prefilled[row.prompt]

    def prefill(self):
        """Read the prompts of the next rows, each once, in right-padded batches."""
        upcoming = islice(self.waiting, self.config.max_rows)
        distinct = dict.fromkeys(row.prompt for row in upcoming)
        prompts = [prompt for prompt in distinct if prompt not in self.prefilled]
        for some in passes(prompts):
            cache = new_cache(self.model, len(some), max(map(len, some)))
            extend(self.model, cache, [prompt[:-1] for prompt in some], [0] * len(some))
            for i, prompt in enumerate(some):
                self.prefilled[prompt] = cache.take([i])

    # Decoding.

    def decode(self):
        """Feed an id of every row that can go on, and sample the next one where it was the last.

        Parked and empty slots are computed too: that is cheaper than moving rows.
        """
        decoding = self.slots.decoding()
        if not decoding:
            return
        fed = [row for row in decoding if self.is_fed(row)] if self.launched else []
        if not fed:
            self.launch({})
            fed = decoding
        logits, self.launched = self.launched[0], None
        for row in fed:
            row.fed += 1
        self.sample([row for row in fed if row.fed == len(row.trajectory.ids)], logits)
        if not self.waiting and len(decoding) <= 0.75 * self.slots.live:
            self.slots.compact()

    def sample(self, rows: list[Row], logits: Tensor):
        """Append an id to rows whose last id has been fed. `logits` (B, 1, V) are of all slots."""
        if not rows:
            return
        chosen = slice(None) if len(rows) == len(logits) else [row.slot for row in rows]
        u = self.uniforms(rows) if self.config.temperature else None
        ids, logps = self.sampler.pick(logits[chosen, -1], u, self.forced(rows))  # (B, V)
        ids, logps = ids.tolist(), logps.tolist()
        if self.ahead:  # a GPU goes on while rows are extended here
            self.launch(dict(zip(rows, ids)))
        for row, id, logp in zip(rows, ids, logps):
            self.accept(row, id, logp)

    def launch(self, sampled: dict[Row, int]):
        """Start a step: each row is fed its next id, or what has just been sampled for it."""
        rows = self.slots.rows[: self.slots.live]
        places = {row: (row.slot, row.fed) for row in rows if row} if self.ahead else {}
        ids = [sampled[r] if r in sampled else r.trajectory.ids[r.fed] if r else 0 for r in rows]
        self.launched = self.step(ids, [row.fed if row else 0 for row in rows]), places

    def is_fed(self, row: Row) -> bool:
        """Whether the launched step feeds the row's next id."""
        return self.launched[1].get(row) == (row.slot, row.fed)

    def uniforms(self, rows: list[Row]) -> np.ndarray:
        """A uniform random number for each row, by what it is and how many ids it has."""
        lengths = [len(row.trajectory.ids) for row in rows]
        return uniforms(self.seed, [row.index for row in rows], lengths)

    def forced(self, rows: list[Row]) -> Tensor | None:
        """The id that each row has to say next, -1 where it is free; None once all are free."""
        if min(row.written for row in rows) >= len(self.force):
            return None
        forced = [self.force[r.written] if r.written < len(self.force) else -1 for r in rows]
        return torch.tensor(forced, device=self.device)

    def accept(self, row: Row, id: int, logp: float):
        """Append a sampled id, and see whether it closes a block or ends the row."""
        closes = intercept(row, id, logp, self.sampler.openers, self.sampler.closers)
        full = row.written >= self.config.max_new_tokens or row.room < 0
        if id in self.tokenizer.end_ids:
            self.end(row, full)
        elif full:
            self.finish(row, "length")  # an open block stays open and is not run
        elif row.tool == "output":
            self.finish(row, "forged")
        elif closes:
            self.call(row)

    def no_room(self, row: Row) -> bool:
        """Whether output between its delimiters has no room for a single id."""
        empty = self.sampler.format.output_ids(self.tokenizer, "", room=0)
        return row.output_room <= len(empty)

    def end(self, row: Row, full: bool):
        """Finish a row that ended itself, unless it may answer again.

        It may once, if its answer breaks the format's grammar and it is not `full`.
        """
        error = None
        if self.sampler.format.style == "grammar" and not row.told and not full:
            error = grammar_error(row.trajectory, self.tokenizer)
        if error is None or self.no_room(row):
            self.finish(row, "stop")
        else:
            self.tell(row, f"{error}: answer again.")

    # Decoding -> parked -> decoding.

    def call(self, row: Row):
        spent = len(row.trajectory.calls) >= self.config.max_calls
        refused = spent and (row.told or not self.config.last_turn)
        if refused or self.no_room(row):
            self.finish(row, "budget")
        elif spent:
            self.tell(row, NO_CALLS_LEFT)
        else:
            self.park(row, self.calls.start(row.tool, self.code(row), row))

    def park(self, row: Row, call: Pending):
        row.status, row.call = Status.PARKED, call
        returned = self.returned  # a reference to self would be a cycle, which is freed late
        call.future.add_done_callback(lambda _: returned.put(row))

    def tell(self, row: Row, message: str):
        """Say something in a tool's place. It is read as output and does not count as a call."""
        row.tool, row.told = None, True
        answer = Future()
        answer.set_result(ToolResult(message))
        self.park(row, Pending(answer))

    def collect(self):
        """Append the results that have come in. Wait for one only if no row can decode.

        A pass costs about as much as a step. So results wait for others, and decoding goes on,
        until they are an eighth of the rows that decode.
        """
        decoding = len(self.slots.decoding())
        few = 8 * self.returned.qsize() < decoding and not self.ahead
        if few or self.config.barrier and self.in_turn(decoding):
            return
        done = []
        with suppress(Empty):
            if not decoding:  # wait, but not for ever: the caller may want to stop
                done.append(self.returned.get(timeout=0.1))
            while True:
                done.append(self.returned.get_nowait())
        done.sort(key=lambda row: row.slot)
        results = {row: self.calls.result(row.call) for row in done}
        for row in [row for row, result in results.items() if not result]:
            self.park(row, row.call)  # it is made again
        ready = [row for row, result in results.items() if result]
        if not ready:
            return

        for row in ready:
            self.append_result(row, results[row])
        self.slots.move_up(ready)
        if not self.ahead:
            self.feed(ready)

    def feed(self, rows: list[Row]):
        """Feed all ids of rows but the last, which the next decoding step feeds, in one pass."""
        starts = [row.fed for row in rows]
        chunks = [row.trajectory.ids[row.fed : -1] for row in rows]
        for row in rows:
            row.fed = len(row.trajectory.ids) - 1
        slots = [row.slot for row in rows]
        cache = self.cache.take(slots, capacity=max(row.fed for row in rows))
        extend(self.model, cache, chunks, starts)
        self.cache.put(slots, cache)

    def in_turn(self, decoding: int) -> bool:
        """With a barrier: whether rows still decode, or calls of this turn have not come back."""
        out = self.returned.qsize() < len(self.slots.seated(Status.PARKED))
        if out and not decoding:
            time.sleep(0.001)
        return out or decoding > 0

    def append_result(self, row: Row, result: ToolResult):
        room = row.output_room
        # What cannot fit need not be tokenised, which takes long.
        output, last = result.output[: self.tokenizer.longest * room], row.trajectory.ids[-1]
        ids = self.sampler.format.output_ids(self.tokenizer, output, room, last)
        if row.tool:  # otherwise the harness says something
            row.trajectory.calls.append(Call(row.tool, self.code(row), result))
        row.append("output", ids, 0)
        row.tool_room -= len(ids)
        row.tool = row.call = None
        row.status = Status.DECODING

    def code(self, row: Row) -> str:
        ids = row.trajectory.ids[row.block_start : -1]
        return row.blocks.code if row.blocks else self.tokenizer.decode(ids)

    # Any status -> finished.

    def finish(self, row: Row, reason: str):
        row.trajectory.finish_reason = reason
        row.status = Status.FINISHED
        if row.watch:
            row.watch(row.index, "finish", [])
        if row.slot >= 0:
            self.slots.leave(row)
        self.unfinished -= 1
        self.calls.end(row, row.call)
