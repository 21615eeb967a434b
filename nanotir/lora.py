"""Low-rank adapters: W x + SCALE B A x, where W is frozen and A and B are learned (Hu et al. 2021).

Gradients and the optimiser's moments then exist for about one weight in a hundred. A checkpoint
holds the adapters alone, and decoding costs nothing more, since `merged` adds them to the weights.
"""

from __future__ import annotations

import threading
import zlib
from contextlib import contextmanager

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

WEIGHTS = {"fp32": torch.float32, "bf16": torch.bfloat16}  # precisions of a model
SCALE = 2.0  # alpha / rank, so alpha is twice the rank
MATRICES = ("qkv", "out", "gate_up", "down")  # of every block and every expert
_merging = threading.Lock()  # held while sums are made or forgotten


class OtherWeights(ValueError):
    """Adapters meet weights that they were not trained on."""


class Adapted(nn.Module):
    """A linear layer, frozen, with an adapter in fp32. It changes nothing at first: B is 0.

    The rows of A are orthonormal, so that the first step of B is that of W, seen through A.
    """

    def __init__(self, linear: nn.Linear, rank: int, generator: torch.Generator):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        device = self.weight.device
        rows, columns = self.weight.shape
        A = nn.init.orthogonal_(torch.empty(rank, columns), generator=generator)
        self.A = nn.Parameter(A.to(device))  # (r, in)
        self.B = nn.Parameter(torch.zeros(rows, rank, device=device))  # (out, r)
        self.whole: Tensor | None = None  # the sum of both, while it is in use
        self.users = 0  # calls that use it

    def forward(self, x):
        if self.whole is not None:
            return F.linear(x, self.whole, self.bias)
        change = F.linear(F.linear(x, self.A.to(x.dtype)), self.B.to(x.dtype))
        return F.linear(x, self.weight, self.bias) + SCALE * change


def adapt(model, rank: int, seed: int = 0):
    """Freeze a model, and give every matrix of its blocks an adapter. Equal seeds, equal adapters.

    ValueError for a rank above the smaller side of a matrix.
    """
    model.frozen = checksum_of(model)
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for module in list(model.blocks.modules()):
        for name, child in list(module.named_children()):
            if name in MATRICES:
                if rank > min(child.weight.shape):
                    most = f"at most {min(child.weight.shape)}, the smaller side of a {name} matrix"
                    raise ValueError(f"--lora {rank} is no low rank for this model: {most}")
                setattr(module, name, Adapted(child, rank, generator))


@contextmanager
def merged(model):
    """Compute with the sums of weights and adapters meanwhile. The weights stay untouched.

    Several threads may be in it: the last one that leaves forgets the sums.
    """
    layers = [module for module in model.modules() if isinstance(module, Adapted)]
    try:
        with _merging:
            for layer in layers:
                layer.users += 1
            for layer in layers:
                if layer.whole is None:
                    layer.whole = sum_of(layer.weight, layer.A, layer.B)
        yield
    finally:
        with _merging:
            for layer in layers:
                layer.users -= 1
                if not layer.users:
                    layer.whole = None


@torch.no_grad()
def sum_of(weight: Tensor, A: Tensor, B: Tensor) -> Tensor:
    return (weight + SCALE * (B @ A)).to(weight.dtype)


def weights_of(model) -> dict[str, Tensor]:
    """What a checkpoint holds of a model: its adapters if it has any, else all its weights."""
    state = model.state_dict()
    return {name: state[name] for name in state if is_adapter(name)} or state


def whole_weights(model) -> list[Tensor]:
    """The weights of a model without adapters that computes the same, in the state dict's order.

    Call it inside `merged`.
    """
    state = model.state_dict()
    sums = {
        f"{name}.weight": m.whole for name, m in model.named_modules() if isinstance(m, Adapted)
    }
    return [sums.get(name, state[name]) for name in state if not is_adapter(name)]


def load_weights(model, saved: dict[str, Tensor], frozen: int = 0):
    """Load what `weights_of` returned. Adapters are merged into a model that has none.

    OtherWeights if they are adapters to weights of another checksum than `frozen`.
    """
    state = model.state_dict()
    if any(map(is_adapter, saved)):
        if frozen and frozen != getattr(model, "frozen", None) and frozen != checksum_of(model):
            mend = "restore the folder that --init named"
            raise OtherWeights(f"of adapters to other weights than these: {mend}")
        if not any(map(is_adapter, state)):
            names = [name.removesuffix(".A") for name in saved if name.endswith(".A")]
            for name in names:
                weight = state[f"{name}.weight"]
                weight.copy_(sum_of(weight, saved[f"{name}.A"], saved[f"{name}.B"]))
            return
        saved = state | saved
    model.load_state_dict(saved)


def is_adapter(name: str) -> bool:
    return name.endswith((".A", ".B"))


def checksum_of(model) -> int:
    """Of the bytes of all weights, so that adapters notice that theirs have changed."""
    total = 0
    for weight in model.state_dict().values():
        total = zlib.crc32(weight.cpu().contiguous().view(torch.uint8).numpy(), total)
    return total
