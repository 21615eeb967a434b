"""What a finished trajectory is worth. A reward function takes lists by keyword, one entry a trajectory, and returns a list of floats:

completions      the words the model wrote: no code, no tool output, so nobody is paid for what a tool said
completion_ids   the ids the model wrote, its code included, the tools' excluded, so nobody pays for what a tool said either
answer           the gold answers
prompts          the questions; the answers to one follow each other
calls            how many calls were made
turns            everything after the prompt as (kind, text) pieces
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from nanotir.answers import equivalent, extract_answer
from nanotir.trajectory import grammar_error


def accuracy_reward(completions, answer, **_) -> list[float]:
    """1 where the final answer equals the gold one, else 0; a completion without an answer is wrong."""
    return [
        float(is_correct(completion, gold))
        for completion, gold in zip(completions, answer, strict=True)
    ]


def is_correct(completion: str, gold: str) -> bool:
    prediction = extract_answer(completion)
    return prediction is not None and equivalent(prediction, gold)


def think_format_reward(completions, **_) -> list[float]:
    """1 where the text starts with <think>, the only one in it, and closes it; else 0."""
    return [
        float(c.startswith("<think>") and c.count("<think>") == 1 and "</think>" in c)
        for c in completions
    ]


def get_soft_overlong_punishment(max_completion_len: int, soft_punish_cache: int):
    """DAPO (Yu et al. 2025, eq. 13), with L = max_completion_len and c = soft_punish_cache, on n ids that the model wrote:
    0 while n <= L - c, then (L - c - n) / c, and -1 beyond L."""

    def soft_overlong_punishment(completion_ids, **_) -> list[float]:
        free = max_completion_len - soft_punish_cache
        ramp = lambda n: (free - n) / soft_punish_cache if n <= max_completion_len else -1.0
        return [0.0 if len(ids) <= free else ramp(len(ids)) for ids in completion_ids]

    return soft_overlong_punishment


def get_repetition_penalty_reward(ngram_size: int = 3, max_penalty: float = -1.0):
    """max_penalty * the share of n-grams, of the ids that the model wrote, that occurred before (Yeo et al. 2025, appendix C.2)."""

    def repetition_penalty(completion_ids, **_) -> list[float]:
        ngrams = [list(zip(*(ids[i:] for i in range(ngram_size)))) for ids in completion_ids]
        return [
            max_penalty * (1 - len(set(grams)) / len(grams)) if grams else 0.0 for grams in ngrams
        ]

    return repetition_penalty


def call_efficiency_reward(completions, answer, prompts, calls, **_) -> list[float]:
    """What OTC (Wang et al. 2025, arXiv 2504.14870, its form for GRPO) takes off a right answer for calls beyond the fewest, n, that a right sibling made: with
    weight 1 the reward is accuracy * otc(m, n) for m calls. 0 for a wrong answer: it has nothing to lose."""
    right = accuracy_reward(completions, answer)
    fewest = {
        p: min(m for q, m, r in zip(prompts, calls, right) if r and q == p)
        for p, r in zip(prompts, right)
        if r
    }
    return [r and otc(m, fewest[p]) - 1.0 for p, m, r in zip(prompts, calls, right)]


def otc(m: int, n: int, c: float = 1.0) -> float:
    """1 at m = n calls, less on either side of it."""
    if n == 0:
        return math.cos(m * math.pi / (2 * m + c))
    return math.sin(2 * n * m / (m + n) * math.pi / (2 * n))


def get_call_bonus_reward(max_calls: int):
    """The share of the budget of calls that was used up, right or wrong: the bonus for using tools that invites its own abuse."""
    return lambda calls, **_: [min(m / max_calls, 1.0) for m in calls]


def grammar_reward(turns, **_) -> list[float]:
    """-1 where TAPO's grammar is broken, else 0. (Its code pays -1 for a break whatever the answer; here a right one stays ahead.)"""
    return [-1.0 if grammar_error(pieces) else 0.0 for pieces in turns]


