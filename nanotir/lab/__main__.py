"""The laboratory's command: run experiments, compute their verdicts, print them as tables.

python -m nanotir.lab                       list the experiments
python -m nanotir.lab NAME [--quick]        run one; a run that was stopped continues
python -m nanotir.lab --table [--write]     the README's tables, made from the committed results

Results are written to runs/lab/NAME/results.json, drawn in figure.svg beside it.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from argparse import Namespace
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Annotated

from nanotir.checks import Range, Whole, one_of
from nanotir.commands import Parser, number, one_line
from nanotir.lab.cells import LAB, Task, arm_folder, missing, read_cells, run_cells
from nanotir.lab.experiment import MAX_SEEDS, Experiment, summarise
from nanotir.lab.figures import figure
from nanotir.lab.tables import listing, markdown, summary
from nanotir.run_files import write_text

README = Path(__file__).with_name("README.md")
RESULTS = Path(__file__).with_name("results")  # committed
SEEDS = 5  # that count, from 1; seed 0 is for tuning
MARKERS = re.compile(r"(<!-- lab -->\n).*?(<!-- /lab -->)", re.DOTALL)


def main(arguments=None, source: str = "nanotir.lab.experiments"):
    """Run the command.

    `source` is the module whose EXPERIMENTS, {name: Experiment}, are meant. It is given by name
    because the worker processes import it too.
    """
    experiments = importlib.import_module(source).EXPERIMENTS
    with one_line("lab"):
        options = make_parser().parse_args(arguments)
        options.seeds = options.seeds or (1 if options.quick else SEEDS)
        check(options, experiments)
        kept = "finished cells are kept, the same command continues"
        try:
            failures = execute(options, source, experiments)
        except BrokenProcessPool:
            print(f"a worker was killed, perhaps for lack of memory; {kept}", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted; {kept}") from None
    if options.names:
        sys.exit(1 if failures else 0)


def make_parser() -> Parser:
    parser = Parser("python -m nanotir.lab", "Measure what each idea contributes.")
    add = parser.add_argument
    seeds = number(Annotated[int, Range(1, MAX_SEEDS)])
    add("names", nargs="*", metavar="NAME", help="experiments to run, or all; none: list them")
    add("--seeds", type=seeds, help=f"1 to {MAX_SEEDS} seeds (default: {SEEDS}, with --quick 1)")
    first = "seeds from S on (default: the experiment's own; with --quick 0, which is for tuning)"
    add("--first-seed", type=number(Whole), metavar="S", help=first)
    add("--quick", action="store_true", help="fewer steps, to check that it works")
    add(
        "--workers",
        type=number(Whole),
        default=os.cpu_count(),
        help="processes of one core each; 0: only this one (default: all cores)",
    )
    add("--keep", action="store_true", help="also write to nanotir/lab/results/, to be committed")
    add("--table", action="store_true", help="print the tables of committed results, in Markdown")
    add(
        "--write",
        nargs="?",
        const=str(README),
        metavar="FILE",
        help="with --table: put them between the lab markers of this file (default: the README)",
    )
    return parser


def check(options: Namespace, experiments: dict[str, Experiment]):
    """ValueError for options that do not go together."""
    for name in options.names:
        if name != "all":
            one_of("experiment", name, experiments)
    if options.quick and options.keep:
        raise ValueError("--keep is for full runs: leave out --quick")
    if options.first_seed is not None and options.keep:
        raise ValueError("--keep is for the seeds that count: leave out --first-seed")
    if options.table and options.names:
        raise ValueError("--table is of all committed results: leave out the names")
    if options.write and not options.table:
        raise ValueError("--write goes with --table")


def execute(options, source: str, experiments: dict[str, Experiment]) -> dict[Task, str]:
    """Do what the options ask for. Returns the cells that failed."""
    if options.table:
        publish(markdown(committed()), options.write)
        return {}
    if not options.names:
        print(listing(experiments, committed()))
        return {}
    names = experiments if "all" in options.names else dict.fromkeys(options.names)
    return run_experiments(source, [experiments[name] for name in names], options)


def run_experiments(source: str, experiments: list[Experiment], options) -> dict[Task, str]:
    """Compute the missing cells, then save and print every experiment that is complete.

    An experiment whose data are not here is skipped.
    """
    for experiment in [row for row in experiments if row.needs and not Path(row.needs).exists()]:
        print(f"{experiment.name} skipped: its data are not here, in the folder {experiment.needs}")
        experiments.remove(experiment)
    first_seeds = {row.name: first_seed(row, options) for row in experiments}
    tasks = missing(source, experiments, first_seeds, options.seeds, options.quick)
    failures = run_cells(tasks, options.workers)

    for experiment in experiments:
        first = first_seeds[experiment.name]
        cells = read_cells(experiment, range(first, first + options.seeds), options.quick)
        if cells:
            results = summarise(experiment, cells, options.quick)
            save(results, options.keep)
            print(f"{summary(results)}\n")

    # Failures come last, where they are seen.
    for task, error in failures.items():
        log = arm_folder(task.key, task.seed, task.quick) / "log.txt"
        failed = f"{task.experiment}, arm '{task.arm}', seed {task.seed} failed"
        print(f"{failed}: {error} ({log})", file=sys.stderr)
    return failures


def first_seed(experiment: Experiment, options: Namespace) -> int:
    if options.first_seed is not None:
        return options.first_seed
    return 0 if options.quick else experiment.first_seed


def save(results: dict, keep: bool):
    """Write results and figure to the runs folder and, to keep them, to the committed ones."""
    svg = figure(results)
    results = results | {"drawn": bool(svg)}  # older results do not say so, and have no picture
    name, texts = results["name"], {"json": layout(results) + "\n", "svg": svg}
    paths = {LAB / name / "results.json": "json", LAB / name / "figure.svg": "svg"}
    if keep:
        paths |= {RESULTS / f"{name}.{kind}": kind for kind in texts}
    for path, kind in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if texts[kind]:
            write_text(path, texts[kind])


def layout(value, indent: str = "") -> str:
    """JSON with a line for each entry of a dictionary, and each list on one line.

    Results are committed, so they should be short and show what has changed.
    """
    if not isinstance(value, dict) or not value:
        return json.dumps(value)
    deeper = indent + " "
    lines = [f"{deeper}{json.dumps(key)}: {layout(value[key], deeper)}" for key in value]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def committed() -> list[dict]:
    """The committed results, in the order of their numbers."""
    found = [json.loads(path.read_text()) for path in RESULTS.glob("*.json")]
    return sorted(found, key=lambda results: (results["number"], results["name"]))


def publish(tables: str, file: str | None):
    """Print the tables, or put them between a file's markers. ValueError if it has none."""
    if not file:
        print(tables)
        return
    try:
        text = Path(file).read_text()
    except OSError as error:
        raise ValueError(f"cannot read '{file}': {error.strerror}") from None
    if not MARKERS.search(text):
        raise ValueError(
            f"'{file}' has no lines <!-- lab --> and <!-- /lab --> to put the table between"
        )
    write_text(file, MARKERS.sub(lambda found: f"{found[1]}\n{tables}\n\n{found[2]}", text))


if __name__ == "__main__":
    main()
