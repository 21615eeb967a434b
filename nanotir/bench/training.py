"""Measurements of one optimiser step, of RL and of imitation."""

from __future__ import annotations

from dataclasses import replace

from nanotir import optim
from nanotir.advantages import group_advantages
from nanotir.bench.policy import Policy
from nanotir.bench.timing import medians, timed
from nanotir.rewards import score
from nanotir.rl import drawing_of, rescore, split, update
from nanotir.sft import imitate
from nanotir.trajectory import Trajectory


def rl_step(policy: Policy) -> dict:
    """One step of 32 problems x 8 samples with real tool calls, by phases.

    Every sample is learned from: no group is dropped.
    """
    config, sampler = policy.config.rl, policy.sampler()
    # With a learning rate of 0 the weights stay, so all rounds measure the same policy.
    optimizer = optim.adamw(policy.model.parameters(), lr=0.0)
    how = drawing_of(sampler)

    def learn(rows, rewards, parts):
        advantages = group_advantages(rewards, 8)
        for part in parts:
            chosen = [rows[row] for row in part]
            update(policy.model, optimizer, chosen, advantages[part], config, how)

    def measure(number):
        first = 32 * number
        problems = [policy.problems[i % len(policy.problems)] for i in range(first, first + 32)]
        asked = [problem for problem in problems for _ in range(8)]
        questions = [problem.question for problem in problems]

        rollout, rows = timed(sampler.generate, questions, 8, number)
        reward, (rewards, _) = timed(score, rows, asked, policy.tokenizer, policy.config.reward)
        parts = split(list(range(len(rows))), config.updates, seed=0, step=number)
        later = [rows[row] for part in parts[1:] for row in part]
        rescored, _ = timed(rescore, policy.model, later, config, how)
        updated, _ = timed(learn, rows, rewards, parts)
        return {
            "seconds": rollout + reward + rescored + updated,
            "rollout": rollout,
            "reward": reward,
            "rescore": rescored,
            "update": updated,
            "new_tokens": sum(row.new_tokens for row in rows),
            **count_calls(rows),
        }

    return medians(measure)


def count_calls(rows: list[Trajectory]) -> dict:
    """Calls, programs that were run, and the seconds they took. Equal calls share one result."""
    results = [call.result for row in rows for call in row.calls]
    runs = {id(result): result for result in results}
    return {
        "calls": len(results),
        "runs": len(runs),
        "tool_seconds": sum(result.seconds for result in runs.values()),
    }


def sft_step(policy: Policy) -> dict:
    """One optimiser step of imitation on 64 demonstrations."""
    shown = policy.demonstrations(512)
    settings = replace(policy.config.sft, lr=0.0, adam_lr=0.0)  # the weights stay
    optimizers = optim.muon_and_adamw(policy.model, settings.lr, settings.adam_lr)

    def measure(number):
        first = 64 * (number + 1) % 512
        batch = shown[first : first + 64]
        pad_id = policy.tokenizer.pad_id
        seconds, _ = timed(imitate, policy.model, optimizers, batch, pad_id, settings)
        tokens = sum(len(trajectory.ids) for trajectory in batch)
        return {"seconds": seconds, "tokens_per_second": tokens / seconds}

    return medians(measure)
