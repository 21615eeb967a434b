"""Measurements of two checkouts in turn, so that a busy machine slows both."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parents[2]
ROUNDS = 3


def compare(names: list[str], folder: str, run):
    """Print how many times as large each figure of the checkout in `folder` is as this one's.

    One JSON line a measurement: {figure: [median of the rounds, lowest, highest]}. Figures that are
    no numbers, or 0, are left out. ValueError for a folder that is no checkout, or cannot measure.
    """
    if not (Path(folder) / "nanotir/bench/__main__.py").is_file():
        raise ValueError(f"'{folder}' is no checkout of nanotir: it has no nanotir/bench")
    for name in names:
        ratios: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            new, old = (measured(checkout, name, run) for checkout in (HERE, folder))
            for figure in filter(new.get, new):
                if isinstance(new[figure], (int, float)) and old.get(figure):
                    ratios.setdefault(figure, []).append(old[figure] / new[figure])
        spread = {
            figure: [round(f(seen), 3) for f in (statistics.median, min, max)]
            for figure, seen in ratios.items()
        }
        print(json.dumps({"name": name, **spread}), flush=True)


def measured(checkout, name: str, run) -> dict:
    """The figures of one measurement in a checkout, made by a process of its own."""
    command = [sys.executable, "-m", "nanotir.bench", "--only", name, "--run", Path(run).absolute()]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    if done.returncode:
        why = (done.stderr.strip() or "no reason given").splitlines()[-1]
        raise ValueError(f"'{checkout}' cannot measure {name}: {why.removeprefix('bench: ')}")
    return json.loads(done.stdout)
