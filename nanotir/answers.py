"""Find the final answer in what a model wrote, and decide whether two answers are equal.

Text is read by one tokenizer and one recursive-descent parser into trees of nested tuples, ("+", a, b) or ("sym", "x"); nothing is ever
evaluated as code. Trees are compared from cheap to dear: equal text, equal trees, exact rationals, then 50-digit values at a few random
points. A pair that might take long goes to a worker process, which is killed at the deadline.

What counts as equal: tuples are ordered, lists and sets are not; \\pm a is two answers; an integer or a decimal is exact, anything else may
be given by at least six correct digits; a unit may be missing on one side, but two units must agree; x = 3 is 3 and 50% is 0.5 or 50.
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
SLOW_BITS, SLOW_NODES = 50_000, 300  # from here on a pair is the worker's


class Unparsable(ValueError):
    """The text is not an answer this grammar knows."""


# Finding the answer ----------------------------------------------------------------------------------------------------------------------
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
    line = re.split(r"\.(?:\s|$)|</answer>", line.replace("**", ""))[0].strip()
    spans = list(SPAN.finditer(line))
    rest = re.split(r"\bis\b", line)[-1].strip()
    if spans and not (rest != line and re.fullmatch(r"-?[\d.,/]+", rest)):
        rest = next(group for group in spans[-1].groups() if group)
    left, equals, right = rest.rpartition("=")
    return right.strip() if equals and not re.search("[a-zA-Z]", left) else rest.rstrip(".").strip()  # "16 + 1 = 17" names 17


# From text to tokens ---------------------------------------------------------------------------------------------------------------------
GREEK = ("alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon phi varphi chi psi omega "
         "Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell").split()  # fmt: skip
UNICODE = {
    "−": "-", "–": "-", "—": "-", "×": "*", "·": "*", "⋅": "*", "∙": "*", "÷": "/", "∕": "/", "⁄": "/", "π": "\\pi ", "∞": "\\infty ", "√": "\\sqrt ",
    "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "±": "\\pm ", "∓": "\\mp ", "∪": "\\cup ", "∈": "\\in ", "∅": "\\emptyset ", "ℝ": "\\mathbb{R}",
    "ℤ": "\\mathbb{Z}", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "（": "(", "）": ")", "，": ",", "…": "...", "€": "\\euro ", "£": "\\pound ",
    **{digit: f"^{{{i}}}" for i, digit in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}, **{digit: f"_{{{i}}}" for i, digit in enumerate("₀₁₂₃₄₅₆₇₈₉")},
    **{char: "\\frac{%s}{%s} " % tuple(unicodedata.normalize("NFKC", char).split("⁄")) for char in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"},
    **{unicodedata.lookup(f"GREEK SMALL LETTER {name.replace('lambda', 'lamda')}"): f"\\{name} " for name in GREEK if name.islower() and name[:3] not in ("var", "ell")},
}  # fmt: skip
UNICODE = str.maketrans(UNICODE)
DROP = re.compile(r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|angle|triangle|nolimits)(?![a-zA-Z])|\\!")
SPACE = re.compile(r"(?<!\\)\\[,;: ]|~|\\q?quad(?![a-zA-Z])|\s+")
DEGREE = re.compile(r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree|\\circ(?![a-zA-Z])|º")


def tidy(text: str) -> str:
    """The answer without math delimiters, spacing, final dots and the like; Unicode signs as LaTeX."""
    text = re.sub(r"\\\$", r"\\dollar ", text.translate(UNICODE))
    if text.count("$") == 1 and re.match(r"\s*-?\$\s*[\d.]", text):
        text = text.replace("$", "\\dollar ")
    text = SPACE.sub(" ", DROP.sub("", re.sub(r"\$|\\[()\[\]]", " ", text)))
    text = re.sub(r"\b([ap])\. ?m\b", r"\1m", re.sub(r"\{ ?, ?\}", ",", DEGREE.sub("°", text), flags=re.I), flags=re.I)
    return re.sub(r"(\\\\|(?<!\.)\.|[,;]|\*\*| )+$", "", text).removeprefix("**").strip()


UNIT_NAMES = {  # how a unit is written -> its name; other words of four letters and more are units of their own
    name: names.split()[0] for names in (
        "cm centimeter centimetre", "mm millimeter millimetre", "km kilometer kilometre", "meter metre", "kg kilogram kilo", "gram", "mg milligram", "inch inche in",
        "foot feet ft", "yard yd", "mile mi", "lb pound lbs", "ounce oz", "second sec", "minute min", "hour hr", "day", "week", "month", "year yr", "ml milliliter",
        "liter litre", "dollar usd buck", "cent", "euro", "degree deg", "mph", "kph kmh", "unit", "square sq", "cubic", "am", "pm", "percent", "rad radian", "way", "men", "per")
    for name in names.split()}  # fmt: skip
MULTIPLES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}  # powers of ten
FUNCTIONS = ("sin cos tan cot sec csc arcsin arccos arctan asin acos atan sinh cosh tanh ln log lg exp sqrt cbrt abs floor ceil binom max min").split()
CONSTANTS = {"pi": "pi", "e": "e", "i": "i", "infty": "oo", "oo": "oo", "inf": "oo", "infinity": "oo"}
SIGNS = {
    "cdot": "*", "times": "*", "ast": "*", "div": "/", "le": "<=", "leq": "<=", "leqslant": "<=", "ge": ">=", "geq": ">=", "geqslant": ">=", "ne": "!=", "neq": "!=",
    "lt": "<", "gt": ">", "in": "in", "pm": "pm", "mp": "mp", "cup": "cup", "setminus": "minus", "backslash": "minus", "colon": ":", "lvert": "|", "rvert": "|", "vert": "|",
    "mid": "|", "over": "over", "choose": "choose", "lbrace": "\\{", "rbrace": "\\}", "langle": "<(", "rangle": ")>", "lfloor": "lfloor", "rfloor": "rfloor",
    "lceil": "lceil", "rceil": "rceil", "frac": "frac", "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "binom": "tex binom", "dbinom": "tex binom", "tbinom": "tex binom",
    "lor": ",", "land": ",", "cap": "cap",
}  # fmt: skip
FRACTION = r"\\[cdt]?frac ?(?:\{ ?(?P<n1>\d+) ?\}|(?P<n2>\d)) ?(?:\{ ?(?P<d1>\d+) ?\}|(?P<d2>\d))"
MIXED = re.compile(rf"(?P<whole>\d+) ?(?:{FRACTION}|(?<= )(?P<n3>\d+) ?/ ?(?P<d3>\d+)(?!\d))")
REPEATING = re.compile(r"(?P<whole>\d*)\.(?P<fixed>\d*)(?:\\(?:overline|bar|dot) ?\{(?P<over>\d+)\}|\((?P<round>\d+)\)|(?<=\d\d\d)(?P<dots>\.\.\.|\\l?dots))")
GROUPED = re.compile(r"\d{1,3}(?:(?:,\d{3})+(?!\d|,\d)|(?: \d{3})+(?! ?\d))(?:\.\d+)?")
PLAIN = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,9}(?![\d.]))?")
WRAPPED = re.compile(r"\\(text(?:bf|it|rm|sf|tt|normal)?|mbox|math(?:rm|bf|it|sf)|operatorname\*?|textnormal) ?\{([^{}]*)\}")
OTHER = re.compile(r"\\mathbb ?\{? ?([A-Z]) ?\}?|\\(begin|end) ?\{(\w+)\}(?:\{[lcr| ]*\})?|\\([a-zA-Z]+)|\\\\|\\[{}%|]|\*\*|<=|>=|!=|[-+*/^_=<>(){}\[\]|!:,;&%°]")


def tokenize(text: str, words: bool = False, depth: int = 0) -> list[tuple]:
    """[(kind, value), ...]. With `words` every run of letters is a word, as in \\text{}. Within brackets a comma never belongs to a number."""
    tokens, at = [], 0
    while at < len(text):
        match = number_at(text, at, tokens, depth)
        if match:
            tokens.append(match[1])
            at = match[0]
            continue
        wrapped, run = WRAPPED.match(text, at), re.compile(r"[A-Za-z]+").match(text, at)
        found = wrapped or run or OTHER.match(text, at)
        if wrapped:
            tokens += tokenize(wrapped[2], not wrapped[1].startswith(("math", "oper")) or len(wrapped[2].strip()) > 1 and wrapped[2].strip() not in FUNCTIONS, depth)
        elif run:
            tokens += letters(run[0], words, tokens)
        elif found:
            tokens.append(sign(found))
            depth += {"(": 1, "[": 1, "\\{": 1, ")": -1, "]": -1, "\\}": -1}.get(tokens[-1][0], 0)
        elif text[at] != " ":
            raise Unparsable(text[at])
        at = found.end() if found else at + 1
    return tokens


def number_at(text: str, at: int, tokens: list, depth: int):
    """(end, ("num", value, significant digits of a decimal, text)) of the number that starts here, or None."""
    if not (text[at].isascii() and (text[at].isdigit() or text[at] == ".")):
        return None
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
        return None
    mantissa, _, exponent = re.sub("[, ]", "", match[0]).lower().partition("e")
    digits = len(mantissa.replace(".", "").lstrip("0")) if "." in mantissa else 0
    if exponent and abs(int(exponent)) > 1000:
        raise Unparsable("exponent")
    return match.end(), ("num", Fraction(mantissa) * Fraction(10) ** int(exponent or 0), digits, match[0])


def letters(run: str, words: bool, before: list) -> list[tuple]:
    """The tokens of a run of letters: a connective, a function, a constant, a unit or a word, a name like AB, or a product of single letters."""
    lower = run.lower()
    if lower in ("or", "and"):
        return [(",", lower)]
    if run in FUNCTIONS and not words or run in ("arcsin", "arccos", "arctan"):
        return [("fn", run)]
    if run in CONSTANTS and not words:
        return [("const", CONSTANTS[run])]
    if run in GREEK and not words:
        return [("sym", run)]
    after_number = bool(before) and before[-1][0] in ("num", ")", "}", "/", "word")
    if unit_name(lower) in UNIT_NAMES.values() and (len(run) > 2 or after_number) or len(run) > 3 or words and (len(run) > 1 or after_number):
        return [("word", run)]
    if len(run) > 1 and run.isupper():
        return [("sym", run)]
    return [("const", letter) if letter in "ei" else ("sym", letter) for letter in run]


def sign(match: re.Match) -> tuple:
    """The token of a command or a sign."""
    blackboard, edge, environment, command = match.groups()
    if blackboard:
        return "sym", "set " + blackboard
    if edge:
        return edge, environment
    if command in SIGNS:
        return (SIGNS[command],)
    if command in ("dollar", "euro", "pound"):
        return "word", command
    if command in ("emptyset", "varnothing"):
        return "empty", ()
    if command:
        if command in CONSTANTS or command in GREEK or command in FUNCTIONS:
            return ("const", CONSTANTS[command]) if command in CONSTANTS else ("sym", command) if command in GREEK else ("fn", command)
        raise Unparsable(command)
    return ({"**": "^", "\\%": "%", "\\|": "|", ";": ","}.get(match[0], match[0]),)


# From tokens to trees --------------------------------------------------------------------------------------------------------------------
RELATIONS = ("=", "!=", "<", ">", "<=", ">=", "in")
CLOSERS = {"lfloor": "rfloor", "lceil": "rceil"}
ONE, HALF, THIRD, HUNDREDTH = (("num", Fraction(1, n), 0) for n in (1, 2, 3, 100))


class Parser:
    """Recursive descent: items > item > relation > union > ratio > sum > product > signed > power > postfix > atom."""

    def __init__(self, tokens: list[tuple]):
        self.tokens, self.at, self.depth, self.bars = [*tokens, ("end",)], 0, 0, 0

    @property
    def kind(self) -> str:
        return self.tokens[self.at][0]

    def take(self, *kinds):
        """The next token if it is one of these kinds, else None."""
        if self.kind in kinds:
            self.at += 1
            return self.tokens[self.at - 1]

    def need(self, *kinds):
        token = self.take(*kinds)
        if token is None:
            raise Unparsable(f"{self.kind} where {kinds} should be")
        return token

    def answer(self) -> tuple:
        tree = self.items()
        self.need("end")
        return tree

    def items(self) -> tuple:
        items = [self.item()]
        while self.take(","):
            if self.tokens[self.at] in ((",", "and"), (",", "or")):
                self.at += 1
            items.append(self.item())
        return items[0] if len(items) == 1 else ("list", *items)

    def item(self) -> tuple:
        """A relation or value, with its unit: $5, 5 cm, 5 miles per hour, 5 square meters, 5 cm^2."""
        negative = self.kind == "-" and self.tokens[self.at + 1][0] == "word" and self.take("-")
        words = [self.take("word")[1]] if self.kind == "word" and self.tokens[self.at][1] in ("dollar", "euro", "pound") else []
        tree = self.relation()
        tree = ("neg", tree) if negative else tree
        while word := self.take("word", *(("^", "/", "num") if words or self.kind == "word" else ())):
            if word[0] == "word" and word[1].lower() in MULTIPLES:
                tree = ("*", tree, ("num", Fraction(10 ** MULTIPLES[word[1].lower()]), 0))
            else:
                words.append(word[-1])
        return with_unit(tree, words)

    def relation(self) -> tuple:
        sides, signs = [self.union()], []
        while token := self.take(*RELATIONS):
            signs.append(token[0])
            sides.append(self.item() if token[0] == "=" else self.union())
        return ("rel", tuple(signs), *sides) if signs else sides[0]

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
            term = self.product()
            terms.append(term if token[0] == "+" else ({"-": "neg"}.get(token[0], token[0]), term))
        return ("+", *terms) if len(terms) > 1 else terms[0]

    def product(self) -> tuple:
        factors = [self.signed()]
        while True:
            if self.take("*"):
                factors.append(self.signed())
            elif self.take("/"):
                factors = [("/", times(factors), self.signed())]
            elif self.starts_factor():
                factors.append(self.power())
            else:
                return times(factors)

    def starts_factor(self) -> bool:
        """Whether a factor follows without a sign. A number never does: "3 4" is no product."""
        return self.kind in ("sym", "const", "fn", "(", "[", "{", "frac", "tex binom", "lfloor", "lceil") or self.kind == "|" and not self.bars

    def signed(self) -> tuple:
        token = self.take("-", "+", "pm", "mp")
        tree = self.power()
        return tree if not token or token[0] == "+" else ({"-": "neg"}.get(token[0], token[0]), tree)

    def power(self) -> tuple:
        tree = self.postfix(self.atom())
        while self.take("^"):
            tree = self.postfix(("^", tree, self.nested(self.signed)))
        return tree

    def postfix(self, tree: tuple) -> tuple:
        while token := self.take("!", "°", "%", "_"):
            tree = self.subscript(tree) if token[0] == "_" else ({"°": "deg", "%": "pct"}.get(token[0], token[0]), tree)
        return tree

    def subscript(self, tree: tuple) -> tuple:
        """x_1 is a name; 101_2 is digits in a base, which is not the number they mean: to convert it may be the question."""
        below = self.nested(self.atom)
        if tree[0] == "num":
            return ("base", tree[1], below)
        if tree[0] != "sym":
            raise Unparsable("subscript")
        return ("sym", f"{tree[1]}_{below}")

    def nested(self, rule):
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unparsable("too deep")
        tree = rule()
        self.depth -= 1
        return tree

    def atom(self) -> tuple:
        token = self.need("num", "sym", "const", "fn", "(", "[", "{", "\\{", "|", "<(", "frac", "tex binom", "lfloor", "lceil", "begin", "empty")
        kind = token[0]
        if kind in ("sym", "const"):
            called = token[1] in ("f", "g", "h", "F", "G", "H") and self.kind == "("
            return ("sym", f"{token[1]}({self.nested(self.atom)})") if called else token
        if kind == "num":
            return token[:3]
        if kind == "empty":
            return ("set",)
        return self.nested(functools.partial(getattr(self, self.RULES[kind]), token))

    RULES = {"fn": "function", "(": "bracket", "[": "bracket", "{": "group", "\\{": "braces", "|": "absolute", "<(": "vector", "frac": "fraction",
             "tex binom": "fraction", "lfloor": "rounded", "lceil": "rounded", "begin": "matrix"}  # fmt: skip

    def bracket(self, token) -> tuple:
        """(a), (a, b), [a, b) and the like; bars within it are its own."""
        bars, self.bars = self.bars, 0
        tree = self.items()
        close = self.need(")", "]")[0]
        self.bars = bars
        if tree[0] == "list":
            return ("seq", token[0] + close, *tree[1:])
        if token[0] + close in ("(]", "[)"):
            raise Unparsable("bracket")
        return tree

    def group(self, _) -> tuple:
        """{...} of LaTeX, {a \\over b}, {n \\choose k}, or a set written with plain braces."""
        if self.take("}"):
            return ("set",)
        bars, self.bars = self.bars, 0
        tree = self.items()
        if token := self.take("over", "choose"):
            tree = ({"over": "/", "choose": "binom"}[token[0]], tree, self.items())
        self.need("}")
        self.bars = bars
        return ("set", *tree[1:]) if tree[0] == "list" else tree

    def braces(self, _) -> tuple:
        """A set of things, or of the x that satisfy something: \\{x : x > 3\\}."""
        if self.take("\\}"):
            return ("set",)
        if self.kind == "sym" and self.tokens[self.at + 1][0] in ("|", ":"):
            self.at += 2
            tree = self.items()
        else:
            tree = self.items()
            tree = ("set", *tree[1:]) if tree[0] == "list" else ("set", tree)
        self.need("\\}")
        return tree

    def absolute(self, _) -> tuple:
        self.bars += 1
        tree = self.sum()
        self.need("|")
        self.bars -= 1
        return ("abs", tree)

    def vector(self, _) -> tuple:
        tree = self.items()
        self.need(")>")
        return ("seq", "()", *tree[1:]) if tree[0] == "list" else ("seq", "()", tree)

    def rounded(self, token) -> tuple:
        tree = self.sum()
        self.need(CLOSERS[token[0]])
        return ("floor" if token[0] == "lfloor" else "ceil", tree)

    def fraction(self, token) -> tuple:
        return ("/" if token[0] == "frac" else "binom", self.argument(), self.argument())

    def argument(self) -> tuple:
        """A group, or one sign: in \\frac12 the arguments are 1 and 2."""
        token = self.tokens[self.at]
        if token[0] == "num" and token[3].isdigit() and len(token[3]) > 1:
            self.tokens[self.at] = ("num", Fraction(token[3][1:]), 0, token[3][1:])
            return ("num", Fraction(token[3][0]), 0)
        return self.atom()

    def matrix(self, token) -> tuple:
        if token[1] not in ("pmatrix", "bmatrix", "matrix", "array", "Bmatrix", "vmatrix"):
            raise Unparsable(token[1])
        rows = [[self.sum()]]
        while sign := self.take("&", "\\\\"):
            if sign[0] == "&":
                rows[-1].append(self.sum())
            elif self.kind != "end" or self.tokens[self.at + 1 :]:
                rows += [] if self.kind == "end" else [[self.sum()]]
        self.need("end")
        return ("det" if token[1] == "vmatrix" else "matrix", *map(tuple, rows))

    def function(self, token) -> tuple:
        """sin x, sin^2 x, sin^{-1} x, sin(x) y, log_2 8, sqrt[3]{x}, max(1, 2)."""
        name = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "log": "ln"}.get(token[1], token[1])
        if name == "sqrt" and self.take("["):
            index = self.sum()
            self.need("]")
            return ("root", self.argument(), index)
        base = self.atom() if self.take("_") else None
        power = self.signed_exponent() if name != "sqrt" and self.take("^") else None
        arguments = self.arguments(name)
        if base is not None:
            arguments = (*arguments, base)
        if power == ("neg", ONE) and f"arc{name}" in FUNCTIONS:
            return applied(f"arc{name}", arguments)
        return applied(name, arguments) if power is None else ("^", applied(name, arguments), power)

    def signed_exponent(self) -> tuple:
        return self.group(self.take("{")) if self.kind == "{" else self.signed()

    def arguments(self, name) -> tuple:
        if self.kind == "(":
            tree = self.atom()
            return tree[2:] if tree[0] == "seq" and tree[1] == "()" else (tree,)
        if name == "sqrt" or self.kind == "{":
            return (self.atom(),)
        factors = [self.signed()]
        while self.starts_factor() and self.kind != "fn":
            factors.append(self.power())
        return (times(factors),)


def times(factors: list) -> tuple:
    return ("*", *factors) if len(factors) > 1 else factors[0]


def applied(name: str, arguments: tuple) -> tuple:
    """A function of its arguments, with roots and logarithms of a base spelled out."""
    if name in ("sqrt", "cbrt"):
        arguments, name = (*arguments, ("num", Fraction(2 if name == "sqrt" else 3), 0)), "root"
    if name in ("ln", "lg") and (len(arguments) == 2 or name == "lg"):
        return ("/", ("ln", arguments[0]), ("ln", arguments[1] if len(arguments) == 2 else ("num", Fraction(10), 0)))
    if len(arguments) != {"root": 2, "binom": 2}.get(name, len(arguments) if name in ("max", "min") else 1):
        raise Unparsable(name)
    return (name, *arguments)


def unit_name(word: str) -> str:
    word = word.lower()
    return UNIT_NAMES.get(word) or UNIT_NAMES.get(word.removesuffix("s")) or word.removesuffix("s")


def with_unit(tree: tuple, words: list) -> tuple:
    """The value with its unit's name: square cm is cm^2. Degrees and percent have nodes of their own."""
    names = [word if word.isdigit() or len(word) == 1 else unit_name(word) for word in words]
    if not names or names == ["unit"]:
        return tree
    if names[0] in ("square", "cubic"):
        names = [*names[1:], "^", "2" if names[0] == "square" else "3"]
    if names in (["degree"], ["percent"]):
        return ({"degree": "deg", "percent": "pct"}[names[0]], tree)
    return ("unit", tree, " ".join("/" if name == "per" else name for name in names))


