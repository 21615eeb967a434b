"""A student's folder: its files, how far each one is, and its functions in the package's place."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from nanotir.exercises.check import error_line, failure
from nanotir.exercises.exercise import Exercise, exercises
from nanotir.exercises.stub import file_name, load, plugged, stub

RULES = "for_assistants.md"


class Answers:
    """A folder of answers. What was checked, and the hints taken, are kept in .progress.json."""

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self.records = self.folder / ".progress.json"

    def path(self, exercise: Exercise) -> Path:
        return self.folder / file_name(exercise)

    def start(self, exercise: Exercise) -> bool:
        """Write the stub; False if there is a file already, which stays as it is."""
        self.folder.mkdir(parents=True, exist_ok=True)
        rules = self.folder / "AGENTS.md"
        if not rules.exists():
            rules.write_text((Path(__file__).parent / RULES).read_text())
        if self.path(exercise).exists():
            return False
        self.path(exercise).write_text(stub(exercise), encoding="utf-8")
        return True

    def source(self, exercise: Exercise) -> str:
        """ValueError if the exercise is not started."""
        path = self.path(exercise)
        if not path.exists():
            start = f"python -m nanotir.exercises start {exercise.number}"
            raise ValueError(f"there is no {path}: begin with `{start}`")
        return path.read_text(encoding="utf-8-sig", errors="replace")

    def state(self, exercise: Exercise) -> str:
        """The last verdict, if the file has not changed since."""
        if not self.path(exercise).exists():
            return ""
        record = self.record(exercise)
        source = self.source(exercise)
        if is_stub(exercise, source):
            return "to do"
        return record["word"] if record.get("file") == digest(source) else "not checked"

    def record(self, exercise: Exercise) -> dict:
        """{"word", "file", "hints"}: the last verdict, on which text, and the hints taken."""
        return self.all_records().get(str(exercise.number), {})

    def all_records(self) -> dict:
        if not self.records.exists():
            return {}
        try:
            return json.loads(self.records.read_text())
        except ValueError as error:
            raise ValueError(f"'{self.records}' cannot be used: {error}") from None

    def keep(self, exercise: Exercise, **what):
        """Add to the record of an exercise."""
        kept = self.all_records()
        kept[str(exercise.number)] = self.record(exercise) | what
        self.records.write_text(json.dumps(kept, indent=1) + "\n")


def digest(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def function_node(exercise: Exercise, source: str) -> ast.FunctionDef | None:
    """The exercise's function in a file; None if there is none."""
    try:
        nodes = ast.parse(source).body
    except (SyntaxError, ValueError):
        return None
    found = [n for n in nodes if isinstance(n, ast.FunctionDef) and n.name == exercise.name]
    return found[-1] if found else None


def is_stub(exercise: Exercise, source: str) -> bool:
    """Whether the function in a file is still that of the stub."""
    node = function_node(exercise, source)
    return node is not None and ast.dump(node) == ast.dump(function_node(exercise, stub(exercise)))


@contextmanager
def answered(folder: str) -> Iterator[None]:
    """The package runs on the functions in a student's folder, until the block ends.

    Exercises that are not begun are left to the package. Prints which ones are not.
    ValueError for a folder without any.
    """
    answers = Answers(folder)
    files = [exercise for exercise in exercises() if answers.path(exercise).exists()]
    begun = [exercise for exercise in files if not is_stub(exercise, answers.source(exercise))]
    if not begun:
        raise ValueError(f"no exercise is begun in '{folder}'")
    with ExitStack() as stack:
        for exercise in begun:
            path = answers.path(exercise)
            try:
                function = load(exercise, answers.source(exercise), str(path))
            except Exception as error:
                raise ValueError(f"'{path}': {error_line(failure(error, str(path)))}") from None
            stack.enter_context(plugged(exercise, function))
        print(f"from {folder}: {', '.join(exercise.name for exercise in begun)}")
        yield
