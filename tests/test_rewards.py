import itertools
import math
import random

import pytest

from nanotir.problems.problem import Problem
from nanotir.rewards import (
    RewardConfig,
    accuracy_reward,
    call_efficiency_reward,
    completion,
    get_call_bonus_reward,
    get_repetition_penalty_reward,
    get_soft_overlong_punishment,
    grammar_error,
    grammar_reward,
    otc,
    score,
    think_format_reward,
)
from nanotir.tools import ToolResult
from nanotir.trajectory import Call, Format


def test_accuracy_is_one_for_the_gold_answer_only():
    texts = [
        "The answer is \\boxed{12}.",
        "\\boxed{13}",
        "12",
        "",
        "the answer is 12",
        "\\boxed{1 2 3 4 5 6 7 8 9 10 11 12}",
        "\\boxed{1\\boxed{2}}",
    ]
    assert accuracy_reward(completions=texts, answer=["12"] * 7) == [1, 0, 0, 0, 1, 0, 0]


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
def test_think_format(text, reward):
    assert think_format_reward(completions=[text]) == [reward]


def test_soft_overlong_is_free_then_linear_then_minus_one():
    punish = get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)
    of = lambda n: punish(completion_ids=[[0] * n])[0]
    assert [of(n) for n in (0, 79, 80)] == [0, 0, 0]
    assert [of(n) for n in (81, 90, 100)] == pytest.approx([-0.05, -0.5, -1.0])
    assert of(101) == of(1000) == -1
    hard = get_soft_overlong_punishment(100, 0)
    assert hard(completion_ids=[[0] * 100, [0] * 101]) == [0, -1]


def test_repetition_costs_the_share_of_ngrams_that_occurred_before():
    penalty = get_repetition_penalty_reward(ngram_size=2, max_penalty=-1.0)
    rows = [[1, 2, 3, 4], [5, 5, 5, 5, 5], [1, 2, 1, 2], [7], []]
    assert penalty(completion_ids=rows) == pytest.approx([0, -3 / 4, -1 / 3, 0, 0])
    assert get_repetition_penalty_reward(3, -0.5)(completion_ids=[[1, 2, 3] * 4]) == pytest.approx(
        [-0.5 * 7 / 10]
    )


def test_otc_is_one_where_as_many_calls_were_made_as_needed_and_less_on_both_sides():
    for n in range(6):
        assert otc(n, n) == pytest.approx(1, abs=1e-12)
        above, below = [otc(m, n) for m in range(n, n + 20)], [otc(m, n) for m in range(n + 1)]
        assert (
            above == sorted(above, reverse=True)
            and below == sorted(below)
            and min(above + below) >= 0
        )
        assert len(set(above)) == len(above) and len(set(below)) == len(below)


def test_otc_is_the_papers_formula():
    for m, n in itertools.product(range(5), range(1, 5)):
        f = 2 * n * m / (m + n)  # eq. 6: m, bent so that it ends at 2n, where the sine is 0 again
        assert otc(m, n) == pytest.approx(math.sin(f * math.pi / (2 * n)))
    assert [otc(m, 0, c=3.0) for m in range(4)] == pytest.approx(
        [math.cos(m * math.pi / (2 * m + 3)) for m in range(4)]
    )


def efficiency(*rows):
    texts, calls, prompts = zip(*rows)
    return call_efficiency_reward(
        completions=[f"\\boxed{{{text}}}" for text in texts],
        answer=["1"] * len(rows),
        prompts=prompts,
        calls=calls,
    )


def test_the_fewest_calls_of_a_right_sibling_are_free_and_more_cost_what_otc_says():
    assert efficiency(("1", 2, "q"), ("1", 3, "q"), ("1", 6, "q")) == pytest.approx(
        [0, otc(3, 2) - 1, otc(6, 2) - 1]
    )
    assert efficiency(("1", 0, "q"), ("1", 1, "q")) == pytest.approx([0, otc(1, 0) - 1])


def test_a_wrong_answer_has_no_calls_to_lose_and_sets_no_example():
    assert efficiency(("2", 9, "q"), ("2", 0, "q"), ("1", 2, "q")) == [0, 0, 0]
    assert efficiency(("2", 9, "q"), ("2", 0, "q")) == [0, 0]


def test_calls_are_compared_within_the_answers_to_one_prompt():
    assert efficiency(("1", 1, "p"), ("1", 3, "p"), ("1", 3, "q"), ("1", 4, "q")) == pytest.approx(
        [0, otc(3, 1) - 1, 0, otc(4, 3) - 1]
    )


def test_the_call_bonus_is_the_share_of_the_budget_that_was_used():
    assert get_call_bonus_reward(4)(calls=[0, 1, 4, 9]) == [0, 0.25, 1, 1]


CALL, RESULT = ("python", "<python>1</python>"), ("output", "<output>1</output>")
words = lambda text: ("text", text)


