"""Expressions by their values, to 50 digits at a few random points.

Numbers are mpmath's pairs (real, imaginary), and its functions of them keep no state, so that any
thread may use them. Differences are relative to the numbers, never absolute: 1/300! is not 0.
Import this module only where it is needed: mpmath takes a tenth of a second.
"""

import functools
import random
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction

from mpmath import libmp
from mpmath.libmp import fzero

from nanotir.answers.exact import first_digits
from nanotir.answers.trees import digits, num, unknowns

PRECISION = 170  # bits, about 50 digits


class Undefined(ArithmeticError):
    """The expression has no value here, or none that this module computes."""


def equal_at_points(p: tuple, g: tuple) -> bool:
    """Whether two expressions agree wherever both are defined, at one point at least."""
    agreed = False
    for a, b, at in points(p, g):
        if not agree(p, g, a, b, at):
            return False
        agreed = True
    return agreed


def constant_ratio(p: tuple, g: tuple, positive: bool) -> bool:
    """Whether p / g has the same value at all points, and a positive one if so asked."""
    try:
        ratios = [libmp.mpc_div(a, b, PRECISION, "n") for a, b, _ in points(p, g)]
    except ZeroDivisionError:
        return False
    if not ratios or positive and ratios[0][0][0]:  # the sign of its real part
        return False
    differences = [libmp.mpc_sub(ratio, ratios[0], PRECISION, "n") for ratio in ratios]
    return all(size(difference) < size(ratios[0]) - 100 for difference in differences)


def points(p: tuple, g: tuple) -> Iterator[tuple]:
    """Yield (value of p, value of g, where) at up to six points, or once without unknowns."""
    names, draw = sorted(unknowns(p)), random.Random(repr(g))
    for k in range(6 if names else 1):
        # The first three points are positive. At the others all must be real on the way, since a
        # root or a logarithm of a negative number has several complex values.
        real = k > 2
        at = {}
        for name in names:
            at[name] = Fraction(draw.randrange(200, 3000), 1000)
            if real:
                at[name] *= draw.choice((-1, 1))
        with suppress(Undefined):
            yield value(p, at, PRECISION, real), value(g, at, PRECISION, real), at


def agree(p: tuple, g: tuple, a: tuple, b: tuple, at: dict) -> bool:
    """Whether a and b are one number: to 30 digits, or to six if p or g has a decimal of six."""
    largest = max(size(a), size(b))
    difference = size(libmp.mpc_sub(a, b, PRECISION, "n"))
    if max(digits(p), digits(g)) < 6:
        if difference < largest - 100:
            return True
        if difference >= -50:
            return False
        # What is left of a difference of 0 is rounding: with more digits it shrinks.
        rest = ("+", p, ("neg", g))
        precise, rough = (size(value(rest, at, k * PRECISION)) for k in (3, 1))
        return precise < rough - PRECISION
    if at or a[1] != fzero or b[1] != fzero:
        return difference < largest - 18
    x, y = Fraction(*libmp.to_rational(a[0])), Fraction(*libmp.to_rational(b[0]))
    return first_digits(p, x, y) or first_digits(g, y, x)


def size(z: tuple) -> int:
    """Return the exponent of two just above |z|; far below all others for 0."""
    return max(exponent + bits if mantissa else -(10**30) for _, mantissa, exponent, bits in z)


def value(tree: tuple, at: dict, prec: int, real: bool = False) -> tuple:
    """Return the value where the unknowns are `at` these places.

    It is undefined if it is infinite, or if `real` and something on the way is complex.
    """
    kind = tree[0]
    if kind in ("num", "sym"):
        x = tree[1] if kind == "num" else at[tree[1]]
        return libmp.from_rational(x.numerator, x.denominator, prec, "n"), fzero
    if tree == ("const", "i"):
        return fzero, libmp.fone
    if kind == "const" and tree[1] in CONSTANTS:
        return CONSTANTS[tree[1]](prec), fzero
    if kind in FACTORS:
        return value(("*", tree[1], FACTORS[kind]), at, prec, real)
    if kind not in FUNCTIONS and kind not in FOLDS:
        raise Undefined(kind)
    arguments = [value(part, at, prec, real) for part in tree[1:]]
    try:
        if kind in FOLDS:
            result = functools.reduce(lambda a, b: FOLDS[kind](a, b, prec, "n"), arguments)
        else:
            result = FUNCTIONS[kind](*arguments, prec, "n")
    except (ZeroDivisionError, ValueError):  # 1/0, ln 0, (-1)!
        raise Undefined(kind) from None
    infinite = any(mantissa == 0 and exponent != 0 for _, mantissa, exponent, _ in result)
    if infinite or real and result[1] != fzero:
        raise Undefined("infinite, not a number or complex")
    return result


def real_value(tree: tuple) -> float | None:
    """Return the value of an expression without unknowns, if it is a real number."""
    with suppress(Undefined, OverflowError):
        real, imaginary = value(tree, {}, PRECISION)
        return libmp.to_float(real) if imaginary == fzero else None


# Every function takes pairs, the precision, and how to round.


def absolute(z, prec, rounding) -> tuple:
    return libmp.mpc_abs(z, prec, rounding), fzero


def floor(z, prec, rounding) -> tuple:
    if z[1] != fzero:
        raise Undefined("floor of a complex number")
    return libmp.mpf_floor(z[0], prec, rounding), fzero


def binomial(n, k, prec, rounding) -> tuple:
    rest = libmp.mpc_factorial(libmp.mpc_sub(n, k, prec), prec + 10, rounding)
    below = libmp.mpc_mul(libmp.mpc_factorial(k, prec + 10, rounding), rest, prec + 10, rounding)
    return libmp.mpc_div(libmp.mpc_factorial(n, prec + 10, rounding), below, prec, rounding)


def root(z, n, prec, rounding) -> tuple:
    # The root of a negative number is the real one if n is odd.
    _, mantissa, exponent, _ = n[0]
    odd = z[1] == n[1] == fzero and z[0][0] and exponent == 0 and mantissa & 1
    inverse = libmp.mpc_div(libmp.mpc_one, n, prec + 10)
    found = libmp.mpc_pow(libmp.mpc_neg(z) if odd else z, inverse, prec, rounding)
    return libmp.mpc_neg(found) if odd else found


FOLDS = {"+": libmp.mpc_add, "*": libmp.mpc_mul}
CONSTANTS = {"pi": libmp.mpf_pi, "e": libmp.mpf_e}
FACTORS = {"pct": num(Fraction(1, 100)), "deg": ("/", ("const", "pi"), num(180))}
NAMES = ("sin", "cos", "tan", "sinh", "cosh", "tanh", "exp", "neg")
FUNCTIONS = {name: getattr(libmp, f"mpc_{name}") for name in NAMES}
FUNCTIONS |= {"arcsin": libmp.mpc_asin, "arccos": libmp.mpc_acos, "arctan": libmp.mpc_atan}
FUNCTIONS |= {"/": libmp.mpc_div, "^": libmp.mpc_pow, "root": root}
FUNCTIONS |= {"ln": libmp.mpc_log, "!": libmp.mpc_factorial, "binom": binomial}
FUNCTIONS |= {"abs": absolute, "floor": floor}
