"""A trajectory in colour: what the model said, what it called, what the tool answered, told apart at a glance."""

from __future__ import annotations

import os
import sys

COLOURS = {
    "prompt": "2",
    "text": "0",
    "output": "33",
    "call": "36",
}  # ANSI: dim, plain, yellow, cyan


def colours_wanted(stream=None) -> bool:
    """Colour goes to terminals only, and not where NO_COLOR (no-color.org) is set."""
    stream = stream or sys.stdout
    return stream.isatty() and not os.environ.get("NO_COLOR")


def paint(kind: str, text: str, colour: bool) -> str:
    """Text by one author, in that author's colour. `kind` is a span's: prompt, text, output, or a tool's name."""
    return f"\x1b[{COLOURS.get(kind, COLOURS['call'])}m{text}\x1b[0m" if colour and text else text


def show(trajectory, tokenizer, colour: bool | None = None) -> str:
    """The whole trajectory as one printable text."""
    colour = colours_wanted() if colour is None else colour
    return "".join(
        paint(s.kind, tokenizer.decode(trajectory.ids[s.start : s.end]), colour)
        for s in trajectory.spans
    )


class Stream:
    """Prints one row while it is being sampled: pass it as `watch` to Sampler.generate.

    A character may be spelled by several ids, so a span is decoded from its start every time and only what is new and whole is printed.
    """

    def __init__(self, tokenizer, row: int = 0, out=None):
        self.tokenizer, self.row, self.out = tokenizer, row, out or sys.stdout
        self.colour = colours_wanted(self.out)
        self.kind, self.ids, self.printed = "", [], ""

    def __call__(self, row: int, kind: str, ids):
        if row != self.row:
            return
        if kind != self.kind:
            self.kind, self.ids, self.printed = kind, [], ""
        self.ids += ids
        text = self.tokenizer.decode([id for id in self.ids if id != self.tokenizer.end_id])
        if text.startswith(self.printed) and not text.endswith("\ufffd"):
            print(
                paint(kind, text[len(self.printed) :], self.colour),
                end="",
                file=self.out,
                flush=True,
            )
            self.printed = text
