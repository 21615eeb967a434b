"""Find the final answer in what a model wrote, and decide whether two answers are equal.

Text is read by one tokenizer and one recursive-descent parser into trees of nested tuples, ("+", a, b) or ("sym", "x"); nothing is ever
evaluated as code. Trees are compared from cheap to dear: equal text, equal trees, exact rationals, then 50-digit values at a few random
points. A pair that might take long goes to a worker process, which is killed at the deadline.

In this order: extract_answer; tidy, tokenize and Parser (text to tree); same and its rules by_... (trees); by_value and value (numbers);
equivalent and the Worker.

What counts as equal: tuples are ordered, lists and sets are not; \\pm a is two answers; an integer or a decimal is exact, anything else may
be given by at least six correct digits; a unit may be missing on one side, but two units must agree; x = 3 is 3 and 50% is 0.5 or 50;
a number written in base 8 is not that number, since to convert it may be the question.
"""
from __future__ import annotations

import atexit
import functools
import itertools
import json
import math
import os
import random
import re
import select
import subprocess
import sys
import threading
import time
import unicodedata
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

MAX_CHARS = 2000  # longer answers are compared as text only
MAX_DEPTH = 40  # brackets within brackets
PRECISION = 170  # bits, about 50 digits
SLOW_BITS, SLOW_NODES = 50_000, 150  # from here on a pair is the worker's


class Unparsable(ValueError):
    """The text is not an answer this grammar knows."""


def fail(why: str):
    raise Unparsable(why)


FENCE = re.compile(r"```(\w*).*?(?:```|\Z)", re.S)
TOOL = re.compile(r"<(python|output|code|result|tool_call|tool_response)>.*?(?:</\1>|\Z)", re.S)
BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:(?P<open>\{)|(?P<bare>-?[\w.]*\w))|(?P<escape>\\[{}])|(?P<brace>[{}])")
PHRASE = re.compile(r"(?:final answer(?: is)?|answer is|answer:|<answer>|####)[ \t]*:?[ \t]*\n?([^\n]+)", re.I)
SPAN = re.compile(r"\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]")


def extract_answer(text: str) -> str | None:
    """The last box that is closed, else what the last "the answer is" or "####" names, else None. Code and what it printed do not count."""
    text = FENCE.sub(lambda block: block[0] if block[1] in ("latex", "tex", "math") else " ", TOOL.sub(" ", text))
    box = last_box(text)
    if box is not None:
        return box
    phrases = PHRASE.findall(text)
    return named_answer(phrases[-1]) if phrases else None


def last_box(text: str) -> str | None:
    """The box that opens last of those that close, found in one pass over the braces."""
    open_braces, best = [], (-1, None)  # where each open brace's content starts, and whether it is a box
    for match in BOX.finditer(text):
        if match["bare"]:
            best = max(best, (match.start(), match["bare"]))
        elif match["open"] or match["brace"] == "{":
            open_braces.append((match.end(), bool(match["open"])))
        elif match["brace"] and open_braces:
            start, is_box = open_braces.pop()
            if is_box and start > best[0]:
                best = start, text[start : match.start()]
    return best[1]


def named_answer(line: str) -> str:
    """The answer in the rest of a line: its last formula, else what follows the last "is", up to the end of the sentence."""
    line = re.split(r"\.(?:\s|$)|</answer>", line[:MAX_CHARS].replace("**", ""))[0].strip()
    spans = list(SPAN.finditer(line))
    rest = re.split(r"\bis\b", line)[-1].strip()
    if spans and not (rest != line and re.fullmatch(r"-?[\d.,/]+", rest)):
        rest = next(group for group in spans[-1].groups() if group)
    left, equals, right = rest.rpartition("=")
    return right.strip() if equals and not re.search("[a-zA-Z]", left) else rest.rstrip(".").strip()  # "16 + 1 = 17" names 17


GREEK = ("alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon phi varphi chi psi omega "
         "Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell").split()  # fmt: skip
