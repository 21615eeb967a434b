"""Several processes train one model: torch.distributed in a few functions.

    torchrun --nproc_per_node=4 train.py
    torchrun --nproc_per_node=2 train.py --resume RUN
    torchrun --nproc_per_node=4 -m -- nanotir.evaluate --run RUN

Every process runs the same program and holds the same weights. It samples its share of the prompts,
computes the gradient of its share of the rows, and then has what all have sampled and the sum of
the gradients. So all take the same steps. Only the first process writes to the run folder and to
stdout. On several machines, torchrun's own flags say how they meet, and all must see the folder.

One process alone makes no group, and nothing here changes anything.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from nanotir.tools.lockdown import die_with_parent

# The longest that a process waits for another, which may run the teacher's calls for minutes. It is
# no measure of how soon a death is noticed: torchrun notices within a second.
PATIENCE = timedelta(minutes=30)
GRACE = 8  # seconds to end a step in, after torchrun has said to end


@contextmanager
def joined() -> Iterator[None]:
    """Around a program: the processes that torchrun has started find each other."""
    if not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        yield
        return
    die_with_parent()
    end_soon_after_sigterm()
    gpus = torch.cuda.is_available()
    with connected():
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=PATIENCE)
    if not is_main():
        sys.stdout = open(os.devnull, "w")
    error = True
    try:
        yield
        error = False
    finally:
        if not (error and gpus):  # NCCL would wait for the others
            dist.destroy_process_group()


def count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


def own_device(name: str) -> torch.device:
    """This process's device: of several processes on a machine, each has a GPU of its own."""
    if count() == 1 or name == "cpu":
        return torch.device(name)
    number, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if name != "cuda" or number >= gpus:
        here = f"{gpus} GPUs" if name == "cuda" else f"one {name}"
        raise ValueError(f"process {number + 1} of a machine with {here}: start fewer processes")
    torch.cuda.set_device(number)
    return torch.device(name, number)


def on_this_machine() -> int:
    """How many of the processes share this machine's memory."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if count() > 1 else 1


def share(rows, size: int = 1) -> list:
    """This process's part of rows: groups of `size`, dealt out in turn."""
    groups = [rows[i : i + size] for i in range(0, len(rows), size)]
    return [row for group in groups[rank() :: count()] for row in group]


def gather(own: list, size: int = 1) -> list:
    """The parts of all processes as one list, in every process: gather(share(rows)) is rows."""
    if count() == 1:
        return own
    parts = [None] * count()
    with connected():
        dist.all_gather_object(parts, own)
    return dealt(parts, size)


def dealt(parts: list[list], size: int = 1) -> list:
    """The list that was dealt out, in groups of `size`, as these parts."""
    rows = []
    for start in range(0, max(map(len, parts)), size):
        for part in parts:
            rows += part[start : start + size]
    return rows


def once(function: Callable, *arguments):
    """function(*arguments), computed by the first process for all.

    For what depends on time, as tools and answer checks do, or on files.
    """
    return gather([function(*arguments)] if is_main() else [])[0]


def sum_gradients(model):
    """Add up the gradients of all processes, in every process: one message."""
    if count() == 1:
        return
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    gradients = []
    for weight in weights:
        # A process without rows has no gradients. Those of bf16 weights are added in fp32.
        own = torch.zeros_like(weight) if weight.grad is None else weight.grad
        gradients.append(own.flatten().to(torch.promote_types(own.dtype, torch.float32)))
    total = torch.cat(gradients)
    with connected():
        dist.all_reduce(total)
    parts = total.split([weight.numel() for weight in weights])
    for weight, part in zip(weights, parts):
        weight.grad = part.view_as(weight).to(weight.dtype)


def check_equal(model, *more):
    """ValueError unless all processes hold the same weights, and the same values in `more`."""
    if count() == 1:
        return
    total = sum(weight.double().sum().item() for weight in model.parameters())
    held = gather([(total, *more)])
    if any(other != held[0] for other in held):
        alike = "the same data, versions and kind of processor"
        raise ValueError(f"the processes' weights differ: they need {alike}")


def end_soon_after_sigterm():
    """Have SIGTERM end this process within GRACE seconds, whatever it waits for.

    torchrun sends it to the others when a process has died. Then their step may never be done, and
    no handler runs in a main thread that waits for a GPU: so another thread sets the alarm.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)

    def watch():
        while os.read(reader, 1)[0] != signal.SIGTERM:
            pass
        signal.alarm(GRACE)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def connected() -> Iterator[None]:
    """Around messages: an error of the network, in one line."""
    try:
        yield
    except RuntimeError as error:
        why = str(error).split(". ")[0]
        raise ValueError(f"process {os.environ['RANK']} has lost the others ({why})") from None
