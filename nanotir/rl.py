"""Reinforcement learning: rollout, reward, advantage, loss, step. One flat loop; GRPO and its kin differ only in settings.

    problems -> G trajectories each -> rewards -> group advantages -> micro-batches -> policy loss -> AdamW

Sampler and trainer share weights and code, so they agree on the log-prob of every sampled id but for float noise. `rescore` checks
that on every rollout (`logp_gap`, about 1e-5) and keeps the trainer's, which do not depend on which rows happened to share a batch
while tools were slow. So the first update of a rollout sees ratios of 1.
"""

from __future__ import annotations

import copy
import random
import time
from collections import Counter
from dataclasses import dataclass, field, replace

import torch
from tqdm import tqdm

from nanotir.logps import active_logits, autocast, trained_logps
from nanotir.losses import (
    BASELINES,
    KL_ESTIMATORS,
    LOSS_TYPES,
    RATIO_LEVELS,
    SCALES,
    check_fused,
    combine_metrics,
    fused_policy_loss,
    group_advantages,
    one_of,
    policy_loss,
)
from nanotir.model import Routing
from nanotir.rewards import score
from nanotir.routing import router_loss
from nanotir.sampler import Sampler
from nanotir.sft import learning_rate, set_learning_rate
from nanotir.tools import check_alive
from nanotir.trajectory import OBSERVATIONS, Trajectory, micro_batches


@dataclass
class RLConfig:
    steps: int = 32  # rollouts; 0 skips reinforcement learning
    problems: int = 32  # groups that an update learns from
    group_size: int = 8  # samples of each problem
    refills: int = 1  # more rounds of sampling while groups without spread of correctness leave the batch short
    updates: int = 2  # optimiser steps on each rollout, each on its share of the rows
    lr: float = 4e-4  # AdamW's
    warmup: int = 3  # steps of linear warm-up
    decay: float = 0.5  # share of the steps, at the end, over which the learning rate falls to 0
    grad_clip: float = 1.0  # largest gradient norm
    micro_batch_tokens: int = 2048  # tokens in one forward pass, padding included
    bf16: bool = False  # matrix products in bfloat16, except on a CPU without AVX-512 (then sampler and trainer agree less well: see logp_gap)
    loss_type: str = "dapo"  # grpo, bnpo, dr_grpo, dapo, luspo (the clipped loss, added up in five ways), cispo, sapo, gmpo or vespo
    ratio_level: str = "token"  # one importance ratio per token, or one per sequence (GSPO)
    epsilon: float = 0.2  # the ratio is clipped below 1 - epsilon
    epsilon_high: float = (
        0.28  # and above 1 + epsilon_high (clip-higher); cispo: above epsilon_high itself, 5 say
    )
    delta: float = 0.0  # and above delta where the advantage is negative (dual clip), 3 say; 0 sets no such bound
    beta: float = 0.0  # weight of the KL to the policy that RL started from
    kl: str = "k3"  # its estimator: k1, k2, k3, or k3_weighted, which is unbiased off-policy too
    entropy_coef: float = 0.0  # bonus for an undecided policy
    scale: str = "group"  # advantages are divided by the std of their group, of the batch, by none, or whitened over all tokens (REINFORCE++)
    baseline: str = "mean"  # subtracted from rewards: the group's mean, or leave_one_out
    dynamic: bool = (
        True  # learn only from groups that differ in correctness (DAPO's dynamic sampling)
    )
    observations: str = "masked"  # tool output is masked; counted: in the denominator only; learned: as if the model had written it
    budgets: str = ""  # sampler.max_calls in equal parts of the run, as 2,3,4 (CIR); empty: the same throughout
    filter_overlong: bool = (
        False  # answers cut at max_new_tokens count in their group's mean but are not learned from
    )
    fused: bool = False  # one Triton kernel from logits to loss (needs triton and a GPU; elsewhere the same sums in PyTorch)

    def __post_init__(self):
        known = {
            "loss_type": LOSS_TYPES,
            "ratio_level": RATIO_LEVELS,
            "kl": KL_ESTIMATORS,
            "scale": SCALES,
            "baseline": BASELINES,
            "observations": OBSERVATIONS,
        }
        for what, names in known.items():
            one_of(what, getattr(self, what), names)
        if not all(budget.strip().isdigit() for budget in self.budgets.split(",") if self.budgets):
            raise ValueError(f"budgets ({self.budgets}) must be whole numbers, as 2,3,4")
        if self.loss_type == "cispo" and self.epsilon_high < 1:
            raise ValueError(
                f"cispo caps the ratio itself, not its distance from 1: set epsilon_high to 5, say, not {self.epsilon_high}"
            )
        if self.delta and self.delta <= 1 + self.epsilon_high:
            raise ValueError(
                f"delta ({self.delta}) must lie above 1 + epsilon_high ({1 + self.epsilon_high}), or be 0"
            )
        if self.fused:
            check_fused(
                self.loss_type,
                ratio_level=self.ratio_level,
                kl=self.kl,
                entropy_coef=self.entropy_coef,
            )
        if min(self.problems, self.updates) < 1 or self.group_size < 2 or self.refills < 0:
            raise ValueError(
                "rl needs at least 1 problem and 1 update a step, groups of at least 2 (an answer is compared with its siblings), and refills >= 0"
            )


