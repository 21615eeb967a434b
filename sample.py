"""Ask a trained model and watch it call its tools.

python sample.py "What is 384 * 927?"
python sample.py                       a prompt loop
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import torch

from nanotir.checks import Count, Seed
from nanotir.commands import Parser, number, one_line
from nanotir.run import load_run
from nanotir.run_files import latest_run
from nanotir.sampler import Sampler, SamplerConfig
from nanotir.show import Stream, show


def main(arguments=None):
    with one_line("sample.py"):
        options = make_parser().parse_args(arguments)
        folder = options.run or latest_run()
        sampler = make_sampler(folder, options)
        if options.question:
            answer(sampler, " ".join(options.question).strip(), options)
            say(f"(answered by {folder})")
        else:
            loop(sampler, folder, options)


def loop(sampler: Sampler, folder, options):
    if sys.stdin is None:
        raise ValueError("stdin is closed: write the question behind the command")
    say(f"(asking {folder})")
    for question in questions(options.json):
        try:
            answer(sampler, question, options)
        except ValueError as error:  # a question that is too long: the next one may be shorter
            say(f"sample.py: {error}")


def make_parser() -> Parser:
    parser = Parser("sample.py", "Ask a trained model.")
    parser.add_argument("question", nargs="*", help="without one: a prompt loop")
    parser.add_argument("--run", help="run folder (default: the latest in runs/)")
    parser.add_argument("--n", type=number(Count), default=1, help="answers to each question")
    greedy = "0 is greedy (default: 0 for one answer, 1 for several)"
    parser.add_argument("--temperature", type=float, help=greedy)
    parser.add_argument("--seed", type=number(Seed), default=0)
    parser.add_argument("--no-tools", action="store_true", help="it must answer by itself")
    parser.add_argument("--json", action="store_true", help="one JSON line per answer")
    return parser


def make_sampler(folder, options) -> Sampler:
    config, model, tokenizer, format, tools = load_run(folder)
    torch.set_num_threads(config["threads"])
    temperature = options.temperature
    if temperature is None:
        temperature = float(options.n > 1)
    settings = replace(SamplerConfig(**config["sampler"]), temperature=temperature)
    return Sampler(model, tokenizer, [] if options.no_tools else tools, format, settings)


def say(text: str):
    """Tell the user, not the file or the program that reads the answers."""
    print(text, file=sys.stderr)


def questions(for_a_program: bool) -> Iterator[str]:
    """What the user types, or the lines of a pipe."""
    prompt = ""
    if sys.stdin.isatty() and sys.stdout.isatty() and not for_a_program:
        prompt = "question> "
        with suppress(ImportError):  # it is not everywhere
            importlib.import_module("readline")  # input() then has arrows and a history
    while True:
        try:
            question = input(prompt).strip()
        except (EOFError, KeyboardInterrupt):
            if prompt:
                print()
            return
        if question:
            yield question


def answer(sampler: Sampler, question: str, options):
    stream = options.n == 1 and not options.json
    watch = Stream(sampler.tokenizer) if stream else None
    answers = sampler.generate([question], options.n, options.seed, watch)
    for i, trajectory in enumerate(answers, 1):
        if options.json:
            print(json.dumps({"question": question, **trajectory.record(sampler.tokenizer)}))
        elif not stream:
            print(f"{i}. {show(trajectory, sampler.tokenizer)}")
    if stream:
        print()


if __name__ == "__main__":
    main()