UNICODE = {
    "−": "-", "–": "-", "—": "-", "×": "*", "·": "*", "⋅": "*", "∙": "*", "÷": "/", "∕": "/", "⁄": "/", "π": "\\pi ", "∞": "\\infty ", "√": "\\sqrt ",
    "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "±": "\\pm ", "∓": "\\mp ", "∪": "\\cup ", "∈": "\\in ", "∅": "\\emptyset ", "ℝ": "\\mathbb{R}",
    "ℤ": "\\mathbb{Z}", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "（": "(", "）": ")", "，": ",", "…": "...", "≈": "\\approx ", "€": "\\euro ",
    "£": "\\pound ",
    **{digit: f"^{{{i}}}" for i, digit in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}, **{digit: f"_{{{i}}}" for i, digit in enumerate("₀₁₂₃₄₅₆₇₈₉")},
    **{char: "\\frac{%s}{%s} " % tuple(unicodedata.normalize("NFKC", char).split("⁄")) for char in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"},
    **{unicodedata.lookup(f"GREEK SMALL LETTER {name.replace('lambda', 'lamda')}"): f"\\{name} " for name in GREEK if name.islower() and name[:3] not in ("var", "ell")},
}  # fmt: skip
UNICODE = str.maketrans(UNICODE)
DROP = re.compile(r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|angle|triangle|nolimits)(?![a-zA-Z])|\\!")
SPACE = re.compile(r"(?<!\\)\\[,;: ]|~|\\q?quad(?![a-zA-Z])|\s+")
DEGREE = re.compile(r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree|\\circ(?![a-zA-Z])|º")


@functools.lru_cache(maxsize=1024)
def tidy(text: str) -> str:
    """The answer without math delimiters, spacing, final dots and the like; Unicode signs as LaTeX."""
    text = re.sub(r"\\\$", r"\\dollar ", text.translate(UNICODE))
    exact_value, _, about = text.partition("\\approx")
    text = exact_value if about and re.search(r"\d", exact_value) else text
    text = re.sub(r"\* ?I\b", "*i", re.sub(r"([\d}] ?)([kc]?m) ?/ ?(s|h|hr|sec)\b", r"\1\\text{\2/\3}", text))
    if text.count("$") == 1 and re.match(r"\s*-?\$\s*[\d.]", text):
        text = text.replace("$", "\\dollar ")
    text = SPACE.sub(" ", DROP.sub("", re.sub(r"\$|\\[()\[\]]", " ", text)))
    text = re.sub(r"\b([ap])\. ?m\b\.?", r"\1m", re.sub(r"\{ ?, ?\}", ",", DEGREE.sub("°", text), flags=re.I), flags=re.I)
    return re.sub(r"(\\\\|(?<!\.)\.|[,;]|\*\*| )+$", "", text).removeprefix("**").strip()


UNIT_NAMES = {  # how a unit is written -> its name; other words of four letters and more are units of their own
    name: names.split()[0] for names in (
        "cm centimeter centimetre", "mm millimeter millimetre", "km kilometer kilometre", "meter metre", "kg kilogram kilo", "gram",
        "mg milligram", "inch inche in",
        "foot feet ft", "yard yd", "mile mi", "lb pound lbs", "ounce oz", "second sec", "minute min", "hour hr", "day", "week", "month",
        "year yr", "ml milliliter",
        "liter litre", "dollar usd buck", "cent", "euro", "degree deg", "mph", "kph kmh", "unit", "square sq", "cubic", "am", "pm", "percent",
        "rad radian", "way", "men", "per")
    for name in names.split()}  # fmt: skip
UNITS = frozenset(UNIT_NAMES.values())
UNIT_LETTERS = {"m": "meter", "s": "second", "g": "gram", "h": "hour", "l": "liter", "L": "liter"}
MULTIPLES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}  # powers of ten
FUNCTIONS = "sin cos tan cot sec csc arcsin arccos arctan asin acos atan sinh cosh tanh ln log lg exp sqrt cbrt abs floor ceil binom max min".split()
CONSTANTS = {"pi": "pi", "e": "e", "i": "i", "infty": "oo", "oo": "oo", "inf": "oo", "infinity": "oo"}
COMMANDS = {  # LaTeX command -> its token
    **{command: ("sym", command) for command in GREEK}, **{command: ("fn", command) for command in FUNCTIONS},
    **{command: ("const", name) for command, name in CONSTANTS.items()}, "emptyset": ("empty",), "varnothing": ("empty",),
    **{command: ("accent", command) for command in ("overline", "bar", "vec", "overrightarrow", "hat", "tilde")},
    **{command: ("word", command) for command in ("dollar", "euro", "pound")},
    **{command: (kind,) for kind, commands in {
        "*": "cdot times ast", "/": "div", "<=": "le leq leqslant", ">=": "ge geq geqslant", "!=": "ne neq", "<": "lt", ">": "gt", "in": "in",
        "pm": "pm", "mp": "mp",
        "cup": "cup", "minus": "setminus backslash", ":": "colon", "|": "lvert rvert vert mid", "over": "over", "choose": "choose",
        "\\{": "lbrace", "\\}": "rbrace",
        "<(": "langle", ")>": "rangle", "lfloor": "lfloor", "rfloor": "rfloor", "lceil": "lceil", "rceil": "rceil", "frac": "frac dfrac tfrac cfrac",
        "tex binom": "binom dbinom tbinom", ",": "lor land"}.items() for command in commands.split()},
}  # fmt: skip
OTHER_SIGNS = {"**": "^", "\\%": "%", "\\|": "|", ";": ","}
FRACTION = r"\\[cdt]?frac ?(?:\{ ?(?P<n1>\d+) ?\}|(?P<n2>\d)) ?(?:\{ ?(?P<d1>\d+) ?\}|(?P<d2>\d))"
MIXED = re.compile(rf"(?P<whole>\d+) ?(?:{FRACTION}|(?<= )(?P<n3>\d+) ?/ ?(?P<d3>\d+)(?!\d))")
REPEATING = re.compile(r"(?P<whole>\d*)\.(?P<fixed>\d*)(?:\\(?:overline|bar|dot) ?\{(?P<over>\d+)\}|\((?P<round>\d+)\)|(?<=\d\d\d)(?P<dots>\.\.\.|\\l?dots))")
GROUPED = re.compile(r"\d{1,3}(?:(?:,\d{3})+(?!\d|,\d)|(?: \d{3})+(?! ?\d))(?:\.\d+)?")
PLAIN = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,9}(?![\d.]))?")
WRAPPED = re.compile(r"\\(text(?:bf|it|rm|sf|tt|normal)?|mbox|math(?:rm|bf|it|sf)|operatorname\*?|textnormal) ?\{([^{}]*)\}")
RUN = re.compile("[A-Za-z]+| +")
OTHER = re.compile(r"\\mathbb ?\{? ?([A-Z]) ?\}?|\\(begin|end) ?\{(\w+)\}(?:\{[lcr| ]*\})?|\\([a-zA-Z]+)|\\\\|\\[{}%|]|\*\*|<=|>=|!=|[-+*/^_=<>(){}\[\]|!:,;&%°']")


