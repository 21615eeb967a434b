"""Whether two trees are one answer. A rule says True, False, or None: these trees are not mine."""

import contextlib
import itertools
import operator
from collections import Counter

from nanotir.answers.text import UNITS, WORDS
from nanotir.answers.trees import fail, links, negative, num, quotient, replaced, unknowns, walk
from nanotir.answers.values import CONSTANTS, approximate, equal_values, exact, random_point

# Units are unknowns, so that algebra compares them; %, °, percent and rad have values.
AS_UNKNOWNS = {("unit", x): ("sym", f"unit {x}") for x in UNITS.values() if x not in CONSTANTS}
AS_UNITS = {("sym", letter): ("unit", name) for letter, name in WORDS["letter"].items()}
OO = ("const", "oo")
NAMES = {"sym", "text", "seq", "fabs", "max", "min", "*", "^", "num"}
COMPARED = {"<": operator.lt, "<=": operator.le, "=": operator.eq, "!=": operator.ne}


def same(p: tuple, g: tuple) -> bool:
    """Whether a prediction and a gold are one answer. The first rule that knows them decides."""
    if p == g:
        return True
    said = (rule(p, g) for rule in (by_name, by_unit, same_sets, by_items, by_order, equal_values))
    return next(verdict for verdict in said if verdict is not None)


def all_same(left, right) -> bool:
    return len(left) == len(right) and all(map(same, left, right))


def matched(left, right, equal=same) -> bool:
    """Whether the two are equal in some order."""
    rest = list((Counter(right) - Counter(left)).elements())  # equal trees first, as most are
    for item in (Counter(left) - Counter(right)).elements():
        partner = next((other for other in rest if equal(item, other)), None)
        if partner is None:
            return False
        rest.remove(partner)
    return not rest


def by_unit(p: tuple, g: tuple) -> bool | None:
    """Two units must agree. A unit that only one side has is ignored."""
    if not units(p) and not units(g):
        return None
    if units(p) and units(g):
        return equal_values(*(replaced(tree, AS_UNKNOWNS) for tree in (p, g)))
    united, plain = (p, g) if units(p) else (g, p)
    read = replaced(plain, AS_UNITS)  # 5 m is five metres where the other answer has a unit
    if units(read) and not unknowns(read):
        return by_unit(united, read)
    # 50 also answers 50%, and 50% a gold of 50. But 0.5% is not 0.5, nor are five per cent 5.
    share = {"%", "percent"} & {unit[1] for unit in units(united)}
    small = "percent" in share or (exact(plain) or 0) <= 1
    if share and small and united is p:
        return equal_values(united, plain)
    bare = replaced(united, dict.fromkeys(units(united), num(1)))
    return same(bare, plain) or equal_values(united, plain)


def units(tree: tuple) -> list[tuple]:
    """Return the units in a product."""
    if tree[0] not in ("*", "pm", "mp", "^"):
        return [tree] if tree[0] == "unit" else []
    return [unit for part in tree[1:] for unit in units(part)]


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
    # In name = value = value the values must be equal.
    name, *values = tree[:1:-1] if tree[1] == ("=",) and not is_name(tree[2]) else tree[2:]
    if is_name(name) and all(same(a, b) for a, b in itertools.pairwise(values)):
        return name, values[-1]
    return None, tree


def is_name(tree: tuple) -> bool:
    """Whether it can be named by an equation: x, f(x), AB, |AB|, AO/BO, dy/dx, (x, y), a:b."""
    nodes = list(walk(tree))
    numbers = [node for node in nodes if node[0] == "num"]
    if numbers != [node[2] for node in nodes if node[0] == "^"] or set(numbers) - {num(-1)}:
        return False
    # A product of letters is a name if it is dy or AB. An xy = 5 is an equation.
    letters = [node[1] for node in nodes if node[0] == "sym"]
    may_multiply = letters[:1] == ["d"] or all(letter[0].isupper() for letter in letters)
    kinds = {node[0] for node in nodes}
    return kinds <= NAMES and (may_multiply or "*" not in kinds)


def by_items(p: tuple, g: tuple) -> bool | None:
    """Lists, sets and \\pm: as many items, each equal to one of the other."""
    left, right, kinds = items(p), items(g), {p[0], g[0]}
    if len(left) == len(right) == 1 and "set" not in kinds:
        return None
    # Where only one side has brackets or names, the order counts: 1, 2 is (1, 2) or x = 1, y = 2.
    names = [{named(item)[0] for item in side} for side in (left, right)]
    is_named = {None} in names and names[0].isdisjoint(names[1]) and len(set.union(*names)) > 2
    if is_named or kinds == {"seq", "list"} and "()" in (p[1], g[1]):
        inside = [tree[2 if tree[0] == "seq" else 1 :] for tree in (p, g)]
        in_order = kinds <= {"seq", "list"} and all_same(*inside)
        if is_named or in_order:  # "x = 1 or y = 2" says less
            return in_order
    if "set" in kinds:
        left, right = list(dict.fromkeys(left)), list(dict.fromkeys(right))
    sets = [sum(item[0] == "set" for item in side) for side in (left, right)]
    return sets[0] == sets[1] and matched(left, right)


