"""The answers of arithmetic, worked out again from the questions in exact fractions."""

import operator
import re
from fractions import Fraction
from random import Random

import pytest
import sympy

from nanotir.problems.generate import generate
from nanotir.problems.numbers import everyday

CALCULATIONS = {
    "+": operator.add,
    "plus": operator.add,
    "-": operator.sub,
    "minus": operator.sub,
    "*": operator.mul,
    "times": operator.mul,
    "/": operator.truediv,
    "mod": operator.mod,
    "% of": lambda p, n: p * n / 100,
    "^": operator.pow,
}
NUMBER = r"\d+(?:\.\d+)?"
ASKED = re.compile(rf"What is (-?{NUMBER}) ?([^\d?]+?) ?({NUMBER})\?")
FAMILIES = ["add", "sub", "mul", "mod", "div", "percent", "decimal", "raised", "itself", "cancel"]


def problems_of(name, n, **how):
    return generate(n, families=[name], wording="plain", **how)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("how", [{}, {"level": 3, "longer": 2}, {"longer": 2}, {"level": 9}])
def test_the_answer_is_the_exact_result(name, how):
    for problem in problems_of(name, 100, **how):
        a, sign, b = ASKED.fullmatch(problem.question).groups()
        exact = CALCULATIONS[sign](Fraction(a), Fraction(b))
        assert Fraction(problem.answer) == exact, problem


@pytest.mark.parametrize("name", FAMILIES)
def test_a_whole_answer_has_no_decimals(name):
    for problem in problems_of(name, 200):
        assert Fraction(problem.answer).denominator > 1 or problem.answer.lstrip("-").isdigit()


@pytest.mark.parametrize("name", ["sub", "div"])
def test_a_number_is_not_asked_about_itself(name):
    """Such a question would need no tool, and belongs to a family of its own."""
    for problem in problems_of(name, 3000):
        a, _, b = ASKED.fullmatch(problem.question).groups()
        assert a != b


@pytest.mark.parametrize("name, shapes", [("mixed", 27), ("over", 10)])
@pytest.mark.parametrize("how", [{}, {"level": 9, "longer": 2}])
def test_products_come_before_sums_but_for_parentheses(name, shapes, how):
    seen = set()
    for problem in problems_of(name, 300, **how):
        expression = problem.question.removeprefix("What is ").rstrip("?")
        seen.add(re.sub(r"\d+", "n", expression))
        assert problem.answer == str(sympy.sympify(expression))
    assert len(seen) == shapes


def test_a_square_root_is_one():
    for problem in problems_of("root", 200, level=3, longer=2):
        square = int(problem.question.removeprefix("What is the square root of ").rstrip("?"))
        assert int(problem.answer) ** 2 == square


@pytest.mark.parametrize("name", ["add", "sub"])
def test_one_first_number_in_ten_is_negative(name):
    asked = [problem.question for problem in problems_of(name, 2000)]
    negative = sum(question.startswith("What is -") for question in asked)
    assert negative == pytest.approx(200, abs=50)


def test_divisions_have_whole_results_and_decimals():
    answers = [problem.answer for problem in problems_of("div", 200)]
    assert 40 < sum("." in answer for answer in answers) < 120


@pytest.mark.parametrize("name", ["decimal", "div", "over", "percent", "root"])
@pytest.mark.parametrize("how", [{}, {"level": 3, "longer": 2}])
def test_a_program_of_decimals_has_no_noise_of_floats(name, how, python):
    for problem in problems_of(name, 40, **how):
        output = python.run(problem.solution[-1][1]).output
        assert output.removesuffix(".0") == problem.answer


def test_no_sum_of_decimals_is_asked_in_two_ways():
    asked = {}
    for problem in problems_of("decimal", 3000):
        a, sign, b = ASKED.fullmatch(problem.question).groups()
        asked.setdefault((a, CALCULATIONS[sign], b), set()).add(sign)
    assert {len(signs) for signs in asked.values()} == {1}
    assert len(set.union(*asked.values())) == 6


def test_many_everyday_numbers_are_round_but_none_is_below_the_least():
    numbers = [everyday(Random(i), 3, 25) for i in range(2000)]
    hundreds = sum(n % 100 == 0 for n in numbers)
    assert min(numbers) == 25
    # A third has three digits, a quarter is rounded, a third of those to hundreds.
    assert hundreds == pytest.approx(2000 / 36, abs=20)
