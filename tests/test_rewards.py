import importlib.util
import itertools
import math
import random
import sys
from pathlib import Path

import pytest

from nanotir import rewards
from nanotir.problems import Problem
from nanotir.rewards import (
    RewardConfig,
    accuracy_reward,
    call_bonus_reward,
    efficiency_reward,
    failures_reward,
    get_soft_overlong_punishment,
    grammar_reward,
    length_reward,
    otc,
    reward_funcs_registry,
    score,
    think_format_reward,
)
from nanotir.tools import ToolResult
from nanotir.trajectory import Call, Format

PENALTIES = ("format", "length", "efficiency", "call_bonus", "grammar", "failures")
UNGRADED_LENGTH = RewardConfig(length=0.0)


# Each reward.


@pytest.mark.parametrize(
    "text, reward",
    [
        ("The answer is \\boxed{12}.", 1),
        ("\\boxed{13}", 0),
        ("12", 0),
        ("", 0),
        ("the answer is 12", 1),
        ("\\boxed{1 2 3 4 5 6 7 8 9 10 11 12}", 0),
        ("\\boxed{1\\boxed{2}}", 0),
    ],
)
def test_accuracy_is_one_for_the_gold_answer_only(text, reward):
    assert accuracy_reward(completions=[text], answer=["12"]) == [reward]


@pytest.mark.parametrize(
    "text, reward",
    [
        ("<think>a</think>b", 1),
        ("<think>a\nb</think>\nc", 1),
        ("a<think>b</think>", 0),
        ("<think>a", 0),
        ("<think>a<think>b</think>", 0),
        ("", 0),
        ("<think>a</think>b<think>c</think>", 0),
    ],
)
def test_think_format_is_one_for_a_single_think_block_at_the_start(text, reward):
    assert think_format_reward(completions=[text]) == [reward]


@pytest.mark.parametrize(
    "n, reward",
    [(0, 0), (79, 0), (80, 0), (81, -0.05), (90, -0.5), (100, -1), (101, -1), (1000, -1)],
)
def test_soft_overlong_is_free_then_linear_then_minus_one(n, reward):
    punish = get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)
    assert punish(completion_ids=[[0] * n]) == pytest.approx([reward])


def test_soft_overlong_without_a_ramp_is_a_step():
    punish = get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=0)
    assert punish(completion_ids=[[0] * 100, [0] * 101]) == [0, -1]


def test_the_length_reward_is_soft_overlong_with_the_lengths_of_the_settings():
    config = RewardConfig(max_completion_len=100, soft_punish_cache=20)
    assert length_reward(completion_ids=[[0] * 90], config=config) == pytest.approx([-0.5])


@pytest.mark.parametrize("n", range(6))
def test_otc_is_one_where_as_many_calls_were_made_as_needed(n):
    assert otc(n, n) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("n", range(6))
def test_otc_falls_with_every_call_above_what_is_needed_and_stays_positive(n):
    values = [otc(m, n) for m in range(n, n + 20)]
    assert all(a > b >= 0 for a, b in itertools.pairwise(values))


@pytest.mark.parametrize("n", range(6))
def test_otc_falls_with_every_call_below_what_is_needed_and_stays_positive(n):
    values = [otc(m, n) for m in range(n + 1)]
    assert values[0] >= 0
    assert all(a < b for a, b in itertools.pairwise(values))


def test_otc_is_the_papers_formula():
    for m, n in itertools.product(range(5), range(1, 5)):
        f = 2 * n * m / (m + n)  # eq. 6: m, bent so that it ends at 2n, where the sine is 0 again
        assert otc(m, n) == pytest.approx(math.sin(f * math.pi / (2 * n)))


@pytest.mark.parametrize("m", range(4))
def test_otc_is_the_papers_formula_where_no_call_is_needed(m):
    assert otc(m, 0, c=3.0) == pytest.approx(math.cos(m * math.pi / (2 * m + 3)))


def efficiency(*rows):
    """The reward of rows (answer, calls, prompt), where the right answer is 1."""
    texts, calls, prompts = zip(*rows)
    boxed = [f"\\boxed{{{text}}}" for text in texts]
    return efficiency_reward(
        completions=boxed, answer=["1"] * len(rows), prompts=prompts, calls=calls
    )


def test_the_fewest_calls_of_a_right_answer_are_free_and_more_cost_what_otc_says():
    expected = pytest.approx([0, otc(3, 2) - 1, otc(6, 2) - 1])
    assert efficiency(("1", 2, "q"), ("1", 3, "q"), ("1", 6, "q")) == expected


