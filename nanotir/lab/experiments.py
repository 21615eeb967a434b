"""All experiments, by name; one file a published system. The numbers are those of the list that the project set out to check."""

from __future__ import annotations

from nanotir.lab import autocode, cir, grpo, tapo, tora

ALL = [
    experiment for system in (tora, cir, autocode, tapo, grpo) for experiment in system.EXPERIMENTS
]
EXPERIMENTS = {
    experiment.name: experiment
    for experiment in sorted(ALL, key=lambda experiment: experiment.number)
}
