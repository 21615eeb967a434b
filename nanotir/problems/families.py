"""The families of generated problems: algebra, chance, names, and the table of all, KINDS.

Arithmetic is in arithmetic.py, the made-up world in world.py.

A family is a function of a random generator and a level. It returns one problem, with its answer, a
solution that uses tools, and a rationale in words. The level is a ceiling on its numbers. To add a
family, write such a function and add it to KINDS at the end of this file; its name is the
function's name. Other ways to ask are lines of phrasings.txt.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from random import Random

from nanotir.problems.arithmetic import (
    add,
    cancel,
    clock,
    decimal,
    div,
    first,
    gcd,
    itself,
    last,
    mixed,
    mod,
    mul,
    over,
    parity,
    percent,
    power,
    quot,
    raised,
    root,
    sub,
)
from nanotir.problems.numbers import coefficient, integer, number, signed, total
from nanotir.problems.problem import Problem, program
from nanotir.problems.world import NAMES, cost, fact, gap, home

SYMPY = "from sympy import *\n"
SYMPY_X = SYMPY + "x=symbols('x')\n"


# Kind A: calculations.


def lin(rng: Random, level: int) -> Problem:
    a = coefficient(rng, level + 2)
    x = integer(rng, level + 3)
    b = rng.choice((0, 1, 1, 1)) * integer(rng, level + 4)
    c = a * x + b
    left, right = total([(a, "x"), (b, "")]), str(c)
    shape = rng.random()
    if shape < 1 / 6 and c > 0:  # 61 - 7x = 12
        left, right = total([(c, ""), (-a, "x")]), str(b)
    elif shape > 5 / 6:  # 7x + 12 = 3x + 40
        d = a + integer(rng, level + 1)
        right = total([(d, "x"), (c - d * x, "")])
    code = f"solve({in_python(left)}-({in_python(right)}),x)".replace(" ", "")
    return Problem(
        question=f"Solve {left} = {right}.",
        answer=str(x),
        solution=program("I solve for x.", SYMPY_X + code),
        rationale=f"{total([(a, 'x')])} = {c}{signed(-b)} = {c - b}, so x = {c - b} / {a}.",
    )


def quad(rng: Random, level: int) -> Problem:
    p = q = integer(rng, level + 2)
    while p == q:
        q = integer(rng, level + 2)
    p, q = sorted((p, q))
    b = -(p + q)
    c = p * q
    return Problem(
        question=f"What are the roots of x^2{signed(b, 'x')}{signed(c)}?",
        answer=f"{p}, {q}",
        solution=program("I find the roots.", SYMPY_X + f"solve(x**2{b:+}*x{c:+},x)"),
        rationale=f"Two numbers with sum {p + q} and product {c}.",
    )


def system(rng: Random, level: int) -> Problem:
    x = number(rng, level + 2)
    y = number(rng, level + 2)
    a, b, c = (rng.randrange(2, 6) for _ in range(3))
    d = -rng.randrange(2, 6)
    e = a * x + b * y
    f = c * x + d * y
    left = f"{c}x{signed(d)}y"
    equations = f"[{a}*x+{b}*y-{e},{c}*x{d:+}*y-({f})]"
    code = f"{SYMPY}x,y=symbols('x y')\nsolve({equations},x,y)"
    factor = a * d - b * c
    return Problem(
        question=f"Find x: {a}x + {b}y = {e}, {left} = {f}.",
        answer=str(x),
        solution=program("I solve both.", code),
        rationale=f"{d}({a}x + {b}y) - {b}({left}) = {factor}x = {factor * x}.",
    )


def in_python(written: str) -> str:
    """A sum of terms as Python has it: 3*x**2 + 5 for 3x^2 + 5."""
    return re.sub(r"(\d)x", r"\1*x", written).replace("^", "**")


def power_of_x(n: int) -> str:
    return f"x^{n}" if n > 1 else "x" * n


def polynomial(rng: Random, level: int) -> list[tuple[int, int]]:
    """One to three random terms (coefficient, exponent). The first is positive, and has an x."""
    exponents = sorted(rng.sample(range(3 + level), rng.randint(1, 3)), reverse=True)
    terms = [(coefficient(rng, level + 4) * rng.choice((1, 1, -1)), n) for n in exponents]
    a, n = terms[0]
    return [(abs(a), max(n, 1)), *terms[1:]]


def as_sum(terms: list[tuple[int, int]]) -> str:
    return total([(a, power_of_x(n)) for a, n in terms])


def deriv(rng: Random, level: int) -> Problem:
    terms = polynomial(rng, level)
    written = as_sum(terms)
    result = as_sum([(a * n, n - 1) for a, n in terms if n])
    steps = [f"{as_sum([(a, n)])} gives {as_sum([(a * n, n - 1)])}" for a, n in terms if n]
    code = f"diff({in_python(written)},x)".replace(" ", "")
    return Problem(
        question=f"What is the derivative of {written}?",
        answer=in_python(result),
        solution=program("I differentiate.", SYMPY_X + code),
        rationale=f"{' and '.join(steps)}.",
    )


def integ(rng: Random, level: int) -> Problem:
    terms = polynomial(rng, level)
    written = as_sum(terms)
    high = rng.randrange(1, 3 + level)
    low = rng.choice((0, rng.randrange(high)))
    parts = [Fraction(a * (high ** (n + 1) - low ** (n + 1)), n + 1) for a, n in terms]
    steps = [f"{as_sum([(a, n)])} gives {part}" for (a, n), part in zip(terms, parts)]
    code = f"integrate({in_python(written)},(x,{low},{high}))".replace(" ", "")
    return Problem(
        question=f"Integrate {written} from {low} to {high}.",
        answer=str(sum(parts)),
        solution=program("I integrate.", SYMPY_X + code),
        rationale=f"{' and '.join(steps)}.",
    )


def det(rng: Random, level: int) -> Problem:
    a, b, c, d = (integer(rng, level + 3) for _ in range(4))
    code = f"{SYMPY}Matrix([[{a},{b}],[{c},{d}]]).det()"
    return Problem(
        question=f"What is the determinant of [[{a}, {b}], [{c}, {d}]]?",
        answer=str(a * d - b * c),
        solution=program("I take the determinant.", code),
        rationale=f"({a}) * ({d}) - ({b}) * ({c}) = {a * d} - ({b * c}).",
    )


def choose(rng: Random, level: int) -> Problem:
    n = number(rng, level + 3, 6)
    k = rng.randrange(2, 5)
    return Problem(
        question=f"How many ways are there to choose {k} of {n}?",
        answer=str(math.comb(n, k)),
        solution=program("I count.", f"import math\nmath.comb({n},{k})"),
        rationale=f"{n}! / ({k}! {n - k}!).",
    )


def chance(rng: Random, level: int) -> Problem:
    red = number(rng, level + 2, 2)
    blue = number(rng, level + 2, 2)
    n = red + blue
    both_red = red * (red - 1)
    pairs = n * (n - 1)
    bag = f"A bag has {red} red and {blue} blue balls."
    code = f"{SYMPY}n={red}+{blue}\nRational({red},n)*Rational({red}-1,n-1)"
    return Problem(
        question=f"{bag} I draw two. What is the chance that both are red?",
        answer=str(Fraction(both_red, pairs)),
        solution=program("I multiply the chances.", code),
        rationale=f"{red}/{n} * {red - 1}/{n - 1} = {both_red}/{pairs}.",
    )


def dist(rng: Random, level: int) -> Problem:
    import sympy  # only here, because it takes long: who loads a model need not wait for it

    a, b, c, d = (number(rng, level + 4, 0) for _ in range(4))
    squares = (c - a) ** 2 + (d - b) ** 2
    code = f"{SYMPY}sqrt(({c}-{a})**2+({d}-{b})**2)"
    return Problem(
        question=f"How far is it from ({a}, {b}) to ({c}, {d})?",
        answer=str(sympy.sqrt(squares)),
        solution=program("I use Pythagoras.", code),
        rationale=f"{abs(c - a)}^2 + {abs(d - b)}^2 = {squares}.",
    )


# Kind B: no tool can help.


def queue(rng: Random, level: int) -> Problem:
    line = rng.sample(NAMES, min(rng.randint(3, 4 + level), len(NAMES)))
    place, who = rng.choice((("first", line[0]), ("last", line[-1])))
    steps = f"The {place} is {who}."
    return Problem(
        question=f"In line stand {' '.join(line)}. Who is {place}?",
        answer=who,
        solution=(("text", steps),),
        rationale=steps,
    )


def same(rng: Random, level: int) -> Problem:
    line = rng.sample(NAMES, min(rng.randint(3, 4 + level), len(NAMES)))
    twice = rng.choice(line)
    line.insert(rng.randrange(len(line) + 1), twice)
    steps = f"I see {twice} again."
    return Problem(
        question=f"Who is named twice: {' '.join(line)}?",
        answer=twice,
        solution=(("text", steps),),
        rationale=steps,
    )


KINDS = {
    # A calculation that is hard without a program.
    "A": (
        *(add, sub, mul, mixed, raised, mod, power, gcd),
        *(lin, quad, system, deriv, integ, det, choose, chance, dist),
    ),
    # A question that no tool can answer.
    "B": (queue, same),
    # A question that is easy without a tool: a call would be a waste.
    "C": (parity, first, last, itself, cancel),
    # A question about the made-up world, whose facts must be looked up.
    "D": (fact, cost, home, gap),
    # A calculation whose output may not yet be the answer: divmod's pair, or 52.0 for 52.
    "E": (quot, clock, div, over, percent, decimal, root),
}
FAMILIES = {make.__name__: (kind, make) for kind, makes in KINDS.items() for make in makes}
