"""TAPO, tool-augmented policy optimisation (Wu et al. 2025, arXiv 2510.07038), in its plainest form: one policy, two tools, DAPO.

    cold start   imitate a teacher of mixed quality
    then repeat  for each of 32 problems sample 8 trajectories that may search and compute
                 reward = accuracy + w * soft_overlong(ids that the model wrote; tool output is free)
                 keep problems with both right and wrong answers, refill once
                 A = (r - mean of the group) / std of the group
                 minimise - sum_t min(rho A, clip(rho, 1 - 0.2, 1 + 0.28) A) / active tokens of the step

The paper's numbers next to the toy ones: 64 problems x 4 samples, learning rate 1e-6 on a pretrained 3B or 7B model, 2048 response
tokens, at most 4 calls, no KL term, no entropy bonus (from the authors' released code).
"""
from __future__ import annotations

from nanotir import rl, sft
from nanotir.demonstrate import demonstrate
from nanotir.evaluate import evaluate_run


def train(run):
    config = run.config
    tools = {tool.name: tool for tool in run.tools}
    if "sft" not in run.state["done"] and config.sft.steps:
        demonstrations = demonstrate(run.problems, run.tokenizer, run.format, tools, config.teacher, config.seed)
        sft.train(run, demonstrations)
    evaluate_run(run, "after_sft")
    rl.train(run)
