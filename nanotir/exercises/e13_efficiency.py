"""Exercise 13: a reward for the use of tools that cannot be hacked."""

from __future__ import annotations

import random

from nanotir.exercises.exercise import Case, Exercise, Mistake
from nanotir.tools import ToolResult
from nanotir.trajectory import Call, Trajectory

WORK = ("6*7", True, "42")  # a call: its code, whether it ran, what it said
FAILED = ("6*", False, "SyntaxError: invalid syntax")
EMPTY = ("", True, "")
UNUSED = ("1+1", True, "2")  # the answer does not need it


def answer(prompt: str, right: bool, *calls) -> tuple:
    return prompt, right, calls


def case(name: str, *answers: tuple) -> Case:
    """A batch of answers, each (prompt, whether it is right, its calls)."""
    trajectories = []
    for _, _, calls in answers:
        made = [Call("python", code, ToolResult(said, ok)) for code, ok, said in calls]
        trajectories.append(Trajectory(calls=made))
    columns = {
        "completions": [f"It is \\boxed{{{42 if right else 41}}}." for _, right, _ in answers],
        "answer": ["42"] * len(answers),
        "prompts": [prompt for prompt, _, _ in answers],
        "calls": [len(calls) for _, _, calls in answers],
        "trajectories": trajectories,
    }
    return Case(name, (), columns)


def cases(seed: int) -> list[Case]:
    rng = random.Random(f"e13 {seed}")
    drawn = [
        answer(f"prompt {rng.randrange(3)}", rng.random() < 0.6, *[WORK] * rng.randrange(6))
        for _ in range(12)
    ]
    one, two = answer("a", True, WORK), answer("a", True, WORK, WORK)
    return [
        case("drawn by chance", *drawn),
        case("right with more and fewer calls", two, one, answer("a", True, *[WORK] * 3), two),
        case("right without any call", answer("a", True), one, two),
        case("nobody needs a call", answer("a", True), answer("a", True)),
        case("all needed three", *[answer("a", True, *[WORK] * 3)] * 2),
        case("all are wrong", answer("a", False), answer("a", False, WORK, WORK)),
        case("a wrong answer made fewer calls", answer("a", False), two, two),
        case("a wrong answer made more calls", answer("a", False, *[WORK] * 4), one, two),
        case("another prompt is easier", answer("easy", True), two, answer("b", False, WORK)),
        case("one prompt's answers lie apart", one, answer("b", True, *[WORK] * 4), two),
        case("exploit: fifty empty calls", one, answer("a", True, WORK, *[EMPTY] * 50)),
        case("exploit: fifty empty calls and no other", one, answer("a", True, *[EMPTY] * 50)),
        case("exploit: calls that fail", one, answer("a", True, *[FAILED] * 6, WORK)),
        case("exploit: outputs that are never used", answer("a", True), answer("a", True, UNUSED)),
        case("exploit: calls instead of an answer", one, answer("a", False, *[WORK] * 9)),
        case("no answers"),
    ]


RETURN = "return [otc(m, fewest[p]) - 1.0 if correct else 0.0 for p, m, correct in columns]"
FEWEST = "fewest[prompt] = min(m, fewest.get(prompt, m))"
RIGHT = "    right = accuracy_reward(completions, answer)\n"


def count_only(condition: str) -> tuple[tuple[str, str], ...]:
    """An edit that counts only calls `c` for which the condition holds."""
    counted = f"[sum({condition} for c in t.calls) for t in _['trajectories']]"
    return ((RIGHT, f"{RIGHT}    calls = {counted}\n"),)


EXERCISE = Exercise(
    number=13,
    name="efficiency_reward",
    lab="D",
    target="nanotir.rewards:efficiency_reward",
    teaches="What is paid for is done: pay for calls, and calls are what you get.",
    minutes=25,
    points=20,
    stars=2,
    cases=cases,
    mistakes=(
        Mistake(
            "you pay for calls: fifty empty ones would be worth more than an answer",
            ((RETURN, "return [min(m / 4, 1.0) for m in calls]"),),
            bug=True,
        ),
        Mistake(
            "you charge wrong answers for their calls: on hard problems the model would learn not "
            "to try",
            (
                (
                    RETURN,
                    RETURN.replace("fewest[p]", "fewest.get(p, 0)").replace(
                        " if correct else 0.0", ""
                    ),
                ),
            ),
            bug=True,
        ),
        Mistake(
            "you take the fewest calls of all answers: a wrong one without calls does not say "
            "how many are needed",
            (("        if correct:\n            " + FEWEST, "        " + FEWEST),),
            bug=True,
        ),
        Mistake(
            "you take the fewest calls of the whole batch: another prompt may be easier",
            (("return [otc(m, fewest[p])", "return [otc(m, min(fewest.values()))"),),
            bug=True,
        ),
        Mistake(
            "you pay a right answer twice: accuracy_reward gives the 1 already, this one takes off",
            (("otc(m, fewest[p]) - 1.0 if", "otc(m, fewest[p]) if"),),
            bug=True,
        ),
        Mistake(
            "you compare with the most calls of a right answer: the fewest show what is needed",
            ((FEWEST, FEWEST.replace("min", "max")),),
            bug=True,
        ),
        Mistake(
            "you compare with the last right answer, not with the one that made the fewest calls",
            ((FEWEST, "fewest[prompt] = m"),),
            bug=True,
        ),
        Mistake(
            "otc(m, n) takes the answer's own calls first, then the fewest",
            (("otc(m, fewest[p])", "otc(fewest[p], m)"),),
            bug=True,
        ),
        Mistake(
            "failed calls are free: `calls` counts them, and so must you, because each took a turn",
            count_only("c.result.ok"),
            bug=True,
        ),
        Mistake(
            "empty calls are free: an answer could make fifty of them",
            count_only("bool(c.code)"),
            bug=True,
        ),
        Mistake(
            "calls whose output is not used in the answer are free: they are the needless ones",
            count_only("c.result.output == '42'"),
            bug=True,
        ),
        Mistake(
            "beyond four calls the rest is free: the charge must go on rising",
            (("otc(m, fewest[p])", "otc(min(m, 4), fewest[p])"),),
            bug=True,
        ),
        Mistake(
            "you charge a right answer without calls: it has done best of all",
            (("otc(m, fewest[p]) - 1.0 if", "(otc(m, fewest[p]) if m else 0.0) - 1.0 if"),),
            bug=True,
        ),
        Mistake(
            "you take 1 off wrong answers: they earn 0 by accuracy_reward, which is the lesson "
            "already",
            ((" if correct else 0.0", " if correct else -1.0"),),
            bug=True,
        ),
    ),
    hints=(
        "How would you earn the most under your reward if you did not care about the question?",
        "Only a right answer can lose anything. What a prompt needs is the fewest calls of its own "
        "right answers, and more calls than that cost something, whatever they did.",
        "0 if wrong, else otc(m, n) - 1, where m are the answer's calls and n the fewest of the "
        "right answers to the same prompt",
    ),
    read=("nanotir/rewards.py:otc", "nanotir/rewards.py:call_bonus_reward", "arXiv 2504.14870"),
    look="RewardConfig refuses weights by which a wrong answer could earn more than a right one",
    question="call_bonus_reward pays for calls, right or wrong. With which weights would a wrong "
    "answer with four calls earn as much as a right one without any, and what stops you?",
    answer="With call_bonus as large as accuracy. RewardConfig raises ValueError unless accuracy "
    "is at least the sum of the other weights, of which `length` is 0.4 unless it is set to 0.",
)
