"""TAPO, tool-augmented policy optimisation (Wu et al. 2025, arXiv 2510.07038). The default recipe.

    cold start   imitate a teacher of mixed quality
    repeat       for each of 32 problems sample 8 trajectories that may search and compute
                 reward = accuracy + w * soft_overlong(ids that the model wrote)
                 keep problems with both right and wrong answers, refill once
                 A = (r - mean of the group) / std of the group
                 minimise - sum_t min(rho A, clip(rho, 1 - 0.2, 1 + 0.28) A) / active tokens

This is its plainest form: one policy, two tools, DAPO. The paper's grammar is a matter of flags:

    --format grammar           thoughts in <think>, calls in <search> and <python> (the paper:
                               <code>), results in <output> (<response>), the answer in <answer>.
                               An answer that breaks it is told why, once, and may go on
    --reward.grammar 0.3       what a break costs. The released code pays -1 whatever the answer;
                               here a right answer never earns less than a wrong one
    --sampler.last-turn true   one call too many is refused, and the model may answer without it

The paper's numbers: 64 problems x 4 samples, learning rate 1e-6 on a pretrained 3B or 7B model, at
most 4 calls, clip 0.2 and 0.28, dual clip 10 (`--rl.delta`), no KL term, no entropy bonus, overlong
ramp over the last 1,024 of 2,048 response tokens (from the authors' released code). There, tool
output stays in the loss's denominator (`--rl.observations counted`), and all rollouts wait for the
slowest call of a turn. Here, decoding goes on meanwhile.
"""

from __future__ import annotations

from nanotir import rl
from nanotir.demonstrate import demonstrations as demonstrations

SETTINGS = {  # RunConfig's defaults are this recipe's
    "rl.problems": 32,
    "rl.group_size": 8,
    "rl.refills": 1,
    "rl.updates": 2,
    "rl.loss_type": "dapo",
    "rl.epsilon": 0.2,
    "rl.epsilon_high": 0.28,
    "rl.dynamic": True,
    "reward.length": 0.4,
}


def improve(run):
    rl.train(run)
