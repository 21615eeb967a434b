"""Whether two trees are one answer. Each rule by_... knows some kinds of tree and says True, False, or None: not mine."""

from __future__ import annotations

import functools
import itertools
import math
from contextlib import suppress

from nanotir.answers.tokens import fail
from nanotir.answers.values import (
    PRECISION,
    Undefined,
    by_value,
    exact,
    operations,
    size,
    unknowns,
    value,
    values,
)


def same(p: tuple, g: tuple) -> bool:
    """Whether two trees are one answer: the first rule that knows their kinds decides, and says None where it does not."""
    if p == g:
        return True
    verdicts = (
        rule(p, g)
        for rule in (by_unit, by_name, by_real_set, by_items, by_parts, by_relation, by_value)
    )
    return next(verdict for verdict in verdicts if verdict is not None)


def either(p, g, kind: str):
    """(the one of this kind, the other) if just one is."""
    return (
        ((p, g) if p[0] == kind else (g, p)) if (p[0] == kind) != (g[0] == kind) else (None, None)
    )


def by_unit(p, g):
    """Units that only one side has are ignored. A percentage is a share; against a bare number above 1 it may also be the number of percent."""
    if "unit" in (p[0], g[0]):
        units = [{"unit": tree[-1], "deg": "degree"}.get(tree[0]) for tree in (p, g)]
        return (None in units or units[0] == units[1]) and same(
            *(tree[1] if unit else tree for tree, unit in zip((p, g), units))
        )
    angle, other = either(p, g, "deg")
    if angle:
        return same(angle[1], other) or by_value(angle, other)
    percent, other = either(p, g, "pct")
    if percent:
        return (
            by_value(percent, other)
            or (percent is g or (exact(other) or 0) > 1)
            and same(percent[1], other)
        )


def by_name(p, g):
    """x = 3 is 3, and f(x) = 2x + 1 is 2x + 1; where both have a name it is the same one, or they are relations."""
    (p_name, p_value), (g_name, g_value) = named(p), named(g)
    if p_name and g_name:
        return True if p_name == g_name and same(p_value, g_value) else None
    if (p_name or g_name) and "rel" not in (p_value[0], g_value[0]):
        return same(p_value, g_value)


def named(tree):
    """(name, value) of name = value, value = name, name in value, and name = value = value again; (None, tree) of anything else."""
    if tree[0] != "rel" or set(tree[1]) - {"=", "in"}:
        return None, tree
    name, *values = tree[2:] if is_name(tree[2]) or tree[1] != ("=",) else tree[:1:-1]
    fits = is_name(name) and (
        len(values) == 1 or all(same(a, b) for a, b in itertools.pairwise(values))
    )
    return (name, values[-1]) if fits else (None, tree)


def is_name(tree) -> bool:
    """x, f(x), AB, |AB|, AO/BO, dy/dx, (x, y), a:b; but not xy or x + y, which with = make an equation."""
    if tree[0] in ("seq", "ratio", "/", "abs"):
        return all(is_name(part) for part in tree[1:] if isinstance(part, tuple))
    letters_only = tree[0] == "*" and all(part[0] == "sym" for part in tree[1:])
    return (
        tree[0] == "sym"
        or letters_only
        and (tree[1] == ("sym", "d") or all(part[1][0].isupper() for part in tree[1:]))
    )


def by_items(p, g):
    """Lists, sets and \\pm: as many, each equal to one of the other. Ordered where only one side has brackets or names."""
    p_items, g_items = items(p), items(g)
    if len(p_items) == len(g_items) == 1 and "set" not in (p[0], g[0]):
        return None
    names, values = zip(
        *(zip(*map(named, side)) if side else ((), ()) for side in (p_items, g_items))
    )
    if {p[0], g[0]} == {"seq", "list"} and "()" in p + g and all_same(inside(p), inside(g)):
        return True
    for mine, other in ((0, 1), (1, 0)):
        if None not in names[mine] and len(set(names[mine])) > 1 and not any(names[other]):
            return all_same(values[mine], inside((p, g)[other]))
    unnamed = len({*names[0], *names[1]} - {None}) == 1
    return matched(*(values if unnamed else (p_items, g_items)), unique="set" in (p[0], g[0]))


def inside(tree) -> tuple:
    """What stands between commas."""
    return tree[2:] if tree[0] == "seq" else tree[1:] if tree[0] in ("list", "set") else (tree,)


def items(tree) -> list:
    """What a list, a set or an expression with \\pm stands for."""
    if tree[0] in ("list", "set"):
        return [item for part in tree[1:] for item in ([part] if part[0] == "set" else items(part))]
    return signed_versions(tree)


