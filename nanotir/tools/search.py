"""SearchTool: full-text search in short documents, ranked by BM25.

FTS5, a part of Python's own sqlite3, finds and stems the words. The index itself is a few arrays.
Nothing changes them. Searches take turns, two at a time, because Python runs one thread at a time.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
import time
from array import array
from collections import Counter, defaultdict, deque
from dataclasses import dataclass
from math import log
from pathlib import Path
from threading import Lock, get_ident

from nanotir.checks import Count, check_settings
from nanotir.tools.tool import Tool, ToolResult, cut_middle

NOTHING_FOUND = "Nothing found."
MAX_CHARS = 2000  # of a query
MAX_WORDS = 64  # of a query
MAX_SECONDS = 2.0
COLUMN = 64  # documents


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
            # Imported on use: it imports sympy, which one of the fork servers must not load.
            from nanotir.problems.generate import documents as generated

            documents = generated()
        self.documents = list(documents)
        self.index = Index(self.documents)
        self.turns = deque([Lock(), Lock()], maxlen=2)  # of the last two searches

    def run(self, text: str, session=None) -> ToolResult:
        start = time.perf_counter()
        # Each waits for the last but one, not for long. Without turns some would wait much longer.
        turn, before = Lock(), self.turns[0]
        with turn:
            self.turns.append(turn)
            if before.acquire(timeout=0.1):
                before.release()
            best = self.index.best(text, self.config.top_k, start + MAX_SECONDS)
        if best is None:
            output = f"TimeoutError: no answer within {MAX_SECONDS:g} s"
            return ToolResult(output, False, "timeout", time.perf_counter() - start)
        output = "\n".join(self.documents[i] for i in best) or NOTHING_FOUND
        output, truncated = cut_middle(output, self.config.max_output_chars)
        return ToolResult(output, seconds=time.perf_counter() - start, truncated=truncated)


class Splitter(sqlite3.Connection):
    """Finds the words of a text, stemmed. One thread at a time uses it."""

    def __init__(self):
        super().__init__(":memory:", check_same_thread=False)
        self.execute("create virtual table texts using fts5(x, tokenize='porter unicode61')")
        self.execute("create virtual table words using fts5vocab(texts, instance)")

    __del__ = sqlite3.Connection.close

    def split(self, text: str) -> list[str]:
        # Lone surrogates, halves of characters, have no bytes.
        self.execute("insert into texts values (?)", [text.encode("utf-8", "ignore").decode()])
        # All words in one row: between rows, other threads may run for a long time.
        in_order = "select term from words order by offset"
        rows = self.execute(f"select group_concat(term, ' ') from ({in_order})").fetchall()
        self.rollback()  # the text is forgotten
        return (rows[0][0] or "").split()


class Index:
    """In which documents each word stands, where, and what that is worth by BM25.

    The formula is equation 3.15 of Robertson and Zaragoza (2009), with k1 = 1.2 and b = 0.75.
    """

    def __init__(self, documents: list[str]):
        # Imported on use: the fork servers of the Python tool import this file.
        import numpy as np

        self.size = len(documents)
        self.splitters: dict[int, Splitter] = {}  # of each thread, while it uses none
        self.numbers = defaultdict(itertools.count().__next__)  # a new word gets the next one

        # The documents in a row, with -1 around each, at the end for the longest phrase.
        text = array("i", [-1])
        for words in map(self.split, documents):
            text.extend(map(self.numbers.__getitem__, words))
            text.append(-1)
        self.text = np.array(text + array("i", [-1] * MAX_WORDS))
        self.gaps = np.flatnonzero(self.text < 0)
        lengths = np.diff(self.gaps)[: self.size] - 1
        self.damping = 1.2 * (1 - 0.75 + 0.75 * lengths * self.size / max(lengths.sum(), 1))

        # For each word: the places where it stands, the documents, and their scores for it.
        places = np.argsort(self.text, kind="stable")[len(self.gaps) :]
        words = self.text[places].astype(np.int64)
        self.places = np.split(places, np.flatnonzero(np.diff(words)) + 1)
        owners = self.gaps.searchsorted(places) - 1
        first = np.flatnonzero(np.diff(words * self.size + owners, prepend=-1))
        ends = np.flatnonzero(np.diff(words[first])) + 1
        self.owners = np.split(owners[first], ends)
        times = np.split(np.diff(first, append=len(words)), ends)
        self.scores = [self.score(*term) for term in zip(self.owners, times)]

    def split(self, text: str) -> list[str]:
        splitter = self.splitters.pop(get_ident(), None) or Splitter()
        words = splitter.split(text)
        self.splitters[get_ident()] = splitter
        return words

    def score(self, owners, times):
        """What a term is worth in the documents in which it stands, so many times in each."""
        rarity = max(log((self.size - len(owners) + 0.5) / (len(owners) + 0.5)), 1e-6)
        return rarity * (times * (1.2 + 1.0) / (times + self.damping[owners]))

    def best(self, query: str, k: int, deadline: float) -> list[int] | None:
        """The k best documents, ties in their order. None past the deadline.

        All words in their order are one more term: it finds "Ada Hill" before "Ada" and "Hill".
        """
        import numpy as np

        words = self.split(query[:MAX_CHARS])[:MAX_WORDS]
        columns = np.zeros((COLUMN, self.size // COLUMN + 1))
        scores = columns.reshape(-1)
        numbers = [self.numbers[word] for word in words if word in self.numbers]
        if len(numbers) == len(words) > 1:
            owners, times = np.unique(self.phrase(numbers), return_counts=True)
            scores[owners] = self.score(owners, times)
        for number, count in Counter(numbers).items():
            if time.perf_counter() > deadline:
                return None
            np.add.at(scores, self.owners[number], count * self.scores[number])

        # The k-th best of the columns' best is at most the k-th best of all, and found sooner.
        tops = np.sort(columns.max(0))[::-1]
        found = np.flatnonzero(scores >= tops[k - 1 : k].max(initial=1e-300))
        return found[np.argsort(-scores[found], kind="stable")][:k].tolist()

    def phrase(self, numbers: list[int]):
        """The documents, one a place, where these words stand in a row. Rare words go first."""
        first, *others = sorted(range(len(numbers)), key=lambda i: len(self.places[numbers[i]]))
        starts = self.places[numbers[first]] - first
        for i in others:
            starts = starts[self.text[starts + i] == numbers[i]]
        return self.gaps.searchsorted(starts) - 1


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
    if not lines:
        raise ValueError(f"no documents in '{path}'")
    if Path(path).suffix == ".jsonl":
        return [read_record(line, f"{path}:{number}") for number, line in lines]
    return [line for _, line in lines]


def read_record(line: str, where: str) -> str:
    """The text of a JSON object, after its title if it has one."""
    try:
        record = json.loads(line)
        parts = [record["title"]] if record.get("title") else []
        return ". ".join([*parts, record["text"]])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f'{where}: not a JSON object with a "text"') from None
