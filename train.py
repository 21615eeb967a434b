"""From random weights to a model that reasons with tools: tokenizer, cold start by imitation, RL with real tool calls, evaluation.

python train.py                        five to eight minutes on two CPU cores
python train.py --preset probe         seconds: does everything, learns next to nothing
python train.py --resume runs/tapo-tiny-1
python train.py --help                 every setting, its default and what it does
"""

from __future__ import annotations

import sys
from pathlib import Path

from nanotir.checkpoint import Stopped, open_run, read_config, read_evaluations
from nanotir.config import RECIPES, RunConfig, build, parse
from nanotir.evaluate import evaluate_run, table
from nanotir.tools import DeadTool


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
    config.out = config.out or new_folder(config)
    with open_run(config) as run:
        print(
            f"{run.out}: {sum(p.numel() for p in run.model.parameters()):,} parameters, {len(run.problems)} problems, tools {config.tools}"
        )
        evaluate_run(run, "before")
        RECIPES[config.recipe].train(run)
        evaluate_run(run, "final")
    print(table(read_evaluations(run.out)))
    print(
        f"look at {run.out}/traces.jsonl, or ask it something: python sample.py 'What is 384 * 927?'"
    )


def new_folder(config: RunConfig) -> str:
    number = 1
    while (folder := Path("runs") / f"{config.recipe}-{config.preset}-{number}").exists():
        number += 1
    return str(folder)


if __name__ == "__main__":
    main()
