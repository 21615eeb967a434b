"""What a rollout is, and how it is written down.

A trajectory's ids are exactly what the model read and wrote, in order. Ids are only ever appended: nothing is decoded and encoded
again, because BPE is no bijection and the log-probs would then belong to other ids. Everything else runs parallel to the ids:
`trained` (1 where the model chose the id), `logps` (its log-prob then), and spans that say who wrote what.
"""

from __future__ import annotations

import copy
import re
from dataclasses import asdict, dataclass, field, replace

import torch

from nanotir.tokenizer import ASSISTANT, END, USER, Tokenizer
from nanotir.tools.tool import ToolResult

OBSERVATIONS = ("masked", "counted", "learned")
FINISH_REASONS = ("stop", "length", "budget", "cancelled")


@dataclass
class Span:
    """ids[start:end] were written by one author: kind is "prompt", "text", "output", or the name of the tool that is called."""

    kind: str
    start: int
    end: int


@dataclass
class Call:
    tool: str
    code: str  # exactly the text between the tags
    result: ToolResult


@dataclass
class Trajectory:
    ids: list[int] = field(default_factory=list)
    trained: list[int] = field(
        default_factory=list
    )  # 1 exactly on ids the model chose, the stop id included
    logps: list[float] = field(
        default_factory=list
    )  # the sampler's log-probs; 0 where nothing was sampled
    spans: list[Span] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    finish_reason: str = ""  # stop: it ended itself. length: out of tokens. budget: it wanted one call too many. cancelled: by us.

    def append(self, kind: str, ids, trained: int, logps=None):
        """Add ids by one author. Text that goes on where the last span ended becomes part of it."""
        start = len(self.ids)
        self.ids += ids
        self.trained += [trained] * len(ids)
        self.logps += [0.0] * len(ids) if logps is None else logps
        if self.spans and self.spans[-1].kind == kind:
            self.spans[-1].end = len(self.ids)
        else:
            self.spans.append(Span(kind, start, len(self.ids)))

    @property
    def new_tokens(self) -> int:
        """How many ids the model wrote: what costs it something, and what length penalties count."""
        return sum(self.trained)

    def first(self, spans: int, calls: int) -> Trajectory:
        """A copy of the first spans and calls."""
        end = self.spans[spans - 1].end
        return Trajectory(
            self.ids[:end],
            self.trained[:end],
            self.logps[:end],
            copy.deepcopy(self.spans[:spans]),
            self.calls[:calls],
        )

    def unmasked(self) -> Trajectory:
        """The same with tool output marked as if the model had written it: what a trainer without observation mask learns from."""
        outputs = {
            i for span in self.spans if span.kind == "output" for i in range(span.start, span.end)
        }
        return replace(
            self, trained=[int(i in outputs or chosen) for i, chosen in enumerate(self.trained)]
        )

    def turns(self, tokenizer: Tokenizer) -> list[tuple[str, str]]:
        """All that follows the prompt as (kind, text) pieces; blocks include their delimiters."""
        return [
            (s.kind, tokenizer.decode(self.ids[s.start : s.end]).removesuffix(END))
            for s in self.spans
            if s.kind != "prompt"
        ]

    def texts(self, tokenizer: Tokenizer, kind: str = "text") -> list[str]:
        """The decoded spans of one kind, in order; by default the words the model wrote: no code, no tool output, no stop id."""
        return [
            tokenizer.decode(self.ids[s.start : s.end]).removesuffix(END)
            for s in self.spans
            if s.kind == kind
        ]

    def record(self, tokenizer: Tokenizer) -> dict:
        """A JSON-ready account of the whole, span by span, for traces.jsonl."""
        return {
            "spans": [
                {
                    "kind": s.kind,
                    "text": tokenizer.decode(self.ids[s.start : s.end]),
                    "ids": self.ids[s.start : s.end],
                    "trained": self.trained[s.start : s.end],
                    "logps": [round(p, 4) for p in self.logps[s.start : s.end]],
                }
                for s in self.spans
            ],
            "calls": [asdict(call) for call in self.calls],
            "finish_reason": self.finish_reason,
        }


STYLES = {  # what opens and what closes a block
    "tags": lambda name: (f"<{name}>", f"</{name}>"),
    "fences": lambda name: (f"```{name}\n", "\n```\n"),
    "grammar": lambda name: (
        f"<{name}>",
        f"</{name}>",
    ),  # tags for the model's own words too: see grammar_error
}


