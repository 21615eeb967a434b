"""Whether two expressions have the same value.

Rational ones are computed exactly. Others are evaluated to more digits, until they part or must be
equal: a number written with integers, roots, +, -, * and / is 0 or larger than a bound (Burnikel
et al., ESA 2001). We use it for other functions as well.
"""

import contextlib
import contextvars
import itertools
import math
import random
import threading
from collections.abc import Iterator
from fractions import Fraction

from nanotir.answers.text import WORDS
from nanotir.answers.trees import negative, num, replaced, unknowns, walk

MAX_BITS, MAX_COUNT, MAX_DEGREE = 10**7, 3000, 64  # of exact powers and factorials, of all roots
FOLDS = {"+": sum, "*": math.prod}
COUNTING = {"factorial": math.factorial, "binomial": math.comb, "gcd": math.gcd, "lcm": math.lcm}
EXACT = {"fabs": abs, "floor": math.floor, "ceil": math.ceil, "max": max, "min": min}
# The value of a name: a constant of mpmath, or 1, over an integer.
CONSTANTS = {"pi": ("pi", 1), "e": ("e", 1), "i": ("j", 1), "°": ("pi", 180), "rad": ("", 1)}
CONSTANTS |= {"%": ("", 100), "percent": ("", 100)}
TURNING = {*EXACT, "asin", "acos", "atan"}
KINDS = {"^", *FOLDS, *EXACT, *COUNTING, *WORDS["fn"]}
ERRORS = (ArithmeticError, AttributeError, KeyError, TypeError, ValueError)  # there is no value
HERE = threading.local()  # mpmath's functions of a thread
LEFT = contextvars.ContextVar("work that may still be done here", default=math.inf)


class TooMuch(Exception):
    """There is no work left."""


def spend(steps: float, bits: float):
    """Take steps of arithmetic with so many bits from the work left, before they are made."""
    LEFT.set(LEFT.get() - steps * (1000 + bits + bits * bits / 1000))
    if LEFT.get() < 0:
        raise TooMuch


def equal_values(p: tuple, g: tuple) -> bool:
    """Whether two expressions agree wherever both are defined, at one point at least."""
    if unknowns(p) != unknowns(g):
        return False
    agreed = False
    for k, at in enumerate(points((p, g))):
        # But for the first three all must be real: roots of negative numbers have several values.
        with contextlib.suppress(*ERRORS):
            if not equal_numbers(replaced(p, at), replaced(g, at), real=k > 2, close=not at):
                return False
            agreed = True
    return agreed


def points(trees: tuple) -> Iterator[dict[tuple, tuple]]:
    """Yield values of the unknowns: random ones, and some around 50 where there is |x - 50|."""
    at_random = [random_point(trees, k) for k in range(8 if unknowns(trees) else 1)]
    yield from at_random[:6]
    for kind, *parts in dict.fromkeys(walk(trees)):
        is_root = kind == "^" and (exact(parts[1]) or Fraction(1)).denominator % 2 == 0
        sides = [*parts, num(0)] if kind in TURNING else [parts[0], num(0)] if is_root else []
        for (a, b), at in itertools.product(itertools.combinations(sides, 2), at_random[4:]):
            tree = a[1] if a[0] == "^" and b == num(0) else ("+", a, negative(b))  # simple zeros
            for x in at:
                yield from around_zero(tree, x, at)


def around_zero(tree: tuple, x: tuple, at: dict) -> list[dict[tuple, tuple]]:
    """Return points on both sides of where a tree is 0, found by secants along one unknown."""
    a, b = at[x][1], at[x][1] + 1
    step = Fraction(1, 1 if a.denominator == 1 else 1000)  # what is counted stays whole
    with contextlib.suppress(*ERRORS):
        at_a = approximate(replaced(tree, {**at, x: num(a)}))
        for _ in range(60):
            if a == b:
                return [{**at, x: num(b + d * step)} for d in (-10, 0, 10)]
            at_b = approximate(replaced(tree, {**at, x: num(b)}))
            zero = Fraction(float(b) - at_b * float(b - a) / (at_b - at_a))
            a, at_a, b = b, at_b, round(zero / step) * step
    return []


def random_point(tree: tuple, seed: int) -> dict[tuple, tuple]:
    """Return a number for each unknown."""
    draw = random.Random(f"{seed} {tree[-1]}")
    names = [("sym", name) for name in sorted(unknowns(tree))]
    if any(node[0] in COUNTING for node in walk(tree)):  # made for natural numbers
        return {x: num(draw.randrange(8, 99)) for x in names}
    size = (1, 1, 1, -1, -1, 1, -100, 30)[seed]
    return {x: num(Fraction(size * draw.randrange(200, 3000), 1000)) for x in names}


