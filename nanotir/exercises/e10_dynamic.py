"""Exercise 10: dynamic sampling."""

from __future__ import annotations

import random
from types import SimpleNamespace
from unittest import mock

from nanotir import processes
from nanotir.exercises.exercise import Case, Exercise, Mistake
from nanotir.problems import Problem
from nanotir.rewards import RewardConfig
from nanotir.rl import RLConfig
from nanotir.rollout import Sample
from nanotir.trajectory import Trajectory


class Actor:
    """Plays a sampler. A question's last word says how often its answers are right.

    Answers differ in length, and with the seed. An id is a character.
    """

    def __init__(self):
        self.asked = []
        self.tokenizer = SimpleNamespace(end_ids=(), decode=lambda ids: "".join(map(chr, ids)))

    def generate(self, prompts: list[str], n: int, seed: int) -> list[Trajectory]:
        self.asked.append([*prompts, n])
        rng = random.Random(seed)
        answers = []
        for prompt in prompts:
            easy = float(prompt.split()[-1])
            right = [rng.random() < easy for _ in range(n)]
            if easy == 0.5:
                right[:2] = [True, False]
            answers += [self.answer(value, rng.randrange(60)) for value in right]
        return answers

    def answer(self, right: bool, length: int) -> Trajectory:
        text = "." * length + f" \\boxed{{{int(right)}}}"
        trajectory = Trajectory()
        trajectory.append("prompt", [0], 0)
        trajectory.append("text", [ord(letter) for letter in text], 1)
        return trajectory


def rollout_of(function, drawn_from, seed: int, step: int, reward: dict, **settings) -> dict:
    """What was asked, sampled, kept and drawn by this process. A coin is seeded as well."""
    actor = Actor()
    random.seed(seed)
    settings = RLConfig(**settings)
    rollout = function(actor, drawn_from, settings, RewardConfig(**reward), seed, step)
    found = {name: [told(sample) for sample in rows] for name, rows in vars(rollout).items()}
    return {"asked": actor.asked} | found


def in_two_processes(function, *given, **settings) -> dict:
    """The same in the first of two processes, which does not wait for the second."""
    alone = {"count": lambda: 2, "gather": lambda own, size=1: own}
    with mock.patch.multiple(processes, **alone):
        return rollout_of(function, *given, **settings)


def told(sample: Sample) -> str:
    what = f"{sample.problem.question}: {'right' if sample.correct else 'wrong'}"
    return f"{what}, {sample.trajectory.new_tokens} ids, reward {sample.reward:.4f}"


def cases(seed: int) -> list[Case]:
    rng = random.Random(f"e10 {seed}")

    def case(
        name: str, never: int, mixed: int, always: int, reward=None, processes=1, **settings
    ) -> Case:
        kinds = ["0"] * never + ["0.5"] * mixed + ["1"] * always
        rng.shuffle(kinds)
        problems = [Problem(f"question {i} {kind}", "1") for i, kind in enumerate(kinds)]
        settings = {"problems": 4, "group_size": 3, "refills": 0} | settings
        given = (problems, rng.randrange(1000), rng.randrange(1000), reward or {})
        through = rollout_of if processes == 1 else in_two_processes
        return Case(name, given, settings, through)

    return [
        case("some groups differ", 2, 3, 2, problems=7),
        case("another size of the groups", 2, 3, 2, problems=7, group_size=5),
        case("no group differs, and one refill", 4, 0, 4, refills=1),
        case("all groups differ: no refill is needed", 0, 9, 0, refills=3),
        case("one refill", 4, 6, 4, refills=1, problems=6),
        case("refills until the batch is full", 3, 9, 3, refills=40, problems=6),
        case("refills until they end", 8, 1, 8, refills=3, problems=6),
        case("fewer problems than are wanted", 1, 2, 1, refills=3, problems=8),
        case("lengths cost nothing", 2, 3, 2, {"length": 0.0}, problems=7),
        case("not dynamic", 2, 3, 2, problems=6, refills=2, dynamic=False),
        case("not dynamic, and too few problems", 1, 1, 1, problems=5, refills=2, dynamic=False),
        case("a coin pays", 3, 1, 3, {"coin": True, "length": 0.0}, problems=7, refills=1),
        case("two processes", 4, 6, 4, refills=2, problems=7, processes=2),
    ]


KEEP = "if differ or not settings.dynamic:"
OUTCOMES = "set(outcome[start : start + size])"
GROUP = "samples[start : start + size]"