def parse(text: str) -> tuple:
    return Parser(tokenize(text)).answer()


# Comparing trees -------------------------------------------------------------------------------------------------------------------------
def same(p: tuple, g: tuple) -> bool:
    """Whether two trees are one answer: the first rule that knows their kinds decides."""
    if p == g:
        return True
    for rule in (by_unit, by_name, by_items, by_parts, by_real_set, by_relation):
        verdict = rule(p, g)
        if verdict is not None:
            return verdict
    return by_value(p, g)


def by_unit(p, g):
    """Units that only one side has are ignored. A percentage is a share; against a bare number it may also be the number of percent."""
    if p[0] == "unit" or g[0] == "unit":
        units = [tree[2] if tree[0] == "unit" else "degree" if tree[0] == "deg" else None for tree in (p, g)]
        inner = [tree[1] if tree[0] in ("unit", "deg") else tree for tree in (p, g)]
        return (None in units or units[0] == units[1]) and same(*inner)
    if (p[0] == "deg") != (g[0] == "deg"):
        degrees, other = (p, g) if p[0] == "deg" else (g, p)
        return same(degrees[1], other) or by_value(degrees, other)
    if (p[0] == "pct") != (g[0] == "pct"):
        percent, other = (p, g) if p[0] == "pct" else (g, p)
        return by_value(percent, other) or same(percent[1], other)


