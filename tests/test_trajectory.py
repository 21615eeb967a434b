import copy
import random

import pytest
import torch

from nanotir.tokenizer import ASSISTANT, END, TAGS, USER
from nanotir.tools import ToolResult
from nanotir.trajectory import Call, Format, Trajectory, collate, micro_batches

PIECES = [("text", "I add."), ("python", "1+1"), ("output", "2"), ("text", "So 2.")]


def rows(lengths):
    made = []
    for n in lengths:
        trajectory = Trajectory()
        trajectory.append("prompt", list(range(1, n // 2 + 1)), 0)
        trajectory.append("text", list(range(100, 100 + n - n // 2)), 1, [-0.5] * (n - n // 2))
        made.append(trajectory)
    return made


def test_ids_mask_and_logps_stay_parallel_and_spans_cover_them():
    trajectory = Trajectory()
    trajectory.append("prompt", [1, 2], 0)
    trajectory.append("text", [3], 1, [-0.1])
    trajectory.append("text", [4], 1, [-0.2])
    trajectory.append("output", [5, 6], 0)
    assert trajectory.ids == [1, 2, 3, 4, 5, 6]
    assert trajectory.trained == [0, 0, 1, 1, 0, 0] and trajectory.logps == [0, 0, -0.1, -0.2, 0, 0]
    assert [(s.kind, s.start, s.end) for s in trajectory.spans] == [
        ("prompt", 0, 2),
        ("text", 2, 4),
        ("output", 4, 6),
    ]
    assert trajectory.new_tokens == 2


def test_a_demonstration_is_masked_exactly(tokenizer):
    trajectory = Format().trajectory(tokenizer, "1+1?", PIECES)
    text = tokenizer.decode(trajectory.ids)
    assert text == f"{USER}1+1?{ASSISTANT}I add.<python>1+1</python><output>2</output>So 2.{END}"
    trained = tokenizer.decode(
        [id for id, chosen in zip(trajectory.ids, trajectory.trained) if chosen]
    )
    assert trained == f"I add.<python>1+1</python>So 2.{END}"
    assert trajectory.texts(tokenizer) == ["I add.", "So 2."] and trajectory.texts(
        tokenizer, "output"
    ) == ["<output>2</output>"]


def whole(tokenizer):
    trajectory = Format().trajectory(
        tokenizer, "1+1?", [*PIECES, ("search", "Oslo"), ("output", "a town")]
    )
    trajectory.calls = [
        Call("python", "1+1", ToolResult("2")),
        Call("search", "Oslo", ToolResult("a town")),
    ]
    return trajectory


def test_unmasked_marks_the_outputs_in_addition_and_nothing_else(tokenizer):
    trajectory = whole(tokenizer)
    unmasked, kinds = (
        trajectory.unmasked(),
        [span.kind for span in trajectory.spans for _ in range(span.start, span.end)],
    )
    assert (
        unmasked.trained == [int(kind != "prompt") for kind in kinds]
        and unmasked.ids == trajectory.ids
    )
    assert unmasked.new_tokens == trajectory.new_tokens + kinds.count("output")


def test_unmasked_leaves_the_original_alone(tokenizer):
    trajectory = whole(tokenizer)
    trajectory.unmasked().trained[0] = 7
    assert trajectory == whole(tokenizer)


def test_the_first_spans_and_calls_are_the_beginning_of_the_whole(tokenizer):
    trajectory, start = whole(tokenizer), whole(tokenizer).first(spans=4, calls=1)
    assert [span.kind for span in start.spans] == ["prompt", "text", "python", "output"]
    assert (
        tokenizer.decode(start.ids)
        == f"{USER}1+1?{ASSISTANT}I add.<python>1+1</python><output>2</output>"
    )
    assert len(start.ids) == len(start.trained) == len(start.logps) == start.spans[-1].end
    assert (
        start.trained == trajectory.trained[: len(start.ids)]
        and start.calls == trajectory.calls[:1]
    )


def test_what_is_done_to_the_first_spans_is_not_done_to_the_whole(tokenizer):
    trajectory = whole(tokenizer)
    start = trajectory.first(spans=4, calls=1)
    start.append("output", [5], 0)  # stretches its last span
    start.calls.append(None)
    assert trajectory == whole(tokenizer)


def test_a_demonstration_goes_on_from_a_start_and_leaves_it_alone(tokenizer):
    start = whole(tokenizer).first(spans=4, calls=1)
    before = copy.deepcopy(start)
    done = Format().trajectory(tokenizer, "another question", [("text", "So 2.")], start=start)
    assert (
        tokenizer.decode(done.ids)
        == f"{USER}1+1?{ASSISTANT}I add.<python>1+1</python><output>2</output>So 2.{END}"
    )
    assert done.trained[: len(start.ids)] == start.trained and all(done.trained[len(start.ids) :])
    assert (
        done.finish_reason == "stop"
        and done.calls == start.calls
        and done.calls is not start.calls
        and start == before
    )


def test_text_goes_on_where_the_starts_text_ended_on_a_copy_of_its_span(tokenizer):
    start = Format().trajectory(tokenizer, "q", [("text", "a")], end=False)
    end = start.spans[-1].end
    done = Format().trajectory(tokenizer, "q", [("text", "b")], start=start)
    assert (
        len(done.spans) == 2 and done.spans[-1].end == len(done.ids) and start.spans[-1].end == end
    )


def test_turns_are_all_that_follows_the_prompt_with_delimiters_and_without_the_end(tokenizer):
    assert whole(tokenizer).turns(tokenizer) == [
        ("text", "I add."),
        ("python", "<python>1+1</python>"),
        ("output", "<output>2</output>"),
        ("text", "So 2."),
        ("search", "<search>Oslo</search>"),
        ("output", "<output>a town</output>"),
        ("text", ""),
    ]


@pytest.mark.parametrize("style", ["tags", "fences"])
def test_no_question_code_words_or_output_can_forge_a_tag(tokenizer, style):
    evil = "".join(TAGS)
    trajectory = Format(style).trajectory(
        tokenizer, evil, [("text", evil), ("python", evil), ("output", evil)]
    )
    opener, closer = Format(style).delimiters("python")
    out_opener, out_closer = Format(style).delimiters("output")
    expected = sorted(
        tokenizer.tags[tag]
        for tag in (USER, ASSISTANT, opener, closer, out_opener, out_closer, END)
    )
    assert sorted(id for id in trajectory.ids if id in tokenizer.tags.values()) == expected


@pytest.mark.parametrize("style", ["tags", "fences"])
def test_thoughts_and_answers_stand_in_tags_in_every_style_and_are_the_models_words(
    tokenizer, style
):
    assert Format(style).delimiters("think") == ("<think>", "</think>") and Format(
        style
    ).delimiters("answer") == ("<answer>", "</answer>")
    trajectory = Format(style).trajectory(tokenizer, "q", [("think", "Hm."), ("answer", "2")])
    assert trajectory.texts(tokenizer) == ["<think>Hm.</think><answer>2</answer>"]
    assert {tokenizer.tags[tag] for tag in ("<think>", "</think>", "<answer>", "</answer>")} < set(
        trajectory.ids
    )


@pytest.mark.parametrize("style", ["tags", "fences"])
def test_output_that_does_not_fit_is_cut_but_always_closed(tokenizer, style):
    whole = Format(style).output_ids(tokenizer, "0123456789" * 5)
    for room in range(2, len(whole) + 3):
        ids = Format(style).output_ids(tokenizer, "0123456789" * 5, room)
        assert len(ids) <= room and ids[0] == whole[0] and ids[-1] == whole[-1]
        assert ids == whole if room >= len(whole) else len(ids) == room
    assert "..." in tokenizer.decode(Format(style).output_ids(tokenizer, "0123456789" * 5, 20))


@pytest.mark.parametrize("style", ["tags", "fences"])
def test_parse_reads_back_what_a_transcript_says(style):
    format = Format(style)
    block = lambda kind, text: text.join(format.delimiters(kind))
    transcript = (
        "First."
        + block("python", "1+1\n2")
        + block("output", "2")
        + "Then."
        + block("search", "who?")
        + "open "
        + format.delimiters("python")[0]
        + "3"
    )
    pieces = format.parse(transcript)
    assert pieces[:4] == [
        ("text", "First."),
        ("python", "1+1\n2"),
        ("output", "2"),
        ("text", "Then."),
    ]
    assert pieces[4] == ("search", "who?") and [kind for kind, _ in pieces[5:]] == ["text"]


def test_an_unknown_style_is_named():
    with pytest.raises(ValueError, match="no format 'xml'"):
        Format("xml")


def test_a_batch_holds_every_row_and_masks_its_padding():
    trajectories = rows([5, 9, 3])
    batch = collate(trajectories, pad_id=0, rows=[2, 0])
    assert batch.rows == [2, 0]
    for i, row in enumerate(batch.rows):
        n = len(trajectories[row].ids)
        assert batch.ids[i, :n].tolist() == trajectories[row].ids and not batch.ids[i, n:].any()
        assert (
            batch.mask[i, :n].tolist() == [bool(x) for x in trajectories[row].trained]
            and not batch.mask[i, n:].any()
        )
        assert batch.real[i].tolist() == [True] * n + [False] * (batch.ids.shape[1] - n)
        torch.testing.assert_close(batch.logps[i, :n], torch.tensor(trajectories[row].logps))


def test_micro_batches_hold_every_row_once_within_the_limit_and_waste_little():
    rng = random.Random(0)
    trajectories = rows([rng.randrange(4, 120) for _ in range(200)] + [700])
    batches = list(micro_batches(trajectories, 0, max_tokens=512))
    assert sorted(row for batch in batches for row in batch.rows) == list(range(201))
    for batch in batches:
        lengths = [len(trajectories[row].ids) for row in batch.rows]
        assert max(lengths) * len(lengths) <= 512 or len(lengths) == 1
        assert 3 * min(lengths) >= 2 * max(lengths)
    longest = [max(len(trajectories[row].ids) for row in batch.rows) for batch in batches]
    assert longest == sorted(longest, reverse=True)


def test_a_record_tells_the_whole_story(tokenizer):
    record = Format().trajectory(tokenizer, "1+1?", PIECES).record(tokenizer)
    assert [span["kind"] for span in record["spans"]] == [
        "prompt",
        "text",
        "python",
        "output",
        "text",
    ]
    assert "".join(span["text"] for span in record["spans"]).endswith(f"So 2.{END}")
    assert record["finish_reason"] == "stop"
