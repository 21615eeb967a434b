"""What fits into a row of the model, found out before anything trains.

What does not fit is an error that names where it was read, or with `too_long` "skip" it is left out
and counted in one line.
"""

from __future__ import annotations

import sys

from nanotir.problems import Problem
from nanotir.trajectory import Trajectory

TOO_LONG = ("error", "skip")


def problems_with_room(
    problems: list[Problem], tokenizer, format, max_seq_len: int, too_long: str = "error"
) -> list[Problem]:
    """The problems whose prompts leave room for at least one id of an answer."""
    if not problems:
        raise ValueError("no problems: a family without numbers has none that are longer")
    rows = []
    for problem in problems:
        length = len(format.prompt(tokenizer, problem.question))
        what = f"{problem.name}: a prompt of {length} ids leaves no room to answer"
        rows.append((problem, what, length < max_seq_len))
    return fitting(rows, "problems", max_seq_len, too_long)


def has_room(problem: Problem, run) -> bool:
    """Whether a run's model can answer it."""
    prompt = run.format.prompt(run.tokenizer, problem.question)
    return len(prompt) < run.model.config.max_seq_len


def demonstrations_with_room(run, demonstrations: list[Trajectory]) -> list[Trajectory]:
    """The demonstrations, of a run's problems, that are no longer than a row."""
    limit = run.config.model.max_seq_len
    if all(len(shown.ids) <= limit for shown in demonstrations):  # names take seconds
        return demonstrations
    names = {}
    for problem in run.problems:
        names[tuple(run.format.prompt(run.tokenizer, problem.question))] = problem.name
    rows = []
    for shown in demonstrations:
        name = names[tuple(shown.ids[: shown.spans[0].end])]
        what = f"{name}: a demonstration of {len(shown.ids)} ids does not fit into a row"
        rows.append((shown, what, len(shown.ids) <= limit))
    return fitting(rows, "demonstrations", limit, run.config.too_long)


def fitting(rows: list[tuple], kind: str, limit: int, too_long: str) -> list:
    """Of rows (item, what is wrong if it does not fit, whether it fits) the items that fit."""
    faults = [what for _, what, fits in rows if not fits]
    if not faults:
        return [item for item, _, _ in rows]
    first = f"{faults[0]}: model.max_seq_len is {limit}"
    if len(faults) == len(rows):
        raise ValueError(f"{first}; none of the {kind} fits")
    if too_long == "error":
        others = f" ({len(faults)} {kind} are too long)" if len(faults) > 1 else ""
        raise ValueError(f"{first}{others}; --too-long skip leaves such {kind} out")
    counted = f"left out {len(faults)} of {len(rows)} {kind}, the first is {first}"
    print(counted, file=sys.stderr)  # what a command prints on stdout may be read by a program
    return [item for item, _, fits in rows if fits]


def slot_for(prompts: list[tuple[int, ...]], config, max_seq_len: int) -> int:
    """Ids that a row of a rollout may have, by a SamplerConfig: the longest prompt, and an answer.

    ValueError for a prompt of no ids, and for one that leaves no room to answer.
    """
    if not all(prompts):
        raise ValueError("a prompt of no tokens: give the model at least one to go on from")
    longest = max(map(len, prompts), default=0)
    if longest >= max_seq_len:
        full = f"a prompt of {longest} tokens leaves no room to answer"
        raise ValueError(f"{full}: model.max_seq_len is {max_seq_len}")
    return min(max_seq_len, longest + config.max_new_tokens + config.max_tool_tokens)
