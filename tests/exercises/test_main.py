"""The runner as a student uses it: what is printed, written and returned."""

import inspect
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import nanotir
import train
from nanotir.exercises.__main__ import main
from nanotir.exercises.exercise import exercises

ROOT = Path(nanotir.__file__).parents[1]
EXERCISE = next(exercise for exercise in exercises() if exercise.number == 8)
SOLUTION = inspect.getsource(sys.modules[EXERCISE.function.__module__])
BATCH_MEAN = SOLUTION.replace("groups - groups.mean(1, keepdim=True)", "groups - rewards.mean()")
FILE = Path("answers/e08_advantages.py")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def said(capsys):
    """The exit code and the output of a command."""

    def run(*arguments) -> tuple[int, str]:
        code = main(list(arguments))
        return code, capsys.readouterr().out

    return run


def refused(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    out, err = capsys.readouterr()
    assert (stopped.value.code, out, err.count("\n")) == (2, "", 1)
    return err


def test_start_writes_a_stub_and_the_rules_for_assistants_and_never_overwrites(said):
    assert "answers/e08_advantages.py" in said("start", "8")[1]
    assert 'NotImplementedError("exercise 8")' in FILE.read_text()
    assert "not complete" not in FILE.read_text()
    assert "You may not" in (FILE.parent / "AGENTS.md").read_text()
    FILE.write_text("mine")
    assert "stays as it is" in said("start", "8")[1]
    assert FILE.read_text() == "mine"


@pytest.mark.parametrize("source, code", [(SOLUTION, 0), (BATCH_MEAN, 1), (None, 2)])
def test_a_check_as_a_command_says_and_returns_what_it_does_when_called(said, source, code, capsys):
    FILE.parent.mkdir()
    if source is None:
        expected = (2, "", refused(capsys, "check", "8"))
    else:
        FILE.write_text(source)
        expected = (*said("check", "8"), "")
    command = [sys.executable, "-m", "nanotir.exercises", "check", "8"]
    where = {"env": os.environ | {"PYTHONPATH": str(ROOT)}}
    done = subprocess.run(command, capture_output=True, text=True, **where)
    assert (done.returncode, done.stdout, done.stderr) == expected
    assert done.returncode == code


def test_start_takes_a_lab_or_goes_on_with_the_next_exercise(said):
    said("start", "c")
    started = [path.name for path in sorted(FILE.parent.glob("e*.py"))]
    assert started == [name for name in started if name[:3] in ("e07", "e08", "e09", "e10")]
    said("start")
    assert len(list(FILE.parent.glob("e*.py"))) == min(len(started) + 1, len(exercises()))


@pytest.mark.parametrize("which", ["8", "C8", "c8", "group_advantages"])
def test_an_exercise_is_named_by_number_or_name(said, which):
    said("start", which)
    assert FILE.exists()


def test_check_says_word_sentence_case_and_where_to_read(said):
    said("start", "8")
    assert said("check", "8")[1].startswith("TO DO  8 group_advantages: not begun")
    FILE.write_text(BATCH_MEAN)
    code, text = said("check", "8")
    word, case, yours, expected, _, read = text.splitlines()
    assert code == 1
    assert word == f"WRONG  8 group_advantages: {EXERCISE.mistakes[0].message}"
    assert case.startswith("  groups of different means and spreads: group_advantages(rewards=")
    assert yours.split()[0] == "yours"
    assert expected.split()[0] == "expected"
    assert "hint 8" in read
    FILE.write_text(SOLUTION)
    code, text = said("check")
    assert code == 0
    assert text.startswith(f"PASSED 8 group_advantages: {EXERCISE.look}")


def test_check_tells_more_of_the_first_failure_alone(said):
    said("start", "C")
    for path in FILE.parent.glob("e*.py"):
        path.write_text("x =")
    _, text = said("check")
    assert len([line for line in text.splitlines() if not line.startswith("ERROR")]) == 1


def test_the_list_knows_the_last_verdict_until_the_file_changes(said):
    def state() -> str:
        return next(line for line in said()[1].splitlines() if " 8  group" in line)

    assert state().endswith("min")
    said("start", "8")
    assert state().endswith("to do")
    FILE.write_text(SOLUTION)
    assert state().endswith("not checked")
    said("check", "8")
    assert state().endswith("passed")
    FILE.write_text(SOLUTION + "\n")
    assert state().endswith("not checked")


def test_the_list_goes_on_with_what_is_begun(said):
    assert said()[1].endswith(" start 1\n")
    said("start", "8")
    assert said()[1].endswith(" check 8\n")
    FILE.write_text(SOLUTION)
    said("check", "8")
    assert said()[1].endswith("1 of 14 passed; next: python -m nanotir.exercises start 1\n")


WITHOUT_TORCH = """
import sys
from nanotir.exercises.__main__ import exercises, main
for number in (1, 4, 5, 6, 13, 14):
    assert exercises(number)[0].function
main(["check", "14"])
print("torch" in sys.modules)
"""


def test_an_exercise_without_tensors_is_checked_without_torch(said):
    said("start", "14")
    command = [sys.executable, "-c", WITHOUT_TORCH]
    where = {"env": {"PYTHONPATH": str(ROOT)}}
    done = subprocess.run(command, capture_output=True, text=True, **where)
    assert done.stdout.startswith("TO DO  14") and done.stdout.endswith("False\n")


def test_every_hint_is_given_once_more(said):
    said("start", "8")
    counts = [len(said("hint", "8")[1].splitlines()) for _ in range(4)]
    assert counts == [1, 2, 3, 3]
    assert EXERCISE.hints[2] in said("hint", "8")[1]


def test_diff_needs_a_pass_or_giving_up(said, capsys):
    said("start", "8")
    assert "not passed yet" in refused(capsys, "diff", "8")
    assert "+    one_of(" in said("diff", "8", "--give-up")[1]
    FILE.write_text(SOLUTION)
    assert said("diff", "8")[1].splitlines() == ["the same text", EXERCISE.look]


def test_watch_checks_what_is_saved_until_it_passes(said):
    said("start", "8")

    def student():
        for text in (BATCH_MEAN, SOLUTION):
            time.sleep(1.0)
            FILE.write_text(text)

    writing = threading.Thread(target=student)
    writing.start()
    code, text = said("watch", "8")
    writing.join()
    assert code == 0
    assert text.splitlines()[-2][9:15] == "PASSED"


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["strat"], "no command 'strat': did you mean 'start'?"),
        (["check", "99"], "no exercise '99': there are"),
        (["check", "8"], "there is no answers/e08_advantages.py: begin with"),
        (["hint", "8"], "begin with `python -m nanotir.exercises start 8`"),
        (["check", "8", "--answer", "x"], "did you mean '--answers'?"),
        (["start", "8", "9"], "'9' belongs to no flag"),
        (["watch"], "required: N"),
    ],
)
def test_a_mistake_is_one_line(capsys, arguments, sentence):
    assert sentence in refused(capsys, *arguments)


