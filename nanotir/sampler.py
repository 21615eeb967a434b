"""Decoding of many rows at once; rows that call a tool wait for it while the others go on.

Every distinct prompt is prefilled once and its keys and values are copied to its n rows. A row sits in a slot of one KV cache until
it ends; then a waiting row takes the slot. When a row closes a tool block it is parked: the text between the tags, exactly, goes to
the tool's pool, and the answer comes back as untrusted ids appended in one forward pass. No step waits for a tool as long as one
seated row can go on. A program that several rows ask for, as the samples of one prompt do, is run once.

What a row samples depends on (seed, row, position) and its own past only, never on the clock or on its neighbours.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field

import numpy as np
import torch

from nanotir.draws import truncate, uniforms
from nanotir.model import KVCache, Transformer
from nanotir.tokenizer import THOUGHT, Tokenizer
from nanotir.tools.tool import ToolResult
from nanotir.trajectory import Call, Format, Trajectory, grammar_error

NO_CALLS_LEFT = "No calls left: answer now."


@dataclass
class SamplerConfig:
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0  # keep the likeliest ids that together have this probability
    top_k: int = 0  # keep the k likeliest ids; 0 keeps all
    max_new_tokens: int = 128  # ids the model may write in a row
    max_calls: int = 4  # tool calls in a row; closing one more block ends it
    max_tool_tokens: int = (
        128  # ids of tool output in a row, delimiters included; a result that does not fit is cut
    )
    max_rows: int = 64  # rows decoded at the same time
    sessions: bool = False  # the calls of one row share their variables
    last_turn: bool = False  # a call beyond max_calls is answered by a refusal, once, instead of ending the row (TAPO)
    forge: bool = False  # let the model write the delimiters of tool output, as harnesses do that search its text: for ablations

    def __post_init__(self):
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError("sampling needs temperature >= 0, 0 < top_p <= 1 and top_k >= 0")
        if (
            min(self.max_new_tokens, self.max_rows) < 1
            or min(self.max_calls, self.max_tool_tokens) < 0
        ):
            raise ValueError(
                "sampling needs max_new_tokens and max_rows of at least 1, max_calls and max_tool_tokens of at least 0"
            )


@dataclass(eq=False)
class Row:
    """A trajectory in the making."""

    index: int
    prompt: tuple[int, ...]
    trajectory: Trajectory = field(default_factory=Trajectory)
    tool: str | None = None  # whose block is open
    block_start: int = 0  # where the open block's text begins
    written: int = 0  # ids by the model
    tool_room: int = 0  # ids that tool output may still take
    future: object = None  # the running call, while parked
    told: bool = False  # the harness has told it what is wrong, which it does once


class Sampler:
    """`generate` turns prompts into trajectories. Tools are a list; one that is not in it cannot be called at all."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        tools=(),
        format: Format | None = None,
        config: SamplerConfig | None = None,
    ):
        self.model, self.tokenizer, self.config = model, tokenizer, config or SamplerConfig()
        self.tools = {tool.name: tool for tool in tools}
        self.format = format or Format()
        tags = tokenizer.tags
        self.openers = {tags[self.format.delimiters(name)[0]]: name for name in self.tools}
        self.closers = {name: tags[self.format.delimiters(name)[1]] for name in self.tools}
        # Every other tag is masked at the logits: a model cannot forge a result, nor a turn of the user, if it cannot open one.
        forgeable = self.format.delimiters("output") if self.config.forge else ()
        allowed = {
            tokenizer.end_id,
            *(tags[tag] for tag in (*THOUGHT, *forgeable)),
            *self.openers,
            *self.closers.values(),
        }
        self.banned = sorted(set(tags.values()) - allowed)

    @torch.inference_mode()
    def generate(
        self, prompts, n: int = 1, seed: int = 0, watch=None, stop=None, force=()
    ) -> list[Trajectory]:
        """n trajectories for each prompt (a question, or ids), prompts in order, n rows each.

        `force` are the first ids of every answer, whatever the model would rather say; their log-probs are what it gave them.
        watch(row, kind, ids) hears of everything that is appended and, as ("finish", []), of a row's end. Once stop() is true, unfinished
        rows end as "cancelled". ValueError for a prompt that leaves no room to answer.
        """
        prompts = [
            self.format.prompt(self.tokenizer, p) if isinstance(p, str) else list(p)
            for p in prompts
        ]
        return self._generation(prompts, n, seed, watch or (lambda *_: None), tuple(force)).run(
            stop or (lambda: False)
        )

    def _generation(self, *state):
        return Generation(self, *state)

    def pick(self, logits: torch.Tensor, u: np.ndarray, forced=None):
        """Next ids (B,) and their log-probs (B,) from logits (B, V) and a uniform a row, by inversion of the cumulative sum; or `forced`, if not -1.

        The log-prob is that of the softmax at this temperature over all ids that are not banned, which is what a trainer recomputes;
        top_p and top_k narrow the choice but do not renormalise it.
        """
        config = self.config
        logits = logits.float().index_fill(
            -1, torch.tensor(self.banned, device=logits.device), float("-inf")
        )
        logps = (logits / (config.temperature or 1.0)).log_softmax(-1)
        if config.temperature == 0:
            ids = logps.argmax(-1)
        else:
            cumulative = truncate(logps.exp(), config.top_p, config.top_k).cumsum(-1)  # (B, V)
            target = (
                torch.as_tensor(u, dtype=torch.float32, device=logits.device)[:, None]
                * cumulative[:, -1:]
            )
            ids = torch.searchsorted(cumulative, target, right=True)[
                :, 0
            ]  # first id whose cumulative sum exceeds the target
        if forced is not None:
            ids = torch.where(forced >= 0, forced, ids)
        return ids, logps.gather(-1, ids[:, None])[:, 0]


