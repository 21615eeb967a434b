"""Measure a policy: accuracy with its tools and without, pass@k, maj@k, and the use of its tools.

python -m nanotir.evaluate --run runs/tapo-tiny-1 --n 16 --k 1,4,16
python -m nanotir.evaluate --run runs/tapo-tiny-1 --data generated@2 reworded svamp:SVAMP.json
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice

from nanotir import workers
from nanotir.checks import Count, Seed, Whole, check_settings, one_of
from nanotir.commands import Parser, number, one_line
from nanotir.held_out import PROBLEMS, at_the_end, generate_with_bar
from nanotir.policy import load_run, use_device
from nanotir.problems import Problem, load
from nanotir.problems.sources import specs_of
from nanotir.processes import joined, once
from nanotir.rewards import is_correct
from nanotir.room import has_room, problems_with_room
from nanotir.run import Run
from nanotir.run_files import read_evaluations
from nanotir.sampler import Sampler, SamplerConfig
from nanotir.scores import maj_at_k as maj_at_k
from nanotir.scores import pass_at_k as pass_at_k
from nanotir.scores import statistics, table
from nanotir.scores import wilson_interval as wilson_interval
from nanotir.trajectory import Trajectory

MODES = ("tools", "text")
EXAMPLES = 4  # held-out problems whose answers are written to traces.jsonl at every evaluation


@dataclass
class EvalConfig:
    problems: Count = 500  # held-out problems
    samples: Count = 1  # answers to each; one is greedy, several are drawn
    k: str = "1"  # pass@k and maj@k for these k, as 1,4,16
    modes: str = "tools,text"  # tools: as trained; text: without tools, so by itself
    every: Whole = 0  # steps of training between two measurements on 64 held-out problems, by
    # which the best weights are kept as well; 0: none

    def __post_init__(self):
        check_settings(self, "eval")
        self.modes = self.modes.replace(" ", "")
        for mode in self.modes.split(","):
            one_of("evaluation mode", mode, MODES)
        for k in self.k.split(","):
            if not k.strip().isdecimal() or not 0 < int(k) <= self.samples:
                allowed = f"whole numbers from 1 to the number of samples ({self.samples})"
                raise ValueError(f"k ({self.k}) must be {allowed}")


def evaluate(
    model, tokenizer, tools, format, problems, config: EvalConfig, sampling: SamplerConfig, seed=0
) -> dict:
    """{mode: statistics} of the model's answers to the problems."""
    given = (model, tokenizer, tools, format, problems, config, sampling, seed)
    return {mode: found for mode, found, _ in evaluations(*given)}


def evaluations(
    model, tokenizer, tools, format, problems, config: EvalConfig, sampling, seed
) -> Iterator[tuple[str, dict, list[list[Trajectory]]]]:
    """(mode, statistics, the answers as one group a problem) for every mode."""
    for mode in config.modes.split(","):
        given = tools if mode == "tools" else []
        desc = f"evaluate {mode}"
        groups = answers(model, tokenizer, given, format, problems, config, sampling, seed, desc)
        yield mode, judged(problems, groups, tokenizer, config), groups


def answers(
    model, tokenizer, tools, format, problems, config, sampling, seed, desc
) -> list[list[Trajectory]]:
    """The model's answers to the problems, one group a problem."""
    was_training = model.training
    model.eval()
    n = config.samples
    if n == 1:
        sampling = replace(sampling, temperature=0.0)
    sampler = Sampler(model, tokenizer, tools, format, sampling)
    rows = generate_with_bar(sampler, problems, n, seed, desc)
    model.train(was_training)
    return [rows[i : i + n] for i in range(0, len(rows), n)]


def judged(problems, groups, tokenizer, config: EvalConfig) -> dict:
    """The statistics of a group of answers to each problem. Of several processes, one grades."""
    ks = [int(k) for k in config.k.split(",")]
    return once(statistics, problems, groups, tokenizer, ks)


def check_samples(config: EvalConfig, sampling: SamplerConfig):
    """ValueError for several answers to a problem that would all be the same."""
    if config.samples > 1 and not sampling.temperature:
        equal = f"{config.samples} answers to a problem are all the same at temperature 0"
        raise ValueError(f"{equal}: the run needs sampler.temperature > 0, or one answer")


def suites_of(config) -> dict[str, list[Problem]]:
    """{spec: problems} of a RunConfig's eval_data. The first are the run's held-out problems."""
    n, seed = config.eval.problems, config.seed + 1
    return {spec: load(spec, "test", n, seed, config.level) for spec in specs_of(config.eval_data)}


def evaluate_run(run: Run, name: str, further: list[Problem] | None = None) -> dict:
    """Evaluate the run's model and record it as `name`, once.

    On its held-out problems, of which some answers are written down, or on `further` ones. Random
    weights answer nothing right, so before training only the first 64 problems are asked.
    """
    recorded = once(read_evaluations, run.out)
    if name in recorded:  # by the run that is resumed
        return recorded[name]
    config = run.config
    sampling = at_the_end(config.sampler, config.rl.budgets, config.rl.steps)
    policy = (run.model, run.tokenizer, run.tools, run.format)
    is_random = name == "before" and not config.init
    held_out = run.held_out[:PROBLEMS] if is_random else run.held_out
    problems = held_out if further is None else further
    result = {}
    for mode, found, groups in evaluations(*policy, problems, config.eval, sampling, config.seed):
        result[mode] = found
        for problem, group in zip([] if further else problems[:EXAMPLES], groups):
            trace(run, name, mode, problem, group[0])
    if name == "final":
        result |= evaluate_variants(run, sampling)
    run.record(name, result)
    return result


