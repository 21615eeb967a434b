"""What a finished trajectory is worth. A reward function takes lists by keyword, one entry a trajectory, and returns a list of floats:

    completions      the words the model wrote: no code, no tool output, so nobody is paid for what a tool said
    completion_ids   the ids the model wrote, its code included, the tools' excluded, so nobody pays for what a tool said either
    answer           the gold answers
"""
from __future__ import annotations

from dataclasses import dataclass

from nanotir.answers import equivalent, extract_answer


def accuracy_reward(completions, answer, **_) -> list[float]:
    """1 where the final answer equals the gold one, else 0; a completion without an answer is wrong."""
    return [float(is_correct(completion, gold)) for completion, gold in zip(completions, answer, strict=True)]


def is_correct(completion: str, gold: str) -> bool:
    prediction = extract_answer(completion)
    return prediction is not None and equivalent(prediction, gold)


def think_format_reward(completions, **_) -> list[float]:
    """1 where the text starts with <think>, the only one in it, and closes it; else 0."""
    return [float(c.startswith("<think>") and c.count("<think>") == 1 and "</think>" in c) for c in completions]


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
        return [max_penalty * (1 - len(set(grams)) / len(grams)) if grams else 0.0 for grams in ngrams]

    return repetition_penalty


reward_funcs_registry = {
    "accuracy": lambda config: accuracy_reward,
    "format": lambda config: think_format_reward,
    "length": lambda config: get_soft_overlong_punishment(config.max_completion_len, config.soft_punish_cache),
    "repetition": lambda config: get_repetition_penalty_reward(config.repetition_ngram),
}


@dataclass
class RewardConfig:
    accuracy: float = 1.0  # weight of a right answer
    format: float = 0.0  # weight of one well-formed <think> block
    length: float = 0.4  # weight of the soft overlong punishment: what makes a needless call cost something
    repetition: float = 0.0  # weight of the penalty on repeated n-grams
    repetition_ngram: int = 3  # their length, in ids
    max_completion_len: int = 64  # from here on the punishment is -1 (ids written by the model)
    soft_punish_cache: int = 52  # length of the ramp that leads there

    def __post_init__(self):
        # The worst right answer earns accuracy - length - repetition, the best wrong one format.
        others = (self.format, self.length, self.repetition)
        if min(self.accuracy, *others) < 0 or self.accuracy < sum(others):
            raise ValueError(f"reward weights: a wrong answer could earn more than a right one; make accuracy ({self.accuracy}) at least "
                             f"format + length + repetition ({sum(others)}), and none negative")  # fmt: skip
        if self.repetition_ngram < 1:
            raise ValueError("repetition_ngram must be at least 1")
        if not 0 <= self.soft_punish_cache <= self.max_completion_len:
            raise ValueError("soft_punish_cache must lie between 0 and max_completion_len")


def score(trajectories, problems, tokenizer, config: RewardConfig) -> tuple[list[float], dict[str, list[float]]]:
    """The weighted sum of all rewards for each trajectory, and its parts by name."""
    known = {
        "completions": [completion(trajectory, tokenizer) for trajectory in trajectories],
        "completion_ids": [[id for id, chosen in zip(t.ids, t.trained) if chosen] for t in trajectories],
        "answer": [problem.answer for problem in problems],
    }
    parts = {name: make(config)(**known) for name, make in reward_funcs_registry.items()}
    weights = {name: getattr(config, name) for name in parts}
    return [sum(weights[name] * parts[name][i] for name in parts) for i in range(len(trajectories))], parts


def completion(trajectory, tokenizer) -> str:
    """The words the model wrote, its turns joined by newlines."""
    return "\n".join(trajectory.texts(tokenizer))
