import copy

import pytest

from nanotir.tokenizer import ASSISTANT, END, USER
from nanotir.tools import ToolResult
from nanotir.trajectory import Call, Format, Trajectory

PIECES = [("text", "I add."), ("python", "1+1"), ("output", "2"), ("text", "So 2.")]
WRITTEN = "I add.<python>1+1</python><output>2</output>So 2."


def short_one():
    trajectory = Trajectory()
    trajectory.append("prompt", [1, 2], 0)
    trajectory.append("text", [3], 1, [-0.1])
    trajectory.append("text", [4], 1, [-0.2])
    trajectory.append("output", [5, 6], 0)
    return trajectory


def whole(tokenizer):
    """Two calls, the second one at the end."""
    pieces = [*PIECES, ("search", "Oslo"), ("output", "a town")]
    trajectory = Format().trajectory(tokenizer, "1+1?", pieces)
    python = Call("python", "1+1", ToolResult("2"))
    search = Call("search", "Oslo", ToolResult("a town"))
    trajectory.calls = [python, search]
    return trajectory


def kinds_of(trajectory):
    """The kind of span that each id belongs to."""
    return [span.kind for span in trajectory.spans for _ in range(span.start, span.end)]


def test_an_empty_text_is_no_words(tokenizer):
    trajectory = Format().trajectory(tokenizer, "1?", [("text", ""), ("python", "1")])
    assert trajectory.completion(tokenizer) == ""


# Appending.


def test_ids_mask_and_logps_stay_parallel():
    trajectory = short_one()
    assert trajectory.ids == [1, 2, 3, 4, 5, 6]
    assert trajectory.mask == [0, 0, 1, 1, 0, 0]
    assert trajectory.logps == [0, 0, -0.1, -0.2, 0, 0]


def test_spans_cover_the_ids_and_one_author_s_ids_in_a_row_are_one_span():
    spans = [(span.kind, span.start, span.end) for span in short_one().spans]
    assert spans == [("prompt", 0, 2), ("text", 2, 4), ("output", 4, 6)]


def test_new_tokens_counts_the_ids_that_the_model_wrote():
    assert short_one().new_tokens == 2


# Copies.


def test_with_output_in_mask_marks_all_but_the_prompt(tokenizer):
    trajectory = whole(tokenizer)
    expected = [int(kind != "prompt") for kind in kinds_of(trajectory)]
    assert trajectory.with_output_in_mask().mask == expected


def test_with_output_in_mask_changes_no_id(tokenizer):
    trajectory = whole(tokenizer)
    assert trajectory.with_output_in_mask().ids == trajectory.ids


def test_with_output_in_mask_tool_output_counts_as_new_tokens(tokenizer):
    trajectory = whole(tokenizer)
    outputs = kinds_of(trajectory).count("output")
    assert trajectory.with_output_in_mask().new_tokens == trajectory.new_tokens + outputs


def test_with_output_in_mask_leaves_the_original_alone(tokenizer):
    trajectory = whole(tokenizer)
    trajectory.with_output_in_mask().mask[0] = 7
    assert trajectory == whole(tokenizer)


def test_the_first_spans_are_the_beginning_of_the_whole(tokenizer):
    start = whole(tokenizer).first(spans=4, calls=1)
    assert [span.kind for span in start.spans] == ["prompt", "text", "python", "output"]
    expected = f"{USER}1+1?{ASSISTANT}I add.<python>1+1</python><output>2</output>"
    assert tokenizer.decode(start.ids) == expected


def test_the_first_spans_keep_their_mask_and_log_probs(tokenizer):
    trajectory = whole(tokenizer)
    start = trajectory.first(spans=4, calls=1)
    end = start.spans[-1].end
    assert (start.mask, start.logps) == (trajectory.mask[:end], trajectory.logps[:end])


def test_the_first_calls_are_kept(tokenizer):
    trajectory = whole(tokenizer)
    assert trajectory.first(spans=4, calls=1).calls == trajectory.calls[:1]


def test_what_is_done_to_the_first_spans_is_not_done_to_the_whole(tokenizer):
    trajectory = whole(tokenizer)
    start = trajectory.first(spans=4, calls=1)
    start.append("output", [5], 0)  # extends its last span
    start.calls.append(None)
    assert trajectory == whole(tokenizer)


# Demonstrations.


def test_a_demonstration_reads_as_if_the_model_had_written_it(tokenizer):
    trajectory = Format().trajectory(tokenizer, "1+1?", PIECES)
    assert tokenizer.decode(trajectory.ids) == f"{USER}1+1?{ASSISTANT}{WRITTEN}{END}"


def test_a_demonstration_is_masked_exactly(tokenizer):
    trajectory = Format().trajectory(tokenizer, "1+1?", PIECES)
    chosen = [id for id, mask in zip(trajectory.ids, trajectory.mask) if mask]
    assert tokenizer.decode(chosen) == f"I add.<python>1+1</python>So 2.{END}"


@pytest.mark.parametrize("end, reason", [(True, "stop"), (False, "length")])
def test_a_demonstration_without_the_end_id_finishes_as_length(tokenizer, end, reason):
    trajectory = Format().trajectory(tokenizer, "q", [("text", "a")], end=end)
    assert (trajectory.ids[-1] == tokenizer.end_id, trajectory.finish_reason) == (end, reason)


@pytest.fixture
def continued(tokenizer):
    """(a start, its copy from before, a demonstration that continues it)"""
    start = whole(tokenizer).first(spans=4, calls=1)
    before = copy.deepcopy(start)
    pieces = [("text", "So 2.")]
    return start, before, Format().trajectory(tokenizer, "another question", pieces, start=start)


