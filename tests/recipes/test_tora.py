import json
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from nanotir import sft
from nanotir.config import PRESETS, build
from nanotir.demonstrate import TeacherConfig, demonstrate
from nanotir.lab.toy import make_run
from nanotir.problems import Problem, load
from nanotir.recipes import tora
from nanotir.rewards import is_correct
from nanotir.trajectory import Format

pytestmark = pytest.mark.usefixtures("shared_tools")
(HOME,) = load("generated:home", n=1)
MUL = Problem("What is 12 * 34?", "408", solution=(("text", "I multiply."), ("python", "12*34")))
WOOL = ("search", "price of fine wool")


# Wrong answers that the teacher completes.


@pytest.fixture
def desk(tokenizer, python, search):
    """What `correct` needs of a run."""
    tools = {"python": python, "search": search}
    config = SimpleNamespace(teacher=TeacherConfig(styles=3))
    return SimpleNamespace(tokenizer=tokenizer, format=Format(), tools_by_name=tools, config=config)


def demonstration(desk, problem, pieces=None):
    solved = replace(problem, solution=tuple(pieces)) if pieces else problem
    teacher = TeacherConfig(quality=1.0)
    return demonstrate([solved], desk.tokenizer, desk.format, desk.tools_by_name, teacher)[0]


def test_all_calls_of_the_teacher_itself_are_good(desk):
    teacher = demonstration(desk, HOME)
    assert tora.good_calls(teacher, teacher) == len(teacher.calls) == 2


def test_calls_are_good_as_far_as_they_say_what_the_teachers_say(desk):
    teacher = demonstration(desk, HOME)
    lost = demonstration(desk, HOME, [*HOME.solution[:3], WOOL])
    astray = demonstration(desk, HOME, [WOOL, *HOME.solution])
    assert tora.good_calls(lost, teacher) == 1
    assert tora.good_calls(astray, teacher) == 0


def test_a_wrong_answer_is_completed_from_its_longest_good_prefix(desk):
    wrong = demonstration(desk, HOME, [*HOME.solution[:3], WOOL])
    (completed,) = tora.correct([(HOME, wrong)], desk)[HOME]
    assert [span.kind for span in completed.spans[:4]] == ["prompt", "text", "search", "output"]
    kept = next(span.end for span in wrong.spans if span.kind == "output")
    assert completed.ids[:kept] == wrong.ids[:kept]
    assert completed.ids != wrong.ids
    assert len(completed.calls) == 2
    assert is_correct(completed.completion(desk.tokenizer), HOME.answer)


def test_an_answer_is_completed_by_calls_of_the_run_s_own_tools_alone(desk):
    wool = HOME.solution[:2]
    problem = replace(HOME, solution=(("text", "I add."), ("python", "1+1"), *wool, *MUL.solution))
    del desk.tools_by_name["search"]
    wrong = demonstration(desk, problem, [("text", "I add."), ("python", "1+1"), ("text", "So 3.")])
    (completed,) = tora.correct([(problem, wrong)], desk)[problem]
    calls = [span.kind for span in completed.spans if span.kind not in ("prompt", "text")]
    assert calls == ["python", "output"] * 2


def test_a_misread_result_is_completed_by_the_answer_alone(desk):
    (problem,) = load("generated:mul", n=1)
    wrong = demonstration(desk, replace(problem, answer="1"))
    (completed,) = tora.correct([(problem, wrong)], desk)[problem]
    assert is_correct(completed.completion(desk.tokenizer), problem.answer)
    assert len(completed.calls) == 1


def test_an_answer_without_a_good_prefix_is_left_alone(desk):
    astray = demonstration(desk, HOME, [WOOL])
    assert tora.correct([(HOME, astray)], desk) == {}
    alien = demonstration(desk, MUL, [("python", "'?'[0]")])
    assert tora.correct([(replace(MUL, solution=(("python", "2*3"),)), alien)], desk) == {}


@pytest.mark.parametrize(
    "written, kept, program",
    [
        ("12*35", "12*3", "12*34"),
        ("print(12-34)", "print(12", "print(12*34)"),
        ("r=12*4\nr", "r=12*", "r=12*34\nr"),
    ],
)
def test_a_wrong_program_is_kept_as_far_as_the_teacher_could_have_written_it(
    desk, written, kept, program
):
    words = ("text", "Let me see.")
    wrong = demonstration(desk, replace(MUL, answer="1"), [words, ("python", written)])
    (completed,) = tora.correct([(MUL, wrong)], desk)[MUL]
    same = len(os.path.commonprefix([completed.ids, wrong.ids]))
    assert desk.tokenizer.decode(wrong.ids[:same]).endswith(f"Let me see.<python>{kept}")
    assert [call.code for call in completed.calls] == [program]
    assert is_correct(completed.completion(desk.tokenizer), "408")
    assert completed.mask == [0 if author in PASSIVE else 1 for author in authors(completed)]


PASSIVE = ("prompt", "output")


def authors(trajectory) -> list[str]:
    spans = trajectory.spans
    return [span.kind for span in spans for _ in range(span.start, span.end)]


