import copy

import pytest
import torch
import torch.nn as nn
from conftest import small_model

from nanotir.evaluate import EvalConfig, evaluate
from nanotir.logps import trained_logps
from nanotir.model import KVCache, ModelConfig, MoE, Routing, Transformer
from nanotir.problems.problem import Problem
from nanotir.rl import RLConfig, rescore, update
from nanotir.routing import (
    chosen_experts,
    expert_disagreement,
    expert_use,
    load_balancing_loss,
    router_loss,
    router_z_loss,
)
from nanotir.sampler import Sampler, SamplerConfig
from nanotir.sft import SFTConfig, imitate, make_optimizers
from nanotir.trajectory import Format, collate, micro_batches

V, E, K = 50, 4, 2
VARIANTS = [
    {},
    {"norm_topk": False},
    {"d_shared": 24},
    {"norm_topk": False, "d_shared": 24, "n_experts_per_token": 3},
]
assert_close = lambda a, b: torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def moe_model(vocab_size=V, seed=0, **settings):
    return small_model(vocab_size, seed, **({"n_experts": E} | settings))


def layer(**settings) -> MoE:
    return moe_model(**settings).blocks[0].ff


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ids_of(*shape, seed=0):
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def token_by_token(moe, x):
    """The formula, one token and one expert at a time."""
    out = []
    for token in x.flatten(0, 1):
        weights, chosen = torch.softmax(moe.router.weight @ token, 0).topk(moe.k)
        weights = weights / weights.sum() if moe.norm_topk else weights
        y = sum(weight * moe.experts[e](token) for weight, e in zip(weights, chosen.tolist()))
        out.append(y if moe.shared is None else y + moe.shared(token))
    return torch.stack(out).view_as(x)


def gradients(moe, forward, x, target):
    return torch.autograd.grad((forward(x) * target).sum(), [x, *moe.parameters()])


@pytest.mark.parametrize("settings", VARIANTS)
def test_grouped_experts_equal_one_token_at_a_time(settings):
    moe, x = layer(**settings), normal(3, 7, 32).requires_grad_()
    assert_close(moe(x), token_by_token(moe, x))
    target = normal(3, 7, 32, seed=1)
    grouped, naive = (
        gradients(moe, forward, x, target) for forward in (moe, lambda x: token_by_token(moe, x))
    )
    assert len(grouped) == 1 + len(list(moe.parameters())) and all(
        g.abs().max() > 0 for g in grouped
    )
    for a, b in zip(grouped, naive):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_one_expert_that_everybody_takes_is_a_dense_layer():
    moe, x = layer(n_experts=1, n_experts_per_token=1), normal(2, 5, 32)
    assert_close(moe(x), moe.experts[0](x))


def test_an_expert_that_nobody_chose_gets_no_gradient():
    moe, x = layer(), normal(2, 5, 32)
    x[..., 0] = 1
    moe.router.weight.data[0, 0] = -100.0  # expert 0 is out of reach
    moe(x).sum().backward()
    assert all((p.grad == 0).all() for p in moe.experts[0].parameters())
    assert all(p.grad.abs().max() > 0 for expert in moe.experts[1:] for p in expert.parameters())


def test_the_choice_is_the_same_under_autocast():
    moe, x = layer(), normal(2, 50, 32)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, y = moe.route(x), moe(x)
    assert all(torch.equal(a, b) for a, b in zip(moe.route(x), rounded))
    torch.testing.assert_close(y.float(), moe(x), atol=0.3, rtol=0.1)


@pytest.mark.parametrize("settings", VARIANTS)
@torch.no_grad()
def test_prefill_then_decode_equals_a_full_forward(settings):
    model, ids = moe_model(**settings), ids_of(3, 20)
    cache = KVCache(model.config, 3, 20)
    logits = [model(ids[:, :12], cache=cache)] + [
        model(ids[:, t : t + 1], cache=cache) for t in range(12, 20)
    ]
    assert_close(torch.cat(logits, 1), model(ids))