def by_name(p, g):
    """x = 3 is 3, and f(x) = 2x + 1 is 2x + 1; where both have a name it is the same one, or they are relations."""
    (p_name, p_value), (g_name, g_value) = named(p), named(g)
    if p_name is None and g_name is None:
        return None
    if p_name is None or g_name is None:
        other = p if p_name is None else g
        return None if other[0] == "rel" else same(p_value, g_value)
    return True if p_name == g_name and same(p_value, g_value) else None


def named(tree):
    """(name, value) of name = value, value = name, name in value, and name = value = value again; (None, tree) of anything else."""
    if tree[0] != "rel" or set(tree[1]) - {"=", "in"}:
        return None, tree
    sides = tree[2:] if is_name(tree[2]) or tree[1] != ("=",) else tree[:1:-1]
    if not is_name(sides[0]) or any(is_name(side) and side[0] != "sym" for side in sides[1:]):
        return None, tree
    return (sides[0], sides[-1]) if all(same(a, b) for a, b in itertools.pairwise(sides[1:])) else (None, tree)


def is_name(tree) -> bool:
    """x, f(x), AB, |AB|, AO/BO, (x, y), a:b; but not xy or x + y, which with = make an equation."""
    if tree[0] in ("seq", "ratio", "/", "abs"):
        return all(is_name(part) for part in tree[1:] if isinstance(part, tuple))
    return tree[0] == "sym" or tree[0] == "*" and all(part[0] == "sym" and part[1][0].isupper() for part in tree[1:])


