"""The parts of our drawings: text, boxes, legends and line charts, as SVG."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

LEFT, BOTTOM = 52, 190  # of the plotted area of a chart

# The colours keep their distance in the three common forms of colour blindness.
STYLE = """
:root { --card: #fff; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0;
  --c0: #2860ff; --c1: #d37609; --c2: #0da169; --c3: #420441; --c4: #824c19; --c5: #59636e }
@media (prefers-color-scheme: dark) {
  :root { --card: #151b23; --ink: #e6edf3; --soft: #9da7b1; --line: #3d444d;
    --c0: #79aaff; --c1: #e66127; --c2: #1fd08c; --c3: #c347b4; --c4: #fab408; --c5: #9da7b1 }
}
.c0 { --c: var(--c0) } .c1 { --c: var(--c1) } .c2 { --c: var(--c2) }
.c3 { --c: var(--c3) } .c4 { --c: var(--c4) } .c5 { --c: var(--c5) }
svg { font: 13px sans-serif } svg text { fill: var(--ink) } svg .soft { fill: var(--soft) }
svg .bold { font-weight: bold } svg .small { font-size: 12px }
svg .mono { font-family: monospace } svg .card { fill: var(--card); stroke: var(--line) }
svg .rule { stroke: var(--line) } svg .line { fill: none; stroke: var(--c); stroke-width: 2 }
svg .dash { stroke-dasharray: 6 4 } svg .fill { fill: var(--c) }
svg .hollow { fill: none; stroke: var(--c) }
svg .tint { fill: var(--c); fill-opacity: .22; stroke: var(--c) }
"""


@dataclass
class Line:
    """One curve of a chart; `style` is its colour, c0 to c5, and "dash" for a broken line."""

    label: str
    points: list[tuple[float, float]]
    style: str = "c0"


def text(x: float, y: float, words, style: str = "", anchor: str = "start") -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}"'
    return f"<text {where}>{escape(str(words))}</text>"


def box(x: float, y: float, width: float, height: float, style: str) -> str:
    size = f'width="{width:.1f}" height="{height:.1f}"'
    return f'<rect x="{x:.1f}" y="{y:.1f}" {size} rx="2" class="{style}"/>'


def moved(x: float, y: float, marks: str) -> str:
    return f'<g transform="translate({x:.1f},{y:.1f})">{marks}</g>'


def legend(entries, width: float) -> tuple[str, float]:
    """(marks, height) of (style, words) entries in rows, each with a sample of its style."""
    marks, x, y = "", 0.0, 12.0
    for style, words in entries:
        room = 42 + 6.2 * len(words)
        if x and x + room > width:
            x, y = 0.0, y + 20
        marks += sample(style, x, y) + text(x + 24, y, words)
        x += room
    return marks, y + 10


def sample(style: str, x: float, y: float) -> str:
    """A short line for the style of a curve, a small square for any other."""
    if "line" in style:
        return f'<path class="{style}" d="M{x:.1f} {y - 4:.1f}h18"/>'
    return box(x + 4, y - 10, 12, 12, style)


def ticks(low: float, high: float, n: int = 4) -> list[float]:
    """About n + 1 round numbers; the first is at most `low` and the last at least `high`."""
    rough = (high - low or abs(high) or 1.0) / n
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(first + 1, math.ceil(high / step - 1e-9))
    return [float(f"{i * step:.6g}") for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten; the first is at most `low` and the last at least `high`."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    found = [float(f"{m}e{k}") for k in powers for m in (1, 2, 5)]
    first = max(i for i, tick in enumerate(found) if tick <= low)
    last = min(i for i, tick in enumerate(found) if tick >= high)
    return found[first : max(first + 1, last) + 1]


def scale(low: float, high: float, start: float, end: float, measure=float):
    """The function that maps [low, high] to [start, end], linear in `measure` of a value."""
    low, high = measure(low), measure(high)

    def place(value: float) -> float:
        return start + (end - start) * (measure(value) - low) / (high - low or 1.0)

    return place


def chart(
    lines: list[Line],
    title: str,
    unit: str,
    x_label: str = "step",
    width: int = 390,
    log: bool = False,
):
    """(marks, height) of a line chart: title, unit, axes, curves and, for several, a legend.

    With `log`, the values, all above 0, are on a logarithmic axis.
    """
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    x_ticks = ticks(min(xs), max(xs))
    y_ticks = (log_ticks if log else ticks)(min(ys), max(ys))
    at_x = scale(min(xs), max(xs), LEFT, width - 14)
    at_y = scale(y_ticks[0], y_ticks[-1], BOTTOM, 48, math.log10 if log else float)
    marks = [text(0, 16, title, "bold"), text(0, 34, unit, "soft")]
    for y in y_ticks:
        marks.append(f'<path class="rule" d="M{LEFT} {at_y(y):.1f}H{width - 14}"/>')
        marks.append(text(LEFT - 6, at_y(y) + 4, f"{y:g}", "soft", "end"))
    for x in x_ticks:
        if min(xs) <= x <= max(xs):
            marks.append(text(at_x(x), BOTTOM + 18, f"{x:g}", "soft", "middle"))
    marks.append(text((LEFT + width) / 2, BOTTOM + 36, x_label, "soft", "middle"))
    marks += [curve(line, at_x, at_y) for line in lines]

    # The title names a single curve; several need a legend.
    height = BOTTOM + 44
    if len(lines) > 1:
        names, more = legend([(f"{line.style} line", line.label) for line in lines], width)
        marks.append(moved(0, height, names))
        height += more
    return "".join(marks), height


def bars(rows: dict[str, tuple], title: str, unit: str, width: int = 390):
    """(marks, height) of a bar for each (value, low, high), its interval a line; both may be None.

    Bars begin at 0.
    """
    left = 8 + 6.5 * max(map(len, rows))
    values = [value for row in rows.values() for value in row if value is not None]
    at = scale(min(0.0, *values), max(0.0, *values), left, width - 48)
    marks, y = [text(0, 16, title, "bold"), text(0, 34, unit, "soft")], 46
    for name, (value, low, high) in rows.items():
        marks.append(text(0, y + 15, name))
        start, end = sorted((at(0.0), at(value)))
        marks.append(box(start, y + 2, end - start, 18, "c0 tint"))
        if low is not None:
            marks.append(f'<path class="c1 line" d="M{at(low):.1f} {y + 11}H{at(high):.1f}"/>')
        marks.append(text(width, y + 15, f"{value:.3g}", "soft", "end"))
        y += 24
    return "".join(marks), y + 14


def heat_map(rows: dict[str, list[tuple[float, float]]], title: str, unit: str, width: int = 390):
    """(marks, height) of rows of (column, share): the larger the share, the darker its box.

    All rows have the columns of the first. In each box stands its share in percent.
    """
    columns = [column for column, _ in next(iter(rows.values()))]
    left = 10 + 7 * max(map(len, rows))
    size = (width - left) / len(columns)
    largest = max(share for row in rows.values() for _, share in row) or 1.0
    marks = [text(0, 16, title, "bold"), text(0, 34, unit, "soft")]
    for i, column in enumerate(columns):
        marks.append(text(left + (i + 0.5) * size, 54, f"{column:g}", "soft small", "middle"))
    y = 60
    for name, row in rows.items():
        marks.append(text(0, y + 15, name))
        for i, (_, share) in enumerate(row):
            x = left + i * size
            filled = box(x, y, size - 1, 21, "c0 fill")
            marks.append(f'<g fill-opacity="{0.75 * share / largest:.2f}">{filled}</g>')
            marks.append(text(x + size / 2, y + 15, f"{100 * share:.0f}", "small", "middle"))
        y += 22
    return "".join(marks), y + 14


def curve(line: Line, at_x, at_y) -> str:
    points = [f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in line.points]
    if len(points) == 1:
        x, y = points[0].split(",")
        return f'<circle class="{line.style} fill" cx="{x}" cy="{y}" r="4"/>'
    return f'<polyline class="{line.style} line" points="{" ".join(points)}"/>'
