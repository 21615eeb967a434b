"""CIR, code-integrated reasoning (Bai et al. 2025, arXiv 2505.24480): stable RL with a code tool.

    for each problem sample G answers; a finished ```python block is cut out and run, and the answer
        goes on after its output
    R = +1 if the answer is right, else -1
    A = R - mean of the group, then brought to mean 0 and variance 1 over all ids of the groups that
        differ (REINFORCE++ with a baseline)
    minimise - sum_t min(rho A, clip(rho, 1 - 0.2, 1 + 0.28) A) / active ids
    no KL, no entropy bonus
    an answer may have 2 blocks run, later 3, then 4, for a third of the steps each. The next one is
        not run. There, the answer goes on as if it were words. Here, it is told so once

What the paper finds to matter, and where it is here: masked outputs (`rl.observations`; in its code
a regular expression over decoded text, here the spans), the budget (`rl.budgets`), clip-higher
(`rl.epsilon_high`), no KL (`rl.beta`), no entropy bonus (`rl.entropy_coef`). The paper also finds
that blocks must be matched exactly, not by a stop string. Here fences are single ids, for which
there is nothing to match. +1/-1 or 1/0 makes no difference: whitening undoes any scale and shift.

The paper: 128 problems x 16, 300 steps, learning rate 1e-6, 4,096 ids on Qwen2.5-Math-7B, the
budget raised at steps 100 and 200 by hand.
"""

from __future__ import annotations

from nanotir import rl
from nanotir.answers import equivalent
from nanotir.demonstrate import demonstrations as demonstrations
from nanotir.metrics import mean
from nanotir.rewards import is_correct
from nanotir.rl import make_sampler
from nanotir.rollout import Sample
from nanotir.run import write_json

SETTINGS = {
    "tools": "python",
    "data": "generated:mul,power,gcd,lin,det,choose,quot,clock",
    "format": "fences",
    "sft.steps": 400,
    "rl.budgets": "2,3,4",
    "sampler.last_turn": True,
    "rl.scale": "whiten",
    "rl.dynamic": False,
    "rl.refills": 0,
    "reward.length": 0.0,
}


def improve(run):
    rl.train(run)
    write_json(run.out / "analysis.json", analyse(run))


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
