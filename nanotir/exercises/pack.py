"""For the teacher: an autograder as a zip, for Gradescope or Classroom 50.

python -m nanotir.exercises pack gradescope|classroom50 --lab B --out lab-b.zip [--seed N]

It holds the package, what installs its packages, and assignment 00: one right and one wrong
submission with what each should earn, to try the upload with. The same arguments give the same
bytes.
"""

from __future__ import annotations

import inspect
import json
import tempfile
import zipfile
from pathlib import Path

from nanotir.checks import Whole
from nanotir.commands import Parser, number, one_line
from nanotir.exercises.exercise import LABS, Exercise, edited_text
from nanotir.exercises.grade import as_table, by_student, exercises_of, grade
from nanotir.exercises.stub import file_name, stub
from nanotir.tools.python import PROJECT

SERVICES = {
    "gradescope": ("requirements.txt", "run_autograder", "setup.sh"),
    "classroom50": ("autograder.py", "requirements.txt", "setup.sh"),
}
EXECUTABLE = ("run_autograder", "setup.sh")
OMITTED = ("bench", "lab", "page")  # folders of the package that grading does not need
ABOUT_00 = """\
Assignment 00: try the autograder before the students do.

Submit the files of right/, then those of wrong/, as a student would. The service should show the
points of right.txt and wrong.txt. Lab {lab}, {subject}; seed {seed}.
"""


def main(arguments: list[str] | None = None):
    with one_line("exercises pack"):
        parser = Parser("python -m nanotir.exercises pack", "Pack an autograder into a zip.")
        parser.add_argument("service", choices=SERVICES)
        parser.add_argument("--lab", choices=LABS, required=True)
        parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the zip")
        seed = "of the cases (default: 1; students see those of seed 0)"
        parser.add_argument("--seed", type=number(Whole), default=1, help=seed)
        options = parser.parse_args(arguments)
        write_zip(options.out, contents(options.service, options.lab, options.seed))
        print(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB")


def contents(service: str, lab: str, seed: int) -> dict[str, bytes]:
    """All files of a zip, by their names in it."""
    chosen = exercises_of(lab)
    if not chosen:
        raise ValueError(f"there are no exercises in lab {lab}")
    files = {"lab.json": json.dumps({"lab": lab, "seed": seed}).encode()}
    services = Path(__file__).with_name("services")
    for name in SERVICES[service]:
        files[name] = (services / name).read_bytes()
    package = PROJECT / "nanotir"
    for path in [*package.rglob("*.py"), *package.rglob("*.txt")]:
        if path.relative_to(package).parts[0] not in OMITTED:
            files[path.relative_to(PROJECT).as_posix()] = path.read_bytes()
    about = ABOUT_00.format(lab=lab, subject=LABS[lab], seed=seed)
    return files | {"00/README.txt": about.encode()} | worked(chosen, seed)


def worked(chosen: list[Exercise], seed: int) -> dict[str, bytes]:
    """Assignment 00: a right and a wrong submission to a lab, graded here.

    In the wrong one, the first exercise has a mistake and the others are missing.
    """
    files = {f"right/{file_name(e)}": solution(e).encode() for e in chosen}
    first = chosen[0]
    wrong = edited_text(solution(first), first.mistakes[0])
    files[f"wrong/{file_name(first)}"] = wrong.encode()
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            path = Path(folder, name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(text)
        folders = {kind: Path(folder, kind) for kind in ("right", "wrong")}
        for kind, own in by_student(grade(folders, chosen, seed)):
            files[f"{kind}.txt"] = as_table(own, seed).encode()
    return {f"00/{name}": text for name, text in files.items()}


def solution(exercise: Exercise) -> str:
    """A student's file with the package's function in it."""
    head = stub(exercise).split("\n\n\n")[0]
    return f"{head}\n\n\n{inspect.getsource(inspect.unwrap(exercise.function))}"


def write_zip(out: Path, files: dict[str, bytes]):
    """A zip whose bytes depend on nothing but the files."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name)  # of the year 1980
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix, where the mode below counts
            entry.external_attr = (0o100755 if name in EXECUTABLE else 0o100644) << 16
            archive.writestr(entry, files[name])
