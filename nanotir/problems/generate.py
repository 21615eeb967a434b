"""Generated problems: any number of them, at a chosen difficulty, with answers that are known.

The families of problems are in families.py. A question belongs to the training split or to the test
split by a checksum of its text, so the two splits share no question.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle, islice
from random import Random

from nanotir.checks import one_of
from nanotir.problems.families import FAMILIES
from nanotir.problems.problem import Problem
from nanotir.problems.world import documents

__all__ = ["documents", "generate", "split_of"]

TEST_SHARE = 10  # one question in ten belongs to the test split
DRAWS = 1000  # tries for a question of the split
ROUND = "ABCADE"  # the order in which the kinds take turns; A has half of all families


def generate(
    n: int,
    split: str = "train",
    seed: int = 0,
    families: list[str] | None = None,
    level: int = 1,
) -> list[Problem]:
    """Generate n problems of one split, from the named families (by default, all of them).

    Problem i depends only on the seed, the split, the families, the level and i. So the same
    arguments give the same problems, and a smaller n gives the first of them.
    """
    names = [name.strip() for name in families or FAMILIES]
    for name in names:
        one_of("family", name, FAMILIES)
        one_of("kind of problem", FAMILIES[name][0], ROUND)
    problems = []
    for i, name in enumerate(islice(_turns(names), n)):
        rng = Random(f"{seed} {split} {i}")
        problems.append(_draw(name, rng, split, level))
    return problems


def _turns(names: list[str]) -> Iterator[str]:
    """Endless family names: the kinds take turns as in ROUND, and so do the families of a kind."""
    of_kind: dict[str, list[str]] = {}
    for name in names:
        kind, _ = FAMILIES[name]
        of_kind.setdefault(kind, []).append(name)
    turns = {kind: cycle(members) for kind, members in of_kind.items()}
    for kind in cycle(ROUND):
        if kind in turns:
            yield next(turns[kind])


def split_of(question: str) -> str:
    """The split that a question belongs to, "train" or "test"."""
    return "test" if zlib.crc32(question.encode()) % TEST_SHARE == 0 else "train"


def _draw(name: str, rng: Random, split: str, level: int) -> Problem:
    # Draw again until the question belongs to the split: about ten times for the test split.
    kind, make = FAMILIES[name]
    for _ in range(DRAWS):
        problem = make(rng, level)
        if split_of(problem.question) == split:
            return replace(problem, family=name, kind=kind)
    raise ValueError(f"family '{name}' has too few questions: none is in the {split} split")
