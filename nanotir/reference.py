"""The reference policy of rl.beta: the policy that RL started from, or one that follows slowly."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from nanotir.batches import Batch, Drawing
from nanotir.logps import masked_logps
from nanotir.lora import load_weights, weights_of


def starting_policy(model, run):
    """The policy that RL started from, frozen. A checkpoint holds it, for runs that are resumed.

    Of a model with adapters, only they are copied: the two share the weights that are frozen.
    """
    shared = {id(weight): weight for weight in model.parameters() if not weight.requires_grad}
    reference = copy.deepcopy(model, shared).requires_grad_(False)
    run.state.setdefault("reference", weights_of(reference))
    load_weights(reference, run.state["reference"])
    return reference


@torch.no_grad()
def follow(reference, model, run, step: int):
    """Every rl.sync_every steps, reference = mix * policy + (1 - mix) * reference.

    mix is rl.sync_mix. The soft update of TR-DPO (Gorbatovski et al. 2024).
    """
    settings = run.config.rl
    if not settings.sync_every or (step + 1) % settings.sync_every:
        return
    policy, frozen = weights_of(model), weights_of(reference)
    run.state["reference"] = {
        name: frozen[name].lerp(policy[name], settings.sync_mix) for name in frozen
    }
    load_weights(reference, run.state["reference"])
    run.state["reference"] = weights_of(reference)  # no copy beside the model's


@torch.no_grad()
def reference_logps(reference, micro: Batch, how: Drawing) -> Tensor | None:
    """The reference's log-probs (B, T) of a micro-batch; None without a reference."""
    if reference is None:
        return None
    logps, _ = masked_logps(reference, micro.ids, micro.mask, how.temperature, how.banned)
    return logps
