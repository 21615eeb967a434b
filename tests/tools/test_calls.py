"""Tools that break their promise, share their answers or hold sessions, in a whole rollout."""

import threading
import time
from concurrent.futures import Future

import pytest
from doubles import Spy, sampler_of, scripted, scripted_by_question

from nanotir.tokenizer import Tokenizer
from nanotir.tools import Tool, ToolResult

CALL = "<python>1</python>"


class Faulty(Spy):
    """Raises, or returns nothing, if it is asked to."""

    def run(self, text, session=None):
        if text == "raise":
            raise KeyError(text)
        return None if text == "none" else super().run(text)


def test_a_tool_that_raises_or_returns_nothing_ends_no_row(tokenizer):
    calls = ("raise", "none", "fine")
    texts = {call: [f"<python>{call}</python>", "x<|end|>"] for call in calls}
    model = scripted_by_question(tokenizer, texts)
    rows = sampler_of(model, tokenizer, [Faulty()], temperature=0).generate(calls)
    assert [row.finish_reason for row in rows] == ["stop"] * 3
    results = [row.calls[0].result for row in rows]
    assert [result.status for result in results] == ["error", "error", "ok"]
    assert results[0].output == "KeyError: 'raise'"
    assert "has to return a ToolResult" in results[1].output


def test_a_tool_may_have_any_name_that_the_tokenizer_knows():
    tokenizer = Tokenizer.train(["some text"], 400, tools=["abacus"])
    model = scripted(tokenizer, "<abacus>6*7</abacus>", "x<|end|>")
    (row,) = sampler_of(model, tokenizer, [Spy("abacus")], temperature=0).generate(["q"])
    assert (row.calls[0].tool, row.calls[0].result.output) == ("abacus", "<6*7>")


@pytest.mark.parametrize("style", ["tags", "fences"])
def test_a_tool_whose_tags_the_tokenizer_lacks_is_named(tokenizer, style):
    model = scripted(tokenizer, "x<|end|>")
    with pytest.raises(ValueError, match="no tags for the tool 'abacus'"):
        sampler_of(model, tokenizer, [Spy("abacus")], style)


def test_long_output_is_cut_before_it_is_tokenised(tokenizer):
    tool = Spy(answer=lambda text: "7 apples " * 400_000)
    model = scripted(tokenizer, CALL, "x<|end|>")
    sampler = sampler_of(model, tokenizer, [tool], temperature=0, max_tool_tokens=20)
    started = time.perf_counter()
    (row,) = sampler.generate(["q"])
    assert time.perf_counter() - started < 1
    output = row.text_of(row.spans[2], tokenizer)
    assert output.startswith("<output>7 apples 7") and output.endswith("...</output>")


@pytest.mark.parametrize("room, reason", [(2, "budget"), (3, "stop")])
def test_without_room_for_a_word_of_its_output_no_call_is_made(tokenizer, room, reason):
    tool = Spy(answer=lambda text: "7" * 9)
    model = scripted(tokenizer, CALL, "x<|end|>")
    sampler = sampler_of(model, tokenizer, [tool], temperature=0, max_tool_tokens=room)
    (row,) = sampler.generate(["q"])
    assert row.finish_reason == reason
    assert len(tool.asked) == (room == 3)


@pytest.mark.parametrize("limit", range(1, 9))
def test_a_second_chance_is_not_given_beyond_the_limit_of_ids(tokenizer, limit):
    model = scripted(tokenizer, "a<|end|>", "<answer>1</answer><|end|>")
    sampler = sampler_of(model, tokenizer, (), "grammar", temperature=0, max_new_tokens=limit)
    (row,) = sampler.generate(["q"])
    assert row.new_tokens <= limit


# Calls that several rows share.


def statuses(tokenizer, outcomes, n=3, max_rows=3):
    """The statuses that n rows read which ask the same; the tool gives one outcome after another"""
    tool = Spy(answer=lambda text: outcomes.pop(0))
    tool.deterministic = True
    tool.threads = 1
    model = scripted(tokenizer, CALL, "x<|end|>")
    rows = sampler_of(model, tokenizer, [tool], temperature=0, max_rows=max_rows).generate(["q"], n)
    return [row.calls[0].result.status for row in rows]


@pytest.mark.parametrize("status", ["crash", "timeout", "memory"])
@pytest.mark.parametrize("max_rows", [1, 3])
def test_what_failed_by_chance_is_read_by_one_row_alone(tokenizer, status, max_rows):
    outcomes = [ToolResult("gone", False, status), "1", "1"]
    assert statuses(tokenizer, outcomes, max_rows=max_rows) == [status, "ok", "ok"]


def test_an_error_of_the_program_is_shared(tokenizer):
    assert statuses(tokenizer, [ToolResult("no", False, "error")]) == ["error"] * 3


# Stops and sessions.


class Held(Tool):
    """Never answers. Counts its open sessions."""

    name = "python"

    def __init__(self):
        self.calls, self.sessions = [], set()

    def submit(self, text, session=None):
        self.sessions.add(session)
        self.calls.append(Future())
        return self.calls[-1]

    def end_session(self, session):
        self.sessions.discard(session)


def held_rows(tokenizer, tool, n=2, **hooks):
    model = scripted(tokenizer, CALL, "x<|end|>")
    sampler = sampler_of(model, tokenizer, [tool], temperature=0, sessions=True)
    return sampler.generate(["q"], n, **hooks)


def test_a_stop_is_asked_while_all_rows_are_parked(tokenizer):
    tool = Held()
    started = time.monotonic()
    late = threading.Timer(5, lambda: [call.set_result(ToolResult("")) for call in tool.calls])
    late.start()
    rows = held_rows(tokenizer, tool, stop=lambda: time.monotonic() > started + 0.5)
    late.cancel()
    assert time.monotonic() - started < 4
    assert [row.finish_reason for row in rows] == ["cancelled"] * 2
    assert len(tool.calls) == 2 and not tool.sessions


def test_a_session_that_its_running_call_opens_again_is_ended_once_more(tokenizer):
    tool = Held()
    held_rows(tokenizer, tool, n=1, stop=lambda: tool.calls)
    tool.sessions.add("again")
    tool.end_session = lambda session: tool.sessions.clear()
    held_rows(tokenizer, tool, n=1, stop=lambda: len(tool.calls) == 2)
    tool.sessions.add("again")
    tool.calls[1].set_result(ToolResult("late"))
    assert not tool.sessions


def test_sessions_end_if_the_rollout_is_interrupted(tokenizer):
    tool = Held()

    def interrupt(*_):
        if len(tool.calls) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        held_rows(tokenizer, tool, watch=interrupt)
    assert tool.calls and not tool.sessions


def test_a_tool_that_cannot_end_a_session_ends_no_rollout(tokenizer):
    class Stuck(Spy):
        def end_session(self, session):
            raise OSError

    (row,) = held_rows(tokenizer, Stuck(), n=1)
    assert row.finish_reason == "stop"
