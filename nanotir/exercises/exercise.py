"""What an exercise is: one function of the package, cases to try it on, and known mistakes.

A mistake is written as an edit of the package's own function. So it cannot drift from it, and it
serves three times: to tell a student what is wrong, to test the cases, and as a bug to be found.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module

LABS = {"A": "a token is made", "B": "a token is spent", "C": "a token is judged", "D": "beyond"}


@dataclass(frozen=True)
class Mistake:
    """A known mistake: the sentence that a student reads, and the edits that make it."""

    message: str
    edits: tuple[tuple[str, str], ...]  # (old, new) text in the function's source
    bug: bool = False  # good as a silent bug, too: training goes on with it


@dataclass(frozen=True)
class Case:
    """One call of the function. `through`, if given, makes the call: (function, *args, **kwargs).

    It returns the output to compare. A function that calls the target for it is given the student's
    with `plugged` (stub.py). Cases run in a sandbox without files and other processes.
    """

    name: str  # what this case tells apart
    args: tuple = ()
    kwargs: dict = field(default_factory=dict)
    through: Callable | None = None


@dataclass(frozen=True)
class Exercise:
    number: int
    name: str  # of the function
    lab: str  # a key of LABS
    target: str  # "module:function"
    teaches: str
    minutes: int
    points: int
    stars: int  # 1 is easy, 4 is hard
    cases: Callable[[int], list[Case]]  # of a seed; with new arguments at each call; 0 is public
    mistakes: tuple[Mistake, ...]
    hints: tuple[str, str, str]  # a question, the idea, the formula
    read: tuple[str, ...]  # "nanotir/advantages.py:group_advantages", or a paper
    look: str  # at what in the package's version, after passing
    question: str
    answer: str
    gradient: str | None = None  # the tensor argument whose gradient is compared
    tolerance: float = 1e-6

    @property
    def function(self) -> Callable:
        """The package's own function, which is the solution."""
        module, name = self.target.split(":")
        return getattr(import_module(module), name)


def exercises(number: int | None = None) -> list[Exercise]:
    """All exercises in order, or that of a number: the EXERCISE of the files e01_*.py to e14_*.py.

    Only what is asked for is imported, because some of it takes half a second.
    """
    folder = import_module("nanotir.exercises").__path__
    names = sorted(file.name for file in pkgutil.iter_modules(folder) if file.name[1:3].isdigit())
    wanted = [name for name in names if number in (None, int(name[1:3]))]
    return [import_module(f"nanotir.exercises.{name}").EXERCISE for name in wanted]


def edited(exercise: Exercise, mistake: Mistake) -> Callable:
    """The package's function with a mistake in it. ValueError for an edit that does not apply."""
    function = inspect.unwrap(exercise.function)
    source = edited_text(inspect.getsource(function), mistake)
    names = dict(function.__globals__)
    # Annotations stay text, as in the package's modules, because compile() inherits that from here.
    exec(compile(source, f"<{exercise.name}: {mistake.message}>", "exec"), names)
    return names[exercise.name]


def edited_text(source: str, mistake: Mistake) -> str:
    """The source with the mistake's edits. ValueError unless each old text occurs exactly once."""
    for old, new in mistake.edits:
        if (times := source.count(old)) != 1:
            raise ValueError(
                f"'{mistake.message}': the text '{old}' occurs {times} times, not once"
            )
        source = source.replace(old, new)
    return source
