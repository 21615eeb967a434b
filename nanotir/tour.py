"""One problem walks through the core modules: at each stop the lines that run, and their values.

python -m nanotir.tour                     all stops, in the order in which to read the files
python -m nanotir.tour --stop losses       one stop
python -m nanotir.tour --run runs/NAME     with a trained run instead of the tour's small policy
"""

from __future__ import annotations

import inspect
import textwrap
import time
from dataclasses import replace
from random import Random

import torch

from nanotir import advantages, demonstrate, draws, logps, losses, optim, rewards, rl, rollout, sft
from nanotir.answers import extract_answer
from nanotir.batches import collate
from nanotir.checks import one_of
from nanotir.commands import Parser, one_line
from nanotir.generation import Generation
from nanotir.model import ModelConfig, Transformer
from nanotir.policy import load_run
from nanotir.problems import load
from nanotir.problems.sources import specs_of
from nanotir.rows import Status
from nanotir.sampler import Sampler, SamplerConfig, pick
from nanotir.show import colours_wanted, paint
from nanotir.tokenizer import Tokenizer, without_tags
from nanotir.tools import PythonTool, ToolResult
from nanotir.trajectory import Format, Trajectory

WIDTH = 100  # columns of the output
ROWS = ("row 0", "row 1", "row 2", "row 3")  # the answers to the problem
GROUP = len(ROWS)


