"""One file per published system; each defines SETTINGS, what it changes in RunConfig's defaults, and `train(run)`."""

from __future__ import annotations

from nanotir import sft
from nanotir.demonstrate import demonstrate
from nanotir.evaluate import evaluate_run


def cold_start(run):
    """Imitate the scripted teacher, unless that is done, and measure the result: where the recipes with RL begin."""
    config, tools = run.config, {tool.name: tool for tool in run.tools}
    if "sft" not in run.state["done"] and config.sft.steps:
        demonstrations = demonstrate(
            run.problems, run.tokenizer, run.format, tools, config.teacher, config.seed
        )
        sft.train(run, demonstrations)
    evaluate_run(run, "after_sft")
