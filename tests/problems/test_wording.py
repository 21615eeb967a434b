import re
from random import Random

import pytest

from nanotir.problems.families import FAMILIES
from nanotir.problems.generate import generate
from nanotir.problems.wording import (
    FORMS,
    grouped,
    lowercase,
    phrasings,
    reword,
    spelled,
    unmarked,
    unspaced,
)

SECTIONS = [*FAMILIES, "polite"]


def parts_of(phrasing):
    return set(re.findall(r"\{(\w+)\}", phrasing))


def test_every_family_has_its_phrasings():
    assert set(phrasings()) == set(SECTIONS)


@pytest.mark.parametrize("name", SECTIONS)
def test_six_phrasings_or_more_are_trained_on_and_two_never(name):
    trained, held_out = phrasings()[name]
    assert len(set(trained)) == len(trained) >= 6
    assert len(set(held_out)) == len(held_out) == 2
    assert not set(trained) & set(held_out)


@pytest.mark.parametrize("name", SECTIONS)
def test_every_phrasing_of_a_family_says_all_of_the_problem(name):
    trained, held_out = phrasings()[name]
    assert {frozenset(parts_of(phrasing)) for phrasing in trained + held_out} == {
        frozenset(parts_of(trained[0]))
    }


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_first_phrasing_is_how_the_family_asks(name, level):
    _, make = FAMILIES[name]
    trained, _ = phrasings()[name]
    for seed in range(20):
        plain = make(Random(seed), level).question
        assert trained[0].format(**phrasings()[name].parts(plain)) == plain


def bare(question):
    """What all forms of a question have in common."""
    return re.sub(r"[\s?.!,]", "", question.lower())


def asked(name, wording):
    return generate(40, "train", 0, [name], wording=wording)


def never_trained_on(problem):
    """The question of the problem in its held-out phrasings, with and without abbreviations."""
    parts = phrasings()[problem.family].parts(problem.question)
    held_out = [phrasing.format(**parts) for phrasing in phrasings()[problem.family].held_out]
    return [bare(form(question)) for question in held_out for form in (str, spelled)]


@pytest.mark.parametrize("name", FAMILIES)
def test_no_question_to_train_on_is_in_words_that_are_held_out(name):
    """Whatever its form: white space, marks and capitals aside."""
    for problem, trained in zip(asked(name, "plain"), asked(name, "trained")):
        assert bare(trained.question) not in never_trained_on(problem), trained.question


@pytest.mark.parametrize("name", FAMILIES)
def test_a_reworded_question_is_one_of_the_held_out_phrasings(name):
    for problem, reworded in zip(asked(name, "plain"), asked(name, "reworded")):
        assert any(words in bare(reworded.question) for words in never_trained_on(problem))


def shapes(wording):
    """Questions of all families, but for their numbers and what is not in all forms."""
    problems = generate(6000, "train", 0, wording=wording)
    return {bare(re.sub(r"\d+(\.\d+)?", "0", problem.question)) for problem in problems}


def test_no_phrasing_that_is_held_out_is_one_of_another_family():
    assert not shapes("reworded") & shapes("trained")


def test_one_question_in_five_with_a_long_number_has_commas_in_it():
    plain = generate(2000, families=["mul"], wording="plain")
    long = [bool(re.search(r"\d{4}", problem.question)) for problem in plain]
    commas = ["," in problem.question for problem in generate(2000, families=["mul"])]
    assert sum(commas) / sum(long) == pytest.approx(0.2, abs=0.04)
    assert all(is_long or not has_commas for is_long, has_commas in zip(long, commas))


def test_all_phrasings_are_asked():
    found = {reword("What is 3 * 4?", "mul", Random(i)) for i in range(2000)}
    assert {phrasing.format(a=3, b=4) for phrasing in phrasings()["mul"].trained} <= found


def test_a_family_without_phrasings_asks_in_its_own_words():
    assert reword("What is 3 squared?", "square", Random(0)) == "What is 3 squared?"


@pytest.mark.parametrize(
    "form, question, typed",
    [
        (grouped, "What is 1234567 * 999?", "What is 1,234,567 * 999?"),
        (grouped, "Differentiate 1234x^2.", "Differentiate 1234x^2."),
        (grouped, "What is 1234.5 + 4000?", "What is 1234.5 + 4,000?"),
        (grouped, "What is 0.12345 + 1?", "What is 0.12345 + 1?"),
        (grouped, "What is 7^1234 mod 9?", "What is 7^1234 mod 9?"),
        (grouped, "Calculate 1234**5678 mod 9.", "Calculate 1,234**5678 mod 9."),
        (grouped, "Is 1234 even or odd.", "Is 1,234 even or odd."),
        (grouped, "What is the gcd of (1234, 5678)?", "What is the gcd of (1234, 5678)?"),
        (spelled, "What is the gcd of 3 and 4?", "What is the greatest common divisor of 3 and 4?"),
        (spelled, "Find the lcm of 3 and 4.", "Find the least common multiple of 3 and 4."),
        (spelled, "Work out gcd(3, 4).", "Work out gcd(3, 4)."),
        (spelled, "Differentiate 4x^3 + x^2.", "Differentiate 4x cubed + x squared."),
        (spelled, "What is 3^25 mod 7?", "What is 3^25 modulo 7?"),
        (unmarked, "What is 3 * 4?", "What is 3 * 4"),
        (unmarked, "Solve 3x = 6.", "Solve 3x = 6"),
        (unmarked, "3 * 4 =", "3 * 4 ="),
        (lowercase, "Who is first: Ada Ben?", "who is first: ada ben?"),
        (unspaced, "What is 3 * 4?", "What is 3*4?"),
        (unspaced, "3 × 4 =", "3×4="),
        (unspaced, "Calculate 3 x 4.", "Calculate 3x4."),
        (unspaced, "Solve 3x - 5 = -20, 2x + y = 4.", "Solve 3x-5=-20,2x+y=4."),
        (unspaced, "det [[1, -2], [3, 4]]", "det [[1,-2],[3,4]]"),
        (unspaced, "In line stand Ada Ben. Who is first?", "In line stand Ada Ben. Who is first?"),
        (unspaced, "90 minutes = how many hours?", "90 minutes = how many hours?"),
    ],
)
def test_a_form_changes_what_it_names_and_nothing_else(form, question, typed):
    assert form(question) == typed


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("form", FORMS.values())
def test_no_form_changes_a_number(form, name):
    for problem in asked(name, "plain"):
        typed = form(problem.question)
        typed = typed.replace(",", "") if form is grouped else typed
        typed = typed.replace(" squared", "^2").replace(" cubed", "^3")
        assert re.findall(r"\d+", typed) == re.findall(r"\d+", problem.question)
