"""All experiments by name. Each published system has a file of its own.

Experiments keep the numbers of the list that the project set out to check, which has gaps.
"""

from __future__ import annotations

from nanotir.lab import autocode, cir, grpo, overlap, tapo, tora

ALL = [
    *tora.EXPERIMENTS,
    *cir.EXPERIMENTS,
    *overlap.EXPERIMENTS,
    *autocode.EXPERIMENTS,
    *tapo.EXPERIMENTS,
    *grpo.EXPERIMENTS,
]
ALL.sort(key=lambda experiment: experiment.number)
EXPERIMENTS = {experiment.name: experiment for experiment in ALL}
