"""Training measured on fixed shapes with random weights, as a share of what the processor can do.

Shares are of processor time, so they may be measured on a busy machine. `share_of_gemm_rate` is
relative to the rate of a product of large square matrices. `share_of_products` is the part of a
step's time that its own products, of smaller matrices, take when they are computed alone.

T   4 layers, width 128, 4 query and 2 key heads, feed-forward 512, vocabulary 512
S   6, 384, 6 and 2, 1536, 4096
SmolLM2-135M   30, 576, 9 and 3, 1536, 49152
"""

from __future__ import annotations

import copy
import random
import time

import torch
import torch.nn.functional as F

from nanotir import optim, rl, sft
from nanotir.advantages import group_advantages
from nanotir.bench.decoding import Sleeper
from nanotir.bench.policy import Policy
from nanotir.bench.timing import medians, precisions, timed
from nanotir.demonstrate import corpus
from nanotir.model import ModelConfig, Transformer
from nanotir.rl import drawing_of
from nanotir.sampler import Sampler, SamplerConfig
from nanotir.tokenizer import Tokenizer
from nanotir.tools import TOOLS, Tool
from nanotir.trajectory import Trajectory

PLAIN = {"token_shifts": 0, "qk_norm": False}
QWEN = PLAIN | {"qkv_bias": True}
SHAPES = {
    "T": {"n_layers": 4, "d_model": 128, "n_heads": 4, "n_kv_heads": 2, "d_ff": 512} | QWEN,
    "S": {"n_layers": 6, "d_model": 384, "n_heads": 6, "n_kv_heads": 2, "d_ff": 1536} | QWEN,
    "SmolLM2": {"n_layers": 30, "d_model": 576, "n_heads": 9, "n_kv_heads": 3, "d_ff": 1536}
    | PLAIN,
}
NEW_IDS = 115  # of an answer in `rl_step_of_t`


def shape(name: str, vocab_size: int) -> Transformer:
    return Transformer(ModelConfig(vocab_size=vocab_size, **SHAPES[name]))