class Generation:
    """The state of one call of generate: who waits, who sits in which slot, who is parked."""

    def __init__(self, sampler: Sampler, prompts, n: int, seed: int, watch, force):
        self.sampler, self.config, self.seed, self.watch, self.force = (
            sampler,
            sampler.config,
            seed,
            watch,
            force,
        )
        self.model, self.tokenizer = sampler.model, sampler.tokenizer
        self.device = next(self.model.parameters()).device
        self.rows = [
            Row(i * n + j, tuple(prompt)) for i, prompt in enumerate(prompts) for j in range(n)
        ]
        for row in self.rows:
            row.tool_room = self.config.max_tool_tokens
            row.trajectory.append("prompt", list(row.prompt), 0)
        self.waiting = deque(self.rows)
        self.slots: list[Row | None] = [None] * min(self.config.max_rows, len(self.rows))
        self.live = 0  # slots[:live] take part in a decoding step
        self.parked: dict[Row, int] = {}  # row -> its slot
        self.prefilled: dict[tuple, KVCache] = {}
        self.asked: dict[
            tuple, Future
        ] = {}  # runs that serve whoever asks the same, by (tool, text)
        self.cache = KVCache(
            self.model.config, len(self.slots), self._capacity(prompts), self.device, self._dtype()
        )

    def _capacity(self, prompts) -> int:
        longest, limit = max(map(len, prompts), default=0), self.model.config.max_seq_len
        if longest >= limit:
            raise ValueError(
                f"a prompt of {longest} tokens leaves no room to answer: model.max_seq_len is {limit}"
            )
        return min(limit, longest + self.config.max_new_tokens + self.config.max_tool_tokens)

    def _dtype(self):
        return self.model.embed.weight.dtype

    def run(self, stop) -> list[Trajectory]:
        while self.waiting or any(self.slots):
            if stop():
                for row in [*self.waiting, *filter(None, self.slots)]:
                    self._finish(row, "cancelled")
                break
            self._admit()
            self._collect()
            self._decode()
        return [row.trajectory for row in self.rows]

    def _admit(self):
        """Seat waiting rows in free slots. A seat needs the prompt's keys and values, all but its last id, which decoding feeds."""
        free = [slot for slot, row in enumerate(self.slots) if row is None] if self.waiting else []
        for slot in free[: len(self.waiting)]:
            if self.waiting[0].prompt not in self.prefilled:
                self._prefill()
            row = self.waiting.popleft()
            self.slots[slot] = row
            self.cache.put([slot], self.prefilled[row.prompt])
            self.live = max(self.live, slot + 1)
            if not any(other.prompt == row.prompt for other in self.waiting):
                del self.prefilled[row.prompt]

    def _prefill(self):
        """Run the prompts of the next rows, each once, as one right-padded batch."""
        upcoming = dict.fromkeys(row.prompt for row in list(self.waiting)[: self.config.max_rows])
        prompts = [prompt for prompt in upcoming if prompt not in self.prefilled]
        cache = KVCache(
            self.model.config, len(prompts), max(map(len, prompts)), self.device, self._dtype()
        )
        self._extend(cache, [prompt[:-1] for prompt in prompts], [0] * len(prompts))
        for i, prompt in enumerate(prompts):
            self.prefilled[prompt] = cache.take([i])

    def _extend(self, cache: KVCache, chunks, starts):
        """Append to every row of `cache` its own chunk of ids, from its own position on, in one forward pass."""
        width = max(map(len, chunks))
        ids = torch.zeros(len(chunks), width, dtype=torch.long)
        positions = torch.full((len(chunks), width), -1)
        for i, (chunk, start) in enumerate(zip(chunks, starts)):
            ids[i, : len(chunk)] = torch.tensor(chunk)
            positions[i, : len(chunk)] = torch.arange(start, start + len(chunk))
        self.model.hidden(ids.to(self.device), positions.to(self.device), cache)

    def _collect(self):
        """Append the results that have come in. Only when nobody can decode is a tool worth waiting for."""
        if self.parked and len(self.parked) == sum(row is not None for row in self.slots):
            wait([row.future for row in self.parked], return_when=FIRST_COMPLETED)
        ready = {row: slot for row, slot in self.parked.items() if row.future.done()}
        if not ready:
            return
        chunks, starts = [], []
        for row in ready:
            start = len(row.trajectory.ids) - 1  # the closing tag has been sampled but not yet read
            self._append_result(row, row.future.result())
            chunks.append(
                row.trajectory.ids[start:-1]
            )  # and the result's last id will be fed by the next step
            starts.append(start)
        slots = list(ready.values())
        cache = self.cache.take(
            slots, capacity=max(start + len(chunk) for start, chunk in zip(starts, chunks))
        )
        self._extend(cache, chunks, starts)
        self.cache.put(slots, cache)
        for row, slot in ready.items():
            del self.parked[row]
            self.live = max(self.live, slot + 1)

    def _append_result(self, row: Row, result):
        trajectory = row.trajectory
        ids = self.sampler.format.output_ids(
            self.tokenizer, result.output, min(row.tool_room, self._room(row))
        )
        if row.tool:  # else it is the harness that speaks
            trajectory.calls.append(Call(row.tool, self._code(row), result))
        trajectory.append("output", ids, 0)
        row.tool_room -= len(ids)
        row.tool = row.future = None
        self.watch(row.index, "output", ids)

    def _room(self, row: Row) -> int:
        return (
            self.cache.capacity - len(row.trajectory.ids) - 1
        )  # one id must remain for the model to write

    def _code(self, row: Row) -> str:
        return self.tokenizer.decode(row.trajectory.ids[row.block_start : -1])

    def _decode(self):
        """One token for every row that can go on. Parked and empty slots come along idle: cheaper than moving rows about."""
        active = [
            slot
            for slot, row in enumerate(self.slots[: self.live])
            if row is not None and row not in self.parked
        ]
        if not active:
            return
        seats = [row.trajectory.ids if row else (0,) for row in self.slots[: self.live]]
        last = torch.tensor([ids[-1] for ids in seats], device=self.device)[:, None]  # (live, 1)
        positions = torch.tensor([len(ids) - 1 for ids in seats], device=self.device)[:, None]
        logits = self.model(last, positions, self.cache.first(self.live))[active, -1]  # (active, V)
        rows = [self.slots[slot] for slot in active]
        u = uniforms(
            self.seed, [row.index for row in rows], [len(row.trajectory.ids) for row in rows]
        )
        ids, logps = self.sampler.pick(logits, u, self._forced(rows))
        for slot, row, id, logp in zip(active, rows, ids.tolist(), logps.tolist()):
            self._accept(slot, row, id, logp)
        self._compact(len(active))

    def _forced(self, rows):
        """The id that each row has to say next, -1 where it is free; None once all are."""
        forced = [self.force[row.written] if row.written < len(self.force) else -1 for row in rows]
        return torch.tensor(forced, device=self.device) if max(forced) >= 0 else None

    def _accept(self, slot: int, row: Row, id: int, logp: float):
        sampler, trajectory = self.sampler, row.trajectory
        opens = row.tool is None and id in sampler.openers
        if opens:
            row.tool, row.block_start = sampler.openers[id], len(trajectory.ids) + 1
        trajectory.append(row.tool or "text", [id], 1, [logp])
        row.written += 1
        self.watch(row.index, row.tool or "text", [id])
        if id == self.tokenizer.end_id:
            self._end(slot, row)
        elif (
            row.written >= self.config.max_new_tokens or len(trajectory.ids) >= self.cache.capacity
        ):
            self._finish(row, "length")  # an open block stays open and is not run
        elif row.tool and not opens and id == sampler.closers[row.tool]:
            self._call(slot, row)

    def _end(self, slot: int, row: Row):
        """A row that ends itself is done, unless the format has a grammar and this is its first answer that breaks it."""
        grammar = self.sampler.format.style == "grammar" and not row.told
        error = grammar_error(row.trajectory.turns(self.tokenizer)) if grammar else None
        if error is None or min(row.tool_room, self._room(row)) < 2:
            self._finish(row, "stop")
        else:
            self._tell(slot, row, f"{error}: answer again.")

    def _call(self, slot: int, row: Row):
        spent = len(row.trajectory.calls) >= self.config.max_calls
        if (
            min(row.tool_room, self._room(row)) < 2
            or spent
            and (row.told or not self.config.last_turn)
        ):
            self._finish(row, "budget")
        elif spent:
            self._tell(slot, row, NO_CALLS_LEFT)
        else:
            row.future = self._ask(
                self.sampler.tools[row.tool],
                self._code(row),
                session=row if self.config.sessions else None,
            )
            self.parked[row] = slot

    def _ask(self, tool, text: str, session) -> Future:
        """What will hold the answer. Siblings often ask for the same: where the answer must be the same too, one run is for all of them."""
        if session is not None or not tool.deterministic:
            return tool.submit(text, session)
        if (tool, text) not in self.asked:
            self.asked[tool, text] = tool.submit(text)
        return self.asked[tool, text]

    def _tell(self, slot: int, row: Row, message: str):
        """The harness itself says something, in a tool's place: it is read as output, and counts as no call."""
        row.tool, row.told, row.future = None, True, Future()
        row.future.set_result(ToolResult(message))
        self.parked[row] = slot

    def _finish(self, row: Row, reason: str):
        row.trajectory.finish_reason = reason
        self.watch(row.index, "finish", [])
        if row in self.slots:
            self.slots[self.slots.index(row)] = None
        self.parked.pop(row, None)
        if self.config.sessions:
            for tool in self.sampler.tools.values():
                tool.end_session(row)

    def _compact(self, active: int):
        """With nobody waiting, close the gaps once a quarter of the batch idles: fewer, larger moves cost less than many small."""
        if self.waiting or active > 0.75 * self.live:
            return
        order = [s for s, row in enumerate(self.slots) if row and row not in self.parked]
        self.live = len(order)
        order += [s for s, row in enumerate(self.slots) if row in self.parked]
        self.cache.put(range(len(order)), self.cache.take(order))
        seated = [self.slots[slot] for slot in order]
        self.slots[:] = seated + [None] * (len(self.slots) - len(seated))
        self.parked = {row: slot for slot, row in enumerate(seated) if row in self.parked}
