"""CIR, code-integrated reasoning (Bai et al. 2025, arXiv 2505.24480): stable RL with a code tool.

    for each problem sample G answers; a finished ```python block is cut out and run, and the answer
        goes on after its output
    R = +1 if the answer is right, else -1
    A = R - mean of the group, then brought to mean 0 and variance 1 over all ids of the batch
        (REINFORCE++ with a baseline), also those of groups whose answers are all right or all
        wrong. `--rl.scale whiten` leaves these out
    minimise - sum_t min(rho A, clip(rho, 1 - 0.2, 1 + 0.28) A) / active ids
    no KL, no entropy bonus
    an answer may have 2 blocks run, later 3, then 4, for a third of the steps each. The next one is
        not run. There, the answer goes on as if it were words. Here, it is told so once

What the paper finds to matter, and where it is here: masked outputs (`rl.observations`; in its code
a regular expression over decoded text, here the spans), the budget (`rl.budgets`), clip-higher
(`rl.epsilon_high`), no KL (`rl.beta`), no entropy bonus (`rl.entropy_coef`). The paper also finds
that blocks must be matched exactly, not by a stop string. By default fences are single ids, for
which there is nothing to match. `--format text` writes them as plain text and matches them to the
character (blocks.py), and with it `--sampler.stop-string true` stops at any ``` instead. +1/-1 or
1/0 makes no difference: whitening undoes any scale and shift.

The paper: 128 problems x 16, 300 steps, learning rate 1e-6, 4,096 ids on Qwen2.5-Math-7B, the
budget raised at steps 100 and 200 by hand.
"""

from __future__ import annotations

from nanotir import rl
from nanotir.demonstrate import demonstrations as demonstrations

SETTINGS = {
    "tools": "python",
    "data": "generated:mul,power,gcd,lin,det,choose,quot,clock",
    "format": "fences",
    "sft.steps": 400,
    "rl.budgets": "2,3,4",
    "sampler.last_turn": True,
    "rl.scale": "whiten_all",
    "rl.dynamic": False,
    "rl.refills": 0,
    "reward.length": 0.0,
}


def improve(run):
    rl.train(run)
