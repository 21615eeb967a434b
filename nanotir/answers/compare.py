"""Whether two trees are one answer.

Each rule by_... knows some kinds of trees. It says True, False, or None: these are not mine.
"""

import itertools

from nanotir.answers.exact import exact, first_digits
from nanotir.answers.sets import is_set, merged, pieces
from nanotir.answers.trees import fail, inside, is_name, unknowns, walk


def same(p: tuple, g: tuple) -> bool:
    """Whether a prediction and a gold are one answer. The first rule that knows them decides."""
    if p == g:
        return True
    for rule in (by_unit, by_name, by_real_set, by_items, by_parts, by_relation):
        verdict = rule(p, g)
        if verdict is not None:
            return verdict
    return by_value(p, g)


def all_same(left, right) -> bool:
    return len(left) == len(right) and all(map(same, left, right))


def either(p: tuple, g: tuple, kind: str) -> tuple:
    """Return (the one of this kind, the other) if just one is, else (None, None)."""
    if (p[0] == kind) == (g[0] == kind):
        return None, None
    return (p, g) if p[0] == kind else (g, p)


def by_unit(p: tuple, g: tuple) -> bool | None:
    """Two units must agree; a unit that only one side has is ignored. A percentage is a share."""
    if "unit" in (p[0], g[0]):
        p_unit, g_unit = ({"unit": tree[-1], "deg": "degree"}.get(tree[0]) for tree in (p, g))
        if p_unit and g_unit and p_unit != g_unit:
            return False
        return same(p[1] if p_unit else p, g[1] if g_unit else g)
    angle, other = either(p, g, "deg")
    if angle:
        return same(angle[1], other) or by_value(angle, other)
    percent, other = either(p, g, "pct")
    if percent:
        # 50 also answers 50%, and 50% a gold of 50. But 0.5% does not answer a gold of 0.5.
        may_be_number = percent is g or (exact(other) or 0) > 1
        return by_value(percent, other) or may_be_number and same(percent[1], other)


def by_name(p: tuple, g: tuple) -> bool | None:
    """x = 3 is 3, and f(x) = 2x + 1 is 2x + 1."""
    (p_name, p_value), (g_name, g_value) = named(p), named(g)
    if p_name and g_name:
        # Equations with other names or values may still be equal, as relations.
        return True if p_name == g_name and same(p_value, g_value) else None
    if (p_name or g_name) and "rel" not in (p_value[0], g_value[0]):
        return same(p_value, g_value)


def named(tree: tuple) -> tuple:
    """Return (name, value) of name = value, value = name or name in value, else (None, tree)."""
    if tree[0] != "rel" or set(tree[1]) - {"=", "in"}:
        return None, tree
    sides = tree[2:]
    if tree[1] == ("=",) and not is_name(sides[0]):
        sides = sides[::-1]
    # In name = value = value the values must be equal.
    name, *values = sides
    if is_name(name) and all(same(a, b) for a, b in itertools.pairwise(values)):
        return name, values[-1]
    return None, tree


def by_real_set(p: tuple, g: tuple) -> bool | None:
    """Intervals, unions, points and inequalities in one unknown."""
    if not is_set(p) and not is_set(g):
        return None
    left, right = pieces(p), pieces(g)
    if left is None or right is None:
        return None
    p_names, g_names = unknowns(p) - {"set R"}, unknowns(g) - {"set R"}
    if p_names and g_names and p_names != g_names:
        return False
    left, right = merged(left), merged(right)
    if len(left) != len(right):
        return False
    cuts = zip(itertools.chain(*left), itertools.chain(*right))
    return all(a.after == b.after and same(a.point, b.point) for a, b in cuts)


def by_items(p: tuple, g: tuple) -> bool | None:
    """Lists, sets and \\pm: as many items, each equal to one of the other."""
    p_items, g_items = items(p), items(g)
    has_set = "set" in (p[0], g[0])
    if not p_items or not g_items:
        return p_items == g_items
    if len(p_items) == len(g_items) == 1 and not has_set:
        return None
    # Where only one side has brackets or names, the order counts: 1, 2 is (1, 2) or x = 1, y = 2.
    if {p[0], g[0]} == {"seq", "list"} and "()" in (p[1], g[1]) and all_same(inside(p), inside(g)):
        return True
    p_names, p_values = zip(*map(named, p_items))
    g_names, g_values = zip(*map(named, g_items))
    if differ(p_names) and not any(g_names):
        return all_same(p_values, inside(g))
    if differ(g_names) and not any(p_names):
        return all_same(g_values, inside(p))
    # x = 1, x = 2 is 1, 2.
    if len({*p_names, *g_names} - {None}) == 1:
        p_items, g_items = p_values, g_values
    if has_set:
        p_items, g_items = distinct(p_items), distinct(g_items)
    return matched(p_items, g_items)


def differ(names: tuple) -> bool:
    """Whether all have names, and not all the same."""
    return None not in names and len(set(names)) > 1


