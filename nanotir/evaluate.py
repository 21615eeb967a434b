"""Measure a policy: accuracy with its tools and without, pass@k, maj@k, and the use of its tools.

python -m nanotir.evaluate --run runs/tapo-tiny-1 --n 16 --k 1,4,16
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from nanotir.answers import equivalent, extract_answer
from nanotir.checks import Count, Seed, check_settings, one_of
from nanotir.commands import Parser, number, one_line
from nanotir.metrics import mean
from nanotir.problems import Problem, load
from nanotir.room import has_room, problems_with_room
from nanotir.run import Run, load_run, read_evaluations
from nanotir.sampler import Sampler, SamplerConfig
from nanotir.trajectory import Trajectory
from nanotir.trust import measure

MODES = ("tools", "text")
EXAMPLES = 4  # held-out problems whose answers are written to traces.jsonl at every evaluation


@dataclass
class EvalConfig:
    problems: Count = 250  # held-out problems
    samples: Count = 1  # answers to each; one is greedy, several are drawn
    k: str = "1"  # pass@k and maj@k for these k, as 1,4,16
    modes: str = "tools,text"  # tools: as trained; text: without tools, so by itself

    def __post_init__(self):
        check_settings(self, "eval")
        for mode in self.modes.split(","):
            one_of("evaluation mode", mode, MODES)
        for k in self.k.split(","):
            if not k.strip().isdigit() or not 0 < int(k) <= self.samples:
                allowed = f"whole numbers from 1 to the number of samples ({self.samples})"
                raise ValueError(f"k ({self.k}) must be {allowed}")


def pass_at_k(n: int, c: int, k: int) -> float:
    """The probability that one of k answers is right, given c right ones among n.

    1 - C(n-c, k) / C(n, k), which is unbiased (Chen et al. 2021, eq. 1).
    """
    if not 0 < k <= n:
        raise ValueError(f"pass@{k} needs k from 1 to the {n} samples there are")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def maj_at_k(answers: list[str | None], gold: str, k: int) -> float:
    """1 if the most frequent of the first k answers is right, else 0.

    Equal answers are one, however they are written. None is no vote. Of answers equally frequent,
    the one that came first wins.
    """
    votes: dict[str, int] = {}
    for answer in answers[:k]:
        if answer is None:
            continue
        same = next((other for other in votes if equivalent(answer, other)), answer)
        votes[same] = votes.get(same, 0) + 1
    return float(bool(votes) and equivalent(max(votes, key=votes.get), gold))


def wilson_interval(successes: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927), which is honest at 0 and 1 too."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def evaluate(
    model, tokenizer, tools, format, problems, config: EvalConfig, sampling: SamplerConfig, seed=0
) -> dict:
    """{mode: statistics} of the model's answers to the problems."""
    given = (model, tokenizer, tools, format, problems, config, sampling, seed)
    return {mode: found for mode, found, _ in evaluations(*given)}


def evaluations(
    model, tokenizer, tools, format, problems, config: EvalConfig, sampling, seed
) -> Iterator[tuple[str, dict, list[list[Trajectory]]]]:
    """(mode, statistics, the answers as one group a problem) for every mode."""
    was_training = model.training
    model.eval()
    n = config.samples
    if n == 1:
        sampling = replace(sampling, temperature=0.0)
    for mode in config.modes.split(","):
        sampler = Sampler(model, tokenizer, tools if mode == "tools" else [], format, sampling)
        rows = generate_with_bar(sampler, problems, n, seed, f"evaluate {mode}")
        groups = [rows[i : i + n] for i in range(0, len(rows), n)]
        found = statistics(problems, groups, tokenizer, [int(k) for k in config.k.split(",")])
        yield mode, found, groups
    model.train(was_training)


def generate_with_bar(sampler, problems, n: int, seed: int, desc: str) -> list[Trajectory]:
    bar = tqdm(total=len(problems) * n, desc=desc, leave=False, dynamic_ncols=True)

    def watch(row, kind, ids):
        if kind == "finish":
            bar.update()

    with bar:
        return sampler.generate([problem.question for problem in problems], n, seed, watch)


