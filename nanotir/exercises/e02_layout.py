"""Exercise 2: where a chunk of ids stands, and what it may read."""

from __future__ import annotations

import torch
from torch import Tensor

from nanotir.exercises.exercise import Case, Exercise, Mistake
from nanotir.exercises.stub import plugged
from nanotir.model import KVCache, ModelConfig, Transformer

SIZES = {"vocab_size": 32, "n_layers": 2, "d_model": 16, "n_heads": 2, "d_ff": 16}
SIZES |= {"n_kv_heads": 1, "rope_theta": 100.0}


def cases(seed: int) -> list[Case]:
    generator = torch.Generator().manual_seed(seed)

    def numbers(*shape: int, low: int = 0, high: int = 32) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    stretched = {"rope_factor": 4.0, "rope_original_len": 16}
    behind = torch.tensor([[3, 4, 5, -1], [7, 8, -1, -1], [0, 1, 2, 3]])  # of rows of 3, 7 and 0
    return [
        Case("whole rows, no cache", (numbers(2, 5), None), {}, placed),
        Case("a prompt in an empty cache", (numbers(2, 6), [0, 0]), {}, placed),
        Case("one id behind rows of equal length", (numbers(2, 1), [5, 5]), {}, placed),
        Case(
            "a chunk behind rows of different lengths",
            (numbers(3, 4), numbers(3, low=1, high=9).tolist()),
            {},
            placed,
        ),
        Case("a chunk behind rows that are not begun", (numbers(3, 4), [0, 7, 3]), {}, placed),
        Case("given positions, -1 for padding", (numbers(3, 4), [3, 7, 0], behind), {}, placed),
        Case(
            "given positions, no cache",
            (numbers(2, 3), None, numbers(2, 3, high=20)),
            {},
            placed,
        ),
        Case("slots whose number is fixed", (numbers(2, 3), [4, 1]), {"width": 11}, placed),
        Case("a cache in bfloat16", (numbers(2, 3), [4, 1]), {"dtype": torch.bfloat16}, placed),
        Case("a stretched rope", (numbers(2, 9), [20, 3]), {"settings": stretched}, placed),
        Case("a row in chunks of 7, 3, 1 and 1", (numbers(1, 12), [7, 3, 1, 1]), {}, in_chunks),
    ]


def placed(
    function, ids, lengths, positions=None, settings=None, width=None, dtype=torch.float32
) -> dict:
    """What is laid out for ids behind rows that hold as many ids as `lengths` says."""
    config = ModelConfig(**SIZES | (settings or {}))
    cache = None
    if lengths is not None:
        cache = KVCache(config, len(lengths), 32 if settings else 12, dtype=dtype)
        cache.lengths.copy_(torch.tensor(lengths))
        cache.width = width
    found = function(ids, positions, cache, config)
    parts = {"positions": found.positions, "bias": found.bias}
    if cache is not None:
        parts |= {"stored ids": cache.ids[:, :-1], "stored lengths": cache.lengths}
    return parts | {
        "rope: cos": found.cos,
        "rope: sin": found.sin,
        "same cache": found.cache is cache,
    }


def in_chunks(function, ids, chunks) -> Tensor:
    """Logits of a row that a small transformer reads in chunks."""
    model = Transformer(ModelConfig(**SIZES, token_shifts=1))
    cache = KVCache(model.config, len(ids), ids.shape[1] + 8)
    with plugged(EXERCISE, function), torch.no_grad():
        logits = [model(chunk, cache=cache) for chunk in ids.split(chunks, 1)]
    return torch.cat(logits, 1)


