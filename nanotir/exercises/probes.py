"""A ladder of six tiny worlds, each learned from random weights in seconds on one core.

The package's own sampler, advantages, loss and optimiser learn them, as in rl.train. Each world
needs something that those before it do not, so the first that is not learned says where to look.

    python -m nanotir.exercises probe [--seeds N] [--answers DIR]

There are three digits, and a tool that is called by <ask></ask>, whatever stands between. The
answer is the last digit after the last result. A row that does not end itself earns nothing.
"""

from __future__ import annotations

import json
import random
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

import torch

from nanotir import optim, rl
from nanotir.batches import drawing_of
from nanotir.checks import Count
from nanotir.commands import Parser, number
from nanotir.exercises.answers import answered
from nanotir.model import ModelConfig, Transformer
from nanotir.rollout import Sample, hash_of
from nanotir.sampler import Sampler, SamplerConfig
from nanotir.tokenizer import ASSISTANT, END, USER
from nanotir.tools.tool import Tool, ToolResult, last_line
from nanotir.trajectory import Trajectory

DIGITS = "012"
PROMPTS = DIGITS * 3  # one digit each
SOLVED = 0.95  # mean reward of a rollout; the highest is 1
GAP = 1e-3  # of the sampler's and the trainer's log-prob of an id; float noise is below 1e-5

SHAPE = {"n_layers": 1, "d_model": 48, "n_heads": 4, "n_kv_heads": 2, "d_ff": 96, "max_seq_len": 64}
# Tied to the large embeddings, random weights would nearly always repeat the last id.
SHAPE |= {"tie_embeddings": False, "qk_norm": False}
# The temperature is not 1, so that it matters where one is forgotten.
SAMPLER = SamplerConfig(
    temperature=0.8, max_new_tokens=16, max_calls=2, sessions=True, max_rows=144
)
RL = rl.RLConfig(steps=100, problems=len(PROMPTS), group_size=16, lr=6e-3, decay=0.0)


class Characters:
    """A tokenizer of ten ids: what a Sampler needs of one."""

    def __init__(self):
        turns, blocks = (USER, ASSISTANT, END), ("<ask>", "</ask>", "<output>", "</output>")
        tags = (*turns, *blocks)
        self.tags = {tag: id for id, tag in enumerate(tags)}
        self.words = {digit: id for id, digit in enumerate(DIGITS, len(tags))}
        self.texts = [*self.tags, *self.words]
        self.ids = set(range(len(self.texts)))
        self.user, self.assistant = [self.tags[USER]], [self.tags[ASSISTANT]]
        self.end_id = self.pad_id = self.tags[END]
        self.end_ids, self.longest = {self.end_id}, 1

    def encode_untrusted(self, text: str) -> list[int]:
        return [self.words[character] for character in text if character in self.words]

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.texts[id] for id in ids)


class Deed(NamedTuple):
    """What a row that ended itself has done."""

    answer: str  # "" for none
    digit: str  # in the prompt
    told: str | None  # the last result
    calls: int


@dataclass(frozen=True)
class World:
    name: str
    reward: Callable[[Deed], float]
    tells: Callable[[int, str, random.Random], str]  # (which call, digit in the prompt, draws)
    steps: int  # after which it counts as not learned: half as many again as the slowest seed's
    look: str  # where, if this is the first world that is not learned


def constant(deed: Deed) -> float:
    return float(deed.answer == "1")


def copy(deed: Deed) -> float:
    return float(deed.answer == deed.digit)


def call(deed: Deed) -> float:
    return float(deed.calls > 0)


def use(deed: Deed) -> float:
    return float(deed.answer != "" and deed.answer == deed.told)


def spare(deed: Deed) -> float:
    """A call costs, and the prompt says all that it can tell."""
    return copy(deed) - 0.3 * deed.calls


def secret(which: int, digit: str, rng: random.Random) -> str:
    return rng.choice(DIGITS)


def secret_at_second(which: int, digit: str, rng: random.Random) -> str:
    return secret(which, digit, rng) if which > 1 else ""


def same(which: int, digit: str, rng: random.Random) -> str:
    return digit


WORLDS = [
    World("constant", constant, secret, 12, "the loss's sign, and which ids are learned"),
    World("copy", copy, secret, 20, "each row's advantage: its own, and its own prompt's?"),
    World(
        "call", call, secret, 12, "how a block opens and closes, and whether its ids are learned"
    ),
    World("use the result", use, secret, 32, "how a result gets into the cache, and the mask"),
    World("two calls", use, secret_at_second, 48, "a row's second call, and credit for its first"),
    World("don't call", spare, same, 20, "the baseline: a row without a call must be worth more"),
]


class Oracle(Tool):
    """The tool of a world. It answers at once, so results do not depend on time."""

    name = "ask"

    def __init__(self, world: World, tokenizer: Characters, seed: int):
        self.world, self.tokenizer = world, tokenizer
        self.rng = random.Random(seed)
        self.asked: dict[object, int] = {}  # calls by row

    def submit(self, text: str, session=None) -> Future:
        self.asked[session] = self.asked.get(session, 0) + 1
        digit = self.tokenizer.decode(session.prompt[1:2])
        future = Future()
        future.set_result(ToolResult(self.world.tells(self.asked[session], digit, self.rng)))
        return future

    def end_session(self, session):
        self.asked.pop(session, None)


class Climb(NamedTuple):
    """How one world was learned from one seed."""

    world: str
    seed: int
    solved: int | None  # rollouts before the one that earned SOLVED
    best: float  # the highest mean reward of a rollout
    last: float  # of the last
    gap: float  # the largest of sampler's and trainer's log-prob of an id
    seconds: float  # of processor time
    error: str = ""  # what ended it


