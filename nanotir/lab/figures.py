"""An experiment's results as one picture, drawn by the page's code.

The main metric becomes a bar an arm. A metric that is a curve becomes a chart with a line an arm,
its mean over seeds; what stands behind the last "by" of its name is the x-axis. Metrics named
"MAP: ROW" are the rows of a map, one an arm, of its first seed: the experts of one seed have
nothing to do with those of another.
"""

from __future__ import annotations

import math

from nanotir.page.pictures import picture
from nanotir.page.svg import Line, bars, chart, heat_map, moved
from nanotir.scores import mean

WIDE, NARROW = 798, 390  # a whole row of the picture, and half of it
MOST = 12  # columns of a map for which half a row has room


def figure(results: dict) -> str:
    """All bars, charts and maps of an experiment's results as an SVG file; "" without any."""
    arms = list(results["arms"])
    parts, rows_of_maps = bars_of(results), {}
    for name, curves in results["curves"].items():
        title, colon, row = name.partition(": ")
        for arm, seeds in curves.items() if colon else ():
            rows = rows_of_maps.setdefault((title, arm), {})
            rows[row] = next(iter(seeds.values()))
        if not colon and (lines := lines_of(curves, name, arms)):
            parts.append((*chart(lines, name, "mean of seeds", x_label(name)), NARROW))
    for (title, arm), rows in rows_of_maps.items():
        wide = max(map(len, rows.values())) > MOST
        width = WIDE if wide else NARROW
        parts.append((*heat_map(rows, f"{title}: {arm}", "percent", width), width))
    if not parts:
        return ""
    marks, height = placed(parts)
    caption = "Bars and lines are means over seeds, with 95% intervals. Maps are of the first seed."
    return picture(height, f"{results['number']}. {results['name']}", caption, marks)


def bars_of(results: dict) -> list[tuple]:
    """(marks, height, width) of the main metric of all arms that have it, if there are any."""
    metric = results["metrics"][0]
    means = {arm: row["mean"].get(metric, [None]) for arm, row in results["arms"].items()}
    rows = {arm: found for arm, found in means.items() if found[0] is not None}
    return [(*bars(rows, metric, "mean of seeds", NARROW), NARROW)] if rows else []


def lines_of(curves: dict, name: str, arms: list[str]) -> list[Line]:
    """A line an arm. An arm has the same colour in all charts; from the seventh on it is dashed."""
    lines = []
    for arm, seeds in curves.items():
        if points := mean_curve(list(seeds.values())):
            if x_label(name).startswith("log2"):
                points = [(math.log2(x), y) for x, y in points]
            i = arms.index(arm)
            lines.append(Line(arm, points, f"c{i % 6}" + " dash" * (i > 5)))
    return lines


def mean_curve(seeds: list[list]) -> list[tuple[float, float]]:
    """The mean over seeds at every x where all have a value."""
    curves = [{x: y for x, y in points if y is not None} for points in seeds]
    shared = [x for x in curves[0] if all(x in curve for curve in curves)]
    return [(x, mean([curve[x] for curve in curves])) for x in shared]


def x_label(name: str) -> str:
    _, by, label = name.rpartition(" by ")
    if not by:
        return "step"
    return "log2 of k" if label == "k" else label


def placed(parts: list[tuple]) -> tuple[list[str], float]:
    """(marks, height) of parts (marks, height, width), two narrow ones beside each other."""
    marks, x, y, height = [], 0, 70, 0
    for part, tall, width in parts:
        if x + width > WIDE:
            x, y, height = 0, y + height, 0
        marks.append(moved(16 + x, y, part))
        x += width + WIDE - 2 * NARROW
        height = max(height, tall + 16)
    return marks, y + height
