"""Tools that are of no use or lie, and what a policy makes of them."""

from __future__ import annotations

import random
import re

from nanotir.answers import equivalent
from nanotir.demonstrate import wrong_guess
from nanotir.lab.analysis import share
from nanotir.lab.cir import NUMBERS, NUMBERS_TUNED, RL, policy
from nanotir.lab.experiment import Arm, Compare, Experiment
from nanotir.lab.toy import FIRST_WITHIN, curve, mean_of, measure, reinforce
from nanotir.rl import make_sampler
from nanotir.scores import answer_of
from nanotir.tools import Tool, ToolResult
from nanotir.trajectory import Trajectory

SAMPLES = 4  # answers to each held-out problem
CONTROL = "random rewards"
# More calls are made twice, and RL ends before they are unlearned.
REPEATED = NUMBERS | {"teacher.twice": 0.6, "sft.steps": 500}
SHORT = NUMBERS | {"sft.steps": 200}  # so that RL leaves wrong answers where words suffice


class Lie(ToolResult):
    """A wrong number, returned as if it were right."""


class Liar(Tool):
    """Another tool whose output is a wrong number with probability p, or says that it failed.

    Chance depends on the row, on the code, and on how many calls the row has made.
    """

    def __init__(self, tool: Tool, p: float, silent: bool = True):
        self.tool = tool
        self.name, self.threads = tool.name, tool.threads
        self.p, self.silent = p, silent
        self.calls: dict = {}  # by session

    def run(self, text, session=None):
        self.calls[session] = self.calls.get(session, 0) + 1
        rng = random.Random(f"{text} {session.index} {self.calls[session]}")
        result = self.tool.run(text)
        if rng.random() >= self.p or not re.search(r"\d", result.output):
            return result
        # It is no failure of the tool, so the run may go on.
        return Lie(wrong_guess(result.output, rng) if self.silent else "The line is down.")

    def end_session(self, session):
        self.calls.pop(session, None)


def lies(key: str, p: float, silent: bool = True, coin: bool = False) -> Arm:
    """RL with a tool that lies, from a cold start whose tool does not."""

    def run_arm(seed, quick, folder):
        # Rows are told apart by their sessions.
        settings = RL | {"rl.steps": 12, "reward.coin": coin, "sampler.sessions": True}
        given = (folder, "cir", REPEATED, settings, seed, quick, "repeated")
        with reinforce(*given, wrap=lambda tool: Liar(tool, p, silent)) as run:
            accuracies = curve(run, "accuracy")
            return {
                "sampled_accuracy": mean_of(accuracies, 0.25),
                "accuracy by step": accuracies,
                "easy calls by step": calls_of(run, "C"),
                "hard calls by step": calls_of(run, "A"),
                **habits(run),
            }

    return Arm(f"trust-{key}", run_arm)


def calls_of(run, kind: str) -> list[list]:
    """[[step, calls an answer]] of the problems of one kind that a step of RL has sampled."""
    return [[step, calls.get(kind, 0.0)] for step, calls in curve(run, "calls_by_kind")]


def habits(run) -> dict:
    """Calls where words suffice and elsewhere, calls made again there, and lies believed.

    Of SAMPLES answers to each held-out problem.
    """
    questions = [problem.question for problem in run.held_out]
    kinds = [problem.kind for problem in run.held_out for _ in range(SAMPLES)]
    rows = make_sampler(run).generate(questions, SAMPLES, seed=run.config.seed)
    easy = [len(row.calls) for kind, row in zip(kinds, rows) if kind == "C"]
    hard = [row for kind, row in zip(kinds, rows) if kind != "C"]
    lied = [row for row in rows if row.calls and isinstance(row.calls[-1].result, Lie)]
    said = [(answer_of(row, run.tokenizer), row.calls[-1].result.output) for row in lied]
    believed = [answer is not None and equivalent(answer, lie) for answer, lie in said]
    return {
        "calls_easy": share(easy),
        "calls_hard": share([len(row.calls) for row in hard]),
        "asked_again": share([asks_again(row) for row in hard if row.calls]),
        "believed": share(believed),
    }


