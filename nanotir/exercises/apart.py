"""Runs students' files apart: in the sandbox, without the solution, the right answers, or others.

No verdict comes from a student's process. It says what the function returned, as plain values, and
this process compares them. The package that the student's code can import is a copy in which the
function to be written has no body. On Linux with Landlock it can open no file but Python's own.
"""

from __future__ import annotations

import ast
import inspect
import json
import math
import re
import shutil
import signal
import tempfile
import threading
from pathlib import Path

from nanotir.exercises.exercise import Exercise
from nanotir.exercises.jail import PATIENCE, SECONDS
from nanotir.exercises.stub import file_name
from nanotir.tools.python import PROJECT, ForkServer

MEMORY_MB = 128  # beyond what torch and the package take: Gradescope gives all together 768
MAX_CHARS = 500_000  # of what a student's process says
MACHINERY = (
    "__init__",
    "check",
    "exercise",
    "inside",
    "jail",
    "stub",
    "values",
)  # what the copy needs
VARYING = re.compile(r"0x[0-9a-fA-F]+|/\S*?nanotir-\w+")  # addresses, and our temporary folders
LEFT_OUT = ("__pycache__", "__main__.py", "*.md", "bench", "exercises", "lab", "page")


class Apart:
    """A server for one exercise, as a context manager. Threads may share it."""

    def __init__(self, exercise: Exercise):
        self.exercise = exercise
        self.lock = threading.Lock()

    def __enter__(self) -> Apart:
        self.copy = tempfile.TemporaryDirectory(prefix="nanotir-")
        copy_package(self.exercise, Path(self.copy.name))
        self.server = self._start()
        return self

    def __exit__(self, *exception):
        self.server.end()
        self.copy.cleanup()

    def _start(self) -> ForkServer:
        server = ForkServer(["nanotir.exercises.inside"], MEMORY_MB, Path(self.copy.name))
        server.idle.append(server.worker())
        return server

    def ask(self, source: str, seed: int) -> dict:
        """What a student's file does: {"outcomes": what check.py's `outcomes` returns}.

        {"error": ...} if the file does not even give a function, {"ended": a sentence} if its
        process could not say.
        """
        request = {"file": file_name(self.exercise), "programs": [source], "seed": seed}
        request |= {"seconds": SECONDS, "limit": PATIENCE * SECONDS, "max_output_chars": MAX_CHARS}
        ending, output, missing = self._call(request)
        if sentence := last_words(ending):
            return {"ended": sentence}
        if missing:
            return {"ended": "its outputs are too large"}
        try:
            said = json.loads(output)
            if "error" in said:
                return {"error": checked_error(said["error"])}
            return {"outcomes": [checked(done) for done in said["outcomes"]]}
        except (ValueError, TypeError, KeyError, RecursionError):
            return {"ended": "it wrote to the place where its outputs belong"}

    def _call(self, request: dict) -> tuple[dict, bytes, int]:
        """Ask the server; if it has ended, once more, a new one."""
        server = self.server
        try:
            return server.call(request)
        except ConnectionError:
            with self.lock:
                if self.server is server:
                    server.end()
                    self.server = self._start()
            return self.server.call(request)


# The copy of the package.


def copy_package(exercise: Exercise, folder: Path):
    """Copy into `folder` what an exercise needs of the package, without the function's body."""
    package = PROJECT / "nanotir"
    shutil.copytree(package, folder / "nanotir", ignore=shutil.ignore_patterns(*LEFT_OUT))
    (folder / "nanotir/exercises").mkdir()
    for name in [*(f"{name}.py" for name in MACHINERY), file_name(exercise)]:
        shutil.copy(package / "exercises" / name, folder / "nanotir/exercises" / name)
    path = Path(inspect.getfile(inspect.unwrap(exercise.function))).relative_to(PROJECT)
    text = without_body((PROJECT / path).read_text(encoding="utf-8"), exercise.name)
    (folder / path).write_text(text, encoding="utf-8")


def without_body(source: str, name: str) -> str:
    """A module's source whose function `name` only raises an error."""
    node = next(n for n in ast.parse(source).body if getattr(n, "name", "") == name)
    lines = source.splitlines()
    first = node.body[0].lineno - 1
    lines[first : node.end_lineno] = [f'    raise AssertionError("the body of {name} is cut out")']
    return "\n".join([*lines, ""])


# What a student's process says, which may be anything.


def last_words(ending: dict) -> str | None:
    """How a process ended that could not say what it did; None for one that could."""
    status, code = ending["status"], ending["code"]
    if status == "timeout":
        return f"it did not end within {PATIENCE * SECONDS:g} s, nor when told to"
    if status == "memory":
        return f"it needs more than {MEMORY_MB} MB"
    if status == "crash":
        return f"it crashed: {signal.strsignal(-code) or 'signal'} ({-code})"
    if code >= 0:
        return f"it ended its own process, with code {code}"
    return "it broke what writes its outputs down" if status == "error" else None


def expect(condition: bool):
    """ValueError for what no outcome looks like."""
    if not condition:
        raise ValueError("this is no outcome")


def checked(done: dict) -> dict:
    """One outcome with all its parts, each of its type. ValueError if that cannot be."""
    if "error" in done:
        return {"error": checked_error(done["error"]), "printed": ""}
    expect(all(type(name) is str for name in done["changed"]))
    gradient = done.get("gradient", ["NoneType", None])
    return {
        "output": checked_value(done["output"]),
        "changed": [name[:100] for name in done["changed"]],
        "gradient": checked_value(gradient),
        "printed": "",
    }


def checked_error(error: dict) -> dict:
    expect(type(error["line"]) is int)
    texts = {key: error[key] for key in ("kind", "message", "code")}
    expect(all(type(text) is str for text in texts.values()))
    texts = {key: VARYING.sub("...", text[:300]) for key, text in texts.items()}
    return {"line": error["line"], **texts}


SCALARS = {"NoneType": type(None), "bool": bool, "int": int, "float": float, "str": str}


def checked_value(value: list) -> list:
    """A plain value (values.py) that is what it says it is. ValueError if it is not."""
    kind, content = value[:2]
    expect(type(kind) is str)
    if kind == "tensor":
        _, numbers, shape, dtype = value
        expect(type(dtype) is str)
        expect(all(type(size) is int and 0 <= size < MAX_CHARS for size in shape))
        expect(all(type(number) in (bool, int, float) for number in numbers))
        expect(len(numbers) == math.prod(shape))
        return value
    expect(len(value) == 2)
    if kind in SCALARS:
        expect(type(content) is SCALARS[kind])
        return value
    if type(content) is not list:  # an object of another type: its text does not count
        return [f"object {kind[:100]}", str(content)]
    expect(kind != "item" or len(content) == 2)
    expect(len({item[0] == "item" for item in content}) < 2)
    return [kind[:100], [checked_value(item) for item in content]]