def tokenize(text: str, words: bool = False, depth: int = 0, tokens: tuple = ()) -> list[tuple]:
    """[(kind, value), ...] after those there are. With `words` every run of letters is a word, as in \\text{}. Within brackets a comma never
    belongs to a number."""
    tokens, at = list(tokens), 0
    while at < len(text):
        end, number = number_at(text, at, tokens, depth) if text[at] in "0123456789." else (0, None)
        wrapped = WRAPPED.match(text, at) if text[at] == "\\" else None
        found = wrapped or RUN.match(text, at) or OTHER.match(text, at)
        if number:
            tokens.append(number)
        elif wrapped:
            inner = wrapped[2].strip()
            tokens = tokenize(inner, not wrapped[1].startswith(("math", "oper")) or len(inner) > 1 and inner not in FUNCTIONS, depth, tokens)
        elif not found:
            fail(text[at])
        elif found.re is RUN:
            unit = found[0] in ("min", "sec") and not text.startswith(("(", " ("), found.end())
            tokens += letters(found[0].strip(), words or unit, tokens)
        else:
            tokens.append(sign(found))
            depth += {"(": 1, "[": 1, "\\{": 1, ")": -1, "]": -1, "\\}": -1}.get(tokens[-1][0], 0)
        at = end or found.end()
    return tokens


def number_at(text: str, at: int, tokens: list, depth: int):
    """(end, ("num", value, significant digits of a decimal, text)) of the number that starts here; (0, None) without one."""
    bound = tokens and tokens[-1][0] in ("^", "_", "frac", "tex binom")
    if match := None if bound else MIXED.match(text, at):
        n, d = (Fraction(next(filter(None, (match[f"{part}{i}"] for i in "123")))) for part in "nd")
        if n < d:
            return match.end(), ("num", int(match["whole"]) + n / d, 0, "mixed")
    match = REPEATING.match(text, at)
    if match and (not match["dots"] or len(set(match["fixed"][-3:])) == 1):
        period = match["over"] or match["round"] or match["fixed"][-1]
        value = Fraction((match["whole"] or "0") + "." + (match["fixed"] or "0"))
        return match.end(), ("num", value + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(match["fixed"])), 0, "repeating")
    match = (None if bound or depth else GROUPED.match(text, at)) or PLAIN.match(text, at)
    if match is None:
        return 0, None
    mantissa, _, exponent = re.sub("[, ]", "", match[0]).lower().partition("e")
    digits = len(mantissa.replace(".", "").lstrip("0")) if "." in mantissa else 0
    if exponent and abs(int(exponent)) > 1000:
        fail("exponent")
    return match.end(), ("num", Fraction(mantissa) * (Fraction(10) ** int(exponent) if exponent else 1), digits, match[0])


def letters(run: str, words: bool, before: list) -> list[tuple]:
    """The tokens of a run of letters: a connective, a function, a constant, a unit or a word, a name like AB, or a product of single letters."""
    lower = run.lower()
    if lower in ("", "or", "and"):
        return [(",", lower)] if lower else []
    if run in FUNCTIONS and not words or run in ("arcsin", "arccos", "arctan"):
        return [("fn", run)]
    if run in CONSTANTS and (len(run) > 1 or not words):
        return [("const", CONSTANTS[run])]
    if run in GREEK and not words:
        return [("sym", run)]
    after_number = bool(before) and before[-1][0] in ("num", ")", "}", "/", "word")
    if unit_name(lower) in UNITS and (len(run) > 2 or after_number) or len(run) > 3 or words and (len(run) > 1 and not run.isupper() or after_number):
        return [("word", run)]
    if len(run) > 1 and run.isupper():
        return [("sym", run)]
    return [("const", letter) if letter in "ei" else ("sym", letter) for letter in run]


