"""Generated problems: any number of them, at a chosen difficulty, with answers that are known.

families.py names the families of problems, phrasings.txt the ways to ask them. A problem belongs
to the training split or to the test split by a checksum of its plain question, that of its family.
So the two splits share no problem, however it is put.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle, islice
from random import Random

from nanotir.checks import one_of
from nanotir.problems.families import FAMILIES
from nanotir.problems.numbers import Longer
from nanotir.problems.problem import Problem
from nanotir.problems.wording import FORMS, reword
from nanotir.problems.world import documents

__all__ = ["documents", "generate", "split_of"]

TEST_SHARE = 10  # one question in ten belongs to the test split
DRAWS = 1000  # tries for a question of the split
# The words of a question: those to train on, those never trained on, the family's own, or those to
# train on in a form that people type.
WORDINGS = ("trained", "reworded", "plain", *FORMS)
ROUND = "ABCADE"  # the order in which the kinds take turns; A has half of all families


def generate(
    n: int,
    split: str = "train",
    seed: int = 0,
    families: list[str] | None = None,
    level: int = 1,
    wording: str = "trained",
    longer: int = 0,
) -> list[Problem]:
    """Generate n problems of one split, from the named families (by default, all of them).

    `wording` is one of WORDINGS. With `longer`, the numbers that grow with the level have so many
    digits more than the longest of this level, and families without numbers are left out. Problem
    i depends only on the arguments but n, and on i. So a smaller n gives the first of the same
    problems, and another wording gives the same problems in other words.
    """
    names = [name.strip() for name in families or FAMILIES]
    for name in names:
        one_of("family", name, FAMILIES)
        one_of("kind of problem", FAMILIES[name][0], tuple(ROUND))
    if longer:
        names = [name for name in names if _has_numbers(name, level)]
        n = n if names else 0
    problems = []
    for i, name in enumerate(islice(_turns(names), n)):
        key = f"{seed} {split} {i}"
        rng = Random(key)
        if longer:
            rng = Longer(key)
            rng.extra = longer
        problem = _draw(name, rng, split, level)
        question = in_words(problem, wording, Random(f"{key} words"))
        problems.append(replace(problem, question=question))
    return problems


def _has_numbers(name: str, level: int) -> bool:
    _, make = FAMILIES[name]
    return any(character.isdigit() for character in make(Random(0), level).question)


def in_words(problem: Problem, wording: str, rng: Random) -> str:
    """The plain question of a problem, put in one of the WORDINGS."""
    if wording == "plain":
        return problem.question
    question = reword(problem.question, problem.family, rng, held_out=wording == "reworded")
    return FORMS[wording](question) if wording in FORMS else question


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


def split_of(plain: str) -> str:
    """The split that a plain question belongs to, "train" or "test"."""
    return "test" if zlib.crc32(plain.encode()) % TEST_SHARE == 0 else "train"


def _draw(name: str, rng: Random, split: str, level: int) -> Problem:
    # Draw again until the question belongs to the split: about ten times for the test split.
    kind, make = FAMILIES[name]
    for _ in range(DRAWS):
        problem = make(rng, level)
        if split_of(problem.question) == split:
            return replace(problem, family=name, kind=kind)
    raise ValueError(f"family '{name}' has too few questions: none is in the {split} split")
