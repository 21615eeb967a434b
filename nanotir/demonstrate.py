"""The scripted teacher: a problem in, a demonstration out. Deliberately mediocre: its flaws are what RL is there to repair.

The teacher works as the model will: it calls the real tools and quotes what they really answer. At `quality` 1 every demonstration
is sound: it calls a tool where one helps and reasons in words where the head suffices. Below, the rest have a flaw: a wrong guess instead
of a call (where the head suffices: a call instead of a thought), a call of the wrong tool, a buggy program that the error message
helps to repair, or a missing final answer. What is easy tempts to half as many.
"""
from __future__ import annotations

import random
from dataclasses import dataclass

from tqdm import tqdm

from nanotir.answers import equivalent
from nanotir.problems import Problem
from nanotir.tokenizer import Tokenizer
from nanotir.tools import check_alive
from nanotir.trajectory import Call, Format, Trajectory

FORMATS = ("tool", "rationale", "program")
FLAWS = {"guess": 0.85, "wrong tool": 0.05, "bug": 0.05, "no answer": 0.05}  # how the flawed demonstrations divide


@dataclass
class TeacherConfig:
    quality: float = 0.3  # share of demonstrations without a flaw, in the format tool; the others have none
    format: str = "tool"  # tool (words and calls), rationale (words only), program (calls only: the last one's output is the answer)

    def __post_init__(self):
        if self.format not in FORMATS:
            raise ValueError(f"no demonstration format '{self.format}'; there are {', '.join(FORMATS)}")
        if not 0 <= self.quality <= 1:
            raise ValueError(f"quality is a share between 0 and 1, not {self.quality}")


def corpus(problems, documents=()):
    """The texts that a tokenizer should spell well: questions, solutions, answers, and what can be looked up."""
    for problem in problems:
        yield problem.question
        yield from [text for _, text in problem.solution] or [problem.rationale]
        yield answer_sentence(problem.answer)
    yield from documents


def answer_sentence(answer: str) -> str:
    return f"The answer is \\boxed{{{answer}}}."


def demonstrate(problems, tokenizer: Tokenizer, format: Format, tools: dict, config: TeacherConfig, seed: int = 0) -> list[Trajectory]:
    """One demonstration a problem. Calls run in the tools (many at once); equal calls run once."""
    scripts = [script(problem, random.Random(f"teacher {seed} {i}"), config) for i, problem in enumerate(problems)]
    scripts = [[(kind, text) for kind, text in pieces if kind == "text" or kind in tools] for pieces in scripts]
    calls = dict.fromkeys((kind, text) for pieces in scripts for kind, text in pieces if kind != "text")
    futures = {(kind, text): tools[kind].submit(text) for kind, text in calls}
    results = {call: future.result() for call, future in tqdm(futures.items(), desc="teacher's calls", leave=False)}
    for name in tools:
        check_alive(name, [result for (kind, _), result in results.items() if kind == name])
    return [_write(problem, pieces, results, tokenizer, format) for problem, pieces in zip(problems, scripts)]


def script(problem: Problem, rng: random.Random, config: TeacherConfig) -> list[tuple[str, str]]:
    """What the teacher says and calls, as (kind, text) pieces; the tools' outputs are still to come."""
    final = answer_sentence(problem.answer)
    quality = (1 + config.quality) / 2 if problem.kind == "C" else config.quality
    flaw = None if rng.random() < quality else rng.choices(list(FLAWS), list(FLAWS.values()))[0]
    if config.format == "program":
        return [piece for piece in problem.solution if piece[0] != "text"] or [("python", repr(problem.answer))]
    if config.format == "rationale" or problem.kind == "C" and flaw is None:
        return [("text", f"{problem.rationale} {final}")]
    if flaw == "guess" and problem.kind != "C":
        return [("text", final if problem.kind == "B" else answer_sentence(wrong_guess(problem.answer, rng)))]
    pieces = list(problem.solution)
    if flaw == "wrong tool":
        pieces = [("text", "I look it up."), ("search", problem.question.rstrip("?.")), *pieces]
    elif flaw == "bug":
        pieces = [bugged for piece in pieces for bugged in with_bug(piece, rng)]
    return pieces + ([("text", final)] if flaw != "no answer" else [])


def wrong_guess(answer: str, rng: random.Random) -> str:
    """The answer with its digits (or, where it has none, its words) replaced: plausible at a glance."""
    digit = lambda character: rng.choice("123456789") if character.isdigit() else character
    while True:
        guess = "".join(map(digit, answer)) if any(map(str.isdigit, answer)) else rng.choice(("Ada", "Ben", "Velmo", "Tarn"))
        if not equivalent(guess, answer):
            return guess


def with_bug(piece, rng):
    """A program that fails, the teacher's remark on the error, and the program as it should have been."""
    kind, code = piece
    if kind != "python":
        return [piece]
    spoil = rng.choice((lambda c: c + ")", lambda c: c.replace("import", "inport") if "import" in c else c + "+", lambda c: "(" + c))
    return [(kind, spoil(code)), ("text", "That failed. Again."), piece]


def _write(problem, pieces, results, tokenizer, format) -> Trajectory:
    written, calls = [], []
    for kind, text in pieces:
        written.append((kind, text))
        if result := results.get((kind, text)):
            written.append(("output", result.output))
            calls.append(Call(kind, text, result))
    trajectory = format.trajectory(tokenizer, problem.question, written)
    trajectory.calls = calls
    return trajectory
