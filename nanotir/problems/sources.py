"""One function for every source of problems: the generator and the file formats."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

from nanotir.checks import Range
from nanotir.problems.files import READERS, read_lines
from nanotir.problems.generate import generate
from nanotir.problems.problem import Problem

Level = Annotated[int, Range(1, 100)]  # of generated problems
# The generated problems in all their variants, as arguments of generate().
GENERATED = {
    "generated": {},  # in the phrasings to train on
    "plain": {"wording": "plain"},  # in one phrasing for each family
    "reworded": {"wording": "reworded"},  # in phrasings that are never trained on
    "longer": {"longer": 1},  # numbers have one digit more than the longest of the level
    "longest": {"longer": 2},  # two digits more
    "spelled": {"wording": "spelled"},  # squared for ^2
    "grouped": {"wording": "grouped"},  # with commas in numbers from 1,000 on
    "unmarked": {"wording": "unmarked"},  # without the last mark
    "lowercase": {"wording": "lowercase"},
    "unspaced": {"wording": "unspaced"},  # without spaces around operators
}


def load(
    spec: str, split: str = "train", n: int | None = None, seed: int = 0, level: int = 1
) -> list[Problem]:
    """Load the problems that `spec` names.

    `spec` is "generated", "generated:lin,mul" (these families only), "gsm8k:PATH", "math:PATH",
    "svamp:PATH" or "jsonl:PATH", or another of GENERATED in place of "generated". Generated
    problems: n of them, 1000 by default. `level` is a ceiling on their difficulty ("generated@2"
    has its own), and the two splits share no question.
    Files: the first n problems, all by default; a file holds one split, so `split`, `seed` and
    `level` are ignored. Raises a ValueError of one line.
    """
    source, _, rest = spec.partition(":")
    source, has_level, own_level = source.partition("@")
    if source in GENERATED:
        level = level_of(own_level, spec) if has_level else level
        families = rest.split(",") if rest else None
        n = 1000 if n is None else n
        return generate(n, split, seed, families, level, **GENERATED[source])
    if has_level:
        raise ValueError(f"'{spec}': only generated problems have a level")
    check_source(spec)
    return read_lines(READERS[source], rest)[:n]


def specs_of(text: str) -> list[str]:
    """The specs in a list of them, as the two of "generated:lin,mul,svamp:PATH".

    A comma separates where the name of a source follows, and is part of a spec elsewhere.
    """
    sources = "|".join([*GENERATED, *READERS])
    return re.split(rf",\s*(?=(?:{sources})(?:[@:,]|$))", text)


def check_source(spec: str):
    """ValueError if there is no such source."""
    source = spec.partition(":")[0].partition("@")[0]
    if Path(spec).is_file():
        raise ValueError(f"'{spec}' is a file: name its format as well, as jsonl:{spec}")
    if source not in (*READERS, *GENERATED):
        raise ValueError(f"no data source '{source}': {_hint(source)}")


def is_generated(spec: str) -> bool:
    return spec.partition(":")[0].partition("@")[0] in GENERATED


def level_of(text: str, spec: str) -> int:
    if text not in ("1", "2", "3"):
        raise ValueError(f"'{spec}': the level after the @ is 1, 2 or 3")
    return int(text)


def _hint(source: str) -> str:
    near = get_close_matches(source, [*READERS, *GENERATED], n=1)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"there are {', '.join([*GENERATED, *READERS])}"
