"""Checks of what a user sets, and what is shown to a user of other people's text.

A settings class declares in its fields' types which numbers make sense: `steps: Whole = 32`. Its
`__post_init__` calls check_settings, and `--help` shows the range.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, get_origin, get_type_hints

TINY, HUGE = 1e-12, 1e12  # beyond these sizes, float32 rounds a setting away or overflows


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, without `low` itself if `above`.

    No range holds nan, infinity, or a size below TINY other than 0.
    """

    low: float
    high: float = HUGE
    above: bool = False

    def __contains__(self, number: float) -> bool:
        too_small = abs(number) < TINY and number != 0 or (self.above and number == self.low)
        return self.low <= number <= self.high and not too_small

    def __str__(self) -> str:
        if self.high < HUGE and not self.above:
            return f"between {self.low} and {self.high}"
        lowest = f"above {self.low}" if self.above else f"at least {self.low}"
        return lowest if self.high == HUGE else f"{lowest} and at most {self.high}"


Count = Annotated[int, Range(1)]
Several = Annotated[int, Range(2)]
Whole = Annotated[int, Range(0)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Amount = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, above=True)]
Share = Annotated[float, Range(0, 1)]
Part = Annotated[float, Range(0, 1, above=True)]

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


@functools.cache  # the texts of annotations are compiled anew each time
def hints_of(cls) -> dict:
    """{field: type} of a settings class, ranges included."""
    return get_type_hints(cls, cls.__post_init__.__globals__, include_extras=True)


def range_of(hint) -> Range | None:
    """The range that a type declares, if it is Annotated with one."""
    return hint.__metadata__[0] if get_origin(hint) is Annotated else None


def check_settings(settings, section: str = ""):
    """ValueError unless each field of a settings object has its declared type and range.

    `section` is the part of the flags' names before the dot, as in --rl.steps.
    """
    for name, hint in hints_of(type(settings)).items():
        flag = f"{section}.{name}" if section else name
        check_value("--" + flag.replace("_", "-"), getattr(settings, name), hint)


def check_value(what: str, value, hint):
    allowed = range_of(hint)
    kind = hint.__origin__ if allowed else hint
    right = isinstance(value, (int, float) if kind is float else kind)
    if not right or (kind is not bool and isinstance(value, bool)):
        raise ValueError(f"{what} must be {KINDS.get(kind, 'a section of settings')}: {value!r}")
    if allowed and value not in allowed:
        senseless = "" if value == 0 or TINY <= abs(value) <= HUGE else ", and of a sensible size"
        raise ValueError(f"{what} must be {allowed}{senseless}, not {value}")


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
