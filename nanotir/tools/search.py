"""SearchTool: full-text search over short documents. SQLite's FTS5 index with BM25 ranking, from Python's own sqlite3."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from nanotir.tools.tool import Tool, ToolResult, cut_middle


@dataclass
class SearchConfig:
    path: str = ""  # a file of documents, JSON lines with "text" or one a line; empty: the generated world's
    top_k: int = 1  # passages in a result
    max_output_chars: int = 2000  # longer output is cut in the middle

    def __post_init__(self):
        if min(self.top_k, self.max_output_chars) < 1:
            raise ValueError("the search tool needs top_k and max_output_chars of at least 1")


NOTHING_FOUND = "Nothing found."


class SearchTool(Tool):
    """The `top_k` best passages for a query, best first, one a line.

    Takes `documents` (a list of texts) or the `path` of a file: JSON lines with a "text" (and, if it has one, a "title"), or plain
    text with one document a line. Settings: those of SearchConfig. ValueError, with file and line, for what cannot be read.
    """

    name = "search"
    deterministic = True

    def __init__(self, documents=None, path: str = "", **settings):
        self.config = SearchConfig(str(path), **settings)
        assert not isinstance(documents, str), (
            "one text is not a list of documents; a file is given as path="
        )
        documents = read_documents(path) if path else list(documents or [])
        self._lock = threading.Lock()
        self._database = sqlite3.connect(":memory:", check_same_thread=False)
        self._database.execute(
            "create virtual table passages using fts5(text, tokenize='porter unicode61')"
        )
        self._database.executemany(
            "insert into passages values (?)", ((text,) for text in documents)
        )

    def run(self, text: str, session=None) -> ToolResult:
        start = time.perf_counter()
        # Only words reach FTS5, in quotes, so nothing in a query is ever read as the query language's syntax. The words in their order
        # count as one more term: "home town of Ada Hill" is not where Ada lives in another town of that name.
        words = re.findall(r"\w+", text.encode("utf-8", "ignore").decode("utf-8"))[:64]
        query = " OR ".join(f'"{term}"' for term in [" ".join(words), *words])
        passages = self._best(query) if words else []
        output, truncated = cut_middle(
            "\n".join(passages) or NOTHING_FOUND, self.config.max_output_chars
        )
        return ToolResult(output, seconds=time.perf_counter() - start, truncated=truncated)

    def _best(self, query: str) -> list[str]:
        with self._lock:  # rank is BM25 (Robertson and Zaragoza 2009, eq. 3.15); ties go to the document that came first
            rows = self._database.execute(
                "select text from passages where passages match ? order by rank, rowid limit ?",
                (query, self.config.top_k),
            )
            return [text for (text,) in rows]

    def close(self):
        super().close()
        self._database.close()


def read_documents(path) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"cannot read documents: {error.strerror}: '{path}'") from None
    except UnicodeDecodeError:
        raise ValueError(f"cannot read documents: '{path}' is not UTF-8 text") from None
    read = (
        (lambda line, number: _document(line, f"{path}:{number}"))
        if Path(path).suffix == ".jsonl"
        else (lambda line, number: line)
    )
    return [read(line.strip(), number) for number, line in enumerate(lines, 1) if line.strip()]


def _document(line: str, where: str) -> str:
    try:
        record = json.loads(line)
        return ". ".join(
            str(record[key]) for key in ("title", "text") if key in record or key == "text"
        )
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f'{where}: not a JSON object with a "text"') from None
