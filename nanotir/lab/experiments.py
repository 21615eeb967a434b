"""All experiments by name. Each published system has a file of its own.

Experiments keep the numbers of the list that the project set out to check, which has gaps.
"""

from __future__ import annotations

from nanotir.lab import (
    autocode,
    bonus,
    cir,
    dapo,
    failures,
    grpo,
    gsm8k,
    overlap,
    tapo,
    tora,
    trust,
    votes,
)

ALL = [
    *tora.EXPERIMENTS,
    *cir.EXPERIMENTS,
    *overlap.EXPERIMENTS,
    *autocode.EXPERIMENTS,
    *tapo.EXPERIMENTS,
    *grpo.EXPERIMENTS,
    *failures.EXPERIMENTS,
    *dapo.EXPERIMENTS,
    *votes.EXPERIMENTS,
    *gsm8k.EXPERIMENTS,
    *trust.EXPERIMENTS,
    *bonus.EXPERIMENTS,
]
ALL.sort(key=lambda experiment: experiment.number)
EXPERIMENTS = {experiment.name: experiment for experiment in ALL}
