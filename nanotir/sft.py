"""Imitation: maximise the log-probability of what the teacher wrote (its words, its code, its stop id), never of what a tool said."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

import torch
from tqdm import tqdm

from nanotir.logps import autocast, trained_logps
from nanotir.model import Routing
from nanotir.muon import Muon
from nanotir.routing import router_loss
from nanotir.trajectory import micro_batches


@dataclass
class SFTConfig:
    steps: int = 600  # optimiser steps; 0 skips imitation
    batch_size: int = 64  # demonstrations a step
    micro_batch_tokens: int = 2048  # tokens in one forward pass, padding included
    lr: float = 0.01  # Muon's, for the blocks' matrices
    adam_lr: float = 6e-3  # AdamW's, for embeddings and norms
    warmup: int = 20  # steps of linear warm-up
    decay: float = 0.5  # share of the steps, at the end, over which the learning rates fall to 0
    grad_clip: float = 1.0  # largest gradient norm
    bf16: bool = False  # matrix products in bfloat16, except on a CPU without AVX-512
    observations: str = (
        "masked"  # tool output is masked; learned: imitated too, as if the teacher had written it
    )

    def __post_init__(self):
        if self.observations not in ("masked", "learned"):
            raise ValueError(f"sft.observations is masked or learned, not '{self.observations}'")


def learning_rate(step: int, steps: int, warmup: int, decay: float) -> float:
    """The share of the peak learning rate at a step: up linearly, flat, down linearly."""
    return min(1.0, (step + 1) / max(1, warmup), (steps - step) / max(1.0, decay * steps))


def set_learning_rate(optimizers, share: float):
    """Set every group to this share of the learning rate it was made with."""
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = group.setdefault("peak_lr", group["lr"]) * share


def make_optimizers(model, config: SFTConfig) -> list:
    """Muon (Jordan et al. 2024) for the matrices inside the blocks, AdamW for the rest. On models this small Muon learns to copy the
    question's numbers into a call in a third of AdamW's steps."""
    matrices = [
        p for name, p in model.named_parameters() if p.dim() == 2 and name.startswith("blocks.")
    ]
    rest = [
        p
        for name, p in model.named_parameters()
        if not (p.dim() == 2 and name.startswith("blocks."))
    ]
    return [
        Muon(matrices, lr=config.lr),
        torch.optim.AdamW(rest, lr=config.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def batch_of(step: int, demonstrations, size: int, seed: int) -> list:
    """The demonstrations of one step: every epoch is a shuffle of its own, cut into steps; the step alone determines them."""
    batch = []
    for position in range(step * size, (step + 1) * size):
        epoch, place = divmod(position, len(demonstrations))
        batch.append(demonstrations[shuffle(epoch, len(demonstrations), seed)[place]])
    return batch


@lru_cache(maxsize=2)
def shuffle(epoch: int, n: int, seed: int) -> list[int]:
    return random.Random(f"sft {seed} {epoch}").sample(range(n), n)


def imitate(model, optimizers, batch, pad_id: int, config: SFTConfig) -> dict:
    """One optimiser step on the mean negative log-prob of everything in the batch that the teacher wrote; routers, if any, learn to
    spread the load on the side, which the logged loss leaves out."""
    device = next(model.parameters()).device
    num_active_tokens = sum(
        trajectory.new_tokens for trajectory in batch
    )  # one denominator for the whole step
    num_tokens = sum(
        len(trajectory.ids) - 1 for trajectory in batch
    )  # that pass through the model: nothing follows the last
    loss, router_aux, routed = 0.0, 0.0, model.config.n_experts > 0
    for micro in micro_batches(batch, pad_id, config.micro_batch_tokens, device):
        routing = Routing() if routed else None
        with autocast(device, config.bf16):
            logps, _ = trained_logps(model, micro.ids, micro.mask, routing=routing)
        micro_loss = -logps.sum() / num_active_tokens
        loss += micro_loss.item()
        if routed:
            spread, balance = router_loss(routing, micro.real[:, 1:], num_tokens, model.config)
            micro_loss, router_aux = micro_loss + spread, router_aux + balance
        micro_loss.backward()
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip).item()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return {"loss": loss, "grad_norm": grad_norm, "tokens": num_active_tokens} | (
        {"router_aux": router_aux} if routed else {}
    )


def train(run, demonstrations, phase: str = "sft"):
    """Imitate the demonstrations for run.config.sft.steps steps, going on where the run stands."""
    model, config, seed = run.model, run.config.sft, run.config.seed
    optimizers = make_optimizers(model, config)
    first = run.restore(phase, optimizers) if config.steps else None
    if first is None:
        return
    model.train()
    if config.observations == "learned":
        demonstrations = [demonstration.unmasked() for demonstration in demonstrations]
    bar = tqdm(
        range(first, config.steps),
        initial=first,
        total=config.steps,
        desc=phase,
        dynamic_ncols=True,
    )
    for step in bar:
        share = learning_rate(step, config.steps, config.warmup, config.decay)
        set_learning_rate(optimizers, share)
        batch = batch_of(step, demonstrations, config.batch_size, seed)
        metrics = imitate(model, optimizers, batch, run.tokenizer.pad_id, config)
        bar.set_postfix(loss=f"{metrics['loss']:.3f}")
        run.finish_step(
            step + 1, metrics | {"lr_share": share}, optimizers, last=step + 1 == config.steps
        )
