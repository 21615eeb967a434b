"""Outputs as plain values, which JSON can hold: made, compared and shown.

A plain value is [kind, content], for a tensor ["tensor", numbers, shape, dtype]. To import torch
takes a second, so it is left to the exercises that need it.
"""

from __future__ import annotations

import dataclasses
import math
import sys

from nanotir.checks import visible

STRUCTURE, VALUE = 0, 1  # the two kinds of difference; the first is told first
MAX_CHARS = 160  # of a value that is shown


def plain(value) -> list:
    """A number, text, bool, None, tensor, or lists, tuples, dicts and dataclasses of them."""
    if is_tensor(value):
        numbers = value.detach().flatten().tolist()
        return ["tensor", numbers, list(value.shape), str(value.dtype).removeprefix("torch.")]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [type(value).__name__, plain(vars(value))[1]]
    if isinstance(value, dict):
        pairs = [["item", [plain(key), plain(item)]] for key, item in value.items()]
        return ["dict", sorted(pairs, key=repr)]
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, [plain(item) for item in value]]
    if value is None or type(value) in (bool, int, float, str):
        return [type(value).__name__, value]
    return [type(value).__name__, repr(value)]


def is_tensor(value) -> bool:
    return "torch" in sys.modules and isinstance(value, sys.modules["torch"].Tensor)


def difference(yours: list, right: list, tolerance: float, at: str = "") -> tuple[int, str] | None:
    """The first difference of two plain values, (STRUCTURE or VALUE, a sentence), or None.

    Numbers are equal to `tolerance` times 1 or their size; nan equals nan alone.
    """
    if yours == right:
        return None
    what = at or "the output"
    if yours[0] != right[0] and [yours[0], right[0]] != ["int", "float"]:
        if yours[0] == "NoneType":
            return STRUCTURE, f"{what} is None: is a `return` missing?"
        return STRUCTURE, f"{what} is of type {yours[0]}, not {right[0]}"
    if right[0] == "tensor":
        return tensor_difference(yours, right, tolerance, what)
    if right[0] == "float":
        if close(yours[1], right[1], tolerance):
            return None
        return VALUE, f"{what} is {', not '.join(told_apart(yours[1], right[1]))}"
    if not isinstance(right[1], list):
        same = yours[1] == right[1]
        return None if same else (VALUE, f"{what} is {shown(yours)}, not {shown(right)}")

    mine, its = named(yours[1]), named(right[1])
    if len(mine) != len(its):
        return STRUCTURE, f"{what} has {len(mine)} items, not {len(its)}"
    if wrong := [name for name in mine if name not in its]:
        return (
            STRUCTURE,
            f"{what} has an item {wrong[0]}, not {next(n for n in its if n not in mine)}",
        )
    inside = f" of {at}" if at else ""
    found = [difference(mine[n], its[n], tolerance, f"item {n}{inside}") for n in its]
    return min(filter(None, found), default=None, key=lambda one: one[0])


def named(content: list) -> dict[str, list]:
    """The items of a plain list, tuple, dict or dataclass, by their index or key."""
    if content and content[0][0] == "item":
        return {shown(key): value for _, (key, value) in content}
    return {str(i): value for i, value in enumerate(content)}


def tensor_difference(yours: list, right: list, tolerance: float, what: str):
    (_, mine, my_shape, my_type), (_, its, shape, dtype) = yours, right
    if my_shape != shape:
        return STRUCTURE, f"{what} has the shape {tuple(my_shape)}, not {tuple(shape)}"
    if my_type != dtype:
        return STRUCTURE, f"{what} has the dtype {my_type}, not {dtype}"
    if len(mine) != len(its):
        return STRUCTURE, f"{what} holds {len(mine)} numbers, not {len(its)}"
    for i, (a, b) in enumerate(zip(mine, its)):
        if not close(a, b, tolerance):
            at = f"[{', '.join(map(str, position(i, shape)))}]" if shape else ""
            return VALUE, f"{what}{at} is {', not '.join(told_apart(a, b))}"
    return None


def close(a: float, b: float, tolerance: float) -> bool:
    if a == b or (math.isnan(a) and math.isnan(b)):
        return True
    return abs(a - b) <= tolerance * max(1.0, abs(b)) and math.isfinite(b)


def position(index: int, shape: list[int]) -> list[int]:
    """The position of a flattened tensor's number."""
    found = []
    for size in reversed(shape):
        index, here = divmod(index, size)
        found.insert(0, here)
    return found


def shown(value: list) -> str:
    """A plain value as a person would write it, cut if it is long."""
    text = written(value)
    return text if len(text) <= MAX_CHARS else text[: MAX_CHARS - 4] + " ..."


def written(value: list) -> str:
    kind, content, *shape = value
    if kind == "tensor":
        return f"tensor({nested(content, shape[0])})"
    if kind in ("int", "float"):
        return number(content)
    if not isinstance(content, list):
        return visible(content if kind not in ("str", "NoneType") else repr(content))
    if content and content[0][0] == "item":
        pairs = [f"{written(key)}: {written(item)}" for _, (key, item) in content]
        return f"{'' if kind == 'dict' else kind}{{{', '.join(pairs)}}}"
    items = ", ".join(map(written, content))
    return f"[{items}]" if kind == "list" else f"({items})"


def nested(numbers: list, shape: list[int]) -> str:
    """The numbers of a tensor in brackets."""
    if not shape:
        return number(numbers[0])
    size = len(numbers) // max(shape[0], 1)
    rows = [numbers[i * size : (i + 1) * size] for i in range(shape[0])]
    return f"[{', '.join(nested(row, shape[1:]) for row in rows)}]"


def told_apart(a: float, b: float) -> list[str]:
    """Two different numbers, with more digits where they look alike."""
    alike = number(a) == number(b)
    return [repr(x) if alike else number(x) for x in (a, b)]


def number(value: float) -> str:
    """A number or bool. There is no -0."""
    return f"{value + 0.0:.6g}" if isinstance(value, float) else str(value)