@pytest.mark.parametrize(
    "turns",
    [
        [words("<answer>1</answer>")],
        [words("<think>a</think><answer>1</answer>"), words("")],
        [
            words("<think>a</think>\n"),
            CALL,
            RESULT,
            words("\n<think>b</think> <answer>1</answer>\n"),
        ],
        [CALL, RESULT, ("search", "<search>x</search>"), RESULT, words("<answer>1</answer>")],
        [words("<think></think><think>b</think><answer></answer>")],
    ],
)
def test_thoughts_and_calls_in_any_order_and_then_the_answer_keep_the_grammar(turns):
    assert grammar_error(turns) is None and grammar_reward(turns=[turns]) == [0]


@pytest.mark.parametrize(
    "message, turns",
    [
        ("it must end with an <answer>", []),
        ("it must end with an <answer>", [words("")]),
        ("it must end with an <answer>", [words("<think>a</think>"), CALL, RESULT]),
        ("words outside <think> and <answer>", [words("Hm.<answer>1</answer>")]),
        (
            "words outside <think> and <answer>",
            [words("<think>a</think>"), CALL, RESULT, words("So <answer>1</answer>")],
        ),
        ("words outside <think> and <answer>", [words("<output>1</output><answer>1</answer>")]),
        ("nothing may follow the answer", [words("<answer>1</answer> Bye.")]),
        ("nothing may follow the answer", [words("<answer>1</answer><answer>1</answer>")]),
        ("nothing may follow the answer", [words("<answer>1</answer><think>a</think>")]),
        ("nothing may follow the answer", [words("<answer>1</answer>"), CALL, RESULT]),
        ("<think> is never closed", [words("<think>a")]),
        ("<answer> is never closed", [words("<think>a</think><answer>1")]),
        ("</think> closes nothing", [words("</think><answer>1</answer>")]),
        ("</answer> closes nothing", [words("<think>a</answer>")]),
        ("<think> holds another tag", [words("<think><answer>1</answer></think>")]),
        ("<think> holds another tag", [words("<think>a<think>b</think><answer>1</answer>")]),
        ("<answer> holds another tag", [words("<answer><think>a</think>1</answer>")]),
        (
            "a call inside <think> or <answer>",
            [words("<think>a"), CALL, RESULT, words("</think><answer>1</answer>")],
        ),
        (
            "a call inside <think> or <answer>",
            [words("<answer>"), CALL, RESULT, words("1</answer>")],
        ),
        ("a call without a result", [CALL, words("<answer>1</answer>")]),
        ("a call without a result", [words("<think>a</think>"), CALL]),
    ],
)
def test_what_breaks_the_grammar_is_named_and_costs_one(message, turns):
    assert grammar_error(turns) == message and grammar_reward(turns=[turns]) == [-1]


def rollout(tokenizer, pieces, n_calls=0):
    trajectory = Format().trajectory(tokenizer, "What is 6*7?", pieces)
    trajectory.calls = [Call("python", "1", ToolResult("1"))] * n_calls
    return trajectory


def test_nobody_is_paid_for_what_a_tool_said(tokenizer):
    pieces = [("python", "6*7"), ("output", "The answer is \\boxed{42}."), ("text", "Done.")]
    config = RewardConfig(length=0.0)
    assert score([rollout(tokenizer, pieces)], [Problem("q", "42")], tokenizer, config)[0] == [0.0]
    pieces[-1] = ("text", "\\boxed{42}")
    assert score([rollout(tokenizer, pieces)], [Problem("q", "42")], tokenizer, config)[0] == [1.0]


def test_an_answer_inside_code_is_no_answer(tokenizer):
    pieces = [("python", "'\\\\boxed{42}' # the answer is 42"), ("output", "x"), ("text", "Done.")]
    assert score(
        [rollout(tokenizer, pieces)], [Problem("q", "42")], tokenizer, RewardConfig(length=0.0)
    )[0] == [0.0]
    assert completion(rollout(tokenizer, pieces), tokenizer) == "Done."


def test_nobody_pays_for_what_a_tool_said(tokenizer):
    config = RewardConfig(max_completion_len=30, soft_punish_cache=10)
    rewards = [
        score(
            [rollout(tokenizer, [("python", "6*7"), ("output", "7" * n), ("text", "\\boxed{42}")])],
            [Problem("q", "42")],
            tokenizer,
            config,
        )[0]
        for n in (1, 500)
    ]
    assert rewards[0] == rewards[1]


def test_the_reward_is_the_weighted_sum_of_its_parts(tokenizer):
    rows = [
        rollout(tokenizer, [("text", "<think>x</think>\\boxed{42}")]),
        rollout(tokenizer, [("text", "y" * 90)]),
    ]
    weights = dict(
        accuracy=3.0,
        format=0.5,
        length=0.7,
        repetition=0.6,
        efficiency=0.3,
        call_bonus=0.2,
        grammar=0.4,
    )
    rewards, parts = score(
        rows,
        [Problem("q", "42")] * 2,
        tokenizer,
        RewardConfig(**weights, max_completion_len=40, soft_punish_cache=10),
    )
    assert set(parts) == {*weights, "outcome"}
    assert rewards == pytest.approx(
        [sum(weight * parts[name][i] for name, weight in weights.items()) for i in range(2)]
    )
    assert (
        parts["accuracy"] == parts["outcome"] == parts["format"] == [1, 0]
        and parts["length"] == [0, -1]
        and parts["grammar"] == [-1, -1]
    )


