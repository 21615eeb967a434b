"""Cells: one arm at one seed, computed once, stored in a file, and shared between experiments.

runs/lab/cells/KEY-SEED.json    its metrics and the seconds they took; delete it to compute it again
runs/lab/arms/KEY-SEED/         the arm's own files, and everything it printed: log.txt
runs/lab/quick/, quick-arms/    the same for --quick, so that the two never mix
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from nanotir.lab.experiment import Experiment
from nanotir.run import write_json

LAB = Path("runs/lab")


class Task(NamedTuple):
    """A cell to compute. Workers look its arm up by name, so that no function has to be pickled."""

    source: str  # the module that defines EXPERIMENTS
    experiment: str
    arm: str
    key: str
    seed: int
    quick: bool


def cell_path(key: str, seed: int, quick: bool) -> Path:
    return LAB / ("quick" if quick else "cells") / f"{key}-{seed}.json"


def arm_folder(key: str, seed: int, quick: bool) -> Path:
    return LAB / ("quick-arms" if quick else "arms") / f"{key}-{seed}"


def read_cells(experiment: Experiment, seeds: Iterable[int], quick: bool) -> dict | None:
    """{arm: {seed: cell}}, or None if a cell is missing."""
    found = {}
    for name, arm in experiment.arms.items():
        paths = {seed: cell_path(arm.key, seed, quick) for seed in seeds}
        if not all(path.exists() for path in paths.values()):
            return None
        found[name] = {seed: json.loads(path.read_text()) for seed, path in paths.items()}
    return found


def missing(
    source: str, experiments: Iterable[Experiment], first_seeds: dict[str, int], n: int, quick: bool
) -> list[Task]:
    """The cells to compute, each once, seed by seed: a stopped run then has complete seeds.

    `n` seeds of each experiment, from its own first seed on.
    """
    found = {}
    for i in range(n):
        for experiment in experiments:
            seed = first_seeds[experiment.name] + i
            for name, arm in experiment.arms.items():
                if not cell_path(arm.key, seed, quick).exists():
                    task = Task(source, experiment.name, name, arm.key, seed, quick)
                    found.setdefault((arm.key, seed), task)
    return list(found.values())


def run_cell(task: Task, folder: Path):
    """Compute one cell and store it."""
    arm = importlib.import_module(task.source).EXPERIMENTS[task.experiment].arms[task.arm]
    started = time.time()
    metrics = arm.run(task.seed, task.quick, folder)
    seconds = round(time.time() - started, 2)

    path = cell_path(task.key, task.seed, task.quick)
    path.parent.mkdir(parents=True, exist_ok=True)
    cell = {"key": task.key, "seed": task.seed, "seconds": seconds, "commit": commit()}
    write_json(path, cell | {"metrics": metrics})


def commit() -> str:
    """The commit of this code, with a + if it has been changed since; "unknown" outside of git."""

    def git(*words: str) -> subprocess.CompletedProcess:
        where = Path(__file__).parent
        return subprocess.run(["git", *words], cwd=where, capture_output=True, text=True)

    if not shutil.which("git") or (found := git("rev-parse", "--short", "HEAD")).returncode:
        return "unknown"
    changed = git("diff", "--quiet", "HEAD", "--", ":/*.py").returncode
    return found.stdout.strip() + "+" * changed


def attempt(task: Task) -> str:
    """Compute one cell. Returns what went wrong, so that a cell that fails stops no other."""
    folder = arm_folder(task.key, task.seed, task.quick)
    shutil.rmtree(folder, ignore_errors=True)  # files of an earlier attempt
    folder.mkdir(parents=True)
    with open(folder / "log.txt", "w", buffering=1) as log:
        with redirect_stdout(log), redirect_stderr(log):
            try:
                run_cell(task, folder)
            except (Exception, SystemExit) as error:  # an arm may call a command, which exits
                traceback.print_exc()
                return f"{type(error).__name__}: {error}"
    return ""


def run_cells(tasks: list[Task], workers: int) -> dict[Task, str]:
    """Compute all cells. Returns {task: what went wrong} of those that failed."""
    with processes(workers) as run_all:
        with tqdm(run_all(attempt, tasks), "cells", len(tasks), disable=not tasks) as bar:
            return {task: error for error, task in zip(bar, tasks) if error}


@contextmanager
def processes(workers: int):
    """A `map` that computes in so many processes, or in this one if `workers` is 0."""
    if not workers:
        yield map
        return

    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker)

    def run_all(function, tasks):
        # The processes start here and inherit this: only the parent reacts to Ctrl-C.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        results = pool.map(function, tasks)
        signal.signal(signal.SIGINT, handler)
        return results

    try:
        yield run_all
    except BaseException:
        # Cells take minutes, and an unfinished one is of no use. SIGTERM would not do:
        # a run in training answers it by finishing its step.
        for process in multiprocessing.active_children():
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def start_worker():
    threading.Thread(target=follow_parent, daemon=True).start()
    torch.set_num_threads(1)
    # By default tqdm makes a semaphore, which a worker that is killed would leave behind.
    tqdm.set_lock(threading.RLock())


def follow_parent():
    """End the worker when its parent has been killed: nobody is left to receive its results."""
    multiprocessing.parent_process().join()
    os._exit(1)
