import itertools
import random

import pytest

from nanotir.problems.problem import Problem
from nanotir.rewards import RewardConfig, accuracy_reward, completion, get_repetition_penalty_reward, get_soft_overlong_punishment, reward_funcs_registry, score, think_format_reward
from nanotir.trajectory import Format


def test_accuracy_is_one_for_the_gold_answer_only():
    texts = ["The answer is \\boxed{12}.", "\\boxed{13}", "12", "", "the answer is 12", "\\boxed{1 2 3 4 5 6 7 8 9 10 11 12}", "\\boxed{1\\boxed{2}}"]
    assert accuracy_reward(completions=texts, answer=["12"] * 7) == [1, 0, 0, 0, 1, 0, 0]


@pytest.mark.parametrize("text, reward", [
    ("<think>a</think>b", 1), ("<think>a\nb</think>\nc", 1), ("a<think>b</think>", 0), ("<think>a", 0), ("<think>a<think>b</think>", 0), ("", 0),
    ("<think>a</think>b<think>c</think>", 0),
])  # fmt: skip
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
    assert get_repetition_penalty_reward(3, -0.5)(completion_ids=[[1, 2, 3] * 4]) == pytest.approx([-0.5 * 7 / 10])


def rollout(tokenizer, pieces):
    return Format().trajectory(tokenizer, "What is 6*7?", pieces)


def test_nobody_is_paid_for_what_a_tool_said(tokenizer):
    pieces = [("python", "6*7"), ("output", "The answer is \\boxed{42}."), ("text", "Done.")]
    config = RewardConfig(length=0.0)
    assert score([rollout(tokenizer, pieces)], [Problem("q", "42")], tokenizer, config)[0] == [0.0]
    pieces[-1] = ("text", "\\boxed{42}")
    assert score([rollout(tokenizer, pieces)], [Problem("q", "42")], tokenizer, config)[0] == [1.0]


def test_an_answer_inside_code_is_no_answer(tokenizer):
    pieces = [("python", "'\\\\boxed{42}' # the answer is 42"), ("output", "x"), ("text", "Done.")]
    assert score([rollout(tokenizer, pieces)], [Problem("q", "42")], tokenizer, RewardConfig(length=0.0))[0] == [0.0]
    assert completion(rollout(tokenizer, pieces), tokenizer) == "Done."


def test_nobody_pays_for_what_a_tool_said(tokenizer):
    config = RewardConfig(max_completion_len=30, soft_punish_cache=10)
    rewards = [score([rollout(tokenizer, [("python", "6*7"), ("output", "7" * n), ("text", "\\boxed{42}")])], [Problem("q", "42")], tokenizer, config)[0]
               for n in (1, 500)]  # fmt: skip
    assert rewards[0] == rewards[1]


def test_the_reward_is_the_weighted_sum_of_its_parts(tokenizer):
    rows = [rollout(tokenizer, [("text", "<think>x</think>\\boxed{42}")]), rollout(tokenizer, [("text", "y" * 90)])]
    config = RewardConfig(accuracy=2.0, format=0.5, length=0.7, repetition=0.6, max_completion_len=40, soft_punish_cache=10)
    rewards, parts = score(rows, [Problem("q", "42")] * 2, tokenizer, config)
    assert set(parts) == set(reward_funcs_registry)
    assert rewards == pytest.approx([2 * parts["accuracy"][i] + 0.5 * parts["format"][i] + 0.7 * parts["length"][i] + 0.6 * parts["repetition"][i] for i in range(2)])
    assert parts["accuracy"] == [1, 0] and parts["format"] == [1, 0] and parts["length"] == [0, -1]


def test_a_wrong_answer_never_earns_more_than_a_right_one(tokenizer):
    """Over random weights that RewardConfig accepts and all combinations of format and length."""
    rng, accepted = random.Random(0), 0
    texts = {right: [f"{think}{'z ' * n}\\boxed{{{'42' if right else '41'}}}" for think in ("", "<think>a</think>") for n in (0, 8, 40)] for right in (True, False)}
    rows = {right: [rollout(tokenizer, [("text", text)]) for text in texts[right]] for right in texts}
    for _ in range(60):
        weights = dict(accuracy=rng.random() * 2, format=rng.random(), length=rng.random(), repetition=rng.random() / 2, max_completion_len=40, soft_punish_cache=25)
        try:
            config = RewardConfig(**weights)
        except ValueError as refused:
            assert "wrong answer could earn more" in str(refused) and weights["accuracy"] < weights["format"] + weights["length"] + weights["repetition"]
            continue
        accepted += 1
        earned = {right: score(rows[right], [Problem("q", "42")] * 6, tokenizer, config)[0] for right in rows}
        assert all(wrong <= right + 1e-12 for wrong, right in itertools.product(earned[False], earned[True]))
    assert accepted > 10


@pytest.mark.parametrize("settings", [{"accuracy": -1.0}, {"length": 1.1}, {"repetition": 0.7}, {"repetition_ngram": 0}, {"soft_punish_cache": 65}, {"soft_punish_cache": -1}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError):
        RewardConfig(**settings)
