"""What a tool is: a name, and `run(text) -> ToolResult`. Whatever the text says, the answer is a result, never an exception."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

STATUSES = ("ok", "error", "timeout", "memory", "refused", "crash")


@dataclass
class ToolResult:
    output: str  # what the model gets to read
    ok: bool = True  # the same as status == "ok"
    status: str = "ok"  # one of STATUSES
    seconds: float = 0.0  # wall time of the call
    truncated: bool = False  # the output was longer and has been cut in the middle


class DeadTool(Exception):
    """A tool answers nearly every call with an error: going on would only teach the model to live without it."""


def check_alive(name: str, results, share: float = 0.9, least: int = 32):
    """DeadTool, with the commonest reason, where more than `share` of at least `least` calls have failed."""
    failed = Counter(
        f"{result.status}: {result.output[:100]}" for result in results if not result.ok
    )
    if len(results) >= least and failed.total() > share * len(results):
        (why, times), *_ = failed.most_common(1)
        raise DeadTool(
            f"the tool '{name}' failed on {failed.total()} of {len(results)} calls; {times} times with '{why}'"
        )


class Tool:
    """Base of all tools. A subclass sets `name` and defines `run`; one whose work is done elsewhere overrides `submit` too."""

    name: str
    threads = 8  # calls that may wait at the same time
    _pool, _pooling = None, threading.Lock()  # made on first use
    deterministic = False  # the same text, without a session, always has the same answer: a sampler need not ask twice

    def run(self, text: str, session=None) -> ToolResult:
        """Do what `text` asks for. Calls that name the same session see what earlier ones left behind, where the tool has state."""
        raise AssertionError(f"{type(self).__name__} does not define run()")

    def submit(self, text: str, session=None) -> Future:
        """The same without waiting: a Future of the ToolResult, so that decoding can go on meanwhile."""
        return self._later(self.run, text, session)

    def _later(self, function, *arguments) -> Future:
        with self._pooling:
            self._pool = self._pool or ThreadPoolExecutor(
                self.threads, thread_name_prefix=self.name
            )
            return self._pool.submit(function, *arguments)

    def end_session(self, session):
        """Forget a session's state. A tool without any has nothing to forget."""

    def close(self):
        """Wait for what is running and end. Whoever submits again starts anew."""
        with self._pooling:
            pool, self._pool = self._pool, None
        if pool:
            pool.shutdown()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


def cut_middle(text: str, limit: int, missing: int = 0) -> tuple[str, bool]:
    """(about `limit` characters of the text, its two ends with a visible marker between, whether anything is left out); `missing` more are gone
    from its middle already. Both ends matter: what a program printed first shows what it did, what it printed last holds the answer or the error."""
    if len(text) <= limit and not missing:
        return text, False
    front, back = text[: limit - limit // 2], text[len(text) - limit // 2 :]
    return f"{front}\n[... {len(text) - limit + missing} characters cut ...]\n{back}", True
