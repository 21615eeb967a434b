"""The files of a run folder: written so that they are never half there, and read with care.

What is missing or damaged is a ValueError of one line that names the file.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import torch

from nanotir.lora import OtherWeights, load_weights
from nanotir.model import ModelConfig, Transformer
from nanotir.problems import Problem
from nanotir.tokenizer import Tokenizer


@contextmanager
def reading(path):
    """Whatever a damaged file raises, where it is read or used, as a ValueError that names it."""
    try:
        yield
    except Exception as error:
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        fault = (f"{kind}{error}".splitlines() or ["no reason given"])[0]
        raise ValueError(f"'{path}' cannot be used: {fault}") from None


def check_types(values: dict, kinds: dict):
    """Raise what `reading` turns into one line, unless all keys are there with their types."""
    for key, kind in kinds.items():
        if not isinstance(values[key], kind):
            raise ValueError(f"'{key}' is {values[key]!r}")


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


def write_text(path, text: str):
    write_atomically(path, lambda temporary: temporary.write_text(text))


def write_json(path, value):
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_lines(path, rows):
    """JSON lines."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def lock(folder: Path) -> TextIO:
    """A lock on a run folder, until it is closed. ValueError if another process holds it.

    The kernel takes it away when its process ends, however it ends.
    """
    config = open(folder / "config.json", "r+")
    try:
        fcntl.flock(config, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        config.close()
        busy = f"another process is writing to '{folder}'"
        raise ValueError(f"{busy}: wait for it, or give another --out") from None
    return config


def read_config(folder) -> dict:
    """The config of a run folder. ValueError, in one line, if it is not one."""
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text())
    except OSError:
        fault = f"'{folder}' is not a run folder: no readable config.json"
        near = Path("runs", folder)
        meant = f"; did you mean '{near}'?" if (near / "config.json").exists() else ""
        raise ValueError(fault + meant) from None
    except (ValueError, RecursionError):
        raise ValueError(f"'{path}' is not JSON: the run folder is damaged") from None
    if isinstance(config, dict) and "model_type" in config:
        mend = f"python train.py --init {folder} starts a run from it"
        raise ValueError(f"'{folder}' is a Hugging Face folder, not a run: {mend}")
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise ValueError(f"'{path}' is not the config of a run: the folder is damaged")
    return config


def read_model_config(folder) -> ModelConfig:
    try:
        older = {"token_shifts": 0}  # which runs of older versions do not mention
        return ModelConfig(**older | read_config(folder)["model"])
    except TypeError as error:
        fault = f"'{folder}/config.json' does not fit this version of nanotir"
        raise ValueError(f"{fault}: {error}") from None


def read_evaluations(out) -> dict:
    path = Path(out) / "eval.json"
    if not path.exists():
        return {}
    with reading(path):
        return {name: dict(modes) for name, modes in json.loads(path.read_text()).items()}


def read_best(folder) -> dict:
    """What is known of the best weights of a run. ValueError if it has kept none."""
    path = Path(folder) / "best" / "best.json"
    if not path.exists():
        mend = "train with --eval.every 50, say, or leave out --best"
        raise ValueError(f"'{folder}' has kept no best weights: {mend}")
    with reading(path):
        best = json.loads(path.read_text())
        check_types(best, {"phase": str, "step": int, "problems": int, "accuracy": float})
    return best


def load_tokenizer(folder, part: str = "checkpoint") -> Tokenizer:
    try:
        return Tokenizer.load(Path(folder) / part)
    except Exception as error:  # the tokenizers package raises nothing narrower
        raise ValueError(f"no readable tokenizer in '{folder}/{part}': {error}") from None


def save_state(state: dict, path: Path):
    try:
        with open(path, "wb") as file:
            torch.save(state, file)
    except RuntimeError as error:
        # PyTorch hides why a file could not be written. Its context is the disk's own error.
        raise error.__context__ or error from None


def load_state(folder, model: Transformer) -> dict:
    """Load a checkpoint's weights into `model` and return the rest of it.

    ValueError if there is none, or if it is another model's.
    """
    path = Path(folder) / "state.pt"
    try:
        # PyTorch does not compare the checksums of what it reads.
        with zipfile.ZipFile(path) as archive:
            if part := archive.testzip():
                raise zipfile.BadZipFile(part)
        state = torch.load(path, map_location=model.embed.weight.device, weights_only=True)
        load_weights(model, state.pop("model"), state.pop("frozen", 0))
    except FileNotFoundError:
        mend = "the run stopped before its first one; start anew with another --out"
        raise ValueError(f"no checkpoint in '{folder}': {mend}") from None
    except OSError as error:
        raise ValueError(f"cannot read '{path}': {error.strerror}") from None
    except Exception as error:  # damaged bytes can raise almost any error
        raise ValueError(f"'{path}' is {_what_is_wrong(error)}") from None
    check_finite(model, lambda what: ValueError(f"'{path}' is damaged: {what}"))
    return state


def check_finite(model: Transformer, error_of):
    """Raise error_of("the weights .. are not finite") for the first weights that are not."""
    for name, weight in model.state_dict().items():
        if not weight.isfinite().all():
            raise error_of(f"the weights {name} are not finite")


def _what_is_wrong(error) -> str:
    if isinstance(error, OtherWeights):
        return str(error)
    if "state_dict" not in str(error):
        return "damaged, or no checkpoint of nanotir"
    lines = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
    return f"not of this model's config: {lines[0] if lines else 'it has other layers'}"


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


def new_folder(config) -> str:
    """The next free folder for a run without a name; `config` is a RunConfig."""
    number = 1
    while (folder := Path("runs") / f"{config.recipe}-{config.preset}-{number}").exists():
        number += 1
    return str(folder)


def check_free(out):
    """ValueError for a run folder that exists, or in whose place none can be made."""
    out = Path(out)
    if out.exists():
        mend = f"give another --out, or go on with it by --resume {shlex.quote(str(out))}"
        raise ValueError(f"'{out}' exists already: {mend}")
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        why = f"cannot make the run folder '{out}': '{above}' is no folder to write in"
        raise ValueError(f"{why}; give another --out")


def checksum(problems: list[Problem]) -> int:
    """A resumed run notices by it that its problems have changed."""
    texts = [(p.question, p.answer, p.solution, p.rationale) for p in problems]
    return zlib.crc32(repr(texts).encode())
