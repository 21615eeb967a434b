"""The families of arithmetic: calculations, digits, remainders."""

from __future__ import annotations

import math
from random import Random

from nanotir.problems.numbers import everyday, number
from nanotir.problems.problem import Problem, program

DECIMALS = 4  # to which programs round, since 0.1+0.2 is not quite 0.3
# Numbers of so many digits, and of two more (see Longer), have results that a float holds exactly.
EXACT = 10
SIGNS = (-1, *9 * [1])  # one first number in ten is negative
WORDS = {"+": "plus", "-": "minus", "*": "times"}


def without_point(x: float) -> str:
    """A number as people write it: 52 and not 52.0."""
    return str(x).removesuffix(".0")


# Kind A: calculations.


def add(rng: Random, level: int) -> Problem:
    a = rng.choice(SIGNS) * everyday(rng, level + 4, 0)
    b = everyday(rng, level + 4, 0)
    return Problem(
        question=f"What is {a} + {b}?",
        answer=str(a + b),
        solution=program("I add.", f"{a}+{b}"),
        rationale=f"{a} + {b} = {a + b}.",
    )


def sub(rng: Random, level: int) -> Problem:
    a = rng.choice(SIGNS) * everyday(rng, level + 4, 0)
    b = everyday(rng, level + 4, 0)
    if a == b:  # a question of the family cancel
        a += 1
    return Problem(
        question=f"What is {a} - {b}?",
        answer=str(a - b),
        solution=program("I subtract.", f"{a}-{b}"),
        rationale=f"{a} - {b} = {a - b}.",
    )


def mul(rng: Random, level: int) -> Problem:
    a = number(rng, level + 4, 0)
    b = number(rng, level + 4, 0)
    ones = b % 10
    tens = b - ones
    return Problem(
        question=f"What is {a} * {b}?",
        answer=str(a * b),
        solution=program("I multiply.", f"{a}*{b}"),
        rationale=f"{a} * {tens} = {a * tens} and {a} * {ones} = {a * ones}, together {a * b}.",
    )


def mixed(rng: Random, level: int) -> Problem:
    a, b, c = (everyday(rng, level + 2) for _ in range(3))
    first, second = rng.choices("+-*", k=2)
    shape = rng.choice(("{} {} {} {} {}", "({} {} {}) {} {}", "{} {} ({} {} {})"))
    expression = shape.format(a, first, b, second, c)
    result = eval(expression)
    return Problem(
        question=f"What is {expression}?",
        answer=str(result),
        solution=program("I calculate.", expression.replace(" ", "")),
        rationale=f"{expression} = {result}.",
    )


def raised(rng: Random, level: int) -> Problem:
    a = everyday(rng, level + 1, 2)
    n = rng.randrange(2, 11 if a < 10 else 5)
    return Problem(
        question=f"What is {a}^{n}?",
        answer=str(a**n),
        solution=program("I take the power.", f"{a}**{n}"),
        rationale=f"{a} * {a} = {a * a}.",
    )


def mod(rng: Random, level: int) -> Problem:
    b, a = sorted((everyday(rng, level + 3, 2), everyday(rng, level + 4, 2)))
    return Problem(
        question=f"What is {a} mod {b}?",
        answer=str(a % b),
        solution=program("I take the remainder.", f"{a}%{b}"),
        rationale=f"{b} * {a // b} = {a // b * b}.",
    )


def power(rng: Random, level: int) -> Problem:
    a = number(rng, level + 4)
    e = number(rng, level + 4)
    m = number(rng, level + 4, 2)
    powers = [str(pow(a, i, m)) for i in range(1, min(e, 5) + 1)]
    return Problem(
        question=f"What is {a}^{e} mod {m}?",
        answer=str(pow(a, e, m)),
        solution=program("I take the power.", f"pow({a},{e},{m})"),
        rationale=f"The powers mod {m} go {', '.join(powers)}.",
    )


def gcd(rng: Random, level: int) -> Problem:
    name = rng.choice(("gcd", "lcm"))
    common = rng.randrange(2, 13)
    numbers = (number(rng, level + 4, common) for _ in range(2))
    a, b = (n - n % common for n in numbers)
    return Problem(
        question=f"What is the {name} of {a} and {b}?",
        answer=str(getattr(math, name)(a, b)),
        solution=program(f"I find the {name}.", f"import math\nmath.{name}({a},{b})"),
        rationale=f"{a} = {common} * {a // common} and {b} = {common} * {b // common}.",
    )


# Kind C: easy without a tool, although a program would work.


def parity(rng: Random, level: int) -> Problem:
    n = number(rng, level + 4, 0)
    return Problem(
        question=f"Is {n} even or odd?",
        answer="odd" if n % 2 else "even",
        solution=program("I divide by 2.", f"'odd' if {n}%2 else 'even'"),
        rationale=f"It ends in {n % 10}.",
    )


def first(rng: Random, level: int) -> Problem:
    n = number(rng, level + 4)
    digit = str(n)[0]
    return Problem(
        question=f"What is the first digit of {n}?",
        answer=digit,
        solution=program("I write it out.", f"str({n})[0]"),
        rationale=f"It starts with {digit}.",
    )


