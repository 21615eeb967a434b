"""Generated problems: families of questions whose answers Python knows, in unlimited number and at a chosen difficulty.

Kinds: A compute-hard (the head fails, a program does not), B no program helps, C easy by head (a call would be waste), D facts to look
up in a made-up world, E the tool's output is not yet the answer and has to be put into words.

A question belongs to the training or to the test split by a checksum of its own text, so the two can never share one.
"""

from __future__ import annotations

import math
import random
import zlib
from fractions import Fraction
from functools import cache
from itertools import cycle, islice

import sympy

TEST_SHARE = 10  # one question in ten belongs to the test split
ROUND = "ABCADE"  # the kinds' turns; A has half of all families


def generate(
    n: int, split: str = "train", seed: int = 0, families=None, level: int = 1
) -> list[dict]:
    """The fields of n problems of one split: kinds as in ROUND, and of each kind its families in turn. ValueError for an unknown family.

    Problem i depends on (seed, split, i) alone, so the same arguments give the same problems, and fewer give the first of them.
    """
    names = list(families or FAMILIES)
    for name in names:
        if name not in FAMILIES:
            raise ValueError(f"no family '{name}'; there are {', '.join(FAMILIES)}")
    return [
        _draw(name, random.Random(f"{seed} {split} {i}"), split, level)
        for i, name in enumerate(islice(_turns(names), n))
    ]


def _turns(names):
    of_kind = {
        kind: cycle([name for name in names if FAMILIES[name][0] == kind])
        for kind in {FAMILIES[name][0] for name in names}
    }
    for kind in cycle(ROUND):
        if kind in of_kind:
            yield next(of_kind[kind])


def split_of(question: str) -> str:
    return "test" if zlib.crc32(question.encode()) % TEST_SHARE == 0 else "train"


def _draw(name: str, rng: random.Random, split: str, level: int) -> dict:
    kind, make = FAMILIES[name]
    while True:
        question, answer, solution, rationale = make(rng, level)
        if split_of(question) == split:
            return dict(
                question=question,
                answer=str(answer),
                family=name,
                kind=kind,
                solution=tuple(solution),
                rationale=rationale,
            )


# A family is a function (rng, level) -> question, answer, solution, rationale.


def program(thought: str, code: str):
    return [("text", thought), ("python", code)]


def number(rng, digits: int) -> int:
    return rng.randrange(10 ** (digits - 1), 10**digits)


def signed(n: int, symbol: str = "") -> str:
    """A term as it stands inside a sum: " + 3", " - 3x", " + x"; nothing where it is 0 times the symbol."""
    size = "" if symbol and abs(n) == 1 else abs(n)
    return "" if symbol and n == 0 else f" {'-' if n < 0 else '+'} {size}{symbol}"


def mul(rng, level):
    a, b = number(rng, level + 2), number(rng, level + 2)
    tens, ones = b // 10 * 10, b % 10
    steps = f"{a} * {tens} = {a * tens} and {a} * {ones} = {a * ones}, together {a * b}."
    return f"What is {a} * {b}?", a * b, program("I multiply.", f"{a}*{b}"), steps


def power(rng, level):
    a, e, m = rng.randrange(2, 20), number(rng, level), rng.randrange(11, 100)
    rest, steps = a % m, [f"{a % m}"]
    for _ in range(min(e, 8) - 1):
        rest = rest * a % m
        steps.append(f"{rest}")
    return (
        f"What is {a}^{e} mod {m}?",
        pow(a, e, m),
        program("I take the power.", f"pow({a},{e},{m})"),
        f"The powers mod {m} go {', '.join(steps)}.",
    )


def gcd(rng, level):
    name, f = rng.choice((("gcd", math.gcd), ("lcm", math.lcm)))
    common = rng.randrange(2, 13)
    a, b = common * number(rng, level), common * number(rng, level)
    code = f"import math\nmath.{name}({a},{b})"
    return (
        f"What is the {name} of {a} and {b}?",
        f(a, b),
        program(f"I find the {name}.", code),
        f"{a} = {common} * {a // common} and {b} = {common} * {b // common}.",
    )


