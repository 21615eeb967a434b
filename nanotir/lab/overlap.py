"""What it saves to go on decoding while tools run.

There are two baselines. With a barrier a turn, all rows decode until they call a tool or end, then
all calls run side by side, and the slowest is waited for: so the papers' code does it. Blocking,
decoding stands still during every single call.
"""

from __future__ import annotations

import json
import time
import zlib

from nanotir.lab.cir import COLD, FIRST_SEED, RL, TUNED
from nanotir.lab.experiment import Arm, Compare, Experiment
from nanotir.lab.toy import curve, mean_of, reinforce, total
from nanotir.tools import Tool


class SlowTool(Tool):
    """Another tool, 50 ms slower. If it blocks, calls run one after the other."""

    threads = 64

    def __init__(self, tool: Tool, blocking: bool):
        self.tool = tool
        self.name = tool.name
        self.blocking = blocking

    def run(self, text, session=None):
        time.sleep(0.05)
        return self.tool.run(text, session)

    def submit(self, text, session=None):
        future = super().submit(text, session)
        if self.blocking:
            future.result()
        return future


def overlap(key: str, blocking: bool = False, barrier: bool = False) -> Arm:
    """The wall time of a few steps of RL whose tools take 50 ms longer."""

    def slow(tool: Tool) -> Tool:
        return SlowTool(tool, blocking)

    def run_arm(seed, quick, folder):
        settings = RL | {"rl.steps": 3 if quick else 8, "sampler.barrier": barrier}
        with reinforce(folder, "cir", COLD, settings, seed, quick, wrap=slow) as run:
            rewards = curve(run, "reward")
            rollout = total(curve(run, "seconds_rollout"))
            seconds = rollout + total(curve(run, "seconds_update"))
            return {
                "seconds": seconds,
                "half_seconds": seconds / 2,
                "seconds_rollout": rollout,
                "calls": total(curve(run, "calls")),
                "reward": mean_of(rewards),
                "fingerprint": fingerprint(run),
                "curve": rewards,
            }

    return Arm(f"cir-overlap-{key}", run_arm)


def fingerprint(run) -> int:
    """A checksum, up to 10^6, of what RL sampled.

    Of the ids of the trajectories in the run's traces, one group a step, and of each step's mean
    reward, ids and calls, which all of its trajectories make up.
    """
    trajectories = [curve(run, name) for name in ("reward", "new_tokens", "calls")]
    for line in (run.out / "traces.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["phase"] == "rl":
            trajectories.append([span["ids"] for span in row["spans"]])
    return zlib.crc32(json.dumps(trajectories).encode()) % 10**6


OVERLAP = Experiment(
    number=19,
    name="overlap",
    system="TAPO",
    claim="Decoding on while tools run shortens a step, when a call takes 50 ms, against a barrier "
    "a turn, halves it against calls one by one, and changes nothing else.",
    source="our own hypothesis, about Wu et al. 2025",
    published="none known",
    measure="seconds of 8 RL steps on the wall clock; a checksum of what they sampled, equal if "
    "its difference is 0",
    expected="overlapped < barrier, at most half of blocking; the same trajectories",
    arms={
        "overlapped": overlap("on"),
        "barrier": overlap("barrier", barrier=True),
        "blocking": overlap("off", blocking=True),
    },
    compare=(
        Compare("overlapped", "barrier", "seconds", lower=True),
        Compare("overlapped", "blocking", "seconds", lower=True, metric_worse="half_seconds"),
        Compare("overlapped", "barrier", "fingerprint", margin=0.5, equal=True),
        Compare("overlapped", "blocking", "fingerprint", margin=0.5, equal=True),
    ),
    tuned=TUNED,
    first_seed=FIRST_SEED,
)

EXPERIMENTS = [OVERLAP]
