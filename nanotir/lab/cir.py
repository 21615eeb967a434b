"""What CIR's ideas buy: tools in RL, the observation mask, a growing budget of calls, exact matching; and pass@k, with code and without."""

from __future__ import annotations

import json
import time
import zlib

from nanotir.evaluate import pass_at_k
from nanotir.lab.experiment import Arm, Compare, Experiment
from nanotir.lab.toy import cold_start, curve, mean_of, measure, reinforce, right_counts, trained
from nanotir.tools import Tool

COLD = {
    "data": "generated:mul,power,gcd,det,quot,last,parity",
    "tools": "python",
    "format": "fences",
    "teacher.quality": 0.4,
    "teacher.rationales": 0.3,
    "sft.steps": 300,
    "rl.steps": 0,
}
RL = {"rl.steps": 24, "rl.budgets": "", "sampler.forge": True}
HOPS = COLD | {
    "data": "generated:fact,home,gap",
    "tools": "python,search",
    "teacher.quality": 0.5,
    "teacher.rationales": 0.0,
    "sft.steps": 350,
}
CONTROL = "random rewards"
KS = [2**i for i in range(9)]


def rl_arm(key: str, settings=None, name: str = "cir", start=None, mode: str = "tools") -> Arm:
    def run_arm(seed, quick, folder):
        with reinforce(
            folder, "cir", start or COLD, RL | (settings or {}), seed, quick, name
        ) as run:
            result, fate = (
                measure(run, modes=mode),
                json.loads((run.out / "analysis.json").read_text())["all"],
            )
            return {
                "accuracy": result["accuracy"],
                "calls": result["calls_per_problem"],
                "curve": curve(run, "accuracy"),
                "sampled_accuracy": mean_of(curve(run, "accuracy"), 0.25),
                "grad_norm_max": max((y for _, y in curve(run, "grad_norm")), default=None),
                **{name: value for name, value in fate.items() if name != "accuracy"},
            }

    return Arm(f"cir-{key}", run_arm)


def hops(budgets: str, random: bool = False) -> Arm:
    """Problems of up to three calls, trained within a budget of them."""
    settings = {"rl.budgets": budgets} | ({"reward.coin": True} if random else {})
    return rl_arm(
        f"hops-{budgets.replace(',', '')}{'-random' if random else ''}", settings, "hops", HOPS
    )


def passes(model: str, mode: str) -> Arm:
    """pass@k up to 256 on 20 problems, of the cold start or of what RL made of it, with its tool or without."""

    def run_arm(seed, quick, folder):
        n, problems = (16, 8) if quick else (256, 20)
        start = cold_start("cir", COLD, seed, quick)
        if model == "RL":
            start = cold_start(
                "cir-rl", COLD | RL | {"init": start, "sft.steps": 0}, seed, quick, recipe="cir"
            )
        with trained(folder, "cir", COLD | {"init": start, "sft.steps": 0}, seed, quick) as run:
            counts = right_counts(run, run.held_out[:problems], n, tools=mode == "code")
        at = {k: sum(pass_at_k(n, c, k) for c in counts) / len(counts) for k in KS if k <= n}
        return {f"pass@{k}": at.get(k) for k in KS} | {
            "pass by k": [[k, share] for k, share in at.items()]
        }

    return Arm(f"cir-pass-{model}-{mode}", run_arm)


class SlowTool(Tool):
    """Another tool, 50 ms slower. A blocking one is waited for by whoever calls it, so calls run one after the other."""

    def __init__(self, tool: Tool, blocking: bool):
        self.tool, self.name, self.blocking = tool, tool.name, blocking
        self.threads = 64

    def run(self, text, session=None):
        time.sleep(0.05)
        return self.tool.run(text, session)

    def submit(self, text, session=None):
        future = super().submit(text, session)
        if self.blocking:
            future.result()
        return future


def overlap(blocking: bool) -> Arm:
    """A few steps of RL whose tools take 50 ms longer, on the wall clock."""

    def run_arm(seed, quick, folder):
        settings = {"rl.steps": 3 if quick else 8}
        slow = lambda run: [SlowTool(tool, blocking) for tool in run.tools]
        with reinforce(folder, "cir", COLD, RL | settings, seed, quick, tools=slow) as run:
            rewards, calls = curve(run, "reward"), sum(y for _, y in curve(run, "calls"))
            seconds = sum(
                y for name in ("seconds_rollout", "seconds_update") for _, y in curve(run, name)
            )
            return {
                "seconds": seconds,
                "half_seconds": seconds / 2,
                "seconds_rollout": sum(y for _, y in curve(run, "seconds_rollout")),
                "calls": calls,
                "reward": mean_of(rewards),
                "fingerprint": fingerprint(run),
                "curve": rewards,
            }

    return Arm(f"cir-overlap-{'off' if blocking else 'on'}", run_arm)


def fingerprint(run) -> int:
    """A checksum of every trajectory that was written down: equal where all ids are."""
    rows = (json.loads(line) for line in open(run.out / "traces.jsonl"))
    return (
        zlib.crc32(json.dumps([[span["ids"] for span in row["spans"]] for row in rows]).encode())
        % 10**4
    )


