"""What each row of a generation is doing, turn by turn: it waits, decodes, is parked, has ended."""

from concurrent.futures import Future
from itertools import groupby

import pytest
import torch
from doubles import Spy, sampler_of, scripted, scripted_by_question

from nanotir.generation import Generation, Status
from nanotir.tools import Tool, ToolResult
from nanotir.trajectory import Format

WAITING, DECODING, PARKED, FINISHED = Status
CALLS = ("<python>1</python>", "<python>2</python>")


class HeldTool(Tool):
    """Answers when the test says so."""

    name = "python"

    def __init__(self):
        self.future = Future()

    def submit(self, text, session=None):
        return self.future

    def answer_at_turn_8(self, turn):
        if turn == 8:
            self.future.set_result(ToolResult("1"))


TALK = "x" * 40


def start(tokenizer, texts, tools=(), watch=None, **settings):
    """A Generation with one row for each question, and what it says there, in `texts`."""
    model = scripted_by_question(tokenizer, texts)
    sampler = sampler_of(model, tokenizer, tools, temperature=0, **settings)
    prompts = [sampler.format.prompt(tokenizer, question) for question in texts]
    return Generation(sampler, prompts, n=1, seed=0, watch=watch)


@torch.inference_mode()
def observe(generation, what, at_turn=None):
    """[what(row) of each row] before each turn of the loop and at the end: one list a turn.

    at_turn(number) is called before each turn; it may return True to stop.
    """
    seen = []

    def look():
        seen.append([what(row) for row in generation.rows])
        return at_turn and at_turn(len(seen) - 1)

    generation.run(stop=look)
    return seen + [[what(row) for row in generation.rows]]


def status(row):
    return row.status


def test_a_row_waits_for_a_slot_decodes_and_is_finished(tokenizer):
    assert len(tokenizer.encode("x<|end|>")) == 2
    texts = {"a": ["x<|end|>"], "b": ["x<|end|>"]}
    assert observe(start(tokenizer, texts, max_rows=1), status) == [
        [WAITING, WAITING],
        [DECODING, WAITING],
        [FINISHED, WAITING],
        [FINISHED, DECODING],
        [FINISHED, FINISHED],
    ]


def test_a_row_is_parked_from_its_closing_tag_until_its_result_is_in(tokenizer):
    tool = HeldTool()
    assert len(tokenizer.encode(CALLS[0])) == 3  # one id a turn
    generation = start(tokenizer, {"a": [CALLS[0], "x<|end|>"], "b": [TALK]}, [tool])

    statuses = [row[0] for row in observe(generation, status, tool.answer_at_turn_8)]
    runs = [(value, len(list(turns))) for value, turns in groupby(statuses)]
    assert runs[:4] == [(WAITING, 1), (DECODING, 2), (PARKED, 6), (DECODING, 1)]
    assert runs[4][0] == FINISHED


def test_a_parked_row_writes_nothing_and_the_others_one_id_a_turn(tokenizer):
    tool = HeldTool()
    generation = start(tokenizer, {"a": [CALLS[0], "x<|end|>"], "b": [TALK]}, [tool])

    seen = observe(generation, lambda row: row.written, tool.answer_at_turn_8)
    assert [row[0] for row in seen[3:9]] == [3] * 6
    assert [row[1] for row in seen[3:9]] == [3, 4, 5, 6, 7, 8]


def test_a_refused_call_parks_its_row_for_one_turn(tokenizer):
    texts = {"a": [CALLS[0], "x<|end|>"]}
    generation = start(tokenizer, texts, [Spy()], max_calls=0, last_turn=True)
    statuses = [row[0] for row in observe(generation, status)]
    assert statuses == [WAITING, DECODING, DECODING, PARKED, DECODING, FINISHED]


def test_ids_are_sampled_while_decoding_and_results_appended_while_parked(tokenizer):
    heard = []

    def watch(index, kind, ids):
        heard.append((kind, generation.rows[index].status))

    generation = start(tokenizer, {"a": ["a" + CALLS[0], "x<|end|>"]}, [Spy()], watch)
    observe(generation, status)
    assert dict(heard) == {
        "text": DECODING,
        "python": DECODING,
        "output": PARKED,
        "finish": FINISHED,
    }


def test_a_finished_row_leaves_its_slot(tokenizer):
    generation = start(tokenizer, {"a": ["x<|end|>"], "b": [TALK]}, max_new_tokens=9)
    seated = []
    observe(generation, status, lambda turn: seated.append(len(generation.slots.seated())))
    assert seated == [0, 2, 1, 1, 1, 1, 1, 1, 1]
    assert generation.slots.rows == [None, None]


