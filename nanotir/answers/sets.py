"""Sets of real numbers: intervals, unions, single points, inequalities in one unknown.

A set is a list of pieces, each from one cut to another. A cut is just before a point or just
after it: [1, 2) goes from before 1 to before 2, and {3} from before 3 to after 3. Open and closed
ends need no rules of their own then.
"""

import math
from typing import NamedTuple

from nanotir.answers.exact import exact
from nanotir.answers.trees import fail, is_name, unknowns

OO = ("const", "oo")
MINUS_OO = ("neg", OO)
REALS = ("sym", "set R")


class Cut(NamedTuple):
    at: float  # where the point lies
    after: bool  # whether the cut is after it
    point: tuple  # its tree


Piece = tuple[Cut, Cut]


def is_set(tree: tuple) -> bool:
    """Whether it certainly describes a set; (1, 2) or {3} may be one, if the other answer is."""
    if tree[0] == "list":
        return tree[1][0] == "rel"
    return tree[0] in ("cup", "minus", "rel") or tree == REALS


def pieces(tree: tuple) -> list[Piece] | None:
    """Return the pieces of a set, or None of a tree that is no set of reals."""
    kind, *parts = tree
    if tree == REALS:
        return [(cut(MINUS_OO, True), cut(OO, False))]
    if kind == "rel":
        return relation_pieces(tree[1], tree[2:])
    if kind == "seq" and len(tree) == 4:
        low, high = cut(tree[2], tree[1][0] != "["), cut(tree[3], tree[1][1] == "]")
        return [(low, high)] if low and high and low.at < high.at else None
    if kind == "set":
        points = [(cut(point, False), cut(point, True)) for point in parts]
        return None if (None, None) in points else points
    if kind not in ("cup", "minus", "list"):
        return None
    sets = [pieces(part) for part in parts]
    if None in sets or kind == "list" and not alternatives(tree, sets):
        return None
    return without(*sets) if kind == "minus" else sum(sets, [])


def cut(point: tuple, after: bool) -> Cut | None:
    at = position(point)
    return None if at is None else Cut(at, after, point)


def position(tree: tuple) -> float | None:
    """Return where a constant lies on the real line, or None if it does not."""
    if tree in (OO, MINUS_OO):
        return math.inf if tree == OO else -math.inf
    rational = exact(tree)
    if rational is not None:
        return float(rational)
    if unknowns(tree):
        return None
    from nanotir.answers.numeric import real_value

    return real_value(tree)


def alternatives(tree: tuple, sets: list[list[Piece]]) -> bool:
    """Whether a list of inequalities says "or": they are apart. x > 1, x < 3 may mean both."""
    if any(part[0] != "rel" for part in tree[1:]) or len(unknowns(tree)) != 1:
        return False
    together = sum(sets, [])
    return len(merged(together)) == len(together)


def relation_pieces(signs: tuple, sides: tuple) -> list[Piece] | None:
    """Return the pieces of a < x <= b, x > a, x != a, x = a or x in S, also written backwards."""
    if signs == ("in",):
        return pieces(sides[1]) if is_name(sides[0]) else None
    if set(signs) <= {">", ">="}:
        signs, sides = tuple(sign.replace(">", "<") for sign in signs[::-1]), sides[::-1]
    ends = [side for side in sides if side[0] != "sym"]
    at = [position(end) for end in ends]
    if len(ends) != len(sides) - 1 or None in at:
        return None
    low, high = cut(MINUS_OO, True), cut(OO, False)
    if signs == ("=",):
        return [(cut(ends[0], False), cut(ends[0], True))]
    if signs == ("!=",):
        return [(low, cut(ends[0], False)), (cut(ends[0], True), high)]
    # In a chain of two the unknown is in the middle, and the ends ascend.
    in_order = len(sides) != 3 or sides[1] not in ends and at[0] < at[1]
    if not set(signs) <= {"<", "<="} or not in_order:
        return None
    for sign, left, right in zip(signs, sides, sides[1:]):
        if right[0] == "sym":
            low = cut(left, sign == "<")
        else:
            high = cut(right, sign == "<=")
    return [(low, high)]


def without(kept: list[Piece], points: list[Piece]) -> list[Piece]:
    """Return pieces cut at single points."""
    for before, after in points:
        if before.point != after.point:
            fail("only points can be left out")
        cut_pieces = []
        for low, high in kept:
            if low.at < before.at < high.at:
                cut_pieces += [(low, before), (after, high)]
                continue
            # The point may be an end of the piece, which is open then.
            low = low._replace(after=low.after or low.at == before.at)
            high = high._replace(after=high.after and high.at != before.at)
            cut_pieces.append((low, high))
        kept = cut_pieces
    return kept


def merged(pieces_of_set: list[Piece]) -> list[Piece]:
    """Return the pieces from left to right; those that overlap or touch are one."""
    done = []
    for low, high in sorted(pieces_of_set, key=lambda piece: piece[0][:2]):
        if done and low[:2] <= done[-1][1][:2]:
            low, last = done.pop()
            high = max(last, high, key=lambda end: end[:2])
        done.append((low, high))
    return done
