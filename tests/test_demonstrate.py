import copy
import re
from random import Random
from types import SimpleNamespace

import pytest

from nanotir.answers import equivalent, extract_answer
from nanotir.demonstrate import (
    TeacherConfig,
    act_out,
    corpus,
    demonstrate,
    demonstrations,
    in_grammar,
    script,
    wrong_guess,
)
from nanotir.grammar import grammar_error
from nanotir.problems import Problem, load
from nanotir.tools import Tool, ToolResult
from nanotir.trajectory import Format

PROBLEMS = load("generated", n=230)
MUL = next(problem for problem in PROBLEMS if problem.family == "mul")


@pytest.fixture(scope="module")
def tools(python, search):
    return {"python": python, "search": search}


@pytest.fixture(scope="module")
def taught(tokenizer, tools):
    def teach(style="tags", seed=0, **settings):
        config = TeacherConfig(**settings)
        return demonstrate(PROBLEMS, tokenizer, Format(style), tools, config, seed)

    return teach


@pytest.fixture(scope="module")
def flawed(taught):
    """Each problem with its demonstration by a teacher who makes a mistake in each."""
    return list(zip(PROBLEMS, taught(quality=0.0)))


def is_right(trajectory, problem, tokenizer):
    answer = extract_answer(trajectory.completion(tokenizer))
    return answer is not None and equivalent(answer, problem.answer)


def has_no_answer(trajectory, tokenizer):
    return extract_answer(trajectory.completion(tokenizer)) is None


def test_a_perfect_teacher_is_always_right(taught, tokenizer):
    for problem, trajectory in zip(PROBLEMS, taught(quality=1.0)):
        assert is_right(trajectory, problem, tokenizer)


def test_a_perfect_teacher_calls_only_where_it_pays_and_without_errors(taught):
    for problem, trajectory in zip(PROBLEMS, taught(quality=1.0)):
        assert bool(trajectory.calls) == (problem.kind not in "BC")
        assert all(call.result.ok for call in trajectory.calls)


def test_most_flaws_are_guesses_and_a_guess_is_wrong(flawed, tokenizer):
    guesses = [(p, t) for p, t in flawed if p.kind not in "BC" and not t.calls]
    assert len(guesses) > 80
    assert not any(is_right(t, p, tokenizer) for p, t in guesses)


def test_a_mediocre_teacher_sometimes_calls_the_wrong_tool(flawed):
    calls = [t.calls for p, t in flawed if p.kind == "A" and t.calls]
    assert any(first.tool == "search" for first, *_ in calls)


def test_a_mediocre_teacher_sometimes_gives_no_answer(flawed, tokenizer):
    assert any(has_no_answer(t, tokenizer) for _, t in flawed)


def test_after_a_bug_the_teacher_reads_the_error_and_repairs_the_program(flawed, tokenizer):
    buggy = [t for _, t in flawed if not all(call.result.ok for call in t.calls)]
    assert buggy
    for trajectory in buggy:
        failed = [call.result.ok for call in trajectory.calls].index(False)
        assert "Error" in trajectory.calls[failed].result.output
        outputs = [span for span in trajectory.spans if span.kind == "output"]
        assert "Error" in trajectory.text_of(outputs[failed], tokenizer)
        assert trajectory.calls[failed + 1].result.ok


def test_a_rationale_has_words_only(taught):
    for trajectory in taught(format="rationale"):
        assert {span.kind for span in trajectory.spans} == {"prompt", "text"}


def test_a_program_has_no_words_but_the_end_id(taught, tokenizer):
    for trajectory in taught(format="program"):
        assert trajectory.calls
        texts = [span for span in trajectory.spans if span.kind == "text"]
        assert [trajectory.ids[span.start : span.end] for span in texts] == [[tokenizer.end_id]]


def test_the_last_output_of_a_program_contains_the_answer(taught):
    for problem, trajectory in zip(PROBLEMS, taught(format="program")):
        assert problem.answer in trajectory.calls[-1].result.output


def test_the_mask_is_1_on_the_teachers_ids_and_0_on_the_tools(taught):
    for trajectory in taught():
        for span in trajectory.spans:
            mask = trajectory.mask[span.start : span.end]
            assert set(mask) == {int(span.kind not in ("prompt", "output"))}


def test_a_demonstration_ends_with_the_end_id_which_is_learned(taught, tokenizer):
    for trajectory in taught():
        assert (trajectory.ids[-1], trajectory.mask[-1]) == (tokenizer.end_id, 1)


def test_calls_of_missing_tools_are_left_out(tokenizer, python):
    config = TeacherConfig(quality=1.0)
    for trajectory in demonstrate(PROBLEMS, tokenizer, Format(), {"python": python}, config):
        assert {call.tool for call in trajectory.calls} <= {"python"}