def test_a_stop_finishes_rows_of_every_status_as_cancelled(tokenizer):
    texts = {"a": [CALLS[0], "x<|end|>"], "b": [TALK], "c": [TALK]}
    generation = start(tokenizer, texts, [HeldTool()], max_rows=2)
    seen = observe(generation, status, lambda turn: turn == 5)
    assert seen[-2:] == [[PARKED, DECODING, WAITING], [FINISHED] * 3]
    assert [row.trajectory.finish_reason for row in generation.rows] == ["cancelled"] * 3


def test_a_stop_keeps_what_has_been_written(tokenizer):
    turns = iter(range(100))
    sampler = sampler_of(scripted(tokenizer, TALK), tokenizer, max_rows=2, temperature=0)
    rows = sampler.generate(["q"], n=4, stop=lambda: next(turns) >= 5)
    assert [row.finish_reason for row in rows] == ["cancelled"] * 4
    assert [row.new_tokens for row in rows] == [5, 5, 0, 0]


# Scheduling.


def test_others_decode_while_a_call_is_running(tokenizer):
    """The tool answers when the other row has written 20 ids: waiting for it would never end."""
    tool = HeldTool()

    def watch(index, kind, ids):
        if index == 1 and generation.rows[1].trajectory.new_tokens == 20:
            tool.future.set_result(ToolResult("late"))

    texts = {"a": [CALLS[0], "x<|end|>"], "b": [TALK + "<|end|>"]}
    generation = start(tokenizer, texts, [tool], watch)
    observe(generation, status)
    called, talked = [row.trajectory for row in generation.rows]
    assert called.calls[0].result.output == "late"
    assert called.finish_reason == talked.finish_reason == "stop"


@pytest.mark.parametrize("others, waits", [(0, False), (8, False), (9, True)])
def test_a_result_waits_while_it_is_less_than_an_eighth_of_the_rows_that_decode(
    tokenizer, others, waits
):
    texts = {"a": [CALLS[0], "x<|end|>"]} | {f"b{i}": [TALK] for i in range(others)}
    tool = HeldTool()
    tool.future.set_result(ToolResult("1"))
    generation = start(tokenizer, texts, [tool], max_new_tokens=12)
    statuses = [row[0] for row in observe(generation, status)]
    assert (statuses.count(PARKED) > 1) == waits
    assert generation.rows[0].trajectory.finish_reason == "stop"


def test_with_a_barrier_no_result_is_read_while_a_row_decodes(tokenizer):
    tool = HeldTool()
    tool.future.set_result(ToolResult("1"))
    texts = {"a": [CALLS[0], "x<|end|>"], "b": [TALK]}
    generation = start(tokenizer, texts, [tool], max_new_tokens=12, barrier=True)
    seen = observe(generation, status)
    meanwhile = [a for a, b in seen if b == DECODING]
    assert [value for value, _ in groupby(meanwhile)] == [DECODING, PARKED]
    assert [row.trajectory.finish_reason for row in generation.rows] == ["stop", "length"]


def test_with_a_barrier_all_calls_of_a_turn_are_waited_for(tokenizer):
    first, second = HeldTool(), HeldTool()
    first.future.set_result(ToolResult("1"))
    second.name = "search"
    texts = {"a": [CALLS[0], "x<|end|>"], "b": ["<search>x</search>", "x<|end|>"]}
    generation = start(tokenizer, texts, [first, second], barrier=True)
    seen = observe(generation, status, second.answer_at_turn_8)
    assert seen[8] == [PARKED, PARKED]
    assert [row.trajectory.finish_reason for row in generation.rows] == ["stop", "stop"]


def test_each_distinct_prompt_is_prefilled_once(tokenizer):
    model = scripted(tokenizer, "hello<|end|>")
    sampler = sampler_of(model, tokenizer, temperature=0, max_rows=64)
    sampler.generate(["one", "two", "one"], n=8)
    wide = [shape for shape in model.fed if shape[1] > 1]
    longest = max(len(Format().prompt(tokenizer, question)) for question in ("one", "two"))
    assert wide == [(2, longest - 1)]


def test_the_batch_shrinks_as_rows_end(tokenizer):
    texts = {str(n): ["x" * n + "<|end|>"] for n in range(8)}
    generation = start(tokenizer, texts)
    observe(generation, status)
    batches = [shape[0] for shape in generation.model.fed if shape[1] == 1]
    assert batches == sorted(batches, reverse=True)
    assert batches[0] == 8
    assert batches[-1] <= 2
