"""Mixtures of experts: the layer against its formula, and how it is trained and sampled from."""

import copy

import pytest
import torch
from conftest import small_model

from nanotir.batches import collate, micro_batches
from nanotir.config import parse
from nanotir.logps import masked_logps
from nanotir.model import KVCache, ModelConfig, MoE, Transformer
from nanotir.optim import muon_and_adamw
from nanotir.rl import RLConfig, drawing_of, rescore, update
from nanotir.routing import Routing, load_balancing_loss, router_z_loss
from nanotir.sampler import Sampler, SamplerConfig
from nanotir.sft import SFTConfig, imitate
from nanotir.trajectory import Format

V, E, K = 50, 4, 2
VARIANTS = [
    {},
    {"norm_topk": False},
    {"d_shared": 24},
    {"norm_topk": False, "d_shared": 24, "n_experts_per_token": 3},
]


def assert_close(a, b, atol=1e-5, rtol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=rtol)


def moe_model(vocab_size=V, seed=0, **settings) -> Transformer:
    return small_model(vocab_size, seed, **{"n_experts": E} | settings)


def layer(**settings) -> MoE:
    return moe_model(**settings).blocks[0].ff


def test_an_expert_is_never_of_width_0():
    assert ModelConfig(d_ff=1, n_experts=2, n_experts_per_token=2).d_expert == 1


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ids_of(*shape, seed=0):
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


# The layer.


def token_by_token(moe, x):
    """The formula, one token and one expert at a time."""
    out = []
    for token in x.flatten(0, 1):
        weights, chosen = torch.softmax(moe.router.weight @ token, 0).topk(moe.k)
        if moe.norm_topk:
            weights = weights / weights.sum()
        y = sum(weight * moe.experts[e](token) for weight, e in zip(weights, chosen.tolist()))
        out.append(y if moe.shared is None else y + moe.shared(token))
    return torch.stack(out).view_as(x)


@pytest.mark.parametrize("settings", VARIANTS)
def test_grouped_experts_equal_one_token_at_a_time(settings):
    moe, x = layer(**settings), normal(3, 7, 32)
    assert_close(moe(x), token_by_token(moe, x))


@pytest.mark.parametrize("settings", VARIANTS)
def test_gradients_of_grouped_experts_equal_those_of_one_token_at_a_time(settings):
    moe, x = layer(**settings), normal(3, 7, 32).requires_grad_()
    target = normal(3, 7, 32, seed=1)
    leaves = [x, *moe.parameters()]
    grouped = torch.autograd.grad((moe(x) * target).sum(), leaves)
    naive = torch.autograd.grad((token_by_token(moe, x) * target).sum(), leaves)
    assert all(gradient.abs().max() > 0 for gradient in grouped)
    for a, b in zip(grouped, naive):
        assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_one_expert_that_everybody_takes_is_a_dense_layer():
    moe, x = layer(n_experts=1, n_experts_per_token=1), normal(2, 5, 32)
    assert_close(moe(x), moe.experts[0](x))


def test_an_expert_that_nobody_chose_gets_no_gradient():
    moe, x = layer(), normal(2, 5, 32)
    x[..., 0] = 1
    moe.router.weight.data[0, 0] = -100.0  # expert 0 is out of reach
    moe(x).sum().backward()
    idle, *busy = moe.experts
    assert all((weight.grad == 0).all() for weight in idle.parameters())
    for expert in busy:
        assert all(weight.grad.abs().max() > 0 for weight in expert.parameters())


def test_the_choice_is_the_same_under_autocast():
    moe, x = layer(), normal(2, 50, 32)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, y = moe.route(x), moe(x)
    assert all(torch.equal(a, b) for a, b in zip(moe.route(x), rounded))
    assert_close(y.float(), moe(x), atol=0.3, rtol=0.1)


# The model.


@pytest.mark.parametrize("settings", VARIANTS)
@torch.no_grad()
def test_prefill_then_decode_equals_a_full_forward(settings):
    model = moe_model(**settings)
    ids = ids_of(3, 20)
    cache = KVCache(model.config, 3, 20)
    logits = [model(ids[:, :12], cache=cache)]
    logits += [model(ids[:, t : t + 1], cache=cache) for t in range(12, 20)]
    assert_close(torch.cat(logits, 1), model(ids))


@torch.no_grad()
def test_no_token_depends_on_what_its_neighbours_choose():
    model, ids = moe_model(), ids_of(6, 9)
    for row in range(6):
        assert_close(model(ids)[row], model(ids[row : row + 1])[0])


def active_parameters(config: ModelConfig) -> int:
    """The parameters that one token passes through, routers aside."""
    model = Transformer(config)
    named = model.named_parameters()
    total = sum(weight.numel() for name, weight in named if "router" not in name)
    if not config.n_experts:
        return total
    for block in model.blocks:
        idle = block.ff.experts[config.n_experts_per_token :]
        total -= sum(weight.numel() for weight in idle.parameters())
    return total


def test_a_token_of_tiny_moe_passes_through_as_many_parameters_as_one_of_tiny():
    dense, sparse = (parse(["--preset", preset]).model for preset in ("tiny", "tiny-moe"))
    assert (sparse.n_experts, sparse.n_experts_per_token, dense.n_experts) == (8, 2, 0)
    assert active_parameters(sparse) == active_parameters(dense)


@pytest.mark.parametrize("k", [0, 5])
def test_no_or_more_experts_for_a_token_than_there_are_is_named(k):
    with pytest.raises(ValueError, match="n.experts.per.token"):
        ModelConfig(n_experts=4, n_experts_per_token=k)


# Imitation.


def imitated(model, batch, tokenizer, **settings):
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1)]
    return imitate(model, optimizers, batch, tokenizer.pad_id, SFTConfig(grad_clip=1e9, **settings))


