"""Ask a trained model and watch it call its tools.

python sample.py "What is 384 * 927?"
python sample.py                       a prompt loop
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace

import torch

from nanotir.run import latest_run, load_run
from nanotir.sampler import Sampler, SamplerConfig
from nanotir.show import Stream, show


def main(arguments=None):
    options = make_parser().parse_args(arguments)
    try:
        if options.n < 1:
            raise ValueError(f"--n is the number of answers, at least 1, not {options.n}")
        sampler = make_sampler(options)
        for question in ask() if options.question is None else [options.question]:
            answer(sampler, question, options)
    except ValueError as error:
        print(f"sample.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print()


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Ask a trained model.")
    parser.add_argument("question", nargs="?", help="without one: a prompt loop")
    parser.add_argument("--run", help="run folder (default: the latest in runs/)")
    parser.add_argument("--n", type=int, default=1, help="answers to each question")
    greedy = "0 is greedy (default: 0 for one answer, 1 for several)"
    parser.add_argument("--temperature", type=float, help=greedy)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-tools", action="store_true", help="it must answer by itself")
    parser.add_argument("--json", action="store_true", help="one JSON line per answer")
    return parser


def make_sampler(options) -> Sampler:
    config, model, tokenizer, format, tools = load_run(options.run or latest_run())
    torch.set_num_threads(config["threads"])
    temperature = options.temperature
    if temperature is None:
        temperature = float(options.n > 1)
    settings = replace(SamplerConfig(**config["sampler"]), temperature=temperature)
    return Sampler(model, tokenizer, [] if options.no_tools else tools, format, settings)


def ask() -> Iterator[str]:
    while True:
        try:
            question = input("question> ")
        except EOFError:
            return
        if question.strip():
            yield question


def answer(sampler: Sampler, question: str, options):
    stream = options.n == 1 and not options.json
    watch = Stream(sampler.tokenizer) if stream else None
    for trajectory in sampler.generate([question], options.n, options.seed, watch):
        if options.json:
            print(json.dumps({"question": question, **trajectory.record(sampler.tokenizer)}))
        elif not stream:
            print(show(trajectory, sampler.tokenizer))
    if stream:
        print()


if __name__ == "__main__":
    main()
