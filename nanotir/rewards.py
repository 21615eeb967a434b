"""What a finished trajectory is worth.

A reward function takes lists by keyword, one entry a trajectory, and returns a list of floats:

    completions      the words that the model wrote: no code and no tool output
    completion_ids   the ids that the model wrote, its code included, tool output excluded
    answer           the gold answers
    prompts          the questions; the answers to one question follow each other
    calls            how many calls were made
    trajectories     the whole rollouts, with the `tokenizer` that reads them
    config           the RewardConfig

So the model earns and pays for what it wrote, never for what a tool wrote. Only the final answer is
graded: a right one after a wrong program is paid in full. A new reward is one function and one row
in RewardConfig.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, fields
from itertools import compress

from nanotir.answers import equivalent, extract_answer
from nanotir.checks import Amount, Count, Whole, check_settings
from nanotir.grammar import grammar_error


def accuracy_reward(completions: list[str], answer: list[str], **_) -> list[float]:
    """1 if the final answer equals the gold one, else 0. No answer is a wrong answer."""
    return [float(is_correct(*pair)) for pair in zip(completions, answer, strict=True)]


def is_correct(completion: str, gold: str) -> bool:
    prediction = extract_answer(completion)
    return prediction is not None and equivalent(prediction, gold)


def think_format_reward(completions: list[str], **_) -> list[float]:
    """1 if the text starts with <think>, the only one in it, and closes it, else 0."""
    return [
        float(text.startswith("<think>") and text.count("<think>") == 1 and "</think>" in text)
        for text in completions
    ]


def get_soft_overlong_punishment(max_completion_len: int, soft_punish_cache: int):
    """DAPO's length penalty on n ids that the model wrote (Yu et al. 2025, eq. 13).

    With L = max_completion_len and c = soft_punish_cache: 0 up to n = L - c, then (L - c - n) / c,
    and -1 beyond L.
    """
    free = max_completion_len - soft_punish_cache
    ramp = max(soft_punish_cache, 1)  # without a ramp, the first id too many costs 1

    def soft_overlong_punishment(completion_ids: list[list[int]], **_) -> list[float]:
        return [max(-1.0, min(0.0, (free - len(ids)) / ramp)) for ids in completion_ids]

    return soft_overlong_punishment


def length_reward(completion_ids: list[list[int]], config: RewardConfig, **_) -> list[float]:
    """The soft overlong punishment with the lengths of `config`."""
    punish = get_soft_overlong_punishment(config.max_completion_len, config.soft_punish_cache)
    return punish(completion_ids)


def efficiency_reward(completions, answer, prompts, calls, **_) -> list[float]:
    """What OTC takes off a right answer for needless calls (Wang et al. 2025, arXiv 2504.14870).

    The fewest calls n are those of a right answer to the same prompt. With weight 1 the reward is
    accuracy * otc(m, n) for m calls. 0 for a wrong answer, which has nothing to lose.
    """
    right = accuracy_reward(completions, answer)
    fewest: dict[str, int] = {}
    for prompt, m, correct in zip(prompts, calls, right):
        if correct:
            fewest[prompt] = min(m, fewest.get(prompt, m))
    columns = zip(prompts, calls, right)
    return [otc(m, fewest[p]) - 1.0 if correct else 0.0 for p, m, correct in columns]


def otc(m: int, n: int, c: float = 1.0) -> float:
    """1 at m = n calls, less on either side of it."""
    if n == 0:
        return math.cos(m * math.pi / (2 * m + c))
    return math.sin(2 * n * m / (m + n) * math.pi / (2 * n))


def call_bonus_reward(calls: list[int], config: RewardConfig, **_) -> list[float]:
    """The share of the budget of calls that was used, right or wrong. A policy can exploit it."""
    return [min(m / config.max_calls, 1.0) for m in calls]


def grammar_reward(trajectories, tokenizer, **_) -> list[float]:
    """-1 if TAPO's grammar is broken, else 0. The released code pays -1 whatever the answer."""
    return [-1.0 if grammar_error(t, tokenizer) else 0.0 for t in trajectories]


