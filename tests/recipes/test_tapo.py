import pytest
from conftest import ScriptedModel, follow

from nanotir.config import RunConfig, build
from nanotir.generation import NO_CALLS_LEFT
from nanotir.grammar import grammar_error
from nanotir.recipes import tapo
from nanotir.sampler import Sampler, SamplerConfig
from nanotir.trajectory import Format


@pytest.fixture
def answered(tokenizer):
    """answered(first, second): the row of a model that says `first`.

    Once it has read an objection or a result, it says `second`.
    """

    def spell(text):
        return [*tokenizer.encode(text), tokenizer.end_id]

    def answered(first: str, second: str = "", tools=(), format: str = "grammar", **settings):
        closer = tokenizer.tags["</output>"]

        def script(ids):
            if closer not in ids:
                return spell(first)[len(ids)]
            return spell(second)[ids[::-1].index(closer)]

        model = ScriptedModel(len(tokenizer), follow(tokenizer, script))
        config = SamplerConfig(temperature=0.0, **settings)
        return Sampler(model, tokenizer, tools, Format(format), config).generate(["?"])[0]

    return answered


def outputs(row, tokenizer) -> list[str]:
    return [row.text_of(span, tokenizer) for span in row.spans if span.kind == "output"]


def test_the_default_run_is_this_recipe_in_its_plainest_form():
    assert build(tapo.SETTINGS) == RunConfig()


def test_an_answer_in_the_grammar_ends_the_row(tokenizer, answered):
    row = answered("<think>Easy.</think><answer>4</answer>")
    assert row.finish_reason == "stop"
    assert outputs(row, tokenizer) == []


def test_an_answer_outside_the_grammar_is_told_why_and_may_go_on(tokenizer, answered):
    row = answered("<think>Easy.</think>", "<answer>4</answer>")
    (objection,) = outputs(row, tokenizer)
    assert "it must end with an <answer>" in objection
    assert row.finish_reason == "stop"
    assert row.calls == []
    assert grammar_error(row, tokenizer) is None


def test_an_objection_is_raised_once_only(tokenizer, answered):
    row = answered("<think>Easy.</think>", "<think>Still.</think>")
    assert len(outputs(row, tokenizer)) == 1
    assert row.finish_reason == "stop"


def test_an_answer_cannot_be_closed_behind_an_objection(tokenizer, answered):
    row = answered("<answer>4", "</answer>")
    (objection,) = outputs(row, tokenizer)
    assert "<answer> is never closed: answer again." in objection
    assert grammar_error(row, tokenizer) == "<answer> is never closed"


def test_an_objection_is_not_learned_from(answered):
    row = answered("<think>Easy.</think>", "<answer>4</answer>")
    for span in row.spans:
        written = int(span.kind not in ("prompt", "output"))
        assert set(row.mask[span.start : span.end]) == {written}


@pytest.mark.parametrize("more", [0, 1, 2])
def test_no_second_chance_is_given_beyond_max_new_tokens(answered, tokenizer, more):
    spoken = len(tokenizer.encode("<think>Easy.</think>")) + 1
    row = answered("<think>Easy.</think>", "<think>Still easy", max_new_tokens=spoken + more)
    assert row.new_tokens == spoken + more
    assert row.finish_reason == ("length" if more else "stop")


@pytest.mark.parametrize("format", ["tags", "fences"])
def test_other_formats_have_no_grammar_to_break(tokenizer, answered, format):
    row = answered("<think>Easy.", format=format)
    assert [span.kind for span in row.spans] == ["prompt", "text"]


def test_a_call_too_many_is_refused_and_the_last_turn_answers_without_a_tool(
    tokenizer, python, answered
):
    call, answer = "<python>2+2</python>", "<answer>4</answer>"
    row = answered(call, answer, [python], max_calls=0, last_turn=True)
    assert row.finish_reason == "stop"
    assert outputs(row, tokenizer) == [f"<output>{NO_CALLS_LEFT}</output>"]
    assert row.calls == []


def test_without_a_last_turn_a_call_too_many_ends_the_row(tokenizer, python, answered):
    call, answer = "<python>2+2</python>", "<answer>4</answer>"
    row = answered(call, answer, [python], max_calls=0)
    assert row.finish_reason == "budget"
    assert outputs(row, tokenizer) == []
    assert row.calls == []


def test_an_end_inside_a_block_is_no_call(tokenizer, python, answered):
    row = answered("<python>1", "<answer>4</answer>", [python])
    assert row.calls == []
    assert grammar_error(row, tokenizer) == "a call without a result"