def sign(match: re.Match) -> tuple:
    """The token of a command or a sign."""
    blackboard, edge, environment, command = match.groups()
    if blackboard or edge:
        return (edge, environment) if edge else ("sym", f"set {blackboard}")
    if command:
        return COMMANDS.get(command) or fail(command)
    return (OTHER_SIGNS.get(match[0], match[0]),)


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
        negative = self.tokens[self.at + 1 :] and self.tokens[self.at + 1][0] == "word" and self.take("-")
        words = [self.take("word")[1]] if self.tokens[self.at][1:] in (("dollar",), ("euro",), ("pound",)) else []
        tree = self.union()
        while token := self.take("word", *(("^", "/") if words else ()), *(("num",) if words and words[-1] == "^" else ())):
            power = MULTIPLES.get(token[-1].lower()) if token[0] == "word" else None
            tree, words = (("*", tree, num(10**power)), words) if power else (tree, [*words, token[-1]])
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
            tree = [("/", times(tree), self.signed())] if token == ("/",) else [*tree, self.power() if token is True else self.signed()]
        return times(tree)

    def starts_factor(self) -> bool:
        """Whether a factor follows without a sign. A number does so only in 3!7!: "3 4" is no product."""
        if self.see("num"):
            return self.tokens[self.at - 1] == ("!",)
        return self.see("sym", "const", "fn", "(", "[", "{", "frac", "tex binom", "lfloor", "lceil") or self.see("|") and not self.bars

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
        return ("base", tree[1], below) if tree[0] == "num" else ("sym", f"{tree[1]}_{below}") if tree[0] == "sym" else fail("subscript")

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
        if function and [token[0] for token in self.tokens[self.at : self.at + 6]] == ["^", "{", "-", "num", "}", "("]:
            self.at, name = self.at + 5, f"{name} inverse"
        if self.see("(") and (function or name in tuple("pqrPQS") and self.tokens[self.at + 2][0] == ")"):
            name += f"({self.nested(self.atom)})"
        return ("sym", name)

    RULES = {"fn": "function", "(": "bracket", "[": "bracket", "{": "group", "\\{": "braces", "<(": "bracket", "frac": "fraction", "tex binom": "fraction",
             "|": "enclosed", "lfloor": "enclosed", "lceil": "enclosed", "begin": "matrix", "accent": "accent"}  # fmt: skip

    def within(self, rule, *closers) -> tuple:
        """What a rule finds up to a closing sign, and that sign. Bars inside are its own."""
        bars, self.bars = self.bars, 0
        tree, close = rule(), self.need(*closers)[0]
        self.bars = bars
        return tree, close

    def bracket(self, token) -> tuple:
        """(a), (a, b), [a, b) and the like."""
        tree, close = self.within(self.items, ")", "]") if token[0] != "<(" else self.within(self.items, ")>")
        kind = "()" if close == ")>" else token[0] + close
        return ("seq", kind, *tree[1:]) if tree[0] == "list" else tree if kind in ("()", "[]") else fail("bracket")

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
        such_that = self.see("sym") and self.tokens[self.at + 1][0] in ("|", ":")
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
            rows = [*rows[:-1], [*rows[-1], self.sum()]] if mark[0] == "&" else [*rows, [self.sum()]]
        self.need("end")
        return ("det" if token[1] == "vmatrix" else "matrix", *map(tuple, rows))

    def function(self, token) -> tuple:
        """sin x, sin^2 x, sin^{-1} x, sin(x) y, log_2 8, sqrt[3]{x}, max(1, 2)."""
        name = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "log": "ln"}.get(token[1], token[1])
        if name == "sqrt" and self.take("["):
            index = self.within(self.sum, "]")[0]
            return ("root", self.argument(), index)
        base = (self.atom(),) if self.take("_") else ()
        power = (self.atom() if self.see("{") else self.signed()) if name != "sqrt" and self.take("^") else None
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


def unit_name(word: str) -> str:
    word = word.lower()
    return UNIT_NAMES.get(word) or UNIT_NAMES.get(word.removesuffix("s")) or word.removesuffix("s") or word


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


def same(p: tuple, g: tuple) -> bool:
    """Whether two trees are one answer: the first rule that knows their kinds decides, and says None where it does not."""
    if p == g:
        return True
    verdicts = (rule(p, g) for rule in (by_unit, by_name, by_real_set, by_items, by_parts, by_relation, by_value))
    return next(verdict for verdict in verdicts if verdict is not None)


def either(p, g, kind: str):
    """(the one of this kind, the other) if just one is."""
    return ((p, g) if p[0] == kind else (g, p)) if (p[0] == kind) != (g[0] == kind) else (None, None)


def by_unit(p, g):
    """Units that only one side has are ignored. A percentage is a share; against a bare number above 1 it may also be the number of percent."""
    if "unit" in (p[0], g[0]):
        units = [{"unit": tree[-1], "deg": "degree"}.get(tree[0]) for tree in (p, g)]
        return (None in units or units[0] == units[1]) and same(*(tree[1] if unit else tree for tree, unit in zip((p, g), units)))
    angle, other = either(p, g, "deg")
    if angle:
        return same(angle[1], other) or by_value(angle, other)
    percent, other = either(p, g, "pct")
    if percent:
        return by_value(percent, other) or (percent is g or (exact(other) or 0) > 1) and same(percent[1], other)


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
    fits = is_name(name) and (len(values) == 1 or all(same(a, b) for a, b in itertools.pairwise(values)))
    return (name, values[-1]) if fits else (None, tree)


