"""Expressions by their values: exactly where both are rational, else to 50 digits at a few random points.

Differences are judged relative to the numbers, never absolutely: 1/300! is not 0.
"""

from __future__ import annotations

import functools
import math
import random
from contextlib import suppress
from fractions import Fraction
from types import SimpleNamespace

PRECISION = 170  # bits, about 50 digits
MAX_BITS = 200_000  # of an exact power


class Undefined(ArithmeticError):
    """The expression has no value here, or none that this module computes."""


def by_value(p, g) -> bool:
    """Two expressions: exactly if both are rational, else by their values at random points."""
    if unknowns(p) != unknowns(g):
        return False
    a, b = exact(p), exact(g)
    if a is not None and b is not None:
        return a == b or first_digits(p, a, b) or first_digits(g, b, a)
    compared = False
    for found in values(p, g):
        compared = agree(p, g, *found)
        if not compared:
            break
    return compared


def first_digits(tree, a: Fraction, b: Fraction) -> bool:
    """Whether a, the value of a tree with decimals, agrees with b in its first six digits, rounded or cut off; in 15, the precision of a
    float, where b is a decimal as well; in all where b is an integer."""
    n = 15 if 10 ** min(b.denominator.bit_length(), 99) % b.denominator == 0 else 6
    if digits(tree) < n or b.denominator == 1 or b == 0:
        return False
    scale = Fraction(10) ** (
        n - 1 - math.floor(math.log10(abs(b.numerator)) - math.log10(b.denominator))
    )
    return round(a * scale) in (round(b * scale), math.trunc(b * scale))


def digits(tree) -> int:
    """Significant digits of the longest decimal in a tree; 0 without any."""
    return (
        tree[2]
        if tree[0] == "num"
        else max((digits(part) for part in tree if isinstance(part, tuple) and part), default=0)
    )


def unknowns(tree) -> set:
    return (
        {tree[1]}
        if tree[:1] == ("sym",)
        else set().union(*(unknowns(part) for part in tree if isinstance(part, tuple)))
    )


def values(p, g):
    """(value of p, value of g, where) at three points of positive numbers, then at three of any sign, as far as all is real there: with
    negative numbers a root or a logarithm has several complex values. Points where one is undefined are left out."""
    names, draw = sorted(unknowns(p)), random.Random(repr(g))
    for k in range(6 if names else 1):
        at = {
            name: Fraction(draw.randrange(200, 3000), 1000) * (draw.choice((-1, 1)) if k > 2 else 1)
            for name in names
        }
        with suppress(Undefined):
            yield value(p, at, PRECISION, k > 2), value(g, at, PRECISION, k > 2), at


def agree(p, g, a, b, at: dict) -> bool:
    """Whether the values a and b of p and g are one number: to 30 digits, or to six if one has decimals of six digits."""
    m, largest = operations().libmp, max(size(a), size(b))
    difference = size(m.mpc_sub(a, b, PRECISION, "n"))
    if max(digits(p), digits(g)) < 6:
        return difference < largest - 100 or difference < -50 and vanishes(("+", p, ("neg", g)), at)
    if at or not a[1] == b[1] == m.fzero:
        return difference < largest - 18
    x, y = (Fraction(*m.to_rational(z[0])) for z in (a, b))
    return first_digits(p, x, y) or first_digits(g, y, x)


def size(z) -> int:
    """Exponent of two just above |z|; far below all others for 0."""
    return max(part[2] + part[3] if part[1] else -(10**30) for part in z)


def vanishes(tree, at: dict) -> bool:
    """Whether what is left of a difference is rounding: it shrinks with the precision, however small the numbers are."""
    return size(value(tree, at, 3 * PRECISION)) < size(value(tree, at, PRECISION)) - PRECISION


def exact(tree) -> Fraction | None:
    """The value of a rational expression; None of any other."""
    if tree[0] == "num" or tree[0] not in EXACT:
        return tree[1] if tree[0] == "num" else None
    arguments = [exact(part) for part in tree[1:]]
    try:
        return None if None in arguments else EXACT[tree[0]](*arguments)
    except ZeroDivisionError:
        return None


def exact_power(a: Fraction, n: Fraction):
    digits_of_a = max(a.numerator.bit_length(), a.denominator.bit_length())
    return a**n.numerator if n.denominator == 1 and digits_of_a * abs(n) < MAX_BITS else None


def exact_counting(function):
    """A function of whole numbers, not too large; None of others."""
    return lambda *counts: (
        Fraction(function(*map(int, counts)))
        if all(n.denominator == 1 and 0 <= n < 3000 for n in counts)
        else None
    )


