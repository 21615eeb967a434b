"""Held-out accuracy while training: the best weights so far are kept, and a collapse is reported.

The problems are the first 64 held-out ones. The best weights are chosen by them, so they do a
little better there than on others: compare final figures on other problems (evaluate's --seed).
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial

from tqdm import tqdm

from nanotir.lora import weights_of
from nanotir.problems import Problem
from nanotir.processes import is_main, share
from nanotir.rewards import is_correct
from nanotir.run_files import check_finite, save_state, write_atomically, write_json
from nanotir.sampler import Sampler, SamplerConfig
from nanotir.scores import share_right
from nanotir.trajectory import Trajectory

PROBLEMS = 64


def watch(run, step: int, last: bool) -> dict[str, float]:
    """The held-out accuracy, every eval.every steps and after the last one of a phase.

    {"held_out/accuracy": .., "held_out/low": .., "held_out/high": ..} for the step's row, or {}.
    Nothing random is drawn: the run goes on as without it. run.state["best"] says when the accuracy
    was best, and "peak" when it was best since the weights were last reset (ToRA).
    """
    every = run.config.eval.every
    if not every or not (last or step % every == 0):
        return {}
    check_finite(run.model, run.spoiled)
    found = share_right(graded(run, run.held_out[:PROBLEMS]))
    n = min(PROBLEMS, len(run.held_out))
    now = {"phase": run.state["phase"], "step": step, "problems": n, **found}
    if is_better(now, run.state.get("best")):
        run.state["best"] = now
        keep_best(run)
    if is_better(now, run.state.get("peak")):
        run.state["peak"] = now
    elif has_collapsed(now, run.state["peak"]) and not run.state.get("warned"):
        run.state["warned"] = True
        tqdm.write(warning(now, run.state["peak"], run.out))
    return {f"held_out/{name}": value for name, value in found.items()}


def graded(run, problems: list[Problem]) -> list[bool]:
    """Whether the model's greedy answer to each problem, with tools, is right."""
    was_training = run.model.training
    run.model.eval()
    last = at_the_end(run.config.sampler, run.config.rl.budgets, run.config.rl.steps)
    sampling = replace(last, temperature=0.0)
    sampler = Sampler(run.model, run.tokenizer, run.tools, run.format, sampling)
    rows = generate_with_bar(sampler, problems, 1, run.config.seed, "held-out problems")
    run.model.train(was_training)
    texts = [trajectory.completion(run.tokenizer) for trajectory in rows]
    return [is_correct(text, problem.answer) for text, problem in zip(texts, problems)]


def at_the_end(sampling: SamplerConfig, budgets: str, steps: int) -> SamplerConfig:
    """A run's settings of sampling when it ends: with the budget of its last step of RL."""
    return replace(sampling, max_calls=budget(budgets, steps - 1, steps, sampling.max_calls))


def budget(budgets: str, step: int, steps: int, otherwise: int) -> int:
    """sampler.max_calls of a step of RL: rl.budgets share the steps in equal parts."""
    if not budgets:
        return otherwise
    parts = [int(calls) for calls in budgets.split(",")]
    return parts[step * len(parts) // steps] if steps else parts[-1]


def generate_with_bar(sampler, problems, n: int, seed: int, desc: str) -> list[Trajectory]:
    total, silent = len(share(problems)) * n, not is_main()
    bar = tqdm(total=total, desc=desc, leave=False, dynamic_ncols=True, disable=silent)

    def watch(row, kind, ids):
        if kind == "finish":
            bar.update()

    with bar:
        return sampler.generate([problem.question for problem in problems], n, seed, watch)


def is_better(now: dict, before: dict | None) -> bool:
    return before is None or now["accuracy"] > before["accuracy"]


def has_collapsed(now: dict, peak: dict) -> bool:
    """Whether the accuracy is at most half of the peak, which lies above its 95% interval."""
    return now["accuracy"] <= peak["accuracy"] / 2 and now["high"] < peak["accuracy"]


def warning(now: dict, peak: dict, out) -> str:
    fell, was = (f"{s['accuracy']:.1%} at step {s['step']} of {s['phase']}" for s in (now, peak))
    return f"held-out accuracy has fallen to {fell}, from {was}; '{out}/best' has the best weights"


def keep_best(run):
    """Write run.state["best"] and the weights to RUN/best. A kill leaves whole files there."""
    if not is_main():
        return
    folder = run.out / "best"
    folder.mkdir(exist_ok=True)
    for file in (run.out / "checkpoint").glob("*.json"):  # the tokenizer's
        write_atomically(folder / file.name, partial(shutil.copyfile, file))
    state = {"model": weights_of(run.model), "frozen": getattr(run.model, "frozen", 0)}
    write_atomically(folder / "state.pt", lambda path: save_state(state, path))
    write_json(folder / "best.json", run.state["best"])
