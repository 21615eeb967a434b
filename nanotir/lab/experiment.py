"""An experiment: a claim in one sentence, the arms that could refute it, and the verdict that follows from their numbers.

Arms are compared seed by seed: the same seed means the same problems and the same start, so the difference of two arms varies less than
either arm. The verdict is read off the 95% interval of that difference, by a rule that stands here, before any data.

    shown      the whole interval lies on the claim's side          reversed   the whole interval lies on the other side
    not shown  the interval holds both, or there is none, as with one seed
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

QUANTILES = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
)  # 97.5% of Student's t with 1..10 degrees of freedom
MAX_SEEDS = len(QUANTILES) + 1


@dataclass(frozen=True)
class Arm:
    key: str  # names the cell in the cache: the same key in two experiments is the same computation, done once
    run: Callable[
        [int, bool, Path], dict
    ]  # (seed, quick, folder for its files) -> metrics: numbers, None where undefined, or curves [[x, y], ..]


@dataclass(frozen=True)
class Compare:
    """One part of a claim: one arm does better than another."""

    better: str  # an arm's name
    worse: str
    metric: str = "accuracy"
    lower: bool = False  # the smaller the better
    margin: float = 0.0  # what `better` may lose by and still be called not worse
    metric_worse: str | None = (
        None  # the other arm's metric where it is not the same, as when two metrics of one arm are compared
    )


@dataclass(frozen=True)
class Experiment:
    number: int  # in the list of experiments
    name: str
    system: str  # the published system whose idea it is
    claim: str  # one sentence
    source: str
    published: str  # the published figure, or "none known"
    measure: str
    expected: str
    arms: dict[str, Arm]
    compare: tuple[Compare, ...]  # the claim's parts, the main one first
    control: str = ""  # the arm with random rewards: what training does when it is told nothing
    figure: tuple[
        str, ...
    ] = ()  # curves to draw, one figure each; the x of "pass by k" is k, of "pass" the step
    tuned: str = ""  # one sentence: how the difficulty of the task was fixed

    def __post_init__(self):
        named = {name for part in self.compare for name in (part.better, part.worse)} | (
            {self.control} if self.control else set()
        )
        assert self.compare and named <= self.arms.keys(), (
            f"experiment '{self.name}' compares arms that it lacks, or none"
        )

    @property
    def metrics(self) -> tuple[str, ...]:
        """The compared metrics, the main one first."""
        return tuple(
            dict.fromkeys(
                metric
                for part in self.compare
                for metric in (part.metric, part.metric_worse or part.metric)
            )
        )


def interval(values) -> tuple:
    """(mean, low, high) of the values that are defined: mean +- t * s / sqrt(n), the 95% interval (Student 1908). One value has no interval."""
    values = [value for value in values if value is not None]
    n = len(values)
    if n < 2:
        return (values[0] if values else None), None, None
    mean = sum(values) / n
    deviation = (sum((value - mean) ** 2 for value in values) / (n - 1)) ** 0.5
    half = QUANTILES[n - 2] * deviation / n**0.5
    return mean, mean - half, mean + half


def judge(experiment: Experiment, cells: dict) -> list[dict]:
    """Every comparison's numbers and verdict. cells: {arm: {seed: {"metrics": .., "seconds": ..}}}."""
    pair = lambda part: (
        values(cells, part.better, part.metric),
        values(cells, part.worse, part.metric_worse or part.metric),
    )
    return [compare(part, *pair(part)) for part in experiment.compare]


def values(cells: dict, arm: str, metric: str) -> dict:
    """{seed: value} of one metric of one arm."""
    found = {seed: cell["metrics"] for seed, cell in cells[arm].items()}
    for metrics in found.values():
        if metric not in metrics:
            raise ValueError(
                f"arm '{arm}' gives no '{metric}', but {', '.join(metrics)}; if its code has changed, delete its cells and run again"
            )
    return {seed: metrics[metric] for seed, metrics in found.items()}


def compare(part: Compare, better: dict, worse: dict) -> dict:
    """The part's differences, paired by seed and positive where `better` is better. A seed where either is undefined has none."""
    pairs = [
        (better[seed], worse[seed])
        for seed in better
        if better[seed] is not None and worse[seed] is not None
    ]
    difference, low, high = interval([b - w if not part.lower else w - b for b, w in pairs])
    return {
        "better": part.better,
        "worse": part.worse,
        "metric": part.metric,
        "metric_worse": part.metric_worse or part.metric,
        "lower": part.lower,
        "margin": part.margin,
        "seeds": len(pairs),
        "better_mean": shorten(interval(b for b, _ in pairs)[0]),
        "worse_mean": shorten(interval(w for _, w in pairs)[0]),
        "difference": shorten(difference),
        "low": shorten(low),
        "high": shorten(high),
        "verdict": verdict(low, high, part.margin),
    }


def verdict(low, high, margin: float = 0.0) -> str:
    if low is None:
        return "not shown"
    return "shown" if low > -margin else "reversed" if high < -margin else "not shown"


def overall(verdicts) -> str:
    """The verdict on a claim from those on its parts."""
    seen = set(verdicts)
    if seen == {"shown"}:
        return "shown"
    if "reversed" in seen:
        return "not shown" if "shown" in seen else "reversed"
    return "partly shown" if "shown" in seen else "not shown"


def summarise(experiment: Experiment, cells: dict, quick: bool) -> dict:
    """Everything that results.json says, from which tables and figures are made."""
    seconds = {
        (experiment.arms[arm].key, seed): cell["seconds"]
        for arm, row in cells.items()
        for seed, cell in row.items()
    }  # each cell once
    parts = judge(experiment, cells)
    stated = (
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
    return {
        **{field: getattr(experiment, field) for field in stated},
        "seeds": max(len(row) for row in cells.values()),
        "quick": quick,
        "minutes": round(sum(seconds.values()) / 60, 2),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "arms": {arm: describe(row) for arm, row in cells.items()},
        "curves": {metric: curves(cells, metric) for metric in experiment.figure},
        "parts": parts,
        "verdict": overall(part["verdict"] for part in parts),
    }


def describe(row: dict) -> dict:
    """One arm's numbers, seed by seed, and each one's mean with its interval."""
    scalars = {
        seed: {k: shorten(v) for k, v in cell["metrics"].items() if not isinstance(v, list)}
        for seed, cell in row.items()
    }
    names = dict.fromkeys(name for metrics in scalars.values() for name in metrics)
    means = {
        name: [shorten(v) for v in interval(metrics.get(name) for metrics in scalars.values())]
        for name in names
    }
    return {"seeds": {str(seed): metrics for seed, metrics in scalars.items()}, "mean": means}


def curves(cells: dict, metric: str) -> dict:
    """{arm: {seed: [[x, y], ..]}} of the arms that have this curve."""
    having = {
        arm: row
        for arm, row in cells.items()
        if all(metric in cell["metrics"] for cell in row.values())
    }
    return {
        arm: {
            str(seed): [[x, shorten(y, 4)] for x, y in cell["metrics"][metric]]
            for seed, cell in row.items()
        }
        for arm, row in having.items()
    }


def shorten(value, digits: int = 6):
    """A number with so many significant digits: results are committed. None where it is undefined, also by having overflowed."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{digits}g}")