def test_where_no_call_was_needed_any_call_costs():
    assert efficiency(("1", 0, "q"), ("1", 1, "q")) == pytest.approx([0, otc(1, 0) - 1])


def test_a_wrong_answer_has_no_calls_to_lose():
    assert efficiency(("2", 9, "q"), ("2", 0, "q")) == [0, 0]


def test_the_calls_of_a_wrong_answer_set_no_example():
    assert efficiency(("2", 0, "q"), ("1", 2, "q")) == [0, 0]


def test_calls_are_compared_within_the_answers_to_one_prompt():
    rows = ("1", 1, "p"), ("1", 3, "p"), ("1", 3, "q"), ("1", 4, "q")
    assert efficiency(*rows) == pytest.approx([0, otc(3, 1) - 1, 0, otc(4, 3) - 1])


def test_the_call_bonus_is_the_share_of_the_budget_that_was_used():
    config = RewardConfig(max_calls=4)
    assert call_bonus_reward(calls=[0, 1, 4, 9], config=config) == [0, 0.25, 1, 1]


def test_a_break_of_the_grammar_costs_one(tokenizer):
    kept = rollout(tokenizer, [("think", "a"), ("answer", "1")])
    broken = rollout(tokenizer, [("text", "So 1.")])
    spelled = rollout(tokenizer, [("text", "<answer>1</answer>")])
    rows = [kept, broken, spelled]
    assert grammar_reward(trajectories=rows, tokenizer=tokenizer) == [0, -1, -1]


def test_a_call_that_failed_costs_one_however_many_others_there_are(tokenizer):
    worked, failed = (
        Call("python", "1", ToolResult("1")),
        Call("python", "(", ToolResult("", False)),
    )
    rows = [rollout(tokenizer, []) for _ in range(4)]
    for row, calls in zip(rows, ([], [worked], [failed], [worked, failed, failed])):
        row.calls = calls
    assert failures_reward(trajectories=rows) == [0, 0, -1, -1]


# The weighted sum.


def rollout(tokenizer, pieces, n_calls=0):
    trajectory = Format().trajectory(tokenizer, "What is 6*7?", pieces)
    trajectory.calls = [Call("python", "1", ToolResult("1"))] * n_calls
    return trajectory


def said(tokenizer, text, n_calls=0):
    return rollout(tokenizer, [("text", text)], n_calls)


def scored(tokenizer, rows, config=UNGRADED_LENGTH):
    """(rewards, parts) of answers to one problem, whose answer is 42."""
    return score(rows, [Problem("q", "42")] * len(rows), tokenizer, config)


def test_an_answer_in_a_tools_output_earns_nothing(tokenizer):
    pieces = [("python", "6*7"), ("output", "The answer is \\boxed{42}."), ("text", "Done.")]
    assert scored(tokenizer, [rollout(tokenizer, pieces)])[0] == [0.0]


def test_an_answer_in_the_models_words_earns_the_weight_of_accuracy(tokenizer):
    pieces = [("python", "6*7"), ("output", "42"), ("text", "\\boxed{42}")]
    assert scored(tokenizer, [rollout(tokenizer, pieces)])[0] == [1.0]


def test_an_answer_inside_code_earns_nothing(tokenizer):
    pieces = [("python", "'\\\\boxed{42}' # the answer is 42"), ("output", "x"), ("text", "Done.")]
    assert scored(tokenizer, [rollout(tokenizer, pieces)])[0] == [0.0]


def test_the_length_of_tool_output_costs_nothing(tokenizer):
    config = RewardConfig(max_completion_len=30, soft_punish_cache=10)
    answer = ("text", "\\boxed{42}")
    outputs = [("output", "7" * n) for n in (1, 500)]
    rows = [rollout(tokenizer, [("python", "6*7"), output, answer]) for output in outputs]
    short, long = scored(tokenizer, rows, config)[0]
    assert short == long


def test_the_length_of_code_counts(tokenizer):
    config = RewardConfig(max_completion_len=30, soft_punish_cache=10)
    answer = ("text", "\\boxed{42}")
    rows = [rollout(tokenizer, [("python", "7" * n), answer]) for n in (1, 500)]
    short, long = scored(tokenizer, rows, config)[0]
    assert short > long


ALL_WEIGHTS = {
    "accuracy": 3.0,
    "format": 0.5,
    "length": 0.7,
    "efficiency": 0.3,
    "call_bonus": 0.2,
    "grammar": 0.4,
    "failures": 0.1,
}