def test_a_damaged_record_is_named(said, capsys):
    said("start", "8")
    (FILE.parent / ".progress.json").write_text("{")
    assert ".progress.json' cannot be used" in refused(capsys, "hint", "8")


def test_train_runs_on_the_answers(capsys):
    FILE.parent.mkdir()
    FILE.write_text(SOLUTION.replace("    one_of(", "    print('this is mine')\n    one_of(", 1))
    small = "--problems 60 --eval.problems 1 --sampler.max_new_tokens 8 --sft.steps 0 --rl.steps 1"
    train.main(["--preset", "probe", *small.split(), "--tools", "", "--answers", "answers"])
    lines = capsys.readouterr().out.splitlines()
    assert "from answers: group_advantages" in lines
    assert "this is mine" in lines
    EXERCISE.function([1.0, 0.0], 2)
    assert capsys.readouterr().out == ""


def test_train_refuses_a_folder_without_answers(capsys):
    with pytest.raises(SystemExit):
        train.main(["--preset", "probe", "--tools", "", "--answers", "nowhere"])
    assert capsys.readouterr().err == "train.py: no exercise is begun in 'nowhere'\n"


def test_pytest_runs_on_the_answers():
    FILE.parent.mkdir()
    FILE.write_text(BATCH_MEAN)
    test = [str(ROOT / "tests/test_advantages.py"), "-k", "compared_with_the_mean"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *test]
    command += ["--answers", str(FILE.parent.resolve())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "1 failed" in done.stdout


def test_training_does_not_import_the_exercises():
    see = "import sys, train; print([name for name in sys.modules if 'exercises' in name])"
    done = subprocess.run([sys.executable, "-c", see], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n"
