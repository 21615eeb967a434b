"""From tokens to a tree: an operator-precedence (Pratt) parser, written by hand.

Text that does not follow the grammar is Unreadable: nothing is guessed or evaluated as code.
"""

import functools

from nanotir.answers.text import WORDS, tokenise
from nanotir.answers.trees import fail, negative, num, quotient
from nanotir.answers.values import exact, size

MAX_EXPONENT = 1000  # bits of an exponent that is computed at once
MAX_DEPTH = 60  # expressions within expressions
RELATIONS = ("=", "!=", "<", ">", "<=", ">=", "in")
SIGNS, POSTFIX = ("-", "+", "pm", "mp"), ("!", "%", "°", "_")
# How tightly each sign binds, and how tightly what stands on its right, where this differs.
LEVELS = {"\\\\": 1, "&": 2, ",": 3, "cup": 5, "cap": 5, "minus": 5, ":": 6, "*": 8, "/": 8}
LEVELS |= {"^": 11, **dict.fromkeys(RELATIONS, 4), **dict.fromkeys(SIGNS, 7)}
LEVELS |= dict.fromkeys(POSTFIX, 12)
RIGHT = {"*": 9, "/": 9, "^": 10}
OUTSIDE = 2  # outside of a matrix there are no rows and cells
FLAT = ("+", "*", "list", "or", "&", "\\\\")  # trees that may have more than two parts
CLOSERS = {"(": (")", "]"), "[": (")", "]"), "<(": (")>",), "\\{": ("\\}",), "|": ("|",)}
CLOSERS |= {"{": ("}",), "lfloor": ("rfloor",), "lceil": ("rceil",)}
ENCLOSED = {"|": "abs", "lfloor": "floor", "lceil": "ceil"}
FACTORS = ("sym", "const", "unit", "fn", "root", "{", "frac", "binom", "(", "[", "lfloor", "lceil")
OPERANDS = ("num", "text", "set", "begin", *FACTORS, *CLOSERS, *SIGNS)
# After these a number is a factor: 2^3 3^2, i4, $5. But "3 4" is no product.
BEFORE_NUMBER = ("!", "}", ")", "i", "pi", "dollar", "euro", "pound")


@functools.lru_cache(maxsize=1024)  # a gold answer is read once for all that are compared with it
def parse(text: str) -> tuple:
    """Return the tree of a normal text, or raise Unreadable."""
    parser = Parser([*tokenise(text), ("stop",)])
    tree = parser.expression()
    parser.need("stop")
    return tree


