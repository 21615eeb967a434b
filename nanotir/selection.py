"""Which answers of a rollout an update learns from, beyond dynamic sampling.

`settings` is a rl.RLConfig: by default all answers of the groups that differ are learned from.
"""

from __future__ import annotations

import random

from nanotir.answers import extract_answer
from nanotir.rollout import Sample
from nanotir.trajectory import Trajectory


def chosen(kept: list[Sample], settings, seed: int, step: int) -> list[Sample]:
    """Of each group of rl.group_size answers, rl.keep (GRPO-RoC, Shang et al. 2025, section 3.2).

    Of the wrong ones a part at random, in proportion, so that every kind of failure stays; of the
    right ones those with the fewest calls that failed. A group that has both keeps both. The
    authors rank right ones by the share of their calls that failed, 0.5 where there is no call, and
    by their format.
    """
    size, keep = settings.group_size, settings.keep
    if not keep:
        return kept
    rng = random.Random(f"chosen {seed} {step}")
    samples = []
    for start in range(0, len(kept), size):
        group = kept[start : start + size]
        wrong = [sample for sample in group if not sample.correct]
        right = sorted((sample for sample in group if sample.correct), key=failed_calls)
        share = round(len(wrong) * keep / size)
        share = min(max(share, bool(wrong)), keep - bool(right))
        samples += rng.sample(wrong, share) + right[: keep - share]
    return samples


def failed_calls(sample: Sample) -> int:
    return sum(not call.result.ok for call in sample.trajectory.calls)


def learned_from(samples: list[Sample], settings, tokenizer) -> tuple[list[Trajectory], list[int]]:
    """The samples' trajectories, and the rows of them that updates learn from.

    With tool output, if that is learned as well. The answers that are left out have counted in
    their groups' advantages.
    """
    trajectories = [sample.trajectory for sample in samples]
    rows = list(range(len(samples)))
    if settings.drop_void:
        rows = [row for row in rows if not is_void(trajectories[row], tokenizer)]
    if settings.observations == "learned":
        trajectories = [trajectory.with_output_in_mask() for trajectory in trajectories]
    return trajectories, rows


def is_void(trajectory: Trajectory, tokenizer) -> bool:
    """Whether its last turn neither calls a tool nor answers (SimpleTIR, Xue et al. 2025)."""
    if trajectory.finish_reason in ("budget", "forged"):
        return False  # its last turn is a call
    last = trajectory.spans[-1]
    return last.kind != "text" or extract_answer(trajectory.text_of(last, tokenizer)) is None
