"""When an answer is not to be trusted, and how often that is right.

How sure the model was of an answer is the log-prob of the whole answer: the sum over all ids that
it chose, calls included. Nothing else that was tried tells right answers from wrong ones as well.
The shares of wrong answers flagged by `doubt`, where 5% of the right ones are, of the 49 wrong ones
to 1500 held-out problems of a default run (commit 3663912):

    sum over all ids      57%    mean over the last text span    37%
    mean over all ids     37%    mean over the boxed answer      33%

A number of the question that is in no call is another sign: of 4,500 answers of three default runs
(commit 01106cd), 60 of the 147 wrong ones had it, and two of the right ones.
"""

from __future__ import annotations

import re
from decimal import Decimal

from nanotir.answers import extract_answer
from nanotir.problems import Problem
from nanotir.tokenizer import Tokenizer
from nanotir.trajectory import Call, Trajectory

UNSURE = 0.05  # this share of the right answers is less likely than the lowest log-prob trusted


def doubt(
    trajectory: Trajectory, tokenizer: Tokenizer, lowest: float | None, question: str | None
) -> str | None:
    """Why the answer is not to be trusted; None if nothing speaks against it.

    `lowest` is the lowest log-prob of an answer that is trusted. None trusts all of them.
    `question` is that of a generated problem, which needs all of its numbers; None of others.
    """
    if extract_answer(trajectory.completion(tokenizer)) is None:
        return "it has no final answer"
    if trajectory.calls and not trajectory.calls[-1].result.ok:
        return "the call failed"
    if question and trajectory.calls and left_out(question, trajectory.calls):
        return "a number of the question is in no call"
    if lowest is not None and sum(trajectory.logps) < lowest:
        return "the model was unsure"
    return None


def left_out(question: str, calls: list[Call]) -> bool:
    """Whether a number of the question is in no call, because it was copied wrongly, say.

    Signs do not count, nor does how often a number stands there.
    """
    called = numbers(" ".join(call.code for call in calls))
    # A comma separates two numbers, or the digits of one.
    return not any(numbers(q) <= called for q in (question, question.replace(",", "")))


def numbers(text: str) -> set[Decimal]:
    """Its numbers but 0, which programs leave out of "x^2 - 1 = 0"."""
    return {Decimal(n) for n in re.findall(r"\d*\.\d+|\d+", text, re.ASCII)} - {0}


def measure(
    problems: list[Problem],
    trajectories: list[Trajectory],
    right: list[bool],
    tokenizer: Tokenizer,
) -> dict:
    """The lowest log-prob to trust, and the shares of wrong and of right answers then flagged.

    The shares are measured on other problems than `lowest` was: each half of the problems is
    flagged by the other half's. It is not every second problem, because the kinds of generated
    problems take turns. What cannot be measured, because no answer is right or wrong, is None.
    """
    middle = len(trajectories) // 2
    first, second = slice(middle), slice(middle, None)
    flagged = []
    for half, other in ((first, second), (second, first)):
        lowest = lowest_trusted(trajectories[other], right[other])
        for problem, trajectory in zip(problems[half], trajectories[half]):
            question = problem.question if problem.kind else None
            flagged.append(doubt(trajectory, tokenizer, lowest, question) is not None)
    return {
        "lowest": lowest_trusted(trajectories, right),
        "wrong_flagged": share([flag for flag, is_right in zip(flagged, right) if not is_right]),
        "right_flagged": share([flag for flag, is_right in zip(flagged, right) if is_right]),
    }


def lowest_trusted(trajectories: list[Trajectory], right: list[bool]) -> float | None:
    """The log-prob below which 5% of the right answers are.

    Rounded, because its last digits depend on which rows shared a batch while tools were slow.
    """
    likely = sorted(sum(t.logps) for t, is_right in zip(trajectories, right) if is_right)
    return round(likely[int(UNSURE * len(likely))], 4) if likely else None


def share(flags: list[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None
