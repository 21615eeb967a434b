"""`equivalent`: equal text, equal numbers, equal trees, and only then mathematics."""

import os
import re
from fractions import Fraction

from nanotir.answers.compare import same
from nanotir.answers.parser import parse
from nanotir.answers.tokens import WRAPPED, tidy
from nanotir.answers.trees import Unparsable, walk
from nanotir.answers.worker import own_worker

MAX_CHARS = 2000  # longer answers are compared as text only
SLOW_BITS, SLOW_NODES = 50_000, 150  # beyond these a pair is the worker's
NUMBER = re.compile(r"-?(\d{1,40}|\d{1,3}(,\d{3}){1,12})(\.\d{1,12})?")


def equivalent(prediction: str, gold: str, deadline: float = 1.0) -> bool:
    """Whether two answers say the same. Never raises.

    An answer is different if it takes more than `deadline` seconds to tell.
    """
    prediction, gold = prediction.strip(), gold.strip()
    if prediction == gold:
        return gold != ""
    if not prediction or max(len(prediction), len(gold)) > MAX_CHARS:
        return False
    if NUMBER.fullmatch(prediction) and NUMBER.fullmatch(gold):
        return Fraction(prediction.replace(",", "")) == Fraction(gold.replace(",", ""))
    p, g = tidy(prediction), tidy(gold)
    return compact(p) == compact(g) != "" or decide(p, g, deadline)


def compact(text: str) -> str:
    """Return the text without spaces and \\text{}, but "1 2" is not 12; words in lower case."""
    text = re.sub(r"(?<!\d) | (?!\d)", "", WRAPPED.sub(r" \2 ", text))
    text = re.sub(r"([\^_]|\\[a-zA-Z]+)\{(\w)\}(?!\w)", r"\1\2", text)
    return text.casefold() if len(text) > 1 and re.fullmatch("[a-zA-Z']+", text) else text


def decide(p: str, g: str, deadline: float | None = None) -> bool:
    """Whether two tidy texts are one answer. With a deadline, slow pairs are left to the worker."""
    try:
        left, right = parse(p), parse(g)
        if left == right:
            return True
        if deadline is not None and (slow(left) or slow(right)):
            return own_worker(os.getpid()).ask(p, g, deadline)
        return same(left, right)
    except (Unparsable, ArithmeticError, RecursionError, MemoryError):
        return False


def slow(tree: tuple) -> bool:
    return sum(1 for _ in walk(tree)) > SLOW_NODES or bits(tree) > SLOW_BITS


def bits(tree: tuple) -> float:
    """Return about how many bits the largest number met on the way has, at most."""
    kind = tree[0]
    if kind == "num":
        return max(tree[1].numerator.bit_length(), tree[1].denominator.bit_length())
    inner = [bits(part) for part in tree if isinstance(part, tuple)] or [2]
    if kind == "^":
        return inner[0] * 2.0 ** min(inner[-1], 500)
    if kind in ("!", "exp", "sinh", "cosh", "tanh", "binom"):
        return inner[0] * 2.0 ** min(inner[0], 500)
    return sum(inner) if kind in ("*", "/") else max(inner)
