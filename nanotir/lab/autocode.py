"""What AutoCode's expectation-maximisation buys: learning when to call, against imitation and plain RL at as many rollouts."""
from __future__ import annotations

from nanotir.lab.experiment import Arm, Compare, Experiment
from nanotir.lab.toy import cold_start, curve, measure, trained
from nanotir.recipes.autocode import measure_decisions

# A: only code helps; B: no program helps, and the hasty one misleads; C: both do, and words are cheaper.
COLD = {"data": "generated:mul,power,det,queue,same,parity,last,first", "tools": "python", "sft.steps": 300}
ROUNDS = {"rl.steps": 20, "rl.problems": 16, "rl.group_size": 8, "rl.refills": 0, "rl.dynamic": False, "reward.length": 0.0, "autocode.samples": 4}


def arm(key: str, base: str = "both", **settings) -> Arm:
    def run_arm(seed, quick, folder):
        start = COLD | {"autocode.base": base, "autocode.method": "sft"}
        options = {"autocode.method": "em"} | {name.replace("__", "."): value for name, value in settings.items()}
        init = cold_start(f"autocode-{base}", start, seed, quick, recipe="autocode")
        with trained(folder, "autocode", start | ROUNDS | options | {"init": init, "sft.steps": 0}, seed, quick) as run:
            decisions = measure_decisions(run, run.held_out[:24 if quick else 96], n=4 if quick else 8, seed=seed)
            method = run.config.autocode.method
            selection = curve(run, "selection_accuracy", "em") if method == "em" else []
            return {
                "selection_accuracy": decisions["selection_accuracy"], "accuracy": measure(run)["accuracy"], "code_rate": decisions["code_rate"],
                "decided": decisions["decided"], "Q_words": decisions["Q_words"], "Q_code": decisions["Q_code"],
                "wrong_extreme": wrong_extreme(decisions["rows"]), "selection": selection or [[0, decisions["selection_accuracy"]]],
                "code rate by gap": by_gap(decisions["rows"]),
            }  # fmt: skip

    return Arm(f"autocode-{key}", run_arm)


def wrong_extreme(rows) -> float:
    """The share of problems that are decided nine times in ten, and for the worse."""
    return sum(max(row["prior"]) > 0.9 and row["Q"][row["prior"].index(max(row["prior"]))] < max(row["Q"]) for row in rows) / len(rows)


def by_gap(rows) -> list:
    """[[Q(code) - Q(words), mean rate of code], ...]: does the policy use code where code is worth it?"""
    gaps = sorted({row["Q"][1] - row["Q"][0] for row in rows})
    of = lambda gap: [row["prior"][1] for row in rows if row["Q"][1] - row["Q"][0] == gap]
    return [[gap, sum(of(gap)) / len(of(gap))] for gap in gaps]


CONTROL = "random rewards"
EXPERIMENTS = [
    Experiment(
        10, "autocode", "AutoCode",
        "Expectation-maximisation over the decision to call learns when code pays, better than imitation or plain RL at as many rollouts.",
        "Wang et al. 2025, figures 4 and 5", "selection accuracy 89.5% on MATH-500, about 50% for models without it",
        "share of 96 held-out problems whose likelier decision is the oracle's (8 forced rollouts of each decision; words win ties)",
        "EM from about 50% to 85% or more, above every baseline",
        {
            "EM": arm("em"), "EM, alpha 20": arm("em-alpha", autocode__alpha=20.0), "SFT + RL": arm("rl", autocode__method="rl"),
            "SFT": arm("sft", autocode__method="sft"), "words + RL": arm("words-rl", "words", autocode__method="rl"),
            CONTROL: arm("random", reward__coin=True),
        },
        (Compare("EM", "SFT", "selection_accuracy"), Compare("EM", "SFT + RL", "selection_accuracy"), Compare("EM", "words + RL", "selection_accuracy")),
        control=CONTROL, figure=("selection", "code rate by gap"),
        tuned="Three families that only code solves, two that it misleads, three where both do; both ways are imitated alike.",
    ),
]  # fmt: skip