def evaluate_run(run: Run, name: str) -> dict:
    """Evaluate the run's model on its held-out problems and record it as `name`, once."""
    recorded = read_evaluations(run.out)
    if name in recorded:  # by the run that is resumed
        return recorded[name]
    config = run.config
    sampling = at_the_end(config.sampler, config.rl.budgets)
    policy = (run.model, run.tokenizer, run.tools, run.format)
    asked = (run.held_out, config.eval, sampling, config.seed)
    result = {}
    for mode, found, groups in evaluations(*policy, *asked):
        result[mode] = found
        for problem, group in zip(run.held_out[:EXAMPLES], groups):
            trace(run, name, mode, problem, group[0])
    if name == "final":
        tools_only = replace(config.eval, modes="tools")
        for variant, problems in variants(run):
            result[variant] = evaluate(*policy, problems, tools_only, sampling)["tools"]
    run.record(name, result)
    return result


def variants(run: Run) -> Iterator[tuple[str, list[Problem]]]:
    """The held-out problems in words never trained on, and with longer numbers than were seen.

    They exist for generated problems. Families without numbers have none that are longer.
    """
    config = run.config
    if config.eval_data.partition(":")[0] != "generated":
        return
    n, seed = config.eval.problems, config.seed + 1
    for name in ("reworded", "longer", "longest"):  # see problems/sources.py
        spec = config.eval_data.replace("generated", name)
        problems = load(spec, "test", n, seed, config.level)
        if problems := [problem for problem in problems if has_room(problem, run)]:
            yield name, problems


def at_the_end(sampling: SamplerConfig, budgets: str) -> SamplerConfig:
    """A run's settings of sampling when it ends: with the last of rl.budgets, if there are any."""
    last = budgets.rpartition(",")[2]
    return replace(sampling, max_calls=int(last)) if last else sampling


def trace(run: Run, name: str, mode: str, problem: Problem, trajectory: Trajectory):
    """Write down an answer. The same problems are asked every time, so answers can be compared."""
    row = {"phase": "eval", "step": 0, "name": name, "mode": mode, **problem.summary()}
    row["correct"] = is_right(answer_of(trajectory, run.tokenizer), problem)
    run.log(row | trajectory.record(run.tokenizer), "traces.jsonl")


def answer_of(trajectory: Trajectory, tokenizer) -> str | None:
    return extract_answer(trajectory.completion(tokenizer))


def is_right(answer: str | None, problem: Problem) -> bool:
    return answer is not None and equivalent(answer, problem.answer)


def statistics(problems, groups, tokenizer, ks: list[int]) -> dict:
    """What there is to say about n trajectories for each problem.

    The interval is over problems, each counted by its share of right answers.
    """
    answers = [[answer_of(t, tokenizer) for t in group] for group in groups]
    right = [[is_right(a, problem) for a in row] for problem, row in zip(problems, answers)]
    shares = [mean(row) for row in right]
    trajectories = [t for group in groups for t in group]
    calls = [call for t in trajectories for call in t.calls]
    n_right = sum(map(sum, right))
    low, high = wilson_interval(sum(shares), len(shares))
    kinds = [problem.kind or problem.family for problem in problems]
    return {
        "accuracy": mean(shares),
        "low": low,
        "high": high,
        "n": len(problems),
        "samples": len(groups[0]),
        "by_family": breakdown([problem.family for problem in problems], shares, groups),
        "by_kind": breakdown(kinds, shares, groups),
        "calls_per_problem": len(calls) / len(trajectories),
        "calls_per_correct": len(calls) / n_right if n_right else None,
        "call_status": shares_of(call.result.status for call in calls),
        "program_accuracy": program_accuracy(problems, groups),
        "mean_new_tokens": mean([t.new_tokens for t in trajectories]),
        "finish": dict(Counter(t.finish_reason for t in trajectories)),
        "pass@k": {k: mean([pass_at_k(len(row), sum(row), k) for row in right]) for k in ks},
        "maj@k": {k: mean_maj_at_k(answers, problems, k) for k in ks},
        # Of one greedy answer to each problem. Drawn answers have other log-probs.
        "trust": measure(trajectories, sum(right, []), tokenizer) if len(groups[0]) == 1 else None,
    }


def shares_of(names) -> dict[str, float]:
    counts = Counter(names)
    return {name: count / counts.total() for name, count in counts.items()}


def mean_maj_at_k(answers, problems, k: int) -> float:
    return mean([maj_at_k(row, problem.answer, k) for row, problem in zip(answers, problems)])


def program_accuracy(problems, groups) -> float:
    """The share of answers whose last call's output is the gold answer."""
    found = []
    for problem, group in zip(problems, groups):
        for t in group:
            found.append(bool(t.calls) and says(t.calls[-1].result.output, problem.answer))
    return mean(found)


