"""The toy that all experiments share: arms of about a minute, hard enough for arms to differ.

An arm is an ordinary run, a RunConfig and a recipe, that is measured afterwards. Arms of one seed
start from the same weights if they share a cold start. The first arm that needs it trains it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from nanotir import policy, run, sft
from nanotir.config import RECIPES, RunConfig, build
from nanotir.evaluate import evaluate, suites_of
from nanotir.problems import load
from nanotir.rewards import is_correct
from nanotir.sampler import Sampler
from nanotir.trajectory import Format

# The settings of every arm of every experiment.
TOY = {
    "model.n_layers": 4,
    "model.d_model": 96,
    "model.n_heads": 3,
    "model.n_kv_heads": 1,
    "model.d_ff": 256,
    "model.vocab_size": 512,
    "model.rope_theta": 10000.0,
    "model.token_shifts": 0,
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

FIRST_WITHIN = 21  # seeds of experiments that were changed, as an arm was below 10% or above 95%

# With --quick these settings are at most as large as this.
QUICK = {"problems": 1000, "sft.steps": 150, "rl.steps": 3, "eval.problems": 40, "tora.samples": 2}


@contextmanager
def make_run(config: RunConfig) -> Iterator[run.Run]:
    """An open Run in a new folder, set up as train.py does it."""
    device = policy.use_device(config.device)
    problems = load(config.data, "train", config.problems, config.seed, config.level)
    held_out, *_ = suites_of(config).values()
    with ExitStack() as stack:
        tools = [stack.enter_context(tool) for tool in policy.open_tools(asdict(config))]
        model, tokenizer = policy.make_policy(config, problems, tools)
        config.model = model.to(device).config
        given = (config, model, tokenizer, Format(config.format), tools, problems, held_out)
        yield stack.enter_context(run.Run(config.out, *given).create())


def train(run, teach: Callable | None = None):
    """Train a run by its recipe, without evaluations: arms are measured in their own ways.

    What it imitates is teach(run), by default the recipe's demonstrations.
    """
    recipe = RECIPES[run.config.recipe]
    if run.config.sft.steps:
        sft.train(run, (teach or recipe.demonstrations)(run))
    recipe.improve(run)


@contextmanager
def untrained(
    folder, recipe: str, settings: dict, seed: int, quick: bool, wrap: Callable | None = None
):
    """The Run of a recipe, in folder/run, with these settings on top of the toy's.

    `wrap` replaces each of its tools by another, such as a slower one.
    """
    out = Path(folder) / "run"
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    values = {**TOY, **settings}
    if quick:
        values |= {name: min(values.get(name, most), most) for name, most in QUICK.items()}
    own = {"recipe": recipe, "seed": seed, "out": str(out)}
    with make_run(build({**RECIPES[recipe].SETTINGS, **values, **own})) as run:
        if wrap:
            run.tools = [wrap(tool) for tool in run.tools]
        yield run


@contextmanager
def trained(
    folder,
    recipe: str,
    settings: dict,
    seed: int,
    quick: bool,
    wrap: Callable | None = None,
    teach: Callable | None = None,
):
    """The same, trained."""
    with untrained(folder, recipe, settings, seed, quick, wrap) as run:
        train(run, teach)
        yield run


def cold_start(
    name: str, settings: dict, seed: int, quick: bool, recipe: str = "tapo", **given
) -> str:
    """The folder of a run that several arms start from. It is trained now if it is missing.

    The folder's name depends on the settings, so different settings never share a cold start. What
    else is `given` to `trained` must be the same for all of one name.
    """
    described = json.dumps([recipe, TOY, settings, quick and QUICK], sort_keys=True)
    settings_key = hashlib.sha256(described.encode()).hexdigest()[:8]
    folder = Path("runs/lab/cold") / f"{name}-{seed}-{settings_key}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other workers wait until it is trained
        if not (folder / "done").exists():
            with trained(folder, recipe, settings, seed, quick, **given):
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
    wrap: Callable | None = None,
):
    """RL by a recipe, from the cold start `name` that the settings `start` describe."""
    init = {"init": cold_start(name, start, seed, quick), "sft.steps": 0}
    return trained(folder, recipe, start | settings | init, seed, quick, wrap)


def measure(run, **settings) -> dict:
    """Statistics of the trained policy on held-out problems: by default greedy, with its tools."""
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


def curve(run, metric: str, phase: str = "rl") -> list[list]:
    """[[step, value], ...] of a metric over a phase of the run."""
    path = run.out / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [[row["step"], row[metric]] for row in rows if row["phase"] == phase and metric in row]


def mean_of(points: list, last: float = 1.0) -> float | None:
    """The mean of a curve's values over this last share of its points."""
    values = [y for _, y in points][-max(1, round(last * len(points))) :]
    return sum(values) / len(values) if values else None


def total(points: list) -> float:
    """The sum of a curve's values."""
    return sum(y for _, y in points)


def largest(points: list) -> float | None:
    """The largest of a curve's values."""
    return max((y for _, y in points), default=None)


def right_counts(run, problems: list, n: int, tools: bool = True, seed: int = 0) -> list[int]:
    """How many of n sampled answers to each problem are right."""
    usable = run.tools if tools else []
    sampler = Sampler(run.model, run.tokenizer, usable, run.format, run.config.sampler)
    rows = sampler.generate([problem.question for problem in problems], n, seed)

    counts = []
    for i, problem in enumerate(problems):
        answers = rows[i * n : (i + 1) * n]
        right = [is_correct(row.completion(run.tokenizer), problem.answer) for row in answers]
        counts.append(sum(right))
    return counts
