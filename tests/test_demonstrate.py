import copy
import random
import re
from collections import Counter

import pytest

from nanotir.answers import equivalent, extract_answer
from nanotir.demonstrate import TeacherConfig, act_out, demonstrate, in_grammar, script, wrong_guess
from nanotir.problems import load
from nanotir.rewards import completion, grammar_error
from nanotir.trajectory import Format

PROBLEMS = load("generated", n=230)


@pytest.fixture(scope="module")
def taught(tokenizer, python, search):
    def teach(seed=0, **settings):
        return demonstrate(
            PROBLEMS,
            tokenizer,
            Format(),
            {"python": python, "search": search},
            TeacherConfig(**settings),
            seed,
        )

    return teach


def is_right(trajectory, problem, tokenizer):
    answer = extract_answer(completion(trajectory, tokenizer))
    return answer is not None and equivalent(answer, problem.answer)


def test_a_perfect_teacher_is_always_right_and_calls_where_it_pays(taught, tokenizer):
    for problem, trajectory in zip(PROBLEMS, taught(quality=1.0)):
        assert is_right(trajectory, problem, tokenizer)
        assert all(call.result.ok for call in trajectory.calls) and bool(trajectory.calls) == (
            problem.kind not in "BC"
        )


def test_a_mediocre_teacher_shows_every_flaw(taught, tokenizer):
    seen = Counter()
    for problem, trajectory in zip(PROBLEMS, taught(quality=0.0)):
        guessed = problem.kind not in "BC" and not trajectory.calls
        assert not (guessed and is_right(trajectory, problem, tokenizer))
        seen["guess"] += guessed
        seen["wrong tool"] += (
            problem.kind == "A" and bool(trajectory.calls) and trajectory.calls[0].tool == "search"
        )
        seen["repaired"] += any(
            not a.result.ok and b.result.ok for a, b in zip(trajectory.calls, trajectory.calls[1:])
        )
        seen["no answer"] += extract_answer(completion(trajectory, tokenizer)) is None
    assert min(seen[flaw] for flaw in ("guess", "wrong tool", "repaired", "no answer")) > 0
    assert seen["guess"] > 80


def test_after_a_bug_the_teacher_reads_the_error_and_repairs_the_program(taught, tokenizer):
    buggy = [t for t in taught(quality=0.0) if any(not call.result.ok for call in t.calls)]
    assert buggy
    for trajectory in buggy:
        failed = next(i for i, call in enumerate(trajectory.calls) if not call.result.ok)
        assert (
            "Error" in trajectory.calls[failed].result.output
            and trajectory.calls[failed + 1].result.ok
        )
        assert "Error" in trajectory.texts(tokenizer, "output")[failed]


def test_a_rationale_has_words_only_and_a_program_has_no_words(taught):
    for trajectory in taught(format="rationale"):
        assert {span.kind for span in trajectory.spans} == {"prompt", "text"}
    for problem, trajectory in zip(PROBLEMS, taught(format="program")):
        assert {span.kind for span in trajectory.spans} - {
            "prompt",
            "output",
            "python",
            "search",
        } == {"text"}  # the end id alone
        assert trajectory.spans[-1].end - trajectory.spans[-1].start == 1 and trajectory.calls
        assert problem.kind == "E" or problem.answer in trajectory.calls[-1].result.output


def test_the_teachers_ids_are_trained_and_the_tools_are_not(taught, tokenizer):
    for trajectory in taught():
        for span in trajectory.spans:
            assert set(trajectory.trained[span.start : span.end]) == {
                int(span.kind not in ("prompt", "output"))
            }
        assert trajectory.ids[-1] == tokenizer.end_id and trajectory.trained[-1] == 1


def made(trajectory):
    """Its calls, but for the seconds that they took."""
    return [(call.tool, call.code, call.result.output) for call in trajectory.calls]


@pytest.fixture(scope="module")
def in_tags(tokenizer, python, search):
    return lambda **settings: demonstrate(
        PROBLEMS,
        tokenizer,
        Format("grammar"),
        {"python": python, "search": search},
        TeacherConfig(**settings),
    )


def test_in_the_grammar_the_sentence_that_states_the_answer_stands_apart_from_the_thoughts():
    pieces = [
        ("text", "I add."),
        ("python", "1+1"),
        ("text", "It is even. The answer is \\boxed{2}."),
    ]
    assert in_grammar(pieces) == [
        ("think", "I add."),
        ("python", "1+1"),
        ("think", "It is even."),
        ("answer", "The answer is \\boxed{2}."),
    ]


