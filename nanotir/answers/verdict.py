"""`equivalent`: equal text, equal numbers, equal trees, and only then mathematics, by a process of its own where that might take long."""

from __future__ import annotations

import atexit
import json
import math
import os
import re
import select
import subprocess
import sys
import threading
import time
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

from nanotir.answers.compare import count, same
from nanotir.answers.parser import parse
from nanotir.answers.tokens import WRAPPED, Unparsable, tidy
from nanotir.answers.values import Undefined, operations

MAX_CHARS = 2000  # longer answers are compared as text only
SLOW_BITS, SLOW_NODES = 50_000, 150  # from here on a pair is the worker's
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
        return left == right or (
            if_slow() if if_slow and (slow(left) or slow(right)) else same(left, right)
        )
    except (Unparsable, Undefined, RecursionError, OverflowError, MemoryError):
        return False


def compact(text: str) -> str:
    """The text without spaces, but "1 2" is not 12; words without regard to case and \\text{}."""
    text = re.sub(
        r"([\^_]|\\[a-zA-Z]+)\{(\w)\}(?!\w)",
        r"\1\2",
        re.sub(r"(?<!\d) | (?!\d)", "", WRAPPED.sub(r" \2 ", text)),
    )
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
        command = [sys.executable, "-c", "from nanotir.answers.verdict import serve; serve()"]
        pipes = dict(
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        self.process = subprocess.Popen(command, cwd=Path(__file__).parents[2], **pipes)
        atexit.register(self.stop)
        self.read(30.0)

    def read(self, seconds: float) -> bytes:
        """The next byte, or none if it does not come in time."""
        return (
            self.process.stdout.read(1)
            if select.select([self.process.stdout], [], [], seconds)[0]
            else b""
        )

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
        resource.setrlimit(
            resource.RLIMIT_CPU,
            (math.ceil(time.process_time() + deadline) + 1, resource.RLIM_INFINITY),
        )
        os.write(1, b"1" if decide(p, g) else b"0")