BEHIND = "cache.lengths[:, None] + steps"
WIDTH = "cache.extend(ids, positions)"
SLOTS = f"slots = torch.arange({WIDTH}, device=ids.device)"
FROM_0 = "torch.arange(ids.shape[1]).expand(ids.shape)"
VISIBLE = "visible = slots <= positions[:, None, :, None]"
EXERCISE = Exercise(
    number=2,
    name="layout_of",
    lab="A",
    target="nanotir.model:layout_of",
    teaches="A tool's result is a chunk behind a cache: its ids stand where the row ends, and each "
    "reads the past up to itself.",
    minutes=30,
    points=30,
    stars=3,
    cases=cases,
    mistakes=(
        Mistake(
            "your positions begin at 0 in every chunk: they go on where the row's cache ends",
            (
                (
                    f"steps.expand(ids.shape) if cache is None else {BEHIND}",
                    "steps.expand(ids.shape)",
                ),
            ),
            bug=True,
        ),
        Mistake(
            "you turn queries and keys by their place in the chunk, not in the row: distances to "
            "the past are wrong",
            (("cache.rope[:, positions]", f"cache.rope[:, {FROM_0}]"),),
            bug=True,
        ),
        Mistake(
            "all rows of a batch go on at the same position, but tools answer them with texts of "
            "different lengths",
            ((BEHIND, "(cache.lengths.max() + steps).expand(ids.shape)"),),
            bug=True,
        ),
        Mistake(
            "your positions are one too high: the next id of a row of n ids stands at n",
            ((BEHIND, f"{BEHIND} + 1"),),
        ),
        Mistake(
            "an id does not see itself: it reads the slots up to its own, that one included",
            ((VISIBLE, VISIBLE.replace("<=", "<")),),
            bug=True,
        ),
        Mistake(
            "an id sees the one after it: where the chunk has it, that is the answer",
            ((VISIBLE, f"{VISIBLE} + 1"),),
        ),
        Mistake(
            "the ids of a chunk see one another's future: only a chunk of one id needs no mask "
            "within it",
            (
                (
                    VISIBLE,
                    VISIBLE.replace("positions", "(0 * positions + positions.amax(1)[:, None])"),
                ),
            ),
            bug=True,
        ),
        Mistake(
            "your mask counts a chunk's ids from 0, as is_causal=True does: right for whole rows, "
            "but behind a cache the ids see too little",
            ((VISIBLE, VISIBLE.replace("positions", FROM_0)),),
            bug=True,
        ),
        Mistake(
            "a chunk reads its own ids alone: the slots are those of the row's whole past",
            ((SLOTS, f"cache.extend(ids, positions)\n    {SLOTS.replace(WIDTH, 'ids.shape[1]')}"),),
        ),
        Mistake(
            "you ignore the positions that are given: chunks of different lengths come padded",
            (("if positions is None:", "if True:"),),
        ),
        Mistake(
            "you do not tell the cache of the new ids (cache.extend): the next chunk lands on them",
            ((WIDTH, "cache.width or int(positions.max()) + 1"),),
        ),
    ),
    hints=(
        "A row has 20 ids in the cache, and a tool's result of 5 ids comes. At which position does "
        "the third of them stand, and which slots may it read?",
        "An id at position p is kept in slot p and reads the slots 0 to p. cache.lengths (B,) says "
        "where each row ends, and cache.extend stores the ids and returns the number of slots.",
        "positions = cache.lengths[:, None] + arange(T); bias[b, 0, t, s] = 0 where "
        "s <= positions[b, t], else -inf, in the dtype of cache.kv; cos, sin = "
        "cache.rope[:, positions]. Without a cache, rope_angles(positions, config), and no bias.",
    ),
    read=("nanotir/model.py:layout_of", "nanotir/cache.py:KVCache", "nanotir/rope.py:rope_angles"),
    look="one comparison, slots <= positions, is the mask of a prompt, of a chunk and of a single "
    "id; padding (-1) reads nothing",
    question="Why do errors in the mask of a chunk often pass unseen as long as no tool is called?",
    answer="A prompt is read into an empty cache, where counting from 0 is right. Then ids come "
    "one by one, and a single id that reads all slots so far needs no mask. Only a tool's result "
    "is a chunk of several ids behind a past, with rows of different lengths beside it.",
)
