"""Grading: what a submission earns, and that none harms or lies its way through."""

import contextlib
import csv
import inspect
import json
import os
from pathlib import Path

import pytest
from submissions import HOSTILE, calling

from nanotir.exercises import apart, e08_advantages, grade, inside
from nanotir.exercises.apart import Apart, checked_value
from nanotir.exercises.exercise import edited_text, exercises
from nanotir.exercises.stub import stub
from nanotir.tools import lockdown, sandbox

EXERCISE = e08_advantages.EXERCISE
FILE = "e08_advantages.py"
OWN = inspect.getsource(EXERCISE.function)
HEAD = stub(EXERCISE).split("\n\n\n")[0] + "\n\n\n"


@pytest.fixture(scope="module")
def server():
    with Apart(EXERCISE) as started:
        yield started


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A file of somebody else's, which no submission may read, change or delete."""
    path = tmp_path_factory.mktemp("other") / "secret.py"
    path.write_text(HEAD + OWN)
    return path


def verdict_on(server, source: str, seed: int = 1):
    return grade.verdict(EXERCISE, server.ask(source, seed), seed)


def test_the_packages_own_text_passes(server):
    assert verdict_on(server, HEAD + OWN).word == "passed"


def test_the_stub_is_to_do(server):
    assert verdict_on(server, stub(EXERCISE)).word == "to do"


def test_a_mistake_is_named(server):
    mistake = EXERCISE.mistakes[2]
    verdict = verdict_on(server, HEAD + edited_text(OWN, mistake))
    assert (verdict.word, verdict.sentence, verdict.mistake) == ("wrong", mistake.message, 2)


def test_an_error_is_told_with_the_students_own_line(server):
    verdict = verdict_on(server, calling("undefined + 1"))
    assert verdict.word == "error"
    assert "NameError" in verdict.sentence and "undefined + 1" in verdict.sentence


@pytest.mark.parametrize("exercise", exercises(), ids=lambda exercise: exercise.name)
def test_the_copy_of_every_exercise_has_no_solution(exercise, tmp_path):
    apart.copy_package(exercise, tmp_path)
    path = inspect.getfile(inspect.unwrap(exercise.function))
    text = (tmp_path / Path(path).relative_to(apart.PROJECT)).read_text()
    compile(text, path, "exec")
    assert "is cut out" in grade.body(text, exercise.name)[0]
    assert len(grade.body(text, exercise.name)) == 1


@pytest.mark.skipif(lockdown.landlock_version() < 1, reason="needs Landlock")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_does_not_pass_and_is_answered_in_a_sentence(
    name, server, outside, monkeypatch
):
    source, sentence = HOSTILE[name]
    if "loop" in name:
        monkeypatch.setattr(apart, "SECONDS", 0.2)
        monkeypatch.setattr(apart, "PATIENCE", 5 if "ignores" in name else 100)
    verdict = verdict_on(server, source.replace("OUTSIDE", str(outside)))
    assert verdict.word in ("wrong", "error")
    assert sentence in verdict.sentence
    assert "\n" not in verdict.sentence and len(verdict.sentence) < 500
    assert outside.read_text() == HEAD + OWN


@pytest.mark.parametrize(
    "value",
    [
        ["tensor", [], [12], "float64"],
        ["tensor", ["1"], [1], "float64"],
        ["tensor", [1.0], [1]],
        ["float", "1.0"],
        ["int", True],
        ["list", [1, 2]],
        ["dict", [["item", [["int", 1], ["int", 1]]], ["int", 1]]],
        ["tensor", [], [10**9, 0], "float64"],
        ["dict", [["item", [["int", 1]]]]],
        [["float"], 1.0],
        [],
    ],
)
def test_a_value_that_is_not_what_it_says_is_refused(value):
    with pytest.raises((ValueError, TypeError)):
        checked_value(value)


def test_the_text_of_an_object_is_no_list_of_values():
    assert checked_value(["Span", "looks like one"]) == ["object Span", "looks like one"]


