"""The transformer: its parts against their formulas, and the cache against whole rows."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import small_model

from nanotir import model as model_module
from nanotir.model import KVCache, ModelConfig, RMSNorm, Transformer, attend, layout_of
from nanotir.rope import rope_angles, rotate
from nanotir.routing import Routing, router_z_loss

V = 50
VARIANTS = [
    {},
    {"qkv_bias": True, "qk_norm": False},
    {"tie_embeddings": False, "n_kv_heads": 1},
    {"n_kv_heads": 4, "d_head": 16},
    {"n_layers": 3, "rope_theta": 1e6},
    {"token_shifts": 0},
    {"token_shifts": 5},
]
ROPE = ModelConfig(d_head=4, rope_theta=100.0)


def assert_close(a, b):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def ids_of(*shape, seed=0):
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# With a cache.


@pytest.mark.parametrize("settings", VARIANTS)
@torch.no_grad()
def test_prefill_then_decode_equals_a_full_forward(settings):
    model = small_model(V, **settings)
    ids = ids_of(3, 20)
    cache = KVCache(model.config, 3, 20)
    logits = [model(ids[:, :12], cache=cache)]
    logits += [model(ids[:, t : t + 1], cache=cache) for t in range(12, 20)]
    assert_close(torch.cat(logits, 1), model(ids))


@torch.no_grad()
def test_chunked_append_equals_a_full_forward():
    model = small_model(V)
    ids = ids_of(2, 21)
    cache = KVCache(model.config, 2, 30)
    logits = [model(ids[:, a:b], cache=cache) for a, b in ((0, 5), (5, 6), (6, 13), (13, 21))]
    assert_close(torch.cat(logits, 1), model(ids))


@torch.no_grad()
def test_ragged_rows_equal_each_row_alone():
    model = small_model(V)
    lengths = [3, 11, 7]
    rows = [ids_of(1, n + 6, seed=n) for n in lengths]
    cache = KVCache(model.config, 3, 24)
    ids = torch.zeros(3, 11, dtype=torch.long)
    positions = torch.full((3, 11), -1)
    for i, n in enumerate(lengths):
        ids[i, :n] = rows[i][0, :n]
        positions[i, :n] = torch.arange(n)
    prefilled = model(ids, positions, cache)
    assert cache.lengths.tolist() == lengths

    steps = []
    for t in range(6):
        following = [row[0, n + t : n + t + 1] for n, row in zip(lengths, rows)]
        steps.append(model(torch.stack(following), cache=cache))
    decoded = torch.cat(steps, 1)
    for i, n in enumerate(lengths):
        assert_close(prefilled[i, :n], model(rows[i][:, :n])[0])
        assert_close(decoded[i], model(rows[i])[0, n:])


@torch.no_grad()
def test_rows_of_a_step_may_append_chunks_of_different_length():
    model = small_model(V)
    ids = ids_of(2, 12)
    cache = KVCache(model.config, 2, 12)
    model(ids[:, :4], cache=cache)
    chunk = ids[:, 4:9].clone()
    positions = torch.arange(4, 9).repeat(2, 1)
    chunk[1, 2:] = 0  # the first row gets five ids, the second two
    positions[1, 2:] = -1
    logits = model(chunk, positions, cache)
    assert_close(logits[0], model(ids)[0, 4:9])
    assert_close(logits[1, :2], model(ids)[1, 4:6])
    last = model(ids[1:, 6:7], torch.tensor([[6]]), cache.take([1]))
    assert_close(last[0, 0], model(ids)[1, 6])


@torch.no_grad()
def test_a_slot_forgets_the_row_that_sat_in_it_before():
    model = small_model(V)
    long, short = ids_of(1, 20, seed=1), ids_of(1, 6, seed=2)
    cache = KVCache(model.config, 2, 20)
    model(long.repeat(2, 1), cache=cache)
    fresh = KVCache(model.config, 1, 6)
    model(short[:, :5], cache=fresh)
    cache.put([1], fresh)
    assert cache.lengths.tolist() == [20, 5]
    last = model(short[:, 5:], torch.tensor([[5]]), cache.take([1]))
    assert_close(last[0, 0], model(short)[0, 5])


@torch.no_grad()
def test_take_repeats_rows_and_copies_them():
    model = small_model(V)
    ids = ids_of(2, 5)
    cache = KVCache(model.config, 2, 8)
    model(ids[:, :4], cache=cache)
    twice = cache.take([1, 1])
    assert_close(model(ids[[1, 1], 4:], cache=twice)[:, 0], model(ids[[1, 1]])[:, 4])
    assert cache.lengths.tolist() == [4, 4]


@torch.no_grad()
def test_the_first_rows_are_a_view():
    model = small_model(V)
    ids = ids_of(2, 5)
    cache = KVCache(model.config, 2, 8)
    model(ids[:, :4], cache=cache)
    model(ids[:1, 4:], cache=cache.first(1))
    assert cache.lengths.tolist() == [5, 4]


@torch.no_grad()
def test_a_row_can_be_taken_without_its_empty_end_extended_and_put_back():
    model = small_model(V)
    ids = ids_of(2, 9)
    cache = KVCache(model.config, 2, 20)
    model(ids[:, :4], cache=cache)
    short = cache.take([1], capacity=8)
    padded = torch.cat([ids[1:, 4:8], torch.zeros(1, 1, dtype=torch.long)], 1)
    model(padded, torch.tensor([[4, 5, 6, 7, -1]]), short)
    cache.put([1], short)
    assert short.capacity == 8 and cache.lengths.tolist() == [4, 8]
    last = model(ids[1:, 8:], torch.tensor([[8]]), cache.take([1]))
    assert_close(last[0, 0], model(ids)[1, 8])


# Whole rows.


@torch.no_grad()
def test_no_logit_depends_on_a_later_id():
    model = small_model(V)
    ids = ids_of(1, 10)
    changed = ids.clone()
    changed[0, 6:] = (changed[0, 6:] + 1) % V
    assert torch.equal(model(ids)[0, :6], model(changed)[0, :6])
    assert not torch.equal(model(ids)[0, 6], model(changed)[0, 6])


@pytest.mark.parametrize("settings", [{}, {"n_layers": 1}, {"n_experts": 4}])
def test_states_of_the_masked_positions_and_their_gradients_are_those_of_the_whole_rows(settings):
    model = small_model(V, **settings)
    ids = ids_of(3, 10)
    mask = torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    whole, alone = model.hidden(ids)[mask], model.hidden(ids, mask=mask)
    assert alone.shape == (1, *whole.shape)
    assert_close(alone[0], whole)
    weights = list(model.blocks.parameters())
    of_whole = torch.autograd.grad(whole.square().sum(), weights)
    of_alone = torch.autograd.grad(alone.square().sum(), weights)
    for one, other in zip(of_whole, of_alone):
        assert_close(one, other)


def test_packed_rows_are_refused_where_attention_does_not_know_where_they_begin():
    model, ids = small_model(V), ids_of(1, 6)
    with torch.inference_mode(), pytest.raises(AssertionError):
        model(ids, positions=torch.tensor([[0, 1, 2, 0, 1, 2]]))


@torch.no_grad()
def test_only_distances_between_positions_matter():
    model = small_model(V)
    ids = ids_of(1, 8)
    positions = torch.arange(8)[None]
    assert_close(model(ids, positions=positions + 100), model(ids))
    assert (model(ids, positions=2 * positions) - model(ids)).abs().max() > 1e-2


# The parts.


def test_an_embedding_hears_of_the_ids_before_it_and_of_no_others():
    model = small_model(V, token_shifts=2)
    ids = ids_of(1, 6)
    x = model.embed.weight[ids[0]]
    first, second = (shift.weight for shift in model.shifts)
    expected = x.clone()
    expected[1:] += x[:-1] @ first.T
    expected[2:] += x[:-2] @ second.T
    assert_close(model.embedded(ids, layout_of(ids, None, None, model.config))[0], expected)


def test_attention_equals_its_formula_with_key_heads_repeated():
    q, k, v = normal(2, 7, 4, 6), normal(2, 7, 2, 6, seed=1), normal(2, 7, 2, 6, seed=2)
    causal = torch.ones(7, 7, dtype=torch.bool).tril()
    scores = torch.einsum("bthd,bshd->bhts", q, k.repeat_interleave(2, 2)) / math.sqrt(6)
    weights = scores.masked_fill(~causal, float("-inf")).softmax(-1)
    expected = torch.einsum("bhts,bshd->bthd", weights, v.repeat_interleave(2, 2))
    assert_close(attend(q, k, v, None), expected)
    assert_close(attend(q, k, v, causal.expand(2, 1, 7, 7)), expected)


def test_attention_takes_rows_however_its_kernel_lays_them_out(monkeypatch):
    """A GPU's kernels put (B, H, T, D) into memory as (B, T, H, D)."""
    q, k, v = normal(2, 3, 4, 8), normal(2, 5, 2, 8, seed=1), normal(2, 5, 2, 8, seed=2)
    mask = torch.ones(2, 1, 3, 5, dtype=torch.bool)
    expected = attend(q, k, v, mask)
    plain = F.scaled_dot_product_attention

    def transposed(*arguments, **options):
        return plain(*arguments, **options).transpose(1, 2).contiguous().transpose(1, 2)

    monkeypatch.setattr(F, "scaled_dot_product_attention", transposed)
    assert torch.equal(attend(q, k, v, mask), expected)


