"""The trees that answers are read into. A tree is a tuple of its kind and its parts:

("num", value, digits)      a rational number; digits: significant ones of a decimal, or 0
("sym", name), ("const", name), ("unit", name), ("text", words)
("+", ...), ("*", ...), ("^", a, b), ("sin", a), ("pm", a), ...     a / b is a * b^-1, -a is -1 * a
("list", ...), ("or", ...), ("set", ...), ("cup", a, b), ("minus", a, b)
("seq", "(]", ...)          what has an order: tuples, ratios, matrices, digits in a base
("rel", ("<", "<="), a, b, c)
"""

from collections.abc import Iterator
from fractions import Fraction


class Unreadable(ValueError):
    """The text is not an answer that the grammar knows."""


def fail(why: str):
    raise Unreadable(why)


def num(value) -> tuple:
    return ("num", Fraction(value), 0)


def negative(tree: tuple) -> tuple:
    return ("*", num(-1), tree)


def quotient(a: tuple, b: tuple) -> tuple:
    return ("*", a, ("^", b, num(-1)))


def walk(tree: tuple) -> Iterator[tuple]:
    """Yield the tree and every tree in it."""
    yield tree
    for part in tree:
        if isinstance(part, tuple):
            yield from walk(part)


def replaced(tree: tuple, table: dict) -> tuple:
    """Return the tree with the nodes that are in the table replaced."""
    if tree in table:
        return table[tree]
    return tuple(replaced(part, table) if isinstance(part, tuple) else part for part in tree)


def unknowns(tree: tuple) -> set[str]:
    return {node[1] for node in walk(tree) if node[0] == "sym"}


def links(tree: tuple) -> list[tuple]:
    """Return the relations of a chain as (sign, left, right), with < for >."""
    chain = zip(tree[1], tree[2:], tree[3:])
    return [(s.replace(">", "<"), b, a) if ">" in s else (s, a, b) for s, a, b in chain]