def by_items(p, g):
    """Lists, sets and \\pm: as many, each equal to one of the other; ordered only where one side gives names and the other none."""
    p_items, g_items = items(p), items(g)
    if len(p_items) == len(g_items) == 1 and p[0] != "set" and g[0] != "set":
        return None
    p_names, g_names = ({named(item)[0] for item in side} for side in (p_items, g_items))
    p_values, g_values = ([named(item)[1] for item in side] for side in (p_items, g_items))
    for names, values, other in ((p_names, p_values, g), (g_names, g_values, p)):
        if None not in names and len(names) == len(values) > 1 and other[0] in ("list", "seq") and named(other[-1])[0] is None:
            return len(values) == len(parts(other)) and all(map(same, values, parts(other)))
    if {p[0], g[0]} == {"seq", "list"}:
        return "()" in p + g and len(p) == len(g) + (1 if p[0] == "seq" else -1) and all(map(same, parts(p), parts(g)))
    if None not in (*p_names, *g_names) and p_names == g_names and len(p_names) == 1 or len(p_names | g_names) <= 2 and None in p_names | g_names:
        p_items, g_items = p_values, g_values
    return match_all(p_items, g_items, unique="set" in (p[0], g[0]))


def parts(tree) -> tuple:
    return tree[2:] if tree[0] == "seq" else tree[1:]


