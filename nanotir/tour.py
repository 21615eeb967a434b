"""One problem walks through the core modules: at each stop the lines that run, and their values.

python -m nanotir.tour                     all stops, in the order in which to read the files
python -m nanotir.tour --stop losses       one stop
python -m nanotir.tour --run runs/NAME     with a trained run instead of the tour's small policy
"""

from __future__ import annotations

import argparse
import inspect
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch

from nanotir import optim, rl, rollout
from nanotir.advantages import group_advantages
from nanotir.answers import extract_answer
from nanotir.checks import one_of
from nanotir.demonstrate import answer_sentence, corpus, wrong_guess
from nanotir.draws import uniforms
from nanotir.generation import Generation, Row, Status
from nanotir.logps import masked_logps
from nanotir.losses import Terms, clipped, policy_loss
from nanotir.model import KVCache, ModelConfig, Transformer
from nanotir.problems import load
from nanotir.rewards import RewardConfig, is_correct, score
from nanotir.run import load_run
from nanotir.sampler import Sampler, SamplerConfig
from nanotir.sft import SFTConfig, imitate
from nanotir.show import colours_wanted, paint
from nanotir.tokenizer import Tokenizer
from nanotir.tools import PythonTool, Tool, ToolResult
from nanotir.trajectory import Format, Trajectory, collate

WIDTH = 100  # columns of the output
GROUP = 4  # answers to the problem
ROWS = [f"row {row}" for row in range(GROUP)]


def small_walk(seed: int, stack: ExitStack) -> Walk:
    """Random weights that imitate three answers to one problem: two calls and a wrong guess."""
    (problem,) = load("generated:mul", n=1, seed=seed)
    tokenizer = Tokenizer.train(corpus(load("generated", n=200)), 400)
    sizes = {"n_layers": 2, "d_model": 64, "d_ff": 128, "max_seq_len": 256}
    model = Transformer(ModelConfig(vocab_size=len(tokenizer), **sizes), seed)
    python = at_once(stack.enter_context(PythonTool()))

    words, (_, code) = problem.solution
    output = ("output", python.run(code).output)
    right = [words, ("python", code), output, ("text", answer_sentence(problem.answer))]
    wrong = [("text", answer_sentence(wrong_guess(problem.answer, Random(seed))))]
    scripts = [right, right, wrong]
    batch = [Format().trajectory(tokenizer, problem.question, script) for script in scripts]
    optimizers = optim.muon_and_adamw(model, muon_lr=0.01, adam_lr=6e-3)
    for _ in range(40):
        imitate(model, optimizers, batch, tokenizer.pad_id, SFTConfig())

    sampler = Sampler(model, tokenizer, [python], config=SamplerConfig(max_new_tokens=64))
    imitated = "it imitated three answers to this problem: two that call Python, and a wrong guess"
    origin = f"The policy had random weights a moment ago. In 40 steps {imitated}."
    return Walk(origin, sampler, [problem], RewardConfig(), seed)


def trained_walk(folder: str, seed: int, stack: ExitStack) -> Walk:
    """The policy of a run folder, which is asked held-out problems."""
    config, model, tokenizer, format, tools = load_run(folder)
    tools = [at_once(stack.enter_context(tool)) for tool in tools]
    settings = replace(SamplerConfig(**config["sampler"]), temperature=1.0, bf16=False)
    sampler = Sampler(model, tokenizer, tools, format, settings)
    problems = load(config["eval_data"], "test", 32, config["seed"] + 1, config["level"])
    origin = f"The policy is that of {folder}. It was not trained on this problem."
    return Walk(origin, sampler, problems, RewardConfig(**config["reward"]), seed)


def at_once(tool: Tool) -> Tool:
    """The tool, but every call waits for its result: so the tour always prints the same."""
    submit = tool.submit

    def submit_and_wait(text: str, session=None) -> Future:
        future = submit(text, session)
        wait([future])
        return future

    tool.submit = submit_and_wait
    return tool