def is_name(tree) -> bool:
    """x, f(x), AB, |AB|, AO/BO, dy/dx, (x, y), a:b; but not xy or x + y, which with = make an equation."""
    if tree[0] in ("seq", "ratio", "/", "abs"):
        return all(is_name(part) for part in tree[1:] if isinstance(part, tuple))
    letters_only = tree[0] == "*" and all(part[0] == "sym" for part in tree[1:])
    return tree[0] == "sym" or letters_only and (tree[1] == ("sym", "d") or all(part[1][0].isupper() for part in tree[1:]))


def by_items(p, g):
    """Lists, sets and \\pm: as many, each equal to one of the other. Ordered where only one side has brackets or names."""
    p_items, g_items = items(p), items(g)
    if len(p_items) == len(g_items) == 1 and "set" not in (p[0], g[0]):
        return None
    names, values = zip(*(zip(*map(named, side)) if side else ((), ()) for side in (p_items, g_items)))
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
    choices = [(minus,) * 99 for minus in (False, True)] if tied else itertools.product((False, True), repeat=n)
    return list(dict.fromkeys(with_signs(tree, iter(choice)) for choice in choices))


def with_signs(tree, minus):
    if tree[0] in ("pm", "mp"):
        sign, inner = next(minus, None), with_signs(tree[1], minus)
        return ("neg", inner) if sign != (tree[0] == "mp") else inner
    return tuple(with_signs(part, minus) if isinstance(part, tuple) and part else part for part in tree)


def count(tree, kind: str | None = None) -> int:
    """Nodes of a kind, or of any."""
    return (kind is None or tree[:1] == (kind,)) + sum(count(part, kind) for part in tree if isinstance(part, tuple))


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
        column = [row[0] for row in matrix[1:]] if all(len(row) == 1 for row in matrix[1:]) else matrix[1] if len(matrix) == 2 else []
        return other[1] == "()" and all_same(column, other[2:])
    if "base" in (p[0], g[0]):
        return p[1:] == g[1:] if p[0] == g[0] else p[0] == "num" and p[1] == g[1]


def proportional(p, g) -> bool:
    """2:4 is 1:2; but 3:30, which may be a time, is 3:30 alone."""
    values = [[exact(part) for part in tree[1:]] for tree in (p, g)]
    if len(p) != len(g) or not all(all(row) for row in values) or 10 <= values[1][-1] < 60 and values[1][0] <= 24:
        return False
    return len({a / b for a, b in zip(*values)}) == 1


MINUS_OO, OO, REALS = ("neg", ("const", "oo")), ("const", "oo"), ("sym", "set R")  # a set of reals is pieces: (low, high, low included, high included)


def by_real_set(p, g):
    """Intervals, unions, points and inequalities in one unknown describe sets of real numbers."""
    described = [tree[0] in ("cup", "minus", "rel") or tree == REALS or tree[0] == "list" and tree[1][0] == "rel" for tree in (p, g)]
    left, right = (pieces(p), pieces(g)) if any(described) else (None, None)
    if left is None or right is None:
        return None
    if len({frozenset(unknowns(tree)) - {"set R"} for tree in (p, g)} - {frozenset()}) > 1:
        return False
    left, right = merged(left), merged(right)
    return len(left) == len(right) and all(a[2:] == b[2:] and same(a[0], b[0]) and same(a[1], b[1]) for a, b in zip(left, right))


def pieces(tree):
    """The pieces of a set, or None of a tree that is none."""
    kind = tree[0]
    if tree == REALS:
        return [(MINUS_OO, OO, False, False)]
    if kind == "seq" and len(tree) == 4:
        low, high = position(tree[2]), position(tree[3])
        return [(tree[2], tree[3], tree[1][0] == "[", tree[1][1] == "]")] if None not in (low, high) and low < high else None
    if kind == "set":
        return None if any(position(point) is None for point in tree[1:]) else [(point, point, True, True) for point in tree[1:]]
    if kind == "rel":
        return relation_pieces(tree[1], tree[2:])
    if kind in ("cup", "minus", "list"):
        parts = [pieces(part) for part in tree[1:]]
        return None if None in parts or kind == "list" and not alternatives(tree, parts) else without(*parts) if kind == "minus" else sum(parts, [])
    return None


def alternatives(tree, parts) -> bool:
    """Whether a list of inequalities says "or": they are apart. x > 1, x < 3 may mean both."""
    return all(part[0] == "rel" for part in tree[1:]) and len(unknowns(tree)) == 1 and len(merged(sum(parts, []))) == sum(map(len, parts))


