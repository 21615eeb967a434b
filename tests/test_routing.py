"""What routers chose: the losses that spread the load."""

import pytest
import torch
from conftest import small_model

from nanotir.batches import collate
from nanotir.logps import masked_logps
from nanotir.model import ModelConfig
from nanotir.routing import (
    Routing,
    load_balancing_loss,
    router_loss,
    router_z_loss,
)
from nanotir.trajectory import Format

V, E, K = 50, 4, 2


def assert_close(a, b):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def moe_model(vocab_size=V, seed=0, **settings):
    return small_model(vocab_size, seed, **{"n_experts": E} | settings)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def routed(*logits) -> Routing:
    return Routing(list(logits), [x.topk(K).indices for x in logits])


@torch.no_grad()
def test_routing_tells_each_layers_logits_and_choices():
    model, routing = moe_model(n_layers=3), Routing()
    ids = torch.randint(V, (2, 6), generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.hidden(ids, routing=routing), model.hidden(ids))
    assert [x.shape for x in routing.logits] == [(2, 6, E)] * 3
    assert [x.shape for x in routing.chosen] == [(2, 6, K)] * 3
    for logits, chosen in zip(routing.logits, routing.chosen):
        assert torch.equal(chosen, logits.topk(K).indices)


# The losses.


def test_the_load_balancing_loss_is_one_if_the_load_is_uniform():
    # Each expert is the first choice of one token.
    shifted = torch.stack([torch.linspace(0, 1, E).roll(i) for i in range(E)])[None]  # (1, E, E)
    loss = load_balancing_loss(routed(shifted), torch.ones(1, E).bool())
    assert loss.item() == pytest.approx(1)


def test_the_load_balancing_loss_is_one_if_the_probabilities_are_uniform():
    loss = load_balancing_loss(routed(torch.zeros(2, 5, E)), torch.ones(2, 5).bool())
    assert loss.item() == pytest.approx(1)


@pytest.mark.parametrize("scale, p", [(100.0, 1.0), (1.0, 1 / (1 + (E - K) / (K * torch.e)))])
def test_the_load_balancing_loss_is_experts_over_k_if_k_of_them_take_all(scale, p):
    """f is 1/k on the k, and their probabilities sum to p: E * k * 1/k * p/k = p E / k."""
    logits = torch.zeros(2, 5, E).index_fill(-1, torch.arange(K), scale)
    loss = load_balancing_loss(routed(logits), torch.ones(2, 5).bool())
    assert loss.item() == pytest.approx(p * E / K)


LAYERS = [normal(3, 4, E, seed=seed) for seed in range(2)]
MASK = torch.rand(3, 4, generator=torch.Generator().manual_seed(0)) < 0.7


def balance_by_hand(logits) -> float:
    tokens = logits[MASK].tolist()
    loss = 0.0
    for e in range(E):
        chosen, probability = 0, 0.0
        for token in tokens:
            chosen += e in sorted(range(E), key=token.__getitem__)[-K:]
            total = sum(torch.e**x for x in token)
            probability += torch.e ** token[e] / total
        loss += E * chosen / (K * len(tokens)) * probability / len(tokens)
    return loss


def z_by_hand(logits) -> float:
    tokens = logits[MASK]
    return sum(float(token.exp().sum().log()) ** 2 for token in tokens) / len(tokens)


def mean_of_layers(by_hand) -> float:
    return sum(by_hand(logits) for logits in LAYERS) / len(LAYERS)


def test_the_load_balancing_loss_equals_its_formula():
    found = load_balancing_loss(routed(*LAYERS), MASK).item()
    assert found == pytest.approx(mean_of_layers(balance_by_hand), rel=1e-5)


def test_the_z_loss_equals_its_formula():
    found = router_z_loss(routed(*LAYERS), MASK).item()
    assert found == pytest.approx(mean_of_layers(z_by_hand), rel=1e-5)


def test_a_micro_batch_has_its_share_of_both_losses_each_with_its_weight():
    config = ModelConfig(n_experts=E, router_aux_coef=0.5, router_z_coef=0.25)
    loss, part = router_loss(routed(*LAYERS), MASK, 2 * int(MASK.sum()), config)
    balance, z = mean_of_layers(balance_by_hand), mean_of_layers(z_by_hand)
    assert loss.item() == pytest.approx((0.5 * balance + 0.25 * z) / 2, rel=1e-5)
    assert part == pytest.approx(balance / 2, rel=1e-5)


def test_the_load_balancing_loss_presses_on_busy_experts_and_lifts_idle_ones():
    logits = (normal(1, 64, E) + torch.tensor([4.0, 4.0, 0.0, 0.0])).requires_grad_()
    loss = load_balancing_loss(routed(logits), torch.ones(1, 64).bool())
    (gradient,) = torch.autograd.grad(loss, logits)
    pressed = gradient > 0
    assert loss > 1.8 and (pressed.sum((0, 1)) > 60).tolist() == [True, True, False, False]
    assert pressed[..., :2].float().mean() > 0.9 and pressed[..., 2:].float().mean() < 0.1


def router_losses(model, batch, real):
    routing = Routing()
    masked_logps(model, batch.ids, batch.mask, routing=routing)
    return load_balancing_loss(routing, real), router_z_loss(routing, real)


def test_padding_changes_neither_loss(tokenizer, demonstrations):
    model = moe_model(len(tokenizer))
    question = "What is 20 plus 30 plus 20 plus 30?"
    longer = Format().trajectory(tokenizer, question, [("text", "It is 100.")] * 3)
    demonstrations = [demonstrations[0], longer]
    padded = collate(demonstrations, tokenizer.pad_id, [0, 1])
    alone = collate(demonstrations, tokenizer.pad_id, [0])
    assert not padded.real[0].all() and alone.real.all()
    assert padded.real.sum() == sum(len(t.ids) for t in demonstrations)

    first_row = torch.tensor([[True], [False]])
    found = router_losses(model, padded, padded.real[:, 1:] & first_row)
    expected = router_losses(model, alone, alone.real[:, 1:])
    with_padding = router_losses(model, padded, first_row.expand(padded.ids[:, 1:].shape))
    for a, b, wrong in zip(found, expected, with_padding):
        assert_close(a, b)
        assert (wrong - a).abs() > 1e-3
