import re
from random import Random

import pytest

from nanotir.problems.families import FAMILIES, in_python
from nanotir.problems.generate import generate
from nanotir.problems.numbers import signed, total

SEVERAL = [(name, level) for name in FAMILIES for level in (1, 2, 3)]


def calls(problem):
    return [(kind, text) for kind, text in problem.solution if kind != "text"]


def outputs(problem, tools):
    results = [tools[kind].run(text) for kind, text in calls(problem)]
    assert all(result.ok for result in results), (problem, results)
    return [result.output for result in results]


def contains(text, part):
    """Whether the part stands in the text, and not inside a longer number."""
    return re.search(rf"(?<!\d){re.escape(part)}(?!\d)", text) is not None


def test_there_are_35_families_of_five_kinds():
    assert len(FAMILIES) == 35
    assert {kind for kind, _ in FAMILIES.values()} == set("ABCDE")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_named_after_its_function(name):
    _, make = FAMILIES[name]
    assert make.__name__ == name


@pytest.mark.parametrize("name, level", SEVERAL)
def test_the_taught_solution_leads_to_the_gold_answer(name, level, python, search):
    """The last output contains the answer; for answers in words, each number of it."""
    for problem in generate(4, "train", 7, [name], level):
        found = outputs(problem, {"python": python, "search": search})
        if problem.kind == "B":
            assert not found and problem.answer in problem.solution[-1][1]
            continue
        parts = [problem.answer]
        if problem.kind == "E" and re.search("[a-z]", problem.answer):
            parts = re.findall(r"\d+", problem.answer)
        assert all(contains(found[-1], part) for part in parts), (problem, found)


def test_the_answer_of_an_equation_is_its_only_solution():
    for problem in generate(3000, families=["lin"], wording="plain"):
        left, right = map(in_python, problem.question[len("Solve ") : -1].split(" = "))
        code = problem.solution[-1][1].splitlines()[-1]
        assert code == f"solve({left}-({right}),x)".replace(" ", "")
        here, beside = (
            eval(f"({left})-({right})", {"x": x})
            for x in (int(problem.answer), int(problem.answer) + 1)
        )
        assert here == 0 != beside, problem


def test_equations_have_x_on_both_sides_and_alone_and_after_the_number():
    asked = [problem.question for problem in generate(600, families=["lin"], wording="plain")]
    shapes = {re.sub(r"\d+", "n", question[len("Solve ") : -1]) for question in asked}
    assert {"x + n = n", "nx = n", "nx - n = -n", "n - nx = n", "nx + n = nx - n"} <= shapes


@pytest.mark.parametrize("name", ["deriv", "integ"])
def test_a_polynomial_has_one_to_three_terms_and_begins_with_a_positive_one_with_x(name):
    first = re.compile(r"(?:of|Integrate) (\d*x[^ ?]*(?: [+-] [^ ?]+){0,2})(?:\?| from)")
    asked = [problem.question for problem in generate(300, families=[name], wording="plain")]
    sums = [first.search(question)[1] for question in asked]
    assert {written.count(" ") // 2 for written in sums} == {0, 1, 2}
    assert any(written.startswith("x") for written in sums)
    assert any(" - " in written for written in sums)


@pytest.mark.parametrize(
    "terms, written",
    [
        ([(1, "x^2"), (-3, "x"), (5, "")], "x^2 - 3x + 5"),
        ([(-1, "x"), (4, "")], "-x + 4"),
        ([(0, "x"), (-4, "")], "-4"),
        ([(2, "x"), (0, "")], "2x"),
        ([(0, "x"), (0, "")], "0"),
    ],
)
def test_a_sum_is_written_as_people_write_it(terms, written):
    assert total(terms) == written


def test_derivatives_are_written_as_sympy_writes_them():
    for problem in generate(60, families=["deriv"], level=2):
        (_, code), names = problem.solution[-1], {}
        start, _, last = code.rpartition("\n")
        exec(start, names)
        assert problem.answer == str(eval(last, names)), problem


@pytest.mark.parametrize("name", ["cost", "gap"])
def test_what_is_looked_up_reaches_the_program(name, search):
    for problem in generate(20, families=[name]):
        program = problem.solution[-1][1]
        for kind, text in problem.solution:
            if kind == "search":
                fact = search.run(text).output
                assert contains(program, fact.split()[-1].rstrip("."))


def test_kinds_call_the_tools_they_are_named_for():
    tools = {}
    for problem in generate(200):
        tools.setdefault(problem.kind, set()).update(kind for kind, _ in calls(problem))
    assert tools == {
        "A": {"python"},
        "B": set(),
        "C": {"python"},
        "D": {"python", "search"},
        "E": {"python"},
    }


@pytest.mark.parametrize("name", ["mul", "det", "quot", "lin"])
def test_the_numbers_of_a_higher_level_are_longer(name):
    lengths = []
    for level in (1, 2, 3):
        problems = generate(100, families=[name], level=level)
        lengths.append(sum(len(problem.answer) for problem in problems))
    assert lengths == sorted(set(lengths))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_problem_depends_on_its_random_generator_alone(name):
    _, make = FAMILIES[name]
    assert make(Random(5), 1) == make(Random(5), 1)


@pytest.mark.parametrize(
    "n, symbol, term",
    [(3, "", " + 3"), (-3, "x", " - 3x"), (1, "x", " + x"), (0, "x", ""), (0, "", " + 0")],
)
def test_a_term_of_a_sum_is_written_with_its_sign(n, symbol, term):
    assert signed(n, symbol) == term
