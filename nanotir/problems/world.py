"""A made-up world, its documents for the search tool, and the families of problems about it.

Its places, people and goods do not exist. So a model cannot know the facts and must look them up.
"""

from __future__ import annotations

from functools import cache
from random import Random
from typing import NamedTuple

from nanotir.problems.numbers import number
from nanotir.problems.problem import Problem

NAMES = "Ada Ben Cleo Dan Eva Finn Gus Hana Ivo June Kai Lea Max Nina Otto Pia".split()
SIDES = [
    *"North South East West Old New Upper Lower".split(),
    *"Great Little High Long Red Green White Black".split(),
]
LANDS = (
    "Ford Hill Mill Wood Lake Port Dale Bay Moor Glen Ridge Stone Brook Marsh Field Cove".split()
)
SORTS = "fine raw soft hard dry wet hot cold sweet sour dark pale thick thin light heavy".split()
GOODS = "wool salt tea corn silk wax oil rope iron tin clay wine rice fish soap glue".split()


class World(NamedTuple):
    population: dict[str, int]  # of each place
    home: dict[str, str]  # the place where each person lives
    price: dict[str, int]  # of each good


@cache
def world() -> World:
    """The one world that there is: 256 places, 256 people and 256 goods."""
    rng = Random("world 0")
    population = {place: _population(rng) for place in _pairs(SIDES, LANDS)}
    places = list(population)
    home = {person: rng.choice(places) for person in _pairs(NAMES, LANDS)}
    price = {good: rng.randrange(11, 99) for good in _pairs(SORTS, GOODS)}
    return World(population, home, price)


def _pairs(firsts: list[str], seconds: list[str]) -> list[str]:
    return [f"{first} {second}" for first in firsts for second in seconds]


def _population(rng: Random) -> int:
    digits = rng.randrange(3, 5)
    return rng.randrange(10 ** (digits - 1), 10**digits)


def documents() -> list[str]:
    """All facts of the world, one sentence each: what the search tool finds."""
    population, home, price = world()
    return [
        *(f"The population of {place} is {people}." for place, people in population.items()),
        *(f"The home town of {person} is {place}." for person, place in home.items()),
        *(f"The price of {good} is {coins}." for good, coins in price.items()),
    ]


# The families of kind D: see families.py.


def fact(rng: Random, level: int) -> Problem:
    subject = rng.choice(("population", "price"))
    facts = getattr(world(), subject)
    name = rng.choice(list(facts))
    query = f"{subject} of {name}"
    return Problem(
        question=f"What is the {query}?",
        answer=str(facts[name]),
        solution=(("text", "I look it up."), ("search", query)),
        rationale=f"I recall that the {query} is {facts[name]}.",
    )


def cost(rng: Random, level: int) -> Problem:
    price = world().price
    good = rng.choice(list(price))
    n = number(rng, level + 3, 2)
    return Problem(
        question=f"What do {n} {good} cost?",
        answer=str(n * price[good]),
        solution=(
            ("text", "I look up the price."),
            ("search", f"price of {good}"),
            ("text", "I multiply."),
            ("python", f"{n}*{price[good]}"),
        ),
        rationale=f"One costs {price[good]}.",
    )


def home(rng: Random, level: int) -> Problem:
    population, homes, _ = world()
    person = rng.choice(list(homes))
    place = homes[person]
    return Problem(
        question=f"How many people live in the home town of {person}?",
        answer=str(population[place]),
        solution=(
            ("text", "I look up the town."),
            ("search", f"home town of {person}"),
            ("text", "Then the people."),
            ("search", f"population of {place}"),
        ),
        rationale=f"It is {place}.",
    )


def gap(rng: Random, level: int) -> Problem:
    population = world().population
    large, small = rng.sample(list(population), 2)
    if population[large] < population[small]:
        large, small = small, large
    return Problem(
        question=f"How many more people live in {large} than in {small}?",
        answer=str(population[large] - population[small]),
        solution=(
            ("text", "I look up both."),
            ("search", f"population of {large}"),
            ("text", "And"),
            ("search", f"population of {small}"),
            ("text", "I subtract."),
            ("python", f"{population[large]}-{population[small]}"),
        ),
        rationale=f"{population[large]} - {population[small]}.",
    )
