"""TAPO's reward, in calls: against the exact match alone, OTC's product, and a bonus for calls."""

from __future__ import annotations

from nanotir.grammar import grammar_error
from nanotir.lab.analysis import share
from nanotir.lab.experiment import Arm, Compare, Experiment
from nanotir.lab.toy import cold_start, curve, mean_of, measure, trained
from nanotir.problems import Problem
from nanotir.rewards import is_correct, think_format_reward
from nanotir.rl import make_sampler
from nanotir.scores import mean
from nanotir.trajectory import Trajectory

COLD = {
    "data": "plain:mul,power,det,parity,last,fact,cost",
    "tools": "python,search",
    "format": "grammar",
    "teacher.quality": 0.6,
    "teacher.twice": 0.4,
    "sft.steps": 350,
    "sampler.max_new_tokens": 96,
    "sampler.last_turn": True,
    "rl.steps": 0,
    "rl.refills": 0,
}
PLAIN = {"rl.steps": 24, "rl.dynamic": False, "reward.length": 0.0}
# The overlong ramp is the second half of the room for an answer, as in the paper: shorter answers
# are free. Most answers here take fewer than 48 ids.
TAPO = {
    "rl.steps": 24,
    "reward.length": 0.4,
    "reward.grammar": 0.4,
    "reward.max_completion_len": 96,
    "reward.soft_punish_cache": 48,
}
# A ramp that begins with the twelfth id is a price for each id, and so for each call.
PRICE = TAPO | {"reward.max_completion_len": 72, "reward.soft_punish_cache": 60}
CONTROL = "random rewards"


def arm(key: str, settings: dict) -> Arm:
    """RL with one of the rewards, from the cold start that all arms share."""

    def run_arm(seed, quick, folder):
        start = {"init": cold_start("tapo", COLD, seed, quick), "sft.steps": 0}
        with trained(folder, "tapo", COLD | settings | start, seed, quick) as run:
            return metrics(run)

    return Arm(f"tapo-{key}", run_arm)


def metrics(run) -> dict:
    """How right the answers are and how many calls they take: greedy, and sampled during RL."""
    result = measure(run)
    accuracies, calls = curve(run, "accuracy"), curve(run, "calls")
    sampled_accuracy, sampled_calls = mean_of(accuracies, 0.25), mean_of(calls, 0.25)
    return {
        "accuracy": result["accuracy"],
        "calls_per_correct": result["calls_per_correct"],
        "calls": result["calls_per_problem"],
        "new_tokens": result["mean_new_tokens"],
        "accuracy by step": accuracies,
        "calls by step": calls,
        "bonus by step": curve(run, "reward/format"),
        "sampled_accuracy": sampled_accuracy,
        "sampled_calls": sampled_calls,
        "sampled_calls_per_correct": (
            sampled_calls / sampled_accuracy if sampled_accuracy else None
        ),
        **actions(run),
    }


def actions(run) -> dict:
    """How often calls and answers are mistakes, and a bonus earned: one answer a problem."""
    questions = [problem.question for problem in run.held_out]
    rows = make_sampler(run).generate(questions, seed=run.config.seed)
    words = [row.completion(run.tokenizer) for row in rows]
    wrong = [not is_correct(text, p.answer) for text, p in zip(words, run.held_out)]
    earned = think_format_reward(words)
    return {
        "wrong_tool_rate": share(wrong_tools(run.held_out, rows)),
        "invalid_action_rate": mean([is_invalid(row, run.tokenizer) for row in rows]),
        "bonus_earned": mean(earned),  # what reward.format pays for, whether it is paid or not
        "hollow": share([bad for bad, pay in zip(wrong, earned) if pay]),
    }


def wrong_tools(problems: list[Problem], rows: list[Trajectory]) -> list[bool]:
    """Of every call, whether the problem's solution does without that tool."""
    found = []
    for problem, row in zip(problems, rows):
        needed = {kind for kind, _ in problem.solution}
        found += [call.tool not in needed for call in row.calls]
    return found


def is_invalid(row: Trajectory, tokenizer) -> bool:
    """Whether an answer was told to answer again, or breaks the grammar to its end.

    It is told so when it breaks the grammar, or wants one call too many.
    """
    outputs = sum(span.kind == "output" for span in row.spans)
    return outputs > len(row.calls) or grammar_error(row, tokenizer) is not None


CALLS = Experiment(
    number=11,
    name="calls",
    system="TAPO",
    claim="TAPO's reward needs fewer calls per right answer than the exact match alone, at no "
    "lower accuracy, and a price for each id fewer still; OTC's needs the fewest; a bonus for "
    "calls is collected by calling.",
    source="Wu et al. 2025; OTC (Wang et al. 2025)",
    published="TAPO: none known. OTC-PPO 7B: 1.04 calls instead of 3.28 at equal exact match",
    measure="calls per right answer, accuracy and calls of what was sampled in the last quarter "
    "of RL (greedy hides habits that are rare); beside them, the rates of calls to a tool that the "
    "problem does without, and of answers that break the grammar or are refused a call",
    expected="calls per right answer: OTC < price per id < TAPO < exact match < bonus",
    arms={
        "TAPO": arm("ramp", TAPO),
        "price per id": arm("price", PRICE),
        "exact match": arm("exact", PLAIN),
        "OTC": arm("otc", PLAIN | {"reward.efficiency": 1.0}),
        "bonus": arm("bonus", PLAIN | {"reward.call_bonus": 0.5}),
        CONTROL: arm("random", PLAIN | {"reward.coin": True}),
    },
    compare=(
        Compare("TAPO", "exact match", "sampled_calls_per_correct", lower=True),
        Compare("TAPO", "exact match", "sampled_accuracy", margin=0.05),
        Compare("price per id", "TAPO", "sampled_calls_per_correct", lower=True),
        Compare("OTC", "TAPO", "sampled_calls_per_correct", lower=True),
        Compare("bonus", "exact match", "sampled_calls"),
        Compare("OTC", "exact match", "sampled_calls_per_correct", lower=True),
    ),
    control=CONTROL,
    figure=("calls by step", "accuracy by step"),
    tuned="A teacher who makes four calls in ten twice, so that there are needless calls to "
    "unlearn.",
)

EXPERIMENTS = [CALLS]
