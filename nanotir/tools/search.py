"""SearchTool: full-text search in short documents, by the FTS5 index of Python's own sqlite3."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from nanotir.checks import Count, check_settings
from nanotir.tools.tool import Tool, ToolResult, cut_middle

NOTHING_FOUND = "Nothing found."


@dataclass
class SearchConfig:
    path: str = ""  # documents: JSON lines with "text", or one a line; empty: the generated world's
    top_k: Count = 1  # passages in a result
    max_output_chars: Count = 2000  # longer output is cut in the middle

    def __post_init__(self):
        check_settings(self, "search")


class SearchTool(Tool):
    """Return the `top_k` best passages for a query, best first, one a line.

    The documents are those of the file `path`, or else the list `documents`, or else those of the
    generated world. Settings: those of SearchConfig. ValueError, with file and line, for a file
    that cannot be read.
    """

    name = "search"
    deterministic = True

    def __init__(self, documents: list[str] | None = None, path: str | Path = "", **settings):
        self.config = SearchConfig(str(path), **settings)
        assert not isinstance(documents, str), "documents is a list; give a file as path="
        if path:
            documents = read_documents(path)
        elif documents is None:
            documents = generated_documents()
        self.documents = list(documents)
        self._lock = threading.Lock()
        self._database = sqlite3.connect(":memory:", check_same_thread=False)
        self._database.execute(
            "create virtual table passages using fts5(text, tokenize='porter unicode61')"
        )
        rows = ((text,) for text in self.documents)
        self._database.executemany("insert into passages values (?)", rows)

    def run(self, text: str, session=None) -> ToolResult:
        start = time.perf_counter()
        # Only words in quotes reach FTS5, so that it reads nothing in them as its own syntax. All
        # words in their order are one more term: it finds "Ada Hill" before "Ada" and "Hill".
        words = re.findall(r"\w+", text.encode("utf-8", "ignore").decode("utf-8"))[:64]
        terms = [" ".join(words), *words]
        query = " OR ".join(f'"{term}"' for term in terms)
        passages = self._best(query) if words else []
        output = "\n".join(passages) or NOTHING_FOUND
        output, truncated = cut_middle(output, self.config.max_output_chars)
        return ToolResult(output, seconds=time.perf_counter() - start, truncated=truncated)

    def _best(self, query: str) -> list[str]:
        # The rank is BM25 (Robertson and Zaragoza 2009, eq. 3.15). Ties go to the first document.
        select = "select text from passages where passages match ? order by rank, rowid limit ?"
        with self._lock:
            rows = self._database.execute(select, (query, self.config.top_k))
            return [text for (text,) in rows]

    def close(self):
        super().close()
        self._database.close()


def generated_documents() -> list[str]:
    # Imported on use: it imports sympy, which the fork server without libraries must not load.
    from nanotir.problems.generate import documents

    return documents()


def read_documents(path: str | Path) -> list[str]:
    """The documents in a file: JSON lines if its name ends in .jsonl, else one a line."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"cannot read documents: {error.strerror}: '{path}'") from None
    except UnicodeDecodeError:
        raise ValueError(f"cannot read documents: '{path}' is not UTF-8 text") from None
    lines = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if Path(path).suffix == ".jsonl":
        return [read_record(line, f"{path}:{number}") for number, line in lines]
    return [line for _, line in lines]


def read_record(line: str, where: str) -> str:
    """The text of a JSON object, after its title if it has one."""
    try:
        record = json.loads(line)
        parts = [record["title"]] if "title" in record else []
        return ". ".join(str(part) for part in [*parts, record["text"]])
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f'{where}: not a JSON object with a "text"') from None
