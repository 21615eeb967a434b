"""Cells: one arm at one seed, computed once, kept in a file, and shared by all experiments that name it.

runs/lab/cells/KEY-SEED.json    its metrics and the seconds they took; delete it to have it computed again
runs/lab/arms/KEY-SEED/         the arm's own files, and what it printed: log.txt
runs/lab/quick/, quick-arms/    the same for --quick, so that the two never mix
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
import traceback
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import redirect_stdout
from pathlib import Path

import torch
from tqdm import tqdm

from nanotir.checkpoint import write_json
from nanotir.lab.experiment import Experiment, shorten

LAB = Path("runs/lab")


def cell_path(key: str, seed: int, quick: bool) -> Path:
    return LAB / ("quick" if quick else "cells") / f"{key}-{seed}.json"


def arm_folder(key: str, seed: int, quick: bool) -> Path:
    return LAB / ("quick-arms" if quick else "arms") / f"{key}-{seed}"


def read_cells(experiment: Experiment, seeds, quick: bool) -> dict | None:
    """{arm: {seed: cell}}, or None while one is missing."""
    paths = {
        (arm, seed): cell_path(experiment.arms[arm].key, seed, quick)
        for arm in experiment.arms
        for seed in seeds
    }
    if not all(path.exists() for path in paths.values()):
        return None
    return {
        arm: {seed: json.loads(paths[arm, seed].read_text()) for seed in seeds}
        for arm in experiment.arms
    }


def missing(experiments, seeds, quick: bool) -> list[tuple]:
    """(experiment, arm, seed) of each cell to compute, each once. Seeds are outermost, so that a stopped run has whole seeds."""
    found = {}
    for seed in seeds:
        for experiment in experiments:
            for name, arm in experiment.arms.items():
                if not cell_path(arm.key, seed, quick).exists():
                    found.setdefault((arm.key, seed), (experiment.name, name, seed))
    return list(found.values())


def run_cell(source: str, experiment: str, arm: str, seed: int, quick: bool) -> dict:
    """Compute one cell and keep it. The arm is found by name: functions need not travel between processes."""
    found = importlib.import_module(source).EXPERIMENTS[experiment].arms[arm]
    path, folder = cell_path(found.key, seed, quick), arm_folder(found.key, seed, quick)
    shutil.rmtree(folder, ignore_errors=True)  # what an earlier attempt left
    folder.mkdir(parents=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    started = time.time()
    with open(folder / "log.txt", "w", buffering=1) as log, redirect_stdout(log):
        try:
            metrics = found.run(seed, quick, folder)
            assert all(v is None or isinstance(v, (int, float, list)) for v in metrics.values()), (
                f"neither a number, None nor a curve: {metrics}"
            )
        except BaseException:
            traceback.print_exc(file=log)
            raise
    write_json(
        path,
        cell := {
            "key": found.key,
            "seed": seed,
            "seconds": round(time.time() - started, 2),
            "metrics": metrics,
        },
    )
    return cell


def run_cells(source: str, tasks, metric_of, quick: bool, workers: int) -> dict:
    """Compute the cells of all tasks; {task: exception} of those that failed. metric_of(experiment) names what the bar shows of a cell."""
    failures = {}
    with tqdm(total=len(tasks), desc="cells", dynamic_ncols=True, disable=not tasks) as bar:
        for task, outcome in outcomes(source, tasks, quick, workers):
            experiment, arm, seed = task
            if isinstance(
                outcome, BaseException
            ):  # not only Exception: an arm may call a command, which exits
                failures[task] = outcome
                bar.set_postfix_str(f"{experiment} {arm} seed {seed} failed")
            else:
                bar.set_postfix_str(
                    f"{arm} seed {seed}: {metric_of(experiment)} {shorten(outcome['metrics'].get(metric_of(experiment)), 3)}"
                )
            bar.update()
    return failures


def outcomes(source: str, tasks, quick: bool, workers: int):
    """(task, cell or exception), as they come in: from this process with 0 workers, else from so many of them, one core each."""
    if not workers:
        for task in tasks:
            try:
                yield task, run_cell(source, *task, quick)
            except Exception as error:
                yield task, error
        return
    os.environ["TQDM_DISABLE"] = (
        "1"  # read when tqdm is imported: too late for this process's bar, in time for the workers'
    )
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker)
    try:
        yield from finished(pool, source, tasks, quick, workers)
    except (
        BaseException
    ):  # Ctrl-C: cells take minutes, and what they have not written is lost anyway
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def finished(pool, source: str, tasks, quick: bool, workers: int):
    """No worker is handed a cell before it has time for it: after Ctrl-C none starts another."""
    waiting, running = list(tasks), {}
    while waiting or running:
        while waiting and len(running) < workers:
            task = waiting.pop(0)
            handler = signal.signal(
                signal.SIGINT, signal.SIG_IGN
            )  # inherited by the worker this may start: Ctrl-C is ours to deal with
            running[pool.submit(run_cell, source, *task, quick)] = task
            signal.signal(signal.SIGINT, handler)
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            yield running.pop(future), future.exception() or future.result()


def start_worker():
    threading.Thread(target=follow_parent, daemon=True).start()
    torch.set_num_threads(1)
    tqdm.set_lock(
        threading.RLock()
    )  # its own would be a semaphore of the system, left behind by a worker that is terminated


def follow_parent():
    """A worker whose parent was killed has nobody to report to: it goes too."""
    multiprocessing.parent_process().join()
    os._exit(1)
