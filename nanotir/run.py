"""A run and its folder: what it logs, and how it is saved, stopped and resumed, bit for bit.

    config.json  metrics.jsonl  traces.jsonl  eval.json
    checkpoint/  config.json  tokenizer.json  state.pt

Every random draw of a run is keyed by (seed, what it is for, step), so the step is all the random
state there is. The generators of PyTorch and Python are seeded and saved all the same. Whenever a
run is killed, its last checkpoint stands. Numbers that are not finite stop it and are never saved.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import time
import zlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from tqdm import tqdm

from nanotir.checks import one_of
from nanotir.demonstrate import corpus
from nanotir.model import ModelConfig, Transformer
from nanotir.problems import Problem
from nanotir.run_files import (
    check_finite,
    check_types,
    load_state,
    load_tokenizer,
    read_config,
    read_evaluations,
    read_model_config,
    reading,
    write_atomically,
    write_json,
    write_lines,
)
from nanotir.sampler import SamplerConfig
from nanotir.tokenizer import Tokenizer
from nanotir.tools import TOOLS, Tool
from nanotir.trajectory import Format, Trajectory

# What a checkpoint holds beside the weights, and what it takes to use a run, as its config has it.
STATE = {"done": list, "phase": str | None, "step": int, "optimizers": list, "rng": dict}
USED = {"sampler": dict, "tools": str, "format": str, "threads": int, "seed": int}


class Stopped(Exception):
    """The run was asked to stop and has saved itself."""


@dataclass
class Run:
    """All that one training run owns, and its bookkeeping.

    A training loop calls restore() once and finish_step() after every step.
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
        self.started = time.time()

    @property
    def tools_by_name(self) -> dict[str, Tool]:
        return {tool.name: tool for tool in self.tools}

    @property
    def position(self) -> str:
        phase = self.state["phase"]
        return f"step {self.state['step']} of {phase}" if phase else "the start"

    def create(self) -> Run:
        """Make the folder and save the start in it. ValueError if it exists, or cannot be made."""
        check_free(self.out)
        try:
            self.out.mkdir(parents=True)
            (self.out / "checkpoint").mkdir()
        except OSError as error:
            why = f"cannot make the run folder '{self.out}': {error.strerror}"
            raise ValueError(f"{why}; give another --out") from None
        for folder in (self.out, self.out / "checkpoint"):
            write_json(folder / "config.json", asdict(self.config))
        self.tokenizer.save(self.out / "checkpoint")
        random.seed(self.config.seed)
        torch.manual_seed(self.config.seed)
        self.save([])
        return self

    def resume(self) -> Run:
        """Load the last checkpoint, and drop what was logged after it."""
        data = self.state["data"]
        self.state = load_state(self.out / "checkpoint", self.model)
        if self.state.get("data", data) != data:
            fault = f"the problems of '{self.out}' have changed since it began"
            raise ValueError(f"{fault}: restore '{self.config.data}', or start anew")
        with reading(self.out / "checkpoint" / "state.pt"):
            check_types(self.state, STATE)
            rng = self.state.pop("rng")
            torch.set_rng_state(rng["torch"].cpu())
            random.setstate(_tuples(rng["python"]))
            self.started = time.time() - self.state.get("seconds", 0.0)
        self.saved = self.position
        for name in ("metrics.jsonl", "traces.jsonl"):
            self.drop_later_rows(self.out / name)
        return self

    def is_done(self, phase: str) -> bool:
        return phase in self.state["done"]

    def restore(self, phase: str, optimizers) -> int | None:
        """The step at which this phase goes on, its optimizers as they were; None if it is over."""
        if phase in self.state["done"]:
            return None
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
        return tqdm(todo, initial=first, total=steps, desc=phase, dynamic_ncols=True)

    def finish_step(self, step: int, metrics: dict, optimizers, last: bool = False):
        """Log a step, save when it is time, and stop if asked to (Stopped)."""
        phase = self.state["phase"]
        self.state["step"] = step
        for name, value in metrics.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise self.spoiled(f"{name} is {value}")
        seconds = round(time.time() - self.started, 2)
        self.log({"phase": phase, "step": step, **metrics, "time": seconds})
        if last:
            self.state["done"] = [*self.state["done"], phase]
        if last or self.stop_requested or step % self.config.save_every == 0:
            self.save(optimizers)
        if self.stop_requested:
            raise Stopped(f"stopped after step {step} of {phase}")

    def save(self, optimizers):
        check_finite(self.model, self.spoiled)
        self.state["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
        self.state["seconds"] = time.time() - self.started
        rng = {"torch": torch.get_rng_state(), "python": random.getstate()}
        state = {**self.state, "model": self.model.state_dict(), "rng": rng}
        path = self.out / "checkpoint" / "state.pt"
        write_atomically(path, lambda temporary: torch.save(state, temporary))
        self.saved = self.position

    def log(self, row: dict, file: str = "metrics.jsonl"):
        with open(self.out / file, "a") as lines:
            lines.write(json.dumps(row) + "\n")

    def record(self, name: str, evaluation: dict):
        """Add an evaluation to eval.json."""
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
        signals = (signal.SIGINT, signal.SIGTERM)
        self._handlers = {number: signal.signal(number, self.request_stop) for number in signals}
        return self

    def __exit__(self, *exception):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def request_stop(self, number, frame):
        if self.stop_requested:
            raise KeyboardInterrupt
        self.stop_requested = True
        print("\nstopping after this step; once more to stop at once", flush=True)


def check_free(out):
    """ValueError for a run folder that exists, or in whose place none can be made."""
    out = Path(out)
    if out.exists():
        mend = f"give another --out, or go on with it by --resume {out}"
        raise ValueError(f"'{out}' exists already: {mend}")
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        why = f"cannot make the run folder '{out}': '{above}' is no folder to write in"
        raise ValueError(f"{why}; give another --out")


def checksum(problems: list[Problem]) -> int:
    """A resumed run notices by it that its problems have changed."""
    texts = [(p.question, p.answer, p.solution, p.rationale) for p in problems]
    return zlib.crc32(repr(texts).encode())


def _tuples(value):
    """Python's generator wants tuples where torch.save keeps lists."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def use_device(name: str) -> torch.device:
    """The device, made ready. ValueError if it is not here."""
    here = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    one_of("device here named", name, [device for device in here if here[device]])
    # cuDNN plans its attention anew for every shape of a batch, which takes up to half a second.
    torch.backends.cuda.enable_cudnn_sdp(False)
    return torch.device(name)


def open_tools(config: dict) -> list[Tool]:
    """The tools that a run's config (as a dict) names, in its order, each with its settings."""
    names = [name.strip() for name in config["tools"].split(",") if name.strip()]
    for name in names:
        one_of("tool", name, TOOLS)
    return [TOOLS[name](**config.get(name, {})) for name in names]


def make_tokenizer(
    config, problems: list[Problem], tools: list[Tool]
) -> tuple[Tokenizer, ModelConfig]:
    """A tokenizer that spells the problems well, and the config of a model that fits it.

    A run that goes on with another, or starts from it, has those of that run.
    """
    if folder := config.resume or config.init:
        return load_tokenizer(folder), read_model_config(folder)
    documents = []
    if config.data.startswith("generated") or config.search.path:  # about what is searched, too
        for tool in tools:
            documents += getattr(tool, "documents", [])
    texts = corpus(problems, documents)
    tokenizer = Tokenizer.train(texts, config.model.vocab_size, tools=TOOLS)
    return tokenizer, replace(config.model, vocab_size=len(tokenizer))


def load_run(folder, device: str = "cpu", **used):
    """What it takes to use a trained model: (config as a dict, model, tokenizer, format, tools).

    `used` are more keys of the config that the caller reads, and their types.
    """
    config = read_config(folder)
    tokenizer = load_tokenizer(folder)
    model = Transformer(read_model_config(folder)).to(device).eval()
    with reading(Path(folder) / "config.json"):
        check_types(config, USED | used)
        format, tools = Format(config["format"]), open_tools(config)
        SamplerConfig(**config["sampler"])
    load_state(Path(folder) / "checkpoint", model)
    return config, model, tokenizer, format, tools


def latest_run() -> Path:
    """The run folder under runs/ with the newest checkpoint. ValueError if there is none."""
    checkpoints = Path("runs").glob("*/checkpoint/state.pt")
    newest = max(checkpoints, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        mend = "run `python train.py` first, or name a run folder with --run"
        raise ValueError(f"no trained run in runs/ yet: {mend}")
    return newest.parent.parent
