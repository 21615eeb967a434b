"""Measurements of decoding: one step, the first token, and rows that wait for their tools."""

from __future__ import annotations

import time
from dataclasses import asdict

import torch

from nanotir import threads, workers
from nanotir.bench.policy import Policy
from nanotir.bench.timing import medians, timed
from nanotir.cache import new_cache
from nanotir.graphs import by_columns, decoder
from nanotir.sampler import Sampler
from nanotir.tools import Tool, ToolResult


def decode(policy: Policy) -> dict:
    """Milliseconds of one decoding step: forward pass and draw.

    For 1, 64 and 256 rows with about 64 positions each.
    """
    sampler = policy.sampler()
    return {f"ms_{rows}_rows": decoding_step(sampler, rows)["ms"] for rows in (1, 64, 256)}


def decoding_step(sampler: Sampler, rows: int, start: int = 64) -> dict:
    """Milliseconds of one step from `start` on, by the clock and of processor time."""
    device = sampler.model.embed.weight.device
    with sampler.decoding():
        model = by_columns(sampler.model, rows)
        cache = new_cache(model, rows, start + 64)
        model.hidden(
            torch.randint(model.config.vocab_size, (rows, start), device=device), cache=cache
        )
        step = decoder(model, cache, sampler.config.graphs, sampler.config.compiled)

        def decoded(number):
            logits = step([0] * rows, [start + number % 32] * rows)[:, -1]
            return sampler.pick(logits, [0.5] * rows)[0].tolist()

        def measure(number):
            busy = time.process_time()
            seconds, _ = timed(decoded, number)
            return {"ms": 1000 * seconds, "cpu_ms": 1000 * (time.process_time() - busy)}

        return medians(measure, 30)


def shared_prefill(policy: Policy) -> dict:
    """The first token of 256 rows, from 32 prompts with 8 samples each and from 256 prompts.

    The 256 prompts differ in their last word, so that each is prefilled by itself.
    """
    sampler = policy.sampler([], max_new_tokens=1, max_rows=256)
    questions = policy.questions(32)
    different = [f"{question} {i}" for question in questions for i in range(8)]

    def measure(number):
        shared, _ = timed(sampler.generate, questions, 8)
        separate, _ = timed(sampler.generate, different)
        return {"shared": shared, "separate": separate, "ratio": shared / separate}

    return medians(measure)


def rollout_by_workers(policy: Policy) -> dict:
    """40 prompts x 8 answers with tools, by this process alone and with a worker beside it."""
    sampler, questions = policy.sampler(), policy.questions(40)
    given = (policy.model, policy.tokenizer, policy.tools, policy.format, asdict(policy.config))

    def measure(number):
        # Workers do nothing for a caller that may stop.
        alone, _ = timed(sampler.generate, questions, 8, number, None, lambda: False)
        shared, rows = timed(sampler.generate, questions, 8, number)
        ids = sum(row.new_tokens for row in rows)
        return {"alone": alone, "shared": shared, "ratio": alone / shared, "ids": ids}

    threads.use_threads(2)
    try:
        with workers.beside(*given):
            return medians(measure)
    finally:
        threads.use_threads(1)


class Sleeper(Tool):
    """Stands in for Python: answers "1" after some time, however many calls there are."""

    name = "python"
    threads = 64

    def __init__(self, seconds: float):
        self.seconds = seconds

    def run(self, text, session=None):
        time.sleep(self.seconds)
        return ToolResult("1")


def slow_tools(policy: Policy) -> dict:
    """What a tool of 50 ms adds to a rollout of 64 rows, against one that answers at once."""
    questions = [problem.question for problem in policy.problems if problem.kind == "A"][:64]

    def rollout(delay, number):
        with Sleeper(delay) as tool:
            return timed(policy.sampler([tool]).generate, questions, 1, number)

    def measure(number):
        instant, _ = rollout(0.0, number)
        slow, rows = rollout(0.05, number)
        calls = sum(len(row.calls) for row in rows)
        return {"instant": instant, "slow": slow, "extra": slow - instant, "calls": calls}

    return medians(measure, 5)
