"""A run and its folder: what it logs, and how it is saved, stopped and taken up again, bit for bit.

    config.json  metrics.jsonl  traces.jsonl  eval.json  checkpoint/{config.json, tokenizer.json, state.pt}

Every random draw of a run is keyed by (seed, what it is for, step), so the step is all the random state there is; PyTorch's and Python's
own generators are saved all the same. Each file is replaced in one atomic rename: whenever a run is killed, the last checkpoint stands.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from nanotir.demonstrate import corpus
from nanotir.model import ModelConfig, Transformer
from nanotir.problems import load
from nanotir.problems.generate import documents
from nanotir.tokenizer import Tokenizer
from nanotir.tools import PythonTool, SearchTool
from nanotir.trajectory import Format


class Stopped(Exception):
    """The run was asked to stop and has saved itself."""


def write_atomically(path, write):
    """Call write(temporary path), flush to disk, then rename: readers see the old file or the new one, never half of one."""
    path = Path(path)
    temporary = path.with_name(
        f".{path.name}.tmp"
    )  # always this name: what a kill leaves behind is overwritten next time
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path, value):
    write_atomically(
        path, lambda temporary: temporary.write_text(json.dumps(value, indent=1) + "\n")
    )


@dataclass
class Run:
    """Everything that one training run owns. A loop calls restore() once and finish_step() after every step; all bookkeeping is there."""

    out: Path
    config: object  # the RunConfig
    model: Transformer
    tokenizer: Tokenizer
    format: Format
    tools: list
    problems: list  # to train on
    held_out: list  # to be measured on

    def __post_init__(self):
        self.out = Path(self.out)
        self.state = {
            "done": [],
            "phase": None,
            "step": 0,
            "optimizers": [],
        }  # phases that are over; where the current one stands
        self.stop_requested, self.started = False, time.time()

    def create(self) -> Run:
        """Make the folder and save the start in it. ValueError if there is one already, or none can be made."""
        try:
            self.out.mkdir(parents=True)
            (self.out / "checkpoint").mkdir()
        except FileExistsError:
            raise ValueError(
                f"'{self.out}' exists already: give another --out, or go on with it by --resume {self.out}"
            ) from None
        except OSError as error:
            raise ValueError(
                f"cannot make the run folder '{self.out}': {error.strerror}; give another --out"
            ) from None
        for folder in (self.out, self.out / "checkpoint"):
            write_json(folder / "config.json", asdict(self.config))
        self.tokenizer.save(self.out / "checkpoint")
        random.seed(self.config.seed)
        self._save([])
        return self

    def resume(self) -> Run:
        """Take up the run where its last checkpoint stands: load it, and drop what was logged after it."""
        self.state = load_state(self.out / "checkpoint", self.model)
        rng = self.state.pop("rng")
        torch.set_rng_state(rng["torch"].cpu())
        random.setstate(_tuples(rng["python"]))
        for name in ("metrics.jsonl", "traces.jsonl"):
            self._drop_later_rows(self.out / name)
        return self

    def restore(self, phase: str, optimizers) -> int | None:
        """The step at which this phase goes on (0: it is new), its optimizers as they were then; None if it is over."""
        if phase in self.state["done"]:
            return None
        if self.state["phase"] != phase:
            self.state |= {"phase": phase, "step": 0}
            return 0
        for optimizer, saved in zip(optimizers, self.state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return self.state["step"]

    def finish_step(self, step: int, metrics: dict, optimizers, last: bool = False):
        """`step` steps of the current phase are done: log, save when it is time to, and stop if asked to (Stopped)."""
        self.state["step"] = step
        self.log(
            {
                "phase": self.state["phase"],
                "step": step,
                **metrics,
                "time": round(time.time() - self.started, 2),
            }
        )
        if last:
            self.state["done"] = [*self.state["done"], self.state["phase"]]
        if last or self.stop_requested or step % self.config.save_every == 0:
            self._save(optimizers)
        if self.stop_requested:
            raise Stopped(f"stopped after step {step} of {self.state['phase']}")

    def _save(self, optimizers):
        self.state["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
        rng = {"torch": torch.get_rng_state(), "python": random.getstate()}
        state = {**self.state, "model": self.model.state_dict(), "rng": rng}
        write_atomically(
            self.out / "checkpoint" / "state.pt", lambda temporary: torch.save(state, temporary)
        )

    def log(self, row: dict, file: str = "metrics.jsonl"):
        with open(self.out / file, "a") as lines:
            lines.write(json.dumps(row) + "\n")

    def record(self, name: str, evaluation: dict):
        write_json(self.out / "eval.json", read_evaluations(self.out) | {name: evaluation})

    def _drop_later_rows(self, path: Path):
        if not path.exists():
            return
        done, phase, step = (self.state[key] for key in ("done", "phase", "step"))
        whole, _, _ = path.read_text().rpartition("\n")  # a kill may leave half a line
        rows = [json.loads(line) for line in whole.splitlines()]
        kept = [
            row
            for row in rows
            if row["phase"] in done or row["phase"] == phase and row["step"] <= step
        ]
        write_atomically(
            path,
            lambda temporary: temporary.write_text("".join(json.dumps(row) + "\n" for row in kept)),
        )

    def __enter__(self):
        """From here on Ctrl-C lets the current step finish, saves and stops; a second one kills at once."""
        self._handlers = {
            number: signal.signal(number, self._request_stop)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *exception):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _request_stop(self, number, frame):
        if self.stop_requested:
            raise KeyboardInterrupt
        self.stop_requested = True
        print("\nstopping after this step; once more to stop at once", flush=True)


@contextmanager
def open_run(config):
    """The Run that a RunConfig describes: problems, tokenizer, model and tools, in a new folder or as a stopped run left them."""
    device = check_device(config.device)
    torch.set_num_threads(config.threads)
    problems = load(config.data, "train", config.problems, config.seed, config.level)
    held_out = load(config.eval_data, "test", config.eval.problems, config.seed + 1, config.level)
    if config.init and (style := read_config(config.init).get("format")) != config.format:
        raise ValueError(
            f"'{config.init}' writes its calls as {style}, not as {config.format}: add --format {style}"
        )
    with ExitStack() as stack:
        tools = [stack.enter_context(tool) for tool in open_tools(asdict(config))]
        tokenizer = make_tokenizer(config, problems)
        model = Transformer(config.model, config.seed).to(device)
        if config.init:
            load_state(Path(config.init) / "checkpoint", model)
        run = Run(
            config.out, config, model, tokenizer, Format(config.format), tools, problems, held_out
        )
        yield stack.enter_context(run.resume() if config.resume else run.create())


def check_device(name: str) -> torch.device:
    usable = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not usable.get(name):
        raise ValueError(
            f"no device '{name}' here; there are {', '.join(device for device, there in usable.items() if there)}"
        )
    return torch.device(name)


def make_tokenizer(config, problems) -> Tokenizer:
    """Learned from the training problems, or that of the run we start from or go on with. Sets config.model to fit it."""
    if folder := config.resume or config.init:
        config.model = model_config(folder, read_config(folder))
        return load_tokenizer(folder)
    tokenizer = Tokenizer.train(corpus(problems, documents()), config.model.vocab_size)
    config.model.vocab_size = len(tokenizer)
    return tokenizer


def read_evaluations(out) -> dict:
    path = Path(out) / "eval.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _tuples(value):
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


def read_config(folder) -> dict:
    """The config of a run folder. ValueError, in one line, for a folder that is none."""
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text())
    except OSError:
        raise ValueError(
            f"'{folder}' is not a run folder: it has no readable config.json"
        ) from None
    except ValueError:
        raise ValueError(f"'{path}' is not JSON: the run folder is damaged") from None
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise ValueError(
            f"'{path}' is not the config of a run: the folder is damaged, or not a run's"
        )
    return config


def load_state(folder, model: Transformer) -> dict:
    """Load a checkpoint's weights into `model` and return the rest of it. ValueError if there is none or it is another model's."""
    path = Path(folder) / "state.pt"
    try:
        state = torch.load(path, map_location=next(model.parameters()).device, weights_only=True)
        model.load_state_dict(state.pop("model"))
    except FileNotFoundError:
        raise ValueError(
            f"no checkpoint in '{folder}': the run stopped before its first one; start anew with another --out"
        ) from None
    except OSError as error:
        raise ValueError(f"cannot read '{path}': {error.strerror}") from None
    except (RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"'{path}' is {_what_is_wrong(error)}") from None
    return state


def _what_is_wrong(error) -> str:
    if "state_dict" not in str(error):
        return "damaged, or no checkpoint of nanotir"
    mismatch = next(
        (line.strip() for line in str(error).splitlines() if "size mismatch" in line),
        "it has other layers",
    )
    return f"not of this model's config: {mismatch}"


def open_tools(config: dict) -> list:
    """The tools that a run's config names, in its order."""
    make = {
        "python": lambda: PythonTool(**config["python"]),
        "search": lambda: SearchTool(
            None if config["search"]["path"] else documents(), **config["search"]
        ),
    }
    names = [name.strip() for name in config["tools"].split(",") if name.strip()]
    for name in names:
        if name not in make:
            raise ValueError(f"no tool '{name}'; there are {', '.join(make)}")
    return [make[name]() for name in names]


