"""From tokens to a tree: one recursive-descent parser, whose functions are the grammar. What it does not know is Unparsable."""

from __future__ import annotations

import functools
from fractions import Fraction

from nanotir.answers.tokens import FUNCTIONS, MULTIPLES, UNIT_LETTERS, fail, tokenize, unit_name

MAX_DEPTH = 40  # brackets within brackets
ENCLOSED = {"|": ("|", "abs"), "lfloor": ("rfloor", "floor"), "lceil": ("rceil", "ceil")}
NAMES = {"-": "neg", "°": "deg", "%": "pct"}  # signs whose nodes are called otherwise


def num(value) -> tuple:
    return "num", Fraction(value), 0


class Parser:
    """Recursive descent: items > item > quantity > union > ratio > sum > product > signed > power > postfix > atom."""

    def __init__(self, tokens: list[tuple]):
        self.tokens, self.at, self.depth, self.bars = [*tokens, ("stop",)], 0, 0, 0

    def see(self, *kinds) -> bool:
        return self.tokens[self.at][0] in kinds

    def take(self, *kinds):
        """The next token if it is one of these kinds, else None."""
        if self.see(*kinds):
            self.at += 1
            return self.tokens[self.at - 1]

    def ahead(self, n: int) -> list[str]:
        """The kinds of the next n tokens, or of as many as there are."""
        return [token[0] for token in self.tokens[self.at : self.at + n]]

    def need(self, *kinds):
        return self.take(*kinds) or fail(f"{self.tokens[self.at][0]} where {kinds} should be")

    def answer(self) -> tuple:
        tree = self.items()
        self.need("stop")
        return tree

    def items(self) -> tuple:
        items = [self.item()]
        while self.take(","):
            if self.tokens[self.at] in ((",", "and"), (",", "or")):
                self.at += 1
            items.append(self.item())
        return ("list", *items) if len(items) > 1 else items[0]

    def item(self) -> tuple:
        sides, signs = [self.quantity()], []
        while token := self.take("=", "!=", "<", ">", "<=", ">=", "in"):
            signs.append(token[0])
            sides.append(self.quantity())
        return ("rel", tuple(signs), *sides) if signs else sides[0]

    def quantity(self) -> tuple:
        """A value with its unit: $5, 5 cm, 5 miles per hour, 5 square meters, 5 cm^2, 5 million."""
        negative = self.see("-") and self.ahead(2)[1] == "word" and self.take("-")
        words = (
            [self.take("word")[1]]
            if self.tokens[self.at][1:] in (("dollar",), ("euro",), ("pound",))
            else []
        )
        tree = self.union()
        while token := self.take(
            "word",
            *(("^", "/") if words else ()),
            *(("num",) if words and words[-1] == "^" else ()),
        ):
            power = MULTIPLES.get(token[-1].lower()) if token[0] == "word" else None
            tree, words = (
                (("*", tree, num(10**power)), words) if power else (tree, [*words, token[-1]])
            )
        return with_unit(("neg", tree) if negative else tree, words)

    def union(self) -> tuple:
        tree = self.ratio()
        while token := self.take("cup", "minus"):
            tree = (token[0], tree, self.ratio())
        return tree

    def ratio(self) -> tuple:
        parts = [self.sum()]
        while self.take(":"):
            parts.append(self.sum())
        return ("ratio", *parts) if len(parts) > 1 else parts[0]

    def sum(self) -> tuple:
        terms = [self.product()]
        while token := self.take("+", "-", "pm", "mp"):
            terms.append(prefixed(token, self.product()))
        return ("+", *terms) if len(terms) > 1 else terms[0]

    def product(self) -> tuple:
        tree = [self.signed()]
        while token := self.take("*", "/") or self.starts_factor():
            tree = (
                [("/", times(tree), self.signed())]
                if token == ("/",)
                else [*tree, self.power() if token is True else self.signed()]
            )
        return times(tree)

    def starts_factor(self) -> bool:
        """Whether a factor follows without a sign. A number does so only in 3!7!: "3 4" is no product."""
        if self.see("num"):
            return self.tokens[self.at - 1] == ("!",)
        return (
            self.see("sym", "const", "fn", "(", "[", "{", "frac", "tex binom", "lfloor", "lceil")
            or self.see("|")
            and not self.bars
        )

    def signed(self) -> tuple:
        token = self.take("-", "+", "pm", "mp")
        return prefixed(token, self.power()) if token else self.power()

    def power(self) -> tuple:
        tree = self.postfix(self.atom())
        while self.take("^"):
            tree = self.postfix(("^", tree, self.nested(self.signed)))
        return tree

    def postfix(self, tree: tuple) -> tuple:
        while token := self.take("!", "°", "%", "_"):
            if token == ("!",) and self.see("!"):
                fail("a double factorial is another function")
            tree = self.subscript(tree) if token == ("_",) else prefixed(token, tree)
        return tree

    def subscript(self, tree: tuple) -> tuple:
        """x_1 is a name; 101_2 is digits in a base, which is not the number they mean: to convert it may be the question."""
        below = self.nested(self.atom)
        return (
            ("base", tree[1], below)
            if tree[0] == "num"
            else ("sym", f"{tree[1]}_{below}")
            if tree[0] == "sym"
            else fail("subscript")
        )

    def nested(self, rule, *arguments) -> tuple:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            fail("too deep")
        tree = rule(*arguments)
        self.depth -= 1
        return tree

    def atom(self) -> tuple:
        token = self.need("num", "sym", "const", "empty", *self.RULES)
        if token[0] == "sym":
            return self.called(token[1])
        if token[0] in self.RULES:
            return self.nested(getattr(self, self.RULES[token[0]]), token)
        return {"num": token[:3], "empty": ("set",)}.get(token[0], token)

    def called(self, name: str) -> tuple:
        """A name, with its primes, as an inverse and with an argument if it is a function's: f, f', f(x), f'(x), f^{-1}(x)."""
        function = name in tuple("fghFGH")
        while self.take("'"):
            name += "'"
        if function and self.ahead(6) == ["^", "{", "-", "num", "}", "("]:
            self.at, name = self.at + 5, f"{name} inverse"
        if self.see("(") and (function or name in tuple("pqrPQS") and self.ahead(3)[2:] == [")"]):
            name += f"({self.nested(self.atom)})"
        return ("sym", name)

    RULES = {
        "fn": "function",
        "(": "bracket",
        "[": "bracket",
        "{": "group",
        "\\{": "braces",
        "<(": "bracket",
        "frac": "fraction",
        "tex binom": "fraction",
        "|": "enclosed",
        "lfloor": "enclosed",
        "lceil": "enclosed",
        "begin": "matrix",
        "accent": "accent",
    }

    def within(self, rule, *closers) -> tuple:
        """What a rule finds up to a closing sign, and that sign. Bars inside are its own."""
        bars, self.bars = self.bars, 0
        tree, close = rule(), self.need(*closers)[0]
        self.bars = bars
        return tree, close

    def bracket(self, token) -> tuple:
        """(a), (a, b), [a, b) and the like."""
        tree, close = (
            self.within(self.items, ")", "]") if token[0] != "<(" else self.within(self.items, ")>")
        )
        kind = "()" if close == ")>" else token[0] + close
        return (
            ("seq", kind, *tree[1:])
            if tree[0] == "list"
            else tree
            if kind in ("()", "[]")
            else fail("bracket")
        )

    def group(self, _) -> tuple:
        """{...} of LaTeX, {a \\over b}, {n \\choose k}, or a set written with plain braces."""
        if self.take("}"):
            return ("set",)
        tree, close = self.within(self.items, "}", "over", "choose")
        if close != "}":
            tree = ("/" if close == "over" else "binom", tree, self.within(self.items, "}")[0])
        return ("set", *tree[1:]) if tree[0] == "list" else tree

    def braces(self, _) -> tuple:
        """A set of things, or of the x that satisfy something: \\{x : x > 3\\}."""
        if self.take("\\}"):
            return ("set",)
        such_that = self.ahead(2) in (["sym", "|"], ["sym", ":"])
        self.at += 2 * such_that
        tree = self.within(self.items, "\\}")[0]
        return tree if such_that else ("set", *tree[1:]) if tree[0] == "list" else ("set", tree)

    def enclosed(self, token) -> tuple:
        close, name = ENCLOSED[token[0]]
        self.bars += 1
        tree = self.sum()
        self.need(close)
        self.bars -= 1
        return (name, tree)

    def accent(self, token) -> tuple:
        return ("sym", f"{token[1]} {self.argument()}")

    def fraction(self, token) -> tuple:
        return ("/" if token[0] == "frac" else "binom", self.argument(), self.argument())

    def argument(self) -> tuple:
        """A group, or one sign: in \\frac12 the arguments are 1 and 2."""
        token = self.tokens[self.at]
        if token[0] == "num" and token[3].isdigit() and len(token[3]) > 1:
            self.tokens[self.at] = (*num(token[3][1:]), token[3][1:])
            return num(token[3][0])
        return self.atom()

    def matrix(self, token) -> tuple:
        if token[1] not in ("matrix", "pmatrix", "bmatrix", "Bmatrix", "vmatrix", "array"):
            fail(token[1])
        rows = [[self.sum()]]
        while mark := self.take("&", "\\\\"):
            if mark[0] == "\\\\" and self.see("end"):
                break
            rows = (
                [*rows[:-1], [*rows[-1], self.sum()]] if mark[0] == "&" else [*rows, [self.sum()]]
            )
        self.need("end")
        return ("det" if token[1] == "vmatrix" else "matrix", *map(tuple, rows))

    def function(self, token) -> tuple:
        """sin x, sin^2 x, sin^{-1} x, sin(x) y, log_2 8, sqrt[3]{x}, max(1, 2)."""
        name = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "log": "ln"}.get(
            token[1], token[1]
        )
        if name == "sqrt" and self.take("["):
            index = self.within(self.sum, "]")[0]
            return ("root", self.argument(), index)
        base = (self.atom(),) if self.take("_") else ()
        power = (
            (self.atom() if self.see("{") else self.signed())
            if name != "sqrt" and self.take("^")
            else None
        )
        if power == ("neg", num(1)) and f"arc{name}" in FUNCTIONS:
            name, power = f"arc{name}", None
        tree = applied(name, (*self.arguments(name), *base))
        return ("^", tree, power) if power else tree

    def arguments(self, name) -> tuple:
        """What follows in brackets, one group, or a product up to the next function or sign."""
        if self.see("("):
            tree = self.atom()
            return tree[2:] if tree[:2] == ("seq", "()") else (tree,)
        if name == "sqrt" or self.see("{"):
            return (self.atom(),)
        factors = [self.signed()]
        while self.starts_factor() and not self.see("fn"):
            factors.append(self.power())
        return (times(factors),)