def without(kept, points):
    """Pieces cut at single points."""
    for point, other, *_ in points:
        if point != other:
            fail("only points can be left out")
        at = position(point)
        kept = [cut for low, high, *ends in kept for cut in (
            [(low, point, ends[0], False), (point, high, False, ends[1])] if position(low) < at < position(high)
            else [(low, high, ends[0] and position(low) != at, ends[1] and position(high) != at)])]  # fmt: skip
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
        return [(ends[0], ends[0], True, True)] if signs == ("=",) else [(MINUS_OO, ends[0], False, False), (ends[0], OO, False, False)]
    if not set(signs) <= {"<", "<="} or len(sides) == 3 and (sides[1][0] != "sym" or position(ends[0]) >= position(ends[1])):
        return None
    low, high = ([MINUS_OO, False], [OO, False])
    for sign, left, right in zip(signs, sides, sides[1:]):
        low, high = ([left, sign == "<="], high) if right[0] == "sym" else (low, [right, sign == "<="])
    return [(low[0], high[0], low[1], high[1])]


def merged(pieces_of_set) -> list:
    """Pieces from left to right; those that overlap or touch are one."""
    done = []
    for low, high, closed, end in sorted(pieces_of_set, key=lambda piece: (position(piece[0]), not piece[2])):
        if done and (position(low), not (closed or done[-1][3])) <= (position(done[-1][1]), False):
            first, last, closed_first, closed_last = done.pop()
            high, end = max((last, closed_last), (high, end), key=lambda bound: (position(bound[0]), bound[1]))
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
    left, right = ([(sign, *pair) for sign, pair in zip(tree[1], itertools.pairwise(tree[2:]))] for tree in (p, g))
    all_found = lambda these, those: all(any(one_relation(a, b) for b in those) for a in these)
    return len(left) == len(right) and all_found(left, right) and all_found(right, left)


def one_relation(a, b) -> bool:
    """The differences of their sides are in a constant ratio, positive if there is a direction."""
    a, b = ((sign.replace(">", "<"), right, left) if ">" in sign else (sign, left, right) for sign, left, right in (a, b))
    first, second = (("+", left, ("neg", right)) for _, left, right in (a, b))
    if a[0] != b[0] or a[0] == "in" or not unknowns(first) or unknowns(first) != unknowns(second):
        return a == b
    m = operations().libmp
    with suppress(ZeroDivisionError):
        ratios = [m.mpc_div(x, y, PRECISION, "n") for x, y, _ in values(first, second)]
        steady = all(size(m.mpc_sub(ratio, ratios[0], PRECISION, "n")) < size(ratios[0]) - 100 for ratio in ratios)
        return bool(ratios) and steady and (a[0] in ("=", "!=") or ratios[0][0][0] == 0)
    return False


class Undefined(ArithmeticError):
    """The expression has no value here, or none that this module computes."""


def by_value(p, g) -> bool:
    """Two expressions: exactly if both are rational, else by their values at random points."""
    if unknowns(p) != unknowns(g):
        return False
    a, b = exact(p), exact(g)
    if a is not None and b is not None:
        return a == b or first_digits(p, a, b) or first_digits(g, b, a)
    compared = False
    for found in values(p, g):
        compared = agree(p, g, *found)
        if not compared:
            break
    return compared


def first_digits(tree, a: Fraction, b: Fraction) -> bool:
    """Whether a, the value of a tree with decimals, agrees with b in its first six digits, rounded or cut off; in 15, the precision of a
    float, where b is a decimal as well; in all where b is an integer."""
    n = 15 if 10 ** min(b.denominator.bit_length(), 99) % b.denominator == 0 else 6
    if digits(tree) < n or b.denominator == 1 or b == 0:
        return False
    scale = Fraction(10) ** (n - 1 - math.floor(math.log10(abs(b.numerator)) - math.log10(b.denominator)))
    return round(a * scale) in (round(b * scale), math.trunc(b * scale))


def digits(tree) -> int:
    """Significant digits of the longest decimal in a tree; 0 without any."""
    return tree[2] if tree[0] == "num" else max((digits(part) for part in tree if isinstance(part, tuple) and part), default=0)


def unknowns(tree) -> set:
    return {tree[1]} if tree[:1] == ("sym",) else set().union(*(unknowns(part) for part in tree if isinstance(part, tuple)))


def values(p, g):
    """(value of p, value of g, where) at three points of positive numbers, then at three of any sign, as far as all is real there: with
    negative numbers a root or a logarithm has several complex values. Points where one is undefined are left out."""
    names, draw = sorted(unknowns(p)), random.Random(repr(g))
    for k in range(6 if names else 1):
        at = {name: Fraction(draw.randrange(200, 3000), 1000) * (draw.choice((-1, 1)) if k > 2 else 1) for name in names}
        with suppress(Undefined):
            yield value(p, at, PRECISION, k > 2), value(g, at, PRECISION, k > 2), at


def agree(p, g, a, b, at: dict) -> bool:
    """Whether the values a and b of p and g are one number: to 30 digits, or to six if one has decimals of six digits."""
    m, largest = operations().libmp, max(size(a), size(b))
    difference = size(m.mpc_sub(a, b, PRECISION, "n"))
    if max(digits(p), digits(g)) < 6:
        return difference < largest - 100 or difference < -50 and vanishes(("+", p, ("neg", g)), at)
    if at or not a[1] == b[1] == m.fzero:
        return difference < largest - 18
    x, y = (Fraction(*m.to_rational(z[0])) for z in (a, b))
    return first_digits(p, x, y) or first_digits(g, y, x)


