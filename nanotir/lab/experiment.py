"""An experiment: a claim, the arms that could refute it, and the verdict on it.

Arms are compared seed by seed. The same seed means the same problems and the same start, so the
difference of two arms varies less than either arm. The verdict follows from the 95% interval of
that difference. The rule was fixed before any data was seen:

    shown      the whole interval lies on the claim's side
    reversed   the whole interval lies on the other side
    not shown  the interval covers both sides, or there is no interval, as with one seed
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

# The 97.5% quantiles of Student's t distribution with 1 to 10 degrees of freedom.
QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
MAX_SEEDS = len(QUANTILES) + 1

# The fields of an experiment that its results repeat, so that tables need nothing else.
STATED = (
    "name",
    "number",
    "system",
    "claim",
    "source",
    "published",
    "measure",
    "expected",
    "tuned",
    "control",
    "metrics",
)


@dataclass(frozen=True)
class Arm:
    key: str  # name of the stored cell; two arms with the same key are the same computation

    # (seed, quick, folder for its files) -> metrics.
    # A metric is a number, None where it is undefined, or a curve [[x, y], ...].
    run: Callable[[int, bool, Path], dict]


@dataclass(frozen=True)
class Compare:
    """One part of a claim: the arm `better` does better than the arm `worse`."""

    better: str
    worse: str
    metric: str = "accuracy"
    lower: bool = False  # smaller values are better
    margin: float = 0.0  # how much `better` may lose and still count as not worse
    metric_worse: str | None = None  # metric of the arm `worse`, if it is a different one
    equal: bool = False  # the claim is that both are equal, up to the margin on either side
    claimed: bool = True  # False: a condition that the claim's sentence does not mention


@dataclass(frozen=True, kw_only=True)
class Experiment:
    number: int  # position in the list of experiments
    name: str
    system: str  # the published system that proposed the idea
    claim: str  # one sentence
    source: str
    published: str  # the published figure, or "none known"
    measure: str
    expected: str
    arms: dict[str, Arm]
    compare: tuple[Compare, ...]  # parts of the claim, the main one first
    control: str = ""  # the arm with random rewards: training without any information
    figure: tuple[str, ...] = ()  # curves to draw; "pass by k" is pass over k, "loss" is over
    # steps, "experts: words" is a row of a map: see figures.py
    tuned: str = ""  # one sentence: how the difficulty of the task was chosen
    first_seed: int = 1  # of those that count; later where seeds before it led to a setting
    needs: str = ""  # a folder of data that does not come with the project

    def __post_init__(self):
        named = {self.control} if self.control else set()
        for part in self.compare:
            named |= {part.better, part.worse}
        assert self.compare and named <= self.arms.keys(), (
            f"experiment '{self.name}' compares arms that it lacks, or none"
        )

    @property
    def metrics(self) -> tuple[str, ...]:
        """The compared metrics, each once, the main one first."""
        names = []
        for part in self.compare:
            names += [part.metric, part.metric_worse or part.metric]
        return tuple(dict.fromkeys(names))


def interval(values: Iterable[float | None]) -> tuple:
    """(mean, low, high) of the values that are defined: mean +- t * s / sqrt(n).

    This is the 95% interval of Student (1908). A single value has no interval.
    """
    values = [value for value in values if value is not None]
    n = len(values)
    if n < 2:
        return (values[0] if values else None), None, None

    mean = sum(values) / n
    deviation = (sum((value - mean) ** 2 for value in values) / (n - 1)) ** 0.5
    half = QUANTILES[n - 2] * deviation / n**0.5
    return mean, mean - half, mean + half


def judge(experiment: Experiment, cells: dict) -> list[dict]:
    """Numbers and verdict of every comparison.

    cells: {arm: {seed: {"metrics": ..., "seconds": ...}}}.
    """
    parts = []
    for part in experiment.compare:
        better = values(cells, part.better, part.metric)
        worse = values(cells, part.worse, part.metric_worse or part.metric)
        parts.append(compare(part, better, worse))
    return parts


def values(cells: dict, arm: str, metric: str) -> dict[int, float | None]:
    """{seed: value} of one metric of one arm."""
    found = {}
    for seed, cell in cells[arm].items():
        if metric not in cell["metrics"]:
            raise ValueError(
                f"arm '{arm}' gives no '{metric}', but {', '.join(cell['metrics'])}; "
                "if its code has changed, delete its cells and run again"
            )
        found[seed] = cell["metrics"][metric]
    return found


def compare(part: Compare, better: dict, worse: dict) -> dict:
    """Differences paired by seed, positive where `better` is better.

    A seed where either value is undefined has no difference.
    """
    defined = [seed for seed in better if better[seed] is not None and worse[seed] is not None]
    larger, smaller = (worse, better) if part.lower else (better, worse)
    difference, low, high = interval(larger[seed] - smaller[seed] for seed in defined)
    return {
        "better": part.better,
        "worse": part.worse,
        "metric": part.metric,
        "metric_worse": part.metric_worse or part.metric,
        "lower": part.lower,
        "margin": part.margin,
        "seeds": len(defined),
        "better_mean": shorten(interval(better[seed] for seed in defined)[0]),
        "worse_mean": shorten(interval(worse[seed] for seed in defined)[0]),
        "difference": shorten(difference),
        "low": shorten(low),
        "high": shorten(high),
        "equal": part.equal,
        "claimed": part.claimed,
        "verdict": verdict(low, high, part.margin, part.equal),
    }


def verdict(low: float | None, high: float | None, margin: float = 0.0, equal: bool = False) -> str:
    """The verdict on one part of a claim, from the interval of its difference.

    Of an equality, both ends of the interval count: "shown" if it lies within the margin,
    "reversed" if it lies outside.
    """
    if low is None:
        return "not shown"
    if equal:
        if -margin < low and high < margin:
            return "shown"
        return "reversed" if high < -margin or low > margin else "not shown"
    if low > -margin:
        return "shown"
    return "reversed" if high < -margin else "not shown"


def overall(parts: Iterable[dict]) -> str:
    """The verdict on a claim, from those on its parts and on its conditions.

    A condition, as that rewards teach more than random ones do, is not part of the claim: it can
    only lower the verdict.
    """
    parts = list(parts)
    seen = {part["verdict"] for part in parts if part["claimed"]}
    conditions = {part["verdict"] for part in parts if not part["claimed"]}
    if seen == {"shown"}:
        return "shown" if conditions <= {"shown"} else "partly shown"
    if "shown" in seen:
        return "not shown" if "reversed" in seen else "partly shown"
    return "reversed" if "reversed" in seen else "not shown"


def summarise(experiment: Experiment, cells: dict, quick: bool) -> dict:
    """The contents of results.json, from which tables and figures are made."""
    parts = judge(experiment, cells)
    return {
        **{field: getattr(experiment, field) for field in STATED},
        "seeds": max(len(row) for row in cells.values()),
        "quick": quick,
        "minutes": round(total_seconds(experiment, cells) / 60, 2),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "commit": commits(cells),
        "arms": {arm: describe(row) for arm, row in cells.items()},
        "curves": {metric: curves(cells, metric) for metric in experiment.figure},
        "parts": parts,
        "verdict": overall(parts),
    }


def commits(cells: dict) -> str:
    """Those of the code that computed the cells: several, if that was done bit by bit."""
    found = {cell.get("commit", "unknown") for row in cells.values() for cell in row.values()}
    return ", ".join(sorted(found))


def total_seconds(experiment: Experiment, cells: dict) -> float:
    """Seconds of all cells. Arms with the same key share a cell, which counts once."""
    seconds = {}
    for arm, row in cells.items():
        for seed, cell in row.items():
            seconds[experiment.arms[arm].key, seed] = cell["seconds"]
    return sum(seconds.values())


def describe(row: dict) -> dict:
    """The numbers of one arm for every seed, and the mean and interval of each."""
    seeds, columns = {}, {}
    for seed, cell in row.items():
        numbers = seeds[str(seed)] = {}
        for name, value in cell["metrics"].items():
            if not isinstance(value, list):
                numbers[name] = shorten(value)
                columns.setdefault(name, []).append(numbers[name])

    means = {}
    for name, column in columns.items():
        means[name] = [shorten(value) for value in interval(column)]
    return {"seeds": seeds, "mean": means}


def curves(cells: dict, metric: str) -> dict:
    """{arm: {seed: [[x, y], ...]}} of the arms that have this curve; of a map, the first seed's."""
    found = {}
    for arm, row in cells.items():
        if all(metric in cell["metrics"] for cell in row.values()):
            drawn = list(row.items())[: 1 if ": " in metric else None]
            found[arm] = {str(seed): shorten_curve(cell["metrics"][metric]) for seed, cell in drawn}
    return found


def shorten_curve(points: list) -> list:
    return [[x, shorten(y, 4)] for x, y in points]


def shorten(value: float | None, digits: int = 6) -> float | None:
    """A number rounded to so many significant digits, since results are committed.

    None where it is undefined or has overflowed.
    """
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")
