"""Measurements of decoding on a GPU, with random weights. No trained policy is needed.

LARGE   12 layers, width 768, 12 query and 4 key heads, feed-forward 3072, vocabulary 4096: the
        model of `--preset gpu`, 107M weights
QWEN    24, 896, 14 and 2, 4864, 151,936: the shape of Qwen2.5-0.5B
"""

from __future__ import annotations

import copy
import random

import torch
from torch.profiler import ProfilerActivity, profile

from nanotir.bench.fused import milliseconds
from nanotir.bench.timing import timed
from nanotir.cache import new_cache
from nanotir.graphs import decoder
from nanotir.model import ModelConfig, Transformer
from nanotir.sampler import Sampler, SamplerConfig

LARGE = {"n_layers": 12, "d_model": 768, "n_heads": 12, "n_kv_heads": 4, "d_ff": 3072}
LARGE |= {"vocab_size": 4096}
QWEN = {"n_layers": 24, "d_model": 896, "n_heads": 14, "n_kv_heads": 2, "d_ff": 4864}
QWEN |= {"vocab_size": 151936, "token_shifts": 0, "qkv_bias": True, "qk_norm": False}


def decode_on_a_gpu(policy) -> dict:
    """Steps and rollouts in bf16: of LARGE with 256 rows, and of QWEN with ragged rows."""
    if not torch.cuda.is_available():
        return {"skipped": "needs a GPU"}
    torch.backends.cuda.enable_cudnn_sdp(False)
    about = {"device": torch.cuda.get_device_name()}
    step = one_step(policy.tokenizer, LARGE)
    equal = {f"equal_rows_of_64_{dtype}": same_ids(policy.tokenizer, dtype) for dtype in DTYPES}
    return about | step | equal | ragged_rows(policy.tokenizer, QWEN)


DTYPES = {"fp32": False, "bf16": True}


def sampler_of(tokenizer, shape: dict, max_seq_len: int = 1024, **settings) -> Sampler:
    """A sampler of a random model, whose rows end only when they are full."""
    model = Transformer(ModelConfig(max_seq_len=max_seq_len, tie_embeddings=False, **shape))
    endless = copy.copy(tokenizer)
    endless.end_ids, endless.ids = set(), set(range(shape["vocab_size"]))
    return Sampler(model.to("cuda"), endless, config=SamplerConfig(**settings))


def one_step(tokenizer, shape: dict, rows: int = 256, position: int = 200) -> dict:
    """A step at `position`: milliseconds with the draw and without, kernels, and the bound.

    The bound is the time in which the weights and the rows' keys and values can be read once, at
    the bandwidth of a large copy.
    """
    sampler = sampler_of(tokenizer, shape, bf16=True)
    model, vocabulary = sampler.model, shape["vocab_size"]
    with sampler.decoding():
        cache = new_cache(model, rows, position + 64)
        model.hidden(torch.randint(vocabulary, (rows, position), device="cuda"), cache=cache)
        step = decoder(model, cache, True)
        given = ([0] * rows, [position] * rows)

        def with_draw():
            return sampler.pick(step(*given)[:, -1], [0.5] * rows)[0].tolist()

        figures = {
            "step_ms": milliseconds(with_draw),
            "step_without_draw_ms": milliseconds(step, *given),
        }
        kernels, busy_ms = kernels_of(step, *given)
    read = 2 * sum(weight.numel() for weight in model.parameters())
    read += cache.kv[..., :position, :].nbytes
    bound = 1000 * read / bandwidth()
    return figures | {
        "step_kernels": kernels,
        "step_kernels_ms": busy_ms,
        "step_bound_ms": bound,
        "share_of_bound": bound / figures["step_ms"],
    }


def kernels_of(function, *arguments) -> tuple[int, float]:
    """(how many kernels a call runs, their milliseconds)."""
    function(*arguments)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        function(*arguments)
        torch.cuda.synchronize()
    kernels = [event for event in seen.key_averages() if event.self_device_time_total]
    times = sum(event.self_device_time_total for event in kernels)
    return sum(event.count for event in kernels), times / 1000


def bandwidth(size: int = 2**31) -> float:
    """Bytes a second that a copy on the GPU reads and writes."""
    source, target = torch.empty(2, size, dtype=torch.uint8, device="cuda")
    return 1000 * 2 * size / milliseconds(target.copy_, source)


def same_ids(tokenizer, dtype: str, rows: int = 64) -> int:
    """How many of 64 rows have the same ids with graphs and without. All rows end together."""
    bf16 = DTYPES[dtype]
    found = []
    for graphs in (True, False):
        sampler = sampler_of(tokenizer, LARGE, bf16=bf16, graphs=graphs, max_new_tokens=64)
        found.append(sampler.generate(prompts_of(rows, 16, 64, LARGE["vocab_size"])))
    return sum(row.ids == other.ids for row, other in zip(*found))


def prompts_of(n: int, shortest: int, longest: int, vocabulary: int) -> list[list[int]]:
    rng = random.Random(0)
    lengths = [rng.randint(shortest, longest) for _ in range(n)]
    return [[rng.randrange(vocabulary) for _ in range(length)] for length in lengths]


def ragged_rows(tokenizer, shape: dict) -> dict:
    """256 prompts of 100 to 1,024 ids, each continued to 1,124 ids: ids a second, prompts included.

    So answers have 100 to 1,024 ids as well. The second of two rollouts counts.
    """
    sampler = sampler_of(tokenizer, shape, 1124, bf16=True, max_new_tokens=1024)
    prompts = prompts_of(256, 100, 1024, shape["vocab_size"])
    sampler.generate(prompts)
    torch.cuda.reset_peak_memory_stats()
    seconds, rows = timed(sampler.generate, prompts)
    ids = sum(row.new_tokens for row in rows)
    figures = {"ragged_ids": ids, "ragged_seconds": seconds, "ragged_ids_per_second": ids / seconds}
    return figures | {"ragged_peak_gb": torch.cuda.max_memory_allocated() / 1e9}