SYMBOL = "from sympy import *\nx=symbols('x')\n"


def lin(rng, level):
    a, x, b = (
        rng.randrange(2, 10 * level),
        rng.randrange(-9 * level, 10 * level),
        rng.randrange(1, 30 * level),
    )
    c = a * x + b
    steps = f"{a}x = {c} - {b} = {c - b}, so x = {c - b} / {a}."
    return (
        f"Solve {a}x + {b} = {c}.",
        x,
        program("I solve for x.", SYMBOL + f"solve({a}*x+{b}-({c}),x)"),
        steps,
    )


def quad(rng, level):
    p, q = sorted(rng.sample([n for n in range(-6 * level, 6 * level + 1) if n], 2))
    b, c = -(p + q), p * q
    code = SYMBOL + f"solve(x**2{b:+}*x{c:+},x)"
    steps = f"Two numbers with sum {p + q} and product {c}."
    return (
        f"What are the roots of x^2{signed(b, 'x')}{signed(c)}?",
        f"{p}, {q}",
        program("I find the roots.", code),
        steps,
    )


def system(rng, level):
    x, y = rng.randrange(1, 9 * level), rng.randrange(1, 9 * level)
    a, b = rng.randrange(2, 6), rng.randrange(2, 6)
    c, d = rng.randrange(2, 6), -rng.randrange(2, 6)
    code = f"from sympy import *\nx,y=symbols('x y')\nsolve([{a}*x+{b}*y-{a * x + b * y},{c}*x{d:+}*y-({c * x + d * y})],x,y)"
    steps = f"{d}({a}x + {b}y) - {b}({c}x{signed(d)}y) = {a * d - b * c}x = {(a * d - b * c) * x}."
    question = f"Find x: {a}x + {b}y = {a * x + b * y}, {c}x{signed(d)}y = {c * x + d * y}."
    return question, x, program("I solve both.", code), steps


def polynomial(rng, level):
    """(text, code) of a random polynomial with two or three terms, and the sympy expression."""
    powers = sorted(rng.sample(range(1, 3 + level), 2), reverse=True)
    terms = [(rng.randrange(2, 10), power) for power in powers]
    text = " + ".join(f"{a}x^{n}" if n > 1 else f"{a}x" for a, n in terms)
    return text, text.replace(" + ", "+").replace("x", "*x").replace("^", "**"), terms


def deriv(rng, level):
    text, code, terms = polynomial(rng, level)
    x = sympy.Symbol("x")
    steps = " and ".join(f"{a}x^{n} gives {a * n}x^{n - 1}" for a, n in terms) + "."
    answer = sympy.diff(sum(a * x**n for a, n in terms), x)
    return (
        f"What is the derivative of {text}?",
        answer,
        program("I differentiate.", SYMBOL + f"diff({code},x)"),
        steps,
    )


def integ(rng, level):
    text, code, terms = polynomial(rng, level)
    top = rng.randrange(1, 3 + level)
    steps = " and ".join(f"{a}x^{n} gives {a}/{n + 1} x^{n + 1}" for a, n in terms) + f", at {top}."
    answer = sum(Fraction(a * top ** (n + 1), n + 1) for a, n in terms)
    return (
        f"Integrate {text} from 0 to {top}.",
        answer,
        program("I integrate.", SYMBOL + f"integrate({code},(x,0,{top}))"),
        steps,
    )


def det(rng, level):
    a, b, c, d = (rng.randrange(1, 10 * level) for _ in range(4))
    code = f"from sympy import *\nMatrix([[{a},{b}],[{c},{d}]]).det()"
    return (
        f"What is the determinant of [[{a}, {b}], [{c}, {d}]]?",
        a * d - b * c,
        program("I take the determinant.", code),
        f"{a} * {d} - {b} * {c} = {a * d} - {b * c}.",
    )


