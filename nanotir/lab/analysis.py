"""CIR's analysis: what became of the code that a policy wrote (Bai et al. 2025)."""

from __future__ import annotations

from nanotir.answers import equivalent
from nanotir.metrics import mean
from nanotir.rewards import is_correct
from nanotir.rl import make_sampler
from nanotir.rollout import Sample


def analyse(run) -> dict:
    """What the code was good for, from one sampled answer to each held-out problem."""
    questions = [problem.question for problem in run.held_out]
    samples = []
    for problem, trajectory in zip(
        run.held_out, make_sampler(run).generate(questions, seed=run.config.seed)
    ):
        correct = is_correct(trajectory.completion(run.tokenizer), problem.answer)
        samples.append(Sample(problem, trajectory, reward=float(correct), correct=correct))
    found = {"all": fate_of_code(samples)}
    for family in sorted({problem.family for problem in run.held_out}):
        found[family] = fate_of_code([s for s in samples if s.problem.family == family])
    return found


def fate_of_code(samples: list[Sample]) -> dict:
    """Shares of answers and calls; None where there is nothing to count."""
    with_calls = [s for s in samples if s.trajectory.calls]
    failed = [s for s in with_calls if not all(calls_ok(s))]
    misled = [s for s in with_calls if misleads(s)]
    tokens = sum(s.trajectory.new_tokens for s in samples)
    return {
        "code_ratio": share([bool(s.trajectory.calls) for s in samples]),
        "pass_ratio": share(all_calls_ok(samples)),
        "pass_ratio_right": share(all_calls_ok([s for s in samples if s.correct])),
        "pass_ratio_wrong": share(all_calls_ok([s for s in samples if not s.correct])),
        "repair_rate": share(repairs(failed)),
        "right_after_failure": share([s.correct for s in failed]),  # of code that did not run
        "right_after_wrong_value": share([s.correct for s in misled]),  # of code that misled
        "tokens_per_correct": tokens / max(1, sum(s.correct for s in samples)),
        "accuracy": share([s.correct for s in samples]),
    }


def share(values: list) -> float | None:
    return mean(values) if values else None


def calls_ok(sample: Sample) -> list[bool]:
    return [call.result.ok for call in sample.trajectory.calls]


def all_calls_ok(samples: list[Sample]) -> list[bool]:
    return [ok for sample in samples for ok in calls_ok(sample)]


def misleads(sample: Sample) -> bool:
    """Whether the last call ran, and printed something else than the answer."""
    last = sample.trajectory.calls[-1].result
    return last.ok and not equivalent(last.output, sample.problem.answer)


def repairs(samples: list[Sample]) -> list[bool]:
    """For every failed call that another one follows: did that one run?"""
    found = []
    for sample in samples:
        ok = calls_ok(sample)
        found += [after for before, after in zip(ok, ok[1:]) if not before]
    return found
