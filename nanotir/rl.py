"""Reinforcement learning: rollout, reward, advantage, loss, step. One flat loop.

    problems -> G samples each -> rewards -> advantages -> micro-batches -> policy loss -> step

GRPO and its relatives differ in settings only. Sampler and trainer share weights and code, so they
agree on the log-prob of every sampled id up to float noise (`logp_gap`, about 1e-5). The loss's
old_logps are the trainer's own. The first update after a rollout takes them from its own forward
pass, since the weights have not changed yet: its ratios are exactly 1. For later updates `rescore`
computes them before the first.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from tqdm import tqdm

from nanotir import optim
from nanotir.advantages import BASELINES, SCALES, group_advantages
from nanotir.batches import Batch, Drawing, drawing_of, micro_batches_of
from nanotir.checks import Amount, Count, Positive, Several, Share, Whole, check_settings, one_of
from nanotir.held_out import budget
from nanotir.kernels import fused_logps
from nanotir.logps import autocast, masked_logits, masked_logps, spread
from nanotir.losses import LOSSES, LossOptions, over_tokens, policy_loss
from nanotir.metrics import (
    combine_metrics,
    first_loss_explained,
    largest_gap,
    rollout_metrics,
    show,
    step_metrics,
    trace,
)
from nanotir.processes import gather
from nanotir.reference import follow, reference_logps, starting_policy
from nanotir.rollout import Sample, check_tools, collect
from nanotir.routing import Routing, router_loss
from nanotir.sampler import Sampler
from nanotir.selection import chosen, learned_from
from nanotir.threads import backpropagate, each
from nanotir.trajectory import Trajectory


@dataclass
class RLConfig:
    steps: Whole = 32  # rollouts; 0 skips reinforcement learning
    problems: Count = 32  # groups that a step learns from
    group_size: Several = 8  # samples of each problem
    keep: Whole = 0  # answers of a group to learn from: right ones with the fewest failed calls,
    # and wrong ones in proportion (GRPO-RoC); 0: all
    drop_void: bool = False  # do not learn from rollouts that end without an answer (SimpleTIR)
    refills: Whole = 1  # more rounds of sampling, while groups without spread leave the batch short
    updates: Count = 2  # optimiser steps on each rollout, each on its share of the rows
    iterations: Count = 1  # how often the same rows are learned from (mu in GRPO)
    lr: Amount = 2.5e-4  # AdamW's
    warmup: Whole = 3  # steps of linear warm-up
    decay: Share = 0.5  # share of the steps, at the end, over which the learning rate falls to 0
    grad_clip: Positive = 1.0  # largest gradient norm
    micro_batch_tokens: Count = 2048  # tokens in one forward pass; padding counts, if there is any
    bf16: bool = False  # matrix products in bfloat16, except on a CPU without AVX512_BF16
    loss_type: str = "dapo"  # a row of losses.LOSSES, such as dapo, grpo, dr_grpo or cispo
    ratio_level: str = "token"  # one importance ratio per token, or one per sequence (GSPO)
    epsilon: Amount = 0.2  # the ratio is clipped below 1 - epsilon
    epsilon_high: Amount = 0.28  # and above 1 + epsilon_high; cispo: above epsilon_high itself
    delta: Amount = 0.0  # bounds the ratio where A < 0 as well (dual clip), 3 say; 0: no bound
    beta: Amount = 0.0  # weight of the KL to the policy that RL started from
    sync_every: Whole = 0  # steps after which that policy follows the trained one; 0: it stays
    sync_mix: Share = 0.6  # the trained one's share in it then
    kl: str = "k3"  # its estimator: k1, k2, k3, or k3_weighted, which is unbiased off-policy too,
    # with ratios of tokens
    entropy_coef: Amount = 0.0  # weight of a bonus for entropy
    scale: str = "group"  # divides advantages: group, batch (a std) or none; or whiten, whiten_all
    baseline: str = "mean"  # subtracted from rewards: the group's mean, or leave_one_out
    dynamic: bool = True  # learn only from groups that differ in correctness (dynamic sampling)
    observations: str = "masked"  # tool output is masked; counted: in the denominator only;
    # learned: as if the model had written it
    budgets: str = ""  # sampler.max_calls in equal parts of the run, as 2,3,4 (CIR)
    importance_cap: Amount = 0.0  # weigh ids by trainer's / sampler's probability, at most this;
    # for sampler.bf16, 2 say; 0: no weights
    fused: bool = False  # log-probs by one Triton kernel (needs triton and a GPU)

    def __post_init__(self):
        check_settings(self, "rl")
        one_of("scale", self.scale, SCALES)
        one_of("baseline", self.baseline, BASELINES)
        one_of("observations", self.observations, ("masked", "counted", "learned"))
        options = self.loss_options(max_completion_length=1)  # checks the names
        if self.observations == "counted" and LOSSES[options.loss_type][1] is not over_tokens:
            divides = f"{self.loss_type} does not divide by the number of ids"
            raise ValueError(f"observations counted does nothing here: {divides}, as dapo does")
        if not all(part.strip().isdecimal() for part in self.budgets.split(",") if self.budgets):
            raise ValueError(f"budgets ({self.budgets}) must be whole numbers, as 2,3,4")
        if self.loss_type == "cispo" and self.epsilon_high < 1:
            cap = "cispo caps the ratio itself, not its distance from 1"
            raise ValueError(f"{cap}: set epsilon_high to 5, say, not {self.epsilon_high}")
        if self.delta and self.loss_type in ("cispo", "sapo", "gmpo", "vespo"):
            raise ValueError(f"rl.delta does nothing here: {self.loss_type} has no such clip")
        if self.delta and self.delta <= 1 + self.epsilon_high:
            bound = f"1 + epsilon_high ({1 + self.epsilon_high})"
            raise ValueError(f"delta ({self.delta}) must lie above {bound}, or be 0")
        if self.ratio_level == "sequence" and self.loss_type in ("gmpo", "vespo"):
            whole = f"{self.loss_type} has a ratio of the whole answer already"
            raise ValueError(f"rl.ratio_level sequence does nothing here: {whole}")
        if self.baseline == "leave_one_out" and self.scale.startswith("whiten"):
            same = "whitened, advantages are the same with both baselines"
            raise ValueError(f"rl.baseline leave_one_out does nothing here: {same}")
        if self.keep == 1 or self.keep > self.group_size:
            raise ValueError(f"rl.keep ({self.keep}) must be 2 to rl.group_size, or 0")
        if self.sync_every and not self.beta:
            raise ValueError("rl.sync_every needs a reference: set rl.beta to 0.01, say")
        if self.fused and self.entropy_coef:
            raise ValueError("rl.fused computes no entropy: leave out rl.entropy_coef")

    def loss_options(self, max_completion_length: int) -> LossOptions:
        named = {option.name for option in fields(LossOptions)}
        options = {name: value for name, value in vars(self).items() if name in named}
        options["delta"] = self.delta or None
        if self.loss_type == "bnpo":
            # In training, bnpo is dapo: every micro-batch is divided by the update's count.
            options["loss_type"] = "dapo"
        return LossOptions(**options, max_completion_length=max_completion_length)


def train(run):
    """Improve run.model for run.config.rl.steps steps, going on where the run stands."""
    model, config, settings = run.model, run.config, run.config.rl
    optimizer = optim.adamw(model.parameters(), settings.lr)
    bar = run.remaining("rl", [optimizer], settings.steps)
    reference = starting_policy(model, run) if settings.beta else None
    results = {tool.name: [] for tool in run.tools}  # of the last calls: is the tool alive?
    for step in bar:
        optim.schedule([optimizer], step, settings)

        # 1. Sample groups of answers, with tool calls, and 2. grade them.
        started = time.perf_counter()
        calls = budget(settings.budgets, step, settings.steps, config.sampler.max_calls)
        sampler = make_sampler(run, max_calls=calls)
        rollout = collect(sampler, run.problems, settings, config.reward, config.seed, step)
        check_tools(rollout, results)

        # 3. Compute the trainer's log-probs of what the updates after the first learn from.
        sampled = time.perf_counter()
        how = drawing_of(sampler)
        samples = chosen(rollout.kept, settings, config.seed, step)
        trajectories, learned_rows = learned_from(samples, settings, run.tokenizer)
        shares = split(learned_rows, settings.updates, config.seed, step)
        first, later = shares[:1], shares[1:]  # no shares: there is nothing to learn from
        rescore(model, [trajectories[row] for rows in later for row in rows], settings, how)

        # 4. Advantages. 5. The loss and 6. an optimiser step, for each share of the rows.
        advantages = advantages_of(samples, trajectories, settings)
        updates = []
        for rows in shares * settings.iterations:
            given = ([trajectories[row] for row in rows], advantages[rows])
            updates.append(update(model, optimizer, *given, settings, how, reference))
        exchange([trajectories[row] for rows in first for row in rows])
        follow(reference, model, run, step)

        # 7. Log, and save when it is time.
        metrics = rollout_metrics(rollout.samples, rollout.kept, settings.group_size)
        metrics |= step_metrics(updates)
        if updates:
            metrics["logp_gap"] = largest_gap([sample.trajectory for sample in samples])
        metrics["seconds_rollout"] = sampled - started
        metrics["seconds_update"] = time.perf_counter() - sampled
        if updates and step == 0 and settings.loss_type == "dapo":
            tqdm.write(first_loss_explained(updates[0]))
        show(bar, metrics)
        trace(samples, advantages, run, step)
        run.finish_step(step + 1, metrics, [optimizer], last=step + 1 == settings.steps)


def make_sampler(run, **changes) -> Sampler:
    """The run's sampler, with changes to its settings."""
    config = replace(run.config.sampler, **changes)
    return Sampler(run.model, run.tokenizer, run.tools, run.format, config)


