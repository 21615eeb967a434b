"""From tokens to a tree: a recursive-descent parser, written by hand.

The rules stand from the weakest binding to the strongest. Text that does not follow them is
Unparsable: nothing is guessed, and nothing is evaluated as code.
"""

import functools

from nanotir.answers.tokens import FUNCTIONS, MONEY, tokenize
from nanotir.answers.trees import fail, joined, num
from nanotir.answers.units import POWERS_OF_TEN, measured

MAX_DEPTH = 40  # brackets within brackets
RELATIONS = ("=", "!=", "<", ">", "<=", ">=", "in")
ENCLOSED = {"|": ("|", "abs"), "lfloor": ("rfloor", "floor"), "lceil": ("rceil", "ceil")}
KINDS = {"-": "neg", "°": "deg", "%": "pct"}  # signs whose nodes are called otherwise
RECIPROCALS = {"sec": "cos", "csc": "sin", "cot": "tan"}
SAME_FUNCTION = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "log": "ln"}


@functools.lru_cache(maxsize=1024)  # a gold answer is read once for all that are compared with it
def parse(text: str) -> tuple:
    """Return the tree of a tidy text, or raise Unparsable."""
    parser = Parser(tokenize(text))
    tree = parser.items()
    parser.need("stop")
    return tree


