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
FLAWS = {
    "guess": 0.85,
    "wrong tool": 0.05,
    "bug": 0.05,
    "no answer": 0.05,
}  # how the flawed demonstrations divide


@dataclass
class TeacherConfig:
    quality: float = (
        0.3  # share of demonstrations without a flaw, in the format tool; the others have none
    )
    rationales: float = (
        0.0  # share of the demonstrations that reason in words alone, whatever the problem
    )
    styles: int = 1  # ways, up to 3, in which the teacher writes the same program
    twice: float = 0.0  # share of the calls that are made once more, to be on the safe side
    format: str = "tool"  # tool (words and calls), rationale (words only), program (calls only: the last one's output is the answer)

    def __post_init__(self):
        if self.format not in FORMATS:
            raise ValueError(
                f"no demonstration format '{self.format}'; there are {', '.join(FORMATS)}"
            )
        if self.styles not in (1, 2, 3):
            raise ValueError(f"styles is 1, 2 or 3, not {self.styles}")
        for name in ("quality", "rationales", "twice"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share between 0 and 1, not {getattr(self, name)}")


def corpus(problems, documents=()):
    """The texts that a tokenizer should spell well: questions, solutions, answers, and what can be looked up."""
    for problem in problems:
        yield problem.question
        yield from [text for _, text in problem.solution] or [problem.rationale]
        yield answer_sentence(problem.answer)
    yield from documents


def answer_sentence(answer: str) -> str:
    return f"The answer is \\boxed{{{answer}}}."


def demonstrate(
    problems,
    tokenizer: Tokenizer,
    format: Format,
    tools: dict,
    config: TeacherConfig,
    seed: int = 0,
) -> list[Trajectory]:
    """One demonstration a problem. Calls run in the tools (many at once); equal calls run once."""
    scripts = [
        script(problem, random.Random(f"teacher {seed} {i}"), config)
        for i, problem in enumerate(problems)
    ]
    scripts = [
        [(kind, text) for kind, text in pieces if kind == "text" or kind in tools]
        for pieces in scripts
    ]
    scripts = [in_grammar(pieces) for pieces in scripts] if format.style == "grammar" else scripts
    return act_out(problems, scripts, tokenizer, format, tools)


def act_out(
    problems, scripts, tokenizer: Tokenizer, format: Format, tools: dict, starts=None
) -> list[Trajectory]:
    """What the scripts say, written down, with their calls run; each goes on from its start, a Trajectory, where there are any."""
    calls = dict.fromkeys(
        (kind, text) for pieces in scripts for kind, text in pieces if kind in tools
    )
    futures = {(kind, text): tools[kind].submit(text) for kind, text in calls}
    results = {
        call: future.result()
        for call, future in tqdm(futures.items(), desc="teacher's calls", leave=False)
    }
    for name in tools:
        check_alive(name, [result for (kind, _), result in results.items() if kind == name])
    starts = starts or [None] * len(scripts)
    return [
        _write(problem, pieces, results, tokenizer, format, start)
        for problem, pieces, start in zip(problems, scripts, starts)
    ]


def script(problem: Problem, rng: random.Random, config: TeacherConfig) -> list[tuple[str, str]]:
    """What the teacher says and calls, as (kind, text) pieces; the tools' outputs are still to come."""
    final = answer_sentence(problem.answer)
    quality = (1 + config.quality) / 2 if problem.kind == "C" else config.quality
    flaw = None if rng.random() < quality else rng.choices(list(FLAWS), list(FLAWS.values()))[0]
    solution = [
        (kind, restyled(text, rng, config.styles) if kind == "python" else text)
        for kind, text in problem.solution
    ]
    if config.format == "program":
        return [piece for piece in solution if piece[0] != "text"] or [
            ("python", repr(problem.answer))
        ]
    in_words = config.rationales and rng.random() < config.rationales
    if config.format == "rationale" or in_words or problem.kind == "C" and flaw is None:
        return [("text", f"{problem.rationale} {final}")]
    if flaw == "guess" and problem.kind != "C":
        return [
            (
                "text",
                final if problem.kind == "B" else answer_sentence(wrong_guess(problem.answer, rng)),
            )
        ]
    pieces = [again for piece in solution for again in repeated(piece, rng, config.twice)]
    if flaw == "wrong tool":
        pieces = [("text", "I look it up."), ("search", problem.question.rstrip("?.")), *pieces]
    elif flaw == "bug":
        pieces = [bugged for piece in pieces for bugged in with_bug(piece, rng)]
    return pieces + ([("text", final)] if flaw != "no answer" else [])


def in_grammar(pieces) -> list[tuple[str, str]]:
    """Words become thoughts, but for the sentence that states the answer."""
    written = []
    for kind, text in pieces:
        thought, final, answer = (
            text.partition("The answer is ") if kind == "text" else ("", "", "")
        )
        parts = (
            (("think", thought.strip()), ("answer", final + answer))
            if kind == "text"
            else ((kind, text),)
        )
        written += [(part, words) for part, words in parts if words]
    return written


def wrong_guess(answer: str, rng: random.Random) -> str:
    """The answer with its digits (or, where it has none, its words) replaced: plausible at a glance."""
    digit = lambda character: rng.choice("123456789") if character.isdigit() else character
    while True:
        guess = (
            "".join(map(digit, answer))
            if any(map(str.isdigit, answer))
            else rng.choice(("Ada", "Ben", "Velmo", "Tarn"))
        )
        if not equivalent(guess, answer):
            return guess


def restyled(code: str, rng, styles: int) -> str:
    """The same program: ending in an expression, in a print, or with a name for its value."""
    head, newline, last = code.rpartition("\n")
    return (
        head + newline + rng.choice((last, f"print({last})", f"r={last}\nr")[:styles])
        if styles > 1
        else code
    )


def repeated(piece, rng, share: float):
    """A call, sometimes followed by the same one."""
    return (
        [piece, ("text", "To be sure:"), piece]
        if piece[0] != "text" and share and rng.random() < share
        else [piece]
    )


def with_bug(piece, rng):
    """A program that fails, the teacher's remark on the error, and the program as it should have been."""
    kind, code = piece
    if kind != "python":
        return [piece]
    spoil = rng.choice(
        (
            lambda c: c + ")",
            lambda c: c.replace("import", "inport") if "import" in c else c + "+",
            lambda c: "(" + c,
        )
    )
    return [(kind, spoil(code)), ("text", "That failed. Again."), piece]


def _write(problem, pieces, results, tokenizer, format, start=None) -> Trajectory:
    written, calls = [], []
    for kind, text in pieces:
        written.append((kind, text))
        if result := results.get((kind, text)):
            written.append(("output", result.output))
            calls.append(Call(kind, text, result))
    trajectory = format.trajectory(tokenizer, problem.question, written, start=start)
    trajectory.calls += calls
    return trajectory