@torch.no_grad()
def test_no_token_depends_on_what_its_neighbours_choose():
    model, ids = moe_model(), ids_of(6, 9)
    for row in range(6):
        assert_close(model(ids)[row], model(ids[row : row + 1])[0])


@torch.no_grad()
def test_routing_tells_each_layers_logits_and_choices():
    model, ids, routing = moe_model(n_layers=3), ids_of(2, 6), Routing()
    assert torch.equal(model.hidden(ids, routing=routing), model.hidden(ids))
    assert [x.shape for x in routing.logits] == [(2, 6, E)] * 3 and [
        x.shape for x in routing.chosen
    ] == [(2, 6, K)] * 3
    for logits, chosen in zip(routing.logits, routing.chosen):
        assert torch.equal(chosen, logits.topk(K).indices)


def routed(*logits) -> Routing:
    return Routing(list(logits), [x.topk(K).indices for x in logits])


def test_the_load_balancing_loss_is_one_if_the_load_is_uniform():
    shifted = torch.stack([torch.linspace(0, 1, E).roll(i) for i in range(E)])[
        None
    ]  # (1, E, E): each expert is each token's first once
    assert load_balancing_loss(routed(shifted), torch.ones(1, E).bool()).item() == pytest.approx(1)
    assert load_balancing_loss(
        routed(torch.zeros(2, 5, E)), torch.ones(2, 5).bool()
    ).item() == pytest.approx(1)  # P uniform, whatever f is


def test_the_load_balancing_loss_is_experts_over_k_if_k_of_them_take_all():
    """f is 1/k on the k, and their probabilities sum to p: E * k * 1/k * p/k = p E / k."""
    for scale, p in ((100.0, 1.0), (1.0, 1 / (1 + (E - K) / (K * torch.e)))):
        logits = torch.zeros(2, 5, E).index_fill(-1, torch.arange(K), scale)
        assert load_balancing_loss(routed(logits), torch.ones(2, 5).bool()).item() == pytest.approx(
            p * E / K
        )


def test_both_router_losses_equal_their_formulas():
    layers, mask = (
        [normal(3, 4, E, seed=s) for s in range(2)],
        torch.rand(3, 4, generator=torch.Generator().manual_seed(0)) < 0.7,
    )
    balance = z = 0.0
    for logits in layers:
        tokens = [logits[b, t] for b in range(3) for t in range(4) if mask[b, t]]
        f = [
            sum(e in token.topk(K).indices.tolist() for token in tokens) / (K * len(tokens))
            for e in range(E)
        ]
        P = [
            sum(float(token.exp()[e] / token.exp().sum()) for token in tokens) / len(tokens)
            for e in range(E)
        ]
        balance += E * sum(map(lambda a, b: a * b, f, P)) / 2
        z += sum(float(token.exp().sum().log()) ** 2 for token in tokens) / len(tokens) / 2
    assert load_balancing_loss(routed(*layers), mask).item() == pytest.approx(balance, rel=1e-5)
    assert router_z_loss(routed(*layers), mask).item() == pytest.approx(z, rel=1e-5)
    config = ModelConfig(n_experts=E, router_aux_coef=0.5, router_z_coef=0.25)
    loss, part = router_loss(routed(*layers), mask, 2 * int(mask.sum()), config)
    assert loss.item() == pytest.approx(
        (0.5 * balance + 0.25 * z) / 2, rel=1e-5
    ) and part == pytest.approx(balance / 2, rel=1e-5)


def test_the_load_balancing_loss_presses_on_busy_experts_and_lifts_idle_ones():
    logits = (normal(1, 64, E) + torch.tensor([4.0, 4.0, 0.0, 0.0])).requires_grad_()
    loss = load_balancing_loss(routed(logits), torch.ones(1, 64).bool())
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss > 1.8 and ((gradient > 0).sum((0, 1)) > 60).tolist() == [True, True, False, False]
    assert (gradient[..., :2] > 0).float().mean() > 0.9 and (
        gradient[..., 2:] < 0
    ).float().mean() > 0.9


