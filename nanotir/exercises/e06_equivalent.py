"""Exercise 6: whether two answers say the same."""

from __future__ import annotations

import random
from fractions import Fraction
from types import SimpleNamespace

from nanotir.answers import verdict
from nanotir.exercises.exercise import Case, Exercise, Mistake
from nanotir.exercises.stub import plugged

LONG = "+".join(["1"] * 1000)  # 1,999 characters
PAIRS = {
    "a fraction and a decimal": ("1/2", "0.5"),
    "a part of the known one": ("12", "112"),
    "the known one in a longer one": ("112", "12"),
    "a number at the end": ("x + 5", "5"),
    "the same text": ("x + 1", "x + 1"),
    "the same signs, which are no mathematics": ("$", "$"),
    "spaces around it": ("  7/2 ", "3.5"),
    "spaces around the known one": ("7", "\n7\n"),
    "no answer": ("", "7"),
    "no answer but a space": (" ", "x"),
    "nothing is known": ("", ""),
    "spaces alone": ("  ", "  "),
    "LaTeX": ("\\frac{3}{4}", "0.75"),
    "zeros behind the point": ("2.50", "2.5"),
    "commas between thousands": ("12,345", "12345"),
    "commas in the known one": ("1234567", "1,234,567"),
    "different thousands": ("1,234", "1,235"),
    "commas and a point": ("-1,000.50", "-1000.5"),
    "a sign": ("-3", "3"),
    "a sum for a number": ("5", "2 + 3"),
    "a base that the question has named": ("1011", "1011_2"),
    "a base that it has not": ("1011_2", "1011"),
    "about a third": ("0.33", "1/3"),
    "nearly 1": ("0.999", "1"),
    "nearly equal decimals": ("0.3000001", "0.3"),
    "numbers too large for a float": ("12345678901234567891", "12345678901234567890"),
    "a sum": ("2 + 3", "5"),
    "two unknowns": ("a + b", "b + a"),
    "an unknown's capital": ("X", "x"),
    "words": ("Monday", "monday"),
    "a program": ("(lambda: 7)()", "7"),
    "a set in another order": ("\\{2, 1\\}", "\\{1, 2\\}"),
    "a pair in another order": ("(2, 1)", "(1, 2)"),
    "longer than 2,000 characters, and equal": (LONG + "+10", LONG + "+10"),
    "2,000 characters": (LONG[:-1] + "01", "1000"),
    "the known one longer than 2,000 characters": ("1000", LONG[:-1] + "001"),
    "longer than 2,000 characters": (LONG[:-1] + "001", "1000"),
    "decimals of many digits": ("1234567890123456.12", "1234567890123456.1"),
    "300 characters": ("0" * 295 + "1 + 1", "2"),
    "301 characters": ("0" * 296 + "1 + 1", "2"),
    "the known one has 301 characters": ("2", "0" * 296 + "1 + 1"),
    "a long one, and a base": ("0" * 300 + "1011", "1011_2"),
    "no answer, and the known one is long": ("", LONG[:601]),
    "longer than 300 characters": (LONG[:601], "301"),
    "longer than 300 characters, and not equal": (LONG[:601], "300"),
    "spaces that make it long": ("7" + " " * 2000, "7"),
    "spaces that make the known one long": ("7", " " * 2000 + "7"),
    "too much work for the time": ("9^{9^{9}}", "9^{9^{9}+1}", 0.01),
    "no time at all": ("(x+1)^2", "x^2+2x+1", 1e-9),
    "no time, but none is needed": ("2 x", "2x", 0.0),
}


def cases(seed: int) -> list[Case]:
    rng = random.Random(seed)
    pairs = dict(PAIRS)
    for n in range(4):
        value = Fraction(rng.randrange(1, 10**6), rng.choice((2, 4, 5, 8, 10)))
        pairs[f"random number {n}"] = (f"{float(value):,}", f"{value + n % 2}")
    return [Case(name, pair, {}, same) for name, pair in pairs.items()]


def same(function, prediction, gold, deadline=1.0) -> dict:
    """The verdict, and whether another process was asked for it. Here that is another function."""
    asked = []

    def in_time(prediction: str, gold: str, deadline: float) -> bool:
        asked.append(prediction)  # and work is counted, so that the verdict is always the same
        return verdict.decide(prediction, gold, 1000 * verdict.WORK * deadline) is True

    with plugged(SimpleNamespace(function=verdict.decide_in_time), in_time):
        equal = function(prediction, gold, deadline)
    return {"equal": equal, "asks another process": bool(asked)}