def rescore(model, trajectories: list[Trajectory], settings: RLConfig, how: Drawing) -> float:
    """Fill in old_logps, the trainer's. Returns their largest_gap from the sampler's.

    They do not depend on which rows happened to share a batch while tools were slow. The sampler's
    do, in their last bits, and so does the difference: two equal runs may log another one.
    """
    device = model.embed.weight.device

    def rescore_one(micro):
        with autocast(device, settings.bf16), torch.no_grad():
            logps, _ = masked_logps(model, micro.ids, micro.mask, how.temperature, how.banned)
        write_old_logps(trajectories, micro, logps)

    micros = micro_batches_of(model, trajectories, how.pad_id, settings)
    list(each(rescore_one, micros))
    exchange(trajectories)
    return largest_gap(trajectories)


def write_old_logps(trajectories: list[Trajectory], micro: Batch, logps: Tensor):
    """Write a micro-batch's log-probs to old_logps, in place: copies share the lists."""
    for row, values in zip(micro.rows, logps.tolist()):
        trajectories[row].old_logps[:] = values[: len(trajectories[row].ids)]


def exchange(trajectories: list[Trajectory]):
    """Give all processes the old_logps that each has filled in for its share of the rows."""
    own = [(row, t.old_logps) for row, t in enumerate(trajectories) if t.old_logps]
    for row, old_logps in gather(own):
        trajectories[row].old_logps[:] = old_logps


