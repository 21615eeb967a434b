"""DAPO's ladder: each of its changes to GRPO on top of those before it, in its own order."""

from __future__ import annotations

from nanotir.lab.cir import NUMBERS, NUMBERS_TUNED, RANDOM
from nanotir.lab.experiment import Arm, Compare, Experiment
from nanotir.lab.toy import curve, mean_of, measure, reinforce

# Four updates a rollout, so that there are ratios to clip.
GRPO = {
    "rl.steps": 20,
    "rl.updates": 4,
    "rl.loss_type": "grpo",
    "rl.epsilon_high": 0.2,
    "rl.dynamic": False,
    "rl.refills": 0,
    "reward.length": 0.0,
}
CLIP = GRPO | {"rl.epsilon_high": 0.28}
# The ramp is the second half of the room for an answer.
OVERLONG = CLIP | {
    "reward.length": 0.4,
    "reward.max_completion_len": 96,
    "reward.soft_punish_cache": 48,
}
TOKENS = OVERLONG | {"rl.loss_type": "dapo"}
DYNAMIC = TOKENS | {"rl.dynamic": True, "rl.refills": 1}
CONTROL = "random rewards"


def rung(key: str, settings: dict) -> Arm:
    """RL with the changes so far, from the cold start that all arms share."""

    def run_arm(seed, quick, folder):
        with reinforce(folder, "grpo", NUMBERS, settings, seed, quick, "numbers") as run:
            accuracies, entropies = curve(run, "accuracy"), curve(run, "entropy")
            return {
                "accuracy": measure(run)["accuracy"],
                "sampled_accuracy": mean_of(accuracies, 0.25),
                "entropy": mean_of(entropies, 0.25),
                "new_tokens": mean_of(curve(run, "new_tokens"), 0.25),
                "groups_sampled": mean_of(curve(run, "groups_sampled")),
                "accuracy by step": accuracies,
                "entropy by step": entropies,
            }

    return Arm(f"dapo-{key}", run_arm)


LADDER = Experiment(
    number=12,
    name="ladder",
    system="DAPO",
    claim="Each change that DAPO makes to GRPO helps or is neutral, all together help, and a "
    "higher upper clip keeps entropy up.",
    source="Yu et al. 2025, table 1",
    published="AIME24: 36 with overlong filtering, 38 with clip-higher, 41 with the overlong "
    "punishment, 42 with the loss over tokens, 50 with dynamic sampling",
    measure="accuracy sampled over the last quarter of RL, greedy of the whole ladder; entropy in "
    "that quarter. Dynamic sampling may sample twice as much",
    expected="no change loses 5 points of accuracy; dynamic sampling gains the most",
    arms={
        "GRPO": rung("grpo", GRPO),
        "+ clip-higher": rung("clip", CLIP),
        "+ overlong": rung("overlong", OVERLONG),
        "+ token loss": rung("tokens", TOKENS),
        "+ dynamic sampling": rung("dynamic", DYNAMIC),
        CONTROL: rung("random", GRPO | RANDOM),
    },
    compare=(
        Compare("+ dynamic sampling", "GRPO"),
        Compare("+ clip-higher", "GRPO", "sampled_accuracy", margin=0.05),
        Compare("+ overlong", "+ clip-higher", "sampled_accuracy", margin=0.05),
        Compare("+ token loss", "+ overlong", "sampled_accuracy", margin=0.05),
        Compare("+ dynamic sampling", "+ token loss", "sampled_accuracy", margin=0.05),
        Compare("+ clip-higher", "GRPO", "entropy"),
        Compare("GRPO", CONTROL, claimed=False),
    ),
    control=CONTROL,
    figure=("accuracy by step", "entropy by step"),
    tuned=NUMBERS_TUNED,
)

EXPERIMENTS = [LADDER]
