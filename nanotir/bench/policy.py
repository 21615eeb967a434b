"""The policy that is measured: the one of a run, or one that is trained for the occasion."""

from __future__ import annotations

from dataclasses import asdict, replace

from nanotir import optim
from nanotir.config import RunConfig, build
from nanotir.demonstrate import demonstrate
from nanotir.model import Transformer
from nanotir.policy import load_run, make_tokenizer, open_tools
from nanotir.problems import load
from nanotir.sampler import Sampler
from nanotir.sft import imitate
from nanotir.tokenizer import Tokenizer
from nanotir.tools import Tool
from nanotir.trajectory import Format, Trajectory


class Policy:
    """A model and what belongs to it; `config` is the RunConfig it was made with."""

    def __init__(
        self, config: RunConfig, model: Transformer, tokenizer: Tokenizer, tools: list[Tool]
    ):
        self.config = config
        self.model = model
        self.tokenizer = tokenizer
        self.tools = tools
        self.format = Format(config.format)
        self.problems = load("generated", n=512, seed=1)

    def questions(self, n: int) -> list[str]:
        return [problem.question for problem in self.problems[:n]]

    def sampler(self, tools: list[Tool] | None = None, **settings) -> Sampler:
        """A sampler with the policy's settings and tools, except for those that are given."""
        tools = self.tools if tools is None else tools
        config = replace(self.config.sampler, **settings)
        return Sampler(self.model, self.tokenizer, tools, self.format, config)

    def demonstrations(self, n: int) -> list[Trajectory]:
        tools = {tool.name: tool for tool in self.tools}
        problems = self.problems[:n]
        return demonstrate(problems, self.tokenizer, self.format, tools, self.config.teacher)


def policy_of(folder) -> Policy:
    """The policy of a run folder."""
    config, model, tokenizer, _, tools = load_run(folder)
    return Policy(build(config), model, tokenizer, tools)


def cold_start(steps: int = 150) -> Policy:
    """A policy that has imitated the teacher for a short time, with the default settings."""
    config = RunConfig()
    problems = load("generated", n=2000)
    tools = open_tools(asdict(config))
    tokenizer, config.model = make_tokenizer(config, problems, tools)
    policy = Policy(config, Transformer(config.model), tokenizer, tools)
    policy.problems = problems

    shown = policy.demonstrations(len(problems))
    optimizers = optim.muon_and_adamw(policy.model, config.sft.lr, config.sft.adam_lr)
    for step in range(steps):
        first = step * 64 % 1900
        batch = shown[first : first + 64]
        imitate(policy.model, optimizers, batch, tokenizer.pad_id, config.sft)
    return policy
