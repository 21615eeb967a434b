"""Find the final answer in what a model wrote, and decide whether two answers are equal."""
from __future__ import annotations

import re
from fractions import Fraction


def extract_answer(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        match = re.findall(r"(?:answer is|####)\s*(.+)", text)
        return match[-1].strip().rstrip(".") if match else None
    depth, begin = 0, start + len("\\boxed{")
    for i in range(begin, len(text)):
        if text[i] == "{":
            depth += 1
        elif text[i] == "}":
            if depth == 0:
                return text[begin:i]
            depth -= 1
    return None


def equivalent(prediction: str, gold: str) -> bool:
    """Whether two answers say the same: equal text, spaces aside, or equal numbers. Never raises, never hangs."""
    a, b = (re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text.strip()) for text in (prediction, gold))  # "1 2" is not 12
    return a == b or (number(a) is not None and number(a) == number(b))


NUMBER = re.compile(r"-?(\d{1,40}|\d{1,3}(,\d{3}){1,12})(\.\d{1,40}|/0*[1-9]\d{0,39})?")  # bounded, and no exponent: nothing here takes long


def number(text: str) -> Fraction | None:
    """The value of 12, -1,234.5 or 3/4; None for anything else. A comma is part of a number only before three digits: "1, 2" is two."""
    return Fraction(text.replace(",", "")) if NUMBER.fullmatch(text) else None
