"""From random weights to a model that reasons with tools: tokenizer, cold start by imitation, RL with real tool calls, evaluation.

    python train.py                        five to eight minutes on two CPU cores
    python train.py --preset probe         seconds: does everything, learns next to nothing
    python train.py --resume runs/tapo-tiny-1
    python train.py --help                 every setting, its default and what it does
"""
from __future__ import annotations

import importlib
import pkgutil
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import torch

from nanotir import recipes
from nanotir.checkpoint import Run, Stopped, load_state, load_tokenizer, open_tools, read_config, read_evaluations
from nanotir.config import RunConfig, build, parse, unknown
from nanotir.demonstrate import corpus
from nanotir.evaluate import evaluate_run, table
from nanotir.model import Transformer
from nanotir.problems import load
from nanotir.problems.generate import documents
from nanotir.tokenizer import Tokenizer
from nanotir.tools import DeadTool
from nanotir.trajectory import Format


def main(arguments=None):
    config = parse(arguments)
    try:
        train(config)
    except Stopped as stopped:
        print(f"{stopped}; go on with: python train.py --resume {config.resume or config.out}")
        sys.exit(130)
    except KeyboardInterrupt:
        print(f"\ninterrupted; what '{config.resume or config.out}' last saved stands")
        sys.exit(130)
    except (ValueError, OSError, DeadTool) as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)


def train(config: RunConfig):
    """The whole run. ValueError for whatever the user can mend, DeadTool where a tool does nothing but fail."""
    if config.resume:
        config = build(read_config(config.resume) | {"resume": config.resume, "out": config.resume})
    recipe = find_recipe(config.recipe)
    device = check_device(config.device)
    torch.set_num_threads(config.threads)
    problems = load(config.data, "train", config.problems, config.seed, config.level)
    held_out = load(config.eval_data, "test", config.eval.problems, config.seed + 1, config.level)
    config.out = config.out or new_folder(config)

    with ExitStack() as stack:
        tools = [stack.enter_context(tool) for tool in open_tools(asdict(config))]
        tokenizer = make_tokenizer(config, problems)
        model = Transformer(config.model, config.seed).to(device)
        if config.init:
            load_state(Path(config.init) / "checkpoint", model)
        run = Run(config.out, config, model, tokenizer, Format(config.format), tools, problems, held_out)
        stack.enter_context(run.resume() if config.resume else run.create())
        print(f"{run.out}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(problems)} problems, tools {config.tools}")
        evaluate_run(run, "before")
        recipe.train(run)
        evaluate_run(run, "final")
    print(table(read_evaluations(run.out)))
    print(f"look at {run.out}/traces.jsonl, or ask it something: python sample.py 'What is 384 * 927?'")


def find_recipe(name: str):
    names = [module.name for module in pkgutil.iter_modules(recipes.__path__)]
    if name not in names:
        raise ValueError(unknown("recipe", name, names))
    return importlib.import_module(f"nanotir.recipes.{name}")


def check_device(name: str) -> torch.device:
    usable = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not usable.get(name):
        raise ValueError(f"no device '{name}' here; there are {', '.join(device for device, there in usable.items() if there)}")
    return torch.device(name)


def make_tokenizer(config: RunConfig, problems) -> Tokenizer:
    """Learned from the training problems, or that of the run we start from or go on with. Sets config.model to fit it."""
    if folder := config.resume or config.init:
        config.model = build(read_config(folder)).model
        return load_tokenizer(folder)
    tokenizer = Tokenizer.train(corpus(problems, documents()), config.model.vocab_size)
    config.model.vocab_size = len(tokenizer)
    return tokenizer


def new_folder(config: RunConfig) -> str:
    number = 1
    while (folder := Path("runs") / f"{config.recipe}-{config.preset}-{number}").exists():
        number += 1
    return str(folder)


if __name__ == "__main__":
    main()
