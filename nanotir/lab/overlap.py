"""What it saves to go on decoding while tools run."""

from __future__ import annotations

import json
import time
import zlib

from nanotir.lab.cir import COLD, RL, TUNED
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


def overlap(blocking: bool) -> Arm:
    """The wall time of a few steps of RL whose tools take 50 ms longer."""

    def slow(tool: Tool) -> Tool:
        return SlowTool(tool, blocking)

    def run_arm(seed, quick, folder):
        settings = RL | {"rl.steps": 3 if quick else 8}
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

    return Arm(f"cir-overlap-{'off' if blocking else 'on'}", run_arm)


def fingerprint(run) -> int:
    """A checksum of the ids of every trajectory of RL in the run's traces."""
    trajectories = []
    for line in (run.out / "traces.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["phase"] == "rl":
            trajectories.append([span["ids"] for span in row["spans"]])
    return zlib.crc32(json.dumps(trajectories).encode()) % 10**4


OVERLAP = Experiment(
    number=19,
    name="overlap",
    system="TAPO",
    claim="Decoding on while tools run halves a step's time, or better, when a call takes 50 ms, "
    "and changes nothing else.",
    source="our own hypothesis, about Wu et al. 2025",
    published="none known",
    measure="seconds of 8 RL steps on the wall clock; a checksum of the ids in their traces, equal "
    "if its difference is 0",
    expected="at most half the time, the same trajectories",
    arms={"overlapped": overlap(False), "blocking": overlap(True)},
    compare=(
        Compare("overlapped", "blocking", "seconds", lower=True, metric_worse="half_seconds"),
        Compare("overlapped", "blocking", "fingerprint", margin=0.5),
    ),
    tuned=TUNED,
)

EXPERIMENTS = [OVERLAP]