def times(factors: list) -> tuple:
    return ("*", *factors) if len(factors) > 1 else factors[0]


def prefixed(token: tuple, tree: tuple) -> tuple:
    return tree if token[0] == "+" else (NAMES.get(token[0], token[0]), tree)


def applied(name: str, arguments: tuple) -> tuple:
    """A function of its arguments, with roots and logarithms of a base spelled out."""
    if name in ("sqrt", "cbrt"):
        return applied("root", (*arguments, num(2 if name == "sqrt" else 3)))
    if name == "lg" or name == "ln" and len(arguments) == 2:
        return ("/", ("ln", arguments[0]), ("ln", *(arguments[1:] or [num(10)])))
    if name not in ("max", "min") and len(arguments) != (2 if name in ("root", "binom") else 1):
        fail(name)
    return (name, *arguments)


def with_unit(tree: tuple, words: list) -> tuple:
    """The value with its unit's name: square cm is cm^2. Degrees and percent have nodes of their own."""
    names = [UNIT_LETTERS.get(word, word) if len(word) == 1 else unit_name(word) for word in words]
    if not names or names == ["unit"]:
        return tree
    if len(names) > 7 or "not" in names:
        fail("no unit")
    if names[0] in ("square", "cubic"):
        names = [*names[1:], "^", "2" if names[0] == "square" else "3"]
    if names in (["degree"], ["percent"]):
        return ("deg" if names == ["degree"] else "pct", tree)
    return ("unit", tree, " ".join("/" if name == "per" else name for name in names))


@functools.lru_cache(maxsize=1024)  # a gold answer is read once for all that are compared with it
def parse(text: str) -> tuple:
    return Parser(tokenize(text)).answer()
