"""How a question is put: the phrasings of each family, and the forms in which people type.

The families ask every question in one way, their plain way. `reword` asks the same in other words:
it reads the parts of the plain question by the family's first phrasing and puts them into another.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import NamedTuple

PHRASINGS = Path(__file__).with_name("phrasings.txt")
HELD_OUT = "held out: "
POLITE_SHARE = 0.1  # of the questions have polite words around them
FORM_SHARES = {  # of all questions
    "spelled": 0.25,
    "grouped": 0.2,
    "unmarked": 0.25,
    "lowercase": 0.5,
    "unspaced": 0.25,
}
SPELLED = {  # what is written -> what some people write in its place
    r"\bgcd\b(?!\()": "greatest common divisor",
    r"\blcm\b(?!\()": "least common multiple",
    r"\bmod\b": "modulo",
    r"(?<=\w)\^2\b": " squared",
    r"(?<=\w)\^3\b": " cubed",
}


class Phrasings(NamedTuple):
    """The ways to ask the questions of a family: those to train on, and those never trained on."""

    trained: list[str]
    held_out: list[str]

    def parts(self, plain: str) -> dict[str, str]:
        """The parts of a plain question, by their names in the first phrasing."""
        match = re.fullmatch(_pattern(self.trained[0]), plain)
        assert match, f"'{plain}' is not of the form '{self.trained[0]}'"
        return match.groupdict()


@cache
def phrasings() -> dict[str, Phrasings]:
    """All sections of phrasings.txt."""
    found: dict[str, Phrasings] = {}
    for line in PHRASINGS.read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if line == text:  # not indented: the name of a family
            family = found[text] = Phrasings([], [])
        elif text.startswith(HELD_OUT):
            family.held_out.append(text.removeprefix(HELD_OUT))
        else:
            family.trained.append(text)
    return found


@cache
def _pattern(phrasing: str) -> str:
    """A regular expression with a named group for each {part}. The same part twice is equal."""
    pattern, seen = "", set()
    for text, part in re.findall(r"([^{]*)(?:\{(\w+)\})?", phrasing):
        pattern += re.escape(text)
        if part:
            pattern += f"(?P={part})" if part in seen else f"(?P<{part}>.+?)"
            seen.add(part)
    return pattern


def reword(plain: str, family: str, rng: Random, held_out: bool = False) -> str:
    """The question in one of its phrasings and forms. A family without phrasings keeps its own."""
    if family not in phrasings():
        return plain
    question = _choice(family, rng, held_out).format(**phrasings()[family].parts(plain))
    if rng.random() < POLITE_SHARE:
        question = _choice("polite", rng, held_out).format(question=question)
    for name, form in FORMS.items():
        if rng.random() < FORM_SHARES[name]:
            question = form(question)
    return question


def _choice(section: str, rng: Random, held_out: bool) -> str:
    trained, never = phrasings()[section]
    return rng.choice(never if held_out else trained)


def spelled(question: str) -> str:
    """With words in place of abbreviations and small powers."""
    for pattern, words in SPELLED.items():
        question = re.sub(pattern, words, question)
    return question


def grouped(question: str) -> str:
    """With commas in numbers from 1,000 on, unless it has commas of its own."""
    if "," in question:
        return question
    return re.sub(r"(?<![\w.^])(?<!\*\*)\d{4,}(?!\w|\.\d)", lambda n: f"{int(n[0]):,}", question)


def unmarked(question: str) -> str:
    """Without its last mark."""
    return question.rstrip("?.!")


def lowercase(question: str) -> str:
    return question.lower()


def unspaced(question: str) -> str:
    """Without spaces around operators, and after the commas between numbers."""
    question = re.sub(r"(?<=[\w)\]]) ([-+*/=:×÷−]) (?=[-\dxy(\[])", r"\1", question)
    question = re.sub(r"(?<=\d) x (?=\d)", "x", question)
    question = re.sub(r" =$", "=", question)
    return re.sub(r"(?<=[\d\]]), (?=[-\d(\[])", ",", question)


FORMS: dict[str, Callable[[str], str]] = {
    "spelled": spelled,
    "grouped": grouped,
    "unmarked": unmarked,
    "lowercase": lowercase,
    "unspaced": unspaced,
}