def test_with_weight_one_on_both_the_reward_is_accuracy_times_otc(tokenizer):
    rows = [
        rollout(tokenizer, [("text", f"\\boxed{{{text}}}")], n_calls=m)
        for text, m in (("42", 1), ("42", 3), ("41", 0))
    ]
    rewards, _ = score(
        rows, [Problem("q", "42")] * 3, tokenizer, RewardConfig(length=0.0, efficiency=1.0)
    )
    assert rewards == pytest.approx([1, otc(3, 1), 0])


def test_a_part_without_weight_is_not_even_computed(tokenizer):
    _, parts = score(
        [rollout(tokenizer, [("text", "x")])],
        [Problem("q", "42")],
        tokenizer,
        RewardConfig(accuracy=0.0, length=0.0),
    )
    assert set(parts) == {"accuracy", "outcome"}


def tossed(tokenizer, *texts):
    random.seed(5)
    rows = [rollout(tokenizer, [("text", text)]) for text in texts]
    return score(
        rows, [Problem("q", "42")] * len(rows), tokenizer, RewardConfig(coin=True, length=0.0)
    )


def test_a_coin_pays_right_and_wrong_alike_and_half_of_the_time(tokenizer):
    paid = [tossed(tokenizer, *[f"\\boxed{{{text}}}"] * 400)[0] for text in (42, 41)]
    assert paid[0] == paid[1] and set(paid[0]) == {0.0, 1.0}
    assert abs(sum(paid[0]) / 400 - 0.5) < 0.1  # four standard errors


def test_with_a_coin_accuracy_stays_the_truth_and_the_outcome_is_what_was_paid(tokenizer):
    rewards, parts = tossed(tokenizer, *["\\boxed{42}", "\\boxed{41}"] * 8)
    assert parts["accuracy"] == [1, 0] * 8 and parts["outcome"] == rewards != parts["accuracy"]


def test_a_wrong_answer_never_earns_more_than_a_right_one(tokenizer):
    """Over random weights that RewardConfig accepts and all combinations of format, grammar, length and calls."""
    rng, accepted = random.Random(0), 0
    answer = {True: "\\boxed{42}", False: "\\boxed{41}"}
    thoughts = [
        ("text", think + "z " * n) for think in ("", "<think>a</think>") for n in (0, 8, 40)
    ] + [("think", "a")]
    rows = [
        (right, rollout(tokenizer, [thought, (kind, answer[right])], n_calls))
        for right in answer
        for thought in thoughts
        for kind in ("text", "answer")
        for n_calls in (0, 3)
    ]
    for _ in range(60):
        others = {
            name: rng.random() / 2
            for name in ("format", "length", "repetition", "efficiency", "call_bonus", "grammar")
        }
        accuracy = rng.random() * 3
        try:
            config = RewardConfig(
                accuracy=accuracy, **others, max_completion_len=40, soft_punish_cache=25
            )
        except ValueError as refused:
            assert "wrong answer could earn more" in str(refused) and accuracy < sum(
                others.values()
            )
            continue
        accepted += 1
        rewards, parts = score(
            [row for _, row in rows], [Problem("q", "42")] * len(rows), tokenizer, config
        )
        assert parts["accuracy"] == [float(right) for right, _ in rows]
        earned = {
            wanted: [reward for (right, _), reward in zip(rows, rewards) if right == wanted]
            for wanted in answer
        }
        assert max(earned[False]) <= min(earned[True]) + 1e-12
    assert accepted > 10


def test_a_perfect_grammar_never_lifts_a_wrong_answer_above_a_right_one_that_breaks_it(tokenizer):
    wrong, right = (
        rollout(tokenizer, [("think", "a"), ("answer", "\\boxed{41}")]),
        rollout(tokenizer, [("text", "so \\boxed{42}")]),
    )
    rewards, parts = score(
        [wrong, right], [Problem("q", "42")] * 2, tokenizer, RewardConfig(length=0.0, grammar=1.0)
    )
    assert parts["grammar"] == [0, -1] and rewards[0] <= rewards[1]


@pytest.mark.parametrize(
    "part", ["format", "length", "repetition", "efficiency", "call_bonus", "grammar"]
)
def test_weights_that_would_let_a_wrong_answer_win_are_refused(part):
    assert RewardConfig(**{"length": 0.0, part: 1.0})
    with pytest.raises(ValueError, match="a wrong answer could earn more than a right one"):
        RewardConfig(**{"length": 0.0, part: 1.01})
    with pytest.raises(ValueError, match="none negative"):
        RewardConfig(**{part: -0.1})


@pytest.mark.parametrize(
    "settings",
    [
        {"accuracy": -1.0},
        {"length": 1.1},
        {"repetition": 0.7},
        {"repetition_ngram": 0},
        {"max_calls": 0},
        {"soft_punish_cache": 65},
        {"soft_punish_cache": -1},
        {"coin": True, "efficiency": 0.5},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError):
        RewardConfig(**settings)
