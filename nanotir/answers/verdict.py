"""`equivalent`: equal text, equal numbers, equal trees, and only then mathematics."""

import os
import re
from fractions import Fraction

from nanotir.answers.compare import same
from nanotir.answers.parser import parse
from nanotir.answers.text import normalise
from nanotir.answers.trees import Unreadable, walk
from nanotir.answers.values import separation
from nanotir.answers.worker import own_worker

MAX_CHARS = 2000  # longer answers are compared as text only
SLOW_CHARS, SLOW_BITS, SLOW_NODES = 400, 20_000, 150  # pairs beyond these are the worker's
NUMBER = re.compile(r"-?([0-9]{1,40}|[0-9]{1,3}(,[0-9]{3}){1,12})(\.[0-9]{1,12})?")


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
    if len(prediction) + len(gold) > SLOW_CHARS:
        return own_worker(os.getpid()).ask(prediction, gold, deadline)
    return decide(prediction, gold, deadline)


def decide(prediction: str, gold: str, deadline: float | None = None) -> bool:
    """Whether two answers are one. With a deadline, slow pairs are left to the worker."""
    p, g = normalise(prediction), normalise(gold)
    try:
        left, right = parse(p), parse(g)
        if left == right:
            return True
        if deadline is not None and (slow(left) or slow(right)):
            return own_worker(os.getpid()).ask(prediction, gold, deadline)
        return same(left, right)
    except Unreadable:
        # Words may differ in capitals.
        left, right = (" ".join(text.replace('"', " ").split()) for text in (p, g))
        is_words = left.replace(" ", "").isalpha()
        return left == right != "" or is_words and left.casefold() == right.casefold()
    except (ArithmeticError, RecursionError, MemoryError):
        return False


def slow(tree: tuple) -> bool:
    return sum(1 for _ in walk(tree)) > SLOW_NODES or sum(separation(tree, {})) > SLOW_BITS
