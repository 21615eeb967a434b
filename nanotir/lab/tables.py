"""Results as text: the summary of a run, the list of experiments, the tables of the README."""

from __future__ import annotations

from collections.abc import Iterable

from nanotir.lab.experiment import Experiment

FLOOR, CEILING = 0.10, 0.95  # of a share that shows how large a difference is
SHARES = "accuracy in_words selection pass rate calculated asked earned hollow".split()  # by name
EXPLAINED = {0: " (undefined)", 1: " (one seed has no interval)"}  # by number of seeds


def number(value: float | None, sign: str = "") -> str:
    if value is None:
        return "-"
    digits = 3 if abs(value) < 10 else 1
    return f"{value:{sign}.{digits}f}"


def with_interval(mean, low=None, high=None, sign: str = "") -> str:
    if low is None:
        return number(mean, sign)
    return f"{number(mean, sign)} [{number(low, sign)}, {number(high, sign)}]"


def effort(results: dict) -> str:
    """The seeds and the minutes of a run, and the commit of its code."""
    seeds = list(next(iter(results["arms"].values()))["seeds"])
    which = f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]}"
    return f"{which}, {results['minutes']:.1f} min, commit {results['commit']}"


# What a run prints


def summary(results: dict) -> str:
    """All arms with the compared metrics, a line for each comparison, and the verdict."""
    rows = [["", *results["metrics"]]]
    rows += [arm_row(results, arm) for arm in results["arms"]]
    quick = ", quick" if results["quick"] else ""
    return "\n".join(
        [
            f"{results['name']}: {results['claim']}",
            *aligned(rows),
            *[part_line(part) for part in results["parts"]],
            *at_the_ends(results),
            f"verdict: {results['verdict']} ({effort(results)}{quick})",
        ]
    )


def arm_row(results: dict, arm: str) -> list[str]:
    means = results["arms"][arm]["mean"]
    name = f"{arm} (control)" if arm == results["control"] else arm
    return [name, *[with_interval(*means.get(metric, [None])) for metric in results["metrics"]]]


def aligned(rows: list[list[str]]) -> list[str]:
    """Rows of cells as lines of text, with every column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths)]
        lines.append("  ".join(cells).rstrip())
    return lines


def part_line(part: dict) -> str:
    gain = with_interval(part["difference"], part["low"], part["high"], "+")
    why = EXPLAINED.get(part["seeds"], "")
    relation = "equal to" if part.get("equal") else "better than"
    arms = f"{part['better']} {relation} {part['worse']}"
    return f"{arms}, {compared_metric(part)}: {gain} {judged(part)}{why}"


def judged(part: dict) -> str:
    return part["verdict"] if part["claimed"] else f"{part['verdict']} (a condition)"


def compared_metric(part: dict) -> str:
    """The metric of a comparison, and how it is read."""
    text = part["metric"]
    if part["metric_worse"] != part["metric"]:
        text += f" against {part['metric_worse']}"
    if part["lower"]:
        text += " (lower is better)"
    if part["margin"]:
        text += f" (margin {part['margin']})"
    return text + (" (equal)" if part.get("equal") else "")


def least_shown(part: dict) -> float | None:
    """The smallest difference that would have been shown, had the seeds varied as they did.

    None of an equality, or without an interval.
    """
    if part["low"] is None or part.get("equal"):
        return None
    return (part["high"] - part["low"]) / 2 - part["margin"]


def at_the_ends(results: dict) -> list[str]:
    """A line on the arms that are compared where a share has no room, if there are any.

    Of comparisons that claim a difference. Its size is cut off there.
    """
    found = {}
    for part in results["parts"]:
        for arm, metric in (("better", "metric"), ("worse", "metric_worse")):
            value, name = part[f"{arm}_mean"], part[metric]
            differs = not part["margin"] and not part.get("equal") and value is not None
            if differs and any(word in name for word in SHARES) and not FLOOR <= value <= CEILING:
                found[f"`{part[arm]}` {number(value)} {name}"] = None
    if not found:
        return []
    return [f"Below {FLOOR:.0%} or above {CEILING:.0%}: {', '.join(found)}"]


# The list of experiments


def listing(experiments: dict[str, Experiment], committed: Iterable[dict]) -> str:
    """One line an experiment: number, name, claim, and the verdict of its committed results."""
    verdicts = {results["name"]: results["verdict"] for results in committed}
    width = max((len(name) for name in experiments), default=0)
    lines = []
    for experiment in sorted(experiments.values(), key=lambda experiment: experiment.number):
        verdict = verdicts.get(experiment.name, "no committed results")
        name = f"{experiment.number:>2} {experiment.name:{width}}"
        lines.append(f"{name}  {experiment.claim} [{verdict}]")
    return "\n".join(lines)


# The part of the README that is made from the committed results


def markdown(all_results: Iterable[dict]) -> str:
    """A section an experiment, with a row for each comparison. No number is written by hand."""
    return "\n\n".join(section(results) for results in all_results)


def section(results: dict) -> str:
    lines = [
        f"### {results['number']}. {results['name']}: {results['verdict']}",
        "",
        results["claim"],
        "",
        f"- Source: {results['source']}",
        f"- Published: {results['published']}",
        f"- Measured here: {results['measure']}",
        f"- Cost: {effort(results)}",
        *not_compared(results),
        *[f"- {line}" for line in at_the_ends(results)],
        *pictured(results),
        "",
        table_row("arm", "against", "metric", "difference", "least", "verdict"),
        "|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + [part_row(part) for part in results["parts"]])


def not_compared(results: dict) -> list[str]:
    """A line on the arms without a comparison, if there are any: the means of the main metric."""
    compared = {part[side] for part in results["parts"] for side in ("better", "worse")}
    metric = results["metrics"][0]
    means = []
    for arm, row in results["arms"].items():
        if arm not in compared:
            means.append(f"`{arm}` {number(row['mean'].get(metric, [None])[0])}")
    return [f"- Not compared, {metric}: {', '.join(means)}"] if means else []


def pictured(results: dict) -> list[str]:
    name = results["name"]
    return ["", f"![The arms of {name}](results/{name}.svg)"] if results.get("drawn") else []


def part_row(part: dict) -> str:
    better = f"`{part['better']}` {number(part['better_mean'])}"
    worse = f"`{part['worse']}` {number(part['worse_mean'])}"
    difference = with_interval(part["difference"], part["low"], part["high"], "+")
    least = number(least_shown(part), "+")
    return table_row(better, worse, compared_metric(part), difference, least, judged(part))


def table_row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
