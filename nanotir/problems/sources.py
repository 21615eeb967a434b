"""One function for every source of problems: the generator and the file formats."""

from __future__ import annotations

from difflib import get_close_matches

from nanotir.problems.files import READERS, read_lines
from nanotir.problems.generate import generate
from nanotir.problems.problem import Problem


def load(
    spec: str, split: str = "train", n: int | None = None, seed: int = 0, level: int = 1
) -> list[Problem]:
    """Load the problems that `spec` names.

    `spec` is "generated", "generated:lin,mul" (these families only), "gsm8k:PATH", "math:PATH" or
    "jsonl:PATH". Generated problems: n of them, 1000 by default. `level` sets their difficulty, and
    the two splits share no question. Files: the first n problems, all by default; a file holds one
    split, so `split`, `seed` and `level` are ignored. Raises a ValueError of one line.
    """
    source, _, rest = spec.partition(":")
    if source == "generated":
        families = rest.split(",") if rest else None
        return generate(1000 if n is None else n, split, seed, families, level)
    if source not in READERS:
        raise ValueError(f"no data source '{source}': {_hint(source)}")
    return read_lines(READERS[source], rest)[:n]


def _hint(source: str) -> str:
    near = get_close_matches(source, [*READERS, "generated"], n=1)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"there are generated, {', '.join(READERS)}"
