"""A run and its folder: what it logs, and how it is saved, stopped and resumed, bit for bit.

    config.json  metrics.jsonl  traces.jsonl  eval.json
    checkpoint/  tokenizer.json  state.pt
    best/        the same without optimizers, and best.json, with eval.every

Random draws of a run are keyed by (seed, what they are for, step), so that the step is their whole
state. Others, as of reward.coin, use the generators of PyTorch and Python, which are seeded and
saved. Whenever a run is killed, its last checkpoint stands. Numbers that are not finite stop it and
are never saved.
"""

from __future__ import annotations

import json
import math
import os
import random
import shlex
import shutil
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from nanotir.held_out import watch
from nanotir.lora import weights_of
from nanotir.model import Transformer
from nanotir.problems import Problem
from nanotir.processes import check_equal, gather, is_main, once
from nanotir.run_files import (
    check_finite,
    check_free,
    check_types,
    checksum,
    load_state,
    lock,
    new_folder,
    read_evaluations,
    reading,
    save_state,
    write_atomically,
    write_json,
    write_lines,
)
from nanotir.tokenizer import Tokenizer
from nanotir.tools import Tool
from nanotir.trajectory import Format, Trajectory

# What a checkpoint holds beside the weights.
STATE = {"done": list, "phase": str | None, "step": int, "optimizers": list, "rng": dict}


class Stopped(KeyboardInterrupt):
    """The run was asked to stop. The message says how to go on from what it has saved."""