class Walk:
    """A group of answers to one problem, and what there is to see of it at each stop."""

    def __init__(self, origin: str, sampler: Sampler, problems: list, config: rewards.RewardConfig):
        self.origin, self.sampler, self.config = origin, sampler, config
        self.model, self.tokenizer = sampler.model, sampler.tokenizer
        self.settings = rl.RLConfig(problems=1, group_size=GROUP, refills=19)
        self.how = (self.settings, rl.drawing_of(sampler))

        # Sample groups until one of them holds right and wrong answers. Go on with the last.
        self.rollout = rollout.collect(sampler, problems, self.settings, config, seed=0, step=0)
        self.seed = rollout.hash_of(0, 0, len(self.rollout.samples) // GROUP - 1)
        samples = self.rollout.samples[-GROUP:]
        self.problem = samples[0].problem
        self.group = [sample.trajectory for sample in samples]
        self.reward = torch.tensor([sample.reward for sample in samples])
        self.advantages = advantages.group_advantages(self.reward, GROUP)
        self.gap = rl.rescore(self.model, self.group, *self.how)
        self.batch = collate(self.group, self.tokenizer.pad_id)
        self.answer = max(self.group, key=lambda answer: len(answer.calls))  # which we follow
        self.prompt = self.answer.ids[: self.answer.spans[0].end]

    def spelling(self, ids: list[int]) -> dict[str, list]:
        """Two rows of a table: the ids and their texts, with spaces and line ends to be seen."""
        texts = [self.tokenizer.decode([id]).replace(" ", "·").replace("\n", "\\n") for id in ids]
        return {"text": texts, "id": ids}

    def see_trajectory(self):
        """A trajectory is all that was read and written for one problem, id by id.
        `span` says whose an id is: the prompt's, the model's words (text), a call (the tool's name)
        or output. `mask` is 1 where the model chose the id: only these are learned from. `logp` is
        the log of its probability: 0 is certain, -0.69 is one half. A dot in the text is a space.
        """
        yield f"The problem: {self.problem.question} The known answer: {self.problem.answer}"
        yield self.origin
        ids, spans = self.answer.ids, self.answer.spans
        kinds = {"span": [span.kind for span in spans for _ in range(span.start, span.end)]}
        yield kinds | self.spelling(ids) | {"mask": self.answer.mask, "logp": self.answer.logps}

    def see_tokenizer(self):
        """Every digit is an id of its own, so that a model can copy numbers. First, the prompt.
        There are two encoders. In text that we write, a tag is a single id. In everybody else's
        text (questions, tool output) the same tag is plain characters: it cannot start a program.
        """
        yield self.spelling(self.prompt)
        for encode in (self.tokenizer.encode, self.tokenizer.encode_untrusted):
            yield f"{encode.__name__}('<python>')"
            yield self.spelling(encode("<python>"))

    def see_model(self):
        """At each position the model scores every id that might come next: these are the logits.
        The shapes of a forward pass over the prompt are (rows, positions, width or ids):
        """
        ids = torch.tensor([self.prompt])
        stages = {"ids": ids, "embedded": self.model.embed(ids)}
        stages |= {"hidden": self.model.hidden(ids), "logits": self.model(ids)}
        yield {"": stages, "shape": [tuple(stage.shape) for stage in stages.values()]}
        yield f"The model has {sum(w.numel() for w in self.model.parameters()):,} parameters."

    def see_draws(self):
        """Chance is a function of (seed, row, position), not of a generator that moves on.
        So a row draws the same numbers whatever other rows and tools do. The answers begin with:
        """
        positions = range(len(self.prompt), len(self.prompt) + 8)
        numbers = [draws.uniforms(self.seed, row, positions).tolist() for row in range(GROUP)]
        yield {"position": positions, **dict(zip(ROWS, numbers))}

    def see_sampler(self):
        """All ids lie side by side between 0 and 1, each as wide as its probability.
        A uniform number u falls on one of them, which is then the next id. Tags that only others
        may write have probability 0. For ten values of u, this is the first id of the answer:
        """
        u = [(i + 0.5) / 10 for i in range(10)]
        logits = self.model(torch.tensor([self.prompt]))[:, -1].expand(len(u), -1)  # (10, V)
        ids, logps = self.sampler.pick(logits, u)
        yield {"u": u, **self.spelling(ids.tolist()), "probability": logps.exp().tolist()}
        yield "Probability 0: " + " ".join(self.spelling(self.sampler.banned)["text"])

    def see_generation(self):
        """The rows are decoded together, one id each in a step.
        A row that closes a call is parked while its tool runs, and the others go on. The result is
        then appended in one pass. A letter a step: waiting, decoding, parked, finished.
        """
        generation = Generation(self.sampler, [self.prompt], GROUP, self.seed)
        letters = dict.fromkeys(ROWS, "")

        def look():
            # Let the tools end before the next step, so that the tour always prints the same.
            while generation.returned.qsize() < len(generation.slots.seated(Status.PARKED)):
                time.sleep(0.001)
            for name, row in zip(ROWS, generation.rows):
                letters[name] += row.status.value[0]

        with torch.inference_mode():
            generation.run(stop=look)
        yield {name: textwrap.wrap(text, 10) for name, text in letters.items()}

    def see_tool(self):
        """A tool takes a text and returns a result. An error is one too, which the model reads."""
        calls = [(call.tool, call.code, call.result) for call in self.answer.calls]
        for name, text, result in [*calls, ("python", "1/0", PythonTool().run("1/0"))]:
            yield f"{name} {text!r}: {result.status}, {result.output!r}"

    def see_rewards(self):
        """A reward is a weighted sum of parts. Only what the model wrote counts, no tool output."""
        _, parts = rewards.score(self.group, [self.problem] * GROUP, self.tokenizer, self.config)
        del parts["outcome"]  # the accuracy once more
        words = [trajectory.completion(self.tokenizer) for trajectory in self.group]
        rows = {"": ROWS, "answer": [(extract_answer(text) or "none")[:16] for text in words]}
        rows["ids"] = [trajectory.new_tokens for trajectory in self.group]
        weighted = {f"{getattr(self.config, name)} x {name}": parts[name] for name in parts}
        yield {**rows, **weighted, "reward": self.reward.tolist()}

    def see_advantages(self):
        """An advantage says how much better an answer is than the others to the same problem."""
        yield f"Mean reward {self.reward.mean():.3f}, standard deviation {self.reward.std():.3f}."
        yield {"": ROWS, "reward": self.reward.tolist(), "advantage": self.advantages.tolist()}

    def see_logps(self):
        """The trainer computes the log-prob of every chosen id again, for a whole row in one pass.
        It must find what the sampler found id by id. The first ids that the model chose:
        """
        answer = self.answer
        columns = zip(answer.ids, answer.mask, answer.logps, answer.old_logps)
        ids, _, sampler, trainer = zip(*[column for column in columns if column[1]][:10])
        yield {**self.spelling(ids), "sampler": sampler, "trainer": trainer}
        yield f"The largest difference in all four answers: {self.gap:.0e}"

    def see_losses(self):
        """The ratio is how much likelier an id is now than when it was drawn.
        The loss of an id is -ratio x advantage, but clipped: where the slope is 0, the id has moved
        far enough, and adds no gradient. For some ratios, and the advantages A = 1 and A = -1:
        """
        ratio = torch.tensor([[0.5, 0.75, 0.9, 1, 1.1, 1.25, 1.5, 2]] * 2, requires_grad=True)
        terms = losses.Terms(None, None, ratio, torch.tensor([[1], [-1]]), None, None)
        loss, *_ = losses.clipped(terms, self.settings.loss_options(max_completion_length=1))
        (slope,) = torch.autograd.grad(loss.sum(), ratio)
        labels = ("ratio", "loss, A = 1", "slope, A = 1", "loss, A = -1", "slope, A = -1")
        numbers = torch.stack([ratio[0], loss[0], slope[0], loss[1], slope[1]])
        yield dict(zip(labels, numbers.tolist()))

    def see_rollout(self):
        """A group that is all right or all wrong teaches nothing: it is dropped."""
        rows = {}
        for start in range(0, len(self.rollout.samples), GROUP):
            group = self.rollout.samples[start : start + GROUP]
            right = ["right" if sample.correct else "wrong" for sample in group]
            kept = "kept" if group[0] in self.rollout.kept else "dropped"
            rows[f"group {len(rows)}"] = [*right, kept]
        yield rows

    def see_rl(self):
        """One step of the optimiser, and the sums of the answers' log-probs before and after it."""
        optimizer = optim.adamw(self.model.parameters(), self.settings.lr)
        seen = rl.update(self.model, optimizer, self.group, self.advantages, *self.how)
        rl.rescore(self.model, self.group, *self.how)
        before = self.batch.old_logps
        after = collate(self.group, self.tokenizer.pad_id).old_logps
        sums = {"before": before.sum(1).tolist(), "after": after.sum(1).tolist()}
        yield {"": ROWS, "advantage": self.advantages.tolist(), **sums}
        ratio = (after - before).exp()[self.batch.mask]
        yield (
            f"The loss was {seen['loss']:.4f}, the sum over {seen['active_tokens']} ids divided by "
            f"their number. Its gradient teaches. All ratios were {seen['ratio_mean']:.3f}, "
            f"and now they lie between {ratio.min():.3f} and {ratio.max():.3f}."
        )


def small_walk() -> Walk:
    """Random weights that imitate three answers to one problem: two calls and a wrong guess."""
    (problem,) = load("generated:mul", n=1)
    tokenizer = Tokenizer.train(demonstrate.corpus(load("generated", n=200)), vocab_size=400)
    config = ModelConfig(len(tokenizer), n_layers=2, d_model=64, d_ff=128, max_seq_len=256)
    model = Transformer(config, seed=0)

    sentence = demonstrate.answer_sentence
    right = [*problem.solution, ("output", problem.answer), ("text", sentence(problem.answer))]
    wrong = [("text", sentence(demonstrate.wrong_guess(problem.answer, Random(0))))]
    batch = [Format().trajectory(tokenizer, problem.question, s) for s in (right, right, wrong)]
    optimizers = optim.muon_and_adamw(model, muon_lr=0.01, adam_lr=6e-3)
    for _ in range(40):
        sft.imitate(model, optimizers, batch, tokenizer.pad_id, sft.SFTConfig())

    origin = "In 40 steps, random weights imitated two answers that call Python, and a wrong guess."
    sampler = Sampler(model, tokenizer, [PythonTool()], config=SamplerConfig(max_new_tokens=64))
    return Walk(origin, sampler, [problem], rewards.RewardConfig())


def trained_walk(folder: str) -> Walk:
    """The policy of a run folder, which is asked held-out problems."""
    used = {"eval_data": str, "level": int, "reward": dict}
    config, model, tokenizer, format, tools = load_run(folder, **used)
    settings = replace(SamplerConfig(**config["sampler"]), temperature=1.0, bf16=False)
    sampler = Sampler(model, tokenizer, tools, format, settings)
    spec, *_ = specs_of(config["eval_data"])
    problems = load(spec, "test", 32, config["seed"] + 1, config["level"])
    origin = f"The policy is that of {folder}. It was not trained on this problem."
    return Walk(origin, sampler, problems, rewards.RewardConfig(**config["reward"]))


# The question that a file answers, a function in it, and the start of the paragraph to show.
STOPS = {
    "trajectory": ("What is a rollout?", Trajectory.append, "start ="),
    "tokenizer": ("How does text become ids?", without_tags, "special ="),
    "model": ("What predicts the next id?", Transformer.hidden, "layout ="),
    "draws": ("Where does chance come from?", draws.uniforms, "seeded ="),
    "sampler": ("How is an id drawn?", pick, "ids = draw("),
    "generation": ("What happens while a tool runs?", Generation.accept, "if id in"),
    "tool": ("What is a tool?", ToolResult, "class"),
    "rewards": ("What is an answer worth?", rewards.is_correct, "def"),
    "advantages": ("Is it better than the other answers?", advantages.group_advantages, "groups ="),
    "logps": ("How likely is what was written?", logps.masked_logps, "hidden ="),
    "losses": ("How far may an update push?", losses.clipped, "low ="),
    "rollout": ("Which answers teach something?", rollout.collect, "for start"),
    "rl": ("What does one step change?", rl.update, "micros ="),
}


def page(walk: Walk, name: str) -> str:
    """A stop: its question, the lines that run, the docstring of see_NAME, and what it yields."""
    question, code, first = STOPS[name]
    lines, top = inspect.getsourcelines(code)
    start = next(n for n, line in enumerate(lines, top) if first in line)
    paragraph, _, _ = textwrap.dedent("".join(lines[start - top :])).partition("\n\n")
    source = "\n".join(f"{n:5}  {line}" for n, line in enumerate(paragraph.splitlines(), start))

    title = f"{list(STOPS).index(name) + 1}. {question}"
    place = f"{code.__module__.replace('.', '/')}.py:{start}"
    colour = colours_wanted()
    see = getattr(walk, f"see_{name}")
    shown = [paint("call", title, colour), place, paint("prompt", source, colour)]
    seen = [table(x) if isinstance(x, dict) else textwrap.fill(x, WIDTH) for x in see()]
    return "\n\n".join([*shown, inspect.getdoc(see), *seen])


def table(rows: dict) -> str:
    """Rows by label, aligned. What is too wide goes on below, with the labels repeated."""
    labels, *columns = [aligned(column) for column in [rows, *zip(*rows.values())]]
    blocks = [labels]
    for column in columns:
        if len(blocks[-1][0] + column[0]) > WIDTH:
            blocks.append(labels)
        blocks[-1] = [line + cell for line, cell in zip(blocks[-1], column)]
    return "\n\n".join("\n".join(map(str.rstrip, block)) for block in blocks)


def aligned(column) -> list[str]:
    texts = [f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in column]
    width = max(map(len, texts))
    return [f"  {text:<{width}}" for text in texts]


def main(arguments=None):
    with one_line("tour"):
        about = "One problem walks through the core modules."
        parser = Parser("python -m nanotir.tour", about)
        parser.add_argument("--stop", metavar="NAME", help=f"one of {', '.join(STOPS)}")
        parser.add_argument("--run", metavar="DIR", help="walk with the policy of this run folder")
        options = parser.parse_args(arguments)
        if options.stop is not None:
            one_of("stop", options.stop, STOPS)
        torch.set_num_threads(1)
        walk = small_walk() if options.run is None else trained_walk(options.run)
        for name in [options.stop] if options.stop else STOPS:
            print(page(walk, name), end="\n\n\n", flush=True)


if __name__ == "__main__":
    main()
