"""When an answer is not to be trusted, and how often that is right.

How sure the model was of an answer is the log-prob of the whole answer: the sum over all ids that
it chose, calls included. Nothing else that was tried tells right answers from wrong ones as well.
The shares of wrong answers flagged by `doubt`, where 5% of the right ones are, of the 49 wrong ones
to 1500 held-out problems of a default run (commit 3663912):

    sum over all ids      57%    mean over the last text span    37%
    mean over all ids     37%    mean over the boxed answer      33%
"""

from __future__ import annotations

import re

from nanotir.answers import extract_answer
from nanotir.tokenizer import Tokenizer
from nanotir.trajectory import Trajectory

UNSURE = 0.05  # this share of the right answers is less likely than the lowest log-prob trusted


def doubt(trajectory: Trajectory, tokenizer: Tokenizer, lowest: float | None) -> str | None:
    """Why the answer is not to be trusted; None if nothing speaks against it.

    `lowest` is the lowest log-prob of an answer that is trusted. None trusts all of them.
    """
    if extract_answer(trajectory.completion(tokenizer)) is None:
        return "it has no final answer"
    if trajectory.calls and not trajectory.calls[-1].result.ok:
        return "the call failed"
    if lowest is not None and sum(trajectory.logps) < lowest:
        return "the model was unsure"
    return None


def unlike_generated(question: str) -> str | None:
    """Why a model that has learned from generated problems cannot know; None if it might."""
    if re.search(r"\d\.\d|\d ?%", question):
        return "it has learned whole numbers only"
    return None


def measure(trajectories: list[Trajectory], right: list[bool], tokenizer: Tokenizer) -> dict:
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
        flagged += [doubt(t, tokenizer, lowest) is not None for t in trajectories[half]]
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