def climb(world: World, seed: int = 0) -> Climb:
    """Learn a world until it is solved, or its steps are over."""
    started = time.process_time()
    history, error = [(0.0, 0.0)], ""
    try:
        for reward, gap in learn(world, seed):
            history.append((reward, gap))
            if reward >= SOLVED or len(history) > world.steps:
                break
    except Exception as raised:  # by a function of the student's, or of a damaged package
        place = traceback.extract_tb(raised.__traceback__)[-1]
        error = f"{last_line(raised)} ({Path(place.filename).name}:{place.lineno})"
    last, gap = history[-1]
    solved = len(history) - 2 if last >= SOLVED else None
    seconds = time.process_time() - started
    return Climb(world.name, seed, solved, max(history)[0], last, gap, seconds, error)


def learn(world: World, seed: int) -> Iterator[tuple[float, float]]:
    """The loop of rl.train without a run: (the mean reward, the largest gap so far), an update."""
    tokenizer = Characters()
    model = Transformer(ModelConfig(vocab_size=len(tokenizer.ids), **SHAPE), seed)
    sampler = Sampler(model, tokenizer, [Oracle(world, tokenizer, seed)], config=SAMPLER)
    how = drawing_of(sampler)
    optimizer = optim.adamw(model.parameters(), RL.lr)
    gap = 0.0
    for step in range(RL.steps):
        optim.schedule([optimizer], step, RL)
        samples = roll_out(world, sampler, hash_of(seed, step))
        yield mean(sample.reward for sample in samples), gap

        rows = [sample.trajectory for sample in samples]
        shares = rl.split(list(range(len(rows))), RL.updates, seed, step)
        gap = max(gap, rl.rescore(model, [rows[i] for i in sum(shares[1:], [])], RL, how))
        advantages = rl.advantages_of(samples, rows, RL)
        for share in shares:
            given = ([rows[i] for i in share], advantages[share])
            rl.update(model, optimizer, *given, RL, how)


def roll_out(world: World, sampler: Sampler, seed: int) -> list[Sample]:
    """Groups of rows, each with what it earned."""
    rows = sampler.generate(PROMPTS, RL.group_size, seed)
    digits = [digit for digit in PROMPTS for _ in range(RL.group_size)]
    rewards = [earned(world, *pair, sampler.tokenizer) for pair in zip(rows, digits, strict=True)]
    return [Sample(None, row, reward, reward) for row, reward in zip(rows, rewards)]


def earned(world: World, row: Trajectory, digit: str, tokenizer: Characters) -> float:
    if row.finish_reason != "stop":
        return 0.0
    answer = row.completion(tokenizer).split("\n")[-1]  # the words of the last turn
    answer = "".join(c for c in answer if c in DIGITS)[-1:]
    told = row.calls[-1].result.output if row.calls else None
    return world.reward(Deed(answer, digit, told, len(row.calls)))


def main(arguments=None) -> int:
    parser = Parser("python -m nanotir.exercises probe", "Learn six tiny worlds, in seconds each.")
    add = parser.add_argument
    add("--seeds", type=number(Count), default=1, metavar="N", help="how often (default: 1)")
    about = "a folder with your functions (default: answers, if it is there)"
    add("--answers", metavar="DIR", help=about)
    add("--json", action="store_true", help="one line for each world and seed")
    options = parser.parse_args(arguments)
    folder = options.answers or ("answers" if Path("answers").is_dir() else None)
    torch.set_num_threads(1)
    with answered(folder) if folder else nullcontext():
        return report(options.seeds, options.json)


def report(seeds: int, as_json: bool = False) -> int:
    """Print how each world was learned. 1 if one was not, else 0."""
    failed, gap = [], 0.0
    if not as_json:
        print(f"{'probe':19}{'solved at step':17}{'seconds':20}{'last reward':14}logp gap")
    for place, world in enumerate(WORLDS, 1):
        climbs = [climb(world, seed) for seed in range(seeds)]
        gap = max([gap, *(row.gap for row in climbs)])
        if as_json:
            print("\n".join(json.dumps(row._asdict()) for row in climbs), flush=True)
        else:
            print(f"{place} {world.name:17}{line(climbs)}", flush=True)
        if any(row.solved is None for row in climbs):
            failed.append(world)
    if failed and not as_json:
        print(f"The first that fails is '{failed[0].name}'. Look at {failed[0].look}.")
    if gap > GAP and not as_json:
        print("Sampler and trainer disagree on the log-prob of an id: they do not read the same.")
    return int(bool(failed or gap > GAP))


def line(climbs: list[Climb]) -> str:
    """Medians over the seeds, and in brackets the least and the most; the largest gap."""
    solved = [row.solved for row in climbs if row.solved is not None]
    steps = "not solved"
    if len(solved) == len(climbs):
        steps = middle(solved, "{:.0f}")
    elif solved:
        steps = f"{len(solved)} of {len(climbs)} seeds"
    seconds = middle([row.seconds for row in climbs], "{:.1f}")
    last, gap = mean(row.last for row in climbs), max(row.gap for row in climbs)
    error = next((f"  {row.error}" for row in climbs if row.error), "")
    return f"{steps:17}{seconds:20}{last:<14.2f}{gap:.0e}{error}"


def middle(values: list, form: str) -> str:
    text = form.format(median(values))
    if len(values) == 1:
        return text
    return f"{text} ({form.format(min(values))} to {form.format(max(values))})"
