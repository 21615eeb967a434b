"""For the teacher: grade all submissions in a folder.

python -m nanotir.exercises grade DIR [--json | --csv] [--seed N] [--lab C]

DIR holds a folder for every student, or is the folder of one. A folder holds files named as
`start` has written them, e08_advantages.py, at its top, in answers/ or deeper. The same seed gives
the same output, byte by byte. The seconds are printed apart, on stderr.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from nanotir.checks import Whole, visible
from nanotir.commands import Parser, number, one_line
from nanotir.exercises.apart import Apart
from nanotir.exercises.check import Verdict, error_line, judge
from nanotir.exercises.exercise import LABS, Exercise, exercises
from nanotir.exercises.stub import file_name
from nanotir.tools.tool import last_line

MAX_BYTES = 100_000  # of a student's file


@dataclass(frozen=True)
class Grade:
    """The verdict on one file, and what it earns."""

    student: str
    exercise: str  # lab and number: "C8"
    name: str
    verdict: str  # one of check.py's WORDS
    sentence: str
    mistake: str  # the sentence of the mistake that was recognised, or ""
    copied: bool  # the body is the package's, statement by statement
    points: int
    max_points: int


def main(arguments: list[str] | None = None):
    with one_line("exercises grade"):
        parser = Parser("python -m nanotir.exercises grade", "Grade all submissions in a folder.")
        parser.add_argument("folder", type=Path, metavar="DIR", help="a folder for every student")
        output = parser.add_mutually_exclusive_group()
        output.add_argument("--json", action="store_true", help="print all grades as JSON")
        output.add_argument("--csv", action="store_true", help="print a line for every file")
        seed = "of the cases (default: 1; students see those of seed 0)"
        parser.add_argument("--seed", type=number(Whole), default=1, help=seed)
        parser.add_argument("--lab", choices=LABS, help="grade one lab alone (default: all)")
        options = parser.parse_args(arguments)
        chosen = exercises_of(options.lab)
        grades = grade(submissions(options.folder, chosen), chosen, options.seed)
        write = as_json if options.json else as_csv if options.csv else as_table
        print(write(grades, options.seed), end="")


def exercises_of(lab: str | None) -> list[Exercise]:
    """The exercises of a lab, or all, with the cases that they have in the sandbox."""
    os.environ.pop("TRITON_INTERPRET", None)  # with it, exercise 11 has one more
    return [exercise for exercise in exercises() if lab in (None, exercise.lab)]


def submissions(folder: Path, chosen: list[Exercise]) -> dict[str, Path]:
    """Every student's folder by the student's name. ValueError if there is none."""
    if not folder.is_dir():
        raise ValueError(f"'{folder}' is no folder")
    if any(find(folder, file_name(e), deep=False) for e in chosen):
        return {visible(folder.resolve().name): folder}
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    if not folders:
        raise ValueError(f"'{folder}' holds no folder of a student and no file of an exercise")
    return {visible(path.name): path for path in folders}


def find(folder: Path, name: str, deep: bool = True) -> Path | None:
    """A student's file: at the top of the folder, in answers/, or else the first one deeper."""
    deeper = sorted(folder.rglob(name)) if deep else []
    for path in [folder / name, folder / "answers" / name, *deeper]:
        if path.is_file() or path.is_symlink():
            return path
    return None


def read(path: Path, folder: Path) -> str:
    """A student's file. ValueError for what is none."""
    # A link may lead to another student's file.
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(os.path.realpath(folder)) or not real.is_file():
        raise ValueError("the file is a link out of its folder")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"the file is longer than {MAX_BYTES} bytes")
    try:
        return path.read_text(encoding="utf-8-sig")  # Windows marks some files
    except UnicodeDecodeError:
        raise ValueError("the file is not in UTF-8") from None


def grade(students: dict[str, Path], chosen: list[Exercise], seed: int) -> list[Grade]:
    """The grades of all students in these exercises, student by student."""
    grades = []
    for exercise in chosen:
        started = time.monotonic()
        grades += grade_exercise(exercise, students, seed)
        what = f"{exercise.lab}{exercise.number} {exercise.name}: {len(students)} students"
        print(f"{what} in {time.monotonic() - started:.1f} s", file=sys.stderr)
    return sorted(grades, key=lambda one: one.student)


