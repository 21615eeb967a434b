import json
from dataclasses import replace

import pytest
import torch

from nanotir.checkpoint import open_run
from nanotir.config import PRESETS, RECIPES, build
from nanotir.demonstrate import TeacherConfig, demonstrate
from nanotir.problems import load
from nanotir.recipes import tora
from nanotir.rewards import completion, is_correct
from nanotir.trajectory import Format

pytestmark = pytest.mark.usefixtures("shared_tools")
HOME = next(p for p in load("generated:home", n=1))


def demonstration(problem, tokenizer, tools, pieces=None):
    solved = replace(problem, solution=tuple(pieces)) if pieces else problem
    return demonstrate([solved], tokenizer, Format(), tools, TeacherConfig(quality=1.0))[0]


@pytest.fixture
def tools(python, search):
    return {"python": python, "search": search}


def test_a_prefix_is_good_as_far_as_its_calls_say_what_the_teachers_say(tokenizer, tools):
    teacher = demonstration(HOME, tokenizer, tools)
    assert tora.good_calls(teacher, teacher) == len(teacher.calls) == 2
    lost = demonstration(
        HOME, tokenizer, tools, [*HOME.solution[:3], ("search", "price of fine wool")]
    )
    assert tora.good_calls(lost, teacher) == 1
    astray = demonstration(
        HOME, tokenizer, tools, [("search", "price of fine wool"), *HOME.solution]
    )
    assert tora.good_calls(astray, teacher) == 0


class Bench:
    """What `correct` needs of a run."""

    def __init__(self, tokenizer):
        self.tokenizer, self.format = tokenizer, Format()


def test_a_wrong_answer_is_completed_from_its_longest_good_prefix(tokenizer, tools):
    wrong = demonstration(
        HOME, tokenizer, tools, [*HOME.solution[:3], ("search", "price of fine wool")]
    )
    (completed,) = tora.correct([(HOME, wrong)], Bench(tokenizer), tools)[HOME]
    kept = wrong.spans[2].end  # prompt, words and first call, its output
    assert [s.kind for s in completed.spans[:4]] == ["prompt", "text", "search", "output"]
    kept = next(s.end for s in wrong.spans if s.kind == "output")
    assert completed.ids[:kept] == wrong.ids[:kept] and completed.ids != wrong.ids
    assert is_correct(completion(completed, tokenizer), HOME.answer) and len(completed.calls) == 2


def test_a_misread_result_is_completed_by_the_answer_alone(tokenizer, tools):
    problem = load("generated:mul", n=1)[0]
    wrong = demonstration(replace(problem, answer="1"), tokenizer, tools)
    (completed,) = tora.correct([(problem, wrong)], Bench(tokenizer), tools)[problem]
    assert (
        is_correct(completion(completed, tokenizer), problem.answer) and len(completed.calls) == 1
    )


def test_an_answer_without_a_good_prefix_is_left_alone(tokenizer, tools):
    astray = demonstration(HOME, tokenizer, tools, [("search", "price of fine wool")])
    assert tora.correct([(HOME, astray)], Bench(tokenizer), tools) == {}


def probe(tmp_path, **settings):
    values = {
        **tora.SETTINGS,
        **PRESETS["probe"],
        "sft.steps": 4,
        "problems": 40,
        "tora.samples": 2,
        "recipe": "tora",
        "data": "generated:mul",
        "out": str(tmp_path / "run"),
    }
    return build(values | {name.replace("__", "."): value for name, value in settings.items()})


@pytest.fixture
def always_right(monkeypatch):
    monkeypatch.setattr(tora, "right", lambda *_: True)


def test_at_most_keep_distinct_answers_a_problem_are_kept(tmp_path, always_right):
    with open_run(probe(tmp_path, tora__samples=4, tora__keep=2, problems=10)) as run:
        kept = tora.shape(run, {tool.name: tool for tool in run.tools}, [])
    assert len(kept) == 20 and len({tuple(t.ids) for t in kept}) == 20


def test_the_model_is_retrained_from_its_base_not_from_the_cold_start(tmp_path):
    with open_run(probe(tmp_path, sft__steps=2, sft__lr=1e-12, sft__adam_lr=1e-12)) as run:
        start = {name: weight.clone() for name, weight in run.model.state_dict().items()}
        for weight in run.model.parameters():
            weight.data.add_(1.0)  # as if the cold start had moved far
        run.state["done"] = ["sft"]
        tora.train(run)
        torch.testing.assert_close(run.model.state_dict(), start, atol=1e-6, rtol=0)


def test_the_control_learns_from_as_many_demonstrations_and_from_no_answer_of_the_model(
    tmp_path, monkeypatch, always_right
):
    seen = []
    monkeypatch.setattr(
        tora.sft, "train", lambda run, demonstrations, phase="sft": seen.append(demonstrations)
    )
    with open_run(probe(tmp_path, tora__control=True)) as run:
        tora.train(run)
    corpus, all_of_it = seen
    shaped = [
        json.loads(line) for line in (tmp_path / "run" / "shaped.jsonl").read_text().splitlines()
    ]
    assert len(all_of_it) == len(corpus) + len(shaped) > len(corpus) == round(0.83 * 40)
    known = {tuple(t.ids) for t in corpus}
    assert all(tuple(t.ids) in known for t in all_of_it)


def test_a_stopped_run_remembers_what_it_had_shaped(tmp_path, always_right):
    with open_run(probe(tmp_path)) as run:
        shaped = tora.shape(run, {tool.name: tool for tool in run.tools}, [])
        first = tora.remembered(run.out / "shaped.jsonl", lambda: shaped)
        again = tora.remembered(run.out / "shaped.jsonl", lambda: pytest.fail("shaped anew"))
    assert [t.ids for t in again] == [t.ids for t in shaped] == [t.ids for t in first] and [
        t.spans for t in again
    ] == [t.spans for t in shaped]


def test_every_recipe_is_a_file_with_settings_and_train():
    assert set(RECIPES) == {"grpo", "tora", "cir", "autocode", "tapo"}
    for name, recipe in RECIPES.items():
        assert build({**recipe.SETTINGS, "recipe": name}).recipe == name and callable(recipe.train)
