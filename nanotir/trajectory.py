"""What a rollout is, and how it is written down.

A trajectory's ids are exactly what the model read and wrote, in order. Ids are only ever appended.
Nothing is decoded and encoded again: one text has many spellings in ids, and log-probs belong to
one of them. Parallel to the ids run `mask` (1 where the model chose the id), `logps` (its log-prob
when it was sampled), and spans that say who wrote what.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field, replace

from nanotir import blocks
from nanotir.checks import one_of
from nanotir.tokenizer import FENCE_END, Tokenizer
from nanotir.tools.tool import ToolResult

STYLES = ("tags", "fences", "grammar", "text")


@dataclass
class Span:
    """ids[start:end] have one author: "prompt", "text", "output", or the name of a called tool."""

    kind: str
    start: int
    end: int


@dataclass
class Call:
    tool: str
    code: str  # exactly the text between the delimiters
    result: ToolResult


@dataclass
class Trajectory:
    """One answer to one problem, in the making or finished.

    finish_reason is "stop" (it ended itself), "length" (out of ids), "budget" (it wanted one call
    too many), "forged" (in style text, it began to write a tool's output) or "cancelled" (the
    caller stopped it).
    """

    ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)  # 1 on ids that the model chose, the stop id too
    logps: list[float] = field(default_factory=list)  # the sampler's; 0 where nothing was sampled
    spans: list[Span] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    finish_reason: str = ""
    old_logps: list[float] = field(default_factory=list)  # the trainer's, filled in by rl.py

    def append(self, kind: str, ids: list[int], mask: int, logps: list[float] | None = None):
        """Add ids by one author. Ids of the same kind as the last span extend it.

        Without ids nothing changes: no span is empty.
        """
        if not ids:
            return
        start = len(self.ids)
        self.ids += ids
        self.mask += [mask] * len(ids)
        self.logps += [0.0] * len(ids) if logps is None else logps
        if self.spans and self.spans[-1].kind == kind:
            self.spans[-1].end = len(self.ids)
        else:
            self.spans.append(Span(kind, start, len(self.ids)))

    def relabel(self, n: int, kind: str):
        """Give the last n ids, all of the last span, to another author."""
        start = len(self.ids) - n
        last = self.spans.pop()
        if last.start < start:
            self.spans.append(Span(last.kind, last.start, start))
        self.spans.append(Span(kind, start, len(self.ids)))

    @property
    def new_tokens(self) -> int:
        """How many ids the model wrote. Length penalties count these."""
        return sum(self.mask)

    def first(self, spans: int, calls: int) -> Trajectory:
        """A copy of the first spans and calls, for somebody else to continue (ToRA)."""
        end = self.spans[spans - 1].end
        kept = copy.deepcopy(self.spans[:spans])
        return Trajectory(
            self.ids[:end], self.mask[:end], self.logps[:end], kept, self.calls[:calls]
        )

    def with_output_in_mask(self) -> Trajectory:
        """The same with tool output marked as if the model had written it: an ablation."""
        mask = list(self.mask)
        for span in self.spans:
            if span.kind == "output":
                mask[span.start : span.end] = [1] * (span.end - span.start)
        return replace(self, mask=mask)

    def text_of(self, span: Span, tokenizer: Tokenizer) -> str:
        ids = self.ids[span.start : span.end]
        return tokenizer.decode(ids[:-1] if ids[-1] in tokenizer.end_ids else ids)

    def completion(self, tokenizer: Tokenizer) -> str:
        """The words that the model wrote, its turns joined by newlines: no code, no tool output."""
        words = [self.text_of(s, tokenizer) for s in self.spans if s.kind == "text"]
        return "\n".join(words)

    def record(self, tokenizer: Tokenizer) -> dict:
        """An account of the whole, span by span, ready for JSON."""
        spans = []
        for span in self.spans:
            at = slice(span.start, span.end)
            row = {"kind": span.kind, "text": tokenizer.decode(self.ids[at])}
            row |= {"ids": self.ids[at], "mask": self.mask[at]}
            row["logps"] = [round(logp, 4) for logp in self.logps[at]]
            if self.old_logps:
                row["old_logps"] = [round(logp, 4) for logp in self.old_logps[at]]
            spans.append(row)
        calls = [asdict(call) for call in self.calls]
        return {"spans": spans, "calls": calls, "finish_reason": self.finish_reason}


class Format:
    """How calls and results are written.

    tags      <python>1+1</python><output>2</output>
    fences    the same as Markdown code blocks
    grammar   tags, and the model's words are in <think> and <answer>: see grammar.py
    text      Markdown code blocks as plain text, which any tokenizer can spell: see blocks.py

    In all styles but text the delimiters are single ids of the tokenizer. So a block opens and
    closes at an id, never inside one, and tool output, which is untrusted text, cannot contain
    them.
    """

    def __init__(self, style: str = "tags"):
        one_of("format", style, STYLES)
        self.style = style

    def delimiters(self, kind: str) -> tuple[str, str]:
        """The tags around a block: a tool's name, "output", "think" or "answer"."""
        if self.style in ("fences", "text") and kind not in ("think", "answer"):
            return f"```{kind}\n", FENCE_END
        return f"<{kind}>", f"</{kind}>"

    def prompt(self, tokenizer: Tokenizer, question: str) -> list[int]:
        """<|user|>question<|assistant|>. The question is untrusted: it cannot contain a tag."""
        words = tokenizer.encode_untrusted(question.strip())
        return [*tokenizer.user, *words, *tokenizer.assistant]

    def block(self, tokenizer: Tokenizer, kind: str, words: list[int]) -> list[int]:
        opener, closer = self.delimiters(kind)
        return [tokenizer.tags[opener], *words, tokenizer.tags[closer]]

    def output_ids(
        self, tokenizer: Tokenizer, output: str, room: int | None = None, last: int | None = None
    ) -> list[int]:
        """A tool's output between its delimiters, cut to fit `room` ids, but always closed.

        `last` is the id before it. In style text, output that does not follow a newline begins
        with one.
        """
        if self.style == "text":
            return blocks.output_ids(tokenizer, output, room, last)
        ids = tokenizer.encode_untrusted(output)
        if room is not None and len(ids) > room - 2:
            marker = tokenizer.encode_untrusted("...")
            ids = ids[: max(0, room - 2 - len(marker))] + marker[: max(0, room - 2)]
        return self.block(tokenizer, "output", ids)

    def trajectory(
        self,
        tokenizer: Tokenizer,
        question: str,
        pieces: list[tuple[str, str]],
        end: bool = True,
        start: Trajectory | None = None,
    ) -> Trajectory:
        """A demonstration as if the model had written it, from pieces (kind, text).

        Kinds are "text", a tool's name, "output", "think" and "answer". The texts are untrusted:
        only a piece's kind opens and closes a block. Continues a copy of `start`, if it is given.
        ValueError for a program that style text cannot hold.
        """
        if self.style == "text":
            pieces = blocks.with_fences(pieces)
        trajectory = copy.deepcopy(start) or Trajectory()
        trajectory.finish_reason = "stop" if end else "length"
        if start is None:
            trajectory.append("prompt", self.prompt(tokenizer, question), 0)
        for kind, text in pieces:
            if kind == "output":
                ids = self.output_ids(tokenizer, text, last=trajectory.ids[-1])
                trajectory.append("output", ids, 0)
                continue
            words = tokenizer.encode_untrusted(text)
            is_written = kind == "text" or self.style == "text"
            ids = words if is_written else self.block(tokenizer, kind, words)
            author = "text" if kind in ("think", "answer") else kind
            trajectory.append(author, ids, 1)
        if end:
            trajectory.append("text", [tokenizer.end_id], 1)
        return trajectory