def test_rope_leaves_position_zero_and_all_lengths_as_they_are():
    x = normal(1, 3, 2, 4)
    turned = rotate(x, *rope_angles(torch.arange(3)[None], ROPE))
    assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert_close(turned[:, 0], x[:, 0])


def test_rope_turns_each_pair_by_its_own_angle():
    x = normal(1, 3, 2, 4)
    turned = rotate(x, *rope_angles(torch.arange(3)[None], ROPE))
    # The second pair of position 2 turns by 2 * 100^(-2/4) = 0.2.
    a, b = x[0, 2, 0, 1], x[0, 2, 0, 3]
    assert_close(turned[0, 2, 0, 1], a * math.cos(0.2) - b * math.sin(0.2))
    assert_close(turned[0, 2, 0, 3], b * math.cos(0.2) + a * math.sin(0.2))


def test_rms_norm_equals_its_formula():
    norm = RMSNorm(3, 1e-6)
    norm.weight.data = torch.tensor([1.0, 2.0, 3.0])
    x = torch.tensor([[3.0, 4.0, 0.0]])
    assert_close(norm(x), x / math.sqrt(25 / 3) * norm.weight)


# Parameters.


def size(model) -> int:
    return sum(weight.numel() for weight in model.parameters())


def test_tied_embeddings_are_one_parameter():
    tied, untied = small_model(V), small_model(V, tie_embeddings=False)
    assert tied.head.weight is tied.embed.weight
    assert size(untied) - size(tied) == V * 32