def evaluate_variants(run: Run, sampling: SamplerConfig) -> dict:
    """{variant: statistics} with tools. Sampled together, they wait for slow calls only once."""
    suites, config = dict(variants(run)), run.config
    if not suites:
        return {}
    problems = [*chain(*suites.values())]
    asked = (problems, config.eval, sampling, config.seed, "evaluate variants")
    groups = iter(answers(run.model, run.tokenizer, run.tools, run.format, *asked))
    of_each = {name: [*islice(groups, len(suite))] for name, suite in suites.items()}
    return {
        name: judged(suites[name], found, run.tokenizer, config.eval)
        for name, found in of_each.items()
    }


def variants(run: Run) -> Iterator[tuple[str, list[Problem]]]:
    """The held-out problems in words never trained on, and with longer numbers than were seen.

    They exist for generated problems. Families without numbers have none that are longer.
    """
    config = run.config
    first, *_ = specs_of(config.eval_data)
    if first.partition(":")[0].partition("@")[0] != "generated":
        return
    n, seed = config.eval.problems, config.seed + 1
    plain = load(first, "test", n, seed, config.level)
    for name in ("reworded", "longer", "longest"):  # see problems/sources.py
        spec = first.replace("generated", name, 1)
        problems = load(spec, "test", n, seed, config.level)
        if problems == plain:  # a family of the user's own, which has one phrasing
            continue
        if problems := [problem for problem in problems if has_room(problem, run)]:
            yield name, problems


def trace(run: Run, name: str, mode: str, problem: Problem, trajectory: Trajectory):
    """Write down an answer. The same problems are asked every time, so answers can be compared."""
    row = {"phase": "eval", "step": 0, "name": name, "mode": mode, **problem.summary()}
    row["correct"] = is_correct(trajectory.completion(run.tokenizer), problem.answer)
    run.log(row | trajectory.record(run.tokenizer), "traces.jsonl")


USED = {"eval": dict, "eval_data": str, "level": int, "rl": dict}  # of a run's config


def make_parser() -> Parser:
    parser = Parser("python -m nanotir.evaluate", "Evaluate a trained run on held-out problems.")
    parser.add_argument("--run", required=True, help="run folder")
    best = "its best weights, with --eval.every: chosen by the first 64 of its problems"
    parser.add_argument("--best", action="store_true", help=best)
    several = "problems, as train.py's --eval-data (default: the run's); each is reported apart"
    parser.add_argument("--data", nargs="+", metavar="SPEC", help=several)
    count, seed = number(Count), number(Seed)
    parser.add_argument("--problems", type=count, help="how many (default: the run's own number)")
    parser.add_argument("--n", type=count, default=1, help="samples of each problem; 1 is greedy")
    parser.add_argument("--k", default="1", help="pass@k and maj@k for these k, as 1,4,16")
    parser.add_argument("--modes", default="tools,text")
    own = "of problems and samples (default: the run's own, so the problems of its eval.json)"
    parser.add_argument("--seed", type=seed, help=own)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps (default: cpu)")
    parser.add_argument("--json", action="store_true", help="print all statistics as JSON")
    return parser


def main(arguments=None):
    with one_line("evaluate"), joined():
        options = make_parser().parse_args(arguments)
        device = use_device(options.device)
        given = {"device": device, "best": options.best, **USED}
        config, model, tokenizer, format, tools = load_run(options.run, **given)
        use_device(options.device, config["threads"])
        n = options.problems or config["eval"].get("problems", EvalConfig.problems)
        settings = EvalConfig(n, options.n, options.k, options.modes)
        seed = config["seed"] if options.seed is None else options.seed
        budgets = config["rl"].get("budgets", ""), config["rl"]["steps"]
        sampling = at_the_end(SamplerConfig(**config["sampler"]), *budgets)
        check_samples(settings, sampling)
        policy = (model, tokenizer, tools, format)
        too_long = config.get("too_long", "error")  # older runs have none
        with workers.beside(*policy, config):
            suites = {}
            for spec in specs_of(",".join(options.data or [config["eval_data"]])):
                problems = load(spec, "test", n, seed=seed + 1, level=config["level"])
                room = (tokenizer, format, model.config.max_seq_len, too_long)
                suites[spec] = problems_with_room(problems, *room)
            asked = (settings, sampling, seed)
            results = {spec: evaluate(*policy, suites[spec], *asked) for spec in suites}
        if len(results) == 1:
            results = {"": results.popitem()[1]}
        print(json.dumps(results.get("", results), indent=1) if options.json else table(results))


if __name__ == "__main__":
    main()