class Walk:
    """A group of answers to one problem, sampled and graded as a step of RL does it."""

    def __init__(self, origin: str, sampler: Sampler, problems, rewards: RewardConfig, seed: int):
        self.origin, self.sampler, self.reward_config = origin, sampler, rewards
        self.tokenizer, self.model = sampler.tokenizer, sampler.model
        self.settings = rl.RLConfig(problems=1, group_size=GROUP, refills=19)
        self.how = rl.drawing_of(sampler)

        # Sample groups until one of them holds right and wrong answers.
        self.sampled = rollout.collect(sampler, problems, self.settings, rewards, seed, step=0)
        samples = self.sampled.samples[-GROUP:]
        self.seed = rollout.hash_of(seed, 0, len(self.sampled.samples) // GROUP - 1)
        self.problem = samples[0].problem
        self.group = [sample.trajectory for sample in samples]
        self.right = [sample.correct for sample in samples]
        self.advantages = group_advantages([sample.reward for sample in samples], GROUP)
        self.gap = rl.rescore(self.model, self.group, self.settings, self.how)

        # The answer that we follow: the first with a call, a right one if there is any.
        merits = list(zip([bool(t.calls) for t in self.group], self.right))
        self.answer = self.group[merits.index(max(merits))]
        self.prompt = self.answer.ids[: self.answer.spans[0].end]

    @torch.no_grad()
    def trainer_logps(self):
        """(the group as a batch, the log-probs of all chosen ids under the model as it is)."""
        batch = collate(self.group, self.tokenizer.pad_id)
        drawn = (batch.ids, batch.mask, self.how.temperature, self.how.banned)
        return batch, masked_logps(self.model, *drawn)[0]


# What there is to see at each stop. The docstring is printed, and then what is returned.


def see_trajectory(walk: Walk) -> list[str]:
    """A trajectory is all that was read and written for one problem, id by id.

    `span` says whose an id is: the prompt's, the model's words (text), a call (the tool's name),
    or the tool's (output). `mask` is 1 where the model chose the id: only these are learned from.
    `logp` is the log of the probability that a chosen id had: 0 is certain, -0.69 is one half.
    A dot in the text is a space.
    """
    answer = walk.answer
    problem = f"The problem: {walk.problem.question} The known answer: {walk.problem.answer}"
    spans = [span.kind for span in answer.spans for _ in range(span.start, span.end)]
    rows = [["span", *spans], *spelling(walk, answer.ids), ["mask", *map(str, answer.mask)]]
    return [wrap(problem), wrap(walk.origin), table(*rows, ["logp", *numbers(answer.logps)])]


def see_tokenizer(walk: Walk) -> list[str]:
    """Every digit is an id of its own, so that a model can copy numbers. The prompt is first below.

    There are two encoders. In text that we write, a tag is a single id. In everybody else's text
    (questions, tool output) the same tag is plain characters, so that it cannot start a program.
    """
    seen = [table(*spelling(walk, walk.prompt))]
    for encode in (walk.tokenizer.encode, walk.tokenizer.encode_untrusted):
        seen.append(f"{encode.__name__}('<python>')")
        seen.append(table(*spelling(walk, encode("<python>"))))
    return seen


def see_model(walk: Walk) -> list[str]:
    """A forward pass over the prompt, with the shape of each stage.

    At each position the model scores every id that might come next. The scores are called logits.
    """
    model, ids = walk.model, torch.tensor([walk.prompt])
    block = model.blocks[0]
    parts = {"all": model, "embedding": model.embed, "attention": block.attention}
    parts["feed-forward"] = block.ff
    sizes = [f"{sum(w.numel() for w in part.parameters()):,}" for part in parts.values()]
    with torch.no_grad():
        stages = {"embedded": model.embed(ids), "hidden": model.hidden(ids), "logits": model(ids)}
    shapes = [str(tuple(stage.shape)) for stage in [ids, *stages.values()]]
    note = f"Attention and feed-forward come {len(model.blocks)} times, once in each block. Shapes:"
    axes = ["rows, positions", "..., width", "..., width", "..., ids that may come next"]
    return [
        table(["", *parts], ["parameters", *sizes]),
        note,
        table(["", "ids", *stages], ["shape", *shapes], ["axes", *axes]),
    ]


def see_draws(walk: Walk) -> list[str]:
    """Chance is a function of (seed, row, position), not of a generator that moves on.

    So a row draws the same numbers whatever other rows and tools do. The first ids of the four
    answers are drawn by these:
    """
    start = len(walk.prompt)
    positions = range(start, start + 8)
    rows = [[ROWS[i], *numbers(uniforms(walk.seed, i, positions), 4)] for i in range(GROUP)]
    alone = uniforms(walk.seed, GROUP - 1, start)
    again = f"Asked for alone, {ROWS[-1]} at position {start} gets the same: {alone:.4f}"
    return [table(["position", *map(str, positions)], *rows), again]


def see_sampler(walk: Walk) -> list[str]:
    """All ids lie side by side between 0 and 1, each as wide as its probability.

    A uniform number u falls on one of them, which is then the next id. Tags that only others may
    write have probability 0. For ten values of u, this is the first id of the answer:
    """
    u = [(i + 0.5) / 10 for i in range(10)]
    with torch.no_grad():
        logits = walk.model(torch.tensor([walk.prompt]))[:, -1].expand(len(u), -1)  # (10, V)
    ids, logps = walk.sampler.pick(logits, u)
    probability = ["probability", *numbers(logps.exp())]
    never = "Probability 0: " + " ".join(pieces(walk, walk.sampler.banned))
    return [table(["u", *numbers(u)], *spelling(walk, ids.tolist()), probability), wrap(never)]


def see_generation(walk: Walk) -> list[str]:
    """The rows are decoded together, one id each in a step.

    A row that closes a call is parked while its tool runs, and the others go on. The result is
    then appended in one pass. "24 of 25": the cache holds the keys and values of 24 of the row's
    25 ids, and the last one has still to be read. A line for each step that changes a status:
    """
    generation = Generation(walk.sampler, [walk.prompt], GROUP, walk.seed)
    steps = []
    with torch.inference_mode():
        while generation.waiting or any(generation.slots):
            generation.admit()
            generation.collect()
            generation.decode()
            steps.append([place(row, generation.cache) for row in generation.rows])
    statuses = [[cell.split(",")[0] for cell in step] for step in steps]
    changed = [i for i in range(len(steps)) if i == 0 or statuses[i] != statuses[i - 1]]
    return [table(["step", *ROWS], *([str(i + 1), *steps[i]] for i in changed))]


def place(row: Row, cache: KVCache) -> str:
    """A row's status, how many of its ids the cache holds, and how many there are."""
    ids = len(row.trajectory.ids)
    if row.status is Status.FINISHED:  # another row may have taken its slot
        return f"finished, {ids} ids"
    return f"{row.status.value}, {cache.lengths[row.slot]} of {ids}"


def see_tool(walk: Walk) -> list[str]:
    """A tool takes a text and returns a result. An error is a result too: the model reads it.

    These are the calls of the answer that we follow, run once more, and a program that fails.
    Behind each program are its status and its output:
    """
    calls = [(call.tool, call.code) for call in walk.answer.calls]
    if "python" in walk.sampler.tools:
        calls.append(("python", "1/0"))
    results = [walk.sampler.tools[name].run(text) for name, text in calls]
    called = [f"{name} {text!r}" for name, text in calls]
    return [wrap(f"{c}: {r.status}, {r.output!r}") for c, r in zip(called, results)]


def see_rewards(walk: Walk) -> list[str]:
    """A reward is a weighted sum of parts. Only what the model wrote counts, not tool output.

    `answer` is the last boxed one in the model's words, `ids` is how many ids the model wrote.
    """
    config = walk.reward_config
    rewards, parts = score(walk.group, [walk.problem] * GROUP, walk.tokenizer, config)
    answers = [extract_answer(t.completion(walk.tokenizer)) or "none" for t in walk.group]
    rows = [["", *ROWS], ["answer", *(answer[:16] for answer in answers)]]
    rows.append(["ids", *(str(trajectory.new_tokens) for trajectory in walk.group)])
    for name in parts:
        if name != "outcome":
            rows.append([f"{getattr(config, name)} x {name}", *numbers(parts[name], 3)])
    return [table(*rows, ["reward", *numbers(rewards, 3)])]


def see_advantages(walk: Walk) -> list[str]:
    """An advantage says how much better an answer did than the others to the same problem.

    Learning makes answers with a positive one more likely, and those with a negative one less.
    """
    rewards = torch.tensor([sample.reward for sample in walk.sampled.samples[-GROUP:]])
    spread = f"The mean reward is {rewards.mean():.3f}, the standard deviation {rewards.std():.3f}."
    rows = [["reward", *numbers(rewards, 3)], ["advantage", *numbers(walk.advantages, 3)]]
    return [spread, table(["", *ROWS], *rows)]


def see_logps(walk: Walk) -> list[str]:
    """The trainer computes the log-prob of every chosen id again, for the whole row in one pass.

    It must find what the sampler found id by id, or the loss would compare two different models.
    These are the first ids that the model chose in the answer that we follow:
    """
    answer = walk.answer
    chosen = [i for i, mask in enumerate(answer.mask) if mask][:10]
    rows = spelling(walk, [answer.ids[i] for i in chosen])
    rows.append(["sampler", *numbers([answer.logps[i] for i in chosen], 4)])
    rows.append(["trainer", *numbers([answer.old_logps[i] for i in chosen], 4)])
    return [table(*rows), f"The largest difference in all four answers: {walk.gap:.0e}"]


def see_losses(walk: Walk) -> list[str]:
    """The ratio is how much likelier an id is now than when it was drawn.

    The loss of an id is -ratio x advantage, but clipped: where the slope is 0, the id has moved
    far enough, and pulls no more. For some ratios, and the advantages A = 1 and A = -1:
    """
    options = walk.settings.loss_options(walk.how.max_new_tokens)
    ratio = torch.tensor([[0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0]], requires_grad=True)
    rows = [["ratio", *numbers(ratio[0])]]
    for A in (1, -1):
        terms = Terms(ratio.log(), ratio.log(), ratio, A * torch.ones_like(ratio), None, None)
        loss, *_ = clipped(terms, options)
        (slope,) = torch.autograd.grad(loss.sum(), ratio)
        rows += [[f"loss, A = {A}", *numbers(loss[0])], ["slope", *numbers(slope[0])]]

    batch, logps = walk.trainer_logps()
    given = (logps, batch.old_logps, walk.advantages, batch.mask)
    loss, metrics = policy_loss(*given, **vars(options))
    ratios = f"Before an update all ratios are {metrics['ratio_mean']:.4f}."
    sums = "The losses of all four answers' ids are summed and divided by one number, how many"
    count = f"ids the model chose: {metrics['active_tokens']}. That gives {loss:.4f}, minus the"
    means = "mean advantage of an id, which says nothing yet. What teaches is the gradient."
    return [table(*rows), wrap(f"{ratios} {sums} {count} {means}")]


def see_rollout(walk: Walk) -> list[str]:
    """A group that is all right or all wrong teaches nothing: it is dropped, and another sampled.

    These groups of four answers were sampled:
    """
    samples, rows = walk.sampled.samples, []
    for start in range(0, len(samples), GROUP):
        right = ["right" if sample.correct else "wrong" for sample in samples[start:][:GROUP]]
        kept = "kept" if samples[start] in walk.sampled.kept else "dropped"
        rows.append([f"group {len(rows)}", *right, kept])
    none = "All were dropped. The walk goes on with the last, from which nothing can be learned."
    return [table(*rows)] + ([] if walk.sampled.kept else [none])


def see_rl(walk: Walk) -> list[str]:
    """One step of the optimiser on the four answers, and what it does to their log-probs.

    `before` and `after` are the sums of the log-probs of all ids that the model chose in a row.
    """
    batch, before = walk.trainer_logps()
    optimizer = optim.adamw(walk.model.parameters(), walk.settings.lr)
    given = (walk.group, walk.advantages, walk.settings, walk.how)
    metrics = rl.update(walk.model, optimizer, *given)
    _, after = walk.trainer_logps()
    rows = [["right", *numbers(walk.right, 0)], ["advantage", *numbers(walk.advantages, 3)]]
    rows.append(["before", *numbers(before.sum(1), 3)])
    rows.append(["after", *numbers(after.sum(1), 3)])
    ratio = (after - before).exp()[batch.mask]
    norm = f"The norm of the gradient was {metrics['grad_norm']:.3f}."
    now = f"The ratios are now between {ratio.min():.3f} and {ratio.max():.3f}"
    later = "in a second update on the same answers, the clip would hold back the far ones"
    return [table(["", *ROWS], *rows), wrap(f"{norm} {now}: {later}.")]


# Values as text.


def numbers(values, digits: int = 2) -> list[str]:
    return [f"{value:.{digits}f}" for value in torch.as_tensor(values).tolist()]


def pieces(walk: Walk, ids: list[int]) -> list[str]:
    """The text of each id, with its spaces and line ends to be seen."""
    return [walk.tokenizer.decode([id]).replace(" ", "·").replace("\n", "\\n") for id in ids]


def spelling(walk: Walk, ids: list[int]) -> list[list[str]]:
    return [["text", *pieces(walk, ids)], ["id", *map(str, ids)]]


def table(*rows: list[str]) -> str:
    """Rows of cells, aligned. What is too wide goes on below, with the first column repeated."""
    labels, *columns = [align(column) for column in zip(*rows)]
    blocks = [[labels]]
    for column in columns:
        if sum(len(cells[0]) for cells in [*blocks[-1], column]) > WIDTH:
            blocks.append([labels])
        blocks[-1].append(column)
    lines = [["".join(row).rstrip() for row in zip(*block)] for block in blocks]
    return "\n\n".join("\n".join(block) for block in lines)


def align(column) -> list[str]:
    width = max(map(len, column))
    return [f"  {cell:<{width}}" for cell in column]


def wrap(text: str) -> str:
    return textwrap.fill(text, WIDTH)


@dataclass
class Stop:
    question: str  # which the file answers
    code: Callable  # the function or class that the shown lines are from
    first: str  # a part of the first line; the last one is the last before an empty line
    see: Callable[[Walk], list[str]]

    @property
    def file(self) -> str:
        """Its path in the package."""
        path = Path(inspect.getsourcefile(self.code))
        return path.relative_to(Path(__file__).parent).as_posix()

    def source(self) -> tuple[int, list[str]]:
        """(the number of the first line, the lines)."""
        lines, number = inspect.getsourcelines(self.code)
        start = next(i for i, line in enumerate(lines) if self.first in line)
        paragraph, _, _ = textwrap.dedent("".join(lines[start:])).partition("\n\n")
        return number + start, paragraph.splitlines()

    def page(self, walk: Walk, colour: bool) -> str:
        start, lines = self.source()
        title = paint("call", f"{STOPS.index(self) + 1}. {self.question}", colour)
        code = "\n".join(f"{number:5}  {line}" for number, line in enumerate(lines, start))
        shown = [title, f"nanotir/{self.file}:{start}", paint("prompt", code, colour)]
        return "\n\n".join([*shown, inspect.getdoc(self.see), *self.see(walk)])


STOPS = [  # in the order of the README's section "Read it"
    Stop("What is a rollout?", Trajectory.append, "start =", see_trajectory),
    Stop("How does text become ids?", Tokenizer.__init__, '"] = []', see_tokenizer),
    Stop("What predicts the next id?", Transformer.hidden, "where =", see_model),
    Stop("Where does chance come from?", uniforms, "seeded =", see_draws),
    Stop("How is an id drawn?", Sampler.pick, "ids = draw(", see_sampler),
    Stop("What happens while a tool runs?", Generation.accept, "if id ==", see_generation),
    Stop("What is a tool?", ToolResult, "class", see_tool),
    Stop("What is an answer worth?", is_correct, "def", see_rewards),
    Stop("Is it better than its siblings?", group_advantages, "groups =", see_advantages),
    Stop("How likely is what was written?", masked_logps, "hidden =", see_logps),
    Stop("How far may an update push?", clipped, "low =", see_losses),
    Stop("Which answers teach something?", rollout.collect, "for start", see_rollout),
    Stop("What does one step change?", rl.update, "micro_loss.backward", see_rl),
]


def main(arguments=None):
    stops = {Path(stop.file).stem: stop for stop in STOPS}
    parser = argparse.ArgumentParser(description="One problem walks through the core modules.")
    parser.add_argument("--stop", metavar="NAME", help=f"only one of {', '.join(stops)}")
    parser.add_argument("--run", metavar="DIR", help="walk with the policy of this run folder")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        if options.stop:
            one_of("stop", options.stop, stops)
            stops = {options.stop: stops[options.stop]}
        with ExitStack() as stack:
            given = (options.seed, stack)
            walk = trained_walk(options.run, *given) if options.run else small_walk(*given)
            for stop in stops.values():
                print(stop.page(walk, colours_wanted()), end="\n\n\n", flush=True)
    except ValueError as error:
        print(f"tour: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