@pytest.fixture(scope="module")
def demonstrations(tokenizer):
    pieces = lambda code, value: [
        ("text", "I add."),
        ("python", code),
        ("output", value),
        ("text", f"It is {value}."),
    ]
    return [
        Format().trajectory(tokenizer, question, pieces(*rest))
        for question, *rest in (("2+3?", "2+3", "5"), ("What is 20 plus 30?", "20+30", "50"))
    ]


def test_padding_changes_neither_loss(tokenizer, demonstrations):
    model = moe_model(len(tokenizer))

    def losses(batch, mask):
        routing = Routing()
        trained_logps(model, batch.ids, batch.mask, routing=routing)
        return load_balancing_loss(routing, mask), router_z_loss(routing, mask)

    padded, alone = (
        collate(demonstrations, tokenizer.pad_id, [0, 1]),
        collate(demonstrations, tokenizer.pad_id, [0]),
    )
    assert (
        not padded.real[0].all()
        and padded.real.sum() == sum(len(t.ids) for t in demonstrations)
        and alone.real.all()
    )
    only_first = padded.real[:, 1:] & torch.tensor([[True], [False]])
    for a, b in zip(losses(padded, only_first), losses(alone, alone.real[:, 1:])):
        assert_close(a, b)
    wrong = losses(
        padded, torch.tensor([[True], [False]]).expand(padded.ids[:, 1:].shape)
    )  # padding counted
    assert all((a - b).abs() > 1e-3 for a, b in zip(wrong, losses(padded, only_first)))


def imitated(model, batch, tokenizer, **settings):
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1)]
    return imitate(model, optimizers, batch, tokenizer.pad_id, SFTConfig(grad_clip=1e9, **settings))


def test_imitation_descends_its_loss_and_both_router_losses(tokenizer, demonstrations):
    model = moe_model(len(tokenizer), router_aux_coef=0.3, router_z_coef=0.2)
    before, routing, batch = (
        copy.deepcopy(model),
        Routing(),
        collate(demonstrations, tokenizer.pad_id),
    )
    logps, _ = trained_logps(before, batch.ids, batch.mask, routing=routing)
    real, loss = batch.real[:, 1:], -logps.sum() / batch.mask.sum()
    (
        loss + 0.3 * load_balancing_loss(routing, real) + 0.2 * router_z_loss(routing, real)
    ).backward()
    metrics = imitated(model, demonstrations, tokenizer, micro_batch_tokens=10_000)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["router_aux"] == pytest.approx(
        load_balancing_loss(routing, real).item(), rel=1e-5
    )
    for a, b in zip(model.parameters(), before.parameters()):
        torch.testing.assert_close(a, b - 0.1 * b.grad, atol=1e-6, rtol=1e-4)


def test_the_z_loss_of_micro_batches_adds_up_to_that_of_one_batch(tokenizer, demonstrations):
    whole = moe_model(len(tokenizer), router_aux_coef=0.0, router_z_coef=1.0)
    parts = copy.deepcopy(whole)
    (
        imitated(whole, demonstrations, tokenizer, micro_batch_tokens=10_000),
        imitated(parts, demonstrations, tokenizer, micro_batch_tokens=20),
    )
    for a, b in zip(whole.parameters(), parts.parameters()):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_a_dense_model_logs_nothing_of_routers(tokenizer, demonstrations):
    assert "router_aux" not in imitated(small_model(len(tokenizer)), demonstrations, tokenizer)


def test_muon_trains_every_matrix_of_every_expert_and_the_load_stays_spread(
    tokenizer, demonstrations
):
    model = moe_model(len(tokenizer), d_model=64)
    model.reset_parameters()
    optimizers, before = make_optimizers(model, SFTConfig()), copy.deepcopy(model.state_dict())
    metrics = [
        imitate(model, optimizers, demonstrations, tokenizer.pad_id, SFTConfig()) for _ in range(30)
    ]
    assert metrics[-1]["loss"] < 0.1 * metrics[0]["loss"] and metrics[-1]["router_aux"] < 1.5
    moved = [
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    ]
    assert moved == list(before)