class Parser:
    """One method for each rule of the grammar.

    items > item > quantity > union > ratio > sum > product > signed > power > postfix > atom
    """

    def __init__(self, tokens: list[tuple]):
        self.tokens = [*tokens, ("stop",)]
        self.at = 0
        self.depth = 0
        self.bars = 0  # bars that are open here: the next one closes |x| and opens nothing

    def see(self, *kinds: str) -> bool:
        return self.tokens[self.at][0] in kinds

    def take(self, *kinds: str):
        """Return the next token if it is of one of these kinds, else None."""
        if self.see(*kinds):
            self.at += 1
            return self.tokens[self.at - 1]

    def need(self, *kinds: str):
        return self.take(*kinds) or fail(f"{self.tokens[self.at][0]} where {kinds} should be")

    def ahead(self, n: int) -> list[str]:
        """Return the kinds of the next n tokens."""
        return [token[0] for token in self.tokens[self.at : self.at + n]]

    def chain(self, rule, *separators: str) -> tuple[list, list]:
        """Return the parts of a + b - c, and the signs between them."""
        parts, signs = [rule()], []
        while token := self.take(*separators):
            signs.append(token[0])
            parts.append(rule())
        return parts, signs

    def nested(self, rule, *arguments) -> tuple:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            fail("too deep")
        tree = rule(*arguments)
        self.depth -= 1
        return tree

    def within(self, rule, *closers: str) -> tuple:
        """Return what a rule finds up to a closing sign, and that sign."""
        # A bar in brackets does not close a bar around them.
        bars, self.bars = self.bars, 0
        tree, close = rule(), self.need(*closers)[0]
        self.bars = bars
        return tree, close

    # Answers and quantities.

    def items(self) -> tuple:
        items = [self.item()]
        while self.take(","):
            # "1, 2, and 3" has a comma and a word for one.
            if self.tokens[self.at] in ((",", "and"), (",", "or")):
                self.at += 1
            items.append(self.item())
        return joined("list", items)

    def item(self) -> tuple:
        sides, signs = self.chain(self.quantity, *RELATIONS)
        return ("rel", tuple(signs), *sides) if signs else sides[0]

    def quantity(self) -> tuple:
        """A value with its unit: $5, 5 cm, 5 miles per hour, 5 square meters, 5 cm^2, 5 million."""
        negative = self.ahead(2) == ["-", "word"] and self.take("-")
        words = []
        if self.see("word") and self.tokens[self.at][1] in MONEY:
            words.append(self.take("word")[1])
        tree = self.union()
        while token := self.take("word", *(("^", "/") if words else ())):
            power = POWERS_OF_TEN.get(token[-1].lower())
            if power:
                tree = ("*", tree, num(10**power))
            else:
                words.append(token[-1])
            if token[0] == "^" and self.see("num"):
                words.append(self.take("num")[-1])
        return measured(("neg", tree) if negative else tree, words)

    def union(self) -> tuple:
        (tree, *parts), signs = self.chain(self.ratio, "cup", "minus")
        for sign, part in zip(signs, parts):
            tree = (sign, tree, part)
        return tree

    def ratio(self) -> tuple:
        return joined("ratio", self.chain(self.sum, ":")[0])

    # Arithmetic.

    def sum(self) -> tuple:
        (first, *terms), signs = self.chain(self.product, "+", "-", "pm", "mp")
        return joined("+", [first, *map(prefixed, signs, terms)])

    def product(self) -> tuple:
        factors = [self.signed()]
        while True:
            if self.take("/"):
                factors = [("/", joined("*", factors), self.signed())]
            elif self.take("*"):
                factors.append(self.signed())
            elif self.starts_factor():
                factors.append(self.power())
            else:
                return joined("*", factors)

    def starts_factor(self) -> bool:
        """Whether a factor follows without a sign, as in 2x."""
        # A number does so only in 3!7!. "3 4" is no product.
        if self.see("num"):
            return self.tokens[self.at - 1] == ("!",)
        if self.see("|"):
            return not self.bars
        return self.see("sym", "const", "fn", "(", "[", "{", "frac", "tex binom", "lfloor", "lceil")

    def signed(self) -> tuple:
        token = self.take("-", "+", "pm", "mp")
        return prefixed(token[0], self.power()) if token else self.power()

    def power(self) -> tuple:
        tree = self.postfix(self.atom())
        while self.take("^"):
            tree = self.postfix(("^", tree, self.nested(self.signed)))
        return tree

    def postfix(self, tree: tuple) -> tuple:
        while token := self.take("!", "°", "%", "_"):
            if token[0] == "!" and self.see("!"):
                fail("a double factorial is another function")
            tree = self.subscript(tree) if token[0] == "_" else prefixed(token[0], tree)
        return tree

    def subscript(self, tree: tuple) -> tuple:
        below = self.nested(self.atom)
        # 101_2 is not the number 5: to convert it may be the question.
        if tree[0] == "num":
            return ("base", tree[1], below)
        if tree[0] == "sym":
            return ("sym", f"{tree[1]}_{below}")
        fail("subscript")

    # Atoms: numbers, names, brackets, functions.

    def atom(self) -> tuple:
        token = self.need("num", "sym", "const", "empty", *self.RULES)
        kind = token[0]
        if kind in self.RULES:
            return self.nested(getattr(self, self.RULES[kind]), token)
        if kind == "sym":
            return self.called(token[1])
        return ("set",) if kind == "empty" else token[:3]

    RULES = {"fn": "function", "{": "group", "\\{": "braces", "begin": "matrix", "accent": "accent"}
    RULES |= {"(": "bracket", "[": "bracket", "<(": "bracket"}
    RULES |= {"frac": "fraction", "tex binom": "fraction"}
    RULES |= {"|": "enclosed", "lfloor": "enclosed", "lceil": "enclosed"}

    def called(self, name: str) -> tuple:
        """A name with what belongs to it: f', f(x), f^{-1}(x), P(2)."""
        function = name in tuple("fghFGH")
        while self.take("'"):
            name += "'"
        if function and self.ahead(6) == ["^", "{", "-", "num", "}", "("]:
            self.at += 5
            name += " inverse"
        # p(x + 1) may be a product, p(2) is a value.
        polynomial = name in tuple("pqrPQS") and self.ahead(3)[2:] == [")"]
        if self.see("(") and (function or polynomial):
            name += f"({self.nested(self.atom)})"
        return ("sym", name)

    def bracket(self, token: tuple) -> tuple:
        """(a), (a, b), [a, b) and the like."""
        if token[0] == "<(":
            tree, _ = self.within(self.items, ")>")
            kind = "()"
        else:
            tree, close = self.within(self.items, ")", "]")
            kind = token[0] + close
        if tree[0] == "list":
            return ("seq", kind, *tree[1:])
        return tree if kind in ("()", "[]") else fail("bracket")

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
        if such_that:
            self.at += 2
        tree, _ = self.within(self.items, "\\}")
        if such_that:
            return tree
        return ("set", *tree[1:]) if tree[0] == "list" else ("set", tree)

    def enclosed(self, token: tuple) -> tuple:
        close, kind = ENCLOSED[token[0]]
        self.bars += 1
        tree = self.sum()
        self.need(close)
        self.bars -= 1
        return applied(kind, tree)

    def accent(self, token: tuple) -> tuple:
        return ("sym", f"{token[1]} {self.argument()}")

    def fraction(self, token: tuple) -> tuple:
        return ("/" if token[0] == "frac" else "binom", self.argument(), self.argument())

    def argument(self) -> tuple:
        """A group, or one sign: in \\frac12 the arguments are 1 and 2."""
        token = self.tokens[self.at]
        if token[0] == "num" and token[3].isdigit() and len(token[3]) > 1:
            first, rest = token[3][0], token[3][1:]
            self.tokens[self.at] = (*num(rest), rest)
            return num(first)
        return self.atom()

    def matrix(self, token: tuple) -> tuple:
        if token[1] not in ("matrix", "pmatrix", "bmatrix", "Bmatrix", "vmatrix", "array"):
            fail(token[1])
        rows = [("seq", "row", *self.chain(self.sum, "&")[0])]
        while self.take("\\\\") and not self.see("end"):
            rows.append(("seq", "row", *self.chain(self.sum, "&")[0]))
        self.need("end")
        return ("det" if token[1] == "vmatrix" else "matrix", *rows)

    def function(self, token: tuple) -> tuple:
        """sin x, sin^2 x, sin^{-1} x, sin(x) y, log_2 8, sqrt[3]{x}, max(1, 2)."""
        name = SAME_FUNCTION.get(token[1], token[1])
        if name == "sqrt" and self.take("["):
            index, _ = self.within(self.sum, "]")
            return ("root", self.argument(), index)
        base = [self.atom()] if self.take("_") else []
        power = None
        if name != "sqrt" and self.take("^"):
            power = self.atom() if self.see("{") else self.signed()
        if power == ("neg", num(1)) and f"arc{name}" in FUNCTIONS:
            name, power = f"arc{name}", None
        tree = applied(name, *self.arguments(name), *base)
        return ("^", tree, power) if power else tree

    def arguments(self, name: str) -> tuple:
        """What follows in brackets, one group, or a product up to the next function or sign."""
        if self.see("("):
            tree = self.atom()
            return tree[2:] if tree[:2] == ("seq", "()") else (tree,)
        if name == "sqrt" or self.see("{"):
            return (self.atom(),)
        factors = [self.signed()]
        while self.starts_factor() and not self.see("fn"):
            factors.append(self.power())
        return (joined("*", factors),)


def prefixed(sign: str, tree: tuple) -> tuple:
    return tree if sign == "+" else (KINDS.get(sign, sign), tree)


def applied(name: str, *arguments: tuple) -> tuple:
    """Return a function of its arguments, by the functions that have values."""
    if name in RECIPROCALS:
        return ("/", num(1), applied(RECIPROCALS[name], *arguments))
    if name == "ceil" and len(arguments) == 1:
        return ("neg", ("floor", ("neg", *arguments)))
    if name in ("sqrt", "cbrt"):
        name, arguments = "root", (*arguments, num(2 if name == "sqrt" else 3))
    if name == "lg":
        name, arguments = "ln", (arguments[0], *(arguments[1:] or [num(10)]))
    if name == "ln" and len(arguments) == 2:
        return ("/", ("ln", arguments[0]), ("ln", arguments[1]))
    if name not in ("max", "min") and len(arguments) != (2 if name in ("root", "binom") else 1):
        fail(name)
    return (name, *arguments)
