import torch

from nanotir.advantages import group_advantages
from nanotir.config import build
from nanotir.held_out import budget
from nanotir.recipes import cir


def test_plus_and_minus_one_whitened_are_one_and_zero_whitened():
    rewards = [1.0, 0, 0, 0, 1, 1, 0, 1]
    signed = [2 * reward - 1 for reward in rewards]
    tokens = torch.arange(1, 9)
    scale = cir.SETTINGS["rl.scale"]
    a, b = (group_advantages(r, 4, scale, num_tokens=tokens) for r in (rewards, signed))
    torch.testing.assert_close(a, b)


def test_the_budget_of_calls_grows_by_thirds():
    settings = build({**cir.SETTINGS, "recipe": "cir", "rl.steps": 6}).rl
    assert [budget(settings.budgets, step, 6, otherwise=9) for step in range(6)] == [
        2,
        2,
        3,
        3,
        4,
        4,
    ]


def test_advantages_are_whitened_over_the_ids_of_all_groups():
    assert cir.SETTINGS["rl.scale"] == "whiten_all"
