"""Wrong variants of an exercise's function, made mechanically: each differs from it in one place.

What is changed: operators, comparisons, conditions, constants, the order of arguments, names, calls
of a function for those of its opposite, and statements, arguments and operands that are left out.

    python tests/exercises/mutants.py [NUMBER ...]      list the variants that pass the check
"""

from __future__ import annotations

import ast
import inspect
import signal
import sys
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from nanotir.exercises.check import UNCHANGED, compared, outcomes
from nanotir.exercises.exercise import Exercise, edited, exercises

SECONDS = 2  # of processor time for a case
OPERATORS = {
    ast.Add: [ast.Sub],
    ast.Sub: [ast.Add],
    ast.Mult: [ast.Div, ast.Add],
    ast.Div: [ast.Mult, ast.FloorDiv],
    ast.FloorDiv: [ast.Div, ast.Mult],
    ast.Mod: [ast.FloorDiv],
    ast.Pow: [ast.Mult],
    ast.BitOr: [ast.BitAnd],
    ast.BitAnd: [ast.BitOr],
    ast.MatMult: [ast.Mult],
}
COMPARISONS = {
    ast.Lt: [ast.LtE, ast.Gt],
    ast.LtE: [ast.Lt, ast.GtE],
    ast.Gt: [ast.GtE, ast.Lt],
    ast.GtE: [ast.Gt, ast.LtE],
    ast.Eq: [ast.NotEq],
    ast.NotEq: [ast.Eq],
    ast.In: [ast.NotIn],
    ast.NotIn: [ast.In],
    ast.Is: [ast.IsNot],
    ast.IsNot: [ast.Is],
}
PAIRS = "min max, any all, sum mean, minimum maximum, argmin argmax, amin amax, exp log, sin cos"
PAIRS += ", floor ceil, std var, zeros_like ones_like, zeros ones, floor_divide true_divide"
PAIRS += ", logical_and logical_or, cumsum cumprod, sqrt square, softmax log_softmax"
PAIRS += ", index_add index_copy, rstrip lstrip, startswith endswith, find rfind"
OPPOSITE = dict(pair.split() for pair in PAIRS.split(", "))
OPPOSITE |= {second: first for first, second in OPPOSITE.items()}


def mutants(exercise: Exercise) -> dict[str, str]:
    """The sources of all wrong variants, by their first line that differs."""
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(exercise.function)))
    original = ast.unparse(ast.parse(source))
    found, names = {}, {}
    for tree in variants(source):
        text = ast.unparse(ast.fix_missing_locations(tree))
        if text != original and text not in names:
            names[text] = difference(original, text)
    # Several variants may begin to differ in the same way.
    times = Counter()
    for text, name in names.items():
        times[name] += 1
        found[f"{name} #{times[name]}" if times[name] > 1 else name] = text
    return found


def difference(original: str, text: str) -> str:
    """The first line that differs."""
    pairs = zip(original.splitlines(), [*text.splitlines(), ""])
    old, new = next((old.strip(), new.strip()) for old, new in pairs if old != new)
    missing = new in original and original.count("\n") > text.count("\n")
    return f"without: {old}" if missing else new


def variants(source: str) -> Iterator[ast.Module]:
    """A tree for every change of every node."""
    (function,) = ast.parse(source).body
    arguments = function.args
    parameters = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    stored = [n.id for n in ast.walk(function) if isinstance(n, ast.Name) and is_stored(n)]
    names = list(dict.fromkeys([*parameters, *stored]))
    for number, node in enumerate(nodes(function)):
        for change in changes(node, names):
            altered = ast.parse(source)
            change(nodes(altered.body[0])[number])
            yield altered


def nodes(function: ast.FunctionDef) -> list[ast.AST]:
    """All nodes that may be changed.

    Not those of the signature and docstring, which are given, of an error's text, or of devices,
    since all is done on one.
    """
    found = [function]
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    waiting = [*body]
    while waiting:
        node = waiting.pop(0)
        is_device = (
            isinstance(node, (ast.Attribute, ast.keyword)) and "device" in vars(node).values()
        )
        if isinstance(node, (ast.JoinedStr, ast.Raise)) or is_device:
            continue
        found.append(node)
        skipped = getattr(node, "annotation", None)
        waiting += [child for child in ast.iter_child_nodes(node) if child is not skipped]
    return found


def is_stored(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)


def changes(node: ast.AST, names: list[str]) -> Iterator[Callable]:
    """What may be changed in a node: functions that change a copy of it in place."""
    for kind in type(node).__mro__:
        if kind in CHANGES:
            yield from CHANGES[kind](node)
    if isinstance(node, ast.Name) and node.id in names and not is_stored(node):
        others = [name for name in names if name != node.id]
        yield from (setting("id", name) for name in others)
    yield from left_out(node)


def setting(field: str, value) -> Callable:
    def change(node):
        setattr(node, field, value)

    return change


def becoming(part: Callable) -> Callable:
    """The node gives way to a node made of it, by taking over its class and fields."""

    def change(node):
        other = part(node)
        node.__class__ = other.__class__
        node.__dict__ = other.__dict__

    return change


def swapping(field: str, first: int) -> Callable:
    def change(node):
        items = getattr(node, field)
        items[first], items[first + 1] = items[first + 1], items[first]

    return change


def dropping(field: str, index: int) -> Callable:
    def change(node):
        del getattr(node, field)[index]
        if field in ("body", "finalbody") and not getattr(node, field):
            getattr(node, field).append(ast.Pass())

    return change


