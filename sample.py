"""Ask a trained model and watch it call its tools.

python sample.py What is 384 times 927
python sample.py                       a prompt loop
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from nanotir.checks import Amount, Count, Seed
from nanotir.commands import Parser, number, one_line
from nanotir.policy import load_run, use_device
from nanotir.problems.sources import is_generated
from nanotir.run_files import latest_run, read_best, read_evaluations, reading
from nanotir.sampler import Sampler, SamplerConfig
from nanotir.show import Stream, colours_wanted, paint, show
from nanotir.trust import doubt

# What a model can do that is trained on generated problems: ten of their families.
EXAMPLES = """\
  What is 384 * 927?
  (12 + 30) * 7
  How much is 15% of 80?
  12.5 + 3.75
  Find the gcd of 462 and 1071.
  If 7x + 12 = 61, what is x?
  Differentiate 4x^3 + 5x.
  A film lasts 135 minutes. How long is that in hours and minutes?
  Tell me the population of Old Mill.
  In line stand Ada Ben Cleo Dan. Who is first?"""
LEAVE = "exit or quit to leave, help to see this again"
MODES = {"tools": "with tools", "text": "without tools"}  # of an evaluation


def main(arguments=None):
    with one_line("sample.py"):
        options = make_parser().parse_args(arguments)
        question = " ".join(options.question).strip()
        if options.question and not question:
            raise ValueError("the question is empty")
        if is_expanded(options.question):
            raise ValueError("the shell has replaced a * by file names: put the question in quotes")
        folder = options.run or latest_run()
        config, sampler = make_sampler(folder, options)
        mode = "text" if options.no_tools else "tools"
        score, lowest = read_score(folder, mode, sampler.config.temperature)
        if options.best:
            score, lowest = read_best_score(folder), None  # log-probs differ from the last weights'
        generated = is_generated(config["data"])
        if question:
            answer(sampler, question, options, lowest, generated)
            say(score)
        elif sys.stdin is None:
            raise ValueError("stdin is closed: write the question behind the command")
        else:
            say(score)
            loop(sampler, options, lowest, generated)


def make_parser() -> Parser:
    parser = Parser("sample.py", "Ask a trained model.")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"questions for a model that is trained on generated problems:\n{EXAMPLES}"
    parser.add_argument("question", nargs="*", help="without one: a prompt loop")
    parser.add_argument("--run", help="run folder (default: the latest in runs/)")
    parser.add_argument("--best", action="store_true", help="its best weights, with --eval.every")
    parser.add_argument("--n", type=number(Count), default=1, help="answers to each question")
    greedy = "0 is greedy (default: 0 for one answer, 1 for several)"
    parser.add_argument("--temperature", type=number(Amount), help=greedy)
    parser.add_argument("--seed", type=number(Seed), default=0)
    parser.add_argument("--no-tools", action="store_true", help="it must answer by itself")
    parser.add_argument("--json", action="store_true", help="one JSON line per answer")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps (default: cpu)")
    return parser


def is_expanded(words: list[str]) -> bool:
    """Whether all files of this folder are in the question, as where a shell has read its *."""
    files = {path.name for path in Path().iterdir() if not path.name.startswith(".")}
    return len(files) > 1 and files <= {*words}


def make_sampler(folder, options) -> tuple[dict, Sampler]:
    """The run's config, and a sampler of its model."""
    given = {"device": use_device(options.device), "best": options.best, "data": str}
    config, model, tokenizer, format, tools = load_run(folder, **given)
    temperature = options.temperature
    if temperature is None:
        temperature = float(options.n > 1)
    settings = replace(SamplerConfig(**config["sampler"]), temperature=temperature)
    tools = [] if options.no_tools else tools
    return config, Sampler(model, tokenizer, tools, format, settings)


def read_score(folder, mode: str, temperature: float) -> tuple[str, float | None]:
    """What the run scored, in one line, and the lowest log-prob of an answer that is trusted."""
    evaluations = read_evaluations(folder)
    if not evaluations:
        return f"{folder}: not evaluated yet", None
    name = "final" if "final" in evaluations else list(evaluations)[-1]
    last = evaluations[name]
    when = "" if name == "final" else f" ({name})"
    with reading(Path(folder) / "eval.json"):
        shares = [f"{last[m]['accuracy']:.1%} {how}" for m, how in MODES.items() if m in last]
        n = next(iter(last.values()))["n"]
        trust = last.get(mode, {}).get("trust") or {}
        # At other temperatures, log-probs are on another scale than the evaluation's.
        lowest = trust.get("lowest") if temperature in (0, 1) else None
    return f"{folder}{when}: {', '.join(shares)}, of {n} held-out questions", lowest


def read_best_score(folder) -> str:
    best = read_best(folder)
    when = f"at step {best['step']} of {best['phase']}"
    return (
        f"{folder}/best: {best['accuracy']:.1%} with tools {when}, of {best['problems']} questions"
    )


def say(text: str):
    """Tell the user, not the file or the program that reads the answers."""
    print(text, file=sys.stderr)


def loop(sampler: Sampler, options, lowest: float | None, generated: bool):
    """Answer the user's questions. One that is too long is an error of one line."""
    help = (f"{EXAMPLES}\n" if generated else "") + LEAVE
    prompt = ""
    if sys.stdin.isatty() and sys.stdout.isatty() and not options.json:
        prompt = "question> "
        say(help)
        with suppress(ImportError):  # it is not everywhere
            importlib.import_module("readline")  # input() then has arrows and a history
    for question in questions(prompt, help):
        if not prompt and not options.json:
            print(f"question> {question}")  # of a pipe, which shows nothing itself
        try:
            answer(sampler, question, options, lowest, generated)
        except ValueError as error:
            say(f"sample.py: {error}")
        except KeyboardInterrupt:
            if not prompt:
                raise
            print()  # Ctrl-C ends a long answer, not the loop


def questions(prompt: str, help: str) -> Iterator[str]:
    """What the user types, or the lines of a pipe."""
    while True:
        try:
            question = input(prompt).strip()
        except (EOFError, KeyboardInterrupt):
            if prompt:
                print()
            return
        if question.lower() in ("exit", "quit", "q", "exit()", "quit()"):
            return
        if question.lower() in ("help", "?"):
            say(help)
        elif question:
            yield question


def answer(sampler: Sampler, question: str, options, lowest: float | None, generated: bool):
    """Print the answers, a single one while it is written. Below each, why not to trust it.

    `generated` says whether the model has learned from generated problems.
    """
    tokenizer = sampler.tokenizer
    stream = options.n == 1 and not options.json
    watch = Stream(tokenizer) if stream else None
    answers = sampler.generate([question], options.n, options.seed, watch)
    for i, trajectory in enumerate(answers, 1):
        reason = doubt(trajectory, tokenizer, lowest, question if generated else None)
        if options.json:
            record = {"question": question, "doubt": reason, **trajectory.record(tokenizer)}
            print(json.dumps(record))
            continue
        print("" if stream else f"{i}. {show(trajectory, tokenizer)}")
        if reason:
            print(paint("hint", f"(check this answer: {reason})", colours_wanted()))


if __name__ == "__main__":
    main()
