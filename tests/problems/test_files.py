import json
from pathlib import Path

import pytest
from conftest import SHARED

from nanotir.problems import files, load

GSM8K = {
    "question": "How many?",
    "answer": "He has 3*4 = <<3*4=12>>12.\nThen 12+5 = <<12+5=17>>17 left.\n#### 1,017",
}
PLAIN = {"question": "q", "answer": "a"}


def write(path, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines))
    return path


def load_one(source, path, row):
    (problem,) = load(f"{source}:{write(path / 'a.jsonl', row)}")
    return problem


def test_marks_of_gsm8k_become_calls_and_the_words_around_them_stay(tmp_path):
    assert load_one("gsm8k", tmp_path, GSM8K).solution == (
        ("text", "He has 3*4 = "),
        ("python", "3*4"),
        ("text", "12.\nThen 12+5 = "),
        ("python", "12+5"),
        ("text", "17 left.\n"),
    )


def test_a_gsm8k_answer_is_what_follows_the_marker(tmp_path):
    assert load_one("gsm8k", tmp_path, GSM8K).answer == "1,017"


def test_a_gsm8k_rationale_is_the_solution_without_marks(tmp_path):
    rationale = load_one("gsm8k", tmp_path, GSM8K).rationale
    assert rationale == "He has 3*4 = 12.\nThen 12+5 = 17 left."


def test_words_between_marks_may_be_missing(tmp_path):
    row = GSM8K | {"answer": "<<1+1=2>><< 2+2 =4>> #### 4"}
    solution = load_one("gsm8k", tmp_path, row).solution
    assert solution == (("python", "1+1"), ("python", "2+2"), ("text", "\n"))


def test_a_math_answer_is_what_the_solution_boxes(tmp_path):
    solution = "So it is \\boxed{\\frac{1}{2}}."
    problem = load_one("math", tmp_path, {"problem": "Halve one.", "solution": solution})
    assert (problem.question, problem.answer) == ("Halve one.", "\\frac{1}{2}")
    assert problem.rationale == solution


def test_a_math_answer_of_its_own_comes_before_the_solutions(tmp_path):
    row = {"problem": "p", "solution": "\\boxed{2}", "answer": "3"}
    assert load_one("math", tmp_path, row).answer == "3"


@pytest.mark.parametrize(
    "solution, answer",
    [
        ("$\\boxed{-2}$ and $\\boxed{1}$", "-2, 1"),
        ("\\boxed{-3}. Note: \\boxed{3} is also accepted", "-3, 3"),
        ("\\boxed{0.5} is \\boxed{\\frac{1}{2}}. So \\boxed{0.5}.", "0.5"),
        ("\\boxed{\\boxed{3}}", "3"),
        ("\\fbox{1}, \\boxed 2", "1, 2"),
    ],
)
def test_of_several_boxes_a_math_answer_has_all_that_differ(tmp_path, solution, answer):
    row = {"problem": "p", "solution": solution}
    assert load_one("math", tmp_path, row).answer == answer


def test_a_solution_of_boxes_alone_does_not_say_what_its_answer_is(tmp_path):
    row = {"problem": "p", "solution": " ".join(f"\\boxed{{{i}}}" for i in range(1000))}
    with pytest.raises(ValueError, match="more than 20 boxes"):
        load_one("math", tmp_path, row)


@pytest.mark.parametrize(
    "fields, family",
    [({"subject": "Algebra"}, "Algebra"), ({"type": "Geometry"}, "Geometry"), ({}, "math")],
)
def test_a_math_family_is_its_subject(tmp_path, fields, family):
    row = {"problem": "p", "answer": "3"} | fields
    assert load_one("math", tmp_path, row).family == family


def test_plain_lines_need_only_a_question_and_an_answer(tmp_path):
    problem = load_one("jsonl", tmp_path, {"question": "1+1?", "answer": 2})
    assert (problem.question, problem.answer, problem.family) == ("1+1?", "2", "file")


def test_plain_lines_may_have_a_family_and_a_rationale(tmp_path):
    problem = load_one("jsonl", tmp_path, PLAIN | {"family": "f", "rationale": "r"})
    assert (problem.family, problem.rationale) == ("f", "r")


def test_empty_lines_are_skipped(tmp_path):
    path = write(tmp_path / "a.jsonl", PLAIN, "", "  ", PLAIN)
    assert len(load(f"jsonl:{path}")) == 2