@pytest.fixture()
def sampled(tokenizer, python):
    model = moe_model(len(tokenizer))
    sampler = Sampler(
        model, tokenizer, [python], Format(), SamplerConfig(max_new_tokens=16, temperature=0.7)
    )
    return model, sampler, sampler.generate(["a", "b?", "what is c"], n=4)


def test_the_trainer_finds_the_samplers_log_probs(sampled):
    model, sampler, trajectories = sampled
    assert all(t.new_tokens for t in trajectories) and len({len(t.ids) for t in trajectories}) > 1
    assert 0 < rescore(model, trajectories, RLConfig(), sampler) < 1e-4


def updated(model, sampler, trajectories, advantages, reference=None, **settings):
    return update(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        trajectories,
        advantages,
        RLConfig(**settings),
        sampler,
        reference,
    )


def test_with_nothing_to_learn_an_update_only_spreads_the_load(sampled):
    model, sampler, trajectories = sampled
    for coefficients, moves in (((0.0, 0.0), False), ((1.0, 0.0), True), ((0.0, 1.0), True)):
        model.config.router_aux_coef, model.config.router_z_coef = coefficients
        before = copy.deepcopy(model.blocks[-1].ff.router.weight)
        metrics = updated(model, sampler, trajectories, torch.zeros(12))
        assert (
            metrics["loss"] == 0
            and (not torch.equal(model.blocks[-1].ff.router.weight, before)) == moves
        )


@pytest.mark.parametrize("fused", [False, True])
def test_the_reference_has_no_part_in_the_router_losses(sampled, fused):
    model, sampler, trajectories = sampled
    alone = updated(copy.deepcopy(model), sampler, trajectories, torch.zeros(12), fused=fused)
    reference = moe_model(model.config.vocab_size, seed=1)
    metrics = updated(
        model, sampler, trajectories, torch.zeros(12), reference, beta=0.1, fused=fused
    )
    assert (
        metrics["router_aux"] == alone["router_aux"]
        and metrics["kl"] > 0
        and all(p.grad is None for p in reference.parameters())
    )


def test_an_update_logs_the_load_balancing_loss_of_all_its_micro_batches(sampled):
    model, sampler, trajectories = sampled
    expected, num_tokens = 0.0, sum(len(t.ids) - 1 for t in trajectories)
    for micro in micro_batches(trajectories, sampler.tokenizer.pad_id, 60):
        routing, real = Routing(), micro.real[:, 1:]
        model.hidden(micro.ids[:, :-1], routing=routing)
        expected += load_balancing_loss(routing, real).item() * real.sum().item() / num_tokens
    assert updated(model, sampler, trajectories, torch.zeros(12), micro_batch_tokens=60)[
        "router_aux"
    ] == pytest.approx(expected, rel=1e-5)


def test_the_fused_loss_makes_the_same_update(sampled):
    model, sampler, trajectories = sampled
    fused, advantages = copy.deepcopy(model), normal(12)
    plain, other = (
        updated(model, sampler, trajectories, advantages),
        updated(fused, sampler, trajectories, advantages, fused=True),
    )
    assert {name: value for name, value in plain.items() if name != "entropy"} == pytest.approx(
        other, rel=1e-4, abs=1e-6
    )
    for a, b in zip(model.parameters(), fused.parameters()):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def active(config: ModelConfig) -> int:
    """The parameters that one token passes through, routers aside."""
    model = Transformer(config)
    idle = sum(
        p.numel()
        for block in model.blocks
        if config.n_experts
        for expert in block.ff.experts[config.n_experts_per_token :]
        for p in expert.parameters()
    )
    return sum(p.numel() for name, p in model.named_parameters() if "router" not in name) - idle