def items(tree) -> list:
    """What a list, a set or an expression with \\pm stands for."""
    if tree[0] in ("list", "set"):
        return [item for part in tree[1:] for item in items(part)]
    return signed_versions(tree)


def signed_versions(tree) -> list:
    """All readings of the \\pm in a tree: independent of each other, but opposite to \\mp where there is one."""
    n, tied = count(tree, "pm"), count(tree, "mp") > 0
    if n == 0 and not tied:
        return [tree]
    if n > 4:
        raise Unparsable("too many signs")
    choices = [(False,) * 99, (True,) * 99] if tied else list(itertools.product((False, True), repeat=n))
    return list(dict.fromkeys(with_signs(tree, iter(choice)) for choice in choices))


def with_signs(tree, minus):
    if tree[0] in ("pm", "mp"):
        negative = next(minus) != (tree[0] == "mp")
        inner = with_signs(tree[1], minus)
        return ("neg", inner) if negative else inner
    return tuple(with_signs(part, minus) if isinstance(part, tuple) and part and isinstance(part[0], str) else part for part in tree)


def count(tree, kind: str | None = None) -> int:
    """Nodes of a kind, or of any."""
    here = kind is None or tree[:1] == (kind,)
    return here + sum(count(part, kind) for part in tree if isinstance(part, tuple))


def match_all(left: list, right: list, unique: bool = False) -> bool:
    """Whether the two are equal in some order; as sets if `unique`."""
    if unique:
        left, right = (functools.reduce(lambda kept, item: kept if any(same(item, k) for k in kept) else [*kept, item], side, []) for side in (left, right))
    if len(left) != len(right):
        return False
    rest = list(right)
    for item in left:
        partner = next((i for i, other in enumerate(rest) if same(item, other)), None)
        if partner is None:
            return False
        del rest[partner]
    return True


def by_parts(p, g):
    """Tuples and intervals with two ends, ratios, matrices, columns, digits in a base."""
    if p[0] == g[0] == "seq":
        plain = p[1] == g[1] and len(p) == len(g) and all(map(same, p[2:], g[2:]))
        return plain
    if p[0] == g[0] == "ratio":
        return len(p) == len(g) and (all(map(same, p[1:], g[1:])) or proportional(p, g))
    if p[0] == g[0] == "matrix":
        return [len(row) for row in p[1:]] == [len(row) for row in g[1:]] and all(all(map(same, *rows)) for rows in zip(p[1:], g[1:]))
    for a, b in ((p, g), (g, p)):
        if a[0] == "matrix" and b[0] == "seq":
            column = [row[0] for row in a[1:]] if all(len(row) == 1 for row in a[1:]) else a[1] if len(a) == 2 else []
            return b[1] == "()" and len(column) == len(b) - 2 and all(map(same, column, b[2:]))
    if "base" in (p[0], g[0]):
        return g[0] == "base" and (p[1:] == g[1:] if p[0] == "base" else p[:1] == ("num",) and p[1] == g[1])


def proportional(p, g) -> bool:
    """2:4 is 1:2; but 3:30, where it may be a time, is 3:30 alone."""
    values = [[exact(part) for part in tree[1:]] for tree in (p, g)]
    if not all(all(row) for row in values) or all(10 <= row[-1] < 60 and row[0] <= 24 for row in values):
        return False
    return len({a / b for a, b in zip(*values)}) == 1


# Sets of real numbers: pieces (low, high, low included, high included) ---------------------------------------------------------------------
MINUS_OO, OO = ("neg", ("const", "oo")), ("const", "oo")


def by_real_set(p, g):
    """Intervals, unions, points and inequalities in one unknown describe sets of real numbers."""
    kinds = ("cup", "minus", "rel")
    if not any(tree[0] in kinds or tree == ("sym", "set R") for tree in (p, g)):
        return None
    left, right = pieces(p), pieces(g)
    if left is None or right is None:
        return None
    if {p[0], g[0]} <= {"rel"} and unknowns(p) != unknowns(g):
        return False
    left, right = merged(left), merged(right)
    return len(left) == len(right) and all(a[2:] == b[2:] and same(a[0], b[0]) and same(a[1], b[1]) for a, b in zip(left, right))