@pytest.mark.parametrize(
    "bad, word",
    [
        ({"question": "q", "answer": " "}, "not text"),
        ("{not json", "not JSON"),
        ("[1]", "a JSON object is needed"),
        ({"question": "q"}, "no field 'answer'"),
        ({"question": "", "answer": "1"}, "'question' is not text"),
        ({"question": ["q"], "answer": "1"}, "'question' is not text"),
        ({"question": True, "answer": "1"}, "'question' is not text"),
        ('{"question": NaN, "answer": "1"}', "'question' is nan"),
        ({"problem": "p", "solution": "s"}, "no field 'answer', only: problem, solution"),
        (GSM8K, "read the file by gsm8k:PATH"),
        ("[" * 100_000, "nested too deeply"),
        ('{"question": ' + '{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_a_bad_line_is_reported_with_file_and_number(tmp_path, bad, word):
    path = write(tmp_path / "a.jsonl", PLAIN, PLAIN, bad)
    with pytest.raises(ValueError, match=word) as caught:
        load(f"jsonl:{path}")
    message = str(caught.value)
    assert message.startswith(f"{path}:3: ") and "\n" not in message


@pytest.mark.parametrize(
    "answer",
    ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", '"NaN"', '"nan"', '"Infinity"', '"1e400"'],
)
def test_a_gold_answer_that_is_no_finite_number_is_refused(tmp_path, answer):
    with pytest.raises(ValueError, match="a.jsonl:1: .*finite number"):
        load_one("jsonl", tmp_path, f'{{"question": "q", "answer": {answer}}}')


@pytest.mark.parametrize(
    "source, row",
    [
        ("gsm8k", {"question": "q", "answer": "words #### inf"}),
        ("math", {"problem": "p", "solution": "\\boxed{NaN}"}),
        ("jsonl", {"question": "q", "answer": "\\boxed{1e400}"}),
    ],
)
def test_so_is_one_that_a_solution_or_a_box_holds(tmp_path, source, row):
    with pytest.raises(ValueError, match="a.jsonl:1: .*finite number"):
        load_one(source, tmp_path, row)


@pytest.mark.parametrize("before", ["", "1 "])
@pytest.mark.parametrize(
    "command", ["frac{1}{2}", "times 2", "neq 2", "beta", "rho", "u0007", "u0000", "u001b[2J"]
)
def test_a_gold_answer_whose_backslash_was_not_escaped_is_refused(tmp_path, before, command):
    row = '{"question": "q", "answer": "' + before + "\\" + command + '"}'
    with pytest.raises(ValueError, match="a.jsonl:1: .*control character.*in JSON"):
        load_one("jsonl", tmp_path, row)


def test_so_is_that_of_a_gsm8k_solution(tmp_path):
    row = '{"question": "q", "answer": "words #### \\frac{1}{2}"}'
    with pytest.raises(ValueError, match="a.jsonl:1: .*control character.*in JSON"):
        load_one("gsm8k", tmp_path, row)


@pytest.mark.parametrize("answer", ["\\frac{1}{2", "1}", "```2```", "<output>2</output>"])
def test_a_gold_answer_that_cannot_be_read_back_from_a_box_is_refused(tmp_path, answer):
    with pytest.raises(ValueError, match="a.jsonl:1: .*cannot be read back"):
        load_one("jsonl", tmp_path, {"question": "q", "answer": answer})


@pytest.mark.parametrize(
    "given, answer",
    [
        ("\\boxed{42}", "42"),
        ("$\\boxed{\\frac{1}{2}}$", "\\frac{1}{2}"),
        ("It is \\fbox{x}.", "x"),
        (" 42\n", "42"),
        ("1 &\n2 \\\\\n\t3", "1 &\n2 \\\\\n\t3"),
        ("nano", "nano"),
        ("\\infty", "\\infty"),
        (1e22, "1e+22"),
    ],
)
def test_a_gold_answer_is_taken_out_of_its_box_and_its_margins(tmp_path, given, answer):
    assert load_one("jsonl", tmp_path, {"question": "q", "answer": given}).answer == answer


def test_a_problem_of_a_file_knows_its_file_and_line(tmp_path):
    path = write(tmp_path / "a.jsonl", PLAIN, "", PLAIN)
    first, second = load(f"jsonl:{path}")
    assert (first.source, second.source) == (f"{path}:1", f"{path}:3")
    assert first == second  # where it stands is no part of a problem


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\ufeff" + json.dumps(PLAIN), encoding="utf-8")
    assert len(load(f"jsonl:{path}")) == 1


def test_line_separators_inside_of_a_text_end_no_line(tmp_path):
    text = "a\u2028b\u2029c\x85d"
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"question": text, "answer": "1"}, ensure_ascii=False) + "\n")
    assert load(f"jsonl:{path}")[0].question == text


