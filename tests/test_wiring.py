"""What a run is put together from: its tools and its tokenizer, and what a new tool takes."""

import json

import pytest
from conftest import ScriptedModel, follow

import train
from nanotir.config import build, parse
from nanotir.demonstrate import corpus
from nanotir.policy import load_run, make_tokenizer, open_tools
from nanotir.problems import Problem, load
from nanotir.problems.generate import documents
from nanotir.sampler import Sampler, SamplerConfig
from nanotir.tokenizer import Tokenizer
from nanotir.tools import TOOLS, SearchTool, Tool, ToolResult


def open_all(names: str, **settings) -> list[Tool]:
    tools = open_tools({"tools": names, **settings})
    for tool in tools:
        tool.close()
    return tools


def test_a_tool_has_the_settings_of_its_section():
    (search,) = open_all("search", search={"top_k": 3})
    assert search.config.top_k == 3


def test_tools_come_in_the_order_of_the_setting():
    assert [tool.name for tool in open_all(" search , python,")] == ["search", "python"]


def test_a_tool_that_is_named_twice_is_one():
    assert [tool.name for tool in open_all("python,search,python")] == ["python", "search"]


def test_an_unknown_tool_is_named():
    with pytest.raises(ValueError, match="no tool 'pyton': did you mean 'python'"):
        open_tools({"tools": "pyton"})


# Tokenizers.

SOLD = [
    {"question": f"Natalia sold {n} clips in April. How many clips did Natalia sell?", "answer": n}
    for n in range(40)
]


@pytest.fixture
def clips(tmp_path) -> str:
    """A file of problems like GSM8K's."""
    path = tmp_path / "clips.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in SOLD))
    return f"jsonl:{path}"


def made_for(data: str, tools=(), **settings) -> Tokenizer:
    values = {"data": data, "eval_data": "generated", "problems": 40, "model.vocab_size": 500}
    config = build(values | settings)
    problems = load(config.data, "train", config.problems, config.seed)
    tokenizer, model = make_tokenizer(config, problems, tools)
    assert model.vocab_size == len(tokenizer)
    return tokenizer


def is_trained_on(tokenizer: Tokenizer, problems: list[Problem], documents=()) -> bool:
    """Whether it spells all texts like a tokenizer that is trained on these ones."""
    expected = Tokenizer.train(corpus(problems, documents), 500, tools=TOOLS)
    sentences = [text for row in SOLD for text in (row["question"],)]
    sentences += [*corpus(load("generated", n=40)), "The population of Great Hill is 384."]
    return all(tokenizer.encode(text) == expected.encode(text) for text in sentences)


def test_a_file_of_problems_is_what_its_tokenizer_is_trained_on(clips, search):
    tokenizer = made_for(clips, [search])
    assert is_trained_on(tokenizer, load(clips))
    assert len(tokenizer.encode(" clips")) == 1


def test_a_file_of_problems_leaves_the_toy_worlds_documents_out(clips, search):
    assert not is_trained_on(made_for(clips, [search]), load(clips), documents())
    assert len(made_for(clips, [search]).encode(" population")) > 1


def test_the_documents_that_a_run_names_are_trained_on_whatever_its_problems(clips, tmp_path):
    path = tmp_path / "documents.txt"
    path.write_text("A population of clips.\n" * 20)
    with SearchTool(path=path) as tool:
        tokenizer = made_for(clips, [tool], **{"search.path": str(path)})
    assert is_trained_on(tokenizer, load(clips), ["A population of clips."] * 20)


def test_generated_problems_are_trained_on_with_the_documents_that_are_searched(search):
    tokenizer = made_for("generated", [search])
    assert is_trained_on(tokenizer, load("generated", n=40), documents())


def test_without_a_search_tool_no_documents_are_trained_on(python):
    assert is_trained_on(made_for("generated", [python]), load("generated", n=40))


def test_a_file_of_problems_is_trained_with_from_the_command(clips, tmp_path):
    out = tmp_path / "run"
    short = "--preset probe --tools search --sft.steps 1 --rl.steps 0 --eval.problems 1"
    arguments = [*short.split(), "--model.vocab_size", "500", "--out", str(out)]
    train.train(parse([*arguments, "--data", clips, "--eval-data", clips]))
    _, _, tokenizer, _, _ = load_run(out)
    assert is_trained_on(tokenizer, load(clips))


# A new tool is its class and a row of TOOLS.


class Reverse(Tool):
    name = "reverse"
    deterministic = True

    def run(self, text, session=None):
        return ToolResult(text[::-1])


@pytest.fixture
def new_tool(monkeypatch):
    monkeypatch.setitem(TOOLS, "reverse", Reverse)


def test_a_new_tool_is_trained_with_and_can_be_called(new_tool, tmp_path):
    out = tmp_path / "run"
    short = "--preset probe --problems 40 --sft.steps 2 --rl.steps 1 --eval.problems 2"
    train.train(parse([*short.split(), "--tools", "reverse", "--out", str(out)]))

    _, _, tokenizer, format, tools = load_run(out)
    assert [type(tool) for tool in tools] == [Reverse]
    assert {"<reverse>", "</reverse>", "```reverse\n"} <= set(tokenizer.tags)
    assert called(tokenizer, tools, format) == [("reverse", "drawer", "reward")]


def test_a_new_tool_goes_with_the_others(new_tool, python):
    tokenizer = made_for("generated", [python])
    assert called(tokenizer, [python, Reverse()]) == [("reverse", "drawer", "reward")]


def called(tokenizer, tools, format=None) -> list[tuple]:
    """The calls of a model that calls the new tool once, and then answers."""
    call = tokenizer.encode("<reverse>drawer</reverse>")
    answer = [*tokenizer.encode("Done."), tokenizer.end_id]
    closer = tokenizer.tags["</output>"]

    def script(ids):
        if closer not in ids:
            return call[len(ids)]
        return answer[len(ids) - 1 - ids.index(closer)]

    model = ScriptedModel(len(tokenizer), follow(tokenizer, script))
    sampler = Sampler(model, tokenizer, tools, format, SamplerConfig(temperature=0.0))
    (row,) = sampler.generate(["?"])
    assert row.finish_reason == "stop"
    return [(call.tool, call.code, call.result.output) for call in row.calls]