def pieces(tree):
    """The pieces of a set, or None of a tree that is none."""
    kind = tree[0]
    if tree == ("sym", "set R"):
        return [(MINUS_OO, OO, False, False)]
    if kind == "seq" and len(tree) == 4 and position(tree[2]) is not None and position(tree[3]) is not None:
        return [(tree[2], tree[3], tree[1][0] == "[", tree[1][1] == "]")] if position(tree[2]) < position(tree[3]) else None
    if kind == "set":
        return None if any(position(point) is None for point in tree[1:]) else [(point, point, True, True) for point in tree[1:]]
    if kind == "cup":
        left, right = pieces(tree[1]), pieces(tree[2])
        return None if left is None or right is None else left + right
    if kind == "minus" and tree[2][0] == "set":
        points, left = pieces(tree[2]), pieces(tree[1])
        return None if points is None or left is None else without(left, points)
    return relation_pieces(tree) if kind == "rel" else None


def without(kept, points):
    for point, *_ in points:
        inside = lambda piece: position(piece[0]) < position(point) < position(piece[1])
        kept = [cut for piece in kept for cut in ([(piece[0], point, piece[2], False), (point, piece[1], False, piece[3])] if inside(piece) else [piece])]
    return kept


def relation_pieces(tree):
    """a < x <= b, x > a, x != a, and the same written backwards."""
    signs, sides = tree[1], tree[2:]
    if signs == ("in",):
        return pieces(sides[1]) if is_name(sides[0]) else None
    if set(signs) <= {">", ">="}:
        signs, sides = tuple(sign.replace(">", "<") for sign in signs[::-1]), sides[::-1]
    ends = [side for side in sides if side[0] != "sym"]
    if len(ends) != len(sides) - 1 or any(position(end) is None for end in ends):
        return None
    if signs == ("!=",):
        return [(MINUS_OO, ends[0], False, False), (ends[0], OO, False, False)]
    if not set(signs) <= {"<", "<="}:
        return None
    if len(sides) == 2:
        return [(MINUS_OO, ends[0], False, signs[0] == "<=")] if sides[0][0] == "sym" else [(ends[0], OO, signs[0] == "<=", False)]
    between = len(sides) == 3 and sides[1][0] == "sym" and position(ends[0]) < position(ends[1])
    return [(*ends, signs[0] == "<=", signs[1] == "<=")] if between else None


def merged(parts_of_set) -> list:
    """Pieces from left to right; those that overlap or touch are one."""
    done = []
    for piece in sorted(parts_of_set, key=lambda piece: (position(piece[0]), not piece[2])):
        low, high, closed, end = piece
        if done and (position(low) < position(done[-1][1]) or position(low) == position(done[-1][1]) and (closed or done[-1][3])):
            last = done.pop()
            high, end = max((last[1], last[3]), (high, end), key=lambda bound: (position(bound[0]), bound[1]))
            low, closed = last[0], last[2]
        done.append((low, high, closed, end))
    return done


def position(tree) -> float | None:
    """Where a constant lies on the real line, to the digits of a float; None if it does not."""
    if tree in (OO, MINUS_OO):
        return math.inf if tree == OO else -math.inf
    if unknowns(tree):
        return None
    try:
        real, imaginary = value(tree, {}, PRECISION)
    except Undefined:
        return None
    return operations().libmp.to_float(real) if imaginary == operations().libmp.fzero else None


# Equations and inequalities --------------------------------------------------------------------------------------------------------------
def by_relation(p, g):
    """Every relation of a chain has its equal in the other: the sides' differences are in a constant ratio, positive if there is a direction."""
    if p[0] != "rel" or g[0] != "rel":
        return False if "rel" in (p[0], g[0]) else None
    left, right = ([(sign, *pair) for sign, pair in zip(tree[1], itertools.pairwise(tree[2:]))] for tree in (p, g))
    return len(left) == len(right) and all(any(one_relation(a, b) for b in right) for a in left) and all(any(one_relation(a, b) for a in left) for b in right)


def one_relation(a, b) -> bool:
    if "in" in (a[0], b[0]):
        return a == b
    a, b = ((sign.replace(">", "<"), right, left) if ">" in sign else (sign, left, right) for sign, left, right in (a, b))
    if a[0] != b[0]:
        return False
    first, second = ("+", a[1], ("neg", a[2])), ("+", b[1], ("neg", b[2]))
    return unknowns(first) == unknowns(second) != frozenset() and constant_ratio(first, second, positive="<" in a[0])


def constant_ratio(first, second, positive: bool) -> bool:
    """Whether first / second is the same number wherever both are defined."""
    m, ratios = operations().libmp, []
    for at in points(first, second):
        with suppress(Undefined, ZeroDivisionError):
            ratios.append(m.mpc_div(value(first, at, PRECISION), value(second, at, PRECISION), PRECISION, "n"))
    same_ratio = ratios and all(size(m.mpc_sub(ratio, ratios[0], PRECISION, "n")) < size(ratios[0]) - 100 for ratio in ratios)
    return bool(same_ratio) and size(ratios[0]) > -(10**20) and (not positive or ratios[0][0][0] == 0)


# Values ----------------------------------------------------------------------------------------------------------------------------------
class Undefined(ArithmeticError):
    """The expression has no value here, or none that this module computes."""


def by_value(p, g) -> bool:
    """Two expressions: exactly if both are rational, else by their values at random points."""
    if unknowns(p) != unknowns(g):
        return False
    a, b = exact(p), exact(g)
    if a is not None and b is not None:
        return a == b or not terminates(b) and six_digits(p, a, b) or not terminates(a) and six_digits(g, b, a)
    compared = False
    for at in points(p, g):
        verdict = equal_at(p, g, at)
        if verdict is False:
            return False
        compared = compared or verdict
    return bool(compared)


