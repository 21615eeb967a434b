"""report.html: one experiment on one page, in plain HTML and SVG. Nothing is loaded from anywhere and nothing runs."""

from __future__ import annotations

import math
from html import escape

COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#000000",
    "#999999",
)  # told apart by all eyes (Okabe and Ito 2008)
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 300, 64, 12, 12, 44
STYLE = "body{font:15px/1.5 sans-serif;max-width:860px;margin:2em auto;padding:0 1em}td{padding:2px 12px 2px 0}text{font:12px sans-serif}"


def report(results: dict) -> str:
    """The page, from what results.json says."""
    head = f"{results['number']}. {results['name']}"
    stated = [
        (field, str(results[field]))
        for field in ("source", "published", "measure", "expected", "tuned")
        if results[field]
    ]
    effort = (
        f"{results['seeds']} seeds, {results['minutes']} minutes, {results['machine']}, torch {results['torch']}"
        + ", quick" * results["quick"]
    )
    body = [
        f"<h1>{escape(head)}</h1><p><b>{escape(results['claim'])}</b></p><p>Verdict: <b>{escape(results['verdict'])}</b> ({escape(effort)})</p>",
        html_table(stated),
        "<h2>Arms</h2>",
        html_table(arm_rows(results)),
        "<h2>Comparisons</h2>",
        html_table(part_rows(results)),
        f"<h2>{escape(results['metrics'][0])}</h2><p>Mean and 95% interval over seeds.</p>",
        bars(results),
    ]
    for metric, arms in results["curves"].items():
        body.append(
            f"<h2>{escape(metric)}</h2><p>Mean over seeds; the band holds all of them.</p>{lines(metric, arms)}"
        )
    page = f'<head><meta charset="utf-8"><title>{escape(head)}</title><style>{STYLE}</style></head>\n<body>{"".join(body)}</body>'
    return f'<!DOCTYPE html>\n<html lang="en">{page}</html>\n'


def html_table(rows) -> str:
    return (
        "<table>"
        + "\n".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
        )
        + "</table>"
    )


def arm_rows(results: dict):
    """A header, then every metric of every arm: mean and interval."""
    names = list(
        dict.fromkeys(
            [
                *results["metrics"],
                *(name for arm in results["arms"].values() for name in arm["mean"]),
            ]
        )
    )
    yield ["arm", *names]
    for arm, described in results["arms"].items():
        yield [
            arm + " (control)" * (arm == results["control"]),
            *(spread(*described["mean"].get(name, [None] * 3)) for name in names),
        ]


def part_rows(results: dict):
    yield ["better", "worse", "metric", "difference in favour", "verdict"]
    for part in results["parts"]:
        metric = (
            part["metric"]
            if part["metric"] == part["metric_worse"]
            else f"{part['metric']} against {part['metric_worse']}"
        )
        note = ", lower is better" * part["lower"] + f", margin {part['margin']}" * bool(
            part["margin"]
        )
        yield [
            part["better"],
            part["worse"],
            metric + note,
            spread(part["difference"], part["low"], part["high"]),
            part["verdict"],
        ]


def spread(mean, low, high) -> str:
    show = lambda value: "-" if value is None else f"{value:.4g}"
    return show(mean) if low is None else f"{show(mean)} [{show(low)}, {show(high)}]"


def bars(results: dict) -> str:
    """One bar an arm: the first compared metric, from 0, with its interval."""
    metric = results["metrics"][0]
    means = {
        arm: described["mean"][metric]
        for arm, described in results["arms"].items()
        if described["mean"].get(metric, [None])[0] is not None
    }
    y, marks = axis_y(
        [0.0, *(value for mean in means.values() for value in mean if value is not None)], metric
    )
    step = (WIDTH - LEFT - RIGHT) / max(len(means), 1)
    for i, (mean, low, high) in enumerate(means.values()):
        middle, top, bottom = LEFT + step * (i + 0.5), min(y(mean), y(0)), max(y(mean), y(0))
        marks.append(
            f'<rect x="{middle - step * 0.3:.1f}" y="{top:.1f}" width="{step * 0.6:.1f}" height="{bottom - top:.1f}" fill="{colour(i)}"/>'
        )
        if low is not None:
            marks.append(
                f'<path d="M{middle:.1f} {y(low):.1f}V{y(high):.1f}" stroke="#333" stroke-width="2"/>'
            )
    return svg(marks + legend(means), HEIGHT + 18 * len(means))


def lines(metric: str, arms: dict) -> str:
    """One line an arm: the mean over seeds at the x that all seeds have, in a band from the lowest to the highest seed."""
    series = {arm: shared_points(list(seeds.values())) for arm, seeds in arms.items()}
    points = [point for row in series.values() for point in row] or [(0.0, [0.0])]
    label, _, x_label = metric.partition(" by ")
    y, marks = axis_y([value for _, ys in points for value in ys], label)
    x, x_marks = axis_x([x for x, _ in points], x_label or "step")
    for i, row in enumerate(series.values()):
        band = [(x(at), y(max(ys))) for at, ys in row] + [
            (x(at), y(min(ys))) for at, ys in reversed(row)
        ]
        marks.append(f'<polygon points="{path(band)}" fill="{colour(i)}" fill-opacity="0.15"/>')
        mean = [(x(at), y(sum(ys) / len(ys))) for at, ys in row]
        marks.append(
            f'<polyline points="{path(mean)}" fill="none" stroke="{colour(i)}" stroke-width="2"/>'
        )
    return svg(marks + x_marks + legend(series), HEIGHT + 18 * len(series))


def legend(names) -> list[str]:
    mark = lambda i: (
        f'<rect x="{LEFT}" y="{HEIGHT + 18 * i - 4}" width="12" height="12" fill="{colour(i)}"/>'
    )
    return [mark(i) + text(LEFT + 18, HEIGHT + 18 * i + 6, name) for i, name in enumerate(names)]


def shared_points(curves) -> list[tuple]:
    """(x, one y for each seed) where every seed has one: a mean over changing seeds would jump where none of them does."""
    curves = [{x: y for x, y in curve if y is not None} for curve in curves]
    return [
        (x, [curve[x] for curve in curves]) for x in sorted(set.intersection(*map(set, curves)))
    ]


def axis_y(values, label: str):
    """(value -> y, the axis drawn)."""
    low, high, ticks = nice(values)
    y = lambda value: TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)
    marks = [
        f'<path d="M{LEFT} {y(t):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>{text(LEFT - 6, y(t) + 4, f"{t:g}", "end")}'
        for t in ticks
    ]
    turned = f'<g transform="rotate(-90 14 {(TOP + HEIGHT - BOTTOM) / 2})">{text(14, (TOP + HEIGHT - BOTTOM) / 2, label, "middle")}</g>'
    return y, [*marks, turned]


def axis_x(values, label: str):
    low, high, ticks = nice(values)
    x = lambda value: LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low)
    return x, [
        *(text(x(t), HEIGHT - BOTTOM + 16, f"{t:g}", "middle") for t in ticks),
        text((LEFT + WIDTH) / 2, HEIGHT - 12, label, "middle"),
    ]


def nice(values):
    """(low, high, ticks): the values' range, widened to round numbers, about five steps."""
    low, high = min(values), max(values)
    rough = (high - low or abs(high) or 1.0) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    return first * step, last * step, [round(i * step, 12) for i in range(first, last + 1)]


def path(points) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def text(x, y, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def svg(marks, height: float) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img">'
        + "\n".join(marks)
        + "</svg>"
    )


def colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]