def choose(rng, level):
    n = rng.randrange(6, 12 + 8 * level)
    k = rng.randrange(2, n - 1)
    code = f"import math\nmath.comb({n},{k})"
    return (
        f"How many ways are there to choose {k} of {n}?",
        math.comb(n, k),
        program("I count.", code),
        f"{n}! / ({k}! {n - k}!).",
    )


def chance(rng, level):
    a, b = rng.randrange(2, 8 * level), rng.randrange(2, 8 * level)
    n = a + b
    code = f"from sympy import *\nn={a}+{b}\nRational({a},n)*Rational({a}-1,n-1)"
    answer = Fraction(a * (a - 1), n * (n - 1))
    question = (
        f"A bag has {a} red and {b} blue balls. I draw two. What is the chance that both are red?"
    )
    return (
        question,
        answer,
        program("I multiply the chances.", code),
        f"{a}/{n} * {a - 1}/{n - 1} = {a * (a - 1)}/{n * (n - 1)}.",
    )


def dist(rng, level):
    a, b, c, d = (rng.randrange(0, 10 * level) for _ in range(4))
    code = f"from sympy import *\nsqrt(({c}-{a})**2+({d}-{b})**2)"
    answer = sympy.sqrt((c - a) ** 2 + (d - b) ** 2)
    return (
        f"How far is it from ({a}, {b}) to ({c}, {d})?",
        answer,
        program("I use Pythagoras.", code),
        f"{abs(c - a)}^2 + {abs(d - b)}^2 = {(c - a) ** 2 + (d - b) ** 2}.",
    )


NAMES = "Ada Ben Cleo Dan Eva Finn Gus Hana Ivo June Kai Lea Max Nina Otto Pia".split()


def queue(rng, level):
    line = rng.sample(NAMES, min(3 + level, len(NAMES)))
    place, who = rng.choice((("first", line[0]), ("last", line[-1])))
    steps = f"The {place} is {who}."
    return f"In line stand {' '.join(line)}. Who is {place}?", who, [("text", steps)], steps


def same(rng, level):
    line = rng.sample(NAMES, min(3 + level, len(NAMES)))
    twice = rng.choice(line)
    line.insert(rng.randrange(len(line) + 1), twice)
    steps = f"I see {twice} again."
    return f"Who is named twice: {' '.join(line)}?", twice, [("text", steps)], steps


def parity(rng, level):
    n = number(rng, level + 7)
    answer = "odd" if n % 2 else "even"
    return (
        f"Is {n} even or odd?",
        answer,
        program("I divide by 2.", f"'odd' if {n}%2 else 'even'"),
        f"It ends in {n % 10}.",
    )


def last(rng, level):
    n = number(rng, level + 7)
    return (
        f"What is the last digit of {n}?",
        n % 10,
        program("I divide by 10.", f"{n}%10"),
        f"It ends in {n % 10}.",
    )


def first(rng, level):
    n = number(rng, level + 7)
    return (
        f"What is the first digit of {n}?",
        str(n)[0],
        program("I write it out.", f"str({n})[0]"),
        f"It starts with {str(n)[0]}.",
    )


def itself(rng, level):
    n = number(rng, level + 7)
    return f"What is {n} / {n}?", 1, program("I divide.", f"{n}//{n}"), "Both are the same."


def cancel(rng, level):
    n = number(rng, level + 7)
    return f"What is {n} - {n}?", 0, program("I subtract.", f"{n}-{n}"), "Both are the same."


SIDES = (
    "North South East West Old New Upper Lower Great Little High Long Red Green White Black".split()
)
LANDS = (
    "Ford Hill Mill Wood Lake Port Dale Bay Moor Glen Ridge Stone Brook Marsh Field Cove".split()
)
SORTS = "fine raw soft hard dry wet hot cold sweet sour dark pale thick thin light heavy".split()
GOODS = "wool salt tea corn silk wax oil rope iron tin clay wine rice fish soap glue".split()


