"""Log-probs of masked ids: plain, chunk by chunk, spread over rows, and as logits for a kernel."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_same_gradient, small_model, with_instructions_for_bf16

from nanotir import native
from nanotir.kernels import fused_logps
from nanotir.logps import (
    ChunkedLogps,
    autocast,
    head_logps,
    masked_hidden,
    masked_logits,
    masked_logps,
    packed,
    packs,
    spread,
    token_logps,
)
from nanotir.routing import Routing

NONE = torch.tensor([], dtype=torch.long)
V = 30
BANNED = [3, 4]


def assert_close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def rows(seed=0):
    """(ids (B, T), mask (B, T)) in which nothing banned is chosen, and no first id."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(V, (3, 8), generator=generator)
    mask = torch.rand(3, 8, generator=generator) < 0.5
    mask[:, 0] = False
    return ids, mask & (ids != 3) & (ids != 4)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_the_softmax_at_the_temperature(temperature):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 11, generator=generator)
    ids = torch.randint(11, (2, 3), generator=generator)
    p = (logits / temperature).softmax(-1).gather(-1, ids[..., None])[..., 0]
    assert_close(token_logps(logits, ids, temperature), p.log())


def test_log_probs_of_bf16_logits_are_computed_in_fp32():
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = token_logps(logits.double(), torch.arange(4)).float()
    assert_close(token_logps(logits, torch.arange(4)), exact, 1e-6)


@pytest.mark.parametrize("chunked_from", [10**9, 1])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_masked_log_probs_equal_a_full_forward_and_stay_zero_elsewhere(
    monkeypatch, chunked_from, temperature
):
    monkeypatch.setattr("nanotir.logps.CHUNKED_FROM", chunked_from)
    model = small_model(V)
    ids, mask = rows()
    logits = model(ids).index_fill(-1, torch.tensor(BANNED), float("-inf"))
    logps, _ = masked_logps(model, ids, mask, temperature, BANNED)
    full = F.pad(token_logps(logits[:, :-1], ids[:, 1:], temperature), (1, 0))
    assert mask.any() and (logps[~mask] == 0).all()
    assert_close(logps[mask], full[mask])


@pytest.mark.parametrize("chunked_from", [10**9, 1])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_masked_entropies_equal_a_full_forward_and_stay_zero_elsewhere(
    monkeypatch, chunked_from, temperature
):
    monkeypatch.setattr("nanotir.logps.CHUNKED_FROM", chunked_from)
    model = small_model(V)
    ids, mask = rows()
    logits = model(ids).index_fill(-1, torch.tensor(BANNED), float("-inf"))
    _, entropy = masked_logps(model, ids, mask, temperature, BANNED, entropy=True)
    p = F.pad((logits[:, :-1] / temperature).softmax(-1), (0, 0, 1, 0))
    assert_close(entropy[mask], -torch.where(p > 0, p * p.log(), 0.0).sum(-1)[mask])
    assert (entropy[~mask] == 0).all()


def test_entropies_are_computed_only_if_asked_for():
    assert masked_logps(small_model(V), *rows())[1] is None


def test_values_are_spread_over_the_masked_positions_in_order():
    mask = torch.tensor([[0, 1, 0, 1], [0, 0, 1, 0]]).bool()
    expected = torch.tensor([[0.0, 1.0, 0.0, 2.0], [0.0, 0.0, 3.0, 0.0]])
    assert torch.equal(spread(torch.tensor([1.0, 2.0, 3.0]), mask), expected)


def test_nothing_predicts_the_first_id_of_a_row():
    mask = torch.tensor([[1, 1], [1, 0]]).bool()
    assert torch.equal(spread(torch.tensor([5.0]), mask), torch.tensor([[0.0, 5.0], [0.0, 0.0]]))


@pytest.mark.parametrize("experts", [0, 4])
def test_to_record_routing_changes_no_hidden_state(experts):
    model = small_model(V, n_experts=experts)
    ids, mask = rows()
    routing = Routing()
    recorded = masked_hidden(model, ids, mask, routing)
    assert_close(recorded, masked_hidden(model, ids, mask))
    shapes = [tuple(logits.shape) for logits in routing.logits]
    assert shapes == ([(3, 7, 4)] * 2 if experts else [])


def test_masked_logits_are_those_of_the_masked_ids_without_the_banned():
    model = small_model(V)
    ids, mask = rows()
    logits = masked_logits(model, ids, mask, BANNED)
    expected = model(ids)[:, :-1][mask[:, 1:]]
    expected[:, BANNED] = float("-inf")
    assert_close(logits, expected)