def last(rng: Random, level: int) -> Problem:
    n = number(rng, level + 4)
    return Problem(
        question=f"What is the last digit of {n}?",
        answer=str(n % 10),
        solution=program("I divide by 10.", f"{n}%10"),
        rationale=f"It ends in {n % 10}.",
    )


def itself(rng: Random, level: int) -> Problem:
    n = number(rng, level + 4)
    solution = program("I divide.", f"{n}/{n}")
    return Problem(f"What is {n} / {n}?", "1", solution=solution, rationale="Both are the same.")


def cancel(rng: Random, level: int) -> Problem:
    n = number(rng, level + 4)
    solution = program("I subtract.", f"{n}-{n}")
    return Problem(f"What is {n} - {n}?", "0", solution=solution, rationale="Both are the same.")


# Kind E: the output of the program is not yet the answer.


def quot(rng: Random, level: int) -> Problem:
    b, a = sorted((number(rng, level + 4), number(rng, level + 3, 2)))
    return Problem(
        question=f"Divide {a} by {b}, with remainder.",
        answer=f"quotient {a // b} remainder {a % b}",
        solution=program("I divide.", f"divmod({a},{b})"),
        rationale=f"{b} * {a // b} = {a // b * b}.",
    )


def clock(rng: Random, level: int) -> Problem:
    n = number(rng, level + 4)
    if n <= 60:
        n += 60
    return Problem(
        question=f"How long is {n} minutes in hours and minutes?",
        answer=f"{n // 60} hours {n % 60} minutes",
        solution=program("I divide by 60.", f"divmod({n},60)"),
        rationale=f"{n // 60} * 60 = {n // 60 * 60}.",
    )


def div(rng: Random, level: int) -> Problem:
    """A division whose result is a whole number or has at most two decimals."""
    most = min(level + 2, EXACT)
    b = everyday(rng, most, 2)
    a = b * everyday(rng, most, 2)
    if rng.random() < 0.5:
        b = rng.choice((2, 4, 5, 10, 20, 25, 50, 100))
        a = everyday(rng, most)
    if a == b:  # a question of the family itself
        a *= 2
    return Problem(
        question=f"What is {a} / {b}?",
        answer=without_point(a / b),
        solution=program("I divide.", f"round({a}/{b},{DECIMALS})"),
        rationale=f"{a} = {a // b} * {b} + {a % b}.",
    )


def over(rng: Random, level: int) -> Problem:
    """Two operations, one of them a division whose result is a whole number."""
    a, b = (everyday(rng, min(level + 2, EXACT // 2)) for _ in range(2))
    c = everyday(rng, min(level + 1, EXACT // 2), 2)
    sign = rng.choice("+-*")
    expression = rng.choice(
        (
            f"{a * c} / {c} {sign} {b}",
            f"{b} {sign} {a * c} / {c}",
            f"({a * c} + {b * c}) / {c}",
            f"({a * c} - {b * c}) / {c}",
            f"{a * (b + c)} / ({b} + {c})",
            f"{a * b} / ({b + c} - {c})",
        )
    )
    result = without_point(eval(expression))
    return Problem(
        question=f"What is {expression}?",
        answer=result,
        solution=program("I calculate.", f"round({expression.replace(' ', '')},{DECIMALS})"),
        rationale=f"{expression} = {result}.",
    )


def percent(rng: Random, level: int) -> Problem:
    p = rng.randrange(1, 100)
    n = everyday(rng, min(level + 3, EXACT))
    return Problem(
        question=f"What is {p}% of {n}?",
        answer=without_point(p * n / 100),
        solution=program("I divide by 100.", f"{p}*{n}/100"),
        rationale=f"{p} * {n} = {p * n}.",
    )


def decimal(rng: Random, level: int) -> Problem:
    # Four digits at any level: of longer ones, a float does not hold the product exactly.
    with_point = str(everyday(rng, 4) / rng.choice((10, 100)))
    pair = [with_point, without_point(everyday(rng, 4) / rng.choice((1, 10, 100)))]
    rng.shuffle(pair)
    a, b = pair
    sign = rng.choice(list(WORDS))
    # Not drawn: a problem that is asked in both ways could be in both splits.
    asked = sign if a[-1] in "13579" else WORDS[sign]
    code = f"round({a}{sign}{b},{DECIMALS})"
    result = without_point(eval(code))
    return Problem(
        question=f"What is {a} {asked} {b}?",
        answer=result,
        solution=program("I calculate.", code),
        rationale=f"{a} {sign} {b} = {result}.",
    )


def root(rng: Random, level: int) -> Problem:
    a = everyday(rng, min(level + 1, EXACT // 2))
    return Problem(
        question=f"What is the square root of {a * a}?",
        answer=str(a),
        solution=program("I take the root.", f"round({a * a}**0.5,{DECIMALS})"),
        rationale=f"{a} * {a} = {a * a}.",
    )