RANDOM = {"reward.coin": True}
TUNED = "A cold start of 300 steps on a mediocre teacher, three in ten answers in words, past the point where it can copy a number."
EXPERIMENTS = [
    Experiment(
        4,
        "tools-or-text",
        "CIR",
        "RL with a code tool ends above RL in words alone from the same cold start.",
        "CIR, table 1; ToRL",
        "7B, average of five benchmarks: 52.4 with code, 39.3 without (Oat-Zero)",
        "greedy accuracy on held-out problems, each arm as it was trained",
        "tool > text; random rewards change little",
        {
            "tool": rl_arm("tool"),
            "text": rl_arm("text", {"tools": ""}, mode="text"),
            CONTROL: rl_arm("random", RANDOM),
        },
        (Compare("tool", "text"), Compare("tool", CONTROL)),
        control=CONTROL,
        figure=("curve",),
        tuned=TUNED,
    ),
    Experiment(
        5,
        "rl-mask",
        "CIR",
        "Learning from tool output as if the model had said it makes RL worse, or less stable.",
        "Search-R1, mask ablation; CIR",
        "exact match 0.431 with the mask, 0.343 without (Search-R1)",
        "accuracy after RL, greedy and sampled over its last quarter; largest gradient norm, each arm's loss being a mean over what it learns from",
        "masked > learned; gradients of learned are larger",
        {
            "masked": rl_arm("tool"),
            "learned": rl_arm("learned", {"rl.observations": "learned"}),
            CONTROL: rl_arm("random", RANDOM),
        },
        (
            Compare("masked", "learned"),
            Compare("masked", "learned", "sampled_accuracy"),
            Compare("masked", "learned", "grad_norm_max", lower=True),
        ),
        control=CONTROL,
        figure=("curve",),
        tuned=TUNED,
    ),
    Experiment(
        6,
        "budget",
        "CIR",
        "A budget of calls that grows from 2 to 4 is at least as good as one call or four throughout.",
        "CIR, figure 3",
        "AIME24 0.19 to 0.42 over 300 steps, with dips where the budget is raised; fixed budgets: not known",
        "greedy accuracy at four calls",
        "progressive >= both",
        {
            "2, 3, 4": hops("2,3,4"),
            "1": hops("1"),
            "4": hops("4"),
            CONTROL: hops("2,3,4", random=True),
        },
        (Compare("2, 3, 4", "1", margin=0.05), Compare("2, 3, 4", "4", margin=0.05)),
        control=CONTROL,
        figure=("curve",),
        tuned="Problems of one, two and three calls, as many of each, from a cold start of a teacher who guesses half of the time.",
    ),
    Experiment(
        8,
        "pass-at-k",
        "CIR",
        "With code, more of the problems are within reach than in words at every k up to 256, before RL and after it; RL gains at k = 1.",
        "CIR, figure on pass@k",
        "AIME25 at k = 1024: about 0.83 with code, 0.63 in words; base and RL meet at large k",
        "unbiased pass@k of 256 samples at temperature 1 on 20 held-out problems; output ids are free, both modes may write 64 ids",
        "code > text at every k; RL above base at small k, perhaps not at large",
        {
            f"{model} {mode}": passes(model, mode)
            for model in ("RL", "base")
            for mode in ("code", "text")
        },
        (
            Compare("RL code", "base code", "pass@1"),
            *(
                Compare(f"{model} code", f"{model} text", f"pass@{k}")
                for model in ("RL", "base")
                for k in (1, 16, 256)
            ),
        ),
        figure=("pass by k",),
        tuned=TUNED,
    ),
    Experiment(
        17,
        "random-reward",
        "all",
        "From random weights, RL on random rewards teaches nothing, unlike on models that were pretrained on mathematics.",
        "Shao et al. 2025, Spurious rewards",
        "Qwen2.5-Math-7B, MATH-500: +21.4 points from random rewards",
        "greedy accuracy with the tool, after RL and before",
        "right answers paid > cold start; random rewards paid: no better than the cold start",
        {
            "real rewards": rl_arm("tool"),
            CONTROL: rl_arm("random", RANDOM),
            "cold start": rl_arm("start", {"rl.steps": 0}),
        },
        (Compare("real rewards", "cold start"), Compare("cold start", CONTROL, margin=0.05)),
        control=CONTROL,
        figure=("curve",),
        tuned=TUNED,
    ),
    Experiment(
        19,
        "overlap",
        "TAPO",
        "Decoding on while tools run halves a step's time, or better, when a call takes 50 ms, and changes nothing else.",
        "the notes on Wu et al. 2025, as future work",
        "none known",
        "seconds of 8 RL steps on the wall clock; a checksum of the ids in their traces, equal if its difference is 0",
        "at most half the time, the same trajectories",
        {"overlapped": overlap(False), "blocking": overlap(True)},
        (
            Compare("overlapped", "blocking", "seconds", lower=True, metric_worse="half_seconds"),
            Compare("overlapped", "blocking", "fingerprint", margin=0.5),
        ),
        tuned=TUNED,
    ),
]