@pytest.fixture
def graded(tokenizer):
    """(rewards, parts) of a right answer and of a long wrong one, where everything has weight."""
    rows = [said(tokenizer, "<think>x</think>\\boxed{42}"), said(tokenizer, "y" * 90)]
    config = RewardConfig(**ALL_WEIGHTS, max_completion_len=40, soft_punish_cache=10)
    return scored(tokenizer, rows, config)


def test_the_parts_are_all_rewards_by_name_and_the_outcome(graded):
    _, parts = graded
    missing = set(reward_funcs_registry) - set(ALL_WEIGHTS)
    assert not missing, f"give {missing} a weight in ALL_WEIGHTS"
    assert set(parts) == {*ALL_WEIGHTS, "outcome"}


def test_the_reward_is_the_weighted_sum_of_its_parts(graded):
    earned, parts = graded
    for i in range(2):
        expected = sum(weight * parts[name][i] for name, weight in ALL_WEIGHTS.items())
        assert earned[i] == pytest.approx(expected)


def test_every_part_is_what_its_own_function_says(graded):
    _, parts = graded
    assert parts["accuracy"] == parts["outcome"] == parts["format"] == [1, 0]
    assert parts["length"] == [0, -1]
    assert parts["grammar"] == [-1, -1]


def test_with_weight_one_on_both_the_reward_is_accuracy_times_otc(tokenizer):
    answers = [("42", 1), ("42", 3), ("41", 0)]
    rows = [said(tokenizer, f"\\boxed{{{text}}}", n_calls) for text, n_calls in answers]
    earned, _ = scored(tokenizer, rows, RewardConfig(length=0.0, efficiency=1.0))
    assert earned == pytest.approx([1, otc(3, 1), 0])


def test_a_part_without_weight_is_not_even_computed(tokenizer):
    config = RewardConfig(accuracy=0.0, length=0.0)
    _, parts = scored(tokenizer, [said(tokenizer, "x")], config)
    assert set(parts) == {"accuracy", "outcome"}


# A new reward.

FUNCTION = """
def politeness_reward(completions, **_):
    return [float("please" in text) for text in completions]
"""
ROW = "    politeness: float = weight(0.25, politeness_reward)  # weight of a polite answer"


@pytest.fixture(scope="module")
def edited(tmp_path_factory):
    """The module nanotir.rewards with one more function, and one more row in RewardConfig."""
    source = Path(rewards.__file__).read_text()
    source = source.replace("\ndef weight(", f"{FUNCTION}\n\ndef weight(")
    source = source.replace("class RewardConfig:", f"class RewardConfig:\n{ROW}")
    path = tmp_path_factory.mktemp("edited") / "edited_rewards.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("edited_rewards", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, "edited_rewards", module)  # where dataclasses look it up
        spec.loader.exec_module(module)
    return module


def test_a_new_reward_is_one_function_and_one_row(tokenizer, edited):
    rows = [said(tokenizer, "please, \\boxed{42}"), said(tokenizer, "\\boxed{42}")]
    problems = [Problem("q", "42")] * 2
    earned, parts = edited.score(rows, problems, tokenizer, edited.RewardConfig(length=0.0))
    assert parts["politeness"] == [1, 0]
    assert earned == [1.25, 1.0]


def test_the_weight_of_a_new_reward_is_checked_like_the_others(edited):
    with pytest.raises(ValueError, match="a wrong answer could earn more than a right one"):
        edited.RewardConfig(politeness=0.7)


@pytest.mark.parametrize("penalties", [(0.1, 0.1, 0.1), (0.1, 0.2, 0.3)])
def test_weights_may_sum_to_that_of_accuracy_whatever_floats_make_of_the_sum(penalties):
    length, failures, grammar = penalties
    accuracy = round(sum(penalties), 1)
    given = {"accuracy": accuracy, "length": length, "failures": failures, "grammar": grammar}
    assert RewardConfig(**given).weights["accuracy"] == accuracy
    with pytest.raises(ValueError, match="a wrong answer could earn more"):
        RewardConfig(**given | {"accuracy": accuracy - 0.001})


# The coin.


def tossed(tokenizer, *texts):
    random.seed(5)
    rows = [said(tokenizer, text) for text in texts]
    return scored(tokenizer, rows, RewardConfig(coin=True, length=0.0))


