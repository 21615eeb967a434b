"""Measure a policy: accuracy with its tools and without, pass@k, maj@k, and what the tools were used for, with intervals.

python -m nanotir.evaluate --run runs/tapo-tiny-1 --n 16 --k 1,4,16
python -m nanotir.evaluate --replay FILE       somebody else's recorded transcripts, every program run again, every answer graded again
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from nanotir.answers import equivalent, extract_answer
from nanotir.checkpoint import load_run, read_evaluations
from nanotir.problems import load
from nanotir.problems.files import read_lines, transcript
from nanotir.rewards import completion
from nanotir.routing import expert_disagreement, expert_use
from nanotir.sampler import Sampler, SamplerConfig
from nanotir.tools import PythonTool
from nanotir.trajectory import Format

MODES = ("tools", "text")


@dataclass
class EvalConfig:
    problems: int = 250  # held-out problems
    samples: int = (
        1  # answers to each; one is greedy, several are drawn at the sampler's temperature
    )
    k: str = "1"  # pass@k and maj@k for these k, as 1,4,16
    modes: str = "tools,text"  # tools: as trained; text: the tools' opening ids are masked, so it must answer by itself

    def __post_init__(self):
        if min(self.problems, self.samples) < 1:
            raise ValueError("an evaluation needs at least 1 problem and 1 sample of each")
        for mode in self.modes.split(","):
            if mode not in MODES:
                raise ValueError(f"no evaluation mode '{mode}'; there are {', '.join(MODES)}")
        if not all(k.strip().isdigit() and 0 < int(k) <= self.samples for k in self.k.split(",")):
            raise ValueError(
                f"k ({self.k}) must be whole numbers from 1 to the number of samples ({self.samples})"
            )


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that one of k answers is right, from c right ones among n: 1 - C(n-c, k) / C(n, k), unbiased (Chen et al. 2021, eq. 1)."""
    if not 0 < k <= n:
        raise ValueError(f"pass@{k} needs k from 1 to the {n} samples there are")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def maj_at_k(answers, gold: str, k: int) -> float:
    """1 if the most frequent of the first k answers is right, else 0. Equal answers are one, however they are written; None is no vote;
    of answers equally frequent the one that came first wins."""
    votes: list[list] = []  # [answer, how often]
    for answer in answers[:k]:
        same = next(
            (vote for vote in votes if answer is not None and equivalent(answer, vote[0])), None
        )
        if same:
            same[1] += 1
        elif answer is not None:
            votes.append([answer, 1])
    return float(bool(votes) and equivalent(max(votes, key=lambda vote: vote[1])[0], gold))


def wilson_interval(successes: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927): honest at 0 and 1, where successes/n +- z*se is not."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - spread) / (1 + z * z / n)), min(
        1.0, (centre + spread) / (1 + z * z / n)
    )


def evaluate(
    model,
    tokenizer,
    tools,
    format,
    problems,
    config: EvalConfig,
    sampler_config: SamplerConfig,
    seed: int = 0,
) -> dict:
    """{mode: statistics} of the model on the problems. The interval is over problems, each counted by its share of right answers."""
    was_training = model.training
    model.eval()
    sampling = sampler_config if config.samples > 1 else replace(sampler_config, temperature=0.0)
    result = {}
    for mode in config.modes.split(","):
        sampler = Sampler(model, tokenizer, tools if mode == "tools" else [], format, sampling)
        with tqdm(
            total=len(problems) * config.samples,
            desc=f"evaluate {mode}",
            leave=False,
            dynamic_ncols=True,
        ) as bar:
            finished = lambda row, kind, ids: kind == "finish" and bar.update()
            rows = sampler.generate(
                [problem.question for problem in problems], config.samples, seed, watch=finished
            )
        groups = [rows[i : i + config.samples] for i in range(0, len(rows), config.samples)]
        result[mode] = statistics(
            problems, groups, tokenizer, [int(k) for k in config.k.split(",")]
        )
        if model.config.n_experts:
            result[mode]["expert_use"] = expert_use(model, tokenizer, rows)
            result[mode]["expert_disagreement"] = expert_disagreement(
                model, rows[:64], tokenizer.pad_id
            )
    model.train(was_training)
    return result


def evaluate_run(run, name: str) -> dict:
    """Measure the run's model on its held-out problems and record it as `name`, unless a resumed run has done so before."""
    recorded = read_evaluations(run.out)
    if name not in recorded:
        config = run.config
        result = evaluate(
            run.model,
            run.tokenizer,
            run.tools,
            run.format,
            run.held_out,
            config.eval,
            config.sampler,
            config.seed,
        )
        run.record(name, result)
        recorded[name] = result
    return recorded[name]


