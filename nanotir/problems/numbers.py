"""The random numbers of generated problems, and how they are written."""

from __future__ import annotations

from random import Random


class Longer(Random):
    """A random generator that makes every number longer than any other generator would."""

    extra = 1  # so many digits more than the most that number() asks for


def number(rng: Random, most: int, least: int = 1) -> int:
    """A random number of one digit to `most` digits, each length as often, but at least `least`."""
    digits = most + rng.extra if isinstance(rng, Longer) else rng.randint(1, most)
    smallest = 10 ** (digits - 1) if digits > 1 else 0
    return max(rng.randrange(smallest, 10**digits), least)


def everyday(rng: Random, most: int, least: int = 1) -> int:
    """Such a number and, one time in four, a round one: 4000 in place of 4321."""
    n = number(rng, most, least)
    if rng.random() < 1 / 4:
        zeros = rng.randrange(len(str(n)))
        n -= n % 10**zeros
    return max(n, least)


def integer(rng: Random, most: int) -> int:
    """Such a number and, one time in three, its negative. Never 0."""
    n = number(rng, most)
    return -n if rng.random() < 1 / 3 else n


def coefficient(rng: Random, most: int) -> int:
    """Such a number above 1 or, one time in five, 1, which is not written."""
    return 1 if rng.random() < 1 / 5 else number(rng, most, 2)


def signed(n: int, symbol: str = "") -> str:
    """A term inside a sum: " + 3", " - 3x", " + x". Empty for 0 times the symbol."""
    if symbol and n == 0:
        return ""
    size = "" if symbol and abs(n) == 1 else abs(n)
    sign = "-" if n < 0 else "+"
    return f" {sign} {size}{symbol}"


def total(terms: list[tuple[int, str]]) -> str:
    """Terms (number, symbol) as a sum: 3x - 5. Those of 0 are left out, unless all are 0."""
    text = "".join(signed(n, symbol) for n, symbol in terms if n)
    if not text:
        return "0"
    return text[3:] if text.startswith(" + ") else f"-{text[3:]}"
