"""TAPO, tool-augmented policy optimisation (Wu et al. 2025, arXiv 2510.07038): one policy, two tools, DAPO. The default recipe.

    cold start   imitate a teacher of mixed quality
    then repeat  for each of 32 problems sample 8 trajectories that may search and compute; decoding goes on while tools run
                 reward = accuracy + w * soft_overlong(ids that the model wrote; tool output is free)
                 keep problems with both right and wrong answers, refill once
                 A = (r - mean of the group) / std of the group
                 minimise - sum_t min(rho A, clip(rho, 1 - 0.2, 1 + 0.28) A) / active tokens of the step

That is its plainest form. The paper's grammar, with its checker (`trajectory.grammar_error`), is a matter of flags:

    --format grammar            thoughts in <think>, calls in <search> and <python> (the paper: <code>), their results in <output>
                                (<response>), the answer in <answer>; an answer that breaks it is told why, once, and may go on
    --reward.grammar 0.3        what a break costs. The released code pays -1 for it whatever the answer; here a right answer
                                never earns less than a wrong one
    --sampler.last-turn true    one call too many is refused, and the model may answer without

The paper's numbers next to the toy ones: 64 problems x 4 samples, learning rate 1e-6 on a pretrained 3B or 7B model, 2048 response
tokens, at most 4 calls, clip 0.2 and 0.28, dual clip 10 (`--rl.delta`), no KL term, no entropy bonus, overlong ramp over the last 1024 of
2048 tokens (from the authors' released code). There tool output stays in the loss's denominator (`--rl.observations counted`); here not.
All rollouts of that code wait for the slowest call of a turn; here decoding goes on meanwhile.
"""

from __future__ import annotations

from nanotir import rl
from nanotir.recipes import cold_start

SETTINGS: dict = {}  # RunConfig's defaults are this recipe's


def train(run):
    cold_start(run)
    rl.train(run)
