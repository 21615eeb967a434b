"""Checks of what a user sets, and what is shown to a user of other people's text."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def one_of(what: str, name: str, names: Iterable[str]):
    """ValueError unless `name` is one of `names`."""
    if name not in names:
        raise ValueError(unknown(what, name, names))


def unknown(what: str, name: str, names: Iterable[str]) -> str:
    """What to say about an unknown name: the nearest known one, or all of them."""
    near = get_close_matches(name, list(names), n=1, cutoff=0.5)
    if near:
        return f"no {what} '{name}': did you mean '{near[0]}'?"
    return f"no {what} '{name}'; there are {', '.join(names)}"


def visible(text, obeyed: str = "") -> str:
    """Text whose control and direction characters are shown, unless they are in `obeyed`.

    A model or a tool may write a terminal's escape codes, a carriage return that hides a line, or
    marks that turn the order of letters round.
    """
    return "".join(
        letter if letter.isprintable() or letter in obeyed else symbol(letter)
        for letter in str(text)
    )


def symbol(letter: str) -> str:
    return "↵" if letter == "\n" else f"<U+{ord(letter):04X}>"
