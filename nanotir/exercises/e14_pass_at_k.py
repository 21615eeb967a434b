"""Exercise 14: pass@k."""

from __future__ import annotations

import random

from nanotir.exercises.exercise import Case, Exercise, Mistake


def cases(seed: int) -> list[Case]:
    rng = random.Random(f"e14 {seed}")
    drawn = []
    for _ in range(4):
        n = rng.randrange(6, 12)
        drawn.append((n, rng.randrange(2, n - 2), rng.randrange(2, n - 2)))
    return [
        *[Case("drawn by chance", given) for given in drawn],
        Case("one answer", (10, 3, 1)),
        Case("two answers", (4, 2, 2)),
        Case("none is right", (6, 0, 3)),
        Case("all are right", (6, 6, 3)),
        Case("one is right", (6, 1, 2)),
        Case("fewer wrong ones than k", (5, 3, 3)),
        Case("as many wrong ones as k", (5, 2, 3)),
        Case("k is n, and one is right", (5, 1, 5)),
        Case("k is n, and none is right", (5, 0, 5)),
        Case("one sample", (1, 1, 1)),
        Case("many samples", (2000, 20, 100)),
        Case("more than there are", (4, 2, 5)),
        Case("none of them", (4, 2, 0)),
        Case("fewer than none", (4, 2, -1)),
    ]


RETURN = "return 1.0 - math.comb(n - c, k) / math.comb(n, k)"
CHECK = "if not 0 < k <= n:"

EXERCISE = Exercise(
    number=14,
    name="pass_at_k",
    lab="D",
    target="nanotir.scores:pass_at_k",
    teaches="An estimate from n samples of how often one of k is right, without bias.",
    minutes=20,
    points=15,
    stars=1,
    cases=cases,
    mistakes=(
        Mistake(
            "you draw with replacement: 1 - (1 - c/n)^k is too low, because k different samples "
            "are drawn",
            ((RETURN, "return 1.0 - (1 - c / n) ** k"),),
            bug=True,
        ),
        Mistake(
            "c / n is pass@1 whatever k is",
            ((RETURN, "return c / n"),),
            bug=True,
        ),
        Mistake(
            "you ask whether any of the n samples is right: that is pass@n, for every k",
            ((RETURN, "return float(c > 0)"),),
            bug=True,
        ),
        Mistake(
            "k c / n counts a draw of two right ones twice (the union bound)",
            ((RETURN, "return min(1.0, k * c / n)"),),
            bug=True,
        ),
        Mistake(
            "C(c, k) / C(n, k) is the probability that ALL k are right",
            ((RETURN, "return math.comb(c, k) / math.comb(n, k)"),),
            bug=True,
        ),
        Mistake(
            "that is the probability that all k are wrong: take it from 1",
            (("1.0 - math.comb", "math.comb"),),
            bug=True,
        ),
        Mistake(
            "you count draws with exactly one right sample: two right ones are fine as well",
            ((RETURN, "return c * math.comb(n - c, k - 1) / math.comb(n, k)"),),
            bug=True,
        ),
        Mistake(
            "you reckon with one right sample, however many there are: n - c are wrong",
            ((RETURN, "return 1.0 - math.comb(n - min(c, 1), k) / math.comb(n, k)"),),
            bug=True,
        ),
        Mistake(
            "pass@k of fewer than k samples is not known: raise ValueError",
            ((CHECK, "if not 0 < k:"),),
        ),
        Mistake(
            "k must be at least 1: raise ValueError",
            ((CHECK, "if not k <= n:"),),
        ),
        Mistake(
            "k may be as large as n",
            ((CHECK, "if not 0 < k < n:"),),
        ),
        Mistake(
            "you divide factorials as floats: 2000! is no float; math.comb is exact",
            (
                (
                    RETURN,
                    "f = [float(math.factorial(i)) for i in (n - c, n - c - k, n, n - k) "
                    "if i >= 0]\n    return 1.0 - f[0] / f[1] / f[2] * f[3] if n - c >= k else 1.0",
                ),
            ),
        ),
    ),
    hints=(
        "Ten samples, three right. You draw two of the ten: how likely are both wrong?",
        "Count the ways to draw k of the n samples, and those that draw only wrong ones.",
        "pass@k = 1 - C(n - c, k) / C(n, k)",
    ),
    read=(
        "nanotir/scores.py:maj_at_k",
        "nanotir/scores.py:wilson_interval",
        "arXiv 2107.03374, equation 1",
    ),
    look="math.comb(n - c, k) is 0 where fewer than k samples are wrong: that needs no branch",
    question="48 of 64 questions are answered right. How wide is the 95% interval, and is another "
    "policy with 53 of the same number better?",
    answer="wilson_interval(48, 64) is 63% to 84%, that of 53 is 72% to 90%: they overlap widely, "
    "and 64 questions cannot tell the two apart (four times as many halve the interval).",
)