def left_out(node: ast.AST) -> Iterator[Callable]:
    """Statements, arguments, operands and conditions that are left out, one at a time."""
    for field in ("body", "orelse", "finalbody"):
        items = getattr(node, field, None)
        for index, item in enumerate(items if isinstance(items, list) else []):
            is_text = isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant)
            if not isinstance(item, ast.Pass) and not is_text:
                yield dropping(field, index)
    fields = {ast.Call: ("args", "keywords"), ast.BoolOp: ("values",), ast.comprehension: ("ifs",)}
    fields |= {ast.Tuple: ("elts",), ast.List: ("elts",), ast.Set: ("elts",)}
    for field in fields.get(type(node), ()):
        items = getattr(node, field)
        for index, item in enumerate(items):
            if getattr(item, "arg", "") != "device":
                yield dropping(field, index)
        if field in ("args", "elts"):
            yield from (swapping(field, index) for index in range(len(items) - 1))


def changed_binary(node: ast.BinOp | ast.AugAssign) -> Iterator[Callable]:
    yield from (setting("op", kind()) for kind in OPERATORS.get(type(node.op), ()))
    if isinstance(node, ast.BinOp):
        yield becoming(lambda node: node.left)
        yield becoming(lambda node: node.right)
        yield becoming(lambda node: ast.BinOp(node.right, node.op, node.left))


def changed_comparison(node: ast.Compare) -> Iterator[Callable]:
    for index, operator in enumerate(node.ops):
        for kind in COMPARISONS[type(operator)]:
            yield setting("ops", [*node.ops[:index], kind(), *node.ops[index + 1 :]])


def changed_constant(node: ast.Constant) -> Iterator[Callable]:
    value = node.value
    if isinstance(value, bool):
        yield setting("value", not value)
    elif isinstance(value, (int, float)):
        yield setting("value", value + 1)
        yield setting("value", value - 1)
    elif isinstance(value, str):
        yield setting("value", f"{value}x")


def changed_call(node: ast.Call) -> Iterator[Callable]:
    if isinstance(node.func, ast.Attribute):  # x.method(...) becomes x
        yield becoming(lambda node: node.func.value)
    if len(node.args) == 1 and not node.keywords:  # f(x) becomes x
        yield becoming(lambda node: node.args[0])


def changed_name(node: ast.Name | ast.Attribute) -> Iterator[Callable]:
    field = "id" if isinstance(node, ast.Name) else "attr"
    if opposite := OPPOSITE.get(getattr(node, field)):
        yield setting(field, opposite)


def changed_condition(node: ast.If | ast.IfExp | ast.While) -> Iterator[Callable]:
    yield setting("test", ast.UnaryOp(ast.Not(), node.test))
    yield setting("test", ast.Constant(value=True))
    yield setting("test", ast.Constant(value=False))


def changed_slice(node: ast.Slice) -> Iterator[Callable]:
    yield from (setting(end, None) for end in ("lower", "upper", "step") if getattr(node, end))


CHANGES = {
    ast.BinOp: changed_binary,
    ast.AugAssign: changed_binary,
    ast.Compare: changed_comparison,
    ast.Constant: changed_constant,
    ast.Call: changed_call,
    ast.Name: changed_name,
    ast.Attribute: changed_name,
    ast.If: changed_condition,
    ast.IfExp: changed_condition,
    ast.While: changed_condition,
    ast.Slice: changed_slice,
    ast.UnaryOp: lambda node: [becoming(lambda node: node.operand)],
    ast.BoolOp: lambda node: [setting("op", OTHER[type(node.op)]())],
    ast.comprehension: lambda node: [
        setting("ifs", [ast.UnaryOp(ast.Not(), test)]) for test in node.ifs
    ],
}
OTHER = {ast.And: ast.Or, ast.Or: ast.And}


def survivors(exercise: Exercise, sources: dict[str, str], seed: int = 0) -> list[str]:
    """Which of the variants pass the check: not one of the cases tells them from the original."""
    cases = [one_case(exercise, index) for index in range(len(exercise.cases(seed)))]
    right = [outcomes(case, edited(exercise, UNCHANGED), seed) for case in cases]
    return [name for name, source in sources.items() if passes(exercise, source, cases, right)]


def one_case(exercise: Exercise, index: int) -> Exercise:
    return replace(exercise, cases=lambda seed: [exercise.cases(seed)[index]])


def passes(exercise: Exercise, source: str, cases: list[Exercise], right: list) -> bool:
    names = dict(inspect.unwrap(exercise.function).__globals__)
    try:
        exec(compile(source, "<variant>", "exec"), names)  # as `edited` does
    except SyntaxError:
        return False
    for place, (case, its) in enumerate(zip(cases, right)):
        with time_limit(), warnings.catch_warnings(action="ignore"):
            same = not compared(case, outcomes(case, names[exercise.name], 0), its)
        if not same:  # what tells one variant often tells the next
            cases.insert(0, cases.pop(place))
            right.insert(0, right.pop(place))
            return False
    return True


class Late(BaseException):
    """Raised in a variant that does not end."""


@contextmanager
def time_limit() -> Iterator[None]:
    def end(*_):
        raise Late

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


if __name__ == "__main__":
    for exercise in exercises():
        if not sys.argv[1:] or str(exercise.number) in sys.argv[1:]:
            sources = mutants(exercise)
            alive = survivors(exercise, sources)
            print(f"{exercise.number} {exercise.name}: {len(sources)} made, {len(alive)} pass")
            print(*(f"    {name}" for name in alive), sep="\n")