def says(output: str, gold: str) -> bool:
    """Whether a tool's output is the gold answer: as it stands, or, on one line, in words.

    "[-1, 5]" is how Python writes -1, 5, if the answer is no interval.
    """
    output = output.strip()
    readings = [output]
    if "\n" not in output:
        readings.append(extract_answer(f"The answer is {output}") or "")
        if gold[:1] not in ("[", "("):
            readings.append(output.removeprefix("[").removesuffix("]"))
    return any(equivalent(reading, gold) for reading in readings)


def breakdown(labels: list[str], shares: list[float], groups) -> dict:
    """Accuracy, number of problems, calls per answer and the tools called, for each label."""
    members: dict[str, list] = {label: [] for label in sorted(set(labels))}
    for label, share, group in zip(labels, shares, groups):
        members[label].append((share, group))
    return {label: breakdown_row(rows) for label, rows in members.items()}


def breakdown_row(rows: list) -> dict:
    trajectories = [t for _, group in rows for t in group]
    calls = [call for t in trajectories for call in t.calls]
    return {
        "accuracy": mean([share for share, _ in rows]),
        "n": len(rows),
        "calls_per_problem": mean([len(t.calls) for t in trajectories]),
        "calls_by_tool": dict(Counter(call.tool for call in calls)),
    }


def table(evaluations: dict) -> str:
    """One line for each evaluation and mode. Of several samples, pass@k and maj@k are shown too."""
    width = max(map(len, evaluations), default=0)
    head = (
        f"{'':{width}} {'mode':8} {'accuracy':>9} {'95% interval':>16} {'calls':>6} {'tokens':>7}"
    )
    heads, lines = "", []
    for name, modes in evaluations.items():
        for mode, s in modes.items():
            interval = f"{s['low']:.1%} .. {s['high']:.1%}"
            numbers = f"{s['calls_per_problem']:>6.2f} {s['mean_new_tokens']:>7.1f}"
            line = f"{name:{width}} {mode:8} {s['accuracy']:>9.1%} {interval:>16} {numbers}"
            heads, cells = of_samples(s)
            lines.append(line + cells)
    return "\n".join([head + heads, *lines])


def of_samples(s: dict) -> tuple[str, str]:
    """pass@k and maj@k: the heads of their columns, and the cells of one line."""
    heads, cells = "", ""
    for k in s["pass@k"] if s["samples"] > 1 else ():
        for name in ("pass", "maj"):
            head = f" {name}@{k}".rjust(8)
            heads += head
            cells += f"{s[f'{name}@k'][k]:.1%}".rjust(len(head))
    return heads, cells


USED = {"eval": dict, "eval_data": str, "level": int, "rl": dict}  # of a run's config


def make_parser() -> Parser:
    parser = Parser("python -m nanotir.evaluate", "Evaluate a trained run on held-out problems.")
    parser.add_argument("--run", required=True, help="run folder")
    parser.add_argument("--data", help="problems, as train.py's --eval-data (default: the run's)")
    count, seed = number(Count), number(Seed)
    parser.add_argument("--problems", type=count, help="how many (default: the run's own number)")
    parser.add_argument("--n", type=count, default=1, help="samples of each problem; 1 is greedy")
    parser.add_argument("--k", default="1", help="pass@k and maj@k for these k, as 1,4,16")
    parser.add_argument("--modes", default="tools,text")
    own = "of problems and samples (default: the run's own, so the problems of its eval.json)"
    parser.add_argument("--seed", type=seed, help=own)
    parser.add_argument("--json", action="store_true", help="print all statistics as JSON")
    return parser


def main(arguments=None):
    with one_line("evaluate"):
        options = make_parser().parse_args(arguments)
        config, model, tokenizer, format, tools = load_run(options.run, **USED)
        torch.set_num_threads(config["threads"])
        n = options.problems or config["eval"].get("problems", EvalConfig.problems)
        settings = EvalConfig(n, options.n, options.k, options.modes)
        seed = config["seed"] if options.seed is None else options.seed
        data = config["eval_data"] if options.data is None else options.data
        problems = load(data, "test", n, seed=seed + 1, level=config["level"])
        problems = problems_with_room(problems, tokenizer, format, model.config.max_seq_len)
        sampling = at_the_end(SamplerConfig(**config["sampler"]), config["rl"].get("budgets", ""))
        given = (model, tokenizer, tools, format, problems, settings, sampling, seed)
        result = evaluate(*given)
        print(json.dumps(result, indent=1) if options.json else table({"": result}))


if __name__ == "__main__":
    main()