@dataclass(repr=False)  # signal.signal asks for it, and it would spell out all demonstrations
class Run:
    """All that one training run owns, and its bookkeeping.

    A training loop calls remaining() once and finish_step() after every step.
    """

    out: Path
    config: object  # the RunConfig
    model: Transformer
    tokenizer: Tokenizer
    format: Format
    tools: list[Tool]
    problems: list[Problem]  # to train on
    held_out: list[Problem]  # to evaluate on
    demonstrations: list[Trajectory] = field(default_factory=list)  # to imitate first

    def __post_init__(self):
        self.out = Path(self.out)
        self.state = {"done": [], "phase": None, "step": 0, "optimizers": [], "seconds": 0.0}
        self.state["data"] = checksum([*self.problems, *self.held_out])
        self.saved = "the start"  # what the last checkpoint holds
        self.stop_requested = False
        self.in_step = False  # a step of training is being made, and not yet saved
        self.started = time.time()
        self.lock = self.bar = None

    def __str__(self) -> str:
        size = sum(weight.numel() for weight in self.model.parameters())
        tools = ", ".join(self.tools_by_name) or "none"
        return f"{self.out}: {size:,} parameters, {len(self.problems)} problems, tools {tools}"

    @property
    def tools_by_name(self) -> dict[str, Tool]:
        return {tool.name: tool for tool in self.tools}

    @property
    def position(self) -> str:
        phase = self.state["phase"]
        return f"step {self.state['step']} of {phase}" if phase else "the start"

    def create(self) -> Run:
        """Make the folder and save the start in it. ValueError if it exists, or cannot be made."""
        if self.out == Path():  # not before now: runs that start at once take different numbers
            self.config.out = once(new_folder, self.config)
            self.out = Path(self.config.out)
        random.seed(self.config.seed)
        torch.manual_seed(self.config.seed)
        if not is_main():
            self.save([])
            return self
        check_free(self.out)
        try:
            self.out.mkdir(parents=True)
            self.fill_folder()
        except OSError as error:
            why = f"cannot make the run folder '{self.out}': {error.strerror}"
            raise ValueError(f"{why}; give another --out") from None
        return self

    def fill_folder(self):
        try:
            (self.out / "checkpoint").mkdir()
            write_json(self.out / "config.json", asdict(self.config))
            self.lock = lock(self.out)
            self.tokenizer.save(self.out / "checkpoint")
            self.save([])
        except BaseException:
            shutil.rmtree(self.out, ignore_errors=True)  # half a folder cannot be resumed
            raise

    def resume(self) -> Run:
        """Load the last checkpoint, and drop what was logged after it."""
        if is_main():
            self.lock = self.lock or lock(self.out)
        data = self.state["data"]
        self.state = load_state(self.out / "checkpoint", self.model)
        if self.state.get("data", data) != data:
            fault = f"the problems of '{self.out}' have changed since it began"
            given = f"'{self.config.data}' and '{self.config.eval_data}'"
            raise ValueError(f"{fault}: restore {given}, or start anew")
        with reading(self.out / "checkpoint" / "state.pt"):
            check_types(self.state, STATE)
            rng = self.state.pop("rng")
            torch.set_rng_state(rng["torch"].cpu())
            random.setstate(_tuples(rng["python"]))
            self.started = time.time() - self.state.get("seconds", 0.0)
        self.saved = self.position
        for name in ("metrics.jsonl", "traces.jsonl") if is_main() else ():
            self.drop_later_rows(self.out / name)
        return self

    def is_done(self, phase: str) -> bool:
        return phase in self.state["done"]

    def restore(self, phase: str, optimizers) -> int | None:
        """The step at which this phase goes on, its optimizers as they were; None if it is over."""
        if phase in self.state["done"]:
            return None
        self.in_step = True
        check_equal(self.model, phase, self.state["step"], self.state["data"])
        if self.state["phase"] != phase:
            self.state |= {"phase": phase, "step": 0}
            return 0
        with reading(self.out / "checkpoint" / "state.pt"):
            for optimizer, saved in zip(optimizers, self.state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        return self.state["step"]

    def spoiled(self, what: str) -> ValueError:
        """The error that stops a run whose numbers are not finite any more."""
        last = f"the last good checkpoint, {self.saved}, stands in '{self.out}/checkpoint'"
        return ValueError(f"{self.position}: {what}; {last}; try a smaller learning rate")

    def remaining(self, phase: str, optimizers, steps: int) -> tqdm:
        """The steps of a phase that are still to do, as a progress bar; none if it is over."""
        first = self.restore(phase, optimizers) if steps else None
        if first is None:
            return tqdm((), disable=True)
        todo = range(first, steps)
        shown = {"desc": phase, "dynamic_ncols": True, "disable": not is_main()}
        self.bar = tqdm(todo, initial=first, total=steps, **shown)
        return self.bar

    def finish_step(self, step: int, metrics: dict, optimizers, last: bool = False):
        """Log a step, save when it is time, and stop if asked to (Stopped)."""
        phase = self.state["phase"]
        self.state["step"] = step
        for name, value in metrics.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise self.spoiled(f"{name} is {value}")
        metrics = metrics | watch(self, step, last)
        seconds = round(time.time() - self.started, 2)
        self.log({"phase": phase, "step": step, **metrics, "time": seconds})
        if last:
            self.state["done"] = [*self.state["done"], phase]
            self.in_step = False
        stop = any(gather([self.stop_requested]))  # of any process
        if last or stop or step % self.config.save_every == 0:
            self.save(optimizers)
        if stop:
            raise Stopped(f"stopped and saved after step {step} of {phase}; {self.again}")

    def save(self, optimizers):
        check_finite(self.model, self.spoiled)
        check_equal(self.model, self.position)
        self.state["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
        self.state["seconds"] = time.time() - self.started
        rng = {"torch": torch.get_rng_state(), "python": random.getstate()}
        weights = {"model": weights_of(self.model), "frozen": getattr(self.model, "frozen", 0)}
        state = {**self.state, **weights, "rng": rng}
        path = self.out / "checkpoint" / "state.pt"
        if is_main():
            write_atomically(path, lambda temporary: save_state(state, temporary))
        gather([])  # all wait for the file
        self.saved = self.position

    def log(self, row: dict, file: str = "metrics.jsonl"):
        if is_main():
            with open(self.out / file, "a") as lines:
                lines.write(json.dumps(row) + "\n")

    def record(self, name: str, evaluation: dict):
        """Add an evaluation to eval.json."""
        if is_main():
            write_json(self.out / "eval.json", read_evaluations(self.out) | {name: evaluation})

    def drop_later_rows(self, path: Path):
        """Keep the rows of a log up to the checkpoint, and those of recorded evaluations."""
        if not path.exists():
            return
        evaluations = read_evaluations(self.out)
        whole, _, _ = path.read_text(errors="replace").rpartition("\n")  # a kill leaves half a line
        kept = []
        for number, line in enumerate(whole.splitlines(), 1):
            with reading(f"{path}:{number}"):
                row = json.loads(line)
                if self.is_saved(row, evaluations):
                    kept.append(row)
        write_lines(path, kept)

    def is_saved(self, row: dict, evaluations: dict) -> bool:
        phase = row["phase"]
        if phase == "eval":
            return row["name"] in evaluations
        current = phase == self.state["phase"] and row["step"] <= self.state["step"]
        return current or phase in self.state["done"]

    def __enter__(self):
        """From here on Ctrl-C finishes the step, saves and stops; a second one stops at once."""
        signals = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it
            signals.append(signal.SIGHUP)
        self._handlers = {number: signal.signal(number, self.request_stop) for number in signals}
        return self

    def __exit__(self, kind, error, trace):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self.close()
        if kind is KeyboardInterrupt:
            raise Stopped(f"interrupted; {self.how_to_go_on()}") from None
        if isinstance(error, OSError):  # the disk is full, say
            why = error.strerror or str(error)
            what = f"{why}: '{error.filename}'" if error.filename else why
            raise ValueError(f"{what}; {self.how_to_go_on()}") from None

    def close(self):
        """Give the folder back, and end the progress bar."""
        for open_one in (self.lock, self.bar):
            if open_one is not None:
                open_one.close()
        self.lock = self.bar = None

    @property
    def again(self) -> str:
        return f"go on with: python {script()} --resume {shlex.quote(str(self.out))}"

    def how_to_go_on(self) -> str:
        return f"the last checkpoint in '{self.out}' is intact; {self.again}"

    def request_stop(self, number, frame):
        # Between two phases there is nothing to save, and an evaluation is long.
        if self.stop_requested or not self.in_step:
            raise KeyboardInterrupt
        self.stop_requested = True
        try:
            tqdm.write("stopping after this step; once more to stop at once")
        except OSError:  # the terminal is gone: print to nowhere from now on
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for output in (1, 2):
                os.dup2(nowhere, output)


def script() -> str:
    """The script that has started the run: train.py, or a user's, which may have its own tools."""
    name = Path(sys.argv[0]).name
    return name if name.endswith(".py") and name != "__main__.py" else "train.py"


def _tuples(value):
    """Python's generator wants tuples where torch.save keeps lists."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