def test_a_token_of_tiny_moe_passes_through_as_many_parameters_as_one_of_tiny():
    from nanotir.config import parse

    dense, sparse = (parse(["--preset", preset]).model for preset in ("tiny", "tiny-moe"))
    assert (sparse.n_experts, sparse.n_experts_per_token, dense.n_experts) == (8, 2, 0) and active(
        sparse
    ) == active(dense)


@pytest.mark.parametrize("k", [0, 5])
def test_more_experts_for_a_token_than_there_are_is_named(k):
    with pytest.raises(ValueError, match="n_experts_per_token"):
        ModelConfig(n_experts=4, n_experts_per_token=k)


def test_expert_use_counts_choices_by_kind_and_layer(tokenizer, demonstrations):
    model, counts = moe_model(len(tokenizer)), {}
    for t in demonstrations:
        routing = Routing()
        model.hidden(torch.tensor([t.ids]), routing=routing)
        for span in t.spans:
            for layer, chosen in enumerate(routing.chosen):
                for e in chosen[0, span.start : span.end].flatten().tolist():
                    counts.setdefault(span.kind, torch.zeros(2, E))[layer, e] += 1
    use = expert_use(model, tokenizer, demonstrations)
    assert list(use) == ["prompt", "text", "python", "output"]
    for kind, shares in use.items():
        assert_close(torch.tensor(shares), counts[kind] / counts[kind].sum(1, keepdim=True))


def test_an_evaluation_says_which_experts_were_used_if_there_are_any(tokenizer):
    settings = EvalConfig(), SamplerConfig(max_new_tokens=5)
    measured = lambda model: evaluate(
        model, tokenizer, [], Format(), [Problem("1+1?", "2")], *settings
    )["text"]
    assert measured(moe_model(len(tokenizer)))["expert_use"].keys() == {"prompt", "text"}
    assert "expert_use" not in measured(small_model(len(tokenizer)))


def test_sampler_and_trainer_choose_the_same_experts(tokenizer, demonstrations):
    assert expert_disagreement(moe_model(len(tokenizer)), demonstrations, tokenizer.pad_id) < 0.01


def test_disagreement_is_the_share_of_changed_sets(tokenizer, demonstrations):
    """Renumbering experts changes no output but every choice of one; where only the last layer is renumbered, half of two layers."""
    model = moe_model(len(tokenizer), n_experts_per_token=1)
    other = copy.deepcopy(model)
    for block, share in zip(reversed(other.blocks), (0.5, 1.0)):
        block.ff.router.weight.data, block.ff.experts = (
            block.ff.router.weight.roll(1, 0),
            nn.ModuleList([block.ff.experts[-1], *block.ff.experts[:-1]]),
        )
        assert expert_disagreement(model, demonstrations, tokenizer.pad_id, other) == pytest.approx(
            share, abs=0.01
        )


def test_the_order_of_a_tokens_experts_is_no_disagreement(tokenizer, demonstrations):
    model = moe_model(len(tokenizer), n_experts=2)
    other = copy.deepcopy(model)
    other.blocks[-1].ff.router.weight.data *= -1  # both are still chosen, the other one first
    assert not torch.equal(
        chosen_experts(model, torch.tensor([[1, 2, 3]])),
        chosen_experts(other, torch.tensor([[1, 2, 3]])),
    )
    assert expert_disagreement(model, demonstrations, tokenizer.pad_id, other) == 0


def test_padding_is_no_disagreement_and_no_agreement(tokenizer, demonstrations):
    model, other = moe_model(len(tokenizer)), moe_model(len(tokenizer), seed=1)
    measured = lambda rows: expert_disagreement(model, rows, tokenizer.pad_id, other)
    lengths = [len(t.ids) for t in demonstrations]
    assert (
        3 * min(lengths) >= 2 * max(lengths) and lengths[0] != lengths[1]
    )  # so that they share a micro-batch
    expected = sum(n * measured([t]) for n, t in zip(lengths, demonstrations)) / sum(lengths)
    assert 0 < measured(demonstrations) == pytest.approx(expected, abs=1e-9)
