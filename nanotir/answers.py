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
    a, b = prediction.strip().replace(" ", ""), gold.strip().replace(" ", "")
    if a == b:
        return True
    try:
        return Fraction(a.replace(",", "")) == Fraction(b.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return False
