"""GRPO, group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300), with tools.

    for each problem sample G answers, which may call tools
    A_i = (r_i - mean(r)) / (std(r) + 1e-4)                                     (section 4.1.2)
    minimise - sum over rows of sum_t min(rho_t A_i, clip(rho_t, 1 - 0.2, 1 + 0.2) A_i) / N
             + beta KL(pi || pi_ref)
    rho_t = pi / pi_old of an id; or the geometric mean of the row's (`--rl.ratio-level sequence`)
    N     = all ids of the step (`--rl.loss-type dapo`); the ids of each row, then the rows (grpo);
            rows * max length (dr_grpo)

pi_old is the policy that sampled, not pi_ref. No group is dropped: one without spread has
advantages of 0.

The defaults are those of TRL's trainer: G 8, one update a rollout, beta 0, epsilon 0.2 on both
sides, loss_type dapo, rewards scaled by group, temperature 1. TRL's learning rate is 1e-6, for
pretrained models. The paper: G 64, beta 0.04, learning rate 1e-6, the loss called grpo here.

The policy may be a mixture of experts (`--preset tiny-moe`). Router and experts learn from the same
loss, with the load-balancing and z terms of routing.py. The rewards are those of rewards.py,
weighted by --reward.*.
"""

from __future__ import annotations

from nanotir import rl
from nanotir.demonstrate import demonstrations as demonstrations

SETTINGS = {
    "rl.dynamic": False,
    "rl.refills": 0,
    "rl.updates": 1,
    "rl.epsilon_high": 0.2,
    "reward.length": 0.0,
}


def improve(run):
    rl.train(run)