reward_funcs_registry = {
    "accuracy": lambda config: accuracy_reward,
    "format": lambda config: think_format_reward,
    "length": lambda config: get_soft_overlong_punishment(
        config.max_completion_len, config.soft_punish_cache
    ),
    "repetition": lambda config: get_repetition_penalty_reward(config.repetition_ngram),
    "efficiency": lambda config: call_efficiency_reward,
    "call_bonus": lambda config: get_call_bonus_reward(config.max_calls),
    "grammar": lambda config: grammar_reward,
}


@dataclass
class RewardConfig:
    accuracy: float = 1.0  # weight of a right answer
    format: float = 0.0  # weight of one well-formed <think> block
    length: float = (
        0.4  # weight of the soft overlong punishment: what makes a needless call cost something
    )
    repetition: float = 0.0  # weight of the penalty on repeated n-grams
    repetition_ngram: int = 3  # their length, in ids
    efficiency: float = (
        0.0  # weight of OTC's charge for needless calls; at 1 the reward is accuracy * efficiency
    )
    call_bonus: float = 0.0  # weight of a bonus for calls, right or wrong: to be seen abused
    max_calls: int = 4  # calls that earn the whole bonus
    grammar: float = 0.0  # weight of TAPO's grammar: what a break of it costs
    coin: bool = False  # a coin is tossed instead of grading: the control of every claim about RL
    max_completion_len: int = 64  # from here on the punishment is -1 (ids written by the model)
    soft_punish_cache: int = 52  # length of the ramp that leads there

    def __post_init__(self):
        # The worst right answer earns accuracy - (length + repetition + efficiency + grammar), the best wrong one format + call_bonus.
        others = (
            self.format,
            self.length,
            self.repetition,
            self.efficiency,
            self.call_bonus,
            self.grammar,
        )
        if min(self.accuracy, *others) < 0 or self.accuracy < sum(others):
            raise ValueError(
                f"reward weights: a wrong answer could earn more than a right one; make accuracy ({self.accuracy}) at least the sum "
                f"of the other weights ({sum(others):g}), and none negative"
            )
        if self.coin and self.efficiency:
            raise ValueError(
                "efficiency takes its share off right answers, which a coin (reward.coin) knows nothing of: set one of them"
            )
        if min(self.repetition_ngram, self.max_calls) < 1:
            raise ValueError("repetition_ngram and max_calls must be at least 1")
        if not 0 <= self.soft_punish_cache <= self.max_completion_len:
            raise ValueError("soft_punish_cache must lie between 0 and max_completion_len")


def score(
    trajectories, problems, tokenizer, config: RewardConfig
) -> tuple[list[float], dict[str, list[float]]]:
    """The weighted sum of all rewards for each trajectory, and its parts by name. With config.coin, accuracy's share of the sum is a
    coin's (Python's own generator, which a checkpoint holds); parts["accuracy"] stays the truth, parts["outcome"] is what was paid for."""
    known = {
        "completions": [completion(trajectory, tokenizer) for trajectory in trajectories],
        "completion_ids": [
            [id for id, chosen in zip(t.ids, t.trained) if chosen] for t in trajectories
        ],
        "answer": [problem.answer for problem in problems],
        "prompts": [problem.question for problem in problems],
        "calls": [len(t.calls) for t in trajectories],
        "turns": [t.turns(tokenizer) for t in trajectories],
    }
    weights = {name: getattr(config, name) for name in reward_funcs_registry}
    parts = {
        name: make(config)(**known)
        for name, make in reward_funcs_registry.items()
        if weights[name] or name == "accuracy"
    }
    outcome = (
        [float(random.random() < 0.5) for _ in trajectories] if config.coin else parts["accuracy"]
    )
    paid = parts | {"accuracy": outcome}
    return [
        sum(weights[name] * paid[name][i] for name in paid) for i in range(len(trajectories))
    ], parts | {"outcome": outcome}


def completion(trajectory, tokenizer) -> str:
    """The words the model wrote, its turns joined by newlines."""
    return "\n".join(trajectory.texts(tokenizer))
