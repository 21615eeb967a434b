"""A run and its folder: what it logs, and how it is saved, stopped and resumed, bit for bit.

    config.json  metrics.jsonl  traces.jsonl  eval.json
    checkpoint/  config.json  tokenizer.json  state.pt

Every random draw of a run is keyed by (seed, what it is for, step), so the step is all the random
state there is. The generators of PyTorch and Python are saved all the same. Each file is replaced
in one atomic rename: whenever a run is killed, the last checkpoint stands.
"""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import random
import shutil
import signal
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from nanotir.checks import one_of
from nanotir.demonstrate import corpus
from nanotir.model import ModelConfig, Transformer
from nanotir.problems import Problem
from nanotir.tokenizer import Tokenizer
from nanotir.tools import TOOLS, Tool
from nanotir.trajectory import Format


class Stopped(KeyboardInterrupt):
    """The run was asked to stop. The message says how to go on from what it has saved."""


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

    def __post_init__(self):
        self.out = Path(self.out)
        self.state = {"done": [], "phase": None, "step": 0, "optimizers": []}
        self.stop_requested = False
        self.in_step = False  # a step of training is being made, and not yet saved
        self.started = time.time()
        self.lock = self.bar = None

    @property
    def tools_by_name(self) -> dict[str, Tool]:
        return {tool.name: tool for tool in self.tools}

    def create(self) -> Run:
        """Make the folder and save the start in it. ValueError if it exists, or cannot be made."""
        try:
            self.out.mkdir(parents=True)
            self.fill_folder()
        except FileExistsError:
            mend = f"give another --out, or go on with it by --resume {self.out}"
            raise ValueError(f"'{self.out}' exists already: {mend}") from None
        except OSError as error:
            why = f"cannot make the run folder '{self.out}': {error.strerror}"
            raise ValueError(f"{why}; give another --out") from None
        return self

    def fill_folder(self):
        try:
            (self.out / "checkpoint").mkdir()
            for folder in (self.out, self.out / "checkpoint"):
                write_json(folder / "config.json", asdict(self.config))
            self.take_lock()
            self.tokenizer.save(self.out / "checkpoint")
            random.seed(self.config.seed)
            self.save([])
        except BaseException:
            shutil.rmtree(self.out, ignore_errors=True)  # half a folder cannot be resumed
            raise

    def take_lock(self):
        """ValueError if another process writes to this folder.

        The kernel takes the lock away when this process ends, however it ends.
        """
        if self.lock:
            return
        lock = open(self.out / "config.json", "r+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            busy = f"another process is writing to '{self.out}'"
            raise ValueError(f"{busy}: wait for it, or give another --out") from None
        self.lock = lock

    def resume(self) -> Run:
        """Load the last checkpoint, and drop what was logged after it."""
        self.take_lock()
        self.state = load_state(self.out / "checkpoint", self.model)
        rng = self.state.pop("rng")
        torch.set_rng_state(rng["torch"].cpu())
        random.setstate(_tuples(rng["python"]))
        for name in ("metrics.jsonl", "traces.jsonl"):
            self.drop_later_rows(self.out / name)
        return self

    def is_done(self, phase: str) -> bool:
        return phase in self.state["done"]

    def restore(self, phase: str, optimizers) -> int | None:
        """The step at which this phase goes on, its optimizers as they were; None if it is over."""
        if phase in self.state["done"]:
            return None
        self.in_step = True
        if self.state["phase"] != phase:
            self.state |= {"phase": phase, "step": 0}
            return 0
        for optimizer, saved in zip(optimizers, self.state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return self.state["step"]

    def remaining(self, phase: str, optimizers, steps: int) -> tqdm:
        """The steps of a phase that are still to do, as a progress bar; none if it is over."""
        first = self.restore(phase, optimizers) if steps else None
        if first is None:
            return tqdm((), disable=True)
        todo = range(first, steps)
        self.bar = tqdm(todo, initial=first, total=steps, desc=phase, dynamic_ncols=True)
        return self.bar

    def finish_step(self, step: int, metrics: dict, optimizers, last: bool = False):
        """Log a step, save when it is time, and stop if asked to (Stopped)."""
        phase = self.state["phase"]
        self.state["step"] = step
        seconds = round(time.time() - self.started, 2)
        self.log({"phase": phase, "step": step, **metrics, "time": seconds})
        if last:
            self.state["done"] = [*self.state["done"], phase]
            self.in_step = False
        if last or self.stop_requested or step % self.config.save_every == 0:
            self.save(optimizers)
        if self.stop_requested:
            raise Stopped(f"stopped after step {step} of {phase}; {self.how_to_go_on()}")

    def save(self, optimizers):
        self.state["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
        rng = {"torch": torch.get_rng_state(), "python": random.getstate()}
        state = {**self.state, "model": self.model.state_dict(), "rng": rng}
        path = self.out / "checkpoint" / "state.pt"
        write_atomically(path, lambda temporary: save_state(state, temporary))

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
        whole, _, _ = path.read_text().rpartition("\n")  # a kill may leave half a line
        rows = [json.loads(line) for line in whole.splitlines()]
        evaluations = read_evaluations(self.out)
        kept = [row for row in rows if self.is_saved(row, evaluations)]
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
        for open_one in (self.lock, self.bar):
            if open_one is not None:
                open_one.close()
        if kind is KeyboardInterrupt:
            raise Stopped(f"interrupted; {self.how_to_go_on()}") from None
        if isinstance(error, OSError):  # the disk is full, say
            raise ValueError(f"{error.strerror or error}; {self.how_to_go_on()}") from None

    def how_to_go_on(self) -> str:
        again = f"go on with: python train.py --resume {self.out}"
        return f"what '{self.out}' last saved stands; {again}"

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


def _tuples(value):
    """Python's generator wants tuples where torch.save keeps lists."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def write_atomically(path, write):
    """Call write(temporary path), flush to disk, then rename: a file is never half written."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")  # one name, so leftovers are overwritten
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_state(state: dict, path: Path):
    try:
        with open(path, "wb") as file:
            torch.save(state, file)
    except RuntimeError as error:
        # PyTorch hides why a file could not be written. Its context is the disk's own error.
        raise error.__context__ or error from None


def write_json(path, value):
    text = json.dumps(value, indent=1) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def write_lines(path, rows):
    """JSON lines."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomically(path, lambda temporary: temporary.write_text(text))


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


def load_run(folder, device: str = "cpu"):
    """What it takes to use a trained model: (config as a dict, model, tokenizer, format, tools)."""
    config = read_config(folder)
    tokenizer = load_tokenizer(folder)
    model = Transformer(read_model_config(folder)).to(device).eval()
    try:
        format, tools = Format(config["format"]), open_tools(config)
    except (KeyError, TypeError) as error:
        raise ValueError(misfit(folder, error)) from None
    load_state(Path(folder) / "checkpoint", model)
    return config, model, tokenizer, format, tools


def saved_runs() -> list[Path]:
    """The run folders under runs/, the one with the newest checkpoint last."""
    checkpoints = Path("runs").glob("*/checkpoint/state.pt")
    by_age = sorted(checkpoints, key=lambda path: path.stat().st_mtime)
    return [path.parent.parent for path in by_age]


def latest_run() -> Path:
    """The run folder under runs/ with the newest checkpoint. ValueError if there is none."""
    found = saved_runs()
    if not found:
        mend = "run `python train.py` first, or name a run folder with --run"
        raise ValueError(f"no trained run in runs/ yet: {mend}")
    return found[-1]


def read_config(folder) -> dict:
    """The config of a run folder. ValueError, in one line, if it is not one."""
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text())
    except OSError:
        raise ValueError(f"'{folder}' is not a run folder: no readable config.json") from None
    except ValueError:
        raise ValueError(f"'{path}' is not JSON: the run folder is damaged") from None
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise ValueError(f"'{path}' is not the config of a run: the folder is damaged")
    return config


def read_model_config(folder) -> ModelConfig:
    try:
        return ModelConfig(**read_config(folder)["model"])
    except TypeError as error:
        raise ValueError(misfit(folder, error)) from None


def misfit(folder, error) -> str:
    return f"'{folder}/config.json' does not fit this version of nanotir: {error}"


def read_evaluations(out) -> dict:
    path = Path(out) / "eval.json"
    return json.loads(path.read_text()) if path.exists() else {}


def load_tokenizer(folder) -> Tokenizer:
    try:
        return Tokenizer.load(Path(folder) / "checkpoint")
    except Exception as error:  # the tokenizers package raises nothing narrower
        raise ValueError(f"no readable tokenizer in '{folder}/checkpoint': {error}") from None


def load_state(folder, model: Transformer) -> dict:
    """Load a checkpoint's weights into `model` and return the rest of it.

    ValueError if there is none, or if it is another model's.
    """
    path = Path(folder) / "state.pt"
    try:
        state = torch.load(path, map_location=model.embed.weight.device, weights_only=True)
        model.load_state_dict(state.pop("model"))
    except FileNotFoundError:
        mend = "the run stopped before its first one; start anew with another --out"
        raise ValueError(f"no checkpoint in '{folder}': {mend}") from None
    except OSError as error:
        raise ValueError(f"cannot read '{path}': {error.strerror}") from None
    except (RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"'{path}' is {_what_is_wrong(error)}") from None
    return state


def _what_is_wrong(error) -> str:
    if "state_dict" not in str(error):
        return "damaged, or no checkpoint of nanotir"
    lines = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
    return f"not of this model's config: {lines[0] if lines else 'it has other layers'}"
