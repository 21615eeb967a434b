"""Workers: processes that sample beside this one, each on one core of its own.

    this process                                         a worker
    weights and a part of the prompts  -------------->   samples that part, with tools of its own
    samples its own part meanwhile
    rows of all prompts                <--------------   its rows, or its error

A decoding step of a small model takes a millisecond, of which Python takes a good part. Threads
wait for each other's turn with Python; processes do not. A worker is a new Python, not a fork: it
inherits no threads, locks or files, and imports this package as it is on disk. What a program has
changed in it while running needs --threads 1. A worker ends with this process, however that ends.

The sampler's log-probs depend on the number of workers, in their last digits, because other rows
share a batch. So now and then a draw falls on another id; in bf16, where these digits are coarse,
more often.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import torch
from torch import Tensor

from nanotir import threads
from nanotir.lora import whole_weights
from nanotir.model import Transformer
from nanotir.processes import dealt
from nanotir.tools.lockdown import die_with_parent

_workers: list[Worker] = []
_serve: tuple | None = None  # (model, tokenizer, format, tools) that they sample with
_owner = 0  # the process that has them; one that it forks has none
_turn = threading.Lock()  # held while they sample: another thread's call meanwhile does without


@contextmanager
def beside(model, tokenizer, tools, format, settings: dict):
    """Around a run: one worker for each of its threads but the first. Inside another, none more.

    `settings` are the run's, from which workers open tools like these. With a tool of the user's
    own, or on the functions of a student, a run samples alone: a worker does not have them.
    """
    global _serve, _owner
    with _turn:
        inside = _serve is not None
        if not inside:
            _serve, _owner = (model, tokenizer, format, tools), os.getpid()
    if inside:
        yield
        return
    known = all(type(tool).__module__.startswith("nanotir.") for tool in tools)
    number = threads.at_a_time - 1 if known and not settings.get("answers") else 0
    policy = (model.config, model.embed.weight.dtype, tokenizer, format, settings)
    try:
        for _ in range(number):
            _workers.append(Worker(policy))
        yield
    finally:
        with _turn:
            close()


def close():
    global _serve
    for worker in _workers:
        worker.close()
    _workers.clear()
    _serve = None


def sample(sampler, prompts: dict[int, list[int]], n: int, seed: int, force, watch, stop) -> list:
    """sampler.sample(..) of numbered prompts, in order; each worker samples a part of them.

    `watch` is told of their rows' ends alone, once all have ended. With `stop` they do nothing.
    """
    if not stop and _turn.acquire(blocking=False):
        try:
            if _is_served(sampler):
                return _shared_out(sampler, prompts, n, seed, force, watch)
        finally:
            _turn.release()
    return sampler.sample(prompts, n, seed, force, watch, stop)


def _is_served(sampler) -> bool:
    """Whether it has the model, tokenizer, format and tools that the workers have."""
    if not _workers or os.getpid() != _owner:
        return False
    model, tokenizer, format, tools = _serve
    if sampler.model is not model or sampler.tokenizer is not tokenizer:
        return False
    known = all(any(tool is own for own in tools) for tool in sampler.tools.values())
    return known and sampler.format.style == format.style


def _shared_out(sampler, prompts: dict, n: int, seed: int, force, watch) -> list:
    helpers = _workers[: len(prompts) - 1]
    numbers = list(prompts)
    parts = [numbers[i :: 1 + len(helpers)] for i in range(1 + len(helpers))]
    given = [({number: prompts[number] for number in part}, n, seed, force) for part in parts]
    try:
        for worker, part in zip(helpers, given[1:]):
            worker.ask(sampler, part)
        rows = [sampler.sample(*given[0], watch), *(worker.answer() for worker in helpers)]
    except BaseException:
        close()  # what they still send would answer the wrong question
        raise
    for part in parts[1:] if watch else ():
        for number in part:
            for copy in range(n):
                watch(number * n + copy, "finish", [])
    return dealt(rows, n)


class Worker:
    """A worker, and the connection to it."""

    def __init__(self, policy: tuple):
        self.end, theirs = Pipe()
        call = f"from nanotir.workers import serve; serve({theirs.fileno()})"
        path = [str(folder) for folder in sys.path]
        program = [sys.executable, "-c", f"import sys; sys.path[:] = {path}; {call}"]
        with theirs, tempfile.TemporaryFile() as given:
            pickle.dump(policy, given)
            given.seek(0)
            # In a session of its own Ctrl-C does not reach it.
            apart = {"pass_fds": [theirs.fileno()], "start_new_session": True}
            self.process = subprocess.Popen(program, stdin=given, **apart)

    def ask(self, sampler, part: tuple):
        weights = [weight.contiguous() for weight in whole_weights(sampler.model)]
        with self.connected():
            self.end.send((sampler.config, list(sampler.tools), shapes_of(weights), part))
            for weight in weights:
                self.end.send_bytes(_bytes(weight))

    def answer(self) -> list:
        """The rows that were asked for. ValueError as the worker's own sampler raises it."""
        with self.connected():
            answer = self.end.recv()
        if isinstance(answer, ValueError):
            raise answer
        return answer

    @contextmanager
    def connected(self):
        try:
            yield
        except (EOFError, OSError):
            code = self.process.wait()
            cure = "--threads 1 does without, and takes less memory"
            raise ValueError(
                f"a worker that samples has ended (exit code {code}): {cure}"
            ) from None

    def close(self):
        self.end.close()
        self.process.kill()
        self.process.wait()


def shapes_of(weights) -> list[tuple]:
    return [tuple(weight.shape) for weight in weights]


def _bytes(weight: Tensor):
    """The memory of a weight."""
    return weight.detach().flatten().view(torch.uint8).numpy()


def serve(descriptor: int):
    """A worker's whole life: sample what it is asked for until the other side has ended."""
    from nanotir.policy import open_tools
    from nanotir.sampler import Sampler

    die_with_parent()
    # Who ends a run may signal all its processes. This one is needed until the step is saved.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    torch.set_num_threads(1)
    shape, dtype, tokenizer, format, settings = pickle.load(sys.stdin.buffer)
    model = Transformer(shape).to(dtype).eval()
    tools = {tool.name: tool for tool in open_tools(settings)}
    end = Connection(descriptor)
    with suppress(EOFError, BrokenPipeError):
        while True:
            config, names, shapes, part = end.recv()
            weights = model.state_dict().values()
            assert shapes == shapes_of(weights)
            for weight in weights:
                end.recv_bytes_into(_bytes(weight))
            sampler = Sampler(model, tokenizer, [tools[name] for name in names], format, config)
            try:
                answer = sampler.sample(*part)
            except ValueError as error:
                answer = error
            end.send(answer)
    for tool in tools.values():
        tool.close()
