"""Measurements of speed: `python -m nanotir.bench`."""

import statistics
import time

ROUNDS = 7


def medians(measure, rounds: int = ROUNDS) -> dict:
    """The median of every figure that `measure(number)` returns for the rounds 0, 1, ...; round -1 warms up and is not counted."""
    measure(-1)
    seen = [measure(number) for number in range(rounds)]
    return {name: round(statistics.median(row[name] for row in seen), 5) for name in seen[0]}


def timed(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
