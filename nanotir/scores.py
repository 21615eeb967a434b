"""The numbers of an evaluation: shares and their intervals, pass@k, maj@k, and tables of them."""

from __future__ import annotations

import math
import re
from collections import Counter

import numpy as np

from nanotir.answers import equivalent, extract_answer, likely_answers
from nanotir.problems import Problem
from nanotir.trajectory import Trajectory
from nanotir.trust import measure


def mean(values) -> float:
    return sum(values) / len(values)


def pass_at_k(n: int, c: int, k: int) -> float:
    """The probability that one of k answers is right, given c right ones among n samples.

    The k are drawn from the n, none of them twice, so the estimate is unbiased (Chen et al. 2021,
    eq. 1). ValueError unless 0 < k <= n.
    """
    if not 0 < k <= n:
        raise ValueError(f"pass@{k} needs k from 1 to the {n} samples there are")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)  # of all draws, those of wrong ones alone


def maj_at_k(answers: list[str | None], gold: str, k: int) -> float:
    """1 if the most frequent of the first k answers is right, else 0.

    Equal answers are one, however they are written. None is no vote. Of answers equally frequent,
    the one that came first wins.
    """
    votes: dict[str, int] = {}
    for answer in answers[:k]:
        if answer is None:
            continue
        answer = answer.strip()  # all empty boxes are one answer
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


def bootstrap_interval(values: list[float], draws: int = 2000) -> tuple[float, float]:
    """The 95% interval of a mean over problems: quantiles of resampled means (Efron 1979).

    Problems are drawn with replacement, always in the same way. A degenerate sample, as of zeros
    alone, has an interval of no width.
    """
    rng = np.random.default_rng(0)
    rows = rng.integers(len(values), size=(draws, len(values)))  # (draws, n)
    low, high = np.quantile(np.asarray(values)[rows].mean(1), (0.025, 0.975))
    return float(low), float(high)


def answer_of(trajectory: Trajectory, tokenizer) -> str | None:
    return extract_answer(trajectory.completion(tokenizer))


def is_right(answer: str | None, problem: Problem) -> bool:
    return answer is not None and equivalent(answer, problem.answer)


def lenient_share(problem: Problem, group, answers, right, tokenizer) -> float:
    """The share of a group that is right, or that names no answer but ends in the gold one."""
    unnamed = [t for t, answer in zip(group, answers) if answer is None]
    likely = [likely_answers(t.completion(tokenizer)) for t in unnamed]
    stated = sum(any(is_right(a, problem) for a in candidates) for candidates in likely)
    return (sum(right) + stated) / len(group)


def share_right(shares: list[float]) -> dict[str, float]:
    """The mean of the problems' shares of right answers, with its interval."""
    low, high = wilson_interval(sum(shares), len(shares))
    return {"accuracy": mean(shares), "low": low, "high": high}


def statistics(problems, groups, tokenizer, ks: list[int]) -> dict:
    """What there is to say about n trajectories for each problem.

    The interval is over problems, each counted by its share of right answers. An answer
    counts where it is named, as demonstrations do. `lenient` also counts one that is only stated.
    """
    answers = [[answer_of(t, tokenizer) for t in group] for group in groups]
    right = [[is_right(a, problem) for a in row] for problem, row in zip(problems, answers)]
    shares = [mean(row) for row in right]
    trajectories = [t for group in groups for t in group]
    calls = [call for t in trajectories for call in t.calls]
    verdicts = [verdict for row in right for verdict in row]
    n_right = sum(verdicts)
    one_each = len(groups[0]) == 1
    rows = zip(problems, groups, answers, right)
    lenient = [lenient_share(*row, tokenizer) for row in rows]
    kinds = [problem.kind or problem.family for problem in problems]
    return {
        **share_right(shares),
        "lenient": share_right(lenient),
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
        **at_k(right, answers, problems, ks),
        # Of one greedy answer to each problem. Drawn answers have other log-probs.
        "trust": measure(problems, trajectories, verdicts, tokenizer) if one_each else None,
    }


def shares_of(names) -> dict[str, float]:
    counts = Counter(names)
    return {name: count / counts.total() for name, count in counts.items()}


def at_k(right, answers, problems, ks: list[int]) -> dict:
    """pass@k and maj@k, with intervals over problems. (avg@k is the accuracy of k samples.)"""
    found = {name: {} for name in ("pass@k", "pass@k_interval", "maj@k", "maj@k_interval")}
    golds = [problem.answer for problem in problems]
    for k in ks:
        passes = [pass_at_k(len(row), sum(row), k) for row in right]
        majorities = [maj_at_k(row, gold, k) for row, gold in zip(answers, golds)]
        for name, values in (("pass@k", passes), ("maj@k", majorities)):
            found[name][k] = mean(values)
            found[f"{name}_interval"][k] = bootstrap_interval(values)
    return found


def program_accuracy(problems, groups) -> float:
    """The share of answers whose last call's output is the gold answer."""
    found = []
    for problem, group in zip(problems, groups):
        for t in group:
            found.append(bool(t.calls) and says_answer(t.calls[-1].result.output, problem))
    return mean(found)


def says_answer(output: str, problem: Problem) -> bool:
    """Whether a tool's output says the answer to a problem.

    Of several unknowns, as in "{x: 6, y: 2}", the value of the one that the question names by
    itself counts: "What is x if 3x + 2y = 22 and ..?".
    """
    solution = re.findall(r"(\w+): ([^{}:,]+)[,}]", output) if output.startswith("{") else []
    asked = [text for name, text in solution if re.search(rf"\b{name}\b", problem.question, re.I)]
    return says(asked[0] if len(asked) == 1 else output, problem.answer)


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
    differs = any(leniently(s) > s["accuracy"] for m in evaluations.values() for s in m.values())
    heads, lines = "", []
    for name, modes in evaluations.items():
        for mode, s in modes.items():
            interval = f"{s['low']:.1%} .. {s['high']:.1%}"
            numbers = f"{s['calls_per_problem']:>6.2f} {s['mean_new_tokens']:>7.1f}"
            line = f"{name:{width}} {mode:8} {s['accuracy']:>9.1%} {interval:>16} {numbers}"
            heads, cells = of_samples(s)
            if differs and len(head + heads) <= 92:
                heads, cells = heads + "  lenient", cells + f"{leniently(s):>9.1%}"
            lines.append(line + cells)
    return "\n".join([head + heads, *lines])


def leniently(s: dict) -> float:
    """The lenient accuracy; older runs have recorded none."""
    return s.get("lenient", s)["accuracy"]


def of_samples(s: dict) -> tuple[str, str]:
    """pass@k and maj@k: the heads of their columns, and the cells of one line."""
    heads, cells = "", ""
    for k in s["pass@k"] if s["samples"] > 1 else ():
        for name in ("pass", "maj"):
            head = f" {name}@{k}".rjust(8)
            heads += head
            cells += f"{s[f'{name}@k'][k]:.1%}".rjust(len(head))
    return heads, cells