def test_the_same_seed_gives_the_same_demonstrations(taught):
    once = [t.ids for t in taught(seed=1)]
    assert once == [t.ids for t in taught(seed=1)]


def test_another_seed_gives_other_demonstrations(taught):
    assert [t.ids for t in taught(seed=1)] != [t.ids for t in taught(seed=2)]


def test_the_demonstrations_of_a_run_follow_its_settings(tokenizer, tools, taught):
    config = SimpleNamespace(teacher=TeacherConfig(quality=0.5), seed=3)
    run = SimpleNamespace(
        problems=PROBLEMS,
        tokenizer=tokenizer,
        format=Format("fences"),
        tools_by_name=tools,
        config=config,
    )
    expected = taught("fences", seed=3, quality=0.5)
    assert [t.ids for t in demonstrations(run)] == [t.ids for t in expected]


def test_without_a_solution_the_teacher_gives_the_rationale():
    problem = Problem("q?", "1", rationale="I see one.")
    pieces = script(problem, Random(0), TeacherConfig(quality=1.0))
    assert "".join(text for _, text in pieces) == "I see one. The answer is \\boxed{1}."


def test_without_any_reason_the_teacher_gives_the_answer_alone(tokenizer, tools):
    given = ([Problem("q?", "1")], tokenizer, Format(), tools, TeacherConfig(quality=1.0))
    (shown,) = demonstrate(*given)
    assert shown.completion(tokenizer) == "The answer is \\boxed{1}."


def test_in_the_grammar_only_the_last_sentence_is_the_answer():
    pieces = [("text", "The answer is 3 dozen, so"), ("python", "3*12"), ("text", "I stop.")]
    assert [kind for kind, _ in in_grammar(pieces)] == ["think", "python", "think"]


def test_in_the_grammar_the_answer_sentence_is_apart_from_the_thoughts():
    sentence = ("text", "It is even. The answer is \\boxed{2}.")
    assert in_grammar([("text", "I add."), ("python", "1+1"), sentence]) == [
        ("think", "I add."),
        ("python", "1+1"),
        ("think", "It is even."),
        ("answer", "The answer is \\boxed{2}."),
    ]


def test_the_problems_of_these_tests_are_of_all_families():
    families = {problem.family for problem in PROBLEMS}
    assert families == {problem.family for problem in load("generated", n=2000)}


def test_a_perfect_teacher_keeps_the_grammar_in_every_family_and_is_right(taught, tokenizer):
    for problem, trajectory in zip(PROBLEMS, taught("grammar", quality=1.0)):
        assert grammar_error(trajectory, tokenizer) is None
        assert is_right(trajectory, problem, tokenizer)


@pytest.mark.parametrize("quality", [0.0, 0.3])
def test_a_mediocre_teacher_breaks_the_grammar_only_where_the_answer_is_missing(
    taught, tokenizer, quality
):
    errors = set()
    for trajectory in taught("grammar", quality=quality):
        error = grammar_error(trajectory, tokenizer)
        errors.add((error, has_no_answer(trajectory, tokenizer)))
    assert errors == {(None, False), ("it must end with an <answer>", True)}


def words(trajectory, tokenizer):
    """All that follows the prompt, without the grammar's tags and without white space."""
    text = "".join(trajectory.text_of(span, tokenizer) for span in trajectory.spans[1:])
    return re.sub(r"</?(think|answer)>|\s", "", text)


def test_the_grammar_changes_no_word(taught, tokenizer):
    for tagged, plain in zip(taught("grammar", quality=0.5), taught(quality=0.5)):
        assert words(tagged, tokenizer) == words(plain, tokenizer)


def made(trajectory):
    """Its calls, without the seconds that they took."""
    return [(call.tool, call.code, call.result.output) for call in trajectory.calls]


def test_the_grammar_changes_no_call(taught):
    for tagged, plain in zip(taught("grammar", quality=0.5), taught(quality=0.5)):
        assert made(tagged) == made(plain)


@pytest.fixture
def continued(tokenizer, tools):
    """(starts, their copies from before, trajectories that continue them by a script each)"""
    first = [("text", "First."), ("python", "1+1"), ("text", "Wrong.")]
    (whole,) = act_out(PROBLEMS[:1], [first], tokenizer, Format(), tools)
    starts = [whole.first(spans=4, calls=1), whole.first(spans=1, calls=0)]
    before = copy.deepcopy(starts)
    scripts = [[("python", "6*7"), ("text", "So 42.")], [("text", "So 3.")]]
    return starts, before, act_out(PROBLEMS[:2], scripts, tokenizer, Format(), tools, starts)


