"""CIR's analysis: what became of the code that a policy wrote (Bai et al. 2025)."""

from __future__ import annotations

from nanotir.answers import equivalent
from nanotir.demonstrate import act_out
from nanotir.rewards import is_correct
from nanotir.rl import make_sampler
from nanotir.rollout import Sample
from nanotir.scores import mean
from nanotir.trajectory import Call


def analyse(run) -> dict:
    """What the code was good for, from one sampled answer to each held-out problem."""
    questions = [problem.question for problem in run.held_out]
    samples = []
    for problem, trajectory in zip(
        run.held_out, make_sampler(run).generate(questions, seed=run.config.seed)
    ):
        correct = is_correct(trajectory.completion(run.tokenizer), problem.answer)
        samples.append(Sample(problem, trajectory, reward=float(correct), correct=correct))
    values = due_values(run)
    found = {"all": fate_of_code(samples, values)}
    for family in sorted({problem.family for problem in run.held_out}):
        chosen = [s for s in samples if s.problem.family == family]
        found[family] = fate_of_code(chosen, values)
    return found


def due_values(run) -> dict[str, str]:
    """{question: what its program should print}, of problems that are solved by a program.

    That is what the solution's last program prints, which need not be the answer's own words.
    """
    scripts = [list(problem.solution) for problem in run.held_out]
    given = (run.tokenizer, run.format, run.tools_by_name)
    values = {}
    for problem, shown in zip(run.held_out, act_out(run.held_out, scripts, *given)):
        if programs := programs_of(shown):
            values[problem.question] = programs[-1].result.output
    return values


def fate_of_code(samples: list[Sample], values: dict[str, str]) -> dict:
    """Shares of answers and of calls for code; None where there is nothing to count.

    `values` are those of due_values. Searches are no code.
    """
    with_code = [s for s in samples if programs_of(s.trajectory)]
    failed = [s for s in with_code if not all(runs_ok(s))]
    misled = [s for s in with_code if misleads(s, values)]
    tokens = sum(s.trajectory.new_tokens for s in samples)
    return {
        "code_ratio": share([bool(programs_of(s.trajectory)) for s in samples]),
        "pass_ratio": share(all_runs_ok(samples)),
        "pass_ratio_right": share(all_runs_ok([s for s in samples if s.correct])),
        "pass_ratio_wrong": share(all_runs_ok([s for s in samples if not s.correct])),
        "repair_rate": share(repairs(failed)),
        "right_after_failure": share([s.correct for s in failed]),  # of code that did not run
        "right_after_wrong_value": share([s.correct for s in misled]),  # of code that misled
        "tokens_per_correct": tokens / max(1, sum(s.correct for s in samples)),
        "accuracy": share([s.correct for s in samples]),
    }


def share(values: list) -> float | None:
    return mean(values) if values else None


def programs_of(trajectory) -> list[Call]:
    return [call for call in trajectory.calls if call.tool == "python"]


def runs_ok(sample: Sample) -> list[bool]:
    return [call.result.ok for call in programs_of(sample.trajectory)]


def all_runs_ok(samples: list[Sample]) -> list[bool]:
    return [ok for sample in samples for ok in runs_ok(sample)]


def misleads(sample: Sample, values: dict[str, str]) -> bool:
    """Whether the last program ran, and printed neither the value that is due nor the answer."""
    last = programs_of(sample.trajectory)[-1].result
    answer = sample.problem.answer
    due = values.get(sample.problem.question, answer)
    return last.ok and not (equivalent(last.output, due) or equivalent(last.output, answer))


def repairs(samples: list[Sample]) -> list[bool]:
    """For every failed program that another one follows: did that one run?"""
    found = []
    for sample in samples:
        ok = runs_ok(sample)
        found += [after for before, after in zip(ok, ok[1:]) if not before]
    return found
