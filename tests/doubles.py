"""Stand-ins for tools, models and runs, which do what a test tells them."""

import random
import time
from types import SimpleNamespace

from conftest import ScriptedModel, follow, small_model
from tqdm import tqdm

from nanotir.sampler import Sampler, SamplerConfig
from nanotir.tokenizer import ASSISTANT, USER
from nanotir.tools import Tool, ToolResult
from nanotir.trajectory import Format


class Spy(Tool):
    """Remembers what it was asked, and answers after a random delay."""

    def __init__(self, name="python", answer=None, delay=0.0, seed=0):
        self.name = name
        self.answer = answer or "<{}>".format
        self.delay = delay
        self.rng = random.Random(seed)
        self.asked = []

    def run(self, text, session=None):
        self.asked.append(text)
        time.sleep(self.rng.random() * self.delay)
        result = self.answer(text)
        return result if isinstance(result, ToolResult) else ToolResult(result)


def say(tokenizer, *texts):
    """A script for conftest.follow: the first text, and another one after each tool output.

    A parked row's next id is asked for as well, but not used, so a script never runs out.
    """
    parts = [tokenizer.encode(text) for text in texts]
    closer = tokenizer.tags["</output>"]

    def script(written):
        outputs = written.count(closer)
        part = parts[min(outputs, len(parts) - 1)]
        since = written[::-1].index(closer) if outputs else len(written)
        return part[min(since, len(part) - 1)]

    return script


def scripted(tokenizer, *texts, **settings):
    """A model that says these texts, whatever the question."""
    return ScriptedModel(len(tokenizer), follow(tokenizer, say(tokenizer, *texts)), **settings)


def scripted_by_question(tokenizer, texts):
    """A model that says texts[question], a tuple for `say`."""
    scripts = {
        question: follow(tokenizer, say(tokenizer, *parts)) for question, parts in texts.items()
    }
    nothing = follow(tokenizer, say(tokenizer, "<|end|>"))  # for slots that are empty

    def logits_of(ids):
        question = tokenizer.decode(ids).partition(ASSISTANT)[0].removeprefix(USER)
        return scripts.get(question, nothing)(ids)

    return ScriptedModel(len(tokenizer), logits_of)


def calling_transformer(tokenizer):
    """A random transformer that calls often.

    All hidden states share a direction, and the tags' rows of the head point in it.
    """
    model = small_model(len(tokenizer), tie_embeddings=False)
    boosts = {"<python>": 0.3, "</python>": 0.35, "<|end|>": 0.2}
    model.embed.weight.data += 4.0
    for tag, boost in boosts.items():
        model.head.weight.data[tokenizer.tags[tag]] = boost
    return model


def sampler_of(model, tokenizer, tools=(), style="tags", **settings):
    return Sampler(model, tokenizer, tools, Format(style), SamplerConfig(**settings))


def ids_of(rows):
    return [row.ids for row in rows]


class RunDouble(SimpleNamespace):
    """What a training loop needs of a run, without a folder."""

    def __init__(self, model, tokenizer, seed=0, **sections):
        config = SimpleNamespace(seed=seed, **sections)
        super().__init__(model=model, tokenizer=tokenizer, config=config, format=Format())
        self.tools, self.problems, self.state = [], [], {}
        self.metrics, self.traces = [], []

    def remaining(self, phase, optimizers, steps):
        return tqdm(range(steps), disable=True)

    def finish_step(self, step, metrics, optimizers, last=False):
        self.metrics.append(metrics)

    def log(self, row, file):
        self.traces.append(row)