@dataclass
class Rollout:
    """What one step learns from: whole groups, in order, and what there is to say about everything that was sampled."""

    trajectories: list[Trajectory] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    sampled: list[tuple] = field(
        default_factory=list
    )  # (problem, trajectory, reward, correct) of every sample, kept or not


def collect(
    sampler: Sampler, problems, config: RLConfig, reward_config, seed: int, step: int
) -> Rollout:
    """Dynamic sampling (DAPO, Yu et al. 2025, section 3.2): keep groups that differ in correctness, refill up to a cap.

    A group that is all right or all wrong has no spread *of correctness*: its length terms may differ, but would teach only brevity.
    """
    rollout, wanted = Rollout(), config.problems
    for round in range(1 + config.refills):
        drawn = random.Random(f"rl {seed} {step} {round}").sample(
            problems, min(wanted, len(problems))
        )
        samples = sampler.generate(
            [p.question for p in drawn], config.group_size, seed=hash_of(seed, step, round)
        )
        asked = [problem for problem in drawn for _ in range(config.group_size)]
        rewards, parts = score(samples, asked, sampler.tokenizer, reward_config)
        rollout.sampled += zip(asked, samples, rewards, parts["accuracy"])
        for start in range(0, len(samples), config.group_size):
            group = slice(start, start + config.group_size)
            if wanted and (len(set(parts["outcome"][group])) > 1 or not config.dynamic):
                rollout.trajectories += samples[group]
                rollout.rewards += rewards[group]
                wanted -= 1
        if not wanted:
            break
    return rollout


def hash_of(*keys: int) -> int:
    """One seed out of several numbers."""
    return random.Random(" ".join(map(str, keys))).getrandbits(63)


@torch.no_grad()
def rescore(model, trajectories, config: RLConfig, sampler: Sampler) -> float:
    """Replace the sampler's log-probs by the trainer's. Returns the largest difference there was: float noise, or a bug."""
    device, gap = next(model.parameters()).device, 0.0
    for micro in micro_batches(
        trajectories, sampler.tokenizer.pad_id, config.micro_batch_tokens, device
    ):
        with autocast(device, config.bf16):
            logps, _ = trained_logps(
                model, micro.ids, micro.mask, sampler.config.temperature, sampler.banned
            )
        gap = max(
            gap, (logps - micro.logps).abs().max().item()
        )  # both are 0 where nothing was sampled
        for row, values in zip(micro.rows, logps.tolist()):
            trajectories[row].logps = values[: len(trajectories[row].ids)]
    return gap


def update(
    model, optimizer, trajectories, advantages, config: RLConfig, sampler: Sampler, reference=None
) -> dict:
    """One optimiser step. Every micro-batch's loss is divided by what the whole step holds, so that together they are one batch. Routers,
    if any, learn to spread the load on the side, which the logged loss leaves out."""
    device = next(model.parameters()).device
    num_active_tokens = sum(t.new_tokens for t in trajectories)
    if (
        config.observations == "counted"
    ):  # as where the mask sets the advantages to 0 and the loss is averaged over whole answers
        num_active_tokens = sum(t.unmasked().new_tokens for t in trajectories)
    options = dict(
        loss_type=config.loss_type,
        ratio_level=config.ratio_level,
        epsilon=config.epsilon,
        epsilon_high=config.epsilon_high,
        delta=config.delta or None,
        beta=config.beta,
        kl=config.kl,
        entropy_coef=config.entropy_coef,
        max_completion_length=sampler.config.max_new_tokens,
        num_active_tokens=num_active_tokens,
        num_rows=len(trajectories),
    )
    num_tokens = sum(
        len(t.ids) - 1 for t in trajectories
    )  # that pass through the model: nothing follows the last
    seen, loss, router_aux, routed = [], 0.0, 0.0, model.config.n_experts > 0
    for micro in micro_batches(
        trajectories, sampler.tokenizer.pad_id, config.micro_batch_tokens, device
    ):
        routing = Routing() if routed else None
        with autocast(device, config.bf16):
            micro_loss, metrics = micro_batch_loss(
                model,
                reference,
                micro,
                advantages[micro.rows].to(device),
                config.fused,
                sampler,
                options,
                routing,
            )
        if (
            config.loss_type == "bnpo"
        ):  # a mean over the micro-batch's own tokens counts by how many they are
            micro_loss = micro_loss * metrics["active_tokens"] / max(num_active_tokens, 1)
        loss += micro_loss.item()
        if routed:
            spread, balance = router_loss(routing, micro.real[:, 1:], num_tokens, model.config)
            micro_loss, router_aux = micro_loss + spread, router_aux + balance
        micro_loss.backward()
        seen.append(metrics)
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip).item()
    optimizer.step()
    optimizer.zero_grad()
    return {"loss": loss, "grad_norm": grad_norm, **combine_metrics(seen)} | (
        {"router_aux": router_aux} if routed else {}
    )


