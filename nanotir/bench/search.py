"""A measurement of the search tool: 100,000 documents and eight readers at once.

No policy is needed.
"""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate

from nanotir.bench.timing import timed
from nanotir.tools import SearchTool

WORDS = [f"word{i}" for i in range(50_000)]
SHARES = list(accumulate(1 / (i + 1) for i in range(50_000)))  # the first stand in most documents


def search_tool(policy, documents: int = 100_000, readers: int = 8, queries: int = 100) -> dict:
    """Latency of queries of many kinds, asked by eight threads at once.

    Also their processor time, and seconds to build the index. The kinds are rare words, frequent
    words, a hundred words, one word a hundred times, part of a document, and no words.
    """
    rng = random.Random(0)
    texts = [common(rng, rng.randint(5, 40)) for _ in range(documents)]
    build, tool = timed(SearchTool, texts)

    asked = [[query(rng, texts, i) for i in range(queries)] for _ in range(readers)]

    def read(own):
        return [timed(tool.run, text)[0] for text in own]

    start = time.process_time()
    with ThreadPoolExecutor(readers) as pool:
        seconds = sorted(second for part in pool.map(read, asked) for second in part)
    return {
        "p50_ms": 1000 * seconds[len(seconds) // 2],
        "p99_ms": 1000 * seconds[len(seconds) * 99 // 100],
        "processor_ms": 1000 * (time.process_time() - start) / len(seconds),
        "build": build,
    }


def common(rng: random.Random, n: int) -> str:
    return " ".join(rng.choices(WORDS, cum_weights=SHARES, k=n))


def query(rng: random.Random, texts: list[str], i: int) -> str:
    """The i-th query of a reader; the kinds take turns."""
    kinds = [
        " ".join(rng.choices(WORDS, k=rng.randint(1, 8))),
        " ".join(rng.choices(WORDS[:20], k=8)),
        common(rng, 100),
        "word0 " * 100,
        rng.choice(texts),
        " ".join(WORDS[:100]),
        "世界 \x00 " * rng.randint(0, 20),
    ]
    return kinds[i % len(kinds)]
