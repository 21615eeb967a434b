"""The rows of one call of `Sampler.generate`: who waits, who decodes, who is parked at a tool.

Each distinct prompt is prefilled once, and its keys and values are copied to its n rows. A row sits
in a slot of one KV cache until it ends; then a waiting row takes the slot. When a row closes a tool
block, the text between the tags goes to the tool and the row is parked. The result is appended as
untrusted ids in one forward pass. No step waits for a tool while one row can go on. Equal calls of
several rows run once.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from concurrent.futures import Future
from contextlib import suppress
from heapq import heappop, heappush
from itertools import islice
from queue import Empty, SimpleQueue

import numpy as np
import torch
from torch import Tensor

from nanotir.cache import KVCache, extend, new_cache
from nanotir.draws import uniforms
from nanotir.grammar import grammar_error
from nanotir.graphs import decoder
from nanotir.rows import Row, Status, intercept
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

    Invariant of every seated row: the cache holds all of its ids but the last. The last one has
    been sampled, or appended, and not yet been fed to the model. (A parked row that is computed
    along may feed it early. That does no harm: `collect` feeds it again, to the same place.)
    """

    def __init__(self, sampler, prompts, n: int, seed: int, watch=None, force=(), numbers=None):
        """`numbers` are those of the prompts, which decide what is drawn: by default 0, 1, ..."""
        self.sampler, self.config = sampler, sampler.config
        self.model, self.tokenizer = sampler.model, sampler.tokenizer
        self.seed, self.force = seed, force
        self.device = self.model.embed.weight.device

        room = self.config.max_tool_tokens
        prompts = [tuple(prompt) for prompt in prompts]
        copies = [prompt for prompt in prompts for _ in range(n)]
        numbers = range(len(prompts)) if numbers is None else numbers
        indices = [number * n + copy for number in numbers for copy in range(n)]
        self.rows = [Row(i, p, room, sampler.blocks()) for i, p in zip(indices, copies)]
        for row in self.rows:
            row.trajectory.append("prompt", list(row.prompt), 0)
            row.watch = watch

        self.waiting = deque(self.rows)
        self.to_seat = Counter(copies)  # how many rows of each prompt wait
        self.slots: list[Row | None] = [None] * min(self.config.max_rows, len(self.rows))
        self.free = list(range(len(self.slots)))  # a heap: the lowest is taken first
        self.live = 0  # slots[:live] take part in a decoding step
        self.unfinished = len(self.rows)
        self.returned: SimpleQueue[Row] = SimpleQueue()  # parked rows whose results have come in
        self.prefilled: dict[tuple, KVCache] = {}  # by prompt, for the rows that still wait
        self.calls = Calls(sampler.tools, self.config.sessions)
        self.cache = new_cache(self.model, len(self.slots), self.capacity(prompts))
        self.step = decoder(self.model, self.cache, self.config.graphs)

    def capacity(self, prompts) -> int:
        if not all(prompts):
            raise ValueError("a prompt of no tokens: give the model at least one to go on from")
        longest = max(map(len, prompts), default=0)
        limit = self.model.config.max_seq_len
        if longest >= limit:
            full = f"a prompt of {longest} tokens leaves no room to answer"
            raise ValueError(f"{full}: model.max_seq_len is {limit}")
        return min(limit, longest + self.config.max_new_tokens + self.config.max_tool_tokens)

    def run(self, stop=None) -> list[Trajectory]:
        try:
            while self.unfinished:
                if stop and stop():
                    for row in [*self.waiting, *self.seated()]:
                        self.finish(row, "cancelled")
                    break
                self.admit()
                self.collect()
                self.decode()
        finally:
            for row in self.rows:
                self.calls.end(row, row.call)
        return [row.trajectory for row in self.rows]

    def seated(self, status: Status | None = None, first: int | None = None) -> list[Row]:
        """The rows in the slots, or in the first ones, in their order; or those of one status."""
        return [row for row in self.slots[:first] if row and status in (None, row.status)]

    # Waiting -> decoding.

    def admit(self):
        """Seat waiting rows in free slots, with the keys and values of their prompts."""
        while self.waiting and self.free:
            if self.waiting[0].prompt not in self.prefilled:
                self.prefill()
            row, slot = self.waiting.popleft(), heappop(self.free)
            row.status, row.slot = Status.DECODING, slot
            self.slots[slot] = row
            self.cache.put([slot], self.prefilled[row.prompt])
            self.live = max(self.live, slot + 1)
            self.to_seat[row.prompt] -= 1
            if not self.to_seat[row.prompt]:
                del self.prefilled[row.prompt]

    def prefill(self):
        """Read the prompts of the next rows, each once, as one right-padded batch."""
        upcoming = islice(self.waiting, self.config.max_rows)
        distinct = dict.fromkeys(row.prompt for row in upcoming)
        prompts = [prompt for prompt in distinct if prompt not in self.prefilled]
        cache = new_cache(self.model, len(prompts), max(map(len, prompts)))
        extend(self.model, cache, [prompt[:-1] for prompt in prompts], [0] * len(prompts))
        for i, prompt in enumerate(prompts):
            self.prefilled[prompt] = cache.take([i])

    # Decoding.

    def decode(self):
        """Sample one id for every row that can go on.

        Parked and empty slots among them are computed too: that is cheaper than moving rows.
        """
        rows = self.seated(Status.DECODING, self.live)
        if not rows:
            return
        histories = [row.trajectory.ids if row else [0] for row in self.slots[: self.live]]
        logits = self.step([ids[-1] for ids in histories], [len(ids) - 1 for ids in histories])
        chosen = slice(None) if len(rows) == self.live else [row.slot for row in rows]
        u = self.uniforms(rows) if self.config.temperature else None
        ids, logps = self.sampler.pick(logits[chosen, -1], u, self.forced(rows))  # (B, V)
        for row, id, logp in zip(rows, ids.tolist(), logps.tolist()):
            self.accept(row, id, logp)
        self.compact(len(rows))

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
        full = row.written >= self.config.max_new_tokens or self.room(row) < 0
        if id in self.tokenizer.end_ids:
            self.end(row, full)
        elif full:
            self.finish(row, "length")  # an open block stays open and is not run
        elif row.tool == "output":
            self.finish(row, "forged")
        elif closes:
            self.call(row)

    def room(self, row: Row) -> int:
        """Ids that fit into the row's slot, less the one that the model must be able to write."""
        return self.cache.capacity - len(row.trajectory.ids) - 1

    def tool_room(self, row: Row) -> int:
        return min(row.tool_room, self.room(row))

    def no_room(self, row: Row) -> bool:
        """Whether output between its delimiters has no room for a single id."""
        empty = self.sampler.format.output_ids(self.tokenizer, "", room=0)
        return self.tool_room(row) <= len(empty)

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
        call.future.add_done_callback(lambda _: self.returned.put(row))

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
        decoding = len(self.seated(Status.DECODING, self.live))
        if 8 * self.returned.qsize() < decoding or self.config.barrier and self.in_turn(decoding):
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

        # By the invariant, the cache lacks the row's last id. Feed it and the result, but for the
        # result's last id, which the next decoding step feeds.
        starts = [len(row.trajectory.ids) - 1 for row in ready]
        for row in ready:
            self.append_result(row, results[row])
        chunks = [row.trajectory.ids[start:-1] for row, start in zip(ready, starts)]
        ends = [start + len(chunk) for start, chunk in zip(starts, chunks)]
        self.move_up([row for row in ready if row.slot >= self.live])
        slots = [row.slot for row in ready]
        cache = self.cache.take(slots, capacity=max(ends))
        extend(self.model, cache, chunks, starts)
        self.cache.put(slots, cache)

    def in_turn(self, decoding: int) -> bool:
        """With a barrier: whether rows still decode, or calls of this turn have not come back."""
        out = self.returned.qsize() < len(self.seated(Status.PARKED))
        if out and not decoding:
            time.sleep(0.001)
        return out or decoding > 0

    def append_result(self, row: Row, result: ToolResult):
        room = self.tool_room(row)
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
            self.slots[row.slot] = None
            heappush(self.free, row.slot)
        self.unfinished -= 1
        self.calls.end(row, row.call)

    def compact(self, active: int):
        """Close the gaps between rows when no row waits and a quarter of the batch idles.

        Parked rows move to the end and stay out of decoding until their results come in.
        """
        if self.waiting or active > 0.75 * self.live:
            return
        decoding = self.seated(Status.DECODING, self.live)
        rows = decoding + self.seated(Status.PARKED, self.live)
        self.live = len(decoding)
        self.move(rows, range(len(rows)))

    def move_up(self, rows: list[Row]):
        """Seat rows from beyond the live slots next to them, in exchange for rows parked there."""
        end = self.live + len(rows)
        parked = [row for row in self.slots[self.live : end] if row and row.status is Status.PARKED]
        left = [row.slot for row in rows if row.slot >= end]
        self.move(rows + parked, [*range(self.live, end), *left[: len(parked)]])
        self.live = end

    def move(self, rows: list[Row], slots):
        """Give each row another slot, with its keys and values."""
        width = max((len(row.trajectory.ids) for row in rows), default=0)
        self.cache.put(slots, self.cache.take([row.slot for row in rows], width))
        for row in rows:
            self.slots[row.slot] = None
        for slot, row in zip(slots, rows):
            self.slots[slot], row.slot = row, slot
