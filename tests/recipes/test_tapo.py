import pytest
from conftest import ScriptedModel, follow

from nanotir.config import RunConfig, build
from nanotir.recipes import tapo
from nanotir.sampler import NO_CALLS_LEFT, Sampler, SamplerConfig
from nanotir.trajectory import Format, grammar_error


def answered(tokenizer, tools, first: str, second: str, **settings):
    """The row of a model that says `first`, and `second` once it has read an objection or a result."""
    spell = lambda text: [*tokenizer.encode(text), tokenizer.end_id]
    closer = tokenizer.tags["</output>"]

    def script(ids):
        if closer not in ids:
            return spell(first)[len(ids)]
        return spell(second)[len(ids) - 1 - max(i for i, id in enumerate(ids) if id == closer)]

    sampler = Sampler(
        ScriptedModel(len(tokenizer), follow(tokenizer, script)),
        tokenizer,
        tools,
        Format("grammar"),
        SamplerConfig(temperature=0.0, **settings),
    )
    return sampler.generate(["?"])[0]


def test_the_default_run_is_this_recipe_in_its_plainest_form():
    assert build(tapo.SETTINGS) == RunConfig()


def test_an_answer_in_the_grammar_ends_the_row(tokenizer):
    row = answered(tokenizer, [], "<think>Easy.</think><answer>4</answer>", "")
    assert row.finish_reason == "stop" and "output" not in {span.kind for span in row.spans}


def test_an_answer_outside_the_grammar_is_told_why_and_may_go_on(tokenizer):
    row = answered(tokenizer, [], "<think>Easy.</think>", "<answer>4</answer>")
    (objection,) = row.texts(tokenizer, "output")
    assert (
        "it must end with an <answer>" in objection
        and row.finish_reason == "stop"
        and row.calls == []
    )
    assert grammar_error(row.turns(tokenizer)) is None


def test_an_objection_is_raised_once_only(tokenizer):
    row = answered(tokenizer, [], "<think>Easy.</think>", "<think>Still.</think>")
    assert len(row.texts(tokenizer, "output")) == 1 and row.finish_reason == "stop"


def test_an_objection_is_not_trained_on(tokenizer):
    row = answered(tokenizer, [], "<think>Easy.</think>", "<answer>4</answer>")
    for span in row.spans:
        assert set(row.trained[span.start : span.end]) == {
            int(span.kind not in ("prompt", "output"))
        }


def test_other_formats_have_no_grammar_to_break(tokenizer):
    sampler = Sampler(
        ScriptedModel(len(tokenizer), follow(tokenizer, lambda ids: tokenizer.end_id)),
        tokenizer,
        [],
        Format("tags"),
        SamplerConfig(),
    )
    assert [span.kind for span in sampler.generate(["?"])[0].spans] == ["prompt", "text"]


@pytest.mark.parametrize("last_turn, finish", [(True, "stop"), (False, "budget")])
def test_the_last_turn_answers_without_a_tool(tokenizer, python, last_turn, finish):
    row = answered(
        tokenizer,
        [python],
        "<python>2+2</python>",
        "<answer>4</answer>",
        max_calls=0,
        last_turn=last_turn,
    )
    assert row.finish_reason == finish
    assert (
        row.texts(tokenizer, "output")
        == ([f"<output>{NO_CALLS_LEFT}</output>"] if last_turn else [])
        and row.calls == []
    )


def test_an_end_inside_a_block_is_no_call(tokenizer, python):
    row = answered(tokenizer, [python], "<python>1", "<answer>4</answer>")
    assert row.calls == [] and grammar_error(row.turns(tokenizer)) == "a call without a result"
