"""What a tool is: a name, and `run(text) -> ToolResult`. Whatever the text says, the answer is a result, never an exception."""
from __future__ import annotations

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


class Tool:
    """Base of all tools. A subclass sets `name` and defines `run`; one whose work is done elsewhere overrides `submit` too."""

    name: str
    threads = 8  # calls that may wait at the same time

    def run(self, text: str, session=None) -> ToolResult:
        """Do what `text` asks for. Calls that name the same session see what earlier ones left behind, where the tool has state."""
        raise AssertionError(f"{type(self).__name__} does not define run()")

    def submit(self, text: str, session=None) -> Future:
        """The same without waiting: a Future of the ToolResult, so that decoding can go on meanwhile."""
        if not hasattr(self, "_pool"):
            self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix=self.name)
        return self._pool.submit(self.run, text, session)

    def end_session(self, session):
        """Forget a session's state. A tool without any has nothing to forget."""

    def close(self):
        if hasattr(self, "_pool"):
            self._pool.shutdown(cancel_futures=True)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


def cut_middle(text: str, limit: int) -> tuple[str, bool]:
    """At most about `limit` characters: the head and the tail, with a visible marker between. Both matter: what a program
    printed first shows what it did, and what it printed last holds the answer or the error."""
    if len(text) <= limit:
        return text, False
    head, tail = text[: limit - limit // 2], text[len(text) - limit // 2 :]
    return f"{head}\n[... {len(text) - limit} characters cut ...]\n{tail}", True
