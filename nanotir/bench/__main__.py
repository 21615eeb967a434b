"""Measurements of speed, one JSON line each: medians over rounds on one thread, wall seconds unless a name says otherwise.

    python -m nanotir.bench --run runs/tapo-tiny-1 --only rl_step

What a trained policy writes decides how long its rollouts take, so it is best measured on a run. Without --run, the newest in runs/ is
taken, or, where there is none, a policy is cold-started for the occasion (a minute).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import wait
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import torch

from nanotir.bench import medians, timed
from nanotir.bench.fused import fused_loss
from nanotir.bench.head import head_memory
from nanotir.checkpoint import latest_run, load_run, open_tools
from nanotir.config import RunConfig, build
from nanotir.demonstrate import corpus, demonstrate
from nanotir.losses import group_advantages
from nanotir.model import KVCache, Transformer
from nanotir.problems import load
from nanotir.problems.generate import documents
from nanotir.rewards import score
from nanotir.rl import rescore, split, update
from nanotir.sampler import Sampler
from nanotir.sft import imitate, make_optimizers
from nanotir.tokenizer import Tokenizer
from nanotir.tools import PythonTool, Tool, ToolResult
from nanotir.trajectory import Format


class Policy:
    """A model and what belongs to it; `config` is the RunConfig it was made with."""

    def __init__(self, config, model, tokenizer, tools):
        self.config, self.model, self.tokenizer, self.tools = config, model, tokenizer, tools
        self.problems = load("generated", n=512, seed=1)

    def sampler(self, tools=None, **settings):
        return Sampler(
            self.model,
            self.tokenizer,
            self.tools if tools is None else tools,
            Format(self.config.format),
            replace(self.config.sampler, **settings),
        )

    def demonstrations(self, n):
        tools = {tool.name: tool for tool in self.tools}
        return demonstrate(
            self.problems[:n],
            self.tokenizer,
            Format(self.config.format),
            tools,
            self.config.teacher,
        )


def policy_of(folder) -> Policy:
    config, model, tokenizer, _, tools = load_run(folder)
    return Policy(build(config), model, tokenizer, tools)


def cold_start(steps: int = 150) -> Policy:
    config, problems = RunConfig(), load("generated", n=2000)
    tokenizer = Tokenizer.train(corpus(problems, documents()), config.model.vocab_size)
    config.model.vocab_size = len(tokenizer)
    policy = Policy(config, Transformer(config.model), tokenizer, open_tools(asdict(config)))
    policy.problems = problems
    shown, optimizers = policy.demonstrations(2000), make_optimizers(policy.model, config.sft)
    for step in range(steps):
        imitate(
            policy.model, optimizers, shown[step * 64 % 1900 :][:64], tokenizer.pad_id, config.sft
        )
    return policy


def rl_step(policy) -> dict:
    """One step of 32 problems x 8 samples with real tool calls, by phases. Every sample is learned from: no group is dropped."""
    config, sampler = policy.config.rl, policy.sampler()
    optimizer = torch.optim.AdamW(
        policy.model.parameters(), lr=0.0
    )  # the weights stay, so that all rounds measure the same policy

    def measure(round):
        problems = [policy.problems[(32 * round + i) % len(policy.problems)] for i in range(32)]
        clock = [time.perf_counter()]
        rows = sampler.generate([p.question for p in problems], 8, seed=round)
        clock.append(time.perf_counter())
        rewards, _ = score(
            rows, [p for p in problems for _ in range(8)], policy.tokenizer, policy.config.reward
        )
        clock.append(time.perf_counter())
        rescore(policy.model, rows, config, sampler)
        clock.append(time.perf_counter())
        advantages = group_advantages(rewards, 8)
        for part in split(list(range(len(rows))), config.updates, seed=0, step=round):
            update(
                policy.model,
                optimizer,
                [rows[row] for row in part],
                advantages[part],
                config,
                sampler,
            )
        clock.append(time.perf_counter())
        phases = [b - a for a, b in zip(clock, clock[1:])]
        results = [call.result for row in rows for call in row.calls]
        runs = {id(result): result for result in results}.values()  # equal calls share one
        return {
            "seconds": clock[-1] - clock[0],
            "rollout": phases[0],
            "reward": phases[1],
            "rescore": phases[2],
            "update": phases[3],
            "new_tokens": sum(row.new_tokens for row in rows),
            "calls": len(results),
            "runs": len(runs),
            "tool_seconds": sum(run.seconds for run in runs),
        }

    return medians(measure)


def sft_step(policy) -> dict:
    """One optimiser step of imitation on 64 demonstrations."""
    shown, settings = policy.demonstrations(512), replace(policy.config.sft, lr=0.0, adam_lr=0.0)
    optimizers = make_optimizers(policy.model, settings)  # the weights stay
    tokens = lambda batch: sum(len(t.ids) for t in batch)

    def measure(round):
        batch, start = shown[64 * (round + 1) % 512 :][:64], time.perf_counter()
        imitate(policy.model, optimizers, batch, policy.tokenizer.pad_id, settings)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "tokens_per_second": tokens(batch) / seconds}

    return medians(measure)


@torch.inference_mode()
def decode(policy) -> dict:
    """Milliseconds of one decoding step, forward and draw, for 1, 64 and 256 rows with about 64 positions each."""
    sampler, result = policy.sampler(), {}
    for rows in (1, 64, 256):
        cache = KVCache(policy.model.config, rows, 128)
        policy.model.hidden(torch.randint(len(policy.tokenizer), (rows, 64)), cache=cache)

        def measure(round):
            start = time.perf_counter()
            logits = policy.model(
                torch.zeros(rows, 1, dtype=torch.long),
                torch.full((rows, 1), 64 + round % 32),
                cache,
            )[:, -1]
            sampler.pick(logits, [0.5] * rows)
            return {"ms": 1000 * (time.perf_counter() - start)}

        result[f"ms_{rows}_rows"] = medians(measure, 30)["ms"]
    return result


def shared_prefill(policy) -> dict:
    """The first token of 32 x 8 rows: prompts shared by their 8 samples, against 256 prompts that differ in their last word."""
    sampler = policy.sampler([], max_new_tokens=1, max_rows=256)
    questions = [p.question for p in policy.problems[:32]]

    def measure(round):
        clock = [time.perf_counter()]
        sampler.generate(questions, 8)
        clock.append(time.perf_counter())
        sampler.generate([f"{question} {i}" for question in questions for i in range(8)])
        clock.append(time.perf_counter())
        shared, separate = clock[1] - clock[0], clock[2] - clock[1]
        return {"shared": shared, "separate": separate, "ratio": shared / separate}

    return medians(measure)


class Sleeper(Tool):
    """Stands in for Python: answers "1" after a while, however many ask at once."""

    name, threads = "python", 64

    def __init__(self, seconds):
        self.seconds = seconds

    def run(self, text, session=None):
        time.sleep(self.seconds)
        return ToolResult("1")


def slow_tools(policy) -> dict:
    """What a tool of 50 ms adds to a rollout of 64 rows, against one that answers at once."""
    questions = [p.question for p in policy.problems if p.kind == "A"][:64]

    def measure(round):
        seconds = []
        for delay in (0.0, 0.05):
            with Sleeper(delay) as tool:
                start = time.perf_counter()
                rows = policy.sampler([tool]).generate(questions, seed=round)
                seconds.append(time.perf_counter() - start)
        return {
            "instant": seconds[0],
            "slow": seconds[1],
            "extra": seconds[1] - seconds[0],
            "calls": sum(len(row.calls) for row in rows),
        }

    return medians(measure, 5)


def python_tool(policy) -> dict:
    """Latency of `print(2**100)` and of sympy solving a cubic, calls one by one; throughput of many at once; 64 calls that sleep 50 ms; how long
    the fork servers take to start; what 10,000 calls leave behind in processes, files and descriptors, and in MB of memory."""
    with PythonTool(workers=64) as tool:
        start = timed(lambda: tool.run("1"))
        latencies = sorted(timed(lambda: tool.run("print(2**100)")) for _ in range(400))
        cubic = sorted(
            timed(
                lambda: tool.run(
                    "from sympy import *\nx = symbols('x')\nsolve(x**3 - 2*x**2 - 5*x + 6, x)"
                )
            )
            for _ in range(100)
        )
        sleep = lambda: wait([tool.submit("import time\ntime.sleep(0.05)") for _ in range(64)])
        sleep()  # now there are 64 workers
        sleeping = timed(sleep)
        throughput = 500 / timed(lambda: wait([tool.submit("print(2**100)") for _ in range(500)]))
        before, memory = left_behind(tool)
        for _ in range(20):
            wait([tool.submit("open('f', 'w').write('x')\nprint('y' * 1000)") for _ in range(500)])
        after, more_memory = left_behind(tool)
    return {
        "p50_ms": 1000 * latencies[200],
        "p99_ms": 1000 * latencies[396],
        "cubic_p50_ms": 1000 * cubic[50],
        "calls_per_second": throughput,
        "sleep_64": sleeping,
        "start": start,
        "left_behind": after - before,
        "left_behind_mb": more_memory - memory,
    }


def left_behind(tool) -> tuple[int, float]:
    """(processes of the servers, and descriptors and files of theirs and ours; MB of their memory, shared pages shared out). Linux only."""
    time.sleep(0.5)  # the next children stand by again
    pids, text = (
        [server.process.pid for server in tool._servers.values()],
        lambda path: Path(path).read_text(),
    )
    for pid in pids:
        pids += map(int, text(f"/proc/{pid}/task/{pid}/children").split())
    descriptors = sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in (*pids, "self"))
    files = {
        path.name
        for pid in pids[len(tool._servers) :]
        for path in Path(f"/proc/{pid}/cwd").iterdir()
    }
    memory = [
        int(line.split()[1])
        for pid in pids
        for line in text(f"/proc/{pid}/smaps_rollup").splitlines()
        if line.startswith("Pss:")
    ]
    return len(pids) + descriptors + len(files), sum(memory) / 1024


MEASUREMENTS = {
    f.__name__: f
    for f in (
        rl_step,
        sft_step,
        decode,
        shared_prefill,
        slow_tools,
        python_tool,
        head_memory,
        fused_loss,
    )
}


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m nanotir.bench", description="Measure speed; one JSON line per measurement."
    )
    parser.add_argument("--only", choices=MEASUREMENTS, help="one measurement instead of all")
    parser.add_argument(
        "--run", help="run folder of the policy (default: the newest in runs/, else a cold start)"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        policy = policy_of(options.run or latest_run())
    except ValueError as error:
        if options.run:
            print(f"bench: {error}", file=sys.stderr)
            sys.exit(2)
        policy = cold_start()
    with ExitStack() as stack:
        for tool in policy.tools:
            stack.enter_context(tool)
        for name in [options.only] if options.only else MEASUREMENTS:
            print(
                json.dumps(
                    {
                        "name": name,
                        **{
                            key: round(value, 5) if isinstance(value, float) else value
                            for key, value in MEASUREMENTS[name](policy).items()
                        },
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
