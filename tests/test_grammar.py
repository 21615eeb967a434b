import pytest

from nanotir.grammar import grammar_error
from nanotir.trajectory import Format, Trajectory

CALL, SEARCH = ("python", "1"), ("search", "x")
RESULT = ("output", "1")
THOUGHT = ("text", "<think>a</think>")
ANSWER = ("text", "<answer>1</answer>")


def rollout(tokenizer, turns):
    """A trajectory of these turns. In text, tags become their ids; calls and output are blocks."""
    trajectory = Trajectory()
    trajectory.append("prompt", Format().prompt(tokenizer, "q"), 0)
    for kind, text in turns:
        if kind == "text":
            trajectory.append("text", tokenizer.encode(text), 1)
        else:
            words = tokenizer.encode_untrusted(text)
            trajectory.append(kind, Format().block(tokenizer, kind, words), int(kind != "output"))
    return trajectory


@pytest.mark.parametrize(
    "turns",
    [
        [ANSWER],
        [("text", "<think>a</think><answer>1</answer><|end|>")],
        [("text", "<think>a</think>\n"), CALL, RESULT, ("text", "\n<think>b</think> "), ANSWER],
        [THOUGHT, ("text", "<answer>1</answer>\n")],
        [CALL, RESULT, SEARCH, RESULT, ANSWER],
        [("text", "<think></think><think>b</think><answer></answer>")],
        [("text", "<think>a</think><|end|>"), RESULT, ANSWER],  # after an objection
    ],
)
def test_thoughts_and_calls_in_any_order_and_then_the_answer_keep_the_grammar(tokenizer, turns):
    assert grammar_error(rollout(tokenizer, turns), tokenizer) is None


BREAKS = {
    "it must end with an <answer>": [
        [],
        [("text", "<|end|>")],
        [THOUGHT, CALL, RESULT],
    ],
    "words outside <think> and <answer>": [
        [("text", "Hm.<answer>1</answer>")],
        [THOUGHT, CALL, RESULT, ("text", "So <answer>1</answer>")],
        [("text", "<output>1</output><answer>1</answer>")],
        [("text", "</python><answer>1</answer>")],
    ],
    "nothing may follow the answer": [
        [("text", "<answer>1</answer> Bye.")],
        [("text", "<answer>1</answer><answer>1</answer>")],
        [("text", "<answer>1</answer><think>a</think>")],
        [ANSWER, CALL, RESULT],
    ],
    "<think> is never closed": [
        [("text", "<think>a")],
        [("text", "<think>a<|end|>"), RESULT, ("text", "</think><answer>1</answer>")],
    ],
    "<answer> is never closed": [
        [("text", "<think>a</think><answer>1")],
        [("text", "<answer>1<|end|>"), RESULT, ("text", "</answer><|end|>")],
    ],
    "</think> closes nothing": [
        [("text", "</think><answer>1</answer>")],
        [("text", "<think>a</think></think><answer>1</answer>")],
    ],
    "</answer> closes nothing": [[("text", "<think>a</answer>")]],
    "<think> holds another tag": [
        [("text", "<think><answer>1</answer></think>")],
        [("text", "<think>a<think>b</think><answer>1</answer>")],
        [("text", "<think><output>1</output></think><answer>1</answer>")],
        [("text", "<think></python></think><answer>1</answer>")],
    ],
    "<answer> holds another tag": [[("text", "<answer><think>a</think>1</answer>")]],
    "a call inside <think> or <answer>": [
        [("text", "<think>a"), CALL, RESULT, ("text", "</think><answer>1</answer>")],
        [("text", "<answer>"), CALL, RESULT, ("text", "1</answer>")],
    ],
    "a call without a result": [
        [CALL, ANSWER],
        [CALL, THOUGHT, ANSWER],
        [THOUGHT, CALL],
    ],
}


@pytest.mark.parametrize("message", BREAKS)
def test_what_breaks_the_grammar_is_named(tokenizer, message):
    for turns in BREAKS[message]:
        assert grammar_error(rollout(tokenizer, turns), tokenizer) == message, turns


SPELLED = [
    "<think>a</think>",
    "<answer>1</answer>",
    "</answer>",
    "<|end|>",
]


@pytest.mark.parametrize("text", SPELLED)
def test_a_tag_that_is_spelled_out_is_words(tokenizer, text):
    words = tokenizer.encode_untrusted(text)
    answer = Format().block(tokenizer, "answer", tokenizer.encode("1"))
    outside, inside = rollout(tokenizer, []), rollout(tokenizer, [])
    outside.append("text", words + answer, 1)
    inside.append("text", Format().block(tokenizer, "think", words) + answer, 1)
    assert grammar_error(outside, tokenizer) == "words outside <think> and <answer>"
    assert grammar_error(inside, tokenizer) is None


@pytest.mark.parametrize("ending", ["", "</python>", "</python><|end|>"])
def test_a_call_that_its_tag_does_not_close_has_no_result(tokenizer, ending):
    trajectory = rollout(tokenizer, [])
    ids = [tokenizer.tags["<python>"], *tokenizer.encode_untrusted("1" + ending)]
    trajectory.append("python", [*ids, tokenizer.end_id], 1)
    trajectory.append("output", Format().output_ids(tokenizer, "1"), 0)
    trajectory.append("text", tokenizer.encode("<answer>1</answer>"), 1)
    assert grammar_error(trajectory, tokenizer) == "a call without a result"


# Batches.