def test_the_default_model_has_about_a_million_parameters():
    assert 0.8e6 < size(Transformer(ModelConfig())) < 1.3e6


def test_the_same_config_gives_the_same_weights_whatever_was_drawn_before():
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(Transformer(ModelConfig(vocab_size=V)).state_dict().values())
    assert all(torch.equal(a, b) for a, b in zip(*states))


def test_another_seed_gives_other_weights():
    config = ModelConfig(vocab_size=V)
    first, second = Transformer(config, seed=0), Transformer(config, seed=1)
    assert not torch.equal(first.embed.weight, second.embed.weight)


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"n_heads": 3}, "n_kv_heads"),
        ({"d_model": 130}, "d_model"),
        ({"d_head": 7}, "even"),
        ({"n_layers": 0}, "at least 1"),
    ],
)
def test_an_impossible_shape_is_named(settings, word):
    with pytest.raises(ValueError, match=word):
        ModelConfig(**settings)


# Gradient checkpointing.


@pytest.mark.parametrize("experts", [0, 4])
def test_checkpointing_changes_no_gradient_and_fills_in_the_routing_once(experts):
    model = small_model(V, n_experts=experts)
    ids = torch.arange(20).view(2, 10) % V
    gradients, seen = [], []
    for model.checkpointing in (False, True):
        routing = Routing() if experts else None
        loss = model.hidden(ids, routing=routing).square().sum()
        if experts:
            loss = loss + router_z_loss(routing, torch.ones_like(ids, dtype=torch.bool))
        loss.backward()
        gradients.append([weight.grad.clone() for weight in model.blocks.parameters()])
        seen.append(len(routing.logits) if experts else 0)
        model.zero_grad()
    assert all(torch.equal(plain, again) for plain, again in zip(*gradients))
    assert seen == [2 * bool(experts)] * 2


@pytest.mark.parametrize("training, grad", [(True, True), (False, True), (True, False)])
def test_checkpointing_is_for_training_alone(training, grad, monkeypatch):
    made = []
    monkeypatch.setattr(model_module, "checkpoint", lambda f, *a, **_: made.append(f) or f(*a))
    model = small_model(V).train(training)
    model.checkpointing = True
    with torch.set_grad_enabled(grad):
        model(torch.zeros(1, 4, dtype=torch.long))
    assert len(made) == (2 if training and grad else 0)
