"""A bonus for the format of an answer, which is earned without the answer."""

from __future__ import annotations

from nanotir.lab.experiment import Compare, Experiment
from nanotir.lab.tapo import CALLS, CONTROL, PLAIN, arm

BONUS = PLAIN | {"reward.format": 1.0}

FORMAT_BONUS = Experiment(
    number=24,
    name="format-bonus",
    system="GRPO",
    claim="A bonus for the format is collected without right answers: as much if a coin pays for "
    "the answers, and it gains no accuracy.",
    source="our own hypothesis, after the pitfalls of RL with composite rewards (overfitting to "
    "the format)",
    published="none known",
    measure="share of answers that begin with their only thought, which is what the bonus is paid "
    "for, and of wrong answers among all that do so (hollow), in one sampled answer a held-out "
    "problem; accuracy sampled over the last quarter of RL",
    expected="earned: bonus, and a coin with it, near 1; accuracy: no gain",
    arms={
        "bonus": arm("format", BONUS),
        "coin and bonus": arm("format-random", BONUS | {"reward.coin": True}),
        "exact match": arm("exact", PLAIN),
        CONTROL: arm("random", PLAIN | {"reward.coin": True}),
    },
    compare=(
        Compare("coin and bonus", CONTROL, "bonus_earned"),
        Compare("coin and bonus", "bonus", "bonus_earned", margin=0.1),
        Compare("coin and bonus", "exact match", "hollow"),
        Compare("exact match", "bonus", "sampled_accuracy", margin=0.05),
        Compare("bonus", CONTROL, "sampled_accuracy", claimed=False),
    ),
    control=CONTROL,
    figure=("bonus by step", "accuracy by step"),
    tuned=CALLS.tuned,
)

EXPERIMENTS = [FORMAT_BONUS]
