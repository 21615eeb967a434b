"""One rollout: sample groups of answers, grade them, and keep the groups that teach something."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from nanotir.problems import Problem
from nanotir.processes import once, share
from nanotir.rewards import RewardConfig, score
from nanotir.sampler import Sampler
from nanotir.tools import check_alive
from nanotir.trajectory import Trajectory


@dataclass(eq=False)
class Sample:
    """One answer to one problem."""

    problem: Problem
    trajectory: Trajectory
    reward: float
    correct: float  # 1 or 0
    parts: dict[str, float] = field(default_factory=dict)  # of the reward, by name, unweighted


@dataclass
class Rollout:
    """What was sampled in one step, and the whole groups of it that are learned from, in order."""

    samples: list[Sample] = field(default_factory=list)
    kept: list[Sample] = field(default_factory=list)
    own: list[Sample] = field(default_factory=list)  # of samples, those that this process drew


def collect(
    sampler: Sampler, problems: list[Problem], settings, reward: RewardConfig, seed: int, step: int
) -> Rollout:
    """Dynamic sampling (DAPO, Yu et al. 2025, section 3.2): keep groups that differ, and refill.

    A group that is paid for as all right or all wrong is dropped: its rewards could differ only by
    the penalty for length. `settings` is a rl.RLConfig. Attempt a asks for the groups that are
    missing: with random.Random(f"rl {seed} {step} {a}") it samples that many problems, or all, and
    with seed hash_of(seed, step, a) their answers. Two attempts may draw the same problem.
    """
    rollout = Rollout()
    missing = settings.problems
    size = settings.group_size
    for attempt in range(1 + settings.refills):
        rng = random.Random(f"rl {seed} {step} {attempt}")
        drawn = rng.sample(problems, min(missing, len(problems)))
        given = (drawn, size, reward, hash_of(seed, step, attempt))
        samples, outcome = answers_to(sampler, *given)
        rollout.samples += samples
        rollout.own += share(samples, size)

        for start in range(0, len(samples), size):
            differ = len(set(outcome[start : start + size])) > 1
            if differ or not settings.dynamic:
                rollout.kept += samples[start : start + size]
                missing -= 1
        if not missing:
            break
    return rollout


def answers_to(sampler: Sampler, problems: list[Problem], n: int, reward: RewardConfig, seed: int):
    """(n graded answers to each problem, what each was paid for as: 1 or 0)."""
    questions = [problem.question for problem in problems]
    trajectories = sampler.generate(questions, n, seed=seed)
    asked = [problem for problem in problems for _ in range(n)]
    rewards, parts = once(score, trajectories, asked, sampler.tokenizer, reward)
    outcome = parts.pop("outcome")
    by_answer = [dict(zip(parts, values)) for values in zip(*parts.values())]
    columns = zip(asked, trajectories, rewards, parts["accuracy"], by_answer)
    return [Sample(*column) for column in columns], outcome


def hash_of(*keys: int) -> int:
    """One seed from several numbers."""
    return random.Random(" ".join(map(str, keys))).getrandbits(63)


def check_tools(rollout: Rollout, results: dict[str, list]):
    """DeadTool if a tool of this process only fails.

    `results` collects each tool's until there are enough.
    """
    for sample in rollout.own or rollout.samples:
        for call in sample.trajectory.calls:
            results[call.tool].append(call.result)
    for name, seen in results.items():
        check_alive(name, seen)
        results[name] = seen if len(seen) < 32 else []