def statistics(problems, groups, tokenizer, ks) -> dict:
    """What there is to say about n trajectories for each problem."""
    answers = [[extract_answer(completion(t, tokenizer)) for t in group] for group in groups]
    right = [
        [a is not None and equivalent(a, p.answer) for a in row]
        for p, row in zip(problems, answers)
    ]
    shares = [sum(row) / len(row) for row in right]
    trajectories = [t for group in groups for t in group]
    calls = [call for t in trajectories for call in t.calls]
    statuses = Counter(call.result.status for call in calls)
    low, high = wilson_interval(sum(shares), len(shares))
    n_right = sum(map(sum, right))
    return {
        "accuracy": mean(shares),
        "low": low,
        "high": high,
        "n": len(problems),
        "samples": len(groups[0]),
        "by_family": breakdown([p.family for p in problems], shares, groups),
        "by_kind": breakdown([p.kind or p.family for p in problems], shares, groups),
        "calls_per_problem": len(calls) / len(trajectories),
        "calls_per_correct": len(calls) / n_right if n_right else None,
        "call_status": {status: count / len(calls) for status, count in statuses.items()},
        "program_accuracy": mean(
            [
                bool(t.calls) and equivalent(t.calls[-1].result.output, p.answer)
                for p, g in zip(problems, groups)
                for t in g
            ]
        ),
        "mean_new_tokens": mean([t.new_tokens for t in trajectories]),
        "finish": dict(Counter(t.finish_reason for t in trajectories)),
        "pass@k": {k: mean([pass_at_k(len(row), sum(row), k) for row in right]) for k in ks},
        "maj@k": {
            k: mean([maj_at_k(row, p.answer, k) for p, row in zip(problems, answers)]) for k in ks
        },
    }


def breakdown(labels, shares, groups) -> dict:
    """Accuracy, number of problems, calls per answer and which tools they called, for each label."""
    rows = {
        label: [
            (share, group) for name, share, group in zip(labels, shares, groups) if name == label
        ]
        for label in sorted(set(labels))
    }
    return {
        label: {
            "accuracy": mean([share for share, _ in members]),
            "n": len(members),
            "calls_per_problem": mean([len(t.calls) for _, group in members for t in group]),
            "calls_by_tool": dict(
                Counter(call.tool for _, group in members for t in group for call in t.calls)
            ),
        }
        for label, members in rows.items()
    }


def mean(values) -> float:
    return sum(values) / len(values)


def table(evaluations: dict) -> str:
    """One line for each evaluation and mode."""
    lines = [f"{'':10} {'mode':6} {'accuracy':>9} {'95% interval':>16} {'calls':>6} {'tokens':>7}"]
    for name, modes in evaluations.items():
        for mode, s in modes.items():
            interval = f"{s['low']:.1%} .. {s['high']:.1%}"
            lines.append(
                f"{name:10} {mode:6} {s['accuracy']:>9.1%} {interval:>16} {s['calls_per_problem']:>6.2f} {s['mean_new_tokens']:>7.1f}"
            )
    return "\n".join(lines)


def replay(path: str) -> dict:
    """Recorded tool-integrated transcripts, as `files.transcript` reads them: do their programs say today what they said then (spaces apart),
    and do we find and grade their final answers as was recorded?"""
    rows = read_lines(transcript, path)
    with PythonTool() as tool, ThreadPoolExecutor(16) as pool:
        seen = list(
            tqdm(
                pool.map(lambda row: replay_one(row, tool), rows),
                total=len(rows),
                desc="replay",
                dynamic_ncols=True,
            )
        )
    outputs, verdicts = [same for row, _ in seen for same in row], [agrees for _, agrees in seen]
    return {
        "transcripts": len(rows),
        "programs": len(outputs),
        "same_output": mean(outputs) if outputs else None,
        "same_verdict": mean(verdicts),
        "recorded_accuracy": mean([row["recorded"] for row in rows]),
    }


def replay_one(row: dict, tool: PythonTool) -> tuple[list[bool], bool]:
    """(for every program whether its output is the recorded one, whether our verdict on the answer is). Programs share their variables."""
    pieces, session, same = Format("fences").parse(row["transcript"]), object(), []
    for (kind, code), (after, output) in zip(pieces, pieces[1:]):
        if kind == "python" and after == "output":
            same.append(tool.run(code, session).output.split() == output.split())
    tool.end_session(session)
    answer = extract_answer("\n".join(text for kind, text in pieces if kind == "text"))
    return same, (answer is not None and equivalent(answer, row["answer"])) == row["recorded"]


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m nanotir.evaluate", description="Measure a trained run on held-out problems."
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", help="run folder")
    which.add_argument(
        "--replay",
        metavar="FILE",
        help="recorded transcripts, JSON lines with code, pred and gt, to run and grade again",
    )
    parser.add_argument(
        "--data", help="problems, as train.py's --eval-data (default: the run's own)"
    )
    parser.add_argument(
        "--problems", type=int, help="how many problems (default: the run's own number)"
    )
    parser.add_argument("--n", type=int, default=1, help="samples of each problem; 1 is greedy")
    parser.add_argument("--k", default="1", help="pass@k and maj@k for these k, as 1,4,16")
    parser.add_argument("--modes", default="tools,text")
    parser.add_argument(
        "--seed",
        type=int,
        help="of problems and samples (default: the run's own, so the problems of its eval.json)",
    )
    parser.add_argument("--json", action="store_true", help="print all statistics as JSON")
    options = parser.parse_args(arguments)
    try:
        if options.replay:
            return print(json.dumps(replay(options.replay)))
        config, model, tokenizer, format, tools = load_run(options.run)
        torch.set_num_threads(config["threads"])
        settings = EvalConfig(
            options.problems or config["eval"]["problems"], options.n, options.k, options.modes
        )
        seed = config["seed"] if options.seed is None else options.seed
        problems = load(
            options.data or config["eval_data"],
            "test",
            settings.problems,
            seed=seed + 1,
            level=config["level"],
        )
        result = evaluate(
            model,
            tokenizer,
            tools,
            format,
            problems,
            settings,
            SamplerConfig(**config["sampler"]),
            seed,
        )
    except ValueError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(result, indent=1) if options.json else table({"": result}))


if __name__ == "__main__":
    main()
