"""Rational expressions, computed exactly, and how many digits of a decimal must be right."""

import math
import operator
from fractions import Fraction

from nanotir.answers.trees import digits, num

MAX_BITS = 200_000  # of a power
MAX_COUNT = 3000  # of a factorial


def exact(tree: tuple) -> Fraction | None:
    """Return the value of a rational expression; None of any other."""
    kind = tree[0]
    if kind == "num":
        return tree[1]
    if kind == "pct":
        kind, tree = "/", ("/", tree[1], num(100))
    if kind not in OPERATIONS and kind not in FOLDS:
        return None
    arguments = [exact(part) for part in tree[1:]]
    if None in arguments:
        return None
    if kind in COUNTING:
        if any(n.denominator != 1 or not 0 <= n < MAX_COUNT for n in arguments):
            return None
        arguments = [int(n) for n in arguments]
    try:
        if kind in FOLDS:
            return FOLDS[kind](arguments)
        result = OPERATIONS[kind](*arguments)
    except ZeroDivisionError:
        return None
    return None if result is None else Fraction(result)


def power(a: Fraction, n: Fraction) -> Fraction | None:
    bits = max(a.numerator.bit_length(), a.denominator.bit_length())
    if n.denominator == 1 and bits * abs(n) < MAX_BITS:
        return a**n.numerator
    return None


FOLDS = {"+": sum, "*": math.prod, "max": max, "min": min}
OPERATIONS = {"/": operator.truediv, "neg": operator.neg, "^": power, "abs": abs}
COUNTING = {"!": math.factorial, "binom": math.comb}
OPERATIONS |= {**COUNTING, "floor": math.floor}


def first_digits(tree: tuple, a: Fraction, b: Fraction) -> bool:
    """Whether a, the value of a tree with decimals, has the first digits of b.

    The digits of a may be rounded or cut off. There must be six, or 15, the precision of a float,
    where b is a decimal as well. An integer must be given exactly.
    """
    is_decimal = 10 ** min(b.denominator.bit_length(), 99) % b.denominator == 0
    n = 15 if is_decimal else 6
    if digits(tree) < n or b.denominator == 1 or b == 0:
        return False
    magnitude = math.floor(math.log10(abs(b.numerator)) - math.log10(b.denominator))
    scale = Fraction(10) ** (n - 1 - magnitude)
    return round(a * scale) in (round(b * scale), math.trunc(b * scale))