def test_of_a_line_that_is_too_long_no_more_is_read_than_shows_it(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE", 100)
    path = write(tmp_path / "a.jsonl", PLAIN, PLAIN | {"rationale": "x" * 100})
    with pytest.raises(ValueError, match="a.jsonl:2: a line of more than 100 characters"):
        load(f"jsonl:{path}")


def test_a_file_of_one_endless_line_is_one_line_of_error():
    with pytest.raises(ValueError, match="/dev/zero:1: a line of more than 1,048,576 characters"):
        load("jsonl:/dev/zero")


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
        load_one(source, tmp_path, row)


@pytest.mark.parametrize(
    "name, word",
    [("nowhere", "nowhere"), ("", "no problems"), ("binary", "UTF-8"), ("empty", "no problems")],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, word):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").write_text("")
    with pytest.raises(ValueError, match=word):
        load(f"jsonl:{tmp_path}/{name}")


@pytest.fixture(scope="module")
def real_gsm8k():
    if not SHARED.exists():
        pytest.skip("the real GSM8K is not here")
    folder = SHARED / "data" / "gsm8k"
    return load(f"gsm8k:{folder}/train.jsonl"), load(f"gsm8k:{folder}/test.jsonl")


def test_the_real_gsm8k_is_read_whole(real_gsm8k):
    train, test = real_gsm8k
    assert (len(train), len(test)) == (7473, 1319)


def test_every_mark_of_the_real_gsm8k_becomes_a_call(real_gsm8k):
    train, _ = real_gsm8k
    kinds = [kind for problem in train for kind, _ in problem.solution]
    assert kinds.count("python") == 23716


def test_the_splits_of_the_real_gsm8k_share_no_question(real_gsm8k):
    train, test = real_gsm8k
    assert not {p.question for p in train} & {p.question for p in test}


def test_svamp_is_read_from_its_array(tmp_path):
    row = {"Body": "He has 3 sticks.", "Question": "How many are left?", "Answer": 51.0}
    path = write(tmp_path / "a.json", json.dumps([row, row], indent=1))
    first, _ = load(f"svamp:{path}")
    assert first.question == "He has 3 sticks. How many are left?"
    assert first.answer == "51.0"


def test_the_subjects_of_a_folder_take_turns_and_are_families(tmp_path):
    for subject in ("Geometry", "Algebra"):
        for number in (1, 2):
            row = {"problem": f"{subject} {number}?", "type": subject, "solution": "\\boxed{1}"}
            (tmp_path / subject).mkdir(exist_ok=True)
            write(tmp_path / subject / f"{number}.json", json.dumps(row))
    found = load(f"math:{tmp_path}", n=3)
    assert [p.question for p in found] == ["Algebra 1?", "Geometry 1?", "Algebra 2?"]
    assert [p.family for p in found] == ["Algebra", "Geometry", "Algebra"]
    assert found[1].source == f"{tmp_path}/Geometry/1.json[1]"


@pytest.mark.parametrize("below", ["", "algebra"])
def test_a_folder_with_both_splits_is_refused_and_either_is_read(tmp_path, below):
    for split in ("train", "test"):
        (tmp_path / split / below).mkdir(parents=True)
        row = {"problem": f"{split}?", "solution": "\\boxed{1}"}
        write(tmp_path / split / below / "1.json", json.dumps(row))
    with pytest.raises(ValueError, match="holds problems to train and to test on"):
        load(f"math:{tmp_path}")
    assert [p.question for p in load(f"math:{tmp_path}/test")] == ["test?"]


def test_so_is_a_folder_with_a_file_of_each_split(tmp_path):
    for name in ("train-00.jsonl", "test.jsonl"):
        write(tmp_path / name, '{"question": "q?", "answer": "1"}')
    with pytest.raises(ValueError, match="holds problems to train and to test on"):
        load(f"jsonl:{tmp_path}")


def test_null_is_a_field_that_is_missing(tmp_path):
    row = '{"question": "q?", "answer": "1", "family": null, "rationale": null}'
    (problem,) = load(f"jsonl:{write(tmp_path / 'a.jsonl', row)}")
    assert (problem.family, problem.rationale) == ("file", "")


def test_other_files_of_a_folder_are_left_alone(tmp_path):
    write(tmp_path / "1.json", json.dumps(PLAIN))
    write(tmp_path / "1.json~", "no JSON")
    assert len(load(f"jsonl:{tmp_path}")) == 1


def test_a_folder_without_problems_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"no problems in '{tmp_path}'"):
        load(f"math:{tmp_path}")


def test_a_record_of_an_array_is_named_by_its_number(tmp_path):
    path = write(tmp_path / "a.json", json.dumps([PLAIN, {"question": "q"}]))
    with pytest.raises(ValueError, match=r"a.json\[2\]: no field 'answer'"):
        load(f"jsonl:{path}")


def test_lines_in_a_file_for_an_array_are_told_where_they_belong(tmp_path):
    path = write(tmp_path / "a.json", '{"question": "1+1?", "answer": "2"}\n' * 2)
    with pytest.raises(ValueError, match="lines of JSON belong into a .jsonl file"):
        load(f"jsonl:{path}")


@pytest.mark.parametrize("text", ["[{", "[" * 100_000])
def test_a_damaged_array_is_one_line(tmp_path, text):
    path = write(tmp_path / "a.json", text)
    with pytest.raises(ValueError, match="a.json: not a JSON array"):
        load(f"jsonl:{path}")


def test_the_questions_that_people_type_are_a_file_of_123():
    typed = Path(files.__file__).with_name("typed.jsonl")
    assert len({problem.question for problem in load(f"jsonl:{typed}")}) == 123