def test_a_script_continues_its_start(continued, tokenizer):
    starts, _, done = continued
    for start, trajectory in zip(starts, done):
        assert trajectory.ids[: len(start.ids)] == start.ids
    after = [tokenizer.decode(t.ids[len(start.ids) :]) for start, t in zip(starts, done)]
    assert after == ["<python>6*7</python><output>42</output>So 42.<|end|>", "So 3.<|end|>"]


def test_the_calls_of_a_script_follow_those_of_its_start(continued):
    _, _, done = continued
    outputs = [[output for _, _, output in made(trajectory)] for trajectory in done]
    assert outputs == [["2", "42"], []]


def test_a_start_stays_as_it_is(continued):
    starts, before, _ = continued
    assert starts == before


def calls_of_scripts(twice, seed=0):
    """The calls in the script of each problem, by a perfect teacher."""
    rng = Random(seed)
    config = TeacherConfig(quality=1.0, twice=twice)
    scripts = [script(problem, rng, config) for problem in PROBLEMS]
    return [[piece for piece in pieces if piece[0] != "text"] for pieces in scripts]


class Busy(Tool):
    """Runs out of time at the first call of every text."""

    name = "python"

    def __init__(self):
        self.seen = set()

    def run(self, text, session=None):
        if text not in self.seen:
            self.seen.add(text)
            return ToolResult("TimeoutError", ok=False, status="timeout")
        return ToolResult("42")


def test_a_call_that_runs_out_of_time_is_made_once_more(tokenizer):
    (taught,) = act_out([MUL], [[("python", "6*7")]], tokenizer, Format(), {"python": Busy()})
    assert [call.result.output for call in taught.calls] == ["42"]
    assert "TimeoutError" not in tokenizer.decode(taught.ids)


def test_with_twice_1_every_call_is_made_once_more():
    for once, always in zip(calls_of_scripts(0.0), calls_of_scripts(1.0)):
        assert always == [call for call in once for _ in range(2)]


def test_twice_is_the_share_of_calls_that_are_made_once_more():
    n = 5 * sum(map(len, calls_of_scripts(0.0)))
    rows = [row for seed in range(5) for row in calls_of_scripts(0.5, seed)]
    share = sum(map(len, rows)) / n - 1
    assert abs(share - 0.5) < 2 / n**0.5  # four standard errors


def test_quality_is_the_share_of_flawless_demonstrations():
    whole = [*MUL.solution, ("text", f"The answer is \\boxed{{{MUL.answer}}}.")]
    rng = Random(0)
    config = TeacherConfig(quality=0.7)
    flawless = sum(script(MUL, rng, config) == whole for _ in range(2000))
    assert abs(flawless / 2000 - 0.7) < 0.04  # four standard errors


def test_a_program_prints_the_answers_sentence_in_every_style(python):
    clock = next(problem for problem in PROBLEMS if problem.kind == "E")
    config = TeacherConfig(format="program", styles=3)
    programs = {script(clock, Random(seed), config)[0] for seed in range(50)}
    assert len(programs) == 3
    assert {python.run(code).output for _, code in programs} == {clock.answer}


@pytest.mark.parametrize("styles", [1, 2, 3])
def test_styles_is_the_number_of_ways_to_write_a_program(styles):
    config = TeacherConfig(quality=1.0, styles=styles)
    programs = {script(MUL, Random(seed), config)[1] for seed in range(50)}
    assert len(programs) == styles


@pytest.mark.parametrize(
    "answer", ["7", "-4, 2", "sqrt(10)", "3/4", "South Ford", "quotient 3 remainder 1", "Ada"]
)
def test_a_wrong_guess_is_wrong(answer):
    rng = Random(0)
    assert all(wrong_guess(answer, rng) != answer for _ in range(200))


def test_the_corpus_has_all_texts_of_a_problem_and_the_documents():
    solved = Problem("q?", "1", solution=(("text", "I add."), ("python", "0+1")), rationale="r")
    assert list(corpus([solved], ["d"])) == [
        "q?",
        "I add.",
        "0+1",
        "The answer is \\boxed{1}.",
        "d",
    ]


def test_without_a_solution_the_corpus_has_the_rationale():
    assert list(corpus([Problem("q?", "1", rationale="r")]))[1] == "r"


@pytest.mark.parametrize(
    "settings", [{"format": "tools"}, {"quality": 1.5}, {"twice": 1.5}, {"styles": 4}]
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError):
        TeacherConfig(**settings)


def test_a_solution_that_names_no_tool_is_refused(tokenizer):
    problem = Problem("3 km in m?", "3000 m", solution=(("units", "3 km in m"),))
    with pytest.raises(ValueError, match="no tool for the solutions of 'file' 'units'"):
        demonstrate([problem], tokenizer, Format(), {}, TeacherConfig(quality=1.0))