EXACT = {
    "+": lambda *terms: sum(terms),
    "*": lambda *factors: math.prod(factors),
    "/": lambda a, b: a / b,
    "neg": lambda a: -a,
    "^": exact_power,
    "abs": abs,
    "!": exact_counting(math.factorial),
    "binom": exact_counting(math.comb),
    "pct": lambda a: a / 100,
    "floor": lambda a: Fraction(math.floor(a)),
    "ceil": lambda a: Fraction(math.ceil(a)),
    "max": lambda *several: max(several),
    "min": lambda *several: min(several),
}


@functools.cache
def operations():
    """mpmath's functions of pairs (real, imaginary) and a precision. They keep no state, so any thread may use them."""
    from mpmath import libmp as m

    def real(function):
        return lambda z, prec: (function(z[0], prec, "n"), m.fzero if z[1] == m.fzero else m.fnan)

    def named_so(name):
        return lambda *z: getattr(m, f"mpc_{name}")(*z, "n")

    def inverse(name):
        return lambda z, prec: m.mpc_div(
            m.mpc_one, getattr(m, f"mpc_{name}")(z, prec + 10), prec, "n"
        )

    def binomial(n, k, prec):
        factorial = lambda z: m.mpc_factorial(z, prec + 10, "n")
        return m.mpc_div(
            factorial(n),
            m.mpc_mul(factorial(k), factorial(m.mpc_sub(n, k, prec)), prec + 10),
            prec,
            "n",
        )

    def root(z, n, prec):
        """The real root of a negative number if n is odd."""
        odd = z[0][0] and z[1] == n[1] == m.fzero and n[0][2] == 0 and n[0][1] & 1
        found = m.mpc_pow(m.mpc_neg(z) if odd else z, m.mpc_div(m.mpc_one, n, prec + 10), prec, "n")
        return m.mpc_neg(found) if odd else found

    many = lambda name: (
        lambda *z: functools.reduce(
            lambda a, b: getattr(m, f"mpc_{name}")(a, b, z[-1], "n"), z[:-1]
        )
    )
    turn = lambda z, prec: m.mpc_mul_mpf(
        z, m.mpf_div(m.mpf_pi(prec + 10), m.from_int(180), prec + 10), prec, "n"
    )
    functions = {
        name: named_so(name) for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh", "exp", "neg")
    }
    functions |= {f"arc{name}": named_so(f"a{name}") for name in ("sin", "cos", "tan")} | {
        "ln": named_so("log"),
        "!": named_so("factorial"),
    }
    functions |= {
        "sec": inverse("cos"),
        "csc": inverse("sin"),
        "cot": inverse("tan"),
        "floor": real(m.mpf_floor),
        "ceil": real(m.mpf_ceil),
    }
    functions |= {
        "+": many("add"),
        "*": many("mul"),
        "/": named_so("div"),
        "^": named_so("pow"),
        "root": root,
        "binom": binomial,
        "deg": turn,
    }
    functions |= {
        "abs": lambda z, prec: (m.mpc_abs(z, prec, "n"), m.fzero),
        "pct": lambda z, prec: m.mpc_div(z, (m.from_int(100), m.fzero), prec, "n"),
    }
    constants = {
        "pi": lambda prec: (m.mpf_pi(prec), m.fzero),
        "e": lambda prec: (m.mpf_e(prec), m.fzero),
        "i": lambda prec: (m.fzero, m.fone),
    }
    return SimpleNamespace(libmp=m, functions=functions, constants=constants)


def value(tree, at: dict, prec: int, real: bool = False):
    """The value, an mpmath pair (real, imaginary), with the unknowns `at` these places; undefined if `real` and something on the way is not."""
    kind, ops = tree[0], operations()
    if kind in ("num", "sym"):
        x = tree[1] if kind == "num" else at[tree[1]]
        return ops.libmp.from_rational(x.numerator, x.denominator, prec, "n"), ops.libmp.fzero
    if kind == "const" and tree[1] in ops.constants:
        return ops.constants[tree[1]](prec)
    if kind not in ops.functions:
        raise Undefined(kind)
    try:
        result = ops.functions[kind](*(value(part, at, prec, real) for part in tree[1:]), prec)
    except (ZeroDivisionError, ValueError):  # 1/0, ln 0, (-1)!
        raise Undefined(kind) from None
    if (
        any(part[1] == 0 and part[2] != 0 for part in result)
        or real
        and result[1] != ops.libmp.fzero
    ):
        raise Undefined("infinite, or not a number")
    return result