def grade_exercise(exercise: Exercise, students: dict[str, Path], seed: int) -> Iterable[Grade]:
    """The grades of all students in one exercise."""
    sources = {}
    faults = {}
    for student, folder in students.items():
        try:
            if path := find(folder, file_name(exercise)):
                sources[student] = read(path, folder)
            else:
                faults[student] = Verdict("to do", f"there is no file {file_name(exercise)}")
        except (OSError, ValueError) as error:
            faults[student] = Verdict("error", str(error)[:300])
        except RecursionError:
            faults[student] = Verdict("error", "its folders are nested too deeply")

    for student, fault in faults.items():
        yield graded(student, exercise, fault, "")
    if not sources:
        return
    with Apart(exercise) as apart, ThreadPoolExecutor(os.cpu_count()) as pool:
        answers = pool.map(lambda source: apart.ask(source, seed), sources.values())
        # One verdict after the other: a check changes the package for as long as it takes.
        for (student, source), said in zip(sources.items(), answers):
            yield graded(student, exercise, verdict(exercise, said, seed), source)


def verdict(exercise: Exercise, said: dict, seed: int) -> Verdict:
    """The verdict on what a student's process says (Apart.ask)."""
    if "ended" in said:
        return Verdict("error", said["ended"])
    if "error" in said:
        return Verdict("error", error_line(said["error"]))
    try:
        return judge(exercise, said["outcomes"], seed)
    except Exception as error:
        # The student's file may have written down anything. It must not end the grading of others.
        return Verdict("error", f"what it wrote down cannot be compared: {last_line(error)}")


def graded(student: str, exercise: Exercise, found: Verdict, source: str) -> Grade:
    mistake = "" if found.mistake is None else exercise.mistakes[found.mistake].message
    return Grade(
        student=student,
        exercise=f"{exercise.lab}{exercise.number}",
        name=exercise.name,
        verdict=found.word,
        sentence=visible(found.sentence),
        mistake=mistake,
        copied=found.word == "passed" and is_copy(source, exercise),
        points=points(exercise, found),
        max_points=exercise.points,
    )


def points(exercise: Exercise, found: Verdict) -> int:
    """All for what passes, half (rounded down) with one named mistake, none for the rest."""
    if found.word == "passed":
        return exercise.points
    return exercise.points // 2 if found.mistake is not None else 0


def is_copy(source: str, exercise: Exercise) -> bool:
    """Whether the function's body is the package's but for comments, spaces and the docstring."""
    module = sys.modules[exercise.target.split(":")[0]]
    own = Path(module.__file__).read_text(encoding="utf-8")
    try:
        return body(source, exercise.name) == body(own, exercise.name)
    except RecursionError:  # the student's file, with thousands of brackets
        return False


def body(source: str, name: str) -> list[str]:
    """The statements of a function without its docstring; of its last definition."""
    nodes = [node for node in ast.parse(source).body if getattr(node, "name", "") == name]
    if not nodes:
        return []
    documented = isinstance(nodes[-1], ast.FunctionDef) and ast.get_docstring(nodes[-1]) is not None
    return [ast.dump(node) for node in nodes[-1].body[documented:]]


# What is printed.


def as_json(grades: list[Grade], seed: int) -> str:
    students = []
    for student, own in by_student(grades):
        rows = [{k: v for k, v in asdict(one).items() if k != "student"} for one in own]
        students.append({"student": student, **total(own), "exercises": rows})
    return json.dumps({"seed": seed, "students": students}, indent=1, ensure_ascii=False) + "\n"


def as_csv(grades: list[Grade], seed: int) -> str:
    text = io.StringIO()
    rows = csv.DictWriter(text, ["seed", *Grade.__dataclass_fields__], lineterminator="\n")
    rows.writeheader()
    for one in grades:
        rows.writerow({"seed": seed, **{k: harmless(v) for k, v in asdict(one).items()}})
    return text.getvalue()


def harmless(value):
    """A text that a spreadsheet does not take for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t" and value else value


def as_table(grades: list[Grade], seed: int) -> str:
    lines = [f"seed {seed}"]
    for student, own in by_student(grades):
        lines.append("{}: {points} of {max_points} points".format(student, **total(own)))
        for one in own:
            head = f"  {one.exercise:4} {one.points:3} of {one.max_points:3}  {one.verdict:8}"
            lines.append(f"{head} {one.sentence if one.verdict != 'passed' else one.name}")
    return "\n".join([*lines, ""])


def by_student(grades: list[Grade]) -> list[tuple[str, list[Grade]]]:
    students = dict.fromkeys(one.student for one in grades)
    return [(name, [one for one in grades if one.student == name]) for name in students]


def total(grades: list[Grade]) -> dict[str, int]:
    return {
        "points": sum(one.points for one in grades),
        "max_points": sum(one.max_points for one in grades),
    }
