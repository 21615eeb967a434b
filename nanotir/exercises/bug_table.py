"""Which probe shows which bug: BUGS.md, measured and printed in half an hour of processor time."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import torch

from nanotir.exercises.bug_list import BUGS, Bug
from nanotir.exercises.bugs import plant
from nanotir.exercises.probes import GAP, SOLVED, WORLDS
from nanotir.lab.tables import table_row

PROCESSES = 2

ABOUT = """# The silent bugs, and what the probes see of them

For the teacher: this names the bugs of bug_list.py. Hunt N with seed S is for bug number
(S + 9 (N - 1)) mod {bugs}. It is printed by

    python -m nanotir.exercises.bug_table > nanotir/exercises/BUGS.md

- A cell is the rollout at which a world was solved, that is, earned {solved} on average: the median
  of {seeds} seeds.
- Or it is from how many seeds the world was not solved in half as many rollouts again as the
  slowest seed needs without a bug, and the median of the highest rewards. It is **bold** where
  these are most seeds: one alone may be chance.
- "gap": whether sampler and trainer disagree on the log-prob of an id by more than {gap}.
- Points are for the place: 2 where a probe is not solved, 3 where the gap, the traces or a metric
  show the bug, 4 where only reading does.
- Bugs 13 and 18 are at the edge: here a probe shows each of them from three seeds. In two earlier
  measurements it was one of them, in one 13 and in the other 18. Their points are older."""


def document(seeds: int) -> str:
    """BUGS.md. Two processes at a time, about two minutes of processor time for each bug."""
    with ThreadPoolExecutor(PROCESSES) as pool:
        clean, *planted = pool.map(lambda bug: measure(bug, seeds), [None, *BUGS])
    return markdown(clean, planted, seeds)


def measure(bug: Bug | None, seeds: int) -> list[list[dict]]:
    """The Climbs of each world, as dicts, in a copy of the package with a bug, or without one."""
    command = [sys.executable, "-m", "nanotir.exercises", "probe", "--json", "--seeds", str(seeds)]
    with tempfile.TemporaryDirectory() as folder:
        plant(bug, Path(folder))
        shown = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    rows = [json.loads(line) for line in shown.stdout.splitlines()]
    if len(rows) != seeds * len(WORLDS):
        raise ValueError(f"the probes did not end: {shown.stderr.strip()[-300:]}")
    print(bug.what if bug else "without a bug", file=sys.stderr, flush=True)
    return [[row for row in rows if row["world"] == world.name] for world in WORLDS]


def markdown(clean: list[list[dict]], planted: list[list[list[dict]]], seeds: int) -> str:
    """The document from the Climbs of each world without a bug, and with each of BUGS."""
    about = ABOUT.format(bugs=len(BUGS), solved=SOLVED, seeds=seeds, gap=GAP)
    lines = [table_row("", "bug", "file", "points", *(world.name for world in WORLDS), "gap")]
    lines += ["|" + "---|" * (5 + len(WORLDS)), table_row("", "none", "", "", *cells_of(clean))]
    unseen = []
    for place, (bug, worlds) in enumerate(zip(BUGS, planted, strict=True)):
        cells = cells_of(worlds)
        lines.append(table_row(str(place), bug.what, f"`{bug.file}`", str(bug.points), *cells))
        if not any("*" in text for text in cells):
            unseen.append(str(place))
    found = f"{len(BUGS) - len(unseen)} of {len(BUGS)} bugs are shown by a probe or by the gap. "
    found += f"Those that are not: {', '.join(unseen) or 'none'}."
    seconds = sum(row["seconds"] for worlds in [clean, *planted] for rows in worlds for row in rows)
    cpu = torch.backends.cpu.get_cpu_capability()
    cost = f"Processor time: {seconds / 60:.0f} minutes, one thread each, {cpu}. Without a bug:"
    times = [f"{world.name} {spread(rows)}" for world, rows in zip(WORLDS, clean)]
    cost += f" {', '.join(times)} (medians of seconds, with the shortest and the longest)."
    return "\n".join([about, "", *lines, "", found, "", cost])


def spread(rows: list[dict]) -> str:
    seconds = sorted(row["seconds"] for row in rows)
    return f"{median(seconds):.1f} ({seconds[0]:.1f} to {seconds[-1]:.1f})"


def cells_of(worlds: list[list[dict]]) -> list[str]:
    """How each world was learned, and whether sampler and trainer agree."""
    gap = max(row["gap"] for rows in worlds for row in rows)
    return [*map(cell, worlds), "**yes**" if gap > GAP else "no"]


def cell(rows: list[dict]) -> str:
    """How a world was learned from several seeds."""
    if any(row["error"] for row in rows):
        return "**error**"
    if missed := sum(row["solved"] is None for row in rows):
        text = f"{missed} of {len(rows)}: {median(row['best'] for row in rows):.2f}"
        return f"**{text}**" if 2 * missed > len(rows) else text
    return f"{median(row['solved'] for row in rows):.0f}"


if __name__ == "__main__":
    print(document(seeds=5))
