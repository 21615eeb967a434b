"""Short texts are read and compared in the caller: none may take many steps there."""

import random
import sys

import pytest

from nanotir.answers import equivalent, values, verdict

LEAVES = ["9", "x", "e", "i", "\\pi", "0.5", "1e999", "9e-999", "9" * 40, "1/3", "0.(3)", "1,000"]
LEAVES += ["½", "٣", "９９", "²", "ⅷ", "㎏", "ﷺ", "∞", "7 cm", "50\\%", "\\pm 1", "\\text{a b}"]
ONE = [
    "({})!",
    "{{{}}}!",
    "\\sin({})",
    "\\exp({})",
    "\\tanh({})",
    "\\ln({})",
    "|{}|",
    "-{}",
    "f({})",
]
ONE += ["\\lfloor {}\\rfloor", "\\sqrt{{{}}}", "\\pm {}", "\\{{{}\\}}", "{}^\\circ", "\\text{{{}}}"]
ONE += ["x^{{{}}}", "9^{{{}}}", "10^{{-{}}}", "({})^{{99}}", "[{}]", "x < {}", "x = {}", "\\mp({})"]
TWO = ["{{{}}}^{{{}}}", "{}^{}", "\\frac{{{}}}{{{}}}", "\\binom{{{}}}{{{}}}", "\\log_{{{}}}{{{}}}"]
TWO += [
    "{}+{}",
    "{}{}",
    "{}/{}",
    "{},{}",
    "[{},{})",
    "{} \\cup {}",
    "\\gcd({},{})",
    "{{{} \\over {}}}",
]
RUNS = [
    "(",
    "{",
    "\\{",
    "|",
    "\\sqrt{",
    "\\frac{",
    "2^{",
    "9^",
    "i^",
    "!",
    "99!^",
    "-",
    "\\sin ",
    "1,",
]
RUNS += [
    "\\text{",
    "\\boxed{",
    "½",
    "x²",
    "\\log_",
    "{1\\over ",
    "9.",
    "1 ",
    "e^{",
    "x<",
    "0.(",
    "'",
]


def nested(draw: random.Random, depth: int) -> str:
    """Powers of fractions of factorials and the like."""
    if depth <= 0:
        return draw.choice(LEAVES)
    inner = nested(draw, depth - 1)
    if draw.random() < 0.6:
        return draw.choice(ONE).format(inner)
    return draw.choice(TWO).format(*draw.sample([inner, nested(draw, depth - 3)], 2))


def repeated(draw: random.Random) -> str:
    """A piece many times, closed or not."""
    piece = draw.choice(RUNS)
    count = draw.randrange(1, 300 // len(piece))
    close = {"(": ")", "{": "}"}.get(piece[-1], "")
    return piece * count + draw.choice(LEAVES) + close * draw.choice((0, count))


def calls_of(function, *arguments) -> int:
    """How many functions of Python and of C are called, whatever the machine."""
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        function(*arguments)
    finally:
        sys.setprofile(None)
    return calls


def test_no_short_text_takes_many_steps_in_the_caller(monkeypatch):
    monkeypatch.setattr(verdict, "decide_in_time", lambda *pair: False)
    draw = random.Random(0)
    for k in range(500):
        text = nested(draw, draw.randrange(2, 10)) if k % 10 else repeated(draw)
        text = text[: verdict.CHARS_HERE]
        other = draw.choice([f"{text}+0", "7", f"({text})", text.replace("9", "8")])
        assert calls_of(equivalent, text, other[: verdict.CHARS_HERE]) < 1_000_000, (text, other)


@pytest.mark.parametrize("text", ["\\lfloor\\exp(e)!\\rfloor", "2^{3000000}", "\\sin(10^{10^5})"])
def test_work_is_counted_before_it_is_done(monkeypatch, text):
    left = []
    monkeypatch.setattr(verdict, "decide_in_time", lambda *pair: left.append(values.LEFT.get()))
    equivalent(f"{text}+1", text)
    assert left and left[0] < 0
