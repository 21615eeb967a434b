"""From tokens to a tree: an operator-precedence (Pratt) parser. Nothing is evaluated as code."""

import functools

from nanotir.answers.text import WORDS, tokenise
from nanotir.answers.trees import fail, negative, num, quotient
from nanotir.answers.values import exact

MAX_DEPTH = 60  # expressions within expressions
LEVELS = {sign: int(level) for sign, level in WORDS["level"].items()}
SIGNS = ("+", "-", "pm", "mp")
OUTSIDE = LEVELS["&"]  # outside of a matrix there are no rows and cells
CLOSERS = {"(": (")", "]"), "[": (")", "]"), "{": ("}",), "\\{": ("\\}",), "|": ("|",)}
CLOSERS |= {"lfloor": ("rfloor",), "lceil": ("rceil",)}
ENCLOSED = {"|": "fabs", "lfloor": "floor", "lceil": "ceil"}
FACTORS = tuple("power sym const unit fn root { frac binomial ( [ lfloor lceil".split())
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
        # 2x is 2 * x, and a - b is a + (-b): there the sign is left to what follows.
        kind = self.tokens[self.at][0]
        kind = "+" if kind in SIGNS else (self.take(*LEVELS) or ("*",))[0]
        level = LEVELS[kind]
        if kind == "!":
            return ("factorial", left)
        if kind == "_":
            below = self.operand()
            if left[0] == "num":  # 101_2 is not the number 5: to convert it may be the question
                return ("seq", "base", left, below)
            return self.called(f"{left[1]}_{below}") if left[0] == "sym" else fail("subscript")
        if level == LEVELS[","]:
            # "1, 2, and 3" has a comma and a word for one.
            signs = (left[0], kind, *(self.take("or", "and", ",") or ()))
            kind = "or" if "or" in signs else "list"
            left = (kind, *left[1:]) if left[0] == "list" else left
        right = self.expression(level - (kind == "^"))  # 2^3^2 is 2^9
        if level == LEVELS["="]:
            signs, sides = (left[1], left[2:]) if left[0] == "rel" else ((), (left,))
            return ("rel", (*signs, kind), *sides, right)
        if kind in (":", "&", "\\\\"):
            return ("seq", kind, *(left[2:] if left[:2] == ("seq", kind) else (left,)), right)
        if kind == right[0] == "^" and exact(right):
            right = num(exact(right))  # 9^{9^9} is 9^387420489
        if kind == "/":
            return quotient(left, right)
        is_flat = left[0] == kind in ("+", "*", "list", "or")
        return (*left, right) if is_flat else (kind, left, right)

    def operand(self) -> tuple:
        """Read a number, a name, brackets or a function."""
        token = self.tokens[self.at]
        self.at += 1
        kind, value = token[0], token[-1]
        if kind in SIGNS:
            tree = self.expression(LEVELS["*"])
            return {"+": tree, "-": negative(tree)}.get(kind, (kind, tree))
        if kind in CLOSERS:
            return self.bracket(kind)
        if kind in ("frac", "binomial"):
            a, b = self.operand(), self.operand()
            return quotient(a, b) if kind == "frac" else (kind, a, b)
        if kind == "text":
            # Words are an answer of their own, with the numbers and names among them.
            while word := self.take("text", "num", "sym", "const", "unit", "fn", "root", "-"):
                value += f" {str(word[-1]).lower()}"
            return ("text", value)
        if kind == "power":  # square cm
            return ("^", self.operand(), num(value))
        rules = {"fn": self.function, "root": self.root, "sym": self.called}
        if kind in rules:
            return rules[kind](value)
        return token[:3] if kind in ("num", "const", "unit", "set") else fail(f"{kind} as operand")

    def called(self, name: str) -> tuple:
        """A name with what belongs to it: f', f(x), P(X = 6)."""
        while self.take("'"):
            name += "'"
        short = self.tokens[self.at + 2 : self.at + 3] == [(")",)]  # p(2), no product
        is_function = name[0] in "fghFGHP" or name in tuple("pqrQS") and short
        return ("sym", f"{name}({self.operand()})" if is_function and self.see("(") else name)

    def bracket(self, kind: str) -> tuple:
        """(a), (a, b], |a|, {a} of LaTeX, columns, sets, also {x : x > 3}."""
        such_that = kind == "\\{" and self.take(":")
        outside, self.in_bars = self.in_bars, kind == "|"
        tree = self.expression(0 if kind == "{" else OUTSIDE)
        close = self.need(*CLOSERS[kind])[0]
        self.in_bars, is_list = outside, tree[0] == "list"
        if tree[:2] == ("seq", "\\\\") and ("seq", "&") not in [row[:2] for row in tree]:
            return ("seq", "()", *tree[2:])
        if kind in ENCLOSED:
            return (ENCLOSED[kind], tree)
        if such_that or not is_list and kind + close in ("()", "[]", "{}"):
            return tree
        if kind in ("{", "\\{"):
            return ("set", *(tree[1:] if is_list else (tree,)))
        return ("seq", kind + close, *tree[1:]) if is_list else fail("bracket")

    def root(self, name: str) -> tuple:
        """sqrt x, sqrt[3]{x}."""
        n = num(2 if name == "sqrt" else 3)
        if self.take("["):
            n, _ = self.expression(), self.need("]")
        return ("^", self.operand(), ("^", n, num(-1)))

    def function(self, name: str) -> tuple:
        """sin x, sin^2 x, sin^{-1} x, sin(x) y, log_2 8, max(1, 2)."""
        base = self.operand() if self.take("_") else None
        power = self.expression(LEVELS["^"]) if self.take("^") else None
        if power == negative(num(1)) and f"a{name}" in WORDS["fn"]:
            name, power = f"a{name}", None
        # The argument stands in brackets, or goes up to the next function or sign.
        is_long = not self.see("(", "{")
        tree = self.expression(LEVELS["*"]) if is_long else self.operand()
        while is_long and self.starts_factor() and not self.see("fn", "root"):
            tree = ("*", tree, self.expression(LEVELS["*"]))
        tree = (name, *(tree[2:] if tree[:2] == ("seq", "()") else (tree,)))
        if base:
            tree = quotient(tree, ("log", base)) if name == "log" else fail(name)
        return ("^", tree, power) if power else tree
