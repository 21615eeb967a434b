"""The tool calls of many rows: equal ones run once, sessions end, and no tool ends a row."""

from __future__ import annotations

from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from nanotir.tools.tool import Tool, ToolResult, last_line

# How a call may fail by chance, on a busy machine for instance.
BY_CHANCE = ("crash", "timeout", "memory")


@dataclass(eq=False)
class Pending:
    """A call that a row waits for."""

    future: Future
    tool: Tool | None = None  # None: the harness says something
    text: str = ""
    own: bool = True  # not another row's call


class Calls:
    """The calls of one rollout, or of the part of it that a process samples.

    Rows that ask a deterministic tool the same share one call. But if that failed by chance, only
    the row that made it reads so, and the others ask again, each for itself.
    """

    def __init__(self, tools: dict[str, Tool], sessions: bool):
        self.tools, self.sessions = tools, sessions
        self.shared: dict[tuple[str, str], Future] = {}
        self.open: dict[object, set[str]] = {}  # by row: the tools in which it has a session

    def start(self, name: str, text: str, row) -> Pending:
        tool = self.tools[name]
        if self.sessions:
            self.open.setdefault(row, set()).add(name)
            return Pending(ask(tool, text, row), tool, text)
        if not tool.deterministic:
            return Pending(ask(tool, text), tool, text)
        own = (name, text) not in self.shared
        if own:
            self.shared[name, text] = ask(tool, text)
        return Pending(self.shared[name, text], tool, text, own)

    def result(self, call: Pending) -> ToolResult | None:
        """What a finished call has returned, or None if it has to be made again."""
        if call.tool is None:
            return call.future.result()
        result = answer_of(call.tool, call.future)
        if result.status in BY_CHANCE and not call.own:
            call.own, call.future = True, ask(call.tool, call.text)
            return None
        return result

    def end(self, row, call: Pending | None = None):
        """End the sessions of a row, and once more after a call that is still running."""
        for name in self.open.pop(row, ()):
            end_session(self.tools[name], row)
            if call and not call.future.done():
                call.future.add_done_callback(partial(end_session, self.tools[name], row))


def ask(tool: Tool, text: str, session=None) -> Future:
    """tool.submit, even if that raises."""
    try:
        return tool.submit(text, session)
    except Exception as error:
        failed = Future()
        failed.set_exception(error)
        return failed


def answer_of(tool: Tool, call: Future) -> ToolResult:
    """What a finished call returned. If it raised, or returned something else, that is an error."""
    error = CancelledError() if call.cancelled() else call.exception()
    if error is None:
        result = call.result()
        if isinstance(result, ToolResult) and isinstance(result.output, str):
            return result
        error = TypeError(f"run() of '{tool.name}' has to return a ToolResult, its output a text")
    return ToolResult(last_line(error), False, "error")


def end_session(tool: Tool, row, call: Future | None = None):
    """tool.end_session, even if that raises."""
    with suppress(Exception):
        tool.end_session(row)