def test_a_coin_pays_right_and_wrong_alike(tokenizer):
    right, wrong = [tossed(tokenizer, *[f"\\boxed{{{n}}}"] * 100)[0] for n in (42, 41)]
    assert right == wrong


def test_a_coin_pays_half_of_the_time(tokenizer):
    paid, _ = tossed(tokenizer, *["\\boxed{42}"] * 400)
    assert set(paid) == {0.0, 1.0}
    assert abs(sum(paid) / 400 - 0.5) < 0.1  # four standard errors


def test_with_a_coin_accuracy_stays_the_truth(tokenizer):
    _, parts = tossed(tokenizer, *["\\boxed{42}", "\\boxed{41}"] * 8)
    assert parts["accuracy"] == [1, 0] * 8


def test_with_a_coin_the_outcome_is_what_was_paid(tokenizer):
    paid, parts = tossed(tokenizer, *["\\boxed{42}", "\\boxed{41}"] * 8)
    assert parts["outcome"] == paid != parts["accuracy"]


# A wrong answer never wins.


@pytest.fixture(scope="module")
def all_kinds(tokenizer):
    """{whether right: answers of all combinations of format, grammar, length and calls}"""
    thoughts = [("think", "a")]
    for opening, n in itertools.product(("", "<think>a</think>"), (0, 8, 40)):
        thoughts.append(("text", opening + "z " * n))
    rows = {True: [], False: []}
    for thought, kind, n_calls in itertools.product(thoughts, ("text", "answer"), (0, 3)):
        for right, text in ((True, "\\boxed{42}"), (False, "\\boxed{41}")):
            rows[right].append(rollout(tokenizer, [thought, (kind, text)], n_calls))
    return rows


def random_weights(seed):
    rng = random.Random(seed)
    others = {name: rng.random() / 2 for name in PENALTIES}
    return rng.random() * 3, others


@pytest.mark.parametrize("seed", range(20))
def test_a_wrong_answer_never_earns_more_than_a_right_one(tokenizer, all_kinds, seed):
    accuracy, others = random_weights(seed)
    accuracy = max(accuracy, sum(others.values()))  # the least that is accepted
    config = RewardConfig(accuracy, **others, max_completion_len=40, soft_punish_cache=25)
    right, wrong = all_kinds[True], all_kinds[False]
    earned, parts = scored(tokenizer, right + wrong, config)
    assert parts["accuracy"] == [1.0] * len(right) + [0.0] * len(wrong)
    assert max(earned[len(right) :]) <= min(earned[: len(right)]) + 1e-12


@pytest.mark.parametrize("seed", range(20))
def test_weights_are_refused_exactly_where_the_others_exceed_accuracy(seed):
    accuracy, others = random_weights(seed)
    if accuracy >= sum(others.values()):
        assert RewardConfig(accuracy, **others)
        return
    with pytest.raises(ValueError, match="a wrong answer could earn more"):
        RewardConfig(accuracy, **others)


def test_a_perfect_grammar_never_lifts_a_wrong_answer_above_a_right_one_that_breaks_it(tokenizer):
    wrong = rollout(tokenizer, [("think", "a"), ("answer", "\\boxed{41}")])
    right = said(tokenizer, "so \\boxed{42}")
    config = RewardConfig(length=0.0, grammar=1.0)
    earned, parts = scored(tokenizer, [wrong, right], config)
    assert parts["grammar"] == [0, -1]
    assert earned[0] <= earned[1]


# Settings.


@pytest.mark.parametrize("part", PENALTIES)
def test_a_weight_as_large_as_accuracy_is_accepted(part):
    assert RewardConfig(**{"length": 0.0, part: 1.0})


@pytest.mark.parametrize("part", PENALTIES)
def test_a_weight_above_accuracy_is_refused(part):
    with pytest.raises(ValueError, match="a wrong answer could earn more than a right one"):
        RewardConfig(**{"length": 0.0, part: 1.01})


@pytest.mark.parametrize("part", PENALTIES)
def test_a_negative_weight_is_refused(part):
    with pytest.raises(ValueError, match="must be at least 0"):
        RewardConfig(**{part: -0.1})


@pytest.mark.parametrize(
    "settings",
    [
        {"accuracy": -1.0},
        {"length": 1.1},
        {"grammar": 0.7},
        {"max_calls": 0},
        {"soft_punish_cache": 65},
        {"soft_punish_cache": -1},
        {"coin": True, "efficiency": 0.5},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError):
        RewardConfig(**settings)
