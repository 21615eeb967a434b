"""From random weights to a model that reasons with tools.

python train.py                        three to eight minutes on two CPU cores
python train.py --preset probe         seconds: does everything, learns next to nothing
python train.py --resume runs/tapo-tiny-1
torchrun --nproc_per_node=4 train.py   several processes, each with its share of the work
python train.py --help                 every setting, its default and what it does
"""

from __future__ import annotations

import json
import shlex
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from nanotir import policy, sft, workers
from nanotir.commands import one_line
from nanotir.config import RECIPES, RunConfig, parse
from nanotir.evaluate import evaluate_run, suites_of
from nanotir.huggingface import is_pretrained
from nanotir.memory import check_memory
from nanotir.problems import load
from nanotir.processes import joined, once
from nanotir.room import demonstrations_with_room, problems_with_room
from nanotir.run import Run, script
from nanotir.run_files import check_free, read_config, read_evaluations, reading, saved_runs
from nanotir.scores import table
from nanotir.trajectory import Format, Trajectory

NOTHING = (
    "RL has learned nothing: in no step was an answer better than the others to its problem. "
    "Imitate longer (--sft.steps), sample more (--rl.group-size) or take easier problems (--data)"
)


def train(config: RunConfig):
    """The whole run. ValueError for what the user can mend, DeadTool if a tool only fails."""
    config = once(resolved, config)
    device = policy.use_device(config.device, config.threads)

    # Problems with known answers: some to train on, and others, held out, to evaluate on.
    problems = load(config.data, "train", config.problems, config.seed, config.level)
    suites = suites_of(config)

    with written_by_student(config.answers), ExitStack() as stack:
        # Tools that the model may call: Python in a sandbox, and search in documents.
        tools = [stack.enter_context(tool) for tool in policy.open_tools(asdict(config))]

        # A tokenizer that spells the problems well, and the policy: a transformer with random
        # weights. Or those of the run, or of the Hugging Face folder, that we start from.
        model, tokenizer = policy.make_policy(config, problems, tools)
        config.model = model.to(device).config

        # Problems must leave room for an answer: better to know it now than after hours.
        format = Format(config.format)
        room = (tokenizer, format, config.model.max_seq_len, config.too_long)
        problems = problems_with_room(problems, *room)
        suites = {spec: problems_with_room(rows, *room) for spec, rows in suites.items()}
        held_out, *_ = suites.values()
        warn_of_known(problems, suites)

        run = Run(config.out, config, model, tokenizer, format, tools, problems, held_out)
        stack.callback(run.close)
        memory = check_memory(run)  # known now, too, while no checkpoint takes its share
        if config.resume:
            run.resume()

        # On a CPU, processes that sample beside this one start meanwhile.
        given = (model, tokenizer, tools, format, asdict(config))
        stack.enter_context(workers.beside(*given))

        # What to imitate: a scripted teacher calls the real tools.
        run.demonstrations = taught(run)

        # The run folder. From here on Ctrl-C saves, and --resume goes on.
        stack.enter_context(run if config.resume else run.create())
        print(f"{run}\n{memory}")
        evaluate_run(run, "before")

        # Cold start, then reinforcement learning, or what the recipe does instead.
        if run.demonstrations:
            sft.train(run, run.demonstrations)
        if config.sft.steps:
            evaluate_run(run, "after_sft")
        RECIPES[config.recipe].improve(run)
        for spec in list(suites)[1:]:
            evaluate_run(run, spec, suites[spec])
        evaluate_run(run, "final")
    report(run)


def warn_of_known(problems: list, suites: dict[str, list]):
    """Say which held-out problems are asked in training as well."""
    known = {problem.question for problem in problems}
    for spec, rows in suites.items():
        if shared := sum(problem.question in known for problem in rows):
            print(f"of {len(rows)} held-out problems of {spec}, {shared} are trained on as well")


def written_by_student(answers: str):
    """The functions in a folder of answers to the exercises, in the place of the package's."""
    if not answers:
        return nullcontext()
    return import_module("nanotir.exercises.answers").answered(answers)


def taught(run: Run) -> list[Trajectory]:
    """The demonstrations of a recipe, unless imitation is over, or not wanted."""
    if not run.config.sft.steps or run.is_done("sft"):
        return []
    return demonstrations_with_room(run, RECIPES[run.config.recipe].demonstrations(run))


def report(run: Run):
    """What to print at the end: the evaluations, and where to look."""
    with reading(run.out / "eval.json"):
        print(table(read_evaluations(run.out)))
    if run.config.rl.steps and nothing_learned(run.out / "metrics.jsonl"):
        print(NOTHING)
    print(where_to_look(run.out))


def resolved(config: RunConfig) -> RunConfig:
    """The config with absolute paths. ValueError if a new run cannot begin by it."""
    if config.resume:
        return config
    if config.lora:  # these are needed again when the run is resumed, or used
        config.init = str(Path(config.init).resolve())
    if config.search.path:
        config.search.path = str(Path(config.search.path).resolve())
    if config.out:
        check_free(config.out)
    check_init(config)
    return config


def check_init(config: RunConfig):
    """A run can only start from one that writes its calls in the same way."""
    if is_pretrained(config.init):
        if config.lora and config.format != "text":
            why = "--lora leaves embeddings as they are, so new tags would never be learned"
            raise ValueError(f"{why}: add --format text")
    elif config.init and not (Path(config.init) / "config.json").exists():
        why = f"'{config.init}' is not a run folder, nor one of Hugging Face's"
        raise ValueError(f"{why}: it has no config.json")
    elif config.init:
        style = read_config(config.init).get("format")
        if style != config.format:
            differs = f"'{config.init}' writes its calls as {style}, not as {config.format}"
            raise ValueError(f"{differs}: add --format {style}")


def nothing_learned(metrics: Path) -> bool:
    """Whether RL never found an answer that was better than the others of its group."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    shares = [row.get("zero_advantage", 1) for row in rows if row["phase"] == "rl"]
    return bool(shares) and min(shares) == 1


def where_to_look(out: Path) -> str:
    """What to do with a run that is over. sample.py takes the latest run in runs/ by itself."""
    if script() != "train.py":  # sample.py does not know a tool of the user's own
        return f"look at {out / 'traces.jsonl'}"
    latest = out.resolve() in [path.resolve() for path in saved_runs()[-1:]]
    named = "" if latest else f"--run {shlex.quote(str(out))} "
    ask = f"python sample.py {named}'What is 384 * 927?'"
    traces = out / "traces.jsonl"
    return f"look at {traces}, or ask it something: {ask}" if traces.exists() else f"ask it: {ask}"


def main(arguments=None):
    with one_line("train.py"), joined():
        train(parse(arguments))


if __name__ == "__main__":
    main()
