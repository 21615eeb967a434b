"""Prompts to trajectories: many rows at once, which stop for tools and go on.

What a row samples depends on (seed, row, position) and its own past, never on time or neighbours.
How rows share the model and wait for their tools is in generation.py.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nanotir import workers
from nanotir.blocks import Blocks
from nanotir.checks import Amount, Count, Part, Whole, check_settings
from nanotir.draws import draw, precise, truncate
from nanotir.generation import Generation
from nanotir.kernels import decodes_on, fused_pick
from nanotir.logps import DAMAGED, autocast, in_bf16
from nanotir.lora import merged
from nanotir.model import Transformer
from nanotir.processes import gather, share
from nanotir.tokenizer import THOUGHT, Tokenizer
from nanotir.tools.tool import Tool
from nanotir.trajectory import Format, Trajectory


@dataclass
class SamplerConfig:
    temperature: Amount = 1.0  # 0 is greedy
    top_p: Part = 1.0  # keep the likeliest ids that together have this probability
    top_k: Whole = 0  # keep the k likeliest ids; 0 keeps all
    max_new_tokens: Count = 128  # ids that the model may write in one answer
    max_calls: Whole = 4  # tool calls in one answer; closing one more block ends it
    max_tool_tokens: Whole = 128  # ids of tool output in one answer; the rest is cut
    max_rows: Count = 256  # rows decoded at the same time
    sessions: bool = False  # the calls of one row share their variables
    last_turn: bool = False  # refuse one call beyond max_calls, instead of ending the row (TAPO)
    forge: bool = False  # let the model write the delimiters of tool output: for ablations
    stop_string: bool = False  # close a block of format text where an id ends in ```, and not
    # where a line begins with it: what CIR advises against
    barrier: bool = False  # a result waits until no row can decode and all calls are back
    bf16: bool = False  # decode in bfloat16, except on a CPU without AVX512_BF16;
    # rl.importance_cap then corrects for the rounding
    graphs: bool = True  # on a GPU, replay decoding steps as CUDA graphs; not for experts
    compiled: bool = False  # on a CPU, in fp32 and without experts, decode by torch.compile

    def __post_init__(self):
        check_settings(self, "sampler")


class Sampler:
    """Turns prompts into trajectories. A tool that is not in `tools` cannot be called at all."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        tools: list[Tool] | tuple = (),
        format: Format | None = None,
        config: SamplerConfig | None = None,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.config = config or SamplerConfig()
        self.format = format or Format()
        self.tools = {tool.name: tool for tool in tools}
        self.openers, self.closers = {}, {}  # {id: tool}, {tool: id}
        in_text = self.format.style == "text"  # then no single id opens or closes a block
        for name in () if in_text else self.tools:
            opener, closer = self.format.delimiters(name)
            if opener not in tokenizer.tags:
                cure = f"train it with tools=['{name}', ..]"
                raise ValueError(f"the tokenizer has no tags for the tool '{name}': {cure}")
            self.openers[tokenizer.tags[opener]] = name
            self.closers[name] = tokenizer.tags[closer]
        self.banned = self.banned_ids()
        self.banned_tensor = torch.tensor(
            self.banned, dtype=torch.long, device=model.embed.weight.device
        )

    def banned_ids(self) -> list[int]:
        """All tags that the model must not write. They are masked at the logits.

        It cannot forge a tool's result, or a turn of the user, because it cannot open one. Ids that
        stand for no text at all, as the heads of some pretrained models have, are masked too.
        """
        tags = self.tokenizer.tags
        allowed = {*self.tokenizer.end_ids, *self.openers, *self.closers.values()}
        allowed |= {tags[tag] for tag in THOUGHT if tag in tags}
        if self.config.forge and self.format.style != "text":
            allowed |= {tags[tag] for tag in self.format.delimiters("output")}
        phantoms = set(range(self.model.config.vocab_size)) - self.tokenizer.ids
        return sorted(set(tags.values()) - allowed | phantoms)

    def blocks(self) -> Blocks | None:
        """What finds a row's blocks in style text, where forged output ends the row instead."""
        if self.format.style != "text":
            return None
        forged = () if self.config.forge else ("output",)
        return Blocks(self.tokenizer, {*self.tools, *forged}, self.config.stop_string)

    def generate(
        self, prompts, n: int = 1, seed: int = 0, watch=None, stop=None, force=()
    ) -> list[Trajectory]:
        """n trajectories for each prompt (a question, or ids): prompts in order, n rows each.

        `force` are the first ids of every answer, whatever the model prefers; their log-probs are
        the model's. watch(row, kind, ids) is told of all that is appended and, as ("finish", []),
        of a row's end. (In format text, the ids of a fence are "text" until the fence is complete.)
        Once stop() is true, unfinished rows end as "cancelled". ValueError for a prompt that leaves
        no room to answer.

        With torchrun, each process samples its share of the prompts and returns the rows of all.
        Its watch is told of its own share only. Workers (workers.py) sample a part, too: of their
        rows, watch is told "finish" alone.
        """
        ids = [self.format.prompt(self.tokenizer, p) if isinstance(p, str) else p for p in prompts]
        own = {number: ids[number] for number in share(range(len(ids)))}
        with merged(self.model):
            rows = workers.sample(self, own, n, seed, tuple(force), watch, stop)
        return gather(rows, n)

    def sample(self, prompts: dict, n: int, seed: int, force, watch=None, stop=None):
        """n trajectories for each of {number: ids}; what they draw depends on the numbers."""
        given = (list(prompts.values()), n, seed, watch, force, list(prompts))
        with self.decoding():
            return Generation(self, *given).run(stop)

    @contextmanager
    def decoding(self):
        """The modes of PyTorch that a generation computes in.

        In inference mode autocast would turn the weights into bf16 at every step, not only once.
        """
        given = (self.model.embed.weight.device, self.config.bf16)
        mode = torch.no_grad() if in_bf16(*given) else torch.inference_mode()
        with mode, autocast(*given):
            yield

    def pick(self, logits: Tensor, u: np.ndarray | None, forced: Tensor | None = None):
        config = self.config
        keeps_all = config.top_p == 1.0 and not config.top_k
        if config.temperature and keeps_all and decodes_on(logits.device):
            return fused_pick(logits, u, config.temperature, self.banned_tensor, forced)
        return pick(logits, u, self.config, self.banned_tensor, forced)


def pick(
    logits: Tensor, u: np.ndarray | None, config: SamplerConfig, banned: Tensor, forced=None
) -> tuple[Tensor, Tensor]:
    """Next ids (B,) and their log-probs (B,) from logits (B, V) and one uniform a row.

    Drawn, or `forced` (B,) where that is not -1. The log-prob is the softmax's at this temperature
    over all ids that are not banned, as a trainer computes it. top_p and top_k narrow the choice
    but do not renormalise it. ValueError if a row's log-probs are not numbers.
    """
    logits = logits.float().index_fill(-1, banned, float("-inf"))
    logps = (logits / (config.temperature or 1.0)).log_softmax(-1)
    if config.temperature == 0:
        ids = logps.max(-1).indices  # on a CPU in a third of the time of argmax
    else:
        probs = truncate(precise(logps.exp()), config.top_p, config.top_k)
        ids = draw(probs, u).to(logits.device)
    if forced is not None:
        ids = torch.where(forced >= 0, forced, ids)
    if logps[:, 0].isnan().any():  # then so are all of the row
        raise ValueError(DAMAGED)
    return ids, logps.gather(-1, ids[:, None])[:, 0]