def size(z) -> int:
    """Exponent of two just above |z|; far below all others for 0."""
    return max(part[2] + part[3] if part[1] else -(10**30) for part in z)


def vanishes(tree, at: dict) -> bool:
    """Whether what is left of a difference is rounding: it shrinks with the precision, however small the numbers are."""
    return size(value(tree, at, 3 * PRECISION)) < size(value(tree, at, PRECISION)) - PRECISION


def exact(tree) -> Fraction | None:
    """The value of a rational expression; None of any other."""
    if tree[0] == "num" or tree[0] not in EXACT:
        return tree[1] if tree[0] == "num" else None
    arguments = [exact(part) for part in tree[1:]]
    try:
        return None if None in arguments else EXACT[tree[0]](*arguments)
    except ZeroDivisionError:
        return None


def exact_power(a: Fraction, n: Fraction):
    digits_of_a = max(a.numerator.bit_length(), a.denominator.bit_length())
    return a**n.numerator if n.denominator == 1 and digits_of_a * abs(n) < 4 * SLOW_BITS else None


def exact_counting(function):
    """A function of whole numbers, not too large; None of others."""
    return lambda *counts: Fraction(function(*map(int, counts))) if all(n.denominator == 1 and 0 <= n < 3000 for n in counts) else None


EXACT = {
    "+": lambda *terms: sum(terms), "*": lambda *factors: math.prod(factors), "/": lambda a, b: a / b, "neg": lambda a: -a, "^": exact_power, "abs": abs,
    "!": exact_counting(math.factorial), "binom": exact_counting(math.comb), "pct": lambda a: a / 100, "floor": lambda a: Fraction(math.floor(a)),
    "ceil": lambda a: Fraction(math.ceil(a)), "max": lambda *several: max(several), "min": lambda *several: min(several),
}  # fmt: skip


