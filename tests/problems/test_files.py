import json

import pytest
from conftest import SHARED

from nanotir.problems import load

GSM8K = {
    "question": "How many?",
    "answer": "He has 3*4 = <<3*4=12>>12.\nThen 12+5 = <<12+5=17>>17 left.\n#### 1,017",
}


def write(path, *rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return path


def test_marks_of_gsm8k_become_calls_and_the_words_around_them_stay(tmp_path):
    (problem,) = load(f"gsm8k:{write(tmp_path / 'a.jsonl', GSM8K)}")
    assert problem.solution == (
        ("text", "He has 3*4 = "),
        ("python", "3*4"),
        ("text", "12.\nThen 12+5 = "),
        ("python", "12+5"),
        ("text", "17 left.\n"),
    )
    assert problem.answer == "1,017"
    assert problem.rationale == "He has 3*4 = 12.\nThen 12+5 = 17 left."


def test_a_math_answer_is_what_the_solution_boxes_last(tmp_path):
    row = {
        "problem": "Halve one.",
        "solution": "First \\boxed{2}, then \\boxed{\\frac{1}{2}}.",
        "subject": "Algebra",
    }
    (problem,) = load(f"math:{write(tmp_path / 'a.jsonl', row)}")
    assert (problem.question, problem.answer, problem.family) == (
        "Halve one.",
        "\\frac{1}{2}",
        "Algebra",
    )


def test_plain_lines_need_a_question_and_an_answer(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        {"question": "1+1?", "answer": 2},
        "",
        {"question": "q", "answer": "a", "family": "f"},
    )
    assert [(p.question, p.answer, p.family) for p in load(f"jsonl:{path}")] == [
        ("1+1?", "2", "file"),
        ("q", "a", "f"),
    ]
    assert len(load(f"jsonl:{path}", n=1)) == 1


@pytest.mark.parametrize(
    "bad, word",
    [
        ({"question": "q", "answer": " "}, "not text"),
        ("{not json", "not JSON"),
        ("[1]", "a JSON object is needed"),
        ({"question": "q"}, "no field 'answer'"),
        ({"question": "", "answer": "1"}, "'question' is not text"),
        ({"question": ["q"], "answer": "1"}, "'question' is not text"),
    ],
)
def test_a_bad_line_is_reported_with_file_and_number(tmp_path, bad, word):
    path = write(
        tmp_path / "a.jsonl",
        {"question": "q", "answer": "a"},
        {"question": "q", "answer": "a"},
        bad,
    )
    with pytest.raises(ValueError, match=word) as caught:
        load(f"jsonl:{path}")
    assert str(caught.value).startswith(f"{path}:3: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source, row",
    [
        ("gsm8k", {"question": "q", "answer": "no marker"}),
        ("gsm8k", {"question": "q", "answer": "x ####  "}),
        ("math", {"problem": "p", "solution": "none"}),
        ("math", {"problem": "p", "solution": "\\boxed{}"}),
    ],
)
def test_a_line_without_a_gold_answer_is_a_bad_line(tmp_path, source, row):
    with pytest.raises(ValueError, match="a.jsonl:1: "):
        load(f"{source}:{write(tmp_path / 'a.jsonl', row)}")


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for spec, word in (
        ("jsonl:nowhere.jsonl", "nowhere.jsonl"),
        (f"jsonl:{tmp_path}", "directory"),
        (f"jsonl:{tmp_path}/binary", "UTF-8"),
        (f"jsonl:{write(tmp_path / 'empty')}", "no problems"),
        ("gsm8q:x", "did you mean 'gsm8k'"),
    ):
        with pytest.raises(ValueError, match=word):
            load(spec)


@pytest.mark.skipif(not SHARED.exists(), reason="the real GSM8K is not here")
def test_the_real_gsm8k_is_read_whole():
    train, test = (load(f"gsm8k:{SHARED}/data/gsm8k/{split}.jsonl") for split in ("train", "test"))
    assert (len(train), len(test)) == (7473, 1319)
    calls = [text for problem in train for kind, text in problem.solution if kind == "python"]
    assert len(calls) == 23716
    assert not {p.question for p in train} & {p.question for p in test}
