"""Prints a trajectory in colours: the model's text, its calls and the output of tools."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from nanotir.checks import visible
from nanotir.tokenizer import Tokenizer
from nanotir.trajectory import Trajectory

# ANSI codes of a span's kind: dim, plain, yellow, cyan. A call's kind is the name of its tool. A
# hint is not the model's: it is about the answer.
COLOURS = {"prompt": "2", "text": "0", "output": "33", "call": "36", "hint": "2"}


def colours_wanted(stream: TextIO | None = None) -> bool:
    """Whether to print in colour: on terminals that can, unless NO_COLOR (no-color.org) is set."""
    stream = stream or sys.stdout
    is_dumb = os.environ.get("TERM") == "dumb"
    return stream.isatty() and not is_dumb and not os.environ.get("NO_COLOR")


def paint(kind: str, text: str, colour: bool) -> str:
    """The text of a span of this kind, with the codes of its colour around it.

    Other codes in the text are shown, not obeyed: a model or a tool wrote it.
    """
    text = visible(text, obeyed="\n\t")
    if not colour or not text:
        return text
    return f"\x1b[{COLOURS.get(kind, COLOURS['call'])}m{text}\x1b[0m"


def show(trajectory: Trajectory, tokenizer: Tokenizer, colour: bool | None = None) -> str:
    """The answer as one text, as Stream prints it. `colour=None` decides by the terminal."""
    if colour is None:
        colour = colours_wanted()
    parts = []
    for span in trajectory.spans:
        if span.kind != "prompt":
            ids = trajectory.ids[span.start : span.end]
            text = tokenizer.decode([id for id in ids if id not in tokenizer.end_ids])
            parts.append(paint(span.kind, text, colour))
    return "".join(parts)


class Stream:
    """Prints one row while it is being sampled: pass it as `watch` to Sampler.generate."""

    def __init__(self, tokenizer: Tokenizer, row: int = 0, out: TextIO | None = None):
        self.tokenizer = tokenizer
        self.row = row
        self.out = out or sys.stdout
        self.colour = colours_wanted(self.out)
        # The span that is being written: its kind, its ids, and what of it is printed already.
        self.kind = ""
        self.ids = []
        self.printed = ""

    def __call__(self, row: int, kind: str, ids: list[int]):
        if row != self.row:
            return
        if kind != self.kind:
            self.kind = kind
            self.ids = []
            self.printed = ""
        self.ids += ids
        # A character may need several ids. So decode the span from its start, and wait while its
        # end is not yet a whole character.
        text = self.tokenizer.decode([id for id in self.ids if id not in self.tokenizer.end_ids])
        if text.startswith(self.printed) and not text.endswith("\ufffd"):
            new = paint(kind, text[len(self.printed) :], self.colour)
            print(new, end="", file=self.out, flush=True)
            self.printed = text
