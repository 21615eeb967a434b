import math

import pytest
import torch
import torch.nn.functional as F
from conftest import small_model

from nanotir.model import KVCache, ModelConfig, RMSNorm, Transformer, attend, rope_angles, rotate

V = 50
VARIANTS = [
    {},
    {"qkv_bias": True, "qk_norm": False},
    {"tie_embeddings": False, "n_kv_heads": 1},
    {"n_kv_heads": 4, "d_head": 16},
    {"n_layers": 3, "rope_theta": 1e6},
]
assert_close = lambda a, b: torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def ids_of(*shape, seed=0):
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("settings", VARIANTS)
@torch.no_grad()
def test_prefill_then_decode_equals_a_full_forward(settings):
    model, ids = small_model(V, **settings), ids_of(3, 20)
    cache = KVCache(model.config, 3, 20)
    logits = [model(ids[:, :12], cache=cache)] + [
        model(ids[:, t : t + 1], cache=cache) for t in range(12, 20)
    ]
    assert_close(torch.cat(logits, 1), model(ids))


@torch.no_grad()
def test_chunked_append_equals_a_full_forward():
    model, ids = small_model(V), ids_of(2, 21)
    cache = KVCache(model.config, 2, 30)
    logits = [model(ids[:, a:b], cache=cache) for a, b in ((0, 5), (5, 6), (6, 13), (13, 21))]
    assert_close(torch.cat(logits, 1), model(ids))


@torch.no_grad()
def test_ragged_rows_equal_each_row_alone():
    model, lengths = small_model(V), [3, 11, 7]
    cache, rows = KVCache(model.config, 3, 24), [ids_of(1, n + 6, seed=n) for n in lengths]
    ids, positions = torch.zeros(3, 11, dtype=torch.long), torch.full((3, 11), -1)
    for i, n in enumerate(lengths):
        ids[i, :n], positions[i, :n] = rows[i][0, :n], torch.arange(n)
    prefilled = model(ids, positions, cache)
    assert cache.lengths.tolist() == lengths
    for i, n in enumerate(lengths):
        assert_close(prefilled[i, :n], model(rows[i][:, :n])[0])
    steps = [
        model(
            torch.stack([rows[i][0, n + t : n + t + 1] for i, n in enumerate(lengths)]), cache=cache
        )
        for t in range(6)
    ]
    for i, n in enumerate(lengths):
        assert_close(torch.cat(steps, 1)[i], model(rows[i])[0, n:])


@torch.no_grad()
def test_rows_of_a_step_may_append_chunks_of_different_length():
    model, ids = small_model(V), ids_of(2, 12)
    cache = KVCache(model.config, 2, 12)
    model(ids[:, :4], cache=cache)
    chunk, positions = ids[:, 4:9].clone(), torch.arange(4, 9).repeat(2, 1)
    positions[1, 2:], chunk[1, 2:] = -1, 0  # the second row gets two ids, the first five
    logits = model(chunk, positions, cache)
    assert_close(logits[0], model(ids)[0, 4:9])
    assert_close(logits[1, :2], model(ids)[1, 4:6])
    assert_close(model(ids[1:, 6:7], torch.tensor([[6]]), cache.take([1]))[0, 0], model(ids)[1, 6])


@torch.no_grad()
def test_a_slot_forgets_the_row_that_sat_in_it_before():
    model, long, short = small_model(V), ids_of(1, 20, seed=1), ids_of(1, 6, seed=2)
    cache = KVCache(model.config, 2, 20)
    model(long.repeat(2, 1), cache=cache)
    fresh = KVCache(model.config, 1, 6)
    model(short[:, :5], cache=fresh)
    cache.put([1], fresh)
    assert cache.lengths.tolist() == [20, 5]
    assert_close(
        model(short[:, 5:], torch.tensor([[5]]), cache.take([1]))[0, 0], model(short)[0, 5]
    )


@torch.no_grad()
def test_take_repeats_rows_and_first_is_a_view():
    model, ids = small_model(V), ids_of(2, 5)
    cache = KVCache(model.config, 2, 8)
    model(ids[:, :4], cache=cache)
    twice = cache.take([1, 1])
    assert_close(model(ids[[1, 1], 4:], cache=twice)[:, 0], model(ids[[1, 1]])[:, 4])
    model(ids[:1, 4:], cache=cache.first(1))
    assert cache.lengths.tolist() == [5, 4]


@torch.no_grad()
def test_a_row_can_be_taken_without_its_empty_end_extended_and_put_back():
    model, ids = small_model(V), ids_of(2, 9)
    cache = KVCache(model.config, 2, 20)
    model(ids[:, :4], cache=cache)
    short = cache.take([1], capacity=8)
    padded = torch.cat([ids[1:, 4:8], torch.zeros(1, 1, dtype=torch.long)], 1)
    model(padded, torch.tensor([[4, 5, 6, 7, -1]]), short)
    cache.put([1], short)
    assert short.capacity == 8 and cache.lengths.tolist() == [4, 8]
    assert_close(model(ids[1:, 8:], torch.tensor([[8]]), cache.take([1]))[0, 0], model(ids)[1, 8])


