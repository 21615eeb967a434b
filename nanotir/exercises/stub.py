"""A student's file: cut from the package, read, and put in the place of the package's function."""

from __future__ import annotations

import ast
import inspect
import linecache
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from nanotir.exercises.exercise import Exercise


def file_name(exercise: Exercise) -> str:
    """The name of a student's file, which is that of the exercise's own: e08_advantages.py."""
    return Path(inspect.getfile(exercise.cases)).name


def stub(exercise: Exercise) -> str:
    """What a student begins with: imports, signature and docstring of the package's function."""
    function = inspect.unwrap(exercise.function)
    module = inspect.getmodule(function)
    source = inspect.getsource(module)
    tree = ast.parse(source)
    node = next(n for n in tree.body if getattr(n, "name", "") == exercise.name)
    used = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}

    imports = [only(used, n) for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    lines = [ast.unparse(n) for n in imports if n.names]
    if helpers := sorted(used & defined_in(tree)):
        lines.append(f"from {module.__name__} import {', '.join(helpers)}")
    lines[1:1] = [""]  # after `from __future__ import annotations`

    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    last = node.body[0].end_lineno if ast.get_docstring(node) else node.body[0].lineno - 1
    head = "\n".join(source.splitlines()[first - 1 : last])
    about = f'"""Exercise {exercise.number}: {exercise.teaches}"""'
    body = f'    raise NotImplementedError("exercise {exercise.number}")  # your code goes here'
    return "\n".join([about, "", *lines, "", "", head, body, ""])


def only(used: set[str], node: ast.Import | ast.ImportFrom) -> ast.Import | ast.ImportFrom:
    """An import statement with those of its names that are used."""
    if getattr(node, "module", "") != "__future__":
        node.names = [n for n in node.names if (n.asname or n.name.split(".")[0]) in used]
    return node


def defined_in(tree: ast.Module) -> set[str]:
    """The functions, classes and constants of a module."""
    names = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assigned = [node for node in tree.body if isinstance(node, (ast.Assign, ast.AnnAssign))]
    for node in assigned:
        targets = [n for n in ast.walk(node) if isinstance(n, ast.Name)]
        names |= {target.id for target in targets if isinstance(target.ctx, ast.Store)}
    return names


def load(exercise: Exercise, source: str, path: str) -> Callable:
    """Run a student's file and return its function. Whatever the file raises is raised here.

    AttributeError if it does not define the function.
    """
    linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)
    module = ModuleType(f"answers.{Path(path).stem}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # where a dataclass in the file looks itself up
    exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)
    function = getattr(module, exercise.name, None)
    if not inspect.isfunction(function):
        raise AttributeError(f"the file defines no function {exercise.name}: keep its name")
    return function


def plug(exercise: Exercise, function: Callable) -> tuple:
    """Whoever calls the package's function calls `function` from now on, by whatever name.

    The code inside the function object is replaced, because modules and tables such as LOSSES hold
    references of their own to the object. Returns what was there.
    """

    def stand_in(*args, _function, **kwargs):
        return _function(*args, **kwargs)

    target = inspect.unwrap(exercise.function)
    target.__signature__ = inspect.signature(target)  # else it would be that of stand_in
    kept = target.__code__, target.__defaults__, target.__kwdefaults__
    target.__code__, target.__defaults__ = stand_in.__code__, None
    target.__kwdefaults__ = {"_function": function}
    return kept


@contextmanager
def plugged(exercise: Exercise, function: Callable) -> Iterator[None]:
    """`plug` for as long as the block runs."""
    target = inspect.unwrap(exercise.function)
    kept = plug(exercise, function)
    try:
        yield
    finally:
        target.__code__, target.__defaults__, target.__kwdefaults__ = kept


class CalledSolution(BaseException):
    """The student's function has called the package's. No `except Exception` catches it."""


@contextmanager
def forbidden(exercise: Exercise) -> Iterator[list]:
    """Calls of the package's own function raise CalledSolution, and add to the list."""
    calls = []

    def refuse(*args, **kwargs):
        calls.append(exercise.name)
        raise CalledSolution

    with plugged(exercise, refuse):
        yield calls
