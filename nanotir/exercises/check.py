"""What is wrong with a student's function: one failure at a time, in a fixed order.

`outcomes` calls a function in all cases and writes down what it did, in plain values that can be
sent from another process. `judge` compares that with what the package's function does. Only the
first of these two runs a student's code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import linecache
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from nanotir.checks import visible
from nanotir.exercises.exercise import Case, Exercise, Mistake, edited
from nanotir.exercises.stub import CalledSolution, forbidden
from nanotir.exercises.values import STRUCTURE, difference, is_tensor, plain, shown

if TYPE_CHECKING:
    from torch import Tensor

WORDS = ("passed", "to do", "error", "wrong", "skipped")
# What is told first.
RANKS = ("error", "structure", "changed", "value", "gradient", "no error")
UNCHANGED = Mistake("", ())


class TooSlow(BaseException):
    """The time is up. Raised by a signal in the student's code, whose line is then known."""


class Verdict(NamedTuple):
    word: str  # one of WORDS
    sentence: str
    case: str = ""  # one concrete call, and how it differs
    mistake: int | None = None  # which of the exercise's mistakes does all the same


def check(exercise: Exercise, function: Callable, seed: int = 0) -> Verdict:
    """The verdict on a function that is trusted to end. jail.py does this for a student's file."""
    return judge(exercise, outcomes(exercise, function, seed), seed)


# What a function does.


def outcomes(exercise: Exercise, function: Callable, seed: int) -> list[dict]:
    """What a function does in every case: see `outcome`."""
    signature = inspect.signature(exercise.function)
    found = []
    cases = exercise.cases(seed)
    with forbidden(exercise) as calls:
        for case, again in zip(cases, exercise.cases(seed)):
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                done = outcome(exercise, function, (case, again), signature)
            if calls:
                done = {"error": failure(CalledSolution(), "")}
            found.append(done | {"printed": printed.getvalue()[:1000]})
            if done.get("error", {}).get("kind") == TooSlow.__name__:
                found += [found[-1]] * (len(cases) - len(found))  # no time is left for them
                break
    return found


def outcome(exercise: Exercise, function: Callable, twice: tuple, signature) -> dict:
    """{"output", "changed" inputs, "gradient"} of a case, which is there twice, or {"error"}."""
    case, again = twice
    try:
        done = called(function, case, arguments(case, signature))
        inputs = arguments(again, signature)
        if exercise.gradient in inputs:
            done["gradient"] = gradient(function, again, inputs[exercise.gradient])
        return done
    except BaseException as error:
        return {"error": failure(error, function.__code__.co_filename)}


def arguments(case: Case, signature: inspect.Signature) -> dict:
    """A case's arguments by their names."""
    if not case.through:
        return signature.bind(*case.args, **case.kwargs).arguments
    bound = inspect.signature(case.through).bind(None, *case.args, **case.kwargs)
    return dict(list(bound.arguments.items())[1:])


def called(function: Callable, case: Case, inputs: dict) -> dict:
    """The output of one case, and the arguments that the function has changed."""
    before = {name: plain(value) for name, value in inputs.items()}
    output = plain(call(function, case))
    changed = [name for name in before if difference(plain(inputs[name]), before[name], 0.0)]
    return {"output": output, "changed": changed}


def call(function: Callable, case: Case):
    if case.through:
        return case.through(function, *case.args, **case.kwargs)
    return function(*case.args, **case.kwargs)


def gradient(function: Callable, case: Case, tensor: Tensor) -> list:
    """The gradient of a weighted sum of the outputs, as a plain value."""
    import torch  # here, because it takes a second, and many exercises have no tensors

    tensor.requires_grad_()
    total = torch.zeros(())
    for output in tensors(call(function, case)):
        if output.requires_grad:
            # Different weights, because for instance a softmax always sums to 1.
            weights = torch.arange(1, output.numel() + 1, dtype=output.dtype).cos()
            total = total + (weights.view(output.shape) * output).sum()
    if total.requires_grad:
        total.backward()
    return plain(tensor.grad)


def tensors(value) -> list[Tensor]:
    """All tensors in an output."""
    if is_tensor(value):
        return [value]
    if dataclasses.is_dataclass(value):
        value = vars(value)
    items = value.values() if isinstance(value, dict) else value
    if not isinstance(value, (dict, list, tuple)):
        return []
    return [tensor for item in items for tensor in tensors(item)]


