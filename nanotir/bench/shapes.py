"""Measurements of decoding on fixed shapes with random weights. They need no trained policy.

T   4 layers, width 128, 4 query and 2 key heads, feed-forward 512, vocabulary 512
S   6, 384, 6 and 2, 1536, 4096
"""

from __future__ import annotations

import copy
import time

from nanotir.bench.decoding import Sleeper, decoding_step
from nanotir.bench.policy import Policy
from nanotir.bench.timing import medians, precisions, timed
from nanotir.model import ModelConfig, Transformer
from nanotir.sampler import Sampler, SamplerConfig
from nanotir.tokenizer import Tokenizer

T = {"n_layers": 4, "d_model": 128, "n_heads": 4, "d_ff": 512, "vocab_size": 512}
S = {"n_layers": 6, "d_model": 384, "n_heads": 6, "d_ff": 1536, "vocab_size": 4096}
ENDS = range(100, 110)  # ids, each of which ends an answer of `ragged_case`
PLAIN = {"n_kv_heads": 2, "token_shifts": 0, "qkv_bias": True, "qk_norm": False}


def model_of(sizes: dict, **settings) -> Transformer:
    return Transformer(ModelConfig(max_seq_len=4096, **sizes, **PLAIN, **settings))


def decode_shapes(policy: Policy) -> dict:
    """Ids that are decoded in a second of processor time, greedily, from position 64 on.

    And how many times as long a step takes from position 2,048 on.
    """

    def step(sizes: dict, rows: int, start: int = 64, **settings) -> dict:
        config = SamplerConfig(temperature=0, **settings)
        sampler = Sampler(model_of(sizes), policy.tokenizer, config=config)
        return decoding_step(sampler, rows, start)

    def ids_a_second(*case, **settings) -> float:
        return 1000 * case[1] / step(*case, **settings)["cpu_ms"]

    figures = {f"ids_T_{rows}_rows": ids_a_second(T, rows) for rows in (1, 64, 256)}
    for bf16 in precisions():
        figures[f"ids_S_64_rows{'_bf16' * bf16}"] = ids_a_second(S, 64, bf16=bf16)
    figures["growth_64_to_2048"] = step(T, 1, 2048)["cpu_ms"] / step(T, 1)["cpu_ms"]
    return figures


def ragged_case(tokenizer: Tokenizer) -> tuple[Transformer, Tokenizer, list[list[int]]]:
    """(model, tokenizer, 32 prompts): about one id in fifty ends an answer, so lengths differ."""
    tokenizer = copy.copy(tokenizer)
    tokenizer.end_ids = set(ENDS)
    model = model_of(T, tie_embeddings=False)  # it finds all ids about equally likely
    return model, tokenizer, [[first, *range(200, 231)] for first in range(20, 52)]


def ragged_rollout(policy: Policy) -> dict:
    """32 prompts x 8 answers by shape T: how many ids a second, of processor time and by the clock.

    Alone, and with a tool that takes 50 ms, which every answer begins by calling.
    """
    model, tokenizer, prompts = ragged_case(policy.tokenizer)
    call = tuple(tokenizer.encode("<python>1</python>"))

    def rollout(number: int, tools: list, force: tuple) -> dict:
        sampler = Sampler(model, tokenizer, tools, config=SamplerConfig(max_rows=128))
        busy = time.process_time()
        seconds, rows = timed(sampler.generate, prompts, 8, number, None, None, force)
        busy = time.process_time() - busy
        ids = sum(row.new_tokens for row in rows)
        return {"ids": ids, "ids_per_cpu_second": ids / busy, "ids_per_second": ids / seconds}

    def measure(number: int) -> dict:
        with Sleeper(0.05) as tool:
            called = rollout(number, [tool], call)
        return rollout(number, [], ()) | {f"{name}_with_tool": n for name, n in called.items()}

    return medians(measure, 5)
