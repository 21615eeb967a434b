"""SearchTool: full-text search in short documents, ranked by BM25.

FTS5, a part of Python's own sqlite3, finds and stems the words. The index itself is a few arrays.
Nothing changes them, so searches do not wait for each other.
"""

from __future__ import annotations

import json
import sqlite3
import time
from array import array
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from math import log
from pathlib import Path

from nanotir.checks import Count, check_settings
from nanotir.tools.tool import Tool, ToolResult, cut_middle

NOTHING_FOUND = "Nothing found."
MAX_CHARS = 2000  # of a query
MAX_WORDS = 64  # of a query
MAX_SECONDS = 2.0
NONE = slice(0, 0)


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
        self.index = Index(self.documents)

    def run(self, text: str, session=None) -> ToolResult:
        start = time.perf_counter()
        found = sorted((position, word) for word, _, position in words_of([text[:MAX_CHARS]]))
        words = [word for _, word in found[:MAX_WORDS]]
        try:
            best = self.index.best(words, self.config.top_k, start + MAX_SECONDS)
        except TimeoutError:
            output = f"TimeoutError: no answer within {MAX_SECONDS:g} s"
            return ToolResult(output, False, "timeout", time.perf_counter() - start)
        output = "\n".join(self.documents[i] for i in best) or NOTHING_FOUND
        output, truncated = cut_middle(output, self.config.max_output_chars)
        return ToolResult(output, seconds=time.perf_counter() - start, truncated=truncated)


def words_of(texts: Iterable[str]) -> list[tuple[str, int, int]]:
    """All words of the texts, stemmed, as (word, number of its text, place there), sorted."""
    with closing(sqlite3.connect(":memory:")) as database:
        columns = "x, content='', tokenize='porter unicode61'"
        database.execute(f"create virtual table texts using fts5({columns})")
        # Lone surrogates, halves of characters, have no bytes.
        clean = (text.encode("utf-8", "ignore").decode("utf-8") for text in texts)
        database.executemany("insert into texts(rowid, x) values (?, ?)", enumerate(clean))
        database.execute("create virtual table words using fts5vocab(texts, instance)")
        return database.execute("select term, doc, offset from words").fetchall()


class Index:
    """In which documents each word stands, where, and what that is worth by BM25.

    The formula is equation 3.15 of Robertson and Zaragoza (2009), with k1 = 1.2 and b = 0.75.
    """

    def __init__(self, documents: list[str]):
        # Imported on use: the fork servers of the Python tool import this file.
        import numpy as np

        self.np = np
        self.size = len(documents)
        rows = words_of(documents)
        counts = Counter(word for word, *_ in rows)
        # One number a place: the document in its upper half, the position there in its lower half.
        self.places = np.array(array("q", [doc << 32 | place for _, doc, place in rows]), np.int64)
        self.ends = self.ranges(counts, counts.values())

        # A posting is a word in a document, however often it stands there.
        words = np.repeat(np.arange(len(counts)), list(counts.values()))
        owners = self.places >> 32
        new = np.diff(words, prepend=-1).astype(bool) | np.diff(owners, prepend=-1).astype(bool)
        first = np.flatnonzero(new)
        self.owners = owners[first]
        times = np.diff(first, append=len(rows))
        lengths = np.bincount(owners, minlength=self.size)
        self.damping = 1.2 * (
            1 - 0.75 + 0.75 * lengths / max(lengths.sum() / max(self.size, 1), 1e-9)
        )
        self.weights = self.weigh(self.owners, times)
        self.postings = self.ranges(counts, np.bincount(words[first], minlength=len(counts)))

    def ranges(self, words: Iterable[str], sizes: Iterable[int]) -> dict[str, slice]:
        """Where the entries of each word begin and end, one word after the other."""
        ends = self.np.cumsum(list(sizes)).tolist()
        return {word: slice(start, end) for word, start, end in zip(words, [0, *ends], ends)}

    def weigh(self, owners, times):
        """What `times` occurrences of a term are worth in these documents, but for its rarity."""
        return times * (1.2 + 1.0) / (times + self.damping[owners])

    def rarity(self, documents: int) -> float:
        rarity = log((self.size - documents + 0.5) / (documents + 0.5))
        return rarity if rarity > 0 else 1e-6

    def best(self, words: list[str], k: int, deadline: float) -> list[int]:
        """The k best documents, ties in their order. TimeoutError past the deadline.

        All words in their order are one more term: it finds "Ada Hill" before "Ada" and "Hill".
        """
        np = self.np
        scores = np.zeros(self.size)
        if len(words) > 1:
            # The places are sorted, so those of one document stand together.
            owners = self.phrase(words, deadline) >> 32
            first = np.flatnonzero(np.diff(owners, prepend=-1))
            times = np.diff(first, append=len(owners))
            owners = owners[first]
            scores[owners] += self.rarity(len(owners)) * self.weigh(owners, times)
        for word, count in Counter(words).items():
            if time.perf_counter() > deadline:
                raise TimeoutError
            at = self.postings.get(word, NONE)
            owners = self.owners[at]
            scores[owners] += count * self.rarity(len(owners)) * self.weights[at]

        found = np.flatnonzero(scores)
        if len(found) > k:
            least = np.partition(scores[found], -k)[-k]
            found = found[scores[found] >= least]
        return found[np.argsort(-scores[found], kind="stable")][:k].tolist()

    def phrase(self, words: list[str], deadline: float):
        """The places where all words stand in their order. The rarest are looked up first."""
        np = self.np
        columns = [(self.places[self.ends.get(word, NONE)], i) for i, word in enumerate(words)]
        columns.sort(key=lambda column: len(column[0]))
        starts = columns[0][0] - columns[0][1] if words else self.places[NONE]
        for places, i in columns[1:]:
            if time.perf_counter() > deadline:
                raise TimeoutError
            if not len(starts):
                break
            at = np.searchsorted(places, starts + i)
            starts = starts[places[np.minimum(at, len(places) - 1)] == starts + i]
        return starts


def generated_documents() -> list[str]:
    # Imported on use: it imports sympy, which the fork server without libraries must not load.
    from nanotir.problems.generate import documents

    return documents()


def read_documents(path: str | Path) -> list[str]:
    """The documents in a file: JSON lines if its name ends in .jsonl, else one a line."""
    try:
        # A line ends at \n alone: other separators, as U+2028, are text.
        lines = Path(path).read_bytes().decode("utf-8-sig").split("\n")
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
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f'{where}: not a JSON object with a "text"') from None