def signed_versions(tree) -> list:
    """All readings of the \\pm in a tree: independent of each other, but opposite to \\mp where there is one."""
    n, tied = count(tree, "pm"), count(tree, "mp") > 0
    if n > 4:
        fail("too many signs")
    choices = (
        [(minus,) * 99 for minus in (False, True)]
        if tied
        else itertools.product((False, True), repeat=n)
    )
    return list(dict.fromkeys(with_signs(tree, iter(choice)) for choice in choices))


def with_signs(tree, minus):
    if tree[0] in ("pm", "mp"):
        sign, inner = next(minus, None), with_signs(tree[1], minus)
        return ("neg", inner) if sign != (tree[0] == "mp") else inner
    return tuple(
        with_signs(part, minus) if isinstance(part, tuple) and part else part for part in tree
    )


def count(tree, kind: str | None = None) -> int:
    """Nodes of a kind, or of any."""
    return (kind is None or tree[:1] == (kind,)) + sum(
        count(part, kind) for part in tree if isinstance(part, tuple)
    )


def all_same(left, right) -> bool:
    return len(left) == len(right) and all(map(same, left, right))


def matched(left, right, unique: bool) -> bool:
    """Whether the two are equal in some order; as sets if `unique`."""
    if unique:
        add = lambda kept, item: kept if any(same(item, other) for other in kept) else [*kept, item]
        left, right = functools.reduce(add, left, []), functools.reduce(add, right, [])
    rest = list(right)
    for item in left if len(left) == len(right) else ():
        partner = next((i for i, other in enumerate(rest) if same(item, other)), None)
        if partner is None:
            return False
        del rest[partner]
    return len(left) == len(right)


def by_parts(p, g):
    """Tuples and intervals with two ends, ratios, matrices, columns, digits in a base."""
    if p[0] == g[0] == "seq":
        return p[1] == g[1] and all_same(p[2:], g[2:])
    if p[0] == g[0] == "ratio":
        return all_same(p[1:], g[1:]) or proportional(p, g)
    if p[0] == g[0] == "matrix":
        return len(p) == len(g) and all(map(all_same, p[1:], g[1:]))
    matrix, other = either(p, g, "matrix")
    if matrix and other[0] == "seq":
        column = (
            [row[0] for row in matrix[1:]]
            if all(len(row) == 1 for row in matrix[1:])
            else matrix[1]
            if len(matrix) == 2
            else []
        )
        return other[1] == "()" and all_same(column, other[2:])
    if "base" in (p[0], g[0]):
        return p[1:] == g[1:] if p[0] == g[0] else p[0] == "num" and p[1] == g[1]


def proportional(p, g) -> bool:
    """2:4 is 1:2; but 3:30, which may be a time, is 3:30 alone."""
    values = [[exact(part) for part in tree[1:]] for tree in (p, g)]
    if (
        len(p) != len(g)
        or not all(all(row) for row in values)
        or 10 <= values[1][-1] < 60
        and values[1][0] <= 24
    ):
        return False
    return len({a / b for a, b in zip(*values)}) == 1


MINUS_OO, OO, REALS = (
    ("neg", ("const", "oo")),
    ("const", "oo"),
    ("sym", "set R"),
)  # a set of reals is pieces: (low, high, low included, high included)


def by_real_set(p, g):
    """Intervals, unions, points and inequalities in one unknown describe sets of real numbers."""
    described = [
        tree[0] in ("cup", "minus", "rel")
        or tree == REALS
        or tree[0] == "list"
        and tree[1][0] == "rel"
        for tree in (p, g)
    ]
    left, right = (pieces(p), pieces(g)) if any(described) else (None, None)
    if left is None or right is None:
        return None
    if len({frozenset(unknowns(tree)) - {"set R"} for tree in (p, g)} - {frozenset()}) > 1:
        return False
    left, right = merged(left), merged(right)
    return len(left) == len(right) and all(
        a[2:] == b[2:] and same(a[0], b[0]) and same(a[1], b[1]) for a, b in zip(left, right)
    )


def pieces(tree):
    """The pieces of a set, or None of a tree that is none."""
    kind = tree[0]
    if tree == REALS:
        return [(MINUS_OO, OO, False, False)]
    if kind == "seq" and len(tree) == 4:
        low, high = position(tree[2]), position(tree[3])
        return (
            [(tree[2], tree[3], tree[1][0] == "[", tree[1][1] == "]")]
            if None not in (low, high) and low < high
            else None
        )
    if kind == "set":
        return (
            None
            if any(position(point) is None for point in tree[1:])
            else [(point, point, True, True) for point in tree[1:]]
        )
    if kind == "rel":
        return relation_pieces(tree[1], tree[2:])
    if kind in ("cup", "minus", "list"):
        parts = [pieces(part) for part in tree[1:]]
        return (
            None
            if None in parts or kind == "list" and not alternatives(tree, parts)
            else without(*parts)
            if kind == "minus"
            else sum(parts, [])
        )
    return None