def six_digits(tree, a: Fraction, b: Fraction) -> bool:
    """Whether a, the value of a tree with decimals, agrees with b in its first six digits, rounded or cut off."""
    if digits(tree) < 6 or b == 0:
        return False
    scale = Fraction(10) ** (5 - math.floor(math.log10(abs(b))))
    return round(a * scale) in (round(b * scale), math.trunc(b * scale))


def terminates(a: Fraction) -> bool:
    """Whether a can be written as a decimal; then it must be."""
    return 10 ** a.denominator.bit_length() % a.denominator == 0


def digits(tree) -> int:
    """Significant digits of the longest decimal in a tree; 0 without any."""
    if tree[0] == "num":
        return tree[2]
    return max((digits(part) for part in tree if isinstance(part, tuple)), default=0)


@functools.lru_cache(maxsize=512)
def unknowns(tree) -> frozenset:
    if tree[0] == "sym":
        return frozenset((tree[1],))
    return frozenset().union(*(unknowns(part) for part in tree if isinstance(part, tuple)))


def points(p, g):
    """Three points of positive numbers, then three of any sign, where roots and logarithms may be undefined: {unknown: Fraction}."""
    names, draw = sorted(unknowns(p)), random.Random(repr(g))
    for k in range(6 if names else 1):
        yield {name: Fraction(draw.randrange(200, 3000), 1000) * (draw.choice((-1, 1)) if k > 2 else 1) for name in names}


def exact(tree) -> Fraction | None:
    """The value of a rational expression; None of any other."""
    kind = tree[0]
    if kind == "num":
        return tree[1]
    if kind not in EXACT:
        return None
    arguments = [exact(part) for part in tree[1:]]
    try:
        return None if None in arguments else EXACT[kind](*arguments)
    except ZeroDivisionError:
        return None


def exact_power(a: Fraction, n: Fraction):
    size = max(a.numerator.bit_length(), a.denominator.bit_length())
    return a**n.numerator if n.denominator == 1 and size * abs(n) < 4 * SLOW_BITS else None


def exact_factorial(n: Fraction):
    return Fraction(math.factorial(n.numerator)) if n.denominator == 1 and 0 <= n < 3000 else None


def exact_binomial(n: Fraction, k: Fraction):
    return Fraction(math.comb(n.numerator, k.numerator)) if n.denominator == k.denominator == 1 and 0 <= k and 0 <= n < 3000 else None


EXACT = {
    "+": lambda *terms: sum(terms), "*": lambda *factors: math.prod(factors), "/": lambda a, b: a / b, "neg": lambda a: -a, "^": exact_power, "abs": abs,
    "!": exact_factorial, "binom": exact_binomial, "pct": lambda a: a / 100, "floor": lambda a: Fraction(math.floor(a)), "ceil": lambda a: Fraction(math.ceil(a)),
    "max": lambda *values: max(values), "min": lambda *values: min(values),
}  # fmt: skip


