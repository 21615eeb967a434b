"""Sets of real numbers: intervals, unions, single points, inequalities in one unknown.

The numbers in two sets cut the line into places: each number is one, and each gap between two.
A set is a set of places, so that Python compares them.
"""

import operator

from nanotir.answers.trees import negative, unknowns, walk
from nanotir.answers.values import equal_values, real_value

OO, REALS = ("const", "oo"), ("sym", "set R")
MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


def same_sets(p: tuple, g: tuple) -> bool | None:
    """Whether two trees are one set of reals; None if they need not be sets or one is none."""
    names = [unknowns(tree) - {"set R"} for tree in (p, g)]
    if not is_set(p) and not is_set(g) or max(map(len, names)) > 1:
        return None
    try:
        line = places((p, g))
        return members(p, line) == members(g, line) and not (all(names) and names[0] != names[1])
    except KeyError:
        return None


def is_set(tree: tuple) -> bool:
    """Whether it certainly describes a set; (1, 2) or {3} may be one, if the other answer is."""
    if tree[0] in ("list", "or"):
        return any(part[0] == "rel" and set(part[1]) != {"="} for part in tree[1:])
    return tree[0] in ("cup", "cap", "minus", "rel") or tree == REALS


def places(trees: tuple) -> dict:
    """Return the place of each number: 1, 3, 5 and so on; between them are the gaps."""
    numbers = [(real_value(node), node) for node in set(walk(trees))]
    known = [pair for pair in numbers if pair[0] is not None]
    found, place, last = {}, -1, None
    for _, node in sorted(known, key=operator.itemgetter(0)):
        place += 0 if last and equal_values(node, last) else 2
        found[node], last = place, node
    return found | {OO: place + 2, negative(OO): -1}


def members(tree: tuple, line: dict) -> set[int]:
    """Return the places in a set; raise KeyError for other trees."""
    kind, *parts = tree
    everything = set(range(line[OO]))
    if tree == REALS:
        return everything
    if kind == "set":
        return {line[part] for part in parts}
    if kind == "seq" and len(parts) == 3 and parts[0][0] in "([":
        low, high = line[parts[1]] + (parts[0][0] == "("), line[parts[2]] + (parts[0][1] == "]")
        return everything.intersection(range(low, high))
    if kind == "rel":
        links = zip(tree[1], tree[2:], tree[3:])
        return everything.intersection(*(link(*sides, line) for sides in links))
    if kind not in ("cup", "cap", "minus", "list", "or"):
        raise KeyError(kind)
    sets = [members(part, line) for part in parts]
    if kind == "minus":
        return sets[0] - sets[1]
    # "x < 1, x > 2" says "or", since no x is both.
    both = everything.intersection(*sets) if kind in ("cap", "list") else set()
    return both or set().union(*sets)


def link(sign: str, left: tuple, right: tuple, line: dict) -> set[int]:
    """Return the places of x < a, x > a, x = a, x in S and the like, also written backwards."""
    if left[0] != "sym" and sign != "in":
        left, right, sign = right, left, MIRRORED.get(sign, sign)
    if left[0] != "sym":
        raise KeyError(left)
    if sign == "in":
        return members(right, line)
    place, end = line[right], line[OO]
    above, below = set(range(place + 1, end)), set(range(min(place, end)))
    sets = {"<": below, "<=": below | {place}, ">": above, ">=": above | {place}}
    return {**sets, "=": {place}, "!=": below | above}[sign]