def test_a_perfect_teacher_keeps_the_grammar_in_every_family_and_is_right(in_tags, tokenizer):
    assert {problem.family for problem in PROBLEMS} == {
        problem.family for problem in load("generated", n=2000)
    }
    for problem, trajectory in zip(PROBLEMS, in_tags(quality=1.0)):
        assert grammar_error(trajectory.turns(tokenizer)) is None and is_right(
            trajectory, problem, tokenizer
        )


@pytest.mark.parametrize("quality", [0.0, 0.3])
def test_a_mediocre_teacher_breaks_the_grammar_only_where_the_answer_is_missing(
    in_tags, tokenizer, quality
):
    errors = [
        (grammar_error(t.turns(tokenizer)), extract_answer(completion(t, tokenizer)) is None)
        for t in in_tags(quality=quality)
    ]
    assert set(errors) == {(None, False), ("it must end with an <answer>", True)}


def test_the_grammar_adds_tags_to_what_the_teacher_says_and_calls_and_changes_no_word(
    in_tags, taught, tokenizer
):
    bare = lambda t: re.sub(
        r"</?(think|answer)>|\s", "", "".join(text for _, text in t.turns(tokenizer))
    )
    for tagged, plain in zip(in_tags(quality=0.5), taught(quality=0.5)):
        assert bare(tagged) == bare(plain) and made(tagged) == made(plain)


def test_a_script_goes_on_from_its_start_which_stays_as_it_is(tokenizer, python):
    problems = PROBLEMS[:2]
    (whole,) = act_out(
        problems[:1],
        [[("text", "First."), ("python", "1+1"), ("text", "Wrong.")]],
        tokenizer,
        Format(),
        {"python": python},
    )
    starts = [whole.first(spans=4, calls=1), whole.first(spans=1, calls=0)]
    before = copy.deepcopy(starts)
    scripts = [[("python", "6*7"), ("text", "So 42.")], [("text", "So 3.")]]
    done = act_out(problems, scripts, tokenizer, Format(), {"python": python}, starts)
    assert starts == before and [t.ids[: len(start.ids)] for t, start in zip(done, starts)] == [
        start.ids for start in starts
    ]
    after = [tokenizer.decode(t.ids[len(start.ids) :]) for t, start in zip(done, starts)]
    assert after == ["<python>6*7</python><output>42</output>So 42.<|end|>", "So 3.<|end|>"]
    assert [[call.result.output for call in t.calls] for t in done] == [["2", "42"], []]


def test_twice_is_the_share_of_calls_that_are_made_once_more():
    calls = lambda twice: [
        [p for p in script(problem, rng, TeacherConfig(quality=1.0, twice=twice)) if p[0] != "text"]
        for problem in PROBLEMS
    ]
    rng = random.Random(0)
    once, half, always = calls(0.0), [calls(0.5) for _ in range(5)], calls(1.0)
    assert always == [[call for call in row for _ in range(2)] for row in once]
    n = sum(map(len, once))
    assert (
        abs(sum(len(row) for rows in half for row in rows) / (5 * n) - 1.5) < 2 / (5 * n) ** 0.5
    )  # four standard errors


def test_the_same_seed_gives_the_same_demonstrations(taught):
    assert (
        [t.ids for t in taught(seed=1)]
        == [t.ids for t in taught(seed=1)]
        != [t.ids for t in taught(seed=2)]
    )


def test_quality_is_the_share_of_flawless_demonstrations():
    problem = next(p for p in PROBLEMS if p.family == "mul")
    whole = [*problem.solution, ("text", f"The answer is \\boxed{{{problem.answer}}}.")]
    rng = random.Random(0)
    share = (
        sum(script(problem, rng, TeacherConfig(quality=0.7)) == whole for _ in range(2000)) / 2000
    )
    assert abs(share - 0.7) < 0.04  # four standard errors


def test_a_wrong_guess_is_wrong():
    rng = random.Random(0)
    for answer in ("7", "-4, 2", "sqrt(10)", "3/4", "South Ford", "quotient 3 remainder 1", "Ada"):
        assert all(wrong_guess(answer, rng) != answer for _ in range(200))


@pytest.mark.parametrize("settings", [{"format": "tools"}, {"quality": 1.5}, {"twice": 1.5}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError):
        TeacherConfig(**settings)
