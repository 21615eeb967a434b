"""The scripted teacher: it turns problems into demonstrations for imitation.

The teacher calls the real tools and quotes their real outputs. At quality 1 each demonstration is
sound: it calls a tool where a tool helps, and reasons in words where the problem is easy (kind C).
Below 1, some demonstrations have one of the FLAWS, so that reinforcement learning has something to
improve:

    guess        a wrong answer without a call; for an easy problem, a call that is not needed
    wrong tool   a search before the right call
    bug          a program that fails, and then the correct one
    no answer    the final answer is missing

Easy problems get half as many flaws.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from random import Random
from typing import Annotated

from tqdm import tqdm

from nanotir.answers import equivalent
from nanotir.checks import Range, Share, check_settings, one_of
from nanotir.problems import Problem
from nanotir.processes import once
from nanotir.tokenizer import Tokenizer
from nanotir.tools import TOOLS, Tool, ToolResult, check_alive
from nanotir.trajectory import Call, Format, Trajectory

Piece = tuple[str, str]  # (kind, text); kind is "text", the name of a tool, "think" or "answer"

FORMATS = ("tool", "rationale", "program")
FLAWS = {"guess": 0.76, "wrong tool": 0.05, "bug": 0.05, "no answer": 0.14}  # shares of the flawed

Styles = Annotated[int, Range(1, 3)]


@dataclass
class TeacherConfig:
    quality: Share = 0.3  # share of demonstrations without a flaw; only the format tool has flaws
    rationales: Share = 0.0  # share of demonstrations in words alone, whatever the problem
    styles: Styles = 1  # number of ways in which the teacher writes the same program
    twice: Share = 0.0  # share of calls that are repeated, to make sure
    bugs: Share = 0.0  # share of demonstrations whose programs fail first, beside the flawed ones
    format: str = "tool"  # tool: words and calls; rationale: words only; program: calls only

    def __post_init__(self):
        check_settings(self, "teacher")
        one_of("demonstration format", self.format, FORMATS)


def corpus(problems: Iterable[Problem], documents: Iterable[str] = ()) -> Iterator[str]:
    """The texts to train a tokenizer on: questions, solutions, answers and documents."""
    for problem in problems:
        yield problem.question
        if problem.solution:
            yield from (text for _, text in problem.solution)
        else:
            yield problem.rationale
        yield answer_sentence(problem.answer)
    yield from documents


def answer_sentence(answer: str) -> str:
    return f"The answer is \\boxed{{{answer}}}."


def demonstrate(
    problems: list[Problem],
    tokenizer: Tokenizer,
    format: Format,
    tools: dict[str, Tool],
    config: TeacherConfig,
    seed: int = 0,
) -> list[Trajectory]:
    """One demonstration for each problem. Calls of tools that are not in `tools` are left out."""
    scripts = []
    for i, problem in enumerate(problems):
        pieces = script(problem, Random(f"teacher {seed} {i}"), config)
        for kind, _ in pieces:
            one_of(f"tool for the solutions of '{problem.family}'", kind, ("text", *TOOLS))
        pieces = within(pieces, tools)
        scripts.append(in_grammar(pieces) if format.style == "grammar" else pieces)
    return act_out(problems, scripts, tokenizer, format, tools)


def within(pieces: Iterable[Piece], tools: Iterable[str]) -> list[Piece]:
    """The pieces without calls of other tools than these."""
    return [piece for piece in pieces if piece[0] == "text" or piece[0] in tools]


def act_out(
    problems: list[Problem],
    scripts: list[list[Piece]],
    tokenizer: Tokenizer,
    format: Format,
    tools: dict[str, Tool],
    starts: list[Trajectory] | None = None,
) -> list[Trajectory]:
    """Run the calls of the scripts and write each script down as a trajectory.

    With `starts`, each script continues a copy of the trajectory at the same place in that list.
    """
    results = once(_run_calls, scripts, tools)
    trajectories = []
    for problem, pieces, start in zip(problems, scripts, starts or repeat(None)):
        written, calls = [], []
        for piece in pieces:
            written.append(piece)
            if piece in results:
                written.append(("output", results[piece].output))
                calls.append(Call(*piece, results[piece]))
        trajectory = format.trajectory(tokenizer, problem.question, written, start=start)
        trajectory.calls += calls
        trajectories.append(trajectory)
    return trajectories


def _run_calls(scripts: list[list[Piece]], tools: dict[str, Tool]) -> dict[Piece, ToolResult]:
    # A dict drops equal calls, so each call runs once. The tools run many calls at the same time.
    calls = dict.fromkeys(piece for pieces in scripts for piece in pieces if piece[0] in tools)
    texts = {name: [text for kind, text in calls if kind == name] for name in tools}
    running = {name: tools[name].run_all(texts[name]) for name in tools}
    results = {}
    with tqdm(calls, "teacher's calls", leave=False, dynamic_ncols=True) as bar:
        for name in tools:
            for text, result in zip(texts[name], running[name]):
                results[name, text] = result
                bar.update()

    # On a busy machine a call may run out of time. It runs once more, alone, so that
    # equal seeds give equal demonstrations.
    late = [call for call, result in results.items() if result.status == "timeout"]
    for kind, text in late:
        results[kind, text] = tools[kind].run(text)

    # A dead tool would teach its error messages: stop instead.
    for name in tools:
        check_alive(name, [result for (kind, _), result in results.items() if kind == name])
    return results


def script(problem: Problem, rng: Random, config: TeacherConfig) -> list[Piece]:
    """What the teacher says and calls, without the outputs of the tools."""
    # Keep the order of the random draws: it decides which demonstrations a seed gives.
    flaw = _flaw(problem, rng, config)
    solution = list(problem.solution) or [("text", f"{problem.rationale} ".lstrip())]
    if config.format == "program" and problem.kind == "E":
        solution = [in_the_answers_words(piece, problem.answer) for piece in solution]
    solution = [_restyled(piece, rng, config.styles) for piece in solution]
    if config.format == "program":
        # A solution without a call (kind B) becomes a program that is the answer itself.
        calls = [piece for piece in solution if piece[0] != "text"]
        return calls or [("python", repr(problem.answer))]

    in_words = config.rationales > 0 and rng.random() < config.rationales
    final = answer_sentence(problem.answer)
    is_easy = problem.kind == "C"
    if config.format == "rationale" or in_words or (is_easy and flaw is None):
        return [("text", f"{problem.rationale} {final}")]
    if flaw == "guess" and not is_easy:
        # For kind B the answer stays right: only its reasons are missing.
        if problem.kind != "B":
            final = answer_sentence(wrong_guess(problem.answer, rng))
        return [("text", final)]

    pieces = []
    for piece in solution:
        pieces.append(piece)
        if piece[0] != "text" and config.twice > 0 and rng.random() < config.twice:
            pieces += [("text", "To be sure:"), piece]
    if flaw == "wrong tool":
        query = problem.question.rstrip("?.")
        pieces = [("text", "I look it up."), ("search", query), *pieces]
    if flaw == "bug" or (config.bugs > 0 and rng.random() < config.bugs):
        pieces = _with_bugs(pieces, rng)
    if flaw != "no answer":
        pieces.append(("text", final))
    return pieces


def _flaw(problem: Problem, rng: Random, config: TeacherConfig) -> str | None:
    quality = (1 + config.quality) / 2 if problem.kind == "C" else config.quality
    if rng.random() < quality:
        return None
    return rng.choices(list(FLAWS), list(FLAWS.values()))[0]


def _restyled(piece: Piece, rng: Random, styles: int) -> Piece:
    """The same program: it ends in an expression, in a print, or in a name for its value."""
    kind, code = piece
    if kind != "python" or styles == 1:
        return piece
    return kind, rng.choice(ways_to_write(code, styles))


def ways_to_write(code: str, styles: int) -> list[str]:
    """The same program in that many styles."""
    head, newline, last = code.rpartition("\n")
    endings = (last, f"print({last})", f"r={last}\nr")
    return [head + newline + ending for ending in endings[:styles]]


def in_the_answers_words(piece: Piece, answer: str) -> Piece:
    """The program, with its values put into the words of the answer, if it has any."""
    kind, code = piece
    if kind != "python" or not re.search("[a-z]", answer):
        return piece
    words = re.sub(r"\d+", "{}", answer)
    return (kind, f"'{words}'.format(*{code})")


def _with_bugs(pieces: list[Piece], rng: Random) -> list[Piece]:
    """Before each program, a version that fails and the teacher's remark on the error."""
    written = []
    for kind, text in pieces:
        if kind == "python":
            misspelled = text.replace("import", "inport") if "import" in text else text + "+"
            buggy = rng.choice((text + ")", misspelled, "(" + text))
            written += [(kind, buggy), ("text", "That failed. Again.")]
        written.append((kind, text))
    return written


def wrong_guess(answer: str, rng: Random) -> str:
    """A wrong answer that resembles the right one: other digits or, where it has none, a name."""
    while True:
        if re.search(r"\d", answer):
            guess = re.sub(r"\d", lambda digit: rng.choice("123456789"), answer)
        else:
            guess = rng.choice(("Ada", "Ben", "Velmo", "Tarn"))
        if not equivalent(guess, answer):
            return guess


def in_grammar(pieces: list[Piece]) -> list[Piece]:
    """Words become pieces of kind "think", except for the last sentence, if it is an "answer"."""
    written = [("think", text.strip()) if kind == "text" else (kind, text) for kind, text in pieces]
    if written and written[-1][0] == "think":
        thought, start, answer = pieces[-1][1].rpartition("The answer is ")
        if start:
            written[-1:] = [("think", thought.strip()), ("answer", start + answer)]
    return [piece for piece in written if piece[1]]


def demonstrations(run) -> list[Trajectory]:
    """All problems of a run, demonstrated: what most recipes imitate first."""
    config = run.config
    return demonstrate(
        run.problems, run.tokenizer, run.format, run.tools_by_name, config.teacher, config.seed
    )