def endless(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer whose answers never end early: the ids that would end them are never drawn."""
    made = copy.copy(tokenizer)
    made.end_ids = set()
    return made


def gemm_rate(dtype=torch.float32, size: int = 1024) -> float:
    """Floating-point operations a second in a product of square matrices: the best of ten."""
    x, w = torch.randn(2, size, size, dtype=dtype)
    return 2 * size**3 / min(busy(F.linear, x, w)[0] for _ in range(10))


def busy(function, *arguments) -> tuple:
    """(seconds of processor time of one call, its result)."""
    start = time.process_time()
    result = function(*arguments)
    return time.process_time() - start, result


def matrices(model: Transformer) -> list[torch.Tensor]:
    """The weights (N, K) that hidden states are multiplied by."""
    named = model.named_parameters()
    return [w for name, w in named if w.dim() == 2 and "embed" not in name] + [model.head.weight]


def operations(model: Transformer, ids: int) -> float:
    """Of training on so many ids: 6 for each weight of a matrix product. Attention is left out.

    All ids are counted as if they were learned. Of those that are not, the last feed-forward layer
    and the head compute nothing, so this is 4% too much for `rl_step_of_t`.
    """
    return 6.0 * ids * sum(w.numel() for w in matrices(model))


@torch.no_grad()
def products(model: Transformer, ids: int, dtype=torch.float32) -> float:
    """Processor time that the products counted by `operations` take alone.

    It is measured with 2,048 ids at a time, the best of three.
    """

    def once(weight) -> float:
        w = weight.to(dtype)
        x, g = (torch.randn(2048, width, dtype=dtype) for width in reversed(w.shape))
        return sum(busy(torch.mm, *given)[0] for given in ((x, w.T), (g, w), (g.T, x)))

    return ids / 2048 * min(sum(map(once, matrices(model))) for _ in range(3))


def rows_of(n: int, length: int, vocab_size: int) -> list[Trajectory]:
    """Rows of random ids, of which all but the first are learned."""
    rng = random.Random(0)
    rows = []
    for _ in range(n):
        row = Trajectory()
        ids = [rng.randrange(vocab_size) for _ in range(length)]
        row.append("prompt", ids[:1], 0)
        row.append("text", ids[1:], 1)
        rows.append(row)
    return rows


def imitation(model: Transformer, rows: list[Trajectory], bf16: bool, rounds: int) -> dict:
    """One step with AdamW, in micro-batches of 2,048 ids."""
    config = sft.SFTConfig(bf16=bf16, micro_batch_tokens=2048)
    optimizers = [optim.adamw(model.parameters(), 0.0)]  # the weights stay
    ids = sum(len(row.ids) - 1 for row in rows)
    dtype = torch.bfloat16 if bf16 else torch.float32

    def measure(number):
        rate, alone = gemm_rate(dtype), products(model, ids, dtype)
        cpu, (seconds, _) = busy(timed, sft.imitate, model, optimizers, rows, 0, config)
        speed = {"seconds": seconds, "cpu_seconds": cpu, "ids_per_cpu_second": ids / cpu}
        share = operations(model, ids) / cpu / rate
        return speed | {"share_of_gemm_rate": share, "share_of_products": alone / cpu}

    return medians(measure, rounds)


def imitation_of_s(policy) -> dict:
    """Imitation of 8 rows of 256 ids by shape S, in fp32 and, where it can be measured, in bf16."""
    model, rows = shape("S", 4096), rows_of(8, 256, 4096)
    fp32, *others = (imitation(model, rows, bf16, 5) for bf16 in precisions())
    for bf16 in others:
        named = {f"{name}_bf16": value for name, value in bf16.items()}
        fp32 |= named | {"bf16_speedup": fp32["cpu_seconds"] / bf16["cpu_seconds"]}
    return fp32


def imitation_of_smollm2(policy) -> dict:
    """Imitation of 8 rows of 128 ids by SmolLM2-135M's shape, in bf16."""
    if True not in precisions():
        return {"skipped": "needs a processor with instructions for bf16"}
    return imitation(shape("SmolLM2", 49152), rows_of(8, 128, 49152), True, 3)


def rl_step_of_t(policy: Policy) -> dict:
    """One RL step of shape T: 32 prompts, 8 answers each of 115 ids, one update.

    Without tools, and with a tool that takes 50 ms, which every answer begins by calling.
    """
    tokenizer = Tokenizer.train(corpus(policy.problems), 512, tools=TOOLS)
    model = shape("T", len(tokenizer))
    questions = policy.questions(32)
    call = tuple(tokenizer.encode("<python>1</python>"))
    with Sleeper(0.05) as tool:
        step = {(): rl_step(model, tokenizer, []), call: rl_step(model, tokenizer, [tool])}

        def measure(number):
            alone = step[()](questions, number, ())
            called = step[call](questions, number, call)
            return alone | {f"{name}_with_tool": value for name, value in called.items()}

        return medians(measure, 3)


def rl_step(model: Transformer, tokenizer: Tokenizer, tools: list[Tool], **sampler):
    """A function that makes one step and measures it. `sampler` are settings of that."""
    config = SamplerConfig(max_new_tokens=NEW_IDS, **sampler)
    sampler = Sampler(model, endless(tokenizer), tools, config=config)
    optimizer, settings = optim.adamw(model.parameters(), 0.0), rl.RLConfig()
    advantages = group_advantages([float(i % 2) for i in range(256)], 8)

    def step(questions, number, force) -> dict:
        given = (sampler.generate, questions, 8, number, None, None, force)
        cpu_rollout, (rollout, rows) = busy(timed, *given)
        given = (rl.update, model, optimizer, rows, advantages, settings, drawing_of(sampler))
        cpu_update, (update, _) = busy(timed, *given)
        ids = sum(len(row.ids) - 1 for row in rows)
        return {
            "seconds": rollout + update,
            "rollout": rollout,
            "update": update,
            "cpu_seconds": cpu_rollout + cpu_update,
            "update_share_of_gemm_rate": operations(model, ids) / cpu_update / gemm_rate(),
            "update_share_of_products": products(model, ids) / cpu_update,
            "new_ids": sum(row.new_tokens for row in rows) / len(rows),
        }

    return step