def advantages_of(samples: list[Sample], trajectories, settings: RLConfig) -> Tensor:
    rewards = [sample.reward for sample in samples]
    num_tokens = torch.tensor([t.new_tokens for t in trajectories])
    size = settings.keep or settings.group_size
    return group_advantages(rewards, size, settings.scale, settings.baseline, num_tokens=num_tokens)


def update(
    model,
    optimizer,
    trajectories: list[Trajectory],
    advantages: Tensor,
    settings: RLConfig,
    how: Drawing,
    reference=None,
) -> dict:
    """One optimiser step, in micro-batches whose losses have one denominator: the whole update's.

    Routers, if there are any, learn to spread the load; the logged loss leaves that out.
    """
    device = model.embed.weight.device
    num_active_tokens = active_tokens(trajectories, settings)
    num_tokens = sum(len(t.ids) - 1 for t in trajectories)  # nothing follows the last id

    def loss_of(micro):
        routing = Routing() if model.config.n_experts else None
        with autocast(device, settings.bf16):
            logps, entropy = policy_logps(model, micro, settings, how, routing)
            old_logps = logps_before(trajectories, micro, logps)
            loss, metrics = policy_loss(
                logps,
                old_logps,
                advantages[micro.rows].to(device),
                micro.mask,
                entropy=entropy,
                ref_logps=reference_logps(reference, micro, how),
                importance_weights=importance_weights(old_logps, micro, settings),
                num_active_tokens=num_active_tokens,
                num_rows=len(trajectories),
                **vars(settings.loss_options(how.max_new_tokens)),
            )
        balanced, balance = router_loss(routing, micro.real[:, 1:], num_tokens, model.config)
        return loss + balanced, (loss.item(), balance, metrics)

    micros = micro_batches_of(model, trajectories, how.pad_id, settings)
    seen = gather(backpropagate(model, loss_of, micros))
    grad_norm = optim.step(model, [optimizer], settings.grad_clip)
    losses, balances, metrics = zip(*seen)
    metrics = {"loss": sum(losses), "grad_norm": grad_norm, **combine_metrics(metrics)}
    return metrics | ({"router_aux": sum(balances)} if model.config.n_experts else {})