def test_imitation_descends_its_loss_and_both_router_losses(tokenizer, demonstrations):
    model = moe_model(len(tokenizer), router_aux_coef=0.3, router_z_coef=0.2)
    before = copy.deepcopy(model)
    routing = Routing()
    batch = collate(demonstrations, tokenizer.pad_id)
    logps, _ = masked_logps(before, batch.ids, batch.mask, routing=routing)
    loss = -logps.sum() / batch.mask.sum()
    real = batch.real[:, 1:]
    balance = load_balancing_loss(routing, real)
    (loss + 0.3 * balance + 0.2 * router_z_loss(routing, real)).backward()

    metrics = imitated(model, demonstrations, tokenizer, micro_batch_tokens=10_000)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["router_aux"] == pytest.approx(balance.item(), rel=1e-5)
    for a, b in zip(model.parameters(), before.parameters()):
        assert_close(a, b - 0.1 * b.grad, atol=1e-6, rtol=1e-4)


def test_the_z_loss_of_micro_batches_adds_up_to_that_of_one_batch(tokenizer, demonstrations):
    whole = moe_model(len(tokenizer), router_aux_coef=0.0, router_z_coef=1.0)
    parts = copy.deepcopy(whole)
    imitated(whole, demonstrations, tokenizer, micro_batch_tokens=10_000)
    imitated(parts, demonstrations, tokenizer, micro_batch_tokens=20)
    for a, b in zip(whole.parameters(), parts.parameters()):
        assert_close(a, b, rtol=1e-4)


def test_a_dense_model_logs_nothing_of_routers(tokenizer, demonstrations):
    assert "router_aux" not in imitated(small_model(len(tokenizer)), demonstrations, tokenizer)


def test_imitation_trains_every_matrix_of_every_expert_and_the_load_stays_spread(
    tokenizer, demonstrations
):
    model = moe_model(len(tokenizer), d_model=64)
    model.reset_parameters()
    before = copy.deepcopy(model.state_dict())
    settings = SFTConfig()
    optimizers = muon_and_adamw(model, settings.lr, settings.adam_lr)
    given = (model, optimizers, demonstrations, tokenizer.pad_id, settings)
    metrics = [imitate(*given) for _ in range(30)]
    assert metrics[-1]["loss"] < 0.1 * metrics[0]["loss"] and metrics[-1]["router_aux"] < 1.5
    for name, weight in model.state_dict().items():
        assert not torch.equal(weight, before[name]), name


# Reinforcement learning.


@pytest.fixture()
def sampled(tokenizer, python):
    model = moe_model(len(tokenizer))
    settings = SamplerConfig(max_new_tokens=16, temperature=0.7)
    sampler = Sampler(model, tokenizer, [python], Format(), settings)
    trajectories = sampler.generate(["a", "b?", "what is c"], n=4)
    return model, drawing_of(sampler), trajectories


def updated(model, how, trajectories, advantages, reference=None, **settings):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    given = (trajectories, advantages, RLConfig(**settings), how, reference)
    return update(model, optimizer, *given)


def test_the_trainer_finds_the_samplers_log_probs(sampled):
    model, how, trajectories = sampled
    assert all(t.new_tokens for t in trajectories) and len({len(t.ids) for t in trajectories}) > 1
    assert 0 < rescore(model, trajectories, RLConfig(), how) < 1e-4


@pytest.mark.parametrize(
    "aux_coef, z_coef, moves", [(0.0, 0.0, False), (1.0, 0.0, True), (0.0, 1.0, True)]
)
def test_with_nothing_to_learn_an_update_only_spreads_the_load(sampled, aux_coef, z_coef, moves):
    model, how, trajectories = sampled
    model.config.router_aux_coef, model.config.router_z_coef = aux_coef, z_coef
    router = model.blocks[-1].ff.router
    before = router.weight.detach().clone()
    metrics = updated(model, how, trajectories, torch.zeros(12))
    assert metrics["loss"] == 0
    assert torch.equal(router.weight, before) != moves


@pytest.mark.parametrize("fused", [False, True])
def test_the_reference_has_no_part_in_the_router_losses(sampled, fused):
    model, how, trajectories = sampled
    given = (how, trajectories, torch.zeros(12))
    alone = updated(copy.deepcopy(model), *given, fused=fused)
    reference = moe_model(model.config.vocab_size, seed=1)
    metrics = updated(model, *given, reference, beta=0.1, fused=fused)
    assert metrics["router_aux"] == alone["router_aux"] and metrics["kl"] > 0
    assert all(weight.grad is None for weight in reference.parameters())


def test_an_update_logs_the_load_balancing_loss_of_all_its_micro_batches(sampled):
    model, how, trajectories = sampled
    num_tokens = sum(len(t.ids) - 1 for t in trajectories)
    expected = 0.0
    for micro in micro_batches(trajectories, how.pad_id, 60):
        routing, real = Routing(), micro.real[:, 1:]
        model.hidden(micro.ids[:, :-1], routing=routing)
        expected += load_balancing_loss(routing, real).item() * real.sum().item() / num_tokens
    metrics = updated(model, how, trajectories, torch.zeros(12), micro_batch_tokens=60)
    assert metrics["router_aux"] == pytest.approx(expected, rel=1e-5)


def test_fused_log_probs_make_the_same_update(sampled):
    model, how, trajectories = sampled
    fused = copy.deepcopy(model)
    given = (how, trajectories, normal(12))
    plain, other = updated(model, *given), updated(fused, *given, fused=True)
    assert plain.pop("entropy") > 0 and plain == pytest.approx(other, rel=1e-4, abs=1e-6)
    for a, b in zip(model.parameters(), fused.parameters()):
        assert_close(a, b, atol=1e-6, rtol=1e-4)