def asks_again(row: Trajectory) -> bool:
    """Whether an answer makes the same call twice."""
    return len({call.code for call in row.calls}) < len(row.calls)


def needless(model: str) -> Arm:
    """A policy with its tools and without, where words suffice: nothing is trained further."""

    def run_arm(seed, quick, folder):
        with policy(folder, model, seed, quick, "short", SHORT, level=3) as run:
            run.held_out = [problem for problem in run.held_out if problem.kind == "C"]
            with_tools = measure(run, samples=SAMPLES)
            in_words = measure(run, samples=SAMPLES, modes="text")
        return {
            "accuracy": with_tools["accuracy"],
            "in_words": in_words["accuracy"],
            "calls": with_tools["calls_per_problem"],
            "a_fifth": 0.2,
        }

    return Arm(f"needless-{model}", run_arm)


NEEDLESS = Experiment(
    number=22,
    name="needless-tools",
    system="all",
    claim="A policy trained in words is right less often when it may call, though it hardly does; "
    "RL with the tool mends it.",
    source="A TIR recipe for thinking models (arXiv 2605.06326, 2026)",
    published="tools lower the accuracy of thinking models that hardly call them; no figure in "
    "common units",
    measure="accuracy of 4 sampled answers to those held-out problems that words suffice for, the "
    "same weights with the tool and without; numbers may have two digits more than in training; "
    "calls an answer, against 0.2",
    expected="without > with, at less than a call in five answers; after RL with the tool equal",
    arms={
        "RL in words": needless("words"),
        "RL with tools": needless("RL"),
        "cold start": needless("base"),
    },
    compare=(
        Compare("RL in words", "RL in words", "in_words", metric_worse="accuracy"),
        Compare("RL in words", "RL in words", "calls", metric_worse="a_fifth", lower=True),
        Compare("RL with tools", "RL with tools", "accuracy", metric_worse="in_words", margin=0.05),
        Compare("cold start", "cold start", "in_words", metric_worse="accuracy"),
    ),
    tuned=f"{NUMBERS_TUNED} Six steps of RL in words: after 24, seed 0 had 0.98 with the tool as "
    "without, and 0.01 calls an answer. Longer numbers, and a cold start of 200 steps: with 300, "
    "and numbers as long as in training, RL in words had 0.98 with the tool on seeds 1 to 5.",
    first_seed=FIRST_WITHIN,
)

LIES = Experiment(
    number=23,
    name="lies",
    system="GRPO",
    claim="A tool that lies in three calls of ten, without saying so, is called less where words "
    "suffice, but is not asked twice elsewhere; one that says it failed is.",
    source="our own hypothesis, after the pitfalls of RL with tools (trusting bad tools)",
    published="none known",
    measure="of 4 sampled answers to each held-out problem: calls an answer, where words suffice "
    "(last and first digit) and elsewhere; share of answers with calls that make the same call "
    "twice; beside them, the share of last outputs that are lies and are given as the answer; "
    "accuracy sampled over the last quarter of RL",
    expected="fewer calls where words suffice; asked again: says so > lies, honest",
    arms={
        "lies": lies("lies", 0.3),
        "says so": lies("says-so", 0.3, silent=False),
        "honest": lies("honest", 0.0),
        CONTROL: lies("random", 0.3, coin=True),
    },
    compare=(
        Compare("lies", "honest", "calls_easy", lower=True),
        Compare("says so", "lies", "asked_again"),
        Compare("lies", "honest", "asked_again", margin=0.05, equal=True),
        Compare("honest", "lies", "sampled_accuracy", claimed=False),
        Compare("lies", CONTROL, "sampled_accuracy", claimed=False),
    ),
    control=CONTROL,
    figure=("easy calls by step", "hard calls by step", "accuracy by step"),
    tuned="A cold start of 500 steps in which six of ten calls are made twice, and 12 steps of RL: "
    "on the seeds 0 and 11 four to seven answers of ten still make a call twice then.",
    first_seed=FIRST_WITHIN,
)

EXPERIMENTS = [NEEDLESS, LIES]