def test_a_demonstration_continues_its_start(tokenizer, continued):
    start, _, done = continued
    assert tokenizer.decode(done.ids) == f"{USER}1+1?{ASSISTANT}{WRITTEN}{END}"
    assert done.finish_reason == "stop"


def test_what_continues_a_start_has_mask_1_and_the_start_keeps_its_mask(continued):
    start, _, done = continued
    assert done.mask == start.mask + [1] * (len(done.ids) - len(start.ids))


def test_a_demonstration_keeps_the_calls_of_its_start_in_a_list_of_its_own(continued):
    start, _, done = continued
    assert done.calls == start.calls
    assert done.calls is not start.calls


def test_a_start_stays_as_it_is(continued):
    start, before, _ = continued
    assert start == before


def test_text_extends_a_copy_of_the_start_s_last_span(tokenizer):
    start = Format().trajectory(tokenizer, "q", [("text", "a")], end=False)
    end = start.spans[-1].end
    done = Format().trajectory(tokenizer, "q", [("text", "b")], start=start)
    assert [span.end for span in done.spans] == [start.spans[0].end, len(done.ids)]
    assert start.spans[-1].end == end


# Reading.


def test_the_completion_is_the_model_s_words_without_code_and_output(tokenizer):
    trajectory = Format().trajectory(tokenizer, "1+1?", PIECES)
    assert trajectory.completion(tokenizer) == "I add.\nSo 2."


def test_a_record_has_every_span_with_its_text_ids_mask_and_log_probs(tokenizer):
    trajectory = whole(tokenizer)
    spans = trajectory.record(tokenizer)["spans"]
    assert [span["kind"] for span in spans] == [span.kind for span in trajectory.spans]
    assert "".join(span["text"] for span in spans) == tokenizer.decode(trajectory.ids)
    for name in ("ids", "mask", "logps"):
        assert sum((span[name] for span in spans), []) == getattr(trajectory, name)


def test_a_record_has_the_calls_and_the_finish_reason(tokenizer):
    record = whole(tokenizer).record(tokenizer)
    assert [(call["tool"], call["code"]) for call in record["calls"]] == [
        ("python", "1+1"),
        ("search", "Oslo"),
    ]
    assert record["calls"][0]["result"]["output"] == "2"
    assert record["finish_reason"] == "stop"


def test_a_record_has_the_trainer_s_log_probs_once_they_are_known(tokenizer):
    trajectory = whole(tokenizer)
    assert "old_logps" not in trajectory.record(tokenizer)["spans"][0]
    trajectory.old_logps = [-0.25] * len(trajectory.ids)
    spans = trajectory.record(tokenizer)["spans"]
    assert sum((span["old_logps"] for span in spans), []) == trajectory.old_logps


# The format.


@pytest.mark.parametrize("style", ["tags", "fences"])
def test_no_question_code_words_or_output_can_forge_a_tag(tokenizer, style):
    format = Format(style)
    evil = "".join(tokenizer.tags)
    pieces = [("text", evil), ("python", evil), ("output", evil)]
    trajectory = format.trajectory(tokenizer, evil, pieces)
    ours = [USER, ASSISTANT, *format.delimiters("python"), *format.delimiters("output"), END]
    found = [id for id in trajectory.ids if id in tokenizer.tags.values()]
    assert found == [tokenizer.tags[tag] for tag in ours]


@pytest.mark.parametrize("style", ["tags", "fences"])
@pytest.mark.parametrize("kind", ["think", "answer"])
def test_thoughts_and_answers_have_tags_in_every_style(style, kind):
    assert Format(style).delimiters(kind) == (f"<{kind}>", f"</{kind}>")


@pytest.mark.parametrize("style", ["tags", "fences"])
def test_thoughts_and_answers_are_the_model_s_words(tokenizer, style):
    trajectory = Format(style).trajectory(tokenizer, "q", [("think", "Hm."), ("answer", "2")])
    assert trajectory.completion(tokenizer) == "<think>Hm.</think><answer>2</answer>"
    assert {tokenizer.tags["<think>"], tokenizer.tags["</answer>"]} < set(trajectory.ids)


@pytest.mark.parametrize("style", ["tags", "fences"])
def test_output_that_fits_is_whole(tokenizer, style):
    whole = Format(style).output_ids(tokenizer, "0123456789" * 5)
    for room in range(len(whole), len(whole) + 3):
        assert Format(style).output_ids(tokenizer, "0123456789" * 5, room) == whole


@pytest.mark.parametrize("style", ["tags", "fences"])
def test_output_that_does_not_fit_is_cut_but_always_closed(tokenizer, style):
    whole = Format(style).output_ids(tokenizer, "0123456789" * 5)
    for room in range(2, len(whole)):
        ids = Format(style).output_ids(tokenizer, "0123456789" * 5, room)
        assert (len(ids), ids[0], ids[-1]) == (room, whole[0], whole[-1])


def test_three_dots_show_where_output_was_cut(tokenizer):
    assert "...</output>" in tokenizer.decode(Format().output_ids(tokenizer, "7" * 50, 20))


@pytest.mark.parametrize("outer", [" {}", "{} ", "\n{}", "{}\r\n", "\t {}\u00a0"])
def test_white_space_around_a_question_is_not_read(tokenizer, outer):
    question = "What  is\n2 * 3 ?"  # inside, white space counts
    ids = Format().prompt(tokenizer, outer.format(question))
    assert ids[1:-1] == tokenizer.encode_untrusted(question)


def test_an_unknown_style_is_named():
    with pytest.raises(ValueError, match="no format 'xml'"):
        Format("xml")