@torch.no_grad()
def test_no_logit_depends_on_a_later_id():
    model, ids = small_model(V), ids_of(1, 10)
    changed = ids.clone()
    changed[0, 6:] = (changed[0, 6:] + 1) % V
    assert torch.equal(model(ids)[0, :6], model(changed)[0, :6])
    assert not torch.equal(model(ids)[0, 6], model(changed)[0, 6])


@pytest.mark.parametrize("settings", [{}, {"n_layers": 1}, {"n_experts": 4}])
def test_states_of_the_wanted_positions_alone_and_their_gradients_are_those_of_the_whole_rows(
    settings,
):
    model, ids = small_model(V, **settings), ids_of(3, 10)
    wanted = torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    whole, alone = model.hidden(ids)[wanted], model.hidden(ids, wanted=wanted)
    assert alone.shape == (1, *whole.shape)
    assert_close(alone[0], whole)
    gradients = [
        torch.autograd.grad(states.square().sum(), list(model.blocks.parameters()))
        for states in (whole, alone)
    ]
    for one, other in zip(*gradients):
        assert_close(one, other)


@torch.no_grad()
def test_only_distances_between_positions_matter():
    model, ids = small_model(V), ids_of(1, 8)
    assert_close(model(ids, positions=torch.arange(8)[None] + 100), model(ids))
    stretched = model(ids, positions=2 * torch.arange(8)[None])
    assert (stretched - model(ids)).abs().max() > 1e-2


def test_attention_equals_its_formula_with_key_heads_repeated():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 7, heads, 6, generator=generator) for heads in (4, 2, 2))
    causal = torch.ones(7, 7, dtype=torch.bool).tril()
    scores = torch.einsum("bthd,bshd->bhts", q, k.repeat_interleave(2, 2)) / math.sqrt(6)
    weights = scores.masked_fill(~causal, float("-inf")).softmax(-1)
    expected = torch.einsum("bhts,bshd->bthd", weights, v.repeat_interleave(2, 2))
    assert_close(attend(q, k, v, None), expected)
    assert_close(attend(q, k, v, causal[None, None].expand(2, 1, 7, 7)), expected)


def test_attention_takes_rows_however_its_kernel_lays_them_out(monkeypatch):
    """A GPU's kernels put (B, H, T, D) into memory as (B, T, H, D)."""
    q, k, v = torch.randn(2, 3, 4, 8), torch.randn(2, 5, 2, 8), torch.randn(2, 5, 2, 8)
    mask, plain = torch.ones(2, 1, 3, 5, dtype=torch.bool), F.scaled_dot_product_attention
    expected = attend(q, k, v, mask)
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda *arguments, **options: (
            plain(*arguments, **options).transpose(1, 2).contiguous().transpose(1, 2)
        ),
    )
    assert torch.equal(attend(q, k, v, mask), expected)


def test_rope_turns_pairs_and_keeps_lengths():
    x = torch.randn(1, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    cos, sin = rope_angles(torch.arange(3)[None], 4, 100.0)
    turned = rotate(x, cos, sin)
    assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert_close(turned[:, 0], x[:, 0])
    a, b = (
        x[0, 2, 0, 1],
        x[0, 2, 0, 3],
    )  # the second pair of position 2 turns by 2 * 100^(-2/4) = 0.2
    assert_close(turned[0, 2, 0, 1], a * math.cos(0.2) - b * math.sin(0.2))
    assert_close(turned[0, 2, 0, 3], b * math.cos(0.2) + a * math.sin(0.2))


def test_rms_norm_equals_its_formula():
    norm = RMSNorm(3, 1e-6)
    norm.weight.data = torch.tensor([1.0, 2.0, 3.0])
    x = torch.tensor([[3.0, 4.0, 0.0]])
    assert_close(norm(x), x / math.sqrt(25 / 3) * norm.weight)


def test_tied_embeddings_are_one_parameter():
    tied, untied = small_model(V), small_model(V, tie_embeddings=False)
    assert tied.head.weight is tied.embed.weight
    assert (
        sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in tied.parameters())
        == V * 32
    )


def test_the_default_model_has_about_a_million_parameters():
    assert 0.8e6 < sum(p.numel() for p in Transformer(ModelConfig()).parameters()) < 1.3e6


def test_the_same_config_gives_the_same_weights():
    torch.manual_seed(1)
    first = Transformer(ModelConfig(vocab_size=V))
    torch.manual_seed(2)
    second = Transformer(ModelConfig(vocab_size=V))
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values())
    )


@pytest.mark.parametrize(
    "settings, word",
    [({"n_heads": 3}, "n_kv_heads"), ({"d_model": 130}, "d_model"), ({"d_head": 7}, "even")],
)
def test_an_impossible_shape_is_named(settings, word):
    with pytest.raises(ValueError, match=word):
        ModelConfig(**settings)