STRIP = "prediction, gold = prediction.strip(), gold.strip()"
FIRST = "    if prediction == gold or not prediction or longest > MAX_CHARS:\n"
EMPTY = '        return prediction == gold != ""\n'
NUMBERS = 'Fraction(prediction.replace(",", "")) == Fraction(gold.replace(",", ""))'
DECIDED = "verdict = decide(prediction, gold, WORK * deadline) if longest <= CHARS_HERE else None"
EVAL = "try:\n        verdict = eval(prediction) == eval(gold)\n    except Exception:\n        "
LAST = 're.findall(r"[0-9.]+", prediction)[-1:] == re.findall(r"[0-9.]+", gold)[-1:]'
EXERCISE = Exercise(
    number=6,
    name="equivalent",
    lab="B",
    target="nanotir.answers.verdict:equivalent",
    teaches="A reward is a parser: what it takes for equal is what the model learns to write.",
    minutes=25,
    points=20,
    stars=2,
    cases=cases,
    mistakes=(
        Mistake(
            "you compare texts: 1/2 and 0.5 are one answer, and a model that writes the other one "
            "is punished for it",
            ((DECIDED, "verdict = False"),),
            bug=True,
        ),
        Mistake(
            "it is enough that the known answer occurs in the other: 112 is not 12, and a model "
            "would learn to write all numbers",
            ((STRIP, f"{STRIP}\n    if gold and gold in prediction:\n        return True"),),
            bug=True,
        ),
        Mistake(
            "you compare the last numbers alone: x + 5 is not 5",
            ((DECIDED, f"verdict = {LAST}"),),
            bug=True,
        ),
        Mistake(
            "you allow a tolerance: nearly the number is not the number",
            ((NUMBERS, f"abs({NUMBERS.replace('==', '/')} - 1) < 1e-2"),),
            bug=True,
        ),
        Mistake(
            "you compare numbers as floats, which hold 16 digits: take Fraction",
            ((NUMBERS, NUMBERS.replace("Fraction", "float")),),
        ),
        Mistake(
            "you read a number up to its first comma: 1,234 is not 1,235",
            ((NUMBERS, NUMBERS.replace('replace(",", "")', 'partition(",")[0]')),),
        ),
        Mistake(
            "no answer equals an unknown one: it must never be right to say nothing",
            ((EMPTY, EMPTY.replace(' != ""', "")),),
            bug=True,
        ),
        Mistake(
            "you do not strip the answers: spaces around them say nothing",
            ((STRIP, "pass"),),
        ),
        Mistake(
            "you ignore capitals: X and x are two unknowns",
            ((STRIP, STRIP.replace("strip()", "strip().lower()")),),
        ),
        Mistake(
            "you run what the model wrote (eval): it may be any program, and what that returns is "
            "no answer",
            ((DECIDED, EVAL + DECIDED),),
        ),
        Mistake(
            "you start a process for every comparison, which takes as long as a thousand cheap "
            "ones: decide here what is short and takes little work",
            ((DECIDED, "verdict = None"),),
        ),
        Mistake(
            "what cannot be decided in time counts as right: a model would learn to write it",
            (("decide_in_time(prediction, gold, deadline)", "True"),),
            bug=True,
        ),
        Mistake(
            "beyond MAX_CHARS only equal texts are equal: a parser must not be given anything",
            ((" or longest > MAX_CHARS", ""),),
        ),
        Mistake(
            "equal texts are equal, however long they are",
            (
                (
                    FIRST,
                    "    if longest > MAX_CHARS:\n        return False\n"
                    "    if prediction == gold or not prediction:\n",
                ),
            ),
        ),
        Mistake(
            "you refuse answers beyond CHARS_HERE: they are compared in another process",
            (("CHARS_HERE else None", "CHARS_HERE else False"),),
        ),
    ),
    hints=(
        "The known answer is 0.5. What else may a model have written that is right, and what that "
        "only looks like it?",
        "From cheap to dear: equal texts (but an empty one is never right), numbers with commas "
        "as exact fractions, then `decide`, which reads mathematics within a limit of work and "
        "says None beyond it, and last decide_in_time.",
        "Stripped: text == text != '' if they are equal, or nothing is said, or one is too long; "
        "Fraction(without commas) if NUMBER matches both; decide(p, g, WORK * deadline) up to "
        "CHARS_HERE characters; decide_in_time where that is None.",
    ),
    read=("nanotir/answers/verdict.py:equivalent", "nanotir/answers/compare.py:same"),
    look="the limit is first one of work, counted before anything is computed, and only then one "
    "of time, in a process that can be killed: an answer never stops a run",
    question="A grader that accepts too much and one that accepts too little: what does training "
    "make of each?",
    answer="Of too much, a model finds the hole: a part of the answer, a list of numbers, a text "
    "that the parser takes for equal. Reward rises and accuracy by another grader does not. Of too "
    "little, right answers are punished for their form, so the model first learns one spelling: "
    "rewards begin low and rise fast without better mathematics.",
)