def failure(error: BaseException, path: str) -> dict:
    """An error, and the line of the file `path` that it comes from or went through last."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    message = text_of(error)
    if type(error) in (SyntaxError, IndentationError, TabError) and error.filename == path:
        lines.append(error.lineno)
        message = f"{error.msg}"[:300]  # str(error) would name the line as well
    line = lines[-1] if lines else 0
    code = linecache.getline(path, line).strip()[:200]
    name = type.__dict__["__name__"].__get__(type(error))  # even if its metaclass has another
    return {"kind": name[:100], "message": message, "line": line, "code": code}


def text_of(error: BaseException) -> str:
    """What an error says. Its class may be a student's, whose own code writes the text."""
    try:
        return "" if error.args == (None,) else str(error)[:300]
    except BaseException as another:
        return f"its text raises {type(another).__name__[:100]}"


# Whether that is right.


class Fault(NamedTuple):
    """How an outcome differs from the right one."""

    rank: int  # in RANKS
    sentence: str


def judge(exercise: Exercise, theirs: list[dict], seed: int) -> Verdict:
    """The verdict on what a student's function did in the cases of a seed.

    What comes from a student's process may be anything, and then another error may be raised.
    """
    errors = [done["error"] for done in theirs if "error" in done]
    if any(is_stub(error, exercise) for error in errors):
        return Verdict("to do", "not begun: it still raises NotImplementedError")
    if any(error["kind"] == CalledSolution.__name__ for error in errors):
        return Verdict("wrong", f"it calls the package's own {exercise.name}: write yours")

    cases = exercise.cases(seed)
    if len(theirs) != len(cases):
        raise ValueError(f"{len(theirs)} outcomes of {len(cases)} cases")
    right = outcomes(exercise, edited(exercise, UNCHANGED), seed)
    faults = compared(exercise, theirs, right)
    if not faults:
        return Verdict("passed", exercise.look)
    index, fault = min(faults.items(), key=lambda item: item[1].rank)
    case = told(exercise, cases[index], theirs[index], right[index], fault)
    for number, mistake in enumerate(exercise.mistakes):
        if not compared(exercise, theirs, outcomes(exercise, edited(exercise, mistake), seed)):
            return Verdict("wrong", mistake.message, f"{case}\n  {fault.sentence}", number)
    return Verdict("error" if fault.rank == 0 else "wrong", fault.sentence, case)


def is_stub(error: dict, exercise: Exercise) -> bool:
    message = f"exercise {exercise.number}"
    return error["kind"] == "NotImplementedError" and error["message"] == message


def compared(exercise: Exercise, theirs: list[dict], right: list[dict]) -> dict[int, Fault]:
    """The faults by the case's index."""
    found = {}
    for index, (mine, its) in enumerate(zip(theirs, right)):
        if fault := fault_of(mine, its, exercise):
            found[index] = fault
    return found


def fault_of(mine: dict, its: dict, exercise: Exercise) -> Fault | None:
    """The first fault of an outcome, in the order of RANKS."""
    mine_error, its_error = mine.get("error"), its.get("error")
    if mine_error or its_error:
        if mine_error and its_error and mine_error["kind"] == its_error["kind"]:
            return None
        if not mine_error:
            return Fault(5, f"it should raise {its_error['kind']} here")
        return Fault(0, error_line(mine_error))
    found = difference(mine["output"], its["output"], exercise.tolerance)
    if found and found[0] == STRUCTURE:
        return Fault(1, found[1])
    if mine["changed"] != its["changed"]:
        names = ", ".join(mine["changed"])
        return Fault(2, f"it changes its input {names}: work on a copy" if names else "")
    if found:
        return Fault(3, found[1])
    if "gradient" in its:
        return gradient_fault(mine["gradient"], its["gradient"], exercise)
    return None


def gradient_fault(mine: list, its: list, exercise: Exercise) -> Fault | None:
    name = f"the gradient of {exercise.gradient}"
    if mine[0] == "NoneType" != its[0]:
        return Fault(4, f"the outputs are right, but no gradient reaches {exercise.gradient}")
    found = difference(mine, its, exercise.tolerance, name)
    return Fault(4, f"the outputs are right, but {found[1]}") if found else None


def error_line(error: dict) -> str:
    what = visible(f"{error['kind']}: {error['message']}".removesuffix(": "))
    if not error["line"]:
        return what + ("; is the signature changed?" if error["kind"] == "TypeError" else "")
    return f"{what}, in line {error['line']}: {visible(error['code'])}"


def told(exercise: Exercise, case: Case, mine: dict, its: dict, fault: Fault) -> str:
    """One case in words: the call, your output and the right one."""
    inputs = arguments(case, inspect.signature(exercise.function))
    given = ", ".join(f"{name}={shown(plain(value))}" for name, value in inputs.items())
    lines = [f"{case.name}: {exercise.name}({given})"]
    key = "gradient" if RANKS[fault.rank] == "gradient" else "output"
    if key in mine and key in its:
        lines += [f"  yours     {shown(mine[key])}", f"  expected  {shown(its[key])}"]
    if mine["printed"]:
        lines.append("  printed   " + visible(mine["printed"].rstrip(), obeyed="\n"))
    return "\n".join(lines)
