"""The laboratory's command: run experiments, print their tables, write their reports.

python -m nanotir.lab                       what there is
python -m nanotir.lab NAME [--quick]        run it: minutes, and it goes on where it was stopped; results in runs/lab/NAME/
python -m nanotir.lab --table               the README's table, from the committed results alone
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from nanotir.checkpoint import write_atomically
from nanotir.config import Parser, unknown
from nanotir.lab.cells import LAB, arm_folder, missing, read_cells, run_cells
from nanotir.lab.experiment import MAX_SEEDS, summarise
from nanotir.lab.figure import report

RESULTS = Path(__file__).parent / "results"  # committed
MARKERS = re.compile(r"(<!-- lab -->\n).*?(<!-- /lab -->)", re.DOTALL)


def main(arguments=None, source: str = "nanotir.lab.experiments"):
    """`source` is the module whose EXPERIMENTS, {name: Experiment}, are meant: the worker processes import it too."""
    parser, experiments = make_parser(), importlib.import_module(source).EXPERIMENTS
    options = parser.parse_args(arguments)
    options.seeds = options.seeds or (1 if options.quick else 3)
    try:
        check(options, experiments)
        if options.table:
            return publish(markdown(committed()), options.write)
        if not options.names:
            return print(listing(experiments))
        names = experiments if "all" in options.names else dict.fromkeys(options.names)
        failures = run_experiments(source, [experiments[name] for name in names], options)
    except ValueError as error:
        parser.error(str(error))
    except BrokenProcessPool:
        print(
            "a worker was killed, perhaps for want of memory; the cells that are done stand, the same command goes on",
            file=sys.stderr,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        print("\ninterrupted; the cells that are done stand, the same command goes on")
        sys.exit(130)
    sys.exit(1 if failures else 0)


def make_parser() -> Parser:
    parser = Parser(prog="python -m nanotir.lab", description="Measure what each idea buys.")
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="experiments to run, or all; without one, a list of them",
    )
    parser.add_argument(
        "--seeds", type=int, help=f"1 to {MAX_SEEDS} seeds, from 0 on (default: 3, with --quick 1)"
    )
    parser.add_argument("--quick", action="store_true", help="fewer steps, to see it work")
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count(),
        help="processes, one core each; 0 for none but this one (default: all cores)",
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="write the results to nanotir/lab/results/ as well, to be committed",
    )
    parser.add_argument(
        "--table", action="store_true", help="print the table of committed results, in Markdown"
    )
    parser.add_argument(
        "--write", metavar="FILE", help="with --table: put it between the lab markers of this file"
    )
    return parser


def check(options, experiments):
    """ValueError for options that do not go together."""
    for name in options.names:
        if name != "all" and name not in experiments:
            raise ValueError(unknown("experiment", name, experiments))
    if not 1 <= options.seeds <= MAX_SEEDS or options.workers < 0:
        raise ValueError(f"--seeds must be 1 to {MAX_SEEDS}, --workers at least 0")
    if options.quick and options.keep:
        raise ValueError("--keep is for full runs: leave out --quick")
    if options.write and not options.table:
        raise ValueError("--write goes with --table")


def run_experiments(source: str, experiments, options) -> dict:
    """Compute what is missing, then report every experiment that is complete. What failed is returned, and told last, to be seen."""
    metrics, seeds = (
        {experiment.name: experiment.metrics[0] for experiment in experiments},
        range(options.seeds),
    )
    failures = run_cells(
        source,
        missing(experiments, seeds, options.quick),
        metrics.get,
        options.quick,
        options.workers,
    )
    for experiment in experiments:
        cells = read_cells(experiment, seeds, options.quick)
        if cells:
            results = summarise(experiment, cells, options.quick)
            save(results, options.keep)
            print(f"{summary(results)}\n{LAB / experiment.name / 'report.html'}\n")
    keys = {
        (experiment.name, name): arm.key
        for experiment in experiments
        for name, arm in experiment.arms.items()
    }
    for (name, arm, seed), error in failures.items():
        log = arm_folder(keys[name, arm], seed, options.quick) / "log.txt"
        print(
            f"{name}, arm '{arm}', seed {seed} failed: {type(error).__name__}: {error} ({log})",
            file=sys.stderr,
        )
    return failures


def save(results: dict, keep: bool):
    folders = [(LAB / results["name"], "results.json")] + [
        (RESULTS, f"{results['name']}.json")
    ] * keep
    for folder, name in folders:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(
            folder / name, lambda temporary: temporary.write_text(layout(results) + "\n")
        )
    write_atomically(
        LAB / results["name"] / "report.html",
        lambda temporary: temporary.write_text(report(results)),
    )


def layout(value, indent: str = "") -> str:
    """JSON with a line for each entry of a dictionary and lists on one: committed, it is to stay short and show what changed."""
    if not isinstance(value, dict) or not value:
        return json.dumps(value)
    lines = ",\n".join(
        f"{indent} {json.dumps(key)}: {layout(item, indent + ' ')}" for key, item in value.items()
    )
    return f"{{\n{lines}\n{indent}}}"


def number(value, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.{3 if abs(value) < 10 else 1}f}"


def with_interval(mean, low, high, sign: str = "") -> str:
    return (
        number(mean, sign)
        if low is None
        else f"{number(mean, sign)} [{number(low, sign)}, {number(high, sign)}]"
    )


def summary(results: dict) -> str:
    """What a run prints: arms and compared metrics, a line for each comparison, the verdict."""
    rows = [["", *results["metrics"]]]
    for arm, described in results["arms"].items():
        name = f"{arm} (control)" if arm == results["control"] else arm
        rows.append(
            [
                name,
                *(
                    with_interval(*described["mean"].get(metric, [None] * 3))
                    for metric in results["metrics"]
                ),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    ]
    return "\n".join(
        [
            f"{results['name']}: {results['claim']}",
            *lines,
            *map(part_line, results["parts"]),
            verdict_line(results),
        ]
    )


def part_line(part: dict) -> str:
    metric = (
        part["metric"]
        if part["metric"] == part["metric_worse"]
        else f"{part['metric']} against {part['metric_worse']}"
    )
    aim = " (lower is better)" * part["lower"] + f" (not worse by {part['margin']})" * bool(
        part["margin"]
    )
    why = {0: " (undefined)", 1: " (one seed has no interval)"}.get(part["seeds"], "")
    gain = with_interval(part["difference"], part["low"], part["high"], "+")
    return f"{part['better']} better than {part['worse']}, {metric}{aim}: {gain} {part['verdict']}{why}"


def verdict_line(results: dict) -> str:
    return f"verdict: {results['verdict']} ({effort(results)}{', quick' * results['quick']})"


def effort(results: dict) -> str:
    return f"{results['seeds']} seed{'s' * (results['seeds'] > 1)}, {results['minutes']:.1f} min"


def listing(experiments) -> str:
    kept = {results["name"]: results["verdict"] for results in committed()}
    ordered = sorted(experiments.values(), key=lambda experiment: experiment.number)
    width = max((len(experiment.name) for experiment in ordered), default=0)
    return "\n".join(
        f"{e.number:>2} {e.name:{width}}  {e.claim} [{kept.get(e.name, 'no committed results')}]"
        for e in ordered
    )


def committed() -> list[dict]:
    return sorted(
        (json.loads(path.read_text()) for path in RESULTS.glob("*.json")),
        key=lambda results: (results["number"], results["name"]),
    )


def markdown(all_results) -> str:
    """The README's table: no number in it is written by hand."""
    lines = ["| # | claim | source | published | ours | verdict |", "|---|---|---|---|---|---|"]
    for results in all_results:
        ours = "; ".join(map(ours_against, results["parts"])) + f" ({effort(results)})"
        cells = (
            str(results["number"]),
            results["claim"],
            results["source"],
            results["published"],
            ours,
            results["verdict"],
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def ours_against(part: dict) -> str:
    (b, w), same = (
        (number(part["better_mean"]), number(part["worse_mean"])),
        part["metric"] == part["metric_worse"],
    )
    against = f"{part['worse']} {w}" if same else f"{part['worse']} {part['metric_worse']} {w}"
    return f"{part['metric']}: {part['better']} {b}, {against}, difference {with_interval(part['difference'], part['low'], part['high'], '+')}"


def publish(table: str, file: str | None):
    """Print the table, or put it between a file's markers. ValueError if it has none."""
    if not file:
        return print(table)
    try:
        text = Path(file).read_text()
    except OSError as error:
        raise ValueError(f"cannot read '{file}': {error.strerror}") from None
    if not MARKERS.search(text):
        raise ValueError(
            f"'{file}' has no lines <!-- lab --> and <!-- /lab --> to put the table between"
        )
    write_atomically(
        file,
        lambda temporary: temporary.write_text(
            MARKERS.sub(lambda found: f"{found[1]}{table}\n{found[2]}", text)
        ),
    )


if __name__ == "__main__":
    main()
