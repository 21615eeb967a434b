"""The trees that answers are read into. A tree is a tuple of its kind and its parts:

("num", value, digits)             a rational number; digits: significant ones of a decimal, or 0
("sym", name), ("const", name)     an unknown or another name; pi, e, i or infinity
("+", ...), ("/", a, b), ("sin", a), ("pm", a), ...                           expressions
("pct", a), ("deg", a), ("unit", a, name), ("base", digits, base)            kinds of numbers
("list", ...), ("set", ...), ("seq", "(]", ...), ("ratio", ...)              several answers
("matrix", row, ...), with rows ("seq", "row", ...)
("rel", ("<", "<="), a, b, c), ("cup", a, b), ("minus", a, b)                relations and sets
"""

from collections.abc import Iterator
from fractions import Fraction


class Unparsable(ValueError):
    """The text is not an answer that the grammar knows."""


def fail(why: str):
    raise Unparsable(why)


def num(value) -> tuple:
    return ("num", Fraction(value), 0)


def joined(kind: str, parts: list) -> tuple:
    """Return a tree of several parts; a single part is itself."""
    return (kind, *parts) if len(parts) > 1 else parts[0]


def walk(tree: tuple) -> Iterator[tuple]:
    """Yield the tree and every tree in it."""
    stack = [tree]
    while stack:
        node = stack.pop()
        yield node
        stack += [part for part in node if isinstance(part, tuple)]


def unknowns(tree: tuple) -> set[str]:
    return {node[1] for node in walk(tree) if node[0] == "sym"}


def digits(tree: tuple) -> int:
    """Return the number of significant digits of the longest decimal; 0 without decimals."""
    return max((node[2] for node in walk(tree) if node[0] == "num"), default=0)


def is_name(tree: tuple) -> bool:
    """Whether it can be named by an equation: x, f(x), AB, |AB|, AO/BO, dy/dx, (x, y), a:b."""
    if tree[0] in ("seq", "ratio", "/", "abs"):
        return all(is_name(part) for part in tree[1:] if isinstance(part, tuple))
    if tree[0] != "*":
        return tree[0] == "sym"
    # A product of letters is a name if it is dy or AB. An xy = 5 is an equation.
    if any(part[0] != "sym" for part in tree[1:]):
        return False
    return tree[1] == ("sym", "d") or all(part[1][0].isupper() for part in tree[1:])


def inside(tree: tuple) -> tuple:
    """Return what stands between commas."""
    if tree[0] == "seq":
        return tree[2:]
    return tree[1:] if tree[0] in ("list", "set") else (tree,)
