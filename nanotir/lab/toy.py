"""The toy that all experiments share: small enough for arms of a minute, hard enough that arms can differ.

An arm is a run like any other, a RunConfig and a recipe, measured afterwards. Arms of one seed start from the same weights where they
share a cold start: it is trained once, by whoever needs it first.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from nanotir.checkpoint import open_run
from nanotir.config import RECIPES, build
from nanotir.evaluate import evaluate
from nanotir.rewards import completion, is_correct
from nanotir.sampler import Sampler

TOY = {  # of every arm of every experiment
    "model.n_layers": 4,
    "model.d_model": 96,
    "model.n_heads": 3,
    "model.n_kv_heads": 1,
    "model.d_ff": 256,
    "model.vocab_size": 512,
    "model.rope_theta": 10000.0,
    "problems": 4000,
    "sft.batch_size": 32,
    "sft.steps": 300,
    "sampler.max_new_tokens": 64,
    "sampler.max_rows": 128,
    "rl.problems": 16,
    "rl.steps": 24,
    "rl.group_size": 8,
    "eval.problems": 400,
    "eval.modes": "tools",
    "save_every": 10**6,
}
QUICK = {"sft.steps": 150, "rl.steps": 3, "eval.problems": 40}


@contextmanager
def trained(
    folder,
    recipe: str,
    settings: dict,
    seed: int,
    quick: bool,
    done=(),
    fresh: bool = False,
    tools=None,
):
    """The Run of a recipe, trained with these settings on top of the toy's, in folder/run. Phases in `done` were another run's;
    `fresh`: what it started from is not its base, but random weights are; tools(run) stand in for the run's own."""
    out = Path(folder) / "run"
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    quickly = {
        key: min(value, QUICK[key])
        for key, value in {**TOY, **settings}.items()
        if quick and key in QUICK
    }
    own = {"recipe": recipe, "seed": seed, "out": str(out)}
    config = build({**RECIPES[recipe].SETTINGS, **TOY, **settings, **quickly, **own})
    with open_run(config) as run:
        run.state["done"] += done
        run.config.init = "" if fresh else run.config.init
        run.tools = tools(run) if tools else run.tools
        if not config.sft.steps:
            run.record(
                "after_sft", {}
            )  # the start that arms share was measured once: recipes need not do so again
        RECIPES[recipe].train(run)
        yield run


def cold_start(name: str, settings: dict, seed: int, quick: bool, recipe: str = "tapo") -> str:
    """The folder of a run that several arms start from, made now if none needed it before. Other settings make another folder."""
    settings_key = hashlib.sha256(
        json.dumps([recipe, TOY, settings, quick and QUICK], sort_keys=True).encode()
    ).hexdigest()[:8]
    folder = Path("runs/lab/cold") / f"{name}-{seed}-{settings_key}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the other workers wait for it
        if not (folder / "done").exists():
            with trained(folder, recipe, settings, seed, quick):
                pass
            (folder / "done").touch()
    return str(folder / "run")


def reinforce(
    folder,
    recipe: str,
    start: dict,
    settings: dict,
    seed: int,
    quick: bool,
    name: str = "cir",
    **options,
):
    """RL by a recipe, from the cold start `name` that `start` describes."""
    init = {"init": cold_start(name, start, seed, quick), "sft.steps": 0}
    return trained(folder, recipe, start | settings | init, seed, quick, **options)


def measure(run, **settings) -> dict:
    """Statistics of the trained policy on the held-out problems (by default greedy, with tools)."""
    config = replace(run.config.eval, **settings)
    result = evaluate(
        run.model,
        run.tokenizer,
        run.tools,
        run.format,
        run.held_out,
        config,
        run.config.sampler,
        run.config.seed,
    )
    return result[config.modes]


def curve(run, metric: str, phase: str = "rl") -> list:
    """[[step, value], ...] of a metric over a phase of the run."""
    path = run.out / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [[row["step"], row[metric]] for row in rows if row["phase"] == phase and metric in row]


def mean_of(points, last: float = 1.0) -> float | None:
    """The mean of a curve's values over this last share of its points."""
    values = [y for _, y in points][-max(1, round(last * len(points))) :]
    return sum(values) / len(values) if values else None


def right_counts(run, problems, n: int, tools: bool = True, seed: int = 0) -> list[int]:
    """How many of n sampled answers to each problem are right."""
    sampler = Sampler(
        run.model, run.tokenizer, run.tools if tools else [], run.format, run.config.sampler
    )
    rows = sampler.generate([problem.question for problem in problems], n, seed)
    asked = [problem for problem in problems for _ in range(n)]
    right = [
        is_correct(completion(row, run.tokenizer), problem.answer)
        for row, problem in zip(rows, asked)
    ]
    return [sum(right[i : i + n]) for i in range(0, len(right), n)]
