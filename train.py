"""From random weights to a model that reasons with tools.

python train.py                        five to eight minutes on two CPU cores
python train.py --preset probe         seconds: does everything, learns next to nothing
python train.py --resume runs/tapo-tiny-1
python train.py --help                 every setting, its default and what it does
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import torch

from nanotir import run as runs
from nanotir import sft
from nanotir.config import RECIPES, RunConfig, build, parse
from nanotir.evaluate import evaluate_run, table
from nanotir.model import Transformer
from nanotir.problems import load
from nanotir.room import demonstrations_with_room, problems_with_room
from nanotir.tools import DeadTool
from nanotir.trajectory import Format


def train(config: RunConfig):
    """The whole run. ValueError for what the user can mend, DeadTool if a tool only fails."""
    config = resolved(config)
    device = runs.use_device(config.device)
    torch.set_num_threads(config.threads)

    # Problems with known answers: some to train on, and others, held out, to evaluate on.
    problems = load(config.data, "train", config.problems, config.seed, config.level)
    held_out = load(config.eval_data, "test", config.eval.problems, config.seed + 1, config.level)

    with ExitStack() as stack:
        # Tools that the model may call: Python in a sandbox, and search in documents.
        tools = [stack.enter_context(tool) for tool in runs.open_tools(asdict(config))]

        # A tokenizer that spells the problems well, or that of the run that we go on with.
        tokenizer, config.model = runs.make_tokenizer(config, problems, tools)

        # Problems must leave room for an answer: better to know it now than after hours.
        format = Format(config.format)
        room = (tokenizer, format, config.model.max_seq_len, config.too_long)
        problems, held_out = (problems_with_room(rows, *room) for rows in (problems, held_out))

        # The policy: a transformer with random weights, or those of another run.
        model = Transformer(config.model, config.seed).to(device)
        if config.init and not config.resume:
            runs.load_state(Path(config.init) / "checkpoint", model)
        run = runs.Run(config.out, config, model, tokenizer, format, tools, problems, held_out)
        if config.resume:
            run.resume()

        # What to imitate: a scripted teacher calls the real tools.
        recipe = RECIPES[config.recipe]
        if config.sft.steps and not run.is_done("sft"):
            run.demonstrations = demonstrations_with_room(run, recipe.demonstrations(run))

        # The run folder. From here on Ctrl-C saves, and --resume goes on.
        stack.enter_context(run if config.resume else run.create())
        size = sum(weight.numel() for weight in model.parameters())
        print(f"{run.out}: {size:,} parameters, {len(problems)} problems, tools {config.tools}")
        evaluate_run(run, "before")

        # Cold start, then reinforcement learning, or what the recipe does instead.
        if run.demonstrations:
            sft.train(run, run.demonstrations)
        evaluate_run(run, "after_sft")
        recipe.improve(run)
        evaluate_run(run, "final")

    print(table(runs.read_evaluations(run.out)))
    ask = "python sample.py 'What is 384 * 927?'"
    print(f"look at {run.out}/traces.jsonl, or ask it something: {ask}")


def resolved(config: RunConfig) -> RunConfig:
    """The config of the run that is resumed, or this one with a folder that is new."""
    if config.resume:
        folder = config.resume
        settings = runs.read_config(folder)
        with runs.reading(f"{folder}/config.json"):
            config = build(settings | {"resume": folder, "out": folder})
        return config
    config.out = config.out or new_folder(config)
    runs.check_free(config.out)
    check_init(config)
    return config


def check_init(config: RunConfig):
    """A run can only start from one that writes its calls in the same way."""
    if config.init:
        style = runs.read_config(config.init).get("format")
        if style != config.format:
            differs = f"'{config.init}' writes its calls as {style}, not as {config.format}"
            raise ValueError(f"{differs}: add --format {style}")


def new_folder(config: RunConfig) -> str:
    number = 1
    while (folder := Path("runs") / f"{config.recipe}-{config.preset}-{number}").exists():
        number += 1
    return str(folder)


def main(arguments=None):
    config = parse(arguments)
    try:
        train(config)
    except runs.Stopped as stopped:
        print(f"{stopped}; go on with: python train.py --resume {config.resume or config.out}")
        sys.exit(130)
    except KeyboardInterrupt:
        print(f"\ninterrupted; what '{config.resume or config.out}' last saved stands")
        sys.exit(130)
    except (ValueError, OSError, DeadTool) as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
