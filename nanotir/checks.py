"""Checks of what a user sets, with the error that the user reads."""

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
