"""Imitation (supervised fine-tuning): raise the log-probability of what the teacher wrote.

Its words, its code and its stop id are learned, and never what a tool wrote.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from nanotir import optim
from nanotir.batches import Batch, micro_batches_of
from nanotir.checks import Amount, Count, Positive, Share, Whole, check_settings, one_of
from nanotir.logps import autocast, masked_logps
from nanotir.processes import gather
from nanotir.routing import Routing, router_loss
from nanotir.threads import backpropagate
from nanotir.trajectory import Trajectory


@dataclass
class SFTConfig:
    steps: Whole = 1200  # optimiser steps; 0 skips imitation
    batch_size: Count = 48  # demonstrations a step
    micro_batch_tokens: Count = 1536  # tokens in one forward pass; padding counts, if there is any
    lr: Amount = 0.01  # Muon's, for the blocks' matrices
    adam_lr: Amount = 6e-3  # AdamW's, for embeddings and norms
    muon: bool = True  # false: AdamW for the matrices as well, as pretrained models are used to
    warmup: Whole = 20  # steps of linear warm-up
    decay: Share = 0.5  # share of the steps, at the end, over which the learning rates fall to 0
    grad_clip: Positive = 1.0  # largest gradient norm
    bf16: bool = False  # matrix products in bfloat16, except on a CPU without AVX512_BF16
    observations: str = "masked"  # tool output is masked, or learned as if the teacher wrote it

    def __post_init__(self):
        check_settings(self, "sft")
        one_of("sft.observations", self.observations, ("masked", "learned"))


def train(run, demonstrations: list[Trajectory], phase: str = "sft"):
    """Imitate the demonstrations for run.config.sft.steps steps, going on where the run stands."""
    model, config = run.model, run.config.sft
    optimizers = [optim.adamw(model.parameters(), config.adam_lr)]
    if config.muon:
        optimizers = optim.muon_and_adamw(model, config.lr, config.adam_lr)
    model.train()
    if config.observations == "learned":
        demonstrations = [demonstration.with_output_in_mask() for demonstration in demonstrations]
    bar = run.remaining(phase, optimizers, config.steps)
    for step in bar:
        lr_share = optim.schedule(optimizers, step, config)
        batch = batch_of(step, demonstrations, config.batch_size, run.config.seed)
        metrics = imitate(model, optimizers, batch, run.tokenizer.pad_id, config)
        bar.set_postfix(loss=f"{metrics['loss']:.3f}")
        last = step + 1 == config.steps
        run.finish_step(step + 1, metrics | {"lr_share": lr_share}, optimizers, last)


def imitate(model, optimizers, batch: list[Trajectory], pad_id: int, config: SFTConfig) -> dict:
    """One optimiser step on the mean negative log-prob of all that the teacher wrote in the batch.

    Routers, if there are any, learn to spread the load; the logged loss leaves that out.
    """
    device = model.embed.weight.device
    num_active_tokens = sum(t.new_tokens for t in batch)  # one denominator for the whole step
    num_tokens = sum(len(t.ids) - 1 for t in batch)  # nothing follows the last id
    routed = model.config.n_experts > 0

    def loss_of(micro):
        routing = Routing() if routed else None
        with autocast(device, config.bf16):
            loss = imitation_loss(model, micro, num_active_tokens, routing)
        balanced, balance = router_loss(routing, micro.real[:, 1:], num_tokens, model.config)
        return loss + balanced, (loss.item(), balance)

    losses = backpropagate(model, loss_of, micro_batches_of(model, batch, pad_id, config))
    grad_norm = optim.step(model, optimizers, config.grad_clip)
    loss, router_aux = map(sum, zip(*gather(losses)))
    metrics = {"loss": loss, "grad_norm": grad_norm, "tokens": num_active_tokens}
    return metrics | ({"router_aux": router_aux} if routed else {})


def imitation_loss(model, micro: Batch, num_active_tokens: int, routing=None) -> Tensor:
    """A micro-batch's part of the mean negative log-prob of all that the teacher wrote: ().

    model(ids (B, T)) are the logits (B, T, V). micro.mask (B, T) is True exactly on what the
    teacher wrote, its stop ids included: prompts, tool output and padding give no gradient.
    num_active_tokens counts what it wrote in all micro-batches of the step. Hand `routing` on to
    model.hidden, or to masked_logps: a mixture of experts records there what it chose.
    """
    logps, _ = masked_logps(model, micro.ids, micro.mask, routing=routing)  # (B, T)
    return -logps.sum() / num_active_tokens


def batch_of(step: int, demonstrations: list, size: int, seed: int) -> list:
    """The demonstrations of one step, which the step alone determines.

    Every epoch is shuffled anew and cut into steps.
    """
    batch = []
    for position in range(step * size, (step + 1) * size):
        epoch, place = divmod(position, len(demonstrations))
        batch.append(demonstrations[shuffle(epoch, len(demonstrations), seed)[place]])
    return batch


@lru_cache(maxsize=2)
def shuffle(epoch: int, n: int, seed: int) -> list[int]:
    return random.Random(f"sft {seed} {epoch}").sample(range(n), n)
