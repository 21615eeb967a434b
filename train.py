"""From random weights to a model that reasons with tools.

python train.py                        five to eight minutes on two CPU cores
python train.py --preset probe         seconds: does everything, learns next to nothing
python train.py --resume runs/tapo-tiny-1
python train.py --help                 every setting, its default and what it does
"""

from __future__ import annotations

import json
import shlex
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import torch

from nanotir import run as runs
from nanotir import sft
from nanotir.commands import one_line
from nanotir.config import RECIPES, RunConfig, build, parse
from nanotir.evaluate import evaluate_run, table
from nanotir.model import Transformer
from nanotir.problems import load
from nanotir.recipes import tora
from nanotir.trajectory import Format

NOTHING = (
    "RL has learned nothing: in no step was an answer better than the others to its problem. "
    "Imitate longer (--sft.steps), sample more (--rl.group-size) or take easier problems (--data)"
)


def train(config: RunConfig):
    """The whole run. ValueError for what the user can mend, DeadTool if a tool only fails."""
    config = resolved(config)
    device = runs.use_device(config.device)
    torch.set_num_threads(config.threads)

    # Problems with known answers: some to train on, and others, held out, to evaluate on.
    problems = load(config.data, "train", config.problems, config.seed, config.level)
    held_out = load(config.eval_data, "test", config.eval.problems, config.seed + 1, config.level)
    check_start(config, problems)

    with ExitStack() as stack:
        # Tools that the model may call: Python in a sandbox, and search in documents.
        tools = [stack.enter_context(tool) for tool in runs.open_tools(asdict(config))]

        # A tokenizer that spells the problems well, or that of the run that we go on with.
        tokenizer, config.model = runs.make_tokenizer(config, problems, tools)

        # The policy: a transformer with random weights, or those of another run.
        model = Transformer(config.model, config.seed).to(device)
        if config.init:
            runs.load_state(Path(config.init) / "checkpoint", model)

        # The run folder. From here on Ctrl-C saves, and --resume goes on.
        format = Format(config.format)
        given = (config, model, tokenizer, format, tools, problems, held_out)
        run = runs.Run(config.out, *given)
        stack.enter_context(run.resume() if config.resume else run.create())
        size = sum(weight.numel() for weight in model.parameters())
        print(f"{run.out}: {size:,} parameters, {len(problems)} problems, tools {config.tools}")
        evaluate_run(run, "before")

        # Cold start: imitate a scripted teacher, which calls the real tools.
        recipe = RECIPES[config.recipe]
        if config.sft.steps and not run.is_done("sft"):
            sft.train(run, recipe.demonstrations(run))
        evaluate_run(run, "after_sft")

        # Reinforcement learning, or what the recipe does instead.
        recipe.improve(run)
        evaluate_run(run, "final")

    print(table(runs.read_evaluations(run.out)))
    if config.rl.steps and nothing_learned(run.out / "metrics.jsonl"):
        print(NOTHING)
    print(where_to_look(run.out))


def resolved(config: RunConfig) -> RunConfig:
    """The config of the run that is resumed, or this one with a folder that is new."""
    if config.resume:
        config = build(runs.read_config(config.resume) | {"resume": config.resume})
        config.out = config.resume
    config.out = config.out or new_folder(config)
    return config


def check_start(config: RunConfig, problems: list):
    """ValueError for a run that could not go on, before it makes a folder."""
    if config.recipe == "tora" and not tora.covered(config, problems):
        few = f"--tora.covered {config.tora.covered} of {len(problems)} problems"
        raise ValueError(f"{few} is none to imitate: more of either are needed")
    if config.init:
        # The model writes its calls as it has learned to.
        style = runs.read_config(config.init).get("format")
        if style != config.format:
            differs = f"'{config.init}' writes its calls as {style}, not as {config.format}"
            raise ValueError(f"{differs}: add --format {style}")


def new_folder(config: RunConfig) -> str:
    number = 1
    while (folder := Path("runs") / f"{config.recipe}-{config.preset}-{number}").exists():
        number += 1
    return str(folder)


def nothing_learned(metrics: Path) -> bool:
    """Whether RL never found an answer that was better than its siblings."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    shares = [row.get("zero_advantage", 1) for row in rows if row["phase"] == "rl"]
    return bool(shares) and min(shares) == 1


def where_to_look(out: Path) -> str:
    """What to do with a run that is over. sample.py takes the latest run in runs/ by itself."""
    latest = out.resolve() in [path.resolve() for path in runs.saved_runs()[-1:]]
    named = "" if latest else f"--run {shlex.quote(str(out))} "
    ask = f"python sample.py {named}'What is 384 * 927?'"
    traces = out / "traces.jsonl"
    return f"look at {traces}, or ask it something: {ask}" if traces.exists() else f"ask it: {ask}"


def main(arguments=None):
    with one_line("train.py"):
        train(parse(arguments))


if __name__ == "__main__":
    main()