def test_a_program_that_was_cut_off_is_completed_as_well(desk):
    cut = demonstration(desk, MUL).first(spans=1, calls=0)
    cut.append("text", desk.tokenizer.encode("12."), 1)
    words = desk.tokenizer.encode("12*")
    cut.append("python", [desk.tokenizer.tags["<python>"], *words], 1)
    (completed,) = tora.correct([(MUL, cut)], desk)[MUL]
    assert completed.ids[: len(cut.ids)] == cut.ids
    assert is_correct(completed.completion(desk.tokenizer), "408")


def test_a_second_program_is_completed_behind_a_good_first_one(desk):
    problem = replace(MUL, solution=(("python", "5+5"), ("text", "Now."), ("python", "12*34")))
    wrong = demonstration(desk, problem, [("python", "5+5"), ("python", "12*99")])
    (completed,) = tora.correct([(problem, wrong)], desk)[problem]
    assert [call.code for call in completed.calls] == ["5+5", "12*34"]
    assert completed.ids[: completed.spans[3].start + 4] == wrong.ids[: wrong.spans[3].start + 4]


# Shaping and retraining.


def probe(tmp_path, **settings):
    small = {"sft.steps": 4, "problems": 40, "tora.samples": 2, "data": "generated:mul"}
    own = {"recipe": "tora", "out": str(tmp_path / "run")}
    given = {name.replace("__", "."): value for name, value in settings.items()}
    return build({**tora.SETTINGS, **PRESETS["probe"], **small, **own, **given})


@pytest.fixture
def always_right(monkeypatch):
    monkeypatch.setattr(tora, "is_valid", lambda *_: True)


def shaped_rows(out) -> list[dict]:
    return [json.loads(line) for line in (out / "shaped.jsonl").read_text().splitlines()]


def test_the_corpus_covers_a_share_of_the_problems(tmp_path):
    with make_run(probe(tmp_path, tora__covered=0.5)) as run:
        assert len(tora.demonstrations(run)) == 20


def test_at_most_keep_distinct_answers_a_problem_are_kept(tmp_path, always_right):
    with make_run(probe(tmp_path, tora__samples=16, tora__keep=2, problems=10)) as run:
        kept = tora.shape(run, [])
    assert len(kept) == 20
    assert len({tuple(t.ids) for t in kept}) == 20


def test_what_the_corpus_has_already_is_not_kept(tmp_path, always_right):
    with make_run(probe(tmp_path, problems=10)) as run:
        kept = tora.shape(run, [])
        others = tora.shape(run, kept[:5])
    known = {tuple(t.ids) for t in kept[:5]}
    assert not known & {tuple(t.ids) for t in others}


def test_without_samples_nothing_is_shaped_and_nothing_retrained(tmp_path, monkeypatch):
    monkeypatch.setattr(sft, "train", lambda *_, **__: pytest.fail("retrained"))
    with make_run(probe(tmp_path, tora__samples=0)) as run:
        tora.improve(run)
    assert not (run.out / "shaped.jsonl").exists()


def test_the_model_is_retrained_from_its_base_not_from_the_cold_start(tmp_path):
    with make_run(probe(tmp_path, sft__steps=2, sft__lr=1e-12, sft__adam_lr=1e-12)) as run:
        run.demonstrations = tora.demonstrations(run)
        start = {name: weight.clone() for name, weight in run.model.state_dict().items()}
        for weight in run.model.parameters():
            weight.data.add_(1.0)  # as if the cold start had moved far
        tora.improve(run)
        torch.testing.assert_close(run.model.state_dict(), start, atol=1e-6, rtol=0)


def test_a_collapse_while_retraining_is_reported_after_an_earlier_one(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(sft, "train", lambda run, shown, phase: seen.append(dict(run.state)))
    with make_run(probe(tmp_path)) as run:
        run.state |= {"peak": {"accuracy": 1.0}, "warned": True, "base": run.model.state_dict()}
        tora.retrain(run, [])
    assert not {"peak", "warned"} & seen[0].keys()


def test_the_model_is_retrained_on_the_corpus_and_what_was_shaped(
    tmp_path, monkeypatch, always_right
):
    seen = []
    monkeypatch.setattr(sft, "train", lambda run, shown, phase: seen.append((phase, shown)))
    with make_run(probe(tmp_path)) as run:
        tora.improve(run)
    ((phase, shown),) = seen
    corpus = tora.demonstrations(run)
    shaped = [row["ids"] for row in shaped_rows(run.out)]
    assert phase == "retrain"
    assert len(corpus) == round(0.83 * 40)
    assert [t.ids for t in shown] == [t.ids for t in corpus] + shaped
    assert shaped


def test_a_stopped_run_remembers_what_it_had_shaped(tmp_path, always_right):
    with make_run(probe(tmp_path)) as run:
        shaped = tora.shape(run, [])
        path = run.out / "shaped.jsonl"
        first = tora.remembered(path, lambda: shaped)
        again = tora.remembered(path, lambda: pytest.fail("shaped anew"))
    assert [t.ids for t in again] == [t.ids for t in first] == [t.ids for t in shaped]
    assert [t.mask for t in again] == [t.mask for t in shaped]
    assert [t.spans for t in again] == [t.spans for t in shaped]
