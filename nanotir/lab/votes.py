"""Majority votes among answers, and among those alone that a tool stands behind."""

from __future__ import annotations

import random

from nanotir.evaluate import maj_at_k
from nanotir.lab.cir import NUMBERS, NUMBERS_TUNED, policy
from nanotir.lab.experiment import Arm, Compare, Experiment
from nanotir.rl import make_sampler
from nanotir.scores import answer_of, mean
from nanotir.trajectory import Trajectory

KS = (1, 2, 4, 8, 16)


def has_output(row: Trajectory) -> bool:
    """Whether a call has worked: SC-TIR prunes answers without real output."""
    return any(call.result.ok for call in row.calls)


def none_failed(row: Trajectory) -> bool:
    """Whether no call has failed; there need not be one."""
    return all(call.result.ok for call in row.calls)


def votes(model: str) -> Arm:
    """maj@16 of the cold start or of what RL made of it: of all answers, and of some."""

    def run_arm(seed, quick, folder):
        n, problems = (4, 20) if quick else (max(KS), 100)
        with policy(folder, model, seed, quick, "numbers", NUMBERS) as run:
            asked = run.held_out[:problems]
            rows = make_sampler(run).generate([p.question for p in asked], n, seed)
            answers = [answer_of(row, run.tokenizer) for row in rows]
        groups = [(rows[i : i + n], answers[i : i + n]) for i in range(0, len(rows), n)]
        return majorities([problem.answer for problem in asked], groups, seed)

    return Arm(f"votes-{model}", run_arm)


def majorities(golds: list[str], groups: list[tuple], seed: int) -> dict:
    """maj@n, of the groups (trajectories, answers) of n answers to each problem."""
    rng = random.Random(f"votes {seed}")
    found: dict[str, list] = {name: [] for name in ("maj", "output", "ran", "chance")}
    points: dict[int, list] = {k: [] for k in KS}
    for gold, (rows, answers) in zip(golds, groups):
        n = len(answers)
        output = pruned(answers, [has_output(row) for row in rows])
        lots = {
            "maj": answers,
            "output": output,
            "ran": pruned(answers, [none_failed(row) for row in rows]),
            "chance": pruned(answers, by_chance(answers, output, rng)),
        }
        for name, voters in lots.items():
            found[name].append(maj_at_k(voters, gold, n))
        for k in KS:
            first = pruned(answers[:k], [has_output(row) for row in rows[:k]])
            points[k].append(maj_at_k(first, gold, min(k, n)))
    by_k = [[k, mean(values)] for k, values in points.items()]
    return {name: mean(values) for name, values in found.items()} | {"pruned maj by k": by_k}


def pruned(answers: list[str | None], kept: list[bool]) -> list[str | None]:
    """The answers with the votes of those alone that are kept; with all votes if none is."""
    voters = [answer if keep else None for answer, keep in zip(answers, kept)]
    return voters if any(voters) else answers


def by_chance(answers: list, output: list, rng: random.Random) -> list[bool]:
    """Which answers vote: as many as in `output`, any of those that are given."""
    given = [i for i, answer in enumerate(answers) if answer is not None]
    chosen = rng.sample(given, sum(answer is not None for answer in output))
    return [i in chosen for i in range(len(answers))]


PRUNING = Experiment(
    number=18,
    name="pruning",
    system="SC-TIR",
    claim="A majority vote is right more often without the answers whose calls failed, and more "
    "often still without those that no tool's output stands behind.",
    source="NuminaMath-TIR, the winner of AIMO's first progress prize",
    published="none known: it pruned so, among 48 answers",
    measure="maj@16 on 100 held-out problems, a third of which words suffice for; against the "
    "votes of as many answers by chance",
    expected="with output > no failures > all",
    arms={"base": votes("base"), "RL": votes("RL")},
    compare=(
        Compare("base", "base", "output", metric_worse="maj"),
        Compare("base", "base", "output", metric_worse="chance"),
        Compare("base", "base", "ran", metric_worse="maj"),
        Compare("RL", "RL", "output", metric_worse="maj"),
    ),
    figure=("pruned maj by k",),
    tuned=NUMBERS_TUNED,
)

EXPERIMENTS = [PRUNING]