EXERCISE = Exercise(
    number=10,
    name="collect",
    lab="C",
    target="nanotir.rollout:collect",
    teaches="Groups that are all right or all wrong teach nothing: drop them, and refill.",
    minutes=30,
    points=25,
    stars=3,
    cases=cases,
    mistakes=(
        Mistake(
            "you compare rewards: the length's part makes nearly every group differ, so all-wrong "
            "groups are kept and teach brevity; compare `outcome`",
            ((OUTCOMES, f"set(sample.reward for sample in {GROUP})"),),
            bug=True,
        ),
        Mistake(
            "you compare what is right, not what was paid for: they differ where a coin pays",
            ((OUTCOMES, f"set(sample.correct for sample in {GROUP})"),),
        ),
        Mistake(
            "you keep every group: one that is all right or all wrong has no advantage to learn "
            "from, but takes a place in the batch",
            ((KEEP, "if True:"),),
            bug=True,
        ),
        Mistake(
            "you keep groups that are all right",
            (
                (
                    "len(set(outcome[start : start + size])) > 1",
                    "any(outcome[start : start + size])",
                ),
            ),
            bug=True,
        ),
        Mistake(
            "you keep groups that are all wrong",
            (
                (
                    "len(set(outcome[start : start + size])) > 1",
                    "not all(outcome[start : start + size])",
                ),
            ),
            bug=True,
        ),
        Mistake(
            "you drop groups although settings.dynamic is False",
            ((KEEP, "if differ:"),),
        ),
        Mistake(
            "you never refill: the batch stays short without a word",
            (("range(1 + settings.refills)", "range(1)"),),
            bug=True,
        ),
        Mistake(
            "settings.refills counts the rounds after the first",
            (("range(1 + settings.refills)", "range(settings.refills)"),),
        ),
        Mistake(
            "a refill asks for as many groups as the first round: only the missing ones are needed",
            (("min(missing, len(problems))", "min(settings.problems, len(problems))"),),
        ),
        Mistake(
            "a refill asks the same problems again: put the attempt into the key of the draw",
            (('f"rl {seed} {step} {attempt}"', 'f"rl {seed} {step} 0"'),),
            bug=True,
        ),
        Mistake(
            "a refill draws its answers with the seed of the first round",
            (("hash_of(seed, step, attempt)", "hash_of(seed, step, 0)"),),
            bug=True,
        ),
        Mistake(
            "you count a dropped group as found: only kept ones fill the batch",
            (
                (
                    f"                rollout.kept += {GROUP}\n                missing -= 1",
                    f"                rollout.kept += {GROUP}\n            missing -= 1",
                ),
            ),
            bug=True,
        ),
        Mistake(
            "rollout.own is what this process drew: share(samples, size)",
            (("share(samples, size)", "samples"),),
        ),
        Mistake(
            "you go on when nothing is missing: the sampler is asked for nothing",
            (("if not missing:", "if False:"),),
        ),
        Mistake(
            "rollout.samples holds all that was sampled, the dropped groups too: otherwise the "
            "logged accuracy is that of mixed groups, near one half for ever",
            (
                ("        rollout.samples += samples\n", ""),
                (
                    f"rollout.kept += {GROUP}",
                    f"rollout.kept += {GROUP}\n                rollout.samples += {GROUP}",
                ),
            ),
            bug=True,
        ),
    ),
    hints=(
        "All eight answers to a prompt are right. What are their advantages, and what does the "
        "prompt add to the gradient?",
        "Ask for the groups that are missing. Of what comes back, keep whole groups whose outcomes "
        "are not all the same, and count down. Stop when none is missing or the rounds end.",
        "keep a group if len(set(outcome of the group)) > 1; in a round draw "
        "min(missing, len(problems)) problems; there are 1 + refills rounds",
    ),
    read=(
        "nanotir/rollout.py:answers_to",
        "nanotir/rewards.py:get_soft_overlong_punishment",
        "arXiv 2503.14476, sections 3.2 and 3.4",
    ),
    look="every draw has a key of its own (seed, step, attempt), so a run that is resumed asks "
    "the same problems",
    question="With L = 64 and c = 52, what does the soft overlong punishment take off answers of "
    "10, 38 and 70 ids, and why must dynamic sampling not look at the sum of both rewards?",
    answer="0, -0.5 and -1. Lengths differ in nearly every group, so by the sum nearly every group "
    "would differ: groups that are all wrong would stay and teach to be wrong briefly.",
)