class Format:
    """How calls and results are written: with tags, <python>1+1</python><output>2</output>, or with Markdown fences. In the style
    "grammar" every word has its tag: thoughts stand in <think>, the answer in <answer>.

    In all styles the delimiters are single ids of the tokenizer, so a block opens and closes at an id, never inside one, and tool
    output (untrusted text) cannot contain them.
    """

    def __init__(self, style: str = "tags", tools: tuple[str, ...] = ("python", "search")):
        if style not in STYLES:
            raise ValueError(f"no format '{style}'; there are {', '.join(STYLES)}")
        self.style, self.tools = style, tuple(tools)

    def delimiters(self, kind: str) -> tuple[str, str]:
        """What opens and what closes a block of this kind: a tool's name, "output", or a part of the model's words, "think" or "answer"."""
        return STYLES["tags" if kind in ("think", "answer") else self.style](kind)

    def prompt(self, tokenizer: Tokenizer, question: str) -> list[int]:
        """<|user|>question<|assistant|>. The question is somebody else's text: it cannot contain a tag."""
        return [
            tokenizer.tags[USER],
            *tokenizer.encode_untrusted(question),
            tokenizer.tags[ASSISTANT],
        ]

    def output_ids(self, tokenizer: Tokenizer, output: str, room: int | None = None) -> list[int]:
        """A tool's output between its delimiters; cut where `room` ids would not hold it, but always closed."""
        opener, closer = (tokenizer.tags[tag] for tag in self.delimiters("output"))
        ids = tokenizer.encode_untrusted(output)
        if room is not None and len(ids) > room - 2:
            marker = tokenizer.encode_untrusted("...")
            ids = ids[: max(0, room - 2 - len(marker))] + marker[: max(0, room - 2)]
        return [opener, *ids, closer]

    def trajectory(
        self,
        tokenizer: Tokenizer,
        question: str,
        pieces,
        end: bool = True,
        start: Trajectory | None = None,
    ) -> Trajectory:
        """A demonstration as if the model had written it. Pieces are (kind, text): "text", a tool's name, or "output".

        It goes on from `start`, if that is given, which stays as it is. The texts may come from a file, so a tag inside them is plain
        text: only a piece's kind opens and closes a block.
        """
        trajectory = copy.deepcopy(start) or Trajectory()
        trajectory.finish_reason = "stop" if end else "length"
        if start is None:
            trajectory.append("prompt", self.prompt(tokenizer, question), 0)
        for kind, text in pieces:
            if kind == "text":
                trajectory.append(kind, tokenizer.encode_untrusted(text), 1)
            elif kind == "output":
                trajectory.append(kind, self.output_ids(tokenizer, text), 0)
            else:
                opener, closer = (tokenizer.tags[tag] for tag in self.delimiters(kind))
                words = kind in ("think", "answer")
                trajectory.append(
                    "text" if words else kind,
                    [opener, *tokenizer.encode_untrusted(text), closer],
                    1,
                )
        if end:
            trajectory.append("text", [tokenizer.tags[END]], 1)
        return trajectory

    def parse(self, text: str) -> list[tuple[str, str]]:
        """The pieces of a transcript that somebody else wrote out as text, in this style. A block that is never closed is text."""
        pieces, position = [], 0
        for start, end, kind, body in self._blocks(text):
            if text[position:start].strip():
                pieces.append(("text", text[position:start]))
            pieces.append((kind, body))
            position = end
        return pieces + ([("text", text[position:])] if text[position:].strip() else [])

    def _blocks(self, text: str):
        kinds = "|".join((*self.tools, "output"))
        pattern = (
            rf"<({kinds})>(.*?)</\1>"
            if self.style != "fences"
            else rf"```({kinds})\n(.*?)\n?```(?:\n|$)"
        )
        for match in re.finditer(pattern, text, re.DOTALL):
            yield *match.span(), match[1], match[2]


def grammar_error(turns) -> str | None:
    """What breaks TAPO's grammar in an answer, or None: (<think>..</think> | call output)* <answer>..</answer>, and no words outside.

    The paper's <code> and <response> are <python> and <output> here.
    """
    inside, answered = None, False
    for (kind, text), after in zip(turns, [kind for kind, _ in turns[1:]] + [None]):
        if answered and text.strip():
            return "nothing may follow the answer"
        if kind not in ("text", "output") and (
            inside or after != "output" or not text.endswith(f"</{kind}>")
        ):
            return "a call inside <think> or <answer>" if inside else "a call without a result"
        for part in re.split(r"(</?(?:think|answer)>)", text) if kind == "text" else ():
            if answered and part.strip() or inside and part.startswith(("<think>", "<answer>")):
                return (
                    "nothing may follow the answer" if answered else f"<{inside}> holds another tag"
                )
            if part in ("<think>", "<answer>"):
                inside = part[1:-1]
            elif part in ("</think>", "</answer>"):
                if part[2:-1] != inside:
                    return f"{part} closes nothing"
                inside, answered = None, inside == "answer"
            elif part.strip() and not inside:
                return "words outside <think> and <answer>"
    if inside:
        return f"<{inside}> is never closed"
    return None if answered else "it must end with an <answer>"


@dataclass
class Batch:
    """Trajectories as tensors, right-padded: ids, mask, logps and real are (B, T); `rows` says which trajectory each row is."""

    ids: torch.Tensor
    mask: torch.Tensor  # True exactly on ids that the model chose
    logps: torch.Tensor  # the sampler's
    rows: list[int]
    real: torch.Tensor  # False exactly on padding


def collate(trajectories, pad_id: int, rows=None, device="cpu") -> Batch:
    """One batch of the trajectories (or of those numbered in `rows`), padded to the longest of them."""
    rows = list(range(len(trajectories)) if rows is None else rows)
    chosen = [trajectories[row] for row in rows]
    width = max(len(t.ids) for t in chosen)
    pad = lambda values, fill: values + [fill] * (width - len(values))
    return Batch(
        torch.tensor([pad(t.ids, pad_id) for t in chosen], device=device),
        torch.tensor([pad(t.trained, 0) for t in chosen], device=device).bool(),
        torch.tensor([pad(t.logps, 0.0) for t in chosen], device=device),
        rows,
        torch.tensor([pad([1] * len(t.ids), 0) for t in chosen], device=device).bool(),
    )


def micro_batches(trajectories, pad_id: int, max_tokens: int, device="cpu"):
    """All trajectories, in batches of at most max_tokens (padding counted) and of similar length: sorted, and none shorter than two
    thirds of its batch's longest, which halves the padding. Longest first, so that what does not fit in memory fails at once. A row
    of more than max_tokens makes a batch of its own."""
    length = lambda i: len(trajectories[i].ids)
    order = sorted(range(len(trajectories)), key=length, reverse=True)
    while order:
        longest = length(order[0])
        fit = sum(3 * length(i) >= 2 * longest for i in order[: max(1, max_tokens // longest)])
        yield collate(trajectories, pad_id, order[:fit], device)
        order = order[fit:]