def items(tree: tuple) -> list[tuple]:
    """Return what a list, a set or an expression with \\pm stands for."""
    if tree[0] not in ("list", "set"):
        return signed_versions(tree)
    found = []
    for part in tree[1:]:
        found += [part] if part[0] == "set" else items(part)
    return found


def signed_versions(tree: tuple) -> list[tuple]:
    """Return all readings of the \\pm in a tree: opposite to \\mp where there is one."""
    signs = [node[0] for node in walk(tree) if node[0] in ("pm", "mp")]
    if signs.count("pm") > 4:
        fail("too many signs")
    if "mp" in signs:
        choices = [(False,) * len(signs), (True,) * len(signs)]
    else:
        choices = itertools.product((False, True), repeat=len(signs))
    return list(dict.fromkeys(with_signs(tree, iter(choice)) for choice in choices))


def with_signs(tree: tuple, minus) -> tuple:
    """Return the tree with a sign for each \\pm and \\mp, in the order of reading."""
    if tree[0] in ("pm", "mp"):
        negative = next(minus) != (tree[0] == "mp")
        inner = with_signs(tree[1], minus)
        return ("neg", inner) if negative else inner
    return tuple(with_signs(part, minus) if isinstance(part, tuple) else part for part in tree)


def distinct(parts) -> list:
    kept = []
    for part in parts:
        if not any(same(part, other) for other in kept):
            kept.append(part)
    return kept


def matched(left, right) -> bool:
    """Whether the two are equal in some order."""
    rest = list(right)
    for item in left:
        partner = next((other for other in rest if same(item, other)), None)
        if partner is None:
            return False
        rest.remove(partner)
    return not rest


def by_parts(p: tuple, g: tuple) -> bool | None:
    """Tuples, intervals, ratios, matrices, columns, digits in a base."""
    if p[0] == g[0] == "seq":
        return p[1] == g[1] and all_same(p[2:], g[2:])
    if p[0] == g[0] == "matrix":
        return all_same(p[1:], g[1:])
    if p[0] == g[0] == "ratio":
        return all_same(p[1:], g[1:]) or proportional(p, g)
    matrix, other = either(p, g, "matrix")
    if matrix and other[0] == "seq":
        return other[1] == "()" and all_same(column(matrix), other[2:])
    if p[0] == g[0] == "base":
        return p[1:] == g[1:]
    # The question may have named the base of a prediction without one.
    if "base" in (p[0], g[0]):
        return p[0] == "num" and p[1] == g[1]


def column(matrix: tuple) -> list:
    """Return the entries of a matrix with one column or one row."""
    rows = [row[2:] for row in matrix[1:]]
    if all(len(row) == 1 for row in rows):
        return [row[0] for row in rows]
    return rows[0] if len(rows) == 1 else []


def proportional(p: tuple, g: tuple) -> bool:
    """2:4 is 1:2. But 3:30, which may be a time, is 3:30 alone."""
    left, right = [exact(part) for part in p[1:]], [exact(part) for part in g[1:]]
    if len(left) != len(right) or not all(left) or not all(right):
        return False
    if 10 <= right[-1] < 60 and right[0] <= 24:
        return False
    return len({a / b for a, b in zip(left, right)}) == 1


def by_relation(p: tuple, g: tuple) -> bool | None:
    """Every relation of a chain has its equal in the other."""
    if p[0] != "rel" or g[0] != "rel":
        return False if "rel" in (p[0], g[0]) else None
    left, right = relations(p), relations(g)
    if len(left) != len(right):
        return False
    return all(found(a, right) for a in left) and all(found(b, left) for b in right)


def found(relation: tuple, others: list[tuple]) -> bool:
    return any(one_relation(relation, other) for other in others)


def relations(tree: tuple) -> list[tuple]:
    """Return the relations of a chain as (sign, left, right), none with > or >=."""
    links = []
    for sign, left, right in zip(tree[1], tree[2:], tree[3:]):
        if ">" in sign:
            sign, left, right = sign.replace(">", "<"), right, left
        links.append((sign, left, right))
    return links


def one_relation(a: tuple, b: tuple) -> bool:
    """Whether the differences of their sides are in a constant ratio."""
    first, second = (("+", left, ("neg", right)) for _, left, right in (a, b))
    names = unknowns(first)
    if a[0] != b[0] or a[0] == "in" or not names or names != unknowns(second):
        return a == b
    from nanotir.answers.numeric import constant_ratio

    return constant_ratio(first, second, positive=a[0] in ("<", "<="))


def by_value(p: tuple, g: tuple) -> bool:
    """Two expressions: exactly if both are rational, else by their values at random points."""
    if unknowns(p) != unknowns(g):
        return False
    a, b = exact(p), exact(g)
    if a is not None and b is not None:
        return a == b or first_digits(p, a, b) or first_digits(g, b, a)
    from nanotir.answers.numeric import equal_at_points

    return equal_at_points(p, g)
