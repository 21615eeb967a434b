"""What a loss's denominator does to the length of wrong answers, and a whole row's ratio to a mixture of experts."""

from __future__ import annotations

import math
import random
from concurrent.futures import Future

from nanotir import rl, sft
from nanotir.demonstrate import act_out, answer_sentence, wrong_guess
from nanotir.lab.cir import COLD
from nanotir.lab.experiment import Arm, Compare, Experiment
from nanotir.lab.toy import curve, mean_of, measure, reinforce, trained
from nanotir.tools import Tool, ToolResult

LINE = {  # one call an answer, over a line that is down half of the time; rows are told apart by their sessions
    "data": "generated:mul,power,gcd",
    "tools": "python",
    "sft.steps": 300,
    "rl.steps": 24,
    "sampler.max_new_tokens": 128,
    "sampler.sessions": True,
    "eval.problems": 1,
}
MOE = {"model.n_experts": 8, "model.n_experts_per_token": 2}
CONTROL = "random rewards"


class BadLine(Tool):
    """Another tool, over a line that is down half of the time, as the row and the code alone decide; or always (`down`)."""

    def __init__(self, tool: Tool, down: bool = False):
        self.tool, self.name, self.down = tool, tool.name, down

    def submit(self, text, session=None):
        if not self.down and random.Random(f"{text} {session.index}").random() < 0.5:
            return self.tool.submit(text)
        future = Future()
        future.set_result(
            ToolResult("The line is down.")
        )  # an answer, not a failure of the tool: the run may go on
        return future


def demonstrations(run) -> list:
    """Half of them over a line that is down: the teacher then says Hmm, for as long as a coin of 0.9 lets him, and guesses, always wrong."""
    rng, problems = random.Random(f"line {run.config.seed}"), run.problems
    up, down = problems[::2], problems[1::2]
    hesitation = lambda: "Hmm. " * next((n for n in range(30) if rng.random() < 0.1), 30)
    answered = [[*p.solution, ("text", answer_sentence(p.answer))] for p in up]
    guessed = [
        [*p.solution, ("text", hesitation() + answer_sentence(wrong_guess(p.answer, rng)))]
        for p in down
    ]
    (line,) = run.tools
    write = lambda problems, scripts, tool: act_out(
        problems, scripts, run.tokenizer, run.format, {"python": tool}
    )
    return write(up, answered, line.tool) + write(down, guessed, BadLine(line.tool, down=True))


def lengths(key: str, **settings) -> Arm:
    """How much longer the wrong answers of the last quarter of RL are than those of the first."""

    def run_arm(seed, quick, folder):
        options = (
            LINE
            | {f"rl.{name}": value for name, value in settings.items() if name != "coin"}
            | {"reward.coin": "coin" in settings}
        )
        with trained(
            folder,
            "grpo",
            options,
            seed,
            quick,
            done=["sft", "rl"],
            tools=lambda run: [BadLine(*run.tools)],
        ) as run:
            run.state["done"] = []  # both phases are this arm's own
            sft.train(run, demonstrations(run))
            rl.train(run)
            wrong, right = curve(run, "new_tokens_wrong"), curve(run, "new_tokens_right")
            growth = lambda points: (
                mean_of(points, 0.25) - mean_of(points[: max(1, len(points) // 4)])
                if points
                else None
            )
            return {
                "wrong_growth": growth(wrong),
                "right_growth": growth(right),
                "wrong_tokens": mean_of(wrong, 0.25),
                "sampled_accuracy": mean_of(curve(run, "accuracy"), 0.25),
                "wrong tokens by step": wrong,
            }

    return Arm(f"grpo-lengths-{key}", run_arm)


def experts(level: str, moe: bool, coin: bool = False) -> Arm:
    def run_arm(seed, quick, folder):
        name, start = ("moe", COLD | MOE) if moe else ("cir", COLD)
        loss = {"rl.loss_type": "grpo" if level == "sequence" else "dapo"}
        settings = loss | {
            "rl.steps": 16,
            "rl.updates": 4,
            "rl.ratio_level": level,
            "reward.coin": coin,
        }
        with reinforce(folder, "grpo", start, settings, seed, quick, name) as run:
            result = measure(run)
            variance = mean_of(curve(run, "ratio_variance"))
            found = {
                "ratio_variance": variance,
                "log_ratio_variance": math.log10(variance) if variance else None,
                "ratio_max": max((y for _, y in curve(run, "ratio_max")), default=None),
                "accuracy": result["accuracy"],
                "variance by step": curve(run, "ratio_variance"),
            }
            return found | (
                {
                    "experts_apart": apart(result["expert_use"]),
                    "disagreement": result["expert_disagreement"],
                }
                if moe
                else {}
            )

    return Arm(f"grpo-{'moe' if moe else 'dense'}-{level}{'-random' if coin else ''}", run_arm)


def apart(use: dict) -> float:
    """How far apart the experts of code and of words are: half the sum of the differences of their shares, 0 to 1, the mean over layers."""
    layers = [
        sum(abs(a - b) for a, b in zip(code, text)) / 2
        for code, text in zip(use.get("python", use["text"]), use["text"])
    ]
    return sum(layers) / len(layers)


EXPERIMENTS = [
    Experiment(
        13,
        "lengths",
        "GRPO",
        "Dividing each row's loss by its own length makes wrong answers grow longer; one denominator for all ids does not.",
        "Liu et al. 2025, Dr. GRPO",
        "wrong answers grow under GRPO, not under Dr. GRPO; no figure in common units",
        "ids in wrong sampled answers (at most 128): the mean over the last quarter of 24 steps, less that over the first",
        "growth under grpo > under dr_grpo and dapo",
        {
            "grpo": lengths("grpo", loss_type="grpo"),
            "dr_grpo": lengths("dr", loss_type="dr_grpo", scale="none"),
            "dapo": lengths("dapo", loss_type="dapo"),
            CONTROL: lengths("random", loss_type="grpo", coin=True),
        },
        (Compare("grpo", "dr_grpo", "wrong_growth"), Compare("grpo", "dapo", "wrong_growth")),
        control=CONTROL,
        figure=("wrong tokens by step",),
        tuned="A tool that is down half of the time, by chance: then no answer is right, and how long the model hesitates is its own affair.",
    ),
    Experiment(
        14,
        "experts",
        "GRPO",
        "A ratio per row varies less than one per id, which a mixture of experts needs more than a dense policy does.",
        "Zheng et al. 2025, GSPO; the notes on GRPO with experts",
        "none known",
        "log10 of the mean of (ratio - 1)^2 over the ids of four updates a rollout (a logarithm, since single ids have ratios of 70); equal active parameters",
        "sequence < token with experts (a mean varies less than what it is of); experts > dense at token level",
        {
            "experts, sequence": experts("sequence", True),
            "experts, token": experts("token", True),
            "dense, token": experts("token", False),
            CONTROL: experts("token", True, coin=True),
        },
        (
            Compare("experts, sequence", "experts, token", "log_ratio_variance", lower=True),
            Compare("dense, token", "experts, token", "log_ratio_variance", lower=True),
        ),
        control=CONTROL,
        figure=("variance by step",),
        tuned="As for CIR; 8 experts, 2 a token.",
    ),
]
