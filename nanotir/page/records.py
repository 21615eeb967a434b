"""What a run has recorded in its folder, read to be shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path

from nanotir.checks import visible
from nanotir.run_files import load_tokenizer, read_config, read_evaluations

TRACE_KEYS = "phase step question answer family correct spans calls finish_reason".split()


@dataclass
class Recorded:
    """What a run folder holds."""

    folder: Path
    config: dict
    metrics: list[dict]
    traces: list[dict]
    evaluations: dict
    token_text: Callable[[int], str] | None  # an id as it is shown; None without a tokenizer

    @property
    def name(self) -> str:
        return visible(self.folder.resolve().name)


def read_run(folder: Path) -> Recorded:
    """ValueError, in one line, for a folder that is no run's and for a damaged file."""
    config = read_config(folder)
    metrics = read_rows(folder / "metrics.jsonl", ("phase", "step"))
    traces = read_rows(folder / "traces.jsonl", TRACE_KEYS)
    for row in traces:
        check_spans(row, folder / "traces.jsonl")
    evaluations = read_evaluations(folder)
    there = (folder / "checkpoint" / "tokenizer.json").exists()
    reader = token_reader(folder) if there else None
    return Recorded(folder, config, metrics, traces, evaluations, reader)


def read_rows(path: Path, keys) -> list[dict]:
    """The rows of a file of JSON lines, none if it is missing; a last half line is left out."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text(encoding="utf-8", errors="replace").rpartition("\n")
    rows = []
    for number, line in enumerate(whole.split("\n") if whole else [], 1):
        try:
            rows.append(json.loads(line))
            missing = [key for key in keys if key not in rows[-1]]
        except (ValueError, TypeError, RecursionError):
            raise ValueError(f"'{path}' is damaged: line {number} is no JSON object") from None
        if missing:
            raise ValueError(f"'{path}' does not fit: line {number} has no '{missing[0]}'")
    return rows


def check_spans(row: dict, path: Path):
    for span in row["spans"]:
        lengths = {len(span.get(key, "")) for key in ("ids", "mask", "logps")}
        if len(lengths) > 1:
            raise ValueError(f"'{path}' does not fit: a span needs as many mask and logps as ids")


def token_reader(folder: Path):
    """The function from an id to the text that is shown for it."""
    tokenizer = load_tokenizer(folder)
    saved = json.loads((folder / "checkpoint" / "tokenizer.json").read_text(encoding="utf-8"))
    pieces = {id: piece for piece, id in saved["model"]["vocab"].items()}
    letters = byte_letters()

    @cache
    def read(id: int) -> str:
        text = tokenizer.decode([id])
        if "\ufffd" in text:
            text = half_characters(bytes(letters[letter] for letter in pieces[id]))
        return visible(text)[:24] or f"<id {id}>"

    return read


def byte_letters() -> dict[str, int]:
    """The byte behind each letter of a byte-level vocabulary, as GPT-2 numbers them."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    numbered = {chr(256 + i): byte for i, byte in enumerate(others)}
    return numbered | {chr(byte): byte for byte in printed}


def half_characters(data: bytes) -> str:
    """Bytes that are no whole characters, one by one."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "".join(chr(b) if b < 128 else f"<0x{b:02X}>" for b in data)


def safe(text, limit: int = 500) -> str:
    """Any text as HTML that only shows it."""
    return escape(visible(str(text)[:limit]))


def author(kind: str) -> str:
    """Who wrote a span. Its kind is the name of a tool where the model called one."""
    return kind if kind in ("prompt", "text", "output") else "call"