@functools.cache
def operations():
    """mpmath's functions on pairs (real, imaginary) at a given precision. They keep no state, so any thread may use them."""
    from mpmath import libmp as m

    real = lambda f: lambda z, prec: (f(z[0], prec, "n"), m.fzero) if z[1] == m.fzero else undefined()
    over = lambda f: lambda z, prec: m.mpc_div(m.mpc_one, f(z, prec + 10), prec, "n")
    table = {name: lambda z, prec, f=getattr(m, f"mpc_{name}"): f(z, prec, "n") for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh", "exp")}
    table |= {f"arc{name}": lambda z, prec, f=getattr(m, f"mpc_a{name}"): f(z, prec, "n") for name in ("sin", "cos", "tan")}
    table |= {"sec": over(table["cos"]), "csc": over(table["sin"]), "cot": over(table["tan"]), "ln": lambda z, prec: m.mpc_log(z, prec, "n")}
    table |= {"neg": lambda z, prec: m.mpc_neg(z, prec, "n"), "abs": lambda z, prec: (m.mpc_abs(z, prec, "n"), m.fzero)}
    table |= {"floor": real(m.mpf_floor), "ceil": real(m.mpf_ceil), "!": lambda z, prec: m.mpc_factorial(z, prec, "n")}
    table |= {"deg": lambda z, prec: m.mpc_mul_mpf(z, m.mpf_div(m.mpf_pi(prec + 10), m.from_int(180), prec + 10), prec, "n")}
    table |= {"pct": lambda z, prec: m.mpc_mul_mpf(z, m.from_rational(1, 100, prec), prec, "n")}
    constants = {"pi": lambda prec: (m.mpf_pi(prec), m.fzero), "e": lambda prec: (m.mpf_e(prec), m.fzero), "i": lambda prec: (m.fzero, m.fone)}
    return SimpleNamespace(libmp=m, functions=table, constants=constants)


def undefined():
    raise Undefined


def value(tree, at: dict, prec: int):
    """The value, an mpmath pair (real, imaginary), with the unknowns `at` these places."""
    kind, ops = tree[0], operations()
    m = ops.libmp
    if kind in ("num", "sym"):
        x = tree[1] if kind == "num" else at[tree[1]]
        return m.from_rational(x.numerator, x.denominator, prec, "n"), m.fzero
    if kind == "const" and tree[1] in ops.constants:
        return ops.constants[tree[1]](prec)
    if kind not in ops.functions and kind not in ("+", "*", "/", "^", "root", "binom"):
        raise Undefined(kind)
    arguments = [value(part, at, prec) for part in tree[1:]]
    try:
        result = ops.functions[kind](*arguments, prec) if kind in ops.functions else combined(kind, arguments, prec, m)
    except (ZeroDivisionError, ValueError):  # 1/0, ln 0, (-1)!
        raise Undefined from None
    if any(part[1] == 0 and part[2] != 0 for part in result):  # an infinity, or not a number
        raise Undefined
    return result


def combined(kind: str, arguments: list, prec: int, m):
    if kind in ("+", "*"):
        return functools.reduce(lambda a, b: (m.mpc_add if kind == "+" else m.mpc_mul)(a, b, prec, "n"), arguments)
    first, second = arguments
    if kind == "binom":
        below = m.mpc_mul(m.mpc_factorial(second, prec, "n"), m.mpc_factorial(m.mpc_sub(first, second, prec, "n"), prec, "n"), prec, "n")
        return m.mpc_div(m.mpc_factorial(first, prec, "n"), below, prec, "n")
    if kind == "root":
        odd_real = first[0][0] and first[1] == second[1] == m.fzero and second[0][2] == 0 and second[0][1] & 1  # the real root of a negative number
        root = m.mpc_pow((m.mpf_abs(first[0]), m.fzero) if odd_real else first, m.mpc_div(m.mpc_one, second, prec + 10, "n"), prec, "n")
        return m.mpc_neg(root) if odd_real else root
    return (m.mpc_div if kind == "/" else m.mpc_pow)(first, second, prec, "n")


def equal_at(p, g, at: dict) -> bool | None:
    """Whether two expressions agree at a point; None where they cannot be compared: undefined, or not real at a point with negative numbers."""
    try:
        a, b = value(p, at, PRECISION), value(g, at, PRECISION)
    except Undefined:
        return None
    m = operations().libmp
    real = a[1] == b[1] == m.fzero
    if not real and min(at.values(), default=1) < 0:
        return None
    difference = size(m.mpc_sub(a, b, PRECISION, "n"))
    if max(digits(p), digits(g)) >= 6:
        fractions = [Fraction(*m.to_rational(z[0])) for z in (a, b)]
        return difference < max(size(a), size(b)) - 18 if at or not real else six_digits(p, *fractions) or six_digits(g, *fractions[::-1])
    return difference < max(size(a), size(b)) - 100 or difference < -50 and vanishes(("+", p, ("neg", g)), at)


def size(z) -> int:
    """Exponent of two just above |z|; far below all others for 0."""
    return max(part[2] + part[3] if part[1] else -(10**30) for part in z)


def vanishes(tree, at: dict) -> bool:
    """Whether what is left of a difference is rounding: it shrinks with the precision, however small the numbers are."""
    return size(value(tree, at, 3 * PRECISION)) < size(value(tree, at, PRECISION)) - PRECISION


# The verdict, and the process that may be killed -----------------------------------------------------------------------------------------
NUMBER = re.compile(r"-?(\d{1,40}|\d{1,3}(,\d{3}){1,12})(\.\d{1,40}|/0*[1-9]\d{0,39})?")


def equivalent(prediction: str, gold: str, deadline: float = 1.0) -> bool:
    """Whether two answers say the same. Never raises; False where it takes more than `deadline` seconds to tell."""
    if not prediction.strip() or max(len(prediction), len(gold)) > MAX_CHARS:
        return bool(prediction.strip()) and prediction.strip() == gold.strip()
    p, g = tidy(prediction), tidy(gold)
    if compact(p) == compact(g):
        return bool(p)
    if NUMBER.fullmatch(p) and NUMBER.fullmatch(g) and "/" not in g and "/" not in p:
        return Fraction(p.replace(",", "")) == Fraction(g.replace(",", ""))
    try:
        left, right = parse(p), parse(g)
        if slow(left) or slow(right):
            return left == right or WORKER.ask(prediction, gold, deadline)
        return same(left, right)
    except (Unparsable, Undefined, RecursionError, OverflowError, MemoryError):
        return False


def compact(text: str) -> str:
    """The text without spaces, but "1 2" is not 12; words without regard to case and \\text{}."""
    text = re.sub(r"(?<!\d) | (?!\d)", "", WRAPPED.sub(r" \2 ", text))
    return text.casefold() if len(text) > 1 and re.fullmatch(r"[a-zA-Z']+", text) else text


def slow(tree) -> bool:
    return count(tree) > SLOW_NODES or bits(tree) > SLOW_BITS


def bits(tree) -> float:
    """About how many binary digits the largest number met on the way has, at most."""
    if tree[0] == "num":
        return max(tree[1].numerator.bit_length(), tree[1].denominator.bit_length())
    inner = [bits(part) for part in tree if isinstance(part, tuple)] or [2]
    if tree[0] == "^":
        return inner[0] * 2.0 ** min(inner[-1], 500)
    if tree[0] in ("!", "exp", "sinh", "cosh", "tanh", "binom"):
        return inner[0] * 2.0 ** min(inner[0], 500)
    return sum(inner) if tree[0] in ("*", "/") else max(inner)


class Worker:
    """A small Python process that compares pairs and is killed when it takes too long. It starts with the first slow pair."""

    def __init__(self):
        self.lock, self.process, self.owner = threading.Lock(), None, None

    def ask(self, prediction: str, gold: str, deadline: float) -> bool:
        request = json.dumps([prediction, gold, deadline]).encode() + b"\n"
        with self.lock:
            try:
                if self.process is None or self.owner != os.getpid() or self.process.poll() is not None:
                    self.start()
                self.process.stdin.write(request)
                answer = self.read(deadline)
            except OSError:
                answer = b""
            if answer not in (b"0", b"1"):
                self.stop()
        return answer == b"1"

    def start(self):
        """The process announces itself when it has imported what it needs, so that the deadline is the comparison's alone."""
        command = [sys.executable, "-c", "from nanotir.answers import serve; serve()"]
        self.process = subprocess.Popen(command, cwd=Path(__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0)
        self.owner = os.getpid()
        atexit.register(self.stop)
        self.read(30.0)

    def read(self, seconds: float) -> bytes:
        """The next byte, or none in time."""
        ready = select.select([self.process.stdout], [], [], seconds)[0]
        return self.process.stdout.read(1) if ready else b""

    def stop(self):
        atexit.unregister(self.stop)
        process, self.process = self.process, None
        if process is not None and self.owner == os.getpid():
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()


WORKER = Worker()


def serve():
    """The worker: a pair a line, one byte back. It ends with its input, and by its limits of time and memory if its parent has died meanwhile."""
    import resource

    operations()
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
    os.write(1, b"?")
    for line in sys.stdin:
        prediction, gold, deadline = json.loads(line)
        used = time.process_time()
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(used + deadline) + 1, resource.RLIM_INFINITY))
        try:
            verdict = same(parse(tidy(prediction)), parse(tidy(gold)))
        except (Unparsable, Undefined, RecursionError, OverflowError, MemoryError):
            verdict = False
        os.write(1, b"1" if verdict else b"0")
