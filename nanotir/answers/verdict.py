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
from nanotir.answers.text import UNITS, normalise
from nanotir.answers.trees import Unreadable
from nanotir.answers.values import LEFT, TooMuch

MAX_CHARS, CHARS_HERE = 2000, 300  # longer: compared as text only, or read in a process
WORK = 1e8  # what may be done here for each second of the deadline: see values.spend
NUMBER = re.compile(r"-?([0-9]{1,40}|[0-9]{1,3}(,[0-9]{3}){1,12})(\.[0-9]{1,12})?")
ROOT = str(Path(__file__).parents[2])
FIND = f"import sys; sys.path.insert(0, {ROOT!r})"  # PYTHONSAFEPATH takes the folder itself away
SERVE = f"{FIND}; from nanotir.answers import verdict; verdict.serve()"


def equivalent(prediction: str, gold: str, deadline: float = 1.0) -> bool:
    """Whether two answers say the same: no if it takes too many seconds to tell. Never raises.

    No answer is never right. Beyond MAX_CHARS characters, texts are compared. Up to CHARS_HERE, and
    if it takes little work, it is decided here, and otherwise in another process.
    """
    prediction, gold = prediction.strip(), gold.strip()
    longest = max(len(prediction), len(gold))
    if prediction == gold or not prediction or longest > MAX_CHARS:
        return prediction == gold != ""
    if NUMBER.fullmatch(prediction) and NUMBER.fullmatch(gold):
        return Fraction(prediction.replace(",", "")) == Fraction(gold.replace(",", ""))
    verdict = decide(prediction, gold, WORK * deadline) if longest <= CHARS_HERE else None
    return decide_in_time(prediction, gold, deadline) if verdict is None else verdict


def decide(prediction: str, gold: str, work: float = math.inf) -> bool | None:
    """Whether two answers are one; None if it may take more work to tell."""
    p, g = normalise(prediction), normalise(gold)
    LEFT.set(work)
    try:
        return same(parse(p), parse(g))
    except TooMuch:
        return None
    except Unreadable:
        left, right = map(in_plain_words, (p, g))
        is_words = left.replace(" ", "").isalnum()  # they may differ in capitals
        return left == right != "" or is_words and left.casefold() == right.casefold()
    except (ArithmeticError, RecursionError, MemoryError, ValueError):  # also of too many digits
        return False


def in_plain_words(text: str) -> str:
    """What cannot be read, one way to write measures: 1 hour 30 minute for 1 hour and 30 min."""
    text = re.sub(r"(?<=[a-z]{2})(,| and)(?= \d)", "", text.replace('"', " "))
    return " ".join(UNITS.get(word.lower(), word) for word in text.split())


def decide_in_time(prediction: str, gold: str, deadline: float) -> bool:
    """Decide in another process, and kill it when it takes too long."""
    command = [sys.executable, "-c", SERVE, json.dumps([prediction, gold, deadline])]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=ROOT, bufsize=0, **pipes) as process:
        try:
            # It says when it has started: the deadline is for the comparison alone.
            for expected, seconds in ((b"?", 30.0), (b"1", deadline)):
                ready, _, _ = select.select([process.stdout], [], [], seconds)
                if not ready or process.stdout.read(1) != expected:
                    return False
            return True
        finally:
            process.kill()


def serve():
    """Read a pair, and write one byte. If our parent is killed, a limit of time ends us."""
    import resource

    os.write(1, b"?")
    prediction, gold, deadline = json.loads(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(deadline) + 2, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
    os.write(1, b"1" if decide(prediction, gold) else b"0")
