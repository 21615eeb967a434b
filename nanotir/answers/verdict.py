"""`equivalent`: equal text, equal numbers, equal trees, and only then mathematics."""

import json
import math
import os
import re
import select
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

from nanotir.answers.compare import same
from nanotir.answers.parser import parse
from nanotir.answers.text import normalise
from nanotir.answers.trees import Unreadable, walk
from nanotir.answers.values import separation, size

MAX_CHARS = 2000  # longer answers are compared as text only
SLOW_BITS, SLOW_NODES = 30_000, 150  # pairs beyond these have a process of their own
NUMBER = re.compile(r"-?([0-9]{1,40}|[0-9]{1,3}(,[0-9]{3}){1,12})(\.[0-9]{1,12})?")
MAX_START = 30.0  # seconds
SERVE = "from nanotir.answers import verdict; verdict.serve()"


def equivalent(prediction: str, gold: str, deadline: float = 1.0) -> bool:
    """Whether two answers say the same: no if it takes too many seconds to tell. Never raises."""
    prediction, gold = prediction.strip(), gold.strip()
    if prediction == gold:
        return gold != ""
    if not prediction or max(len(prediction), len(gold)) > MAX_CHARS:
        return False
    if NUMBER.fullmatch(prediction) and NUMBER.fullmatch(gold):
        return Fraction(prediction.replace(",", "")) == Fraction(gold.replace(",", ""))
    return decide(prediction, gold, deadline)


def decide(prediction: str, gold: str, deadline: float | None = None) -> bool:
    """Whether two answers are one. With a deadline, slow pairs are left to a process."""
    p, g = normalise(prediction), normalise(gold)
    try:
        left, right = parse(p), parse(g)
        if left == right:
            return True
        if deadline is not None and (slow(left) or slow(right)):
            return decide_in_time(prediction, gold, deadline)
        return same(left, right)
    except Unreadable:
        # Words may differ in capitals.
        left, right = (" ".join(text.replace('"', " ").split()) for text in (p, g))
        is_words = left.replace(" ", "").isalnum()
        return left == right != "" or is_words and left.casefold() == right.casefold()
    except (ArithmeticError, RecursionError, MemoryError):
        return False


def slow(tree: tuple) -> bool:
    is_large = sum(1 for _ in walk(tree)) > SLOW_NODES or size(tree, {}) > SLOW_BITS
    return is_large or separation(tree, {}) > SLOW_BITS


def decide_in_time(prediction: str, gold: str, deadline: float) -> bool:
    """Decide in another process, and kill it when it takes too long."""
    command = [sys.executable, "-c", SERVE]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, bufsize=0, **pipes) as process:
        try:
            # It says when it has started: the deadline is for the comparison alone.
            process.stdin.write(json.dumps([prediction, gold, deadline]).encode() + b"\n")
            for expected, seconds in ((b"?", MAX_START), (b"1", deadline)):
                ready, _, _ = select.select([process.stdout], [], [], seconds)
                if not ready or process.stdout.read(1) != expected:
                    return False
            return True
        except OSError:  # it has died
            return False
        finally:
            process.kill()


def serve():
    """Read a pair, and write one byte. If our parent is killed, a limit of time ends us."""
    import resource

    os.write(1, b"?")
    prediction, gold, deadline = json.loads(sys.stdin.readline())
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(deadline) + 2, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
    os.write(1, b"1" if decide(prediction, gold) else b"0")