def logps_before(trajectories: list[Trajectory], micro: Batch, logps: Tensor) -> Tensor:
    """The trainer's log-probs (B, T) before this update.

    Those of rescore. Where there are none, as in the first update after a rollout, these are they.
    """
    if all(trajectories[row].old_logps for row in micro.rows):
        return micro.old_logps
    write_old_logps(trajectories, micro, logps)
    return logps.detach()


def active_tokens(trajectories: list[Trajectory], settings: RLConfig) -> int:
    """The denominator of the loss: the ids that the model chose, or tool output as well."""
    if settings.observations == "counted":
        trajectories = [trajectory.with_output_in_mask() for trajectory in trajectories]
    return sum(trajectory.new_tokens for trajectory in trajectories)


def policy_logps(model, micro: Batch, settings: RLConfig, how: Drawing, routing=None):
    """(log-probs, entropies), both (B, T), of a micro-batch; rl.fused computes no entropies."""
    if not settings.fused:
        return masked_logps(
            model, micro.ids, micro.mask, how.temperature, how.banned, entropy=True, routing=routing
        )
    logits = masked_logits(model, micro.ids, micro.mask, how.banned, routing)  # (N, V)
    targets = micro.ids[:, 1:][micro.mask[:, 1:]]  # (N,)
    return spread(fused_logps(logits, targets, how.temperature), micro.mask), None


def importance_weights(old_logps: Tensor, micro: Batch, settings: RLConfig) -> Tensor | None:
    """The trainer's probability of each id over the sampler's, at most rl.importance_cap."""
    if not settings.importance_cap:
        return None
    weights = (old_logps - micro.logps).exp().clamp(max=settings.importance_cap)
    # Tool output that is learned from was not sampled: its log-prob is 0, and its weight is 1.
    return torch.where(micro.logps == 0, 1.0, weights)


def split(rows: list[int], parts: int, seed: int, step: int) -> list[list[int]]:
    """Rows, shuffled and dealt out to the step's updates; none where there is nothing to learn."""
    rows = random.Random(f"split {seed} {step}").sample(rows, len(rows))
    return [rows[i::parts] for i in range(parts) if rows[i::parts]]
