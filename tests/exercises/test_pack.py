"""The zips for courses: unpacked and run as the services do, and what they write."""

import functools
import json
import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from nanotir.exercises import e08_advantages, pack
from nanotir.exercises.exercise import exercises

FIRST = e08_advantages.EXERCISE
LAB = [exercise for exercise in exercises() if exercise.lab == "C"]


@pytest.fixture(scope="module", autouse=True)
def graded_once():
    """Assignment 00 is graded once, of one exercise, not for every zip."""
    with pytest.MonkeyPatch.context() as patched:
        once = functools.cache(lambda seed: WORKED([FIRST], seed))
        patched.setattr(pack, "worked", lambda chosen, seed: once(seed))
        patched.delenv("TRITON_INTERPRET", raising=False)  # what pack deletes is back afterwards
        yield


WORKED = pack.worked


def packed(folder: Path, service: str) -> Path:
    out = folder / f"{service}.zip"
    pack.main([service, "--lab", "C", "--out", str(out), "--seed", "3"])
    return out


def unpack(path: Path, folder: Path):
    """Unpack with the files' modes, and with this interpreter in the place of setup.sh's."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            os.chmod(archive.extract(entry, folder), entry.external_attr >> 16)
    python = folder / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)


def run(command: list, **where):
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **where)
    assert done.returncode == 0, done.stderr
    return done


# The fields that the services read: name, and type or allowed values. "?" marks an optional one.
FORMATS = ("text", "html", "simple_format", "md", "ansi")
VISIBLE = ("hidden", "after_due_date", "after_published", "visible")
GRADESCOPE = {
    "score": (int, float),
    "execution_time?": (int, float),
    "output?": str,
    "output_format?": FORMATS,
    "test_output_format?": FORMATS,
    "test_name_format?": FORMATS,
    "visibility?": VISIBLE,
    "stdout_visibility?": VISIBLE,
    "extra_data?": dict,
    "tests": list,
    "leaderboard?": list,
}
GRADESCOPE_TEST = {
    "score": (int, float),
    "max_score": (int, float),
    "status": ("passed", "failed"),
    "name": str,
    "name_format?": FORMATS,
    "number?": str,
    "output?": str,
    "output_format?": FORMATS,
    "tags?": list,
    "visibility?": VISIBLE,
    "extra_data?": dict,
}
CLASSROOM50 = {
    "schema": ("classroom50/result/v1",),
    **dict.fromkeys(("classroom", "assignment", "submission", "commit", "release", "review"), str),
    "datetime": str,
    "score": int,
    "max-score": int,
    "tests": list,
}
CLASSROOM50_TEST = {"test-name": str, "passed": bool, "score": int, "max-score": int}


def check_fields(found: dict, fields: dict, more: bool = False):
    """The object has these fields, of these types, and no others unless `more`."""
    known = {name.removesuffix("?"): kind for name, kind in fields.items()}
    required = {name for name in fields if not name.endswith("?")}
    assert required <= found.keys()
    assert more or found.keys() <= known.keys()
    for name in found.keys() & known.keys():
        kind = known[name]
        if isinstance(kind, tuple) and isinstance(kind[0], str):
            assert found[name] in kind
        else:
            assert isinstance(found[name], kind) and (kind is bool or found[name] is not True)


def test_gradescope_gets_the_file_that_it_specifies(tmp_path):
    root = tmp_path / "autograder"
    unpack(packed(tmp_path, "gradescope"), root / "source")
    (root / "results").mkdir()
    submission = root / "submission"
    submission.mkdir()
    wrong = root / "source/00/wrong/e08_advantages.py"
    (submission / wrong.name).write_bytes(wrong.read_bytes())
    script = root / "run_autograder"
    script.write_bytes((root / "source/run_autograder").read_bytes())
    script.chmod(0o755)
    run([script], cwd=root, env={**os.environ, "AUTOGRADER_ROOT": str(root)})

    found = json.loads((root / "results/results.json").read_text())
    check_fields(found, GRADESCOPE)
    for test in found["tests"]:
        check_fields(test, GRADESCOPE_TEST)
    assert len(found["tests"]) == len(LAB)
    test = next(test for test in found["tests"] if test["number"] == "C8")
    assert (test["status"], test["score"], test["max_score"]) == ("failed", 10, 20)
    assert test["output"] == f"wrong: {FIRST.mistakes[0].message}"
    assert found["score"] == 10


def test_classroom_50_gets_the_file_that_it_specifies(tmp_path):
    bundle = tmp_path / "bundle"
    unpack(packed(tmp_path, "classroom50"), bundle)
    checkout = tmp_path / "checkout"
    (checkout / "answers").mkdir(parents=True)
    right = bundle / "00/right/e08_advantages.py"
    (checkout / "answers" / right.name).write_bytes(right.read_bytes())
    (checkout / "nanotir").mkdir()  # a package of the student's that must not be imported
    (checkout / "nanotir/__init__.py").write_text("raise SystemExit(0)")
    (checkout / "result.json").symlink_to(tmp_path / "elsewhere")
    names = ["CLASSROOM", "ASSIGNMENT", "SUBMISSION_TAG", "COMMIT_URL", "RELEASE_URL"]
    given = {name: f"the {name}" for name in names}
    run([sys.executable, bundle / "autograder.py"], cwd=checkout, env={**os.environ, **given})

    found = json.loads((checkout / "result.json").read_text())
    check_fields(found, CLASSROOM50)
    for test in found["tests"]:
        check_fields(test, CLASSROOM50_TEST, more=True)
    assert found["submission"] == "the SUBMISSION_TAG"
    assert found["score"] == sum(test["score"] for test in found["tests"]) == 20
    assert found["max-score"] == sum(exercise.points for exercise in LAB)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("service", pack.SERVICES)
def test_the_same_arguments_give_the_same_bytes(service, tmp_path, monkeypatch):
    first = packed(tmp_path, service).read_bytes()
    monkeypatch.setattr(pack.zipfile.time, "time", lambda: 2e9)
    assert packed(tmp_path, service).read_bytes() == first


@pytest.mark.parametrize("service", pack.SERVICES)
def test_the_files_that_a_service_looks_for_are_at_the_top(service, tmp_path):
    with zipfile.ZipFile(packed(tmp_path, service)) as archive:
        names = set(archive.namelist())
    assert {*pack.SERVICES[service], "lab.json", "nanotir/exercises/service.py"} <= names


def test_the_worked_assignment_says_what_both_submissions_earn():
    files = pack.worked([FIRST], 3)
    assert files["00/right.txt"].decode().splitlines()[1] == "right: 20 of 20 points"
    assert files["00/wrong.txt"].decode().splitlines()[1] == "wrong: 10 of 20 points"


def test_a_lab_without_exercises_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pack, "exercises_of", lambda lab: [])
    with pytest.raises(SystemExit):
        packed(tmp_path, "gradescope")
    assert "there are no exercises in lab C" in capsys.readouterr().err
