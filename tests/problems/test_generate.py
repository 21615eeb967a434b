import re

import pytest

from nanotir.problems.generate import FAMILIES, documents, generate, split_of

SEVERAL = [(name, level) for name in FAMILIES for level in (1, 2, 3)]


def test_there_are_fourteen_families_of_five_kinds():
    assert len(FAMILIES) >= 14 and {kind for kind, _ in FAMILIES.values()} == set("ABCDE")


@pytest.mark.parametrize("name", FAMILIES)
def test_no_test_question_occurs_in_training(name):
    train = {row["question"] for seed in range(3) for row in generate(100, "train", seed, [name])}
    test = {row["question"] for seed in range(3) for row in generate(20, "test", seed, [name])}
    assert train and test and not train & test
    assert {split_of(question) for question in train} == {"train"} and {
        split_of(question) for question in test
    } == {"test"}


@pytest.mark.parametrize("name, level", SEVERAL)
def test_the_taught_solution_leads_to_the_gold_answer(name, level, python, search):
    """The answer, or where words must be put around it (E) every number of it, stands in what the last call puts out."""
    tools = {"python": python, "search": search}
    for row in generate(4, "train", 7, [name], level):
        calls = [(kind, text) for kind, text in row["solution"] if kind != "text"]
        results = [tools[kind].run(text) for kind, text in calls]
        assert all(result.ok for result in results), (row, results)
        if row["kind"] == "B":
            assert not calls and row["answer"] in row["solution"][-1][1]
        else:
            parts = re.findall(r"\d+", row["answer"]) if row["kind"] == "E" else [row["answer"]]
            assert all(
                re.search(rf"(?<!\d){re.escape(part)}(?!\d)", results[-1].output) for part in parts
            ), (row, results)


def test_what_is_looked_up_reaches_the_program(search):
    for row in generate(40, "train", 0, ["cost", "gap"]):
        found = [search.run(text).output for kind, text in row["solution"] if kind == "search"]
        program = row["solution"][-1][1]
        for passage in found:
            assert passage.split()[-1].rstrip(".") in re.findall(r"\d+", program)


def test_kinds_call_the_tools_they_are_named_for():
    tools_of = {row["kind"]: set() for row in generate(200)}
    for row in generate(200):
        tools_of[row["kind"]] |= {kind for kind, _ in row["solution"]} - {"text"}
    assert tools_of == {
        "A": {"python"},
        "B": set(),
        "C": {"python"},
        "D": {"python", "search"},
        "E": {"python"},
    }


def test_problems_depend_on_seed_split_and_number_alone():
    assert generate(50, seed=3) == generate(80, seed=3)[:50]
    assert generate(50, seed=3) != generate(50, seed=4)


def test_a_higher_level_is_harder():
    length = lambda level: sum(
        len(row["answer"])
        for row in generate(200, families=["mul", "det", "quot", "lin"], level=level)
    )
    assert length(1) < length(2) < length(3)


def test_every_fact_of_the_world_is_found_by_its_own_words(search):
    for fact in documents()[::7]:
        assert search.run(fact.split(" is ")[0].removeprefix("The ")).output == fact


def test_an_unknown_family_is_named():
    with pytest.raises(ValueError, match="no family 'mull'"):
        generate(1, families=["mull"])
