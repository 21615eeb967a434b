import json

import pytest

from nanotir.problems import load
from nanotir.problems.generate import generate
from nanotir.problems.sources import specs_of


def test_generated_problems_come_from_the_generator():
    assert load("generated", "test", 20, seed=3, level=2) == generate(20, "test", 3, None, 2)


def test_a_spec_may_have_a_level_of_its_own():
    assert load("reworded@3:mul", "test", 9, 1) == load("reworded:mul", "test", 9, 1, level=3)


@pytest.mark.parametrize(
    "specs",
    [
        ["generated"],
        ["generated", "generated@2", "svamp:a,b.json"],
        ["generated:lin,mul", "longer:mul", "reworded"],
        ["gsm8k:My files/test,1.jsonl", "math:MATH, all"],
        ["generated:mull,plainly", "plain"],
        ["plain@x:lin", "generated,nothing:x"],
    ],
)
def test_a_comma_separates_specs_where_a_source_follows(specs):
    assert specs_of(",".join(specs)) == specs_of(", ".join(specs)) == specs


@pytest.mark.parametrize("spec", ["generated@0", "generated@4", "generated@x", "generated@"])
def test_a_level_that_there_is_not_is_named(spec):
    with pytest.raises(ValueError, match=f"'{spec}': the level after the @ is 1, 2 or 3"):
        load(spec)


def test_families_can_be_named():
    assert load("generated:lin,mul", n=6) == generate(6, families=["lin", "mul"])


def test_a_thousand_problems_are_generated_by_default():
    assert len(load("generated:itself")) == 1000


def test_no_problems_are_no_problems():
    assert load("generated", n=0) == []


@pytest.mark.parametrize("n, length", [(None, 3), (2, 2), (9, 3)])
def test_the_first_n_problems_of_a_file_are_loaded(tmp_path, n, length):
    path = tmp_path / "a.jsonl"
    rows = [json.dumps({"question": f"q{i}", "answer": "a"}) for i in range(3)]
    path.write_text("\n".join(rows))
    questions = [problem.question for problem in load(f"jsonl:{path}", n=n)]
    assert questions == ["q0", "q1", "q2"][:length]


@pytest.mark.parametrize(
    "spec, hint",
    [
        ("gsm8q:x", "no data source 'gsm8q': did you mean 'gsm8k'"),
        ("zz:x", "no data source 'zz': there are generated, plain, reworded, longer"),
    ],
)
def test_an_unknown_source_is_named_with_a_hint(spec, hint):
    with pytest.raises(ValueError, match=hint):
        load(spec)


def test_a_file_without_its_format_is_told_how_to_be_named(tmp_path):
    (tmp_path / "mine.jsonl").touch()
    with pytest.raises(
        ValueError, match="is a file: name its format as well, as jsonl:.*mine.jsonl"
    ):
        load(str(tmp_path / "mine.jsonl"))


def test_only_generated_problems_have_a_level():
    with pytest.raises(ValueError, match="'gsm8k@2:x': only generated problems have a level"):
        load("gsm8k@2:x")
