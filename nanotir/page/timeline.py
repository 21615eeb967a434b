"""What every row of a real sampling did when: it decodes, waits for its tool, decodes again."""

from __future__ import annotations

import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import torch

from nanotir.policy import load_run
from nanotir.sampler import Sampler, SamplerConfig
from nanotir.tools.tool import Tool, ToolResult

SLOWNESS = 0.04  # seconds that a tool is made to wait for the picture of the rows


class SlowTool(Tool):
    """A tool that answers late, so that a waiting row can be seen. It notes when it ran."""

    def __init__(self, tool: Tool):
        self.tool, self.name, self.deterministic = tool, tool.name, tool.deterministic
        self.runs: dict[str, tuple[float, float]] = {}

    def run(self, text: str, session=None) -> ToolResult:
        start = time.perf_counter()
        time.sleep(SLOWNESS)
        result = self.tool.run(text, session)
        self.runs[text] = (start, time.perf_counter())
        return result

    def close(self):
        super().close()
        self.tool.close()


def questions(traces: list[dict], n: int = 4) -> list[str]:
    """Questions of n families, those that lead to the most calls."""
    last = {row["family"]: row for row in traces if row["calls"]}
    if not last:
        raise ValueError("no recorded trajectory calls a tool: train for longer")
    rows = sorted(last.values(), key=number_of_calls, reverse=True)
    return [row["question"] for row in rows[:n]]


def number_of_calls(row: dict) -> int:
    return len(row["calls"])


def sample(folder: Path, prompts: list[str], n: int, seed: int) -> list[list[tuple]]:
    """Sample n rows a prompt with the run's model: the (state, start, end) pieces of each row."""
    config, model, tokenizer, format, tools = load_run(folder)
    torch.set_num_threads(1)
    settings = SamplerConfig(**config["sampler"])
    with ExitStack() as stack:
        slow = [stack.enter_context(SlowTool(tool)) for tool in tools]
        sampler = Sampler(model, tokenizer, slow, format, settings)
        sampler.generate(prompts, n, seed)  # the first call of a tool has to start its sandbox
        return timed(sampler, prompts, n, seed)


def timed(sampler: Sampler, prompts: list[str], n: int, seed: int) -> list[list[tuple]]:
    start = time.perf_counter()
    events = [[("start", 0.0)] for _ in range(n * len(prompts))]

    def watch(row: int, kind: str, ids):
        events[row].append((kind, 1000 * (time.perf_counter() - start)))

    rows = []
    for trajectory, seen in zip(sampler.generate(prompts, n, seed, watch), events):
        runs = [sampler.tools[call.tool].runs[call.code] for call in trajectory.calls]
        rows.append(states(seen, [[1000 * (at - start) for at in run] for run in runs]))
    return rows


def states(events: list[tuple], runs: list[list]) -> list[tuple]:
    """What a row did when. It is parked between its closing tag and the tool's output."""
    pieces, state, runs = [], "decoding", iter(runs)
    for (_, start), (kind, end) in pairwise(events):
        if kind == "output":
            pieces.append(("parked", start, end))
            state = "resumed"
            # Rows that ask for the same share one run, which may have begun before.
            began, ended = next(runs, (end, end))
            pieces.append(("tool", max(began, start), min(ended, end)))
        elif pieces and pieces[-1][0] == state:
            pieces[-1] = (state, pieces[-1][1], end)
        else:
            pieces.append((state, start, end))
    return [piece for piece in pieces if piece[1] < piece[2]]
