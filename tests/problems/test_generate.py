import re
from dataclasses import replace
from itertools import cycle, islice

import pytest

from nanotir.problems import Problem, load
from nanotir.problems.families import FAMILIES
from nanotir.problems.generate import ROUND, WORDINGS, generate, split_of


def questions(n, split, name, wording):
    problems = (generate(n, split, seed, [name], wording=wording) for seed in range(3))
    return {problem.question for some in problems for problem in some}


@pytest.mark.parametrize("wording", ["plain", "trained", "reworded"])
@pytest.mark.parametrize("name", FAMILIES)
def test_no_test_question_occurs_in_training(name, wording):
    train = questions(50, "train", name, wording)
    test = questions(10, "test", name, wording)
    assert train and test and not train & test


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_plain_question_belongs_to_the_split_that_was_asked_for(split):
    plain = generate(60, split, wording="plain")
    assert {split_of(problem.question) for problem in plain} == {split}


@pytest.mark.parametrize("wording", WORDINGS)
def test_every_wording_asks_the_same_problems(wording):
    plain = generate(60, wording="plain")
    reworded = generate(60, wording=wording)
    assert [replace(p, question="") for p in plain] == [replace(p, question="") for p in reworded]


def longest(problem):
    return max(map(len, re.findall(r"\d+", problem.question)), default=0)


DIRECT = ["mul", "power", "gcd", "det", "choose", "chance", "dist", "parity", "first", "last"]
DIRECT += ["itself", "cancel", "quot", "clock", "cost", "add", "sub", "percent", "mixed"]


@pytest.mark.parametrize("name", DIRECT)
@pytest.mark.parametrize("longer", [1, 2])
def test_longer_numbers_have_so_many_digits_more_than_any_in_training(name, longer):
    seen = max(map(longest, generate(400, families=[name], wording="plain")))
    tested = generate(30, "test", families=[name], wording="plain", longer=longer)
    assert {longest(problem) for problem in tested} == {seen + longer}


@pytest.mark.parametrize(
    "name", ["lin", "quad", "system", "deriv", "integ", "div", "decimal", "raised", "root"]
)
def test_numbers_that_follow_from_longer_ones_are_longer_too(name):
    seen = generate(200, families=[name], wording="plain")
    tested = generate(200, families=[name], wording="plain", longer=1)
    assert sum(map(longest, tested)) > sum(map(longest, seen)) * 1.2


def test_families_without_numbers_have_no_longer_questions():
    assert {problem.family for problem in generate(100, longer=1)} == {*FAMILIES} - {
        *("queue", "same", "fact", "home", "gap")
    }
    assert generate(10, families=["queue"], longer=1) == []


def test_numbers_may_have_from_one_to_five_digits():
    numbers = re.findall(r"\d+", " ".join(p.question for p in generate(300, families=["mul"])))
    assert {len(number) for number in numbers} == {1, 2, 3, 4, 5}


def test_problems_depend_on_seed_and_number_alone():
    assert generate(50, seed=3) == generate(80, seed=3)[:50]


def test_another_seed_gives_other_problems():
    assert generate(50, seed=3) != generate(50, seed=4)


def test_the_kinds_take_turns():
    assert [problem.kind for problem in generate(20)] == list(islice(cycle(ROUND), 20))


def test_the_named_families_of_a_kind_take_turns_in_the_order_of_their_names():
    families = [problem.family for problem in generate(5, families=["lin", "mul"])]
    assert families == ["lin", "mul", "lin", "mul", "lin"]


def test_an_unknown_family_is_named():
    with pytest.raises(ValueError, match="no family 'mull'"):
        generate(1, families=["mull"])


def square(rng, level):
    n = rng.randrange(10, 10 ** (level + 1))
    code = f"{n}**2"
    return Problem(f"What is {n} squared?", str(n**2), solution=(("python", code),))


def test_a_new_family_is_one_entry(monkeypatch):
    monkeypatch.setitem(FAMILIES, "square", ("A", square))
    for problem in load("generated:square", "test", n=5):
        assert (problem.family, problem.kind) == ("square", "A")
        assert split_of(problem.question) == "test"
    assert "square" in {problem.family for problem in load("generated", n=100)}


@pytest.mark.parametrize("kind", ["hard", "", "BC"])
def test_a_family_of_an_unknown_kind_is_refused(monkeypatch, kind):
    monkeypatch.setitem(FAMILIES, "square", (kind, None))
    with pytest.raises(ValueError, match=f"no kind of problem '{kind}'"):
        generate(0, families=["square"])  # before it waits for the family's turn


def test_a_family_with_one_question_is_refused_for_the_split_without_it(monkeypatch):
    def only(rng, level):
        return Problem("What is 1 + 1?", "2")

    monkeypatch.setitem(FAMILIES, "only", ("C", only))
    other = {"train": "test", "test": "train"}[split_of("What is 1 + 1?")]
    with pytest.raises(ValueError, match=f"'only' has too few questions: none is in the {other}"):
        load("generated:only", other, n=1)


def test_spaces_between_the_names_of_families_do_not_count():
    assert load("generated:mul, lin", n=4) == load("generated:mul,lin", n=4)