def load_run(folder, device: str = "cpu"):
    """What it takes to use a trained model: (config as a dict, model, tokenizer, format, tools)."""
    config = read_config(folder)
    tokenizer = load_tokenizer(folder)
    model = Transformer(model_config(folder, config)).to(device).eval()
    try:
        format, tools = Format(config["format"]), open_tools(config)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"'{folder}/config.json' does not fit this version of nanotir: {error}"
        ) from None
    load_state(Path(folder) / "checkpoint", model)
    return config, model, tokenizer, format, tools


def model_config(folder, config: dict) -> ModelConfig:
    try:
        return ModelConfig(**config["model"])
    except TypeError as error:
        raise ValueError(
            f"'{folder}/config.json' does not fit this version of nanotir: {error}"
        ) from None


def latest_run() -> Path:
    """The run folder under runs/ with the newest checkpoint. ValueError if there is none."""
    checkpoints = sorted(
        Path("runs").glob("*/checkpoint/state.pt"), key=lambda path: path.stat().st_mtime
    )
    if not checkpoints:
        raise ValueError(
            "no trained run in runs/ yet: run `python train.py` first, or name a run folder with --run"
        )
    return checkpoints[-1].parent.parent


def load_tokenizer(folder) -> Tokenizer:
    try:
        return Tokenizer.load(Path(folder) / "checkpoint")
    except Exception as error:  # the tokenizers package raises nothing narrower
        raise ValueError(f"no readable tokenizer in '{folder}/checkpoint': {error}") from None