class Parser:
    def __init__(self, tokens: list[tuple]):
        self.tokens, self.at, self.depth = tokens, 0, 0
        self.in_bars = False  # the next bar closes |x|, and opens nothing

    def see(self, *kinds: str) -> bool:
        return self.tokens[self.at][0] in kinds

    def take(self, *kinds: str):
        """Return the next token if it is of one of these kinds, else None."""
        if self.see(*kinds):
            self.at += 1
            return self.tokens[self.at - 1]

    def need(self, *kinds: str):
        return self.take(*kinds) or fail(f"{self.tokens[self.at][0]} where {kinds} should be")

    def expression(self, level: int = OUTSIDE) -> tuple:
        """Read an operand, and the signs after it that bind more tightly than this level."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            fail("too deep")
        tree = self.operand()
        while LEVELS.get(self.tokens[self.at][0], LEVELS["*"] * self.starts_factor()) > level:
            tree = self.continued(tree)
        self.depth -= 1
        return tree

    def starts_factor(self) -> bool:
        """Whether a factor follows without a sign, as in 2x."""
        if not self.see("num"):
            return self.see(*FACTORS) or self.see("|") and not self.in_bars
        is_power = self.tokens[max(self.at - 2, 0)] == ("^",)
        return is_power or self.tokens[self.at - 1][-1] in BEFORE_NUMBER

    def continued(self, left: tuple) -> tuple:
        """Return the tree of what was read and the next sign with its right side."""
        token = self.take(*LEVELS) or ("*",)
        kind = token[0]
        if kind in POSTFIX:
            return self.postfix(kind, left)
        if kind == ",":
            token = self.take(",") or token  # "1, 2, and 3" has a comma and a word for one
            kind = "or" if left[0] == "or" or token == (",", "or") else "list"
            left = (kind, *left[1:]) if left[0] == "list" else left
        right = self.expression(RIGHT.get(kind, LEVELS[token[0]]))
        if kind in RELATIONS:
            signs, sides = (left[1], left[2:]) if left[0] == "rel" else ((), (left,))
            return ("rel", (*signs, kind), *sides, right)
        if kind == ":":
            return ("seq", ":", *(left[2:] if left[:2] == ("seq", ":") else (left,)), right)
        if kind == right[0] == "^" and size(right, {}) < MAX_EXPONENT and exact(right):
            right = num(exact(right))  # 9^{9^9} is 9^387420489
        if kind == "/" or kind in SIGNS:
            right = ("^", right, num(-1)) if kind == "/" else signed(kind, right)
            kind = "*" if kind == "/" else "+"
        return (*left, right) if left[0] == kind in FLAT else (kind, left, right)

    def postfix(self, kind: str, tree: tuple) -> tuple:
        if kind == "!":
            return fail("a double factorial is another function") if self.see("!") else ("!", tree)
        if kind != "_":
            return ("*", tree, ("unit", kind))
        below = self.operand()
        if tree[0] == "num":  # 101_2 is not the number 5: to convert it may be the question
            return ("seq", "base", tree, below)
        return self.called(f"{tree[1]}_{below}") if tree[0] == "sym" else fail("subscript")

    def operand(self) -> tuple:
        """Read a number, a name, brackets or a function."""
        token = self.need(*OPERANDS)
        kind, value = token[0], token[-1]
        if kind in SIGNS:
            return signed(kind, self.expression(RIGHT["*"]))
        if kind in CLOSERS:
            return self.bracket(kind)
        if kind in ("frac", "binom"):
            a, b = self.operand(), self.operand()
            return quotient(a, b) if kind == "frac" else ("binom", a, b)
        if kind == "text":
            # Words are an answer of their own, with the numbers and names among them.
            while word := self.take("text", "num", "sym", "const", "unit", "fn", "root", "-"):
                value += f" {str(word[-1]).lower()}"
            return ("text", value)
        rules = {"begin": self.matrix, "fn": self.function, "root": self.root, "sym": self.called}
        return rules[kind](value) if kind in rules else token[:3]

    def called(self, name: str) -> tuple:
        """A name with what belongs to it: f', f(x), P(X = 6)."""
        while self.take("'"):
            name += "'"
        short = self.tokens[self.at + 2 : self.at + 3] == [(")",)]  # p(2), no product
        is_function = name[0] in "fghFGHP" or name in tuple("pqrQS") and short
        return ("sym", f"{name}({self.operand()})" if is_function and self.see("(") else name)

    def bracket(self, kind: str) -> tuple:
        """(a), (a, b], |a|, {a} and {a \\over b} of LaTeX, sets, also {x : x > 3}."""
        is_set = kind == "\\{"
        if is_set and self.take("\\}"):
            return ("set",)
        ahead = [token[0] for token in self.tokens[self.at : self.at + 2]]
        such_that = is_set and ahead in (["sym", ":"], ["sym", "|"])
        self.at += 2 * such_that
        outside, self.in_bars = self.in_bars, kind == "|"
        tree, close = self.expression(), self.need(*CLOSERS[kind])[0]
        self.in_bars = outside
        brackets = kind + close
        if kind in ENCLOSED:
            return (ENCLOSED[kind], tree)
        if such_that or tree[0] != "list" and brackets in ("()", "[]", "{}"):
            return tree
        parts = tree[1:] if tree[0] == "list" else (tree,)
        if kind in ("{", "\\{"):
            return ("set", *parts)
        if tree[0] != "list":
            fail("bracket")
        return ("seq", "()" if kind == "<(" else brackets, *parts)

    def matrix(self, name: str) -> tuple:
        """A matrix as rows. A column is a tuple."""
        if name not in ("matrix", "pmatrix", "bmatrix", "Bmatrix", "array"):
            fail(name)
        tree, _ = self.expression(0), self.need("end")
        rows = tree[1:] if tree[0] == "\\\\" else (tree,)
        cells = [row[1:] if row[0] == "&" else (row,) for row in rows]
        if all(len(row) == 1 for row in cells):
            return ("seq", "()", *rows)
        return ("seq", "matrix", *(("seq", "row", *row) for row in cells))

    def root(self, name: str) -> tuple:
        """sqrt x, sqrt[3]{x}."""
        n = num(2 if name == "sqrt" else 3)
        if self.take("["):
            n, _ = self.expression(), self.need("]")
        return ("^", self.operand(), ("^", n, num(-1)))

    def function(self, name: str) -> tuple:
        """sin x, sin^2 x, sin^{-1} x, sin(x) y, log_2 8, max(1, 2)."""
        base = self.operand() if self.take("_") else num(10) if name == "lg" else None
        power = self.expression(LEVELS["^"]) if self.take("^") else None
        if power == negative(num(1)) and f"a{name}" in WORDS["fn"]:
            name, power = f"a{name}", None
        # The argument stands in brackets, or goes up to the next function or sign.
        is_long = not self.see("(", "{")
        tree = self.expression(RIGHT["*"]) if is_long else self.operand()
        while is_long and self.starts_factor() and not self.see("fn", "root"):
            tree = ("*", tree, self.expression(RIGHT["*"]))
        arguments = tree[2:] if tree[:2] == ("seq", "()") else (tree,)
        several = len(arguments) > 1 and name not in ("max", "min", "gcd", "lcm")
        if several or base and name not in ("log", "lg"):
            fail(name)
        tree = quotient(("log", *arguments), ("log", base)) if base else (name, *arguments)
        tree = ("^", ("const", "e"), *arguments) if name == "exp" else tree
        return ("^", tree, power) if power else tree


def signed(sign: str, tree: tuple) -> tuple:
    if sign in ("pm", "mp"):
        return (sign, tree)
    return negative(tree) if sign == "-" else tree
