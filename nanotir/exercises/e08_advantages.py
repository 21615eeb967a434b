"""Exercise 8: the advantages of a group of answers."""

from __future__ import annotations

import torch

from nanotir.advantages import BASELINES, SCALES
from nanotir.exercises.exercise import Case, Exercise, Mistake


def cases(seed: int) -> list[Case]:
    generator = torch.Generator().manual_seed(seed)

    def rewards(n: int) -> torch.Tensor:
        return torch.rand(n, generator=generator, dtype=torch.float64).round(decimals=3)

    spread = rewards(12) * torch.tensor([1.0] * 4 + [3.0] * 4 + [0.2] * 4, dtype=torch.float64)
    tokens = torch.randint(1, 9, (12,), generator=generator)
    one_constant = torch.cat([torch.full((7,), 0.1, dtype=torch.float64), rewards(7)])
    return [
        Case("groups of different means and spreads", (spread, 4)),
        Case("another size of the groups", (spread.clone(), 3)),
        Case("a list of whole numbers", ([1, 0, 0, 1, 3, 1, 0, 0], 4)),
        Case("a large eps", (spread.clone(), 4), {"eps": 0.5}),
        Case("one group of equal rewards, another not", (one_constant, 7)),
        Case("all rewards equal", ([0.1] * 14, 7)),
        Case("no division", (spread.clone(), 4), {"scale": "none"}),
        Case("division by the spread of the batch", (spread.clone(), 4), {"scale": "batch"}),
        Case("the mean of the others", (spread.clone(), 4), {"baseline": "leave_one_out"}),
        Case("both", (spread.clone(), 3), {"baseline": "leave_one_out", "scale": "none"}),
        Case("a group of one", (rewards(3), 1)),
        Case("a batch of one", (rewards(1), 1), {"scale": "batch"}),
        Case("others in a group of one", (rewards(3), 1), {"baseline": "leave_one_out"}),
        Case("whitened", (one_constant.clone(), 7), {"scale": "whiten"}),
        Case("whitened by tokens", (spread.clone(), 4), {"scale": "whiten", "num_tokens": tokens}),
        Case(
            "whitened over the tokens of all groups",
            (one_constant.clone(), 7),
            {"scale": "whiten_all", "num_tokens": torch.arange(1, 15)},
        ),
        *[
            Case(
                f"all options together: {scale}, {baseline}",
                (one_constant.clone(), 7, scale, baseline, 0.1, torch.arange(1, 15)),
            )
            for scale in SCALES
            for baseline in BASELINES
        ],
        Case("groups of two", (rewards(4), 2)),
        Case("the other of two", (rewards(4), 2), {"baseline": "leave_one_out"}),
        Case("a batch of two", (rewards(2), 2), {"scale": "batch"}),
        Case("no rewards", ([], 4)),
        Case("groups that do not fit", ([1.0, 2.0, 3.0], 2)),
        Case("groups of none", ([1.0, 2.0], 0)),
        Case("an unknown scale", ([1.0, 2.0], 2), {"scale": "std"}),
        Case("an unknown baseline", ([1.0, 2.0], 2), {"baseline": "median"}),
    ]


GROUP_STD = "centred = centred / (groups.std(1, keepdim=True) + eps)"
EXERCISE = Exercise(
    number=8,
    name="group_advantages",
    lab="C",
    target="nanotir.advantages:group_advantages",
    teaches="The other answers to a prompt are the baseline: no critic is needed.",
    minutes=20,
    points=20,
    stars=2,
    cases=cases,
    mistakes=(
        Mistake(
            "you subtract the mean of the whole batch: each prompt needs its own baseline",
            (("groups - groups.mean(1, keepdim=True)", "groups - rewards.mean()"),),
            bug=True,
        ),
        Mistake(
            "you do not subtract the mean: an answer counts by its reward, not by how much better "
            "it is than the others",
            (("groups - groups.mean(1, keepdim=True)", "groups"),),
            bug=True,
        ),
        Mistake(
            "you divide by the variance, not by its root, the standard deviation",
            ((GROUP_STD, GROUP_STD.replace("groups.std", "groups.var")),),
            bug=True,
        ),
        Mistake(
            "you divide by the standard deviation of the whole batch where scale is 'group'",
            ((GROUP_STD, "centred = centred / (rewards.std() + eps)"),),
            bug=True,
        ),
        Mistake(
            "your standard deviation divides by G, not by G - 1",
            ((GROUP_STD, GROUP_STD.replace("keepdim=True", "keepdim=True, correction=0")),),
        ),
        Mistake(
            "you group the rewards by columns: the answers to one prompt lie side by side",
            (
                (
                    "rewards.view(len(rewards) // group_size, group_size)",
                    "rewards.view(group_size, len(rewards) // group_size).T",
                ),
                ("centred.reshape(-1)\n", "centred.T.reshape(-1)\n"),
            ),
            bug=True,
        ),
        Mistake(
            "you never divide by a standard deviation of the group",
            ((GROUP_STD, "pass"),),
            bug=True,
        ),
        Mistake(
            "you add eps inside the root: it is added to the standard deviation",
            ((GROUP_STD, "centred = centred / (groups.var(1, keepdim=True) + eps).sqrt()"),),
        ),
        Mistake(
            "you forget eps: it is added to the standard deviation of the group",
            ((GROUP_STD, GROUP_STD.replace(" + eps", "")),),
        ),
        Mistake(
            "leave_one_out must subtract the mean of the others: scale by G / (G - 1)",
            (("centred = centred * group_size / max(group_size - 1, 1)", "pass"),),
        ),
        Mistake(
            "a group of equal rewards must give exactly 0, but the mean of equal numbers may be "
            "off in the last digit",
            (
                (
                    "torch.where(constant, 0.0, groups - groups.mean(1, keepdim=True))",
                    "groups - groups.mean(1, keepdim=True)",
                ),
            ),
        ),
    ),
    hints=(
        "Two prompts, one easy and one hard: what makes a reward of 1 worth more in one of them?",
        "Begin with scale='group'; the other options come after. View the rewards as (prompts, G). "
        "Subtract each row's mean and divide by each row's standard deviation. Rows whose rewards "
        "are all equal are set to 0 by torch.where.",
        "A = (r - mean(r)) / (std(r) + eps) within a group, std with ddof 1. The mean of the "
        "others is left by multiplying r - mean(r) by G / (G - 1).",
    ),
    read=("nanotir/advantages.py:group_advantages", "arXiv 2402.03300, equation 3"),
    look="look at how `constant` makes groups of equal rewards exactly 0, whatever is divided by",
    question="Why does a prompt that all answers get right teach nothing, and what does DAPO do?",
    answer="All its advantages are 0, so its gradient is 0. DAPO samples other prompts instead "
    "(dynamic sampling), so that the step's batch keeps its size.",
)
