"""A run as one HTML page without scripts: curves, results, and what was sampled, id by id.

python -m nanotir.page RUN              writes RUN/page.html
python -m nanotir.page RUN RUN          two runs in the same charts
python -m nanotir.page --pictures RUN   draws the pictures of the README

The page is small whatever the run's length: it draws some points of a long curve and shows some
of the recorded trajectories. It says what it leaves out.
"""

from __future__ import annotations

import json
import math
from operator import itemgetter
from pathlib import Path

from nanotir.commands import Parser, one_line
from nanotir.page import traces
from nanotir.page.pictures import KINDS, write_pictures
from nanotir.page.records import Recorded, read_run, safe, visible
from nanotir.page.svg import STYLE, Line, chart

POINTS = 200  # at most in a curve
LINES = 6  # at most of a run in a chart
NOTE = (
    f"A curve of over {POINTS} steps shows the lowest and the highest value of each stretch. "
    f"A chart shows up to {LINES} curves of a run."
)

# (metrics of one chart, their unit, what they say)
HELD_OUT = ("held_out/accuracy", "share", "Right greedy answers to at most 64 held-out problems.")
IMITATION = (
    ("loss", "nats per id", "How unlikely the model finds the teacher's ids (axis: logarithmic)."),
    ("grad_norm", "norm", "Length of the gradient before it is clipped."),
    HELD_OUT,
)
RL = (
    ("reward", "mean of a trajectory", "What the recipe pays for a trajectory. It should rise."),
    ("accuracy", "share", "Sampled trajectories with a right answer."),
    HELD_OUT,
    ("Q_words Q_code code_rate", "share", "AutoCode: right by each decision; how likely is code."),
    ("calls", "per trajectory", "Tool calls, whether they help or not."),
    ("calls_by_kind", "per trajectory", "The same by kind of problem; the table above names them."),
    ("call_status", "calls", "How the calls of a step ended."),
    ("new_tokens", "ids per trajectory", "Ids that the model chose."),
    ("entropy", "nats per id", "How undecided the model is. Near 0 it no longer explores."),
    ("clip_low clip_high", "share of ids", "Ids whose gradient a bound of the ratio stopped."),
    ("approx_kl", "nats per id", "How far the updates of a step move the policy."),
    ("grad_norm", "norm", "Length of the gradient before it is clipped."),
    ("groups_without_spread", "share of groups", "Equal rewards in a group teach nothing."),
    ("logp_gap", "nats", "Largest gap between sampler and trainer: float noise, or a bug."),
    ("seconds_rollout seconds_update", "seconds", "Time of a step: sampling, then learning."),
)
TITLES = {"rl": "Reinforcement learning", "em": "Expectation-maximisation"}  # of these phases
CSS = """
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1400px; padding: 1rem; font: 16px/1.5 sans-serif;
  background: var(--card); color: var(--ink); overflow-wrap: anywhere }
h1 { margin: 0 } h2 { margin: 3rem 0 .3rem } h3 { margin: 1.6rem 0 .3rem; font-size: 1rem }
p { margin: .2rem 0 .8rem; max-width: 48rem } .soft, figcaption { color: var(--soft) }
figure { margin: 0 } figcaption { font-size: .85rem } svg { width: 100%; height: auto }
.charts { display: grid; gap: 2rem 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)) }
.scroll { overflow-x: auto } table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .3rem 1rem .3rem 0; border-bottom: 1px solid var(--line);
  text-align: left; white-space: nowrap }
.bar { display: inline-block; position: relative; width: 9rem; height: .8rem;
  background: color-mix(in srgb, var(--ink) 9%, transparent) }
.bar b { position: absolute; height: 100%; min-width: 3px; background: var(--c0) }
fieldset { position: sticky; top: 0; z-index: 1; border: 1px solid var(--line); margin: 1rem 0;
  background: var(--card); border-radius: 6px; padding: .3rem .8rem }
fieldset label { margin-right: 1rem; white-space: nowrap } .legend { display: none }
"""
HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{names}</title>
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>{style}</style></head>
"""


def page(runs: list[Recorded]) -> str:
    """The whole page, of one run or of two."""
    names = " and ".join(safe(run.name) for run in runs)
    budget = traces.BYTES // len(runs)
    shown = [traces.traces(run, budget) for run in runs]
    sections = {
        "Results": results(runs) + kinds(runs),
        "Curves": curves(runs),
        "Trajectories": traces.choice() + "".join(shown),
        "Settings": "".join(settings(run) for run in runs),
    }
    body = "".join(f"<section><h2>{title}</h2>{part}</section>" for title, part in sections.items())
    head = HEAD.format(names=names, style=STYLE + CSS + traces.CSS)
    return f"{head}<body><h1>{names}</h1>{body}</body></html>\n"


def results(runs: list[Recorded]) -> str:
    """Every evaluation: accuracy, its interval, calls and length."""
    rows = []
    for run in runs:
        for name, modes in list(run.evaluations.items())[:50]:
            rows += [result(run, name, mode, found) for mode, found in modes.items()]
    if not rows:
        return "<p>eval.json is missing: the run has not been evaluated yet.</p>"
    head = ("run", "evaluation", "mode", "accuracy", "95% interval", "", "problems", "calls", "ids")
    words = (
        "Accuracy on problems held out from training, before it, after imitation (after_sft) and "
        "at the end: there also in phrasings never trained on (reworded) and with numbers one and "
        "two digits longer (longer, longest). In mode text the model cannot call tools. Calls and "
        "ids are means per answer. The bar is the interval."
    )
    return f"<p>{words}</p>{table(head, rows)}"


def result(run: Recorded, name: str, mode: str, found: dict) -> list[str]:
    low, high = found["low"], found["high"]
    return [
        safe(run.name),
        safe(name),
        safe(mode),
        f"{found['accuracy']:.1%}",
        f"{low:.1%} to {high:.1%}",
        f'<span class="bar"><b style="left:{low:.1%};width:{high - low:.1%}"></b></span>',
        str(found["n"]),
        f"{found['calls_per_problem']:.2f}",
        f"{found['mean_new_tokens']:.1f}",
    ]


def kinds(runs: list[Recorded]) -> str:
    """The last evaluation with tools, by kind of problem."""
    rows = []
    for run in runs:
        last = list(run.evaluations.values() or [{}])[-1].get("tools", {})
        for kind, found in list(last.get("by_kind", {}).items())[:50]:
            accuracy, calls = f"{found['accuracy']:.1%}", f"{found['calls_per_problem']:.2f}"
            name = safe(KINDS.get(kind, kind))
            rows.append([safe(run.name), name, accuracy, str(found["n"]), calls])
    head = ("run", "kind of problem", "accuracy", "problems", "calls")
    return f"<h3>The last evaluation with tools, by kind</h3>{table(head, rows)}" if rows else ""


def table(head, rows: list[list[str]]) -> str:
    """A table of cells that are HTML already, in a box that scrolls by itself."""
    lines = ["".join(f"<th>{cell}</th>" for cell in head)]
    lines += ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll" tabindex="0"><table>{body}</table></div>'


def settings(run: Recorded) -> str:
    words = safe(json.dumps(run.config, indent=1), limit=20_000).replace("↵", "\n")
    return f"<details><summary>{safe(run.name)}</summary><pre>{words}</pre></details>"


def curves(runs: list[Recorded]) -> str:
    """One group of charts for each phase of training."""
    phases = dict.fromkeys(row["phase"] for run in runs for row in run.metrics)
    parts = []
    for phase in phases:
        drawn = [figure(runs, phase, *row) for row in (RL if phase in TITLES else IMITATION)]
        title = TITLES.get(phase, f"Imitation: {safe(phase)}")
        parts.append(f'<h3>{title}</h3><div class="charts">{"".join(drawn)}</div>')
    if not parts:
        return "<p>metrics.jsonl has no rows: no step of training was finished.</p>"
    return "".join([f"<p>{NOTE}</p>", *parts])


def figure(runs: list[Recorded], phase: str, names: str, unit: str, words: str) -> str:
    """One chart with all runs, or nothing if no run has the metrics."""
    lines = lines_of(runs, phase, names)
    if not lines:
        return ""
    title = names.replace(" ", ", ")
    # The loss falls fast and then slowly. A damaged run may have any values.
    log = names == "loss" and all(y > 0 for line in lines for _, y in line.points)
    marks, height = chart(lines, title, unit, log=log)
    image = f'<svg viewBox="0 0 390 {height:.0f}" role="img" aria-label="{title}">{marks}</svg>'
    return f"<figure>{image}<figcaption>{words}</figcaption></figure>"


def lines_of(runs: list[Recorded], phase: str, names: str) -> list[Line]:
    """Runs differ in colour. Where the metrics do so, the second run is dashed."""
    found = [series([r for r in run.metrics if r["phase"] == phase], names) for run in runs]
    labels = list(dict.fromkeys(label for curves in found for label in curves))[:LINES]
    several = len(labels) > 1
    lines = []
    for number, run in enumerate(runs):
        for i, label in enumerate(labels):
            if label in found[number]:
                style = f"c{i if several else number}" + " dash" * number
                told = [label] * several + [run.name] * (len(runs) > 1)
                lines.append(Line(visible(", ".join(told)), thin(found[number][label]), style))
    return lines


def series(rows: list[dict], names: str) -> dict[str, list[tuple]]:
    """The (step, value) pairs of each metric, or of each entry of a metric that has entries."""
    found = {}
    for row in rows:
        for name in names.split():
            value = row.get(name)
            entries = value if isinstance(value, dict) else {name: value}
            for label, number in entries.items():
                if isinstance(number, int | float) and math.isfinite(number):
                    found.setdefault(label, []).append((row["step"], number))
    return found


def thin(points: list[tuple]) -> list[tuple]:
    """At most POINTS points: the lowest and the highest of each stretch of a longer curve."""
    if len(points) <= POINTS:
        return points
    size = math.ceil(2 * len(points) / POINTS)
    kept = {points[0], points[-1]}
    for start in range(0, len(points), size):
        stretch = sorted(points[start : start + size], key=itemgetter(1))
        kept |= {stretch[0], stretch[-1]}
    return sorted(kept)


def main(arguments=None):
    parser = Parser("python -m nanotir.page", "Show a run.")
    parser.add_argument("run", nargs="+", help="one run folder, or two to be compared")
    parser.add_argument("--out", help="the file (of --pictures: the folder) to write")
    parser.add_argument("--pictures", action="store_true", help="draw the README's pictures")
    with one_line("page"):
        options = parser.parse_args(arguments)
        out = Path(options.out) if options.out else None
        print(f"wrote {write(options.run, out, options.pictures)}")


def write(folders: list[str], out: Path | None, pictures: bool) -> Path:
    """Write the page or the pictures; ValueError for whatever the user can mend."""
    if len(folders) > 2 or pictures and len(folders) > 1:
        raise ValueError("a page shows one run or two, and the pictures are drawn from one")
    default = Path(".github/pictures") if pictures else Path(folders[0], "page.html")
    try:
        runs = [read_run(Path(folder)) for folder in folders]
        if pictures:
            write_pictures(runs[0], out or default)
        else:
            (out or default).write_text(page(runs), encoding="utf-8")
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"a record of the run has an unexpected form ({what})") from error
    return out or default


if __name__ == "__main__":
    main()
