import random
from collections import Counter

import pytest

from nanotir.answers import equivalent, extract_answer
from nanotir.demonstrate import TeacherConfig, demonstrate, script, wrong_guess
from nanotir.problems import load
from nanotir.rewards import completion
from nanotir.trajectory import Format

PROBLEMS = load("generated", n=230)


@pytest.fixture(scope="module")
def taught(tokenizer, python, search):
    def teach(seed=0, **settings):
        return demonstrate(PROBLEMS, tokenizer, Format(), {"python": python, "search": search}, TeacherConfig(**settings), seed)

    return teach


def is_right(trajectory, problem, tokenizer):
    answer = extract_answer(completion(trajectory, tokenizer))
    return answer is not None and equivalent(answer, problem.answer)


def test_a_perfect_teacher_is_always_right_and_calls_where_it_pays(taught, tokenizer):
    for problem, trajectory in zip(PROBLEMS, taught(quality=1.0)):
        assert is_right(trajectory, problem, tokenizer)
        assert all(call.result.ok for call in trajectory.calls) and bool(trajectory.calls) == (problem.kind not in "BC")


def test_a_mediocre_teacher_shows_every_flaw(taught, tokenizer):
    seen = Counter()
    for problem, trajectory in zip(PROBLEMS, taught(quality=0.0)):
        guessed = problem.kind not in "BC" and not trajectory.calls
        assert not (guessed and is_right(trajectory, problem, tokenizer))
        seen["guess"] += guessed
        seen["wrong tool"] += problem.kind == "A" and bool(trajectory.calls) and trajectory.calls[0].tool == "search"
        seen["repaired"] += any(not a.result.ok and b.result.ok for a, b in zip(trajectory.calls, trajectory.calls[1:]))
        seen["no answer"] += extract_answer(completion(trajectory, tokenizer)) is None
    assert min(seen[flaw] for flaw in ("guess", "wrong tool", "repaired", "no answer")) > 0
    assert seen["guess"] > 80


def test_after_a_bug_the_teacher_reads_the_error_and_repairs_the_program(taught, tokenizer):
    buggy = [t for t in taught(quality=0.0) if any(not call.result.ok for call in t.calls)]
    assert buggy
    for trajectory in buggy:
        failed = next(i for i, call in enumerate(trajectory.calls) if not call.result.ok)
        assert "Error" in trajectory.calls[failed].result.output and trajectory.calls[failed + 1].result.ok
        assert "Error" in trajectory.texts(tokenizer, "output")[failed]


def test_a_rationale_has_words_only_and_a_program_has_no_words(taught):
    for trajectory in taught(format="rationale"):
        assert {span.kind for span in trajectory.spans} == {"prompt", "text"}
    for problem, trajectory in zip(PROBLEMS, taught(format="program")):
        assert {span.kind for span in trajectory.spans} - {"prompt", "output", "python", "search"} == {"text"}  # the end id alone
        assert trajectory.spans[-1].end - trajectory.spans[-1].start == 1 and trajectory.calls
        assert problem.kind == "E" or problem.answer in trajectory.calls[-1].result.output


def test_the_teachers_ids_are_trained_and_the_tools_are_not(taught, tokenizer):
    for trajectory in taught():
        for span in trajectory.spans:
            assert set(trajectory.trained[span.start : span.end]) == {int(span.kind not in ("prompt", "output"))}
        assert trajectory.ids[-1] == tokenizer.end_id and trajectory.trained[-1] == 1


def test_the_same_seed_gives_the_same_demonstrations(taught):
    assert [t.ids for t in taught(seed=1)] == [t.ids for t in taught(seed=1)] != [t.ids for t in taught(seed=2)]


def test_quality_is_the_share_of_flawless_demonstrations():
    problem = next(p for p in PROBLEMS if p.family == "mul")
    whole = [*problem.solution, ("text", f"The answer is \\boxed{{{problem.answer}}}.")]
    rng = random.Random(0)
    share = sum(script(problem, rng, TeacherConfig(quality=0.7)) == whole for _ in range(2000)) / 2000
    assert abs(share - 0.7) < 0.04  # four standard errors


def test_a_wrong_guess_is_wrong():
    rng = random.Random(0)
    for answer in ("7", "-4, 2", "sqrt(10)", "3/4", "South Ford", "quotient 3 remainder 1", "Ada"):
        assert all(wrong_guess(answer, rng) != answer for _ in range(200))


@pytest.mark.parametrize("settings", [{"format": "tools"}, {"quality": 1.5}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError):
        TeacherConfig(**settings)
