"""Problems and demonstrations that do not fit into a row of the model."""

import json

import pytest

import train
from nanotir import evaluate
from nanotir.config import parse
from nanotir.problems import Problem
from nanotir.room import demonstrations_with_room, problems_with_room
from nanotir.run_files import read_config
from nanotir.trajectory import Format

pytestmark = pytest.mark.usefixtures("shared_tools")
SHORT = (
    "--preset probe --sft.steps 2 --sft.batch_size 4 --rl.steps 1 --eval.problems 3 "
    "--sampler.max_new_tokens 8 --tools python --model.vocab_size 300 --threads 1"
).split()
LONG = {"question": "word " * 746, "answer": "1"}
EASY = {"question": "One?", "answer": "1"}


def write(path, *rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"jsonl:{path}"


def mistaken(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as stopped:
        train.main([*SHORT, *map(str, arguments)])
    err = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert err[-1].startswith("train.py: ")
    return err[-1]


@pytest.fixture
def given(tmp_path):
    """(problems that fit, problems of which the third does not)."""
    good = write(tmp_path / "good.jsonl", *[EASY] * 6)
    return good, write(tmp_path / "bad.jsonl", EASY, EASY, LONG, *[EASY] * 3)


def test_a_problem_that_leaves_no_room_is_named_before_anything_is_made(given, tmp_path, capsys):
    good, bad = given
    said = mistaken(capsys, "--data", bad, "--eval-data", good, "--out", tmp_path / "run")
    assert f"{tmp_path}/bad.jsonl:3: a prompt of " in said
    assert "leaves no room to answer: model.max_seq_len is 512" in said
    assert "--too-long skip" in said
    assert not (tmp_path / "run").exists()


def test_so_is_a_held_out_problem(given, tmp_path, capsys):
    good, bad = given
    said = mistaken(capsys, "--data", good, "--eval-data", bad, "--out", tmp_path / "run")
    assert f"{tmp_path}/bad.jsonl:3: a prompt of " in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("which", ["--data", "--eval-data"])
def test_a_family_that_has_no_longer_problems_leaves_no_folder(which, tmp_path, capsys):
    given = ["--data", "plain", "--eval-data", "plain", which, "longer:queue"]
    said = mistaken(capsys, *given, "--out", tmp_path / "run")
    assert "a family without numbers has none that are longer" in said
    assert not (tmp_path / "run").exists()


def test_so_is_a_problem_of_an_evaluation(given, tmp_path, capsys):
    good, bad = given
    train.main([*SHORT, "--data", good, "--eval-data", good, "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(["--run", str(tmp_path / "run"), "--data", bad, "--problems", "6"])
    assert stopped.value.code == 2
    assert "bad.jsonl:3: a prompt of" in capsys.readouterr().err


def test_a_row_that_is_too_short_for_every_problem_leaves_no_folder(tmp_path, capsys):
    said = mistaken(capsys, "--model.max-seq-len", "4", "--out", tmp_path / "run")
    assert "none of the problems fits" in said
    assert not (tmp_path / "run").exists()


def test_problems_that_leave_no_room_can_be_left_out_with_a_counted_line(given, tmp_path, capsys):
    good, bad = given
    arguments = ["--data", bad, "--eval-data", good, "--too-long", "skip"]
    arguments += ["--out", str(tmp_path / "run")]
    train.main([*SHORT, *arguments])
    out, err = capsys.readouterr()
    left_out = [line for line in err.splitlines() if line.startswith("left out")]
    (line,) = left_out
    assert line.startswith(f"left out 1 of 6 problems, the first is {tmp_path}/bad.jsonl:3: ")
    assert "5 problems, tools" in out
    assert read_config(tmp_path / "run")["too_long"] == "skip"
    train.main(["--resume", str(tmp_path / "run")])  # the same are left out again


def test_a_run_that_leaves_problems_out_is_evaluated_without_them(given, tmp_path, capsys):
    good, bad = given
    out = str(tmp_path / "run")
    arguments = ["--data", good, "--eval-data", bad, "--too-long", "skip", "--out", out]
    train.main([*SHORT, *arguments])
    capsys.readouterr()
    evaluate.main(["--run", out, "--problems", "6", "--json"])
    said = capsys.readouterr()
    assert json.loads(said.out)["tools"]["n"] == 5
    assert "left out 1 of 6 problems" in said.err


def test_a_demonstration_that_does_not_fit_is_named_before_anything_is_made(tmp_path, capsys):
    rows = [EASY | {"rationale": "Because."}, EASY | {"question": "1?", "rationale": "so " * 600}]
    data = write(tmp_path / "a.jsonl", *rows)
    arguments = ["--data", data, "--eval-data", data, "--teacher.format", "rationale"]
    said = mistaken(capsys, *arguments, "--out", tmp_path / "run")
    assert f"{tmp_path}/a.jsonl:2: a demonstration of " in said
    assert not (tmp_path / "run").exists()


def test_a_demonstration_that_a_tools_output_makes_too_long_is_named(tmp_path, capsys):
    row = {"question": "Many?", "answer": "It is <<10**900=0>>1.\n#### 1"}
    data = write(tmp_path / "a.jsonl", row).replace("jsonl:", "gsm8k:", 1)
    arguments = ["--data", data, "--eval-data", data, "--teacher.quality", "1"]
    said = mistaken(capsys, *arguments, "--out", tmp_path / "run")
    assert f"{tmp_path}/a.jsonl:1: a demonstration of " in said
    assert not (tmp_path / "run").exists()


class Double:
    """What demonstrations_with_room reads of a run."""

    def __init__(self, problems, tokenizer, max_seq_len, too_long):
        self.problems, self.tokenizer, self.format = problems, tokenizer, Format()
        self.config = parse(["--model.max-seq-len", str(max_seq_len), "--too-long", too_long])


def test_demonstrations_that_do_not_fit_can_be_left_out(tokenizer, capsys):
    problems = [Problem("a?", "1"), Problem("b?", "2"), Problem("c?", "3")]
    texts = ["x " * 9, "x", "y " * 9]
    shown = [
        Format().trajectory(tokenizer, problem.question, [("text", text)])
        for problem, text in zip(problems, texts)
    ]
    limit = len(shown[1].ids)
    assert demonstrations_with_room(Double(problems, tokenizer, limit, "skip"), shown) == shown[1:2]
    said = capsys.readouterr().err
    assert said.startswith("left out 2 of 3 demonstrations, the first is 'a?': a demonstration of")
    with pytest.raises(ValueError, match=r"'a\?': .*2 demonstrations are too long"):
        demonstrations_with_room(Double(problems, tokenizer, limit, "error"), shown)


def test_a_prompt_must_leave_room_for_one_id(tokenizer):
    problem = Problem("a?", "1")
    length = len(Format().prompt(tokenizer, problem.question))
    assert problems_with_room([problem], tokenizer, Format(), length + 1) == [problem]
    with pytest.raises(ValueError, match=r"'a\?': a prompt of .* none of the problems fits"):
        problems_with_room([problem], tokenizer, Format(), length, "skip")