def test_fused_log_probs_of_masked_logits_are_masked_log_probs_and_so_are_their_gradients():
    ids, mask = rows()
    gradients = []
    for fused in (False, True):
        model = small_model(V)
        if fused:
            logits = masked_logits(model, ids, mask, BANNED)
            logps = spread(fused_logps(logits, ids[:, 1:][mask[:, 1:]], 0.7), mask)
        else:
            logps, _ = masked_logps(model, ids, mask, 0.7, BANNED)
        (logps * torch.arange(8)).sum().backward()
        gradients.append([logps.detach(), *(weight.grad for weight in model.parameters())])
    for a, b in zip(*gradients, strict=True):
        assert_same_gradient(a, b)


# Chunk by chunk.


def leaves(*shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [x.to(dtype).requires_grad_() for x in drawn]


@pytest.mark.parametrize("chunk", [1, 3, 7, 64])
@pytest.mark.parametrize("banned", [[], [8, 9]])
@pytest.mark.parametrize("entropy", [False, True])
def test_gradients_of_chunked_log_probs_and_entropies_pass_gradcheck(
    monkeypatch, chunk, banned, entropy
):
    monkeypatch.setattr("nanotir.logps.CHUNK", chunk)
    ids = torch.tensor([0, 1, 2, 10, 4, 5, 6])
    banned = torch.tensor(banned, dtype=torch.long)

    def apply(hidden, weight):
        logps, entropies = ChunkedLogps.apply(hidden, weight, ids, 0.7, banned, entropy)
        return (logps, entropies) if entropy else logps

    assert torch.autograd.gradcheck(apply, leaves((7, 5), (11, 5)))


def test_chunked_log_probs_and_entropies_equal_the_plain_ones_and_their_gradients(monkeypatch):
    monkeypatch.setattr("nanotir.logps.CHUNK", 64)  # of 150 rows: three chunks
    ids = torch.randint(2, 300, (150,), generator=torch.Generator().manual_seed(1))
    banned = torch.tensor([0, 1])

    def results(head, dtype):
        hidden, weight = (x.detach().to(dtype).requires_grad_() for x in given)
        logps, entropy = head(hidden, weight, ids, 0.9, banned, True)
        (logps.sum() + 0.3 * (entropy * torch.arange(150)).sum()).backward()
        return logps, entropy, hidden.grad, weight.grad

    given = leaves((150, 16), (300, 16), dtype=torch.float32)
    exact = results(head_logps, torch.float64)
    for head in (ChunkedLogps.apply, head_logps):
        for value, expected in zip(results(head, torch.float32), exact):
            assert (value - expected).abs().max() < 3e-6 * expected.abs().max()


def test_chunked_log_probs_under_autocast_use_its_precision_and_return_fp32():
    hidden, weight = leaves((9, 16), (40, 16), dtype=torch.float32)
    ids = torch.arange(9)
    with torch.autocast("cpu", torch.bfloat16):
        logps, _ = ChunkedLogps.apply(hidden, weight, ids, 1.0, NONE, False)
        expected = token_logps(F.linear(hidden, weight), ids)
    logps.sum().backward()
    assert_close(logps, expected)
    assert logps.dtype == hidden.grad.dtype == weight.grad.dtype == torch.float32


def test_the_weights_gradient_is_summed_over_many_chunks_in_fp32():
    hidden, weight = leaves((4000, 16), (40, 16), dtype=torch.bfloat16)
    ids = torch.randint(40, (4000,), generator=torch.Generator().manual_seed(0))
    logps, _ = ChunkedLogps.apply(hidden, weight, ids, 1.0, NONE, False)
    logps.sum().backward()
    exact = weight.detach().double().requires_grad_()
    token_logps(hidden.detach().double() @ exact.T, ids).sum().backward()
    error = (weight.grad - exact.grad).norm() / exact.grad.norm()
    assert weight.grad.dtype == torch.bfloat16 and error < 5e-3


def test_under_autocast_too_the_weights_gradient_is_summed_in_fp32():
    hidden, weight = leaves((20_000, 16), (40, 16), dtype=torch.float32)
    ids = torch.randint(40, (20_000,), generator=torch.Generator().manual_seed(0))
    gradients = []
    for head in (ChunkedLogps.apply, head_logps):
        weight.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            logps, _ = head(hidden, weight, ids, 1.0, NONE, False)
        logps.sum().backward()
        gradients.append(weight.grad)
    error = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    assert error < 3e-3


def test_a_weight_without_a_use_of_its_gradient_still_lets_the_hidden_states_learn():
    hidden, weight = leaves((5, 4), (6, 4))
    logps, _ = ChunkedLogps.apply(hidden, weight.detach(), torch.arange(5), 1.0, NONE, False)
    logps.sum().backward()
    p = (hidden @ weight.T).softmax(-1)
    torch.testing.assert_close(hidden.grad, (weight[:5] - p @ weight).detach())


def test_a_large_vocabulary_is_cut_into_chunks_and_a_small_one_is_not(monkeypatch):
    seen = []

    def apply(hidden, weight, *rest):
        seen.append(len(weight))
        return None, None

    monkeypatch.setattr(ChunkedLogps, "apply", apply)
    for vocabulary in (16383, 16384):
        weight = torch.zeros(vocabulary, 4)
        head_logps(torch.zeros(2, 4), weight, torch.tensor([1, 2]), 1.0, NONE, False)
    assert seen == [16384]


@pytest.mark.parametrize("able, dtype", [(False, torch.float32), (True, torch.bfloat16)])
def test_bfloat16_is_left_alone_on_a_cpu_without_instructions_for_it(monkeypatch, able, dtype):
    with_instructions_for_bf16(monkeypatch, able)
    for bf16, expected in ((True, dtype), (False, torch.float32)):
        with autocast(torch.device("cpu"), bf16):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected


def nodes(function) -> set:
    """All nodes of a graph, from its end."""
    found = {function}
    for before, _ in function.next_functions:
        found |= nodes(before) if before else set()
    return found


def test_two_passes_in_bfloat16_share_nothing_of_their_graphs_but_the_weight():
    x, weight = torch.ones(2, 3), torch.ones(4, 3, requires_grad=True)
    with autocast(torch.device("cpu"), True):
        one, other = (nodes(F.linear(x, weight).sum().grad_fn) for _ in range(2))
    assert {node.name() for node in one & other} == {"torch::autograd::AccumulateGrad"}


def test_no_gradient_is_made_of_a_frozen_head(monkeypatch):
    made, zeros_like = [], torch.zeros_like

    def noted(tensor, **settings):
        made.append(tensor.shape)
        return zeros_like(tensor, **settings)

    monkeypatch.setattr(torch, "zeros_like", noted)
    hidden, weight = torch.randn(2, 5, requires_grad=True), torch.randn(7, 5)
    given = (torch.tensor([1, 2]), 1.0, torch.tensor([3]), False)
    ChunkedLogps.apply(hidden, weight, *given)[0].sum().backward()
    assert weight.shape not in made and hidden.grad.any()


# Rows one behind the other.


@pytest.fixture
def ragged():
    """(ids (4, 13), mask): rows that end with ids 7, 12 and 1, and one without masked ids."""
    ids = torch.randint(V, (4, 13), generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(4, 13, dtype=torch.bool)
    for row, places in enumerate([(3, 4, 7), (1, 12), (1,)]):
        mask[row, list(places)] = True
    return ids, mask


def test_masked_states_of_rows_of_any_lengths_are_those_of_each_row(ragged):
    model = small_model(V)
    weights = list(model.blocks.parameters())
    together = masked_hidden(model, *ragged)
    rows = [(row[None, :-1], chosen[1:]) for row, chosen in zip(*ragged)]
    alone = torch.cat([model.hidden(row)[0, chosen] for row, chosen in rows])
    assert_close(together, alone)
    of_both = [torch.autograd.grad(x.square().sum(), weights) for x in (together, alone)]
    for one, other in zip(*of_both):
        assert_close(one, other, 1e-4)


def test_packed_rows_end_with_their_last_masked_ids(ragged):
    ids, mask = ragged
    packed_ids, positions, packed_mask = packed(*ragged)
    assert torch.equal(packed_ids, torch.cat([ids[0, :8], ids[1], ids[2, :2]])[None])
    assert positions.tolist() == [[*range(8), *range(13), *range(2)]]
    assert torch.equal(packed_ids[packed_mask], ids[mask])


def test_rows_without_masked_ids_have_no_gradient(ragged):
    model = small_model(V)
    logps, _ = masked_logps(model, ragged[0], torch.zeros_like(ragged[1]))
    logps.sum().backward()
    assert not logps.any()
    assert not any(w.grad.any() for w in model.parameters() if w.grad is not None)


@pytest.mark.skipif(not shutil.which(native.COMPILER), reason=f"there is no {native.COMPILER}")
def test_rows_are_packed_where_their_attention_is_computed_in_cpp_and_no_router_learns():
    assert packs(small_model(V))
    assert not packs(small_model(V, n_experts=4))
    assert not packs(small_model(V).double())
    with torch.inference_mode():
        assert not packs(small_model(V))