@functools.cache
def operations():
    """mpmath's functions of pairs (real, imaginary) and a precision. They keep no state, so any thread may use them."""
    from mpmath import libmp as m

    def real(function):
        return lambda z, prec: (function(z[0], prec, "n"), m.fzero if z[1] == m.fzero else m.fnan)

    def named_so(name):
        return lambda *z: getattr(m, f"mpc_{name}")(*z, "n")

    def inverse(name):
        return lambda z, prec: m.mpc_div(m.mpc_one, getattr(m, f"mpc_{name}")(z, prec + 10), prec, "n")

    def binomial(n, k, prec):
        factorial = lambda z: m.mpc_factorial(z, prec + 10, "n")
        return m.mpc_div(factorial(n), m.mpc_mul(factorial(k), factorial(m.mpc_sub(n, k, prec)), prec + 10), prec, "n")

    def root(z, n, prec):
        """The real root of a negative number if n is odd."""
        odd = z[0][0] and z[1] == n[1] == m.fzero and n[0][2] == 0 and n[0][1] & 1
        found = m.mpc_pow(m.mpc_neg(z) if odd else z, m.mpc_div(m.mpc_one, n, prec + 10), prec, "n")
        return m.mpc_neg(found) if odd else found

    many = lambda name: lambda *z: functools.reduce(lambda a, b: getattr(m, f"mpc_{name}")(a, b, z[-1], "n"), z[:-1])
    turn = lambda z, prec: m.mpc_mul_mpf(z, m.mpf_div(m.mpf_pi(prec + 10), m.from_int(180), prec + 10), prec, "n")
    functions = {name: named_so(name) for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh", "exp", "neg")}
    functions |= {f"arc{name}": named_so(f"a{name}") for name in ("sin", "cos", "tan")} | {"ln": named_so("log"), "!": named_so("factorial")}
    functions |= {"sec": inverse("cos"), "csc": inverse("sin"), "cot": inverse("tan"), "floor": real(m.mpf_floor), "ceil": real(m.mpf_ceil)}
    functions |= {"+": many("add"), "*": many("mul"), "/": named_so("div"), "^": named_so("pow"), "root": root, "binom": binomial, "deg": turn}
    functions |= {"abs": lambda z, prec: (m.mpc_abs(z, prec, "n"), m.fzero), "pct": lambda z, prec: m.mpc_div(z, (m.from_int(100), m.fzero), prec, "n")}
    constants = {"pi": lambda prec: (m.mpf_pi(prec), m.fzero), "e": lambda prec: (m.mpf_e(prec), m.fzero), "i": lambda prec: (m.fzero, m.fone)}
    return SimpleNamespace(libmp=m, functions=functions, constants=constants)


def value(tree, at: dict, prec: int, real: bool = False):
    """The value, an mpmath pair (real, imaginary), with the unknowns `at` these places; undefined if `real` and something on the way is not."""
    kind, ops = tree[0], operations()
    if kind in ("num", "sym"):
        x = tree[1] if kind == "num" else at[tree[1]]
        return ops.libmp.from_rational(x.numerator, x.denominator, prec, "n"), ops.libmp.fzero
    if kind == "const" and tree[1] in ops.constants:
        return ops.constants[tree[1]](prec)
    if kind not in ops.functions:
        raise Undefined(kind)
    try:
        result = ops.functions[kind](*(value(part, at, prec, real) for part in tree[1:]), prec)
    except (ZeroDivisionError, ValueError):  # 1/0, ln 0, (-1)!
        raise Undefined(kind) from None
    if any(part[1] == 0 and part[2] != 0 for part in result) or real and result[1] != ops.libmp.fzero:
        raise Undefined("infinite, or not a number")
    return result


NUMBER = re.compile(r"-?(\d{1,40}|\d{1,3}(,\d{3}){1,12})(\.\d{1,12})?")


def equivalent(prediction: str, gold: str, deadline: float = 1.0) -> bool:
    """Whether two answers say the same. Never raises; False where it takes more than `deadline` seconds to tell."""
    prediction, gold = prediction.strip(), gold.strip()
    if prediction == gold or not prediction or max(len(prediction), len(gold)) > MAX_CHARS:
        return prediction == gold != ""
    if NUMBER.fullmatch(prediction) and NUMBER.fullmatch(gold):
        return Fraction(prediction.replace(",", "")) == Fraction(gold.replace(",", ""))
    p, g = tidy(prediction), tidy(gold)
    return compact(p) == compact(g) != "" or decide(p, g, lambda: WORKER.ask(p, g, deadline))


def decide(p: str, g: str, if_slow=None) -> bool:
    """Whether two tidy texts are one answer; if that may take long and there is another way, that one's verdict."""
    try:
        left, right = parse(p), parse(g)
        return left == right or (if_slow() if if_slow and (slow(left) or slow(right)) else same(left, right))
    except (Unparsable, Undefined, RecursionError, OverflowError, MemoryError):
        return False


def compact(text: str) -> str:
    """The text without spaces, but "1 2" is not 12; words without regard to case and \\text{}."""
    text = re.sub(r"([\^_]|\\[a-zA-Z]+)\{(\w)\}(?!\w)", r"\1\2", re.sub(r"(?<!\d) | (?!\d)", "", WRAPPED.sub(r" \2 ", text)))
    return text.casefold() if len(text) > 1 and re.fullmatch(r"[a-zA-Z']+", text) else text


def slow(tree) -> bool:
    return count(tree) > SLOW_NODES or bits(tree) > SLOW_BITS


def bits(tree) -> float:
    """About how many binary digits the largest number met on the way has, at most."""
    if tree[0] == "num":
        return max(tree[1].numerator.bit_length(), tree[1].denominator.bit_length())
    inner = [bits(part) for part in tree if isinstance(part, tuple) and part] or [2]
    if tree[0] in ("^", "!", "exp", "sinh", "cosh", "tanh", "binom"):
        return inner[0] * 2.0 ** min(inner[-1] if tree[0] == "^" else inner[0], 500)
    return sum(inner) if tree[0] in ("*", "/") else max(inner)


class Worker:
    """A small Python process that compares pairs and is killed when it takes too long. It starts with the first slow pair."""

    def __init__(self):
        self.lock, self.process, self.owner = threading.Lock(), None, os.getpid()

    def ask(self, p: str, g: str, deadline: float) -> bool:
        if self.owner != os.getpid():  # we are a fork: the process is our parent's
            self.__init__()
        with self.lock:
            try:
                if self.process is None or self.process.poll() is not None:
                    self.start()
                self.process.stdin.write(json.dumps([p, g, deadline]).encode() + b"\n")
                answer = self.read(deadline)
            except OSError:  # it died meanwhile
                answer = b""
            if answer not in (b"0", b"1"):
                self.stop()
        return answer == b"1"

    def start(self):
        """The process announces itself when it has imported what it needs, so that the deadline is the comparison's alone."""
        command = [sys.executable, "-c", "from nanotir.answers import serve; serve()"]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0)
        self.process = subprocess.Popen(command, cwd=Path(__file__).parents[1], **pipes)
        atexit.register(self.stop)
        self.read(30.0)

    def read(self, seconds: float) -> bytes:
        """The next byte, or none if it does not come in time."""
        return self.process.stdout.read(1) if select.select([self.process.stdout], [], [], seconds)[0] else b""

    def stop(self):
        atexit.unregister(self.stop)
        process, self.process = self.process, None
        if process is not None and self.owner == os.getpid():
            process.kill()
            process.communicate()


WORKER = Worker()


def serve():
    """The worker: a pair a line, one byte back. It ends with its input, and by its limits of time and memory if its parent has died meanwhile."""
    import resource

    operations()
    with suppress(ValueError, OSError):  # not every system limits memory
        resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
    os.write(1, b"?")
    for line in sys.stdin:
        p, g, deadline = json.loads(line)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + deadline) + 1, resource.RLIM_INFINITY))
        os.write(1, b"1" if decide(p, g) else b"0")