def equal_numbers(p: tuple, g: tuple, real: bool, close: bool) -> bool:
    if digits(p) < digits(g):
        p, g = g, p
    a, b = exact(p), exact(g)
    if a is not None and b is not None:
        is_decimal = 10 ** min(b.denominator.bit_length(), 99) % b.denominator == 0
        return a == b or first_digits(p, a, b, 15 if is_decimal else 6)
    large = size(("+", p, g))
    # What is below 2^-last is 0: the size times the degree of all roots and i.
    powers = [exact(node[2]) for node in {*walk((p, g))} if node[0] == "^"]
    degrees = [n.denominator for n in powers if n is not None and n.denominator <= 12]
    last = large * (1 if real else max(6, min(2 * math.prod(degrees), MAX_DEGREE)))
    digits_after = 16
    while digits_after < last:
        digits_after = min(4 * digits_after, last)
        context = mpmath_context(2 * (digits_after + large) + 128)
        a, b = (context.convert(value(tree, context, real)) for tree in (p, g))
        if context.fabs(a - b) > context.ldexp(1, -int(digits_after)):
            is_complex = a.imag or b.imag
            a, b = (Fraction(context.nstr(x.real, 40)) for x in (a, b))
            return close and not is_complex and first_digits(p, a, b, 6)
    return True


def first_digits(tree: tuple, a: Fraction, b: Fraction, n: int) -> bool:
    """Whether a is a decimal of n digits that b begins with, rounded or cut, and b no integer."""
    if digits(tree) < n or b.denominator == 1:
        return False
    magnitude = math.floor(math.log10(abs(b.numerator)) - math.log10(b.denominator))
    scale = Fraction(10) ** (n - 1 - magnitude)
    return round(a * scale) in (round(b * scale), math.trunc(b * scale))


def digits(tree: tuple) -> int:
    """Return the number of significant digits of the longest decimal; 0 without decimals."""
    return max((node[2] for node in walk(tree) if node[0] == "num"), default=0)


def exact(tree: tuple) -> Fraction | None:
    """Return the value of a rational expression; None of any other."""
    with contextlib.suppress(*ERRORS):
        return value(tree)


def approximate(tree: tuple, real: bool = True) -> float | None:
    """Return about the value if it is a real number, or else about how large it is."""
    with contextlib.suppress(*ERRORS):
        number = value(tree, mpmath_context(170) if exact(tree) is None else None, real)
        return float(number.real if real else abs(number))


def value(tree: tuple, context=None, real: bool = False):
    """Return the value, a Fraction if it is rational; raise one of ERRORS if none is known here."""
    kind, *parts = tree
    spend(0.3, context.prec if context else 64)
    if kind == "num":
        result = parts[0]
    elif kind in ("const", "unit"):
        name, divisor = CONSTANTS[parts[0]]
        result = getattr(context, name) / divisor if name else Fraction(1, divisor)
    else:
        parts = [value(part, context, real) for part in parts] if kind in KINDS else []
        result = computed(kind, parts, context)
    if not isinstance(result, Fraction) and not context.isfinite(result) or real and result.imag:
        raise ArithmeticError("infinite, not a number or complex")
    return result


def computed(kind: str, arguments: list, context):
    """Return the value of an operation or a function, exactly if possible."""
    if kind in FOLDS:
        return FOLDS[kind](arguments)
    if kind == "^":
        return power(*arguments, context)
    if all(isinstance(x, Fraction) for x in arguments):
        if kind in EXACT:
            return Fraction(EXACT[kind](*arguments))
        if kind in COUNTING and all(x.denominator == 1 and 0 <= x < MAX_COUNT for x in arguments):
            return Fraction(COUNTING[kind](*map(int, arguments)))
    numbers = [context.convert(x) for x in arguments]
    # Large numbers need more digits, and the gamma function is slow.
    bits = context.prec + max(0, *map(context.mag, numbers))
    spend(50_000 if kind in COUNTING else 10, bits)
    return getattr(context, kind, EXACT.get(kind))(*numbers)


def power(a, n, context):
    if isinstance(n, Fraction) and n.denominator == 1 and isinstance(a, Fraction):
        bits = max(a.numerator.bit_length(), a.denominator.bit_length())
        if bits * abs(n) < MAX_BITS:
            spend(1, bits * abs(n.numerator))
            return a**n.numerator
    spend(1 if n == Fraction(1, 2) else 10, context.prec + max(0, context.mag(n)))
    # The root of a negative number is the real one if it is odd.
    if isinstance(n, Fraction) and n.numerator == 1 and n.denominator % 2 and a.imag == 0 > a.real:
        return -context.power(context.convert(-a), context.convert(n))
    return context.power(context.convert(a), context.convert(n))


def mpmath_context(bits: float):
    """Return mpmath's functions with this precision. No two threads share them."""
    from mpmath.ctx_mp import MPContext  # takes a tenth of a second

    HERE.context = context = vars(HERE).get("context") or MPContext()
    context.prec = int(bits)
    return context


def size(tree: tuple) -> float:
    """Return about how many bits the numerator and the denominator of the value may have."""
    kind, *parts = tree
    if kind == "num":
        return float(parts[0].numerator.bit_length() + parts[0].denominator.bit_length())
    inner = [size(part) for part in parts if isinstance(part, tuple)]
    if kind not in ("^", "exp", "sinh", "cosh", "tanh", "factorial", "binomial"):
        return sum(inner) + 8
    # Exponentials are as large as their arguments say.
    large = approximate(parts[-1], real=False) or 0.0 if inner[-1] < 99 else 2.0**60
    return (sum(inner) + 8) * (1 + large)