def alternatives(tree, parts) -> bool:
    """Whether a list of inequalities says "or": they are apart. x > 1, x < 3 may mean both."""
    return (
        all(part[0] == "rel" for part in tree[1:])
        and len(unknowns(tree)) == 1
        and len(merged(sum(parts, []))) == sum(map(len, parts))
    )


def without(kept, points):
    """Pieces cut at single points."""
    for point, other, *_ in points:
        if point != other:
            fail("only points can be left out")
        at = position(point)
        kept = [
            cut
            for low, high, *ends in kept
            for cut in (
                [(low, point, ends[0], False), (point, high, False, ends[1])]
                if position(low) < at < position(high)
                else [
                    (low, high, ends[0] and position(low) != at, ends[1] and position(high) != at)
                ]
            )
        ]
    return kept


def relation_pieces(signs, sides):
    """Of a < x <= b, x > a, x != a, x = a, x in S, and the same written backwards."""
    if signs == ("in",):
        return pieces(sides[1]) if is_name(sides[0]) else None
    if set(signs) <= {">", ">="}:
        signs, sides = tuple(sign.replace(">", "<") for sign in signs[::-1]), sides[::-1]
    ends = [side for side in sides if side[0] != "sym"]
    if len(ends) != len(sides) - 1 or any(position(end) is None for end in ends):
        return None
    if signs in (("!=",), ("=",)):
        return (
            [(ends[0], ends[0], True, True)]
            if signs == ("=",)
            else [(MINUS_OO, ends[0], False, False), (ends[0], OO, False, False)]
        )
    if (
        not set(signs) <= {"<", "<="}
        or len(sides) == 3
        and (sides[1][0] != "sym" or position(ends[0]) >= position(ends[1]))
    ):
        return None
    low, high = ([MINUS_OO, False], [OO, False])
    for sign, left, right in zip(signs, sides, sides[1:]):
        low, high = (
            ([left, sign == "<="], high) if right[0] == "sym" else (low, [right, sign == "<="])
        )
    return [(low[0], high[0], low[1], high[1])]


def merged(pieces_of_set) -> list:
    """Pieces from left to right; those that overlap or touch are one."""
    done = []
    for low, high, closed, end in sorted(
        pieces_of_set, key=lambda piece: (position(piece[0]), not piece[2])
    ):
        if done and (position(low), not (closed or done[-1][3])) <= (position(done[-1][1]), False):
            first, last, closed_first, closed_last = done.pop()
            high, end = max(
                (last, closed_last), (high, end), key=lambda bound: (position(bound[0]), bound[1])
            )
            low, closed = first, closed_first
        done.append((low, high, closed, end))
    return done


def position(tree) -> float | None:
    """Where a constant lies on the real line, to the digits of a float; None if it does not."""
    if tree in (OO, MINUS_OO):
        return math.inf if tree == OO else -math.inf
    rational = exact(tree)
    if rational is not None or unknowns(tree):
        return None if rational is None else float(rational)
    with suppress(Undefined, OverflowError):
        real, imaginary = value(tree, {}, PRECISION)
        return operations().libmp.to_float(real) if imaginary == operations().libmp.fzero else None


def by_relation(p, g):
    """Every relation of a chain has its equal in the other."""
    if p[0] != "rel" or g[0] != "rel":
        return False if "rel" in (p[0], g[0]) else None
    left, right = (
        [(sign, *pair) for sign, pair in zip(tree[1], itertools.pairwise(tree[2:]))]
        for tree in (p, g)
    )
    all_found = lambda these, those: all(any(one_relation(a, b) for b in those) for a in these)
    return len(left) == len(right) and all_found(left, right) and all_found(right, left)


def one_relation(a, b) -> bool:
    """The differences of their sides are in a constant ratio, positive if there is a direction."""
    a, b = (
        (sign.replace(">", "<"), right, left) if ">" in sign else (sign, left, right)
        for sign, left, right in (a, b)
    )
    first, second = (("+", left, ("neg", right)) for _, left, right in (a, b))
    if a[0] != b[0] or a[0] == "in" or not unknowns(first) or unknowns(first) != unknowns(second):
        return a == b
    m = operations().libmp
    with suppress(ZeroDivisionError):
        ratios = [m.mpc_div(x, y, PRECISION, "n") for x, y, _ in values(first, second)]
        steady = all(
            size(m.mpc_sub(ratio, ratios[0], PRECISION, "n")) < size(ratios[0]) - 100
            for ratio in ratios
        )
        return bool(ratios) and steady and (a[0] in ("=", "!=") or ratios[0][0][0] == 0)
    return False
