"""What a tool is: a name and `run(text) -> ToolResult`.

A tool should answer every text. If it raises all the same, the model reads the error (calls.py).
"""

from __future__ import annotations

import os
import threading
import traceback
import weakref
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from nanotir.checks import visible

STATUSES = ("ok", "error", "timeout", "memory", "refused", "crash")


@dataclass
class ToolResult:
    output: str  # what the model gets to read
    ok: bool = True  # the same as status == "ok"
    status: str = "ok"  # one of STATUSES
    seconds: float = 0.0  # wall time of the call
    truncated: bool = False  # the output was longer and has been cut in the middle


class Tool:
    """Base class of all tools. A subclass sets `name` and defines `run`.

    A tool whose work is done elsewhere may override `submit` too. A row of TOOLS, in
    nanotir/tools/__init__.py, makes a tool available to --tools.
    """

    name: str
    threads = 8  # calls that may wait at the same time
    deterministic = False  # the same text, without a session, always has the same answer
    _pool = None  # made when it is first needed
    _pool_lock = threading.Lock()

    def __new__(cls, *arguments, **settings):
        tool = super().__new__(cls)
        this = weakref.ref(tool)

        def start_anew():
            if (alive := this()) is not None:
                alive._start_anew()

        os.register_at_fork(after_in_child=start_anew)
        return tool

    def run(self, text: str, session=None) -> ToolResult:
        """Do what `text` asks for. Calls of one session share the tool's state, if it has any."""
        raise AssertionError(f"{type(self).__name__} does not define run()")

    def submit(self, text: str, session=None) -> Future:
        """Start the same without waiting, so that decoding goes on. The Future of a ToolResult."""
        return self._later(self.run, text, session)

    def run_all(self, texts: list[str]) -> Iterator[ToolResult]:
        """The results of many calls, in their order. All of them begin now."""
        futures = [self.submit(text) for text in texts]
        return (future.result() for future in futures)

    def _later(self, function, *arguments) -> Future:
        answer = Future()
        claim = threading.Lock()

        def work():
            if claim.acquire(blocking=False) and answer.set_running_or_notify_cancel():
                try:
                    answer.set_result(function(*arguments))
                except BaseException as error:
                    answer.set_exception(error)

        try:
            with self._pool_lock:
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix=self.name)
                self._pool.submit(work)
        except RuntimeError:
            work()  # there is no room for another thread, so this one does it
        return answer

    def _start_anew(self):
        """Called in a forked process: threads, and what locks protect, are still the parent's."""
        self._pool = None
        self._pool_lock = threading.Lock()

    def end_session(self, session):
        """Forget a session's state. A tool without state has nothing to forget."""

    def close(self):
        """Wait for what is running, or end it. A later call starts the tool again."""
        with self._pool_lock:
            pool, self._pool = self._pool, None
        if pool:
            pool.shutdown()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


def last_line(error: BaseException) -> str:
    """How a traceback of this error ends."""
    return "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]


class DeadTool(Exception):
    """A tool fails nearly always. Training on would teach the model to live without it."""


def check_alive(name: str, results: list[ToolResult], share: float = 0.9, least: int = 32):
    """DeadTool if more than `share` of at least `least` calls failed, with the commonest reason."""
    reasons = [f"{result.status}: {result.output[:100]}" for result in results if not result.ok]
    if len(results) >= least and len(reasons) > share * len(results):
        (why, times), *_ = Counter(reasons).most_common(1)
        failed = f"failed on {len(reasons)} of {len(results)} calls"
        raise DeadTool(f"the tool '{name}' {failed}; {times} times with '{visible(why)}'")


def cut_middle(text: str, limit: int, missing: int = 0) -> tuple[str, bool]:
    """(about `limit` characters of the text, whether anything was cut).

    Both ends are kept, with a marker between: what a program printed first shows what it did, and
    what it printed last holds the answer or the error. `missing` characters of the middle are gone
    already.
    """
    if len(text) <= limit and not missing:
        return text, False
    front = text[: limit - limit // 2]
    back = text[len(text) - limit // 2 :]
    return f"{front}\n[... {len(text) - limit + missing} characters cut ...]\n{back}", True