def micro_batch_loss(
    model,
    reference,
    micro,
    advantages,
    fused: bool,
    sampler: Sampler,
    options: dict,
    routing: Routing | None = None,
):
    """(loss, metrics) of one micro-batch: the policy's log-probs, the reference's where there is one, and the loss. `routing` is the policy's."""
    temperature, banned = sampler.config.temperature, sampler.banned
    with torch.no_grad():
        options = options | {
            "ref_logps": trained_logps(reference, micro.ids, micro.mask, temperature, banned)[0]
            if reference
            else None
        }
    if fused:
        logits = active_logits(model, micro.ids, micro.mask, banned, routing)
        return fused_policy_loss(
            logits,
            micro.ids,
            micro.logps,
            advantages,
            micro.mask,
            temperature=temperature,
            **options,
        )
    logps, entropy = trained_logps(
        model, micro.ids, micro.mask, temperature, banned, entropy=True, routing=routing
    )
    return policy_loss(logps, micro.logps, advantages, micro.mask, entropy=entropy, **options)


def train(run):
    """Improve run.model on run.problems for run.config.rl.steps steps, going on where the run stands. DeadTool where a tool only fails."""
    model, config, settings = run.model, run.config, run.config.rl
    sampler = Sampler(model, run.tokenizer, run.tools, run.format, config.sampler)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.lr, betas=(0.9, 0.95), weight_decay=0.0
    )
    first = run.restore("rl", [optimizer]) if settings.steps else None
    if first is None:
        return
    reference = starting_policy(model, run) if settings.beta else None
    bar = tqdm(
        range(first, settings.steps),
        initial=first,
        total=settings.steps,
        desc="rl",
        dynamic_ncols=True,
    )
    explained, results = first > 0, {tool.name: [] for tool in run.tools}
    for step in bar:
        started = time.perf_counter()
        set_learning_rate(
            [optimizer], learning_rate(step, settings.steps, settings.warmup, settings.decay)
        )
        sampler.config = replace(
            config.sampler, max_calls=budget(settings, step, config.sampler.max_calls)
        )
        rollout = collect(sampler, run.problems, settings, config.reward, config.seed, step)
        check_tools(rollout, results)
        sampled = time.perf_counter()

        logp_gap = rescore(
            model, [trajectory for _, trajectory, *_ in rollout.sampled], settings, sampler
        )
        trajectories = rollout.trajectories
        if settings.observations == "learned":
            trajectories = [trajectory.unmasked() for trajectory in trajectories]
            rescore(model, trajectories, settings, sampler)
        num_tokens = torch.tensor([t.new_tokens for t in trajectories])
        advantages = group_advantages(
            rollout.rewards,
            settings.group_size,
            settings.scale,
            settings.baseline,
            num_tokens=num_tokens,
        )
        updates = []
        for rows in split(learnable(trajectories, settings), settings.updates, config.seed, step):
            chosen = [trajectories[row] for row in rows]
            updates.append(
                update(model, optimizer, chosen, advantages[rows], settings, sampler, reference)
            )

        metrics = describe(rollout, settings) | {"logp_gap": logp_gap} | summarise(updates)
        metrics |= {
            "seconds_rollout": sampled - started,
            "seconds_update": time.perf_counter() - sampled,
        }
        if updates and not explained:
            tqdm.write(first_loss_explained(updates[0]))
            explained = True
        bar.set_postfix(
            reward=f"{metrics['reward']:.2f}",
            right=f"{metrics['accuracy']:.0%}",
            tools=f"{metrics['tool_rate']:.0%}",
            len=f"{metrics['new_tokens']:.0f}",
            clip=f"{metrics.get('clip_low', 0) + metrics.get('clip_high', 0):.1%}",
        )
        if step % max(1, settings.steps // 20) == 0:
            trace(rollout, advantages, run, step + 1)
        run.finish_step(step + 1, metrics, [optimizer], last=step + 1 == settings.steps)


def budget(config: RLConfig, step: int, otherwise: int) -> int:
    """How many calls an answer may make at a step: CIR's schedule, each part as long as the others."""
    budgets = [int(calls) for calls in config.budgets.split(",")] if config.budgets else [otherwise]
    return budgets[step * len(budgets) // config.steps]


def learnable(trajectories, config: RLConfig) -> list[int]:
    """The numbers of the rows to learn from. Overlong filtering (DAPO, section 3.4): an answer cut short says nothing about its own words."""
    return [
        row
        for row, t in enumerate(trajectories)
        if not (config.filter_overlong and t.finish_reason == "length")
    ]


def split(rows: list[int], parts: int, seed: int, step: int) -> list[list[int]]:
    """Rows, shuffled and dealt out to the step's updates; none where there is nothing to learn from."""
    rows = random.Random(f"split {seed} {step}").sample(rows, len(rows))
    return [rows[i::parts] for i in range(parts) if rows[i::parts]]


def starting_policy(model, run):
    """The policy that RL started from, frozen. It travels with the checkpoint: after a resume, `model` is no longer it."""
    reference = copy.deepcopy(model).requires_grad_(False)
    run.state.setdefault("reference", reference.state_dict())
    reference.load_state_dict(run.state["reference"])
    return reference


def describe(rollout: Rollout, config: RLConfig) -> dict:
    """What was sampled in a step, kept or not. Each metric is explained in the README's table."""
    problems, trajectories, rewards, correct = zip(*rollout.sampled)
    length = lambda right: [t.new_tokens for t, c in zip(trajectories, correct) if c == right]
    n, size = len(trajectories), config.group_size
    groups = [correct[start : start + size] for start in range(0, n, size)]
    calls = [call for t in trajectories for call in t.calls]
    kinds = sorted({problem.kind or problem.family for problem in problems})
    per = lambda kind: [
        len(t.calls) for p, t in zip(problems, trajectories) if (p.kind or p.family) == kind
    ]
    return {
        "reward": sum(rewards) / n,
        "accuracy": sum(correct) / n,
        "groups_sampled": len(groups),
        "groups_kept": len(rollout.trajectories) // size,
        "groups_without_spread": sum(len(set(group)) == 1 for group in groups) / len(groups),
        "tool_rate": sum(bool(t.calls) for t in trajectories) / n,
        "calls": len(calls) / n,
        "calls_by_kind": {kind: round(sum(per(kind)) / len(per(kind)), 3) for kind in kinds},
        "call_status": dict(Counter(call.result.status for call in calls)),
        "new_tokens": sum(t.new_tokens for t in trajectories) / n,
        "finish": dict(Counter(t.finish_reason for t in trajectories)),
    } | {
        f"new_tokens_{name}": sum(length(right)) / len(length(right))
        for name, right in (("right", 1), ("wrong", 0))
        if length(right)
    }


def summarise(updates: list[dict]) -> dict:
    """The updates of one step as one row, empty where no group was worth an update."""
    if not updates:
        return {}
    mean = {name: sum(u[name] for u in updates) / len(updates) for name in ("loss", "grad_norm")}
    return {**combine_metrics(updates), **mean}


def first_loss_explained(first: dict) -> str:
    return (
        f"first update: the loss is {first['loss']:+.4f}, which says nothing about learning: the ratio of new to old policy is still "
        f"{first['ratio_mean']:.4f} everywhere, so the loss is minus the mean advantage over all ids, 0 but for the different lengths of answers, "
        f"and nothing is clipped ({first['clip_low'] + first['clip_high']:.0%}). What teaches is its gradient, of norm {first['grad_norm']:.3f}."
    )


def check_tools(rollout: Rollout, results: dict):
    """DeadTool where a tool only fails. `results` holds each tool's, by name, until there are enough to tell; then it starts anew."""
    for call in (call for _, trajectory, *_ in rollout.sampled for call in trajectory.calls):
        results[call.tool].append(call.result)
    for name, seen in results.items():
        check_alive(name, seen)
        results[name] = seen if len(seen) < 32 else []


def trace(rollout: Rollout, advantages, run, step: int):
    """Write down one whole group that was learned from: its samples side by side show the baseline at work."""
    problem_of = {id(t): (p, correct) for p, t, _, correct in rollout.sampled}
    for trajectory, reward, advantage in zip(
        rollout.trajectories[: run.config.rl.group_size], rollout.rewards, advantages.tolist()
    ):
        problem, correct = problem_of[id(trajectory)]
        row = {
            "phase": "rl",
            "step": step,
            "question": problem.question,
            "answer": problem.answer,
            "family": problem.family,
        }
        run.log(
            row
            | {"reward": reward, "correct": correct, "advantage": advantage}
            | trajectory.record(run.tokenizer),
            "traces.jsonl",
        )