@cache
def world(seed: int = 0):
    """A made-up world: {place: people living there}, {person: home town}, {good: price}. Its documents are the only way to know it."""
    rng = random.Random(f"world {seed}")
    population = {
        f"{side} {land}": number(rng, rng.randrange(3, 5)) for side in SIDES for land in LANDS
    }
    home = {f"{name} {land}": rng.choice(list(population)) for name in NAMES for land in LANDS}
    return (
        population,
        home,
        {f"{sort} {good}": rng.randrange(11, 99) for sort in SORTS for good in GOODS},
    )


def documents(seed: int = 0) -> list[str]:
    """The world written down, a sentence a fact: what the search tool finds."""
    population, home, price = world(seed)
    return (
        [f"The population of {place} is {people}." for place, people in population.items()]
        + [f"The home town of {person} is {place}." for person, place in home.items()]
        + [f"The price of {good} is {coins}." for good, coins in price.items()]
    )


def fact(rng, level):
    population, _, price = world()
    subject, table = rng.choice((("population", population), ("price", price)))
    key = rng.choice(list(table))
    query = f"{subject} of {key}"
    return (
        f"What is the {query}?",
        table[key],
        [("text", "I look it up."), ("search", query)],
        f"I recall that the {query} is {table[key]}.",
    )


def cost(rng, level):
    price = world()[2]
    good, n = rng.choice(list(price)), rng.randrange(3, 10 * level + 3)
    solution = [
        ("text", "I look up the price."),
        ("search", f"price of {good}"),
        *program("I multiply.", f"{n}*{price[good]}"),
    ]
    return f"What do {n} {good} cost?", n * price[good], solution, f"One costs {price[good]}."


def home(rng, level):
    population, homes, _ = world()
    person = rng.choice(list(homes))
    place = homes[person]
    solution = [
        ("text", "I look up the town."),
        ("search", f"home town of {person}"),
        ("text", "Then the people."),
        ("search", f"population of {place}"),
    ]
    return (
        f"How many people live in the home town of {person}?",
        population[place],
        solution,
        f"It is {place}.",
    )


def gap(rng, level):
    population, _, _ = world()
    a, b = rng.sample(list(population), 2)
    a, b = (a, b) if population[a] >= population[b] else (b, a)
    solution = [
        ("text", "I look up both."),
        ("search", f"population of {a}"),
        ("text", "And"),
        ("search", f"population of {b}"),
        *program("I subtract.", f"{population[a]}-{population[b]}"),
    ]
    return (
        f"How many more people live in {a} than in {b}?",
        population[a] - population[b],
        solution,
        f"{population[a]} - {population[b]}.",
    )


def quot(rng, level):
    a, b = number(rng, level + 2), number(rng, level)
    b = max(b, 2)
    question = f"Divide {a} by {b}, with remainder."
    return (
        question,
        f"quotient {a // b} remainder {a % b}",
        program("I divide.", f"divmod({a},{b})"),
        f"{b} * {a // b} = {a // b * b}.",
    )


def clock(rng, level):
    n = rng.randrange(61, 400 * (level + 1))
    question = f"How long is {n} minutes in hours and minutes?"
    return (
        question,
        f"{n // 60} hours {n % 60} minutes",
        program("I divide by 60.", f"divmod({n},60)"),
        f"{n // 60} * 60 = {n // 60 * 60}.",
    )


FAMILIES = {
    "mul": ("A", mul),
    "power": ("A", power),
    "gcd": ("A", gcd),
    "lin": ("A", lin),
    "quad": ("A", quad),
    "system": ("A", system),
    "deriv": ("A", deriv),
    "integ": ("A", integ),
    "det": ("A", det),
    "choose": ("A", choose),
    "chance": ("A", chance),
    "dist": ("A", dist),
    "queue": ("B", queue),
    "same": ("B", same),
    "parity": ("C", parity),
    "first": ("C", first),
    "last": ("C", last),
    "itself": ("C", itself),
    "cancel": ("C", cancel),
    "fact": ("D", fact),
    "cost": ("D", cost),
    "home": ("D", home),
    "gap": ("D", gap),
    "quot": ("E", quot),
    "clock": ("E", clock),
}