def test_a_hostile_file_does_not_harm_the_next(server, outside):
    for name in ("closes everything", "kills its parent", "leaves a thread behind"):
        server.ask(HOSTILE[name][0].replace("OUTSIDE", str(outside)), 1)
    assert verdict_on(server, HEAD + OWN).word == "passed"


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_nobody_keeps_no_folder_but_the_servers(tmp_path, outside, monkeypatch):
    outside.chmod(0o600)
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path / "base")
    if (pid := os.fork()) == 0:
        inside.become_nobody(".")
        open("own", "w").close()
        os._exit(os.access(outside, os.R_OK))
    assert os.waitpid(pid, 0)[1] == 0
    assert (tmp_path / "base/own").exists()


@pytest.fixture
def alone(server, monkeypatch):
    """The class has one exercise, whose server is running already."""
    monkeypatch.setattr(grade, "Apart", lambda exercise: contextlib.nullcontext(server))
    monkeypatch.setattr(grade, "exercises", lambda: [EXERCISE])
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # what grade deletes is back afterwards


@pytest.fixture
def students(tmp_path):
    """Four students: one is right, one is wrong, one has a link to the first, one has nothing."""
    wrong = HEAD + edited_text(OWN, EXERCISE.mistakes[0])
    for path, text in {
        "ada": HEAD + OWN,
        "bob/answers": wrong,
        "cy/deep/er": None,
        "dan": "",
    }.items():
        (tmp_path / path).mkdir(parents=True)
        if text:
            (tmp_path / path / FILE).write_text(text)
    (tmp_path / "cy/deep/er" / FILE).symlink_to(tmp_path / "ada" / FILE)
    return tmp_path


def printed(capsys, *arguments) -> str:
    grade.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def test_the_grades_of_four_students(alone, students, capsys):
    rows = list(csv.DictReader(printed(capsys, students, "--csv").splitlines()))
    found = [(row["student"], row["verdict"], row["points"], row["copied"]) for row in rows]
    assert found == [
        ("ada", "passed", "20", "True"),
        ("bob", "wrong", "10", "False"),
        ("cy", "error", "0", "False"),
        ("dan", "to do", "0", "False"),
    ]
    assert rows[1]["mistake"] == EXERCISE.mistakes[0].message
    assert rows[2]["sentence"] == "the file is a link out of its folder"


def test_the_same_seed_gives_the_same_bytes(alone, students, capsys):
    first = printed(capsys, students, "--json", "--seed", 5)
    assert first == printed(capsys, students, "--json", "--seed", 5)
    assert json.loads(first)["seed"] == 5


def test_one_students_folder_is_graded_under_its_name(alone, students, capsys):
    report = json.loads(printed(capsys, students / "ada", "--json"))
    assert [student["student"] for student in report["students"]] == ["ada"]


def test_a_file_that_nests_too_deeply_is_no_copy_and_stops_nothing():
    deep = f"def group_advantages():\n    return {'+'.join(['1'] * 2000)}\n"
    assert not grade.is_copy(deep, EXERCISE)


def test_folders_in_folders_without_end_stop_no_other_student(alone, students, capsys, monkeypatch):
    monkeypatch.chdir(students / "dan")
    for _ in range(1200):
        os.mkdir("d")
        os.chdir("d")
    os.chdir(students)  # so that the long path can be left
    rows = list(csv.DictReader(printed(capsys, students, "--csv").splitlines()))
    assert [row["points"] for row in rows] == ["20", "10", "0", "0"]
    assert rows[3]["sentence"] == "its folders are nested too deeply"
    sandbox.remove(str(students / "dan"))  # which shutil.rmtree could not


def test_a_mark_of_the_byte_order_is_no_part_of_a_file(tmp_path):
    path = tmp_path / FILE
    path.write_text(HEAD + OWN, encoding="utf-8-sig")
    assert grade.read(path, tmp_path) == HEAD + OWN


def test_a_spreadsheet_takes_no_text_for_a_formula():
    assert grade.harmless("=1+1") == "'=1+1"