def items(tree: tuple) -> list[tuple]:
    """Return what a list, a set or an expression with \\pm stands for."""
    if tree[0] in ("list", "or", "set"):
        return [x for part in tree[1:] for x in ([part] if part[0] == "set" else items(part))]
    # Each \pm has both signs; where there is a \mp, all change together.
    signs = [node for node in walk(tree) if node[0] in ("pm", "mp")]
    if not signs or len(signs) > 4:
        return fail("too many signs") if signs else [tree]
    together = signs if "mp" in [sign[0] for sign in signs] else signs[:1]
    found = []
    for minus in ("mp", "pm"):
        table = {s: negative(s[1]) if s[0] == minus else s[1] for s in together}
        found += items(replaced(tree, table))
    return list(dict.fromkeys(found))


def by_order(p: tuple, g: tuple) -> bool | None:
    """Tuples, intervals, ratios, matrices, digits in a base; relations; words (equal trees)."""
    if p[:2] == g[:2] and p[0] == "seq":
        return all_same(p[2:], g[2:]) or p[1] == ":" and proportional(p[2:], g[2:])
    # The question may have named the base of a prediction without one.
    if g[:2] == ("seq", "base") and p[0] == "num":
        return p[1] == g[2][1]
    if p[0] == g[0] == "rel":
        return matched(links(p), links(g), equal=same_relation)
    return False if {p[0], g[0]} & {"text", "seq", "rel"} else None


def proportional(p: tuple, g: tuple) -> bool:
    """2:4 is 1:2. But 3:30, which may be a time, is 3:30 alone."""
    left, right = list(map(exact, p)), list(map(exact, g))
    if not all(left + right) or 10 <= right[-1] < 60 and right[0] <= 24:
        return False
    return [a / left[-1] for a in left] == [b / right[-1] for b in right]


def same_relation(a: tuple, b: tuple) -> bool:
    """Whether the differences of their sides are in a constant ratio, positive for inequalities."""
    sign = a[0]
    f, g = (("+", left, negative(right)) for _, left, right in (a, b))
    if a == b or sign != b[0] or sign == "in" or not unknowns(f) == unknowns(g) != set():
        return a == b
    there = random_point(f, 0)  # f(x) / g(x) is f(c) / g(c), for one c
    f_there, g_there = replaced(f, there), replaced(g, there)
    ratio = approximate(quotient(f_there, g_there)) or 0.0
    if ratio == 0 or ratio < 0 and sign in ("<", "<="):
        return False
    return equal_values(("*", f, g_there), ("*", g, f_there))


def same_sets(p: tuple, g: tuple) -> bool | None:
    """Whether two trees are one set of reals; None if they need not be sets or one is none."""
    names = list(map(unknowns, (p, g)))
    if not is_set(p) and not is_set(g) or max(map(len, names)) > 1:
        return None
    with contextlib.suppress(KeyError):
        line = places((p, g))
        left, right = ([has(tree, x, line) for x in range(line[OO])] for tree in (p, g))
        return left == right and not (all(names) and names[0] != names[1])


def is_set(tree: tuple) -> bool:
    """Whether it certainly describes a set; (1, 2) or {3} may be one, if the other answer is."""
    if tree[0] in ("list", "or"):
        return any(part[0] == "rel" and set(part[1]) != {"="} for part in tree[1:])
    return tree[0] in ("cup", "cap", "minus", "rel")


def places(trees: tuple) -> dict:
    """Return the place on the line of each number: 1, 3, 5 ..; between them are the gaps."""
    numbers = {node: approximate(node) for node in walk(trees)}
    known = [node for node in numbers if numbers[node] is not None]
    found, place, last = {}, -1, None
    for node in sorted(known, key=numbers.get):
        place += 0 if last and equal_values(node, last) else 2
        found[node], last = place, node
    return found | {OO: place + 2, negative(OO): -1}


def has(tree: tuple, x: int, line: dict) -> bool:
    """Whether a set has the place x, or a relation holds there; raise KeyError for other trees."""
    kind, *parts = tree
    if kind == "set":
        return x in [line[part] for part in parts]
    if kind == "seq" and len(parts) == 3 and parts[0][0] in "([":
        brackets, low, high = parts
        return line[low] + (brackets[0] == "(") <= x < line[high] + (brackets[1] == "]")
    # Links of a chain: x in S, and x < a or a < x, with the unknown on one side.
    if kind == "in" and parts[0][0] == "sym":
        return has(parts[1], x, line)
    if kind in COMPARED and [part[0] for part in parts].count("sym") == 1:
        return COMPARED[kind](*(x if part[0] == "sym" else line[part] for part in parts))
    if kind not in ("rel", "cup", "cap", "minus", "list", "or"):
        raise KeyError(kind)
    inside = [has(part, x, line) for part in (links(tree) if kind == "rel" else parts)]
    if kind == "minus":
        return inside[0] and not inside[1]
    # "x < 1, x > 2" says "or", since no x is both.
    if kind == "list" and not any(has(("cap", *parts), y, line) for y in range(line[OO])):
        kind = "or"
    return any(inside) if kind in ("cup", "or") else all(inside)
