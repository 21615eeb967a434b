import os
import threading
from concurrent.futures import Future

import pytest

from nanotir.tools import DeadTool, Tool, ToolResult, check_alive
from nanotir.tools.calls import answer_of, ask
from nanotir.tools.tool import cut_middle


class Echo(Tool):
    name = "echo"

    def run(self, text, session=None):
        return ToolResult(text.upper())


def test_submit_gives_what_run_gives():
    with Echo() as tool:
        assert [tool.submit(text).result() for text in "ab"] == [tool.run(text) for text in "ab"]


def test_many_calls_begin_before_a_result_is_asked_for():
    begun = threading.Event()

    class Slow(Echo):
        def run(self, text, session=None):
            begun.set()
            return super().run(text)

    with Slow() as tool:
        results = tool.run_all(["a", "b"])
        assert begun.wait(10)
        assert [result.output for result in results] == ["A", "B"]


class Broken(Tool):
    """Its run() raises, or returns something else than a ToolResult."""

    name = "broken"

    def __init__(self, outcome):
        self.outcome = outcome

    def run(self, text, session=None):
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


class Unprintable(Exception):
    def __str__(self):
        raise ValueError


class BrokenSubmit(Tool):
    name = "broken"

    def submit(self, text, session=None):
        raise ValueError("no\nroom")


class Cancelled(Tool):
    name = "broken"

    def submit(self, text, session=None):
        call = Future()
        call.cancel()
        return call


@pytest.mark.parametrize(
    "tool, output",
    [
        (Broken(KeyError("x")), "KeyError: 'x'"),
        (Broken(SystemExit(3)), "SystemExit: 3"),
        (Broken(Unprintable()), "Unprintable: <exception str() failed>"),
        (Broken(None), "TypeError: run() of 'broken' has to return a ToolResult"),
        (Broken("text"), "TypeError: run() of 'broken' has to return a ToolResult"),
        (Broken(ToolResult(None)), "TypeError: run() of 'broken' has to return a ToolResult"),
        (BrokenSubmit(), "room"),
        (Cancelled(), "concurrent.futures._base.CancelledError"),
    ],
)
def test_a_tool_that_breaks_its_promise_gives_an_error_that_the_model_can_read(tool, output):
    with tool:
        call = ask(tool, "1")
        threading.Event().wait(0.1)
        result = answer_of(tool, call)
    assert (result.ok, result.status) == (False, "error")
    assert output in result.output


def test_where_no_thread_can_start_the_call_is_made_at_once(monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    with Echo() as tool:
        monkeypatch.setattr(threading.Thread, "start", start)
        assert [tool.submit(text).result(timeout=5).output for text in "abc"] == ["A", "B", "C"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_threads_of_its_own():
    with Echo() as tool:
        assert tool.submit("a").result().output == "A"
        if (child := os.fork()) == 0:
            os._exit(tool.submit("b").result(timeout=10).output == "B")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def test_the_message_of_a_dead_tool_does_not_steer_the_terminal():
    with pytest.raises(DeadTool) as dead:
        check_alive("python", [ToolResult("\x1b[2J\rgone", False, "error")] * 32)
    assert "error: <U+001B>[2J<U+000D>gone" in str(dead.value)


def test_what_fits_is_not_cut():
    assert cut_middle("x" * 10, 10) == ("x" * 10, False)


def test_a_cut_keeps_both_ends_and_says_how_much_is_missing():
    text, cut = cut_middle("a" * 50 + "b" * 50 + "c" * 50, 11)
    assert cut and text == "aaaaaa\n[... 139 characters cut ...]\nccccc"


def test_a_cut_counts_what_was_lost_before_too():
    assert cut_middle("aaacc", 5, missing=7) == ("aaa\n[... 7 characters cut ...]\ncc", True)
    text, cut = cut_middle("aaaaaaaccccccc", 10, missing=7)
    assert cut and text == "aaaaa\n[... 11 characters cut ...]\nccccc"