def failures_reward(trajectories, **_) -> list[float]:
    """-1 if a call failed, else 0: ToRL's penalty for code that does not run."""
    return [-float(not all(call.result.ok for call in t.calls)) for t in trajectories]


def weight(default: float, reward):
    """A setting of RewardConfig that weighs a reward function."""
    return field(default=default, metadata={"reward": reward})


@dataclass
class RewardConfig:
    accuracy: Amount = weight(1.0, accuracy_reward)  # weight of a right answer
    format: Amount = weight(0.0, think_format_reward)  # weight of one well-formed <think> block
    length: Amount = weight(0.4, length_reward)  # weight of the soft overlong punishment
    efficiency: Amount = weight(0.0, efficiency_reward)  # weight of OTC's charge for needless
    # calls; at 1 the reward is accuracy * efficiency
    call_bonus: Amount = weight(0.0, call_bonus_reward)  # weight of a bonus for calls (exploitable)
    grammar: Amount = weight(0.0, grammar_reward)  # weight of a break of TAPO's grammar
    failures: Amount = weight(0.0, failures_reward)  # weight of a call that failed
    max_calls: Count = 4  # calls that earn the whole call_bonus
    coin: bool = False  # toss a coin instead of grading: the control of every claim about RL
    max_completion_len: Whole = 64  # from here on the length punishment is -1 (ids by the model)
    soft_punish_cache: Whole = 52  # length of the ramp that leads there

    def __post_init__(self):
        check_settings(self, "reward")
        # The worst right answer earns accuracy minus all penalties. The best wrong one earns all
        # bonuses. The first must not be less.
        others = sum(value for name, value in self.weights.items() if name != "accuracy")
        if self.accuracy < others - 1e-12:  # .1 + .1 + .1 is a little more than .3
            raise ValueError(
                f"reward weights: a wrong answer could earn more than a right one; make accuracy "
                f"({self.accuracy}) at least the sum of the other weights ({others:g})"
            )
        if self.coin and self.efficiency:
            raise ValueError("reward.efficiency needs graded answers: it does not go with a coin")
        if self.soft_punish_cache > self.max_completion_len:
            raise ValueError("soft_punish_cache must lie between 0 and max_completion_len")

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each reward, by its name."""
        return {name: getattr(self, name) for name in reward_funcs_registry}


reward_funcs_registry = {
    setting.name: setting.metadata["reward"]
    for setting in fields(RewardConfig)
    if "reward" in setting.metadata
}


def score(trajectories, problems, tokenizer, config: RewardConfig):
    """(rewards, parts): the weighted sum of all rewards of each trajectory, and its parts by name.

    With config.coin a coin (Python's generator, which a checkpoint holds) pays for accuracy.
    parts["accuracy"] stays the truth; parts["outcome"] is what was paid for.
    """
    columns = {
        "completions": [t.completion(tokenizer) for t in trajectories],
        "completion_ids": [list(compress(t.ids, t.mask)) for t in trajectories],
        "answer": [problem.answer for problem in problems],
        "prompts": [problem.question for problem in problems],
        "calls": [len(t.calls) for t in trajectories],
        "trajectories": trajectories,
        "tokenizer": tokenizer,
        "config": config,
    }
    weights = config.weights
    parts = {
        name: reward(**columns)
        for name, reward in reward_funcs_registry.items()
        if weights[name] or name == "accuracy"
    }
    outcome = parts["accuracy"]
    if config.coin:
        outcome = [float(random.random() < 0.5) for _ in trajectories]
    paid = parts | {"accuracy": outcome}
    rewards = [
        sum(weights[name] * values[i] for name, values in paid.items())
        for i in range(len(trajectories))
    ]
    return rewards, parts | {"outcome": outcome}
