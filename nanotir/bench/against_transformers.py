"""Decoding and imitation beside transformers: the same weights, in rounds that take turns.

It is not among the project's packages: pip install transformers. Processor time on one thread.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import Tensor

from nanotir import optim, sft
from nanotir.bench.policy import Policy
from nanotir.bench.shapes import ENDS, ragged_case
from nanotir.bench.timing import precisions
from nanotir.bench.yardsticks import busy, endless, rows_of, shape
from nanotir.huggingface import save_pretrained
from nanotir.model import Transformer
from nanotir.sampler import Sampler, SamplerConfig
from nanotir.tokenizer import Tokenizer

ROUNDS = 5
PROMPT = 32  # ids
RATIOS = (("peer", "ours"), ("peer", "ours_compiled"), ("peer_compiled", "ours_compiled"))


def against_transformers(policy: Policy) -> dict:
    """Greedy decoding and imitation by shapes T and S; what both compute is compared as well."""
    if not importlib.util.find_spec("transformers"):
        return {"skipped": "needs transformers"}
    small, large, words = shape("T", 512), shape("S", 4096), policy.tokenizer
    figures = {"logits_differ_by": max(difference(model, words) for model in (small, large))}
    for rows, new in ((1, 64), (64, 64), (256, 32)):
        figures |= named(f"decode_T_{rows}", decoding(small, words, rows, new))
    for bf16 in precisions():
        figures |= named(f"decode_S_64{'_bf16' * bf16}", decoding(large, words, 64, 64, bf16))
    figures |= named("ragged_T_per_id", ragged(words))
    for bf16 in precisions():
        figures |= named(f"imitation_S{'_bf16' * bf16}", imitation(large, words, bf16))
    return figures


def named(name: str, rounds: Iterator[dict]) -> dict:
    """The medians of everybody's seconds, and of their RATIOS with the lowest and the highest."""
    next(rounds)  # a warm-up
    seen = [next(rounds) for _ in range(ROUNDS)]
    figures = {f"{name}_{who}": statistics.median(row[who] for row in seen) for who in seen[0]}
    for slow, fast in RATIOS:
        if slow in seen[0] and fast in seen[0]:
            ratios = [row[slow] / row[fast] for row in seen]
            spread = [round(f(ratios), 3) for f in (statistics.median, min, max)]
            figures[f"{name}_{slow}_by_{fast}"] = spread
    return figures


def twin(model: Transformer, tokenizer: Tokenizer) -> tuple:
    """The same model and tokenizer in transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with TemporaryDirectory() as folder:
        save_pretrained(model, tokenizer, folder)
        read = (AutoModelForCausalLM, AutoTokenizer)
        return tuple(kind.from_pretrained(folder) for kind in read)


@torch.no_grad()
def difference(model: Transformer, tokenizer: Tokenizer) -> float:
    """The largest difference of two logits."""
    ids = torch.randint(model.config.vocab_size, (8, PROMPT))
    return (model(ids) - twin(model, tokenizer)[0](ids).logits).abs().max().item()


def decoding(
    model: Transformer, tokenizer: Tokenizer, rows: int, new: int, bf16: bool = False
) -> Iterator[dict]:
    """Seconds of `new` ids beyond the first, greedily, by both; `bf16` is ours alone.

    In fp32 compiled as well. The prompts differ, and no row ends early.
    """
    ids = torch.randint(model.config.vocab_size, (rows, PROMPT))

    def ours(compiled: bool) -> Callable[[int], float]:
        def write(n: int) -> float:
            own = SamplerConfig(
                temperature=0, max_new_tokens=n, max_rows=rows, bf16=bf16, compiled=compiled
            )
            sampler = Sampler(model, endless(tokenizer), config=own)
            seconds, answers = busy(sampler.generate, ids.tolist())
            assert all(row.new_tokens == n for row in answers)
            return seconds

        return write

    def theirs(compiled: bool) -> Callable[[int], float]:
        peer = twin(model, tokenizer)[0].eval()
        given = {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
        if compiled:
            peer.forward = torch.compile(peer.forward, dynamic=True)
            given["cache_implementation"] = "static"

        def write(n: int) -> float:
            own = given | {"max_new_tokens": n, "min_new_tokens": n}
            seconds, answers = busy(partial(peer.generate, ids, **own))
            assert answers.shape[1] == PROMPT + n
            return seconds

        return write

    writers = {"ours": ours(False), "peer": theirs(False)}
    if not bf16:
        writers |= {"ours_compiled": ours(True), "peer_compiled": theirs(True)}
    while True:
        yield {who: write(new) - write(1) for who, write in writers.items()}


def ragged(tokenizer: Tokenizer) -> Iterator[dict]:
    """Seconds an id, of those up to an answer's end: 32 prompts x 8 answers of up to 128 ids."""
    model, tokenizer, prompts = ragged_case(tokenizer)
    peer = twin(model, tokenizer)[0].eval()
    ids = torch.tensor(prompts).repeat_interleave(8, 0)  # (256, 32)
    drawn = {"do_sample": True, "top_k": 0, "max_new_tokens": 128, "eos_token_id": list(ENDS)}
    drawn |= {"pad_token_id": tokenizer.pad_id, "attention_mask": torch.ones_like(ids)}

    def ours(number: int, compiled: bool) -> float:
        config = SamplerConfig(max_rows=128, compiled=compiled)
        sampler = Sampler(model, tokenizer, config=config)
        seconds, rows = busy(sampler.generate, prompts, 8, number)
        return seconds / sum(row.new_tokens for row in rows)

    def theirs() -> float:
        seconds, rows = busy(partial(peer.generate, ids, **drawn))
        is_end = torch.isin(rows[:, PROMPT:], torch.tensor(ENDS)).long()
        before_end = is_end.cumsum(1) - is_end == 0  # the end included
        return seconds / before_end.sum().item()

    for number in count():
        own = {"ours": ours(number, False), "ours_compiled": ours(number, True)}
        yield own | {"peer": theirs()}


def imitation(model: Transformer, tokenizer: Tokenizer, bf16: bool) -> Iterator[dict]:
    """Seconds of one step with AdamW on 8 rows of 256 ids, by both."""
    peer, rows = twin(model, tokenizer)[0].train(), rows_of(8, 256, 4096)
    config = sft.SFTConfig(bf16=bf16, micro_batch_tokens=2048)
    own, other = (optim.adamw(m.parameters(), 0.0) for m in (model, peer))
    ids = torch.tensor([row.ids for row in rows])
    while True:
        ours, _ = busy(sft.imitate, model, [own], rows, 0, config)
        yield {"ours": ours, "peer": busy(peer_step, peer, other, ids, bf16)[0]}


def peer_step(peer, optimizer: torch.optim.Optimizer, ids: Tensor, bf16: bool):
    """As transformers' Trainer makes it: loss, backward, clipping, step."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = peer(ids[:, :-1]).logits
    F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten()).backward()
    torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
