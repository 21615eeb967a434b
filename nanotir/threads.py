"""Several cores for one process: threads that compute micro-batches side by side.

PyTorch releases Python's lock inside its operations, so these threads rarely wait for each other.
Threads inside each operation would wait for each other a thousand times a step. The trained weights
are the same for any number of threads, to the last bit.

Sampling computes too little in an operation for that: workers.py has processes for it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

_pool: ThreadPoolExecutor | None = None
_owner = 0  # the process that has these threads; one that it forks has none
at_a_time = 1


def use_threads(number: int):
    """From here on, `each` computes so many things at a time, each on one core."""
    global _pool, _owner, at_a_time
    torch.set_num_threads(1)
    one_core = {"initializer": torch.set_num_threads, "initargs": (1,)}
    _pool = ThreadPoolExecutor(number, **one_core) if number > 1 else None
    _owner, at_a_time = os.getpid(), number


def _threads() -> ThreadPoolExecutor | None:
    return _pool if os.getpid() == _owner else None


def each(function: Callable, items: Iterable) -> Iterator:
    """function(item) of all items, in their order.

    A thread starts with the modes of PyTorch's defaults: `function` itself has to set no_grad.
    """
    pool = _threads()
    if not pool:
        yield from map(function, items)
        return
    # One more than there are threads, so that none waits, and no more: each may hold gradients.
    running = deque()
    for item in items:
        running.append(pool.submit(function, item))
        if len(running) > at_a_time:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def backpropagate(model, loss_of: Callable, micros: Iterable) -> list:
    """Add up the gradients of all micro-batches; loss_of(micro) is (loss, what else to return)."""
    if not _threads():
        return [_backward(*loss_of(micro)) for micro in micros]
    weights = [weight for weight in model.parameters() if weight.requires_grad]

    def gradients_of(micro):
        loss, more = loss_of(micro)
        return torch.autograd.grad(loss, weights, allow_unused=True), more

    seen = []
    for gradients, more in each(gradients_of, micros):  # in order, so the sums are always the same
        for weight, gradient in zip(weights, gradients):
            if weight.grad is None and gradient is not None:
                weight.grad = gradient.contiguous()  # which fused optimisers take for granted
            elif gradient is not None:
                weight.grad += gradient
        seen.append(more)
    return seen


def _backward(loss, more):
    loss.backward()
    return more
