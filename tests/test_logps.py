import pytest
import torch
from conftest import small_model

from nanotir.logps import CHUNK, ChunkedLogps, autocast, head_logps, token_logps, trained_logps

NONE = torch.tensor([], dtype=torch.long)
assert_close = lambda a, b, tolerance: torch.testing.assert_close(
    a, b, atol=tolerance, rtol=tolerance
)


def test_log_probs_are_those_of_the_softmax_at_the_temperature():
    logits = torch.randn(2, 3, 11, dtype=torch.float32)
    ids = torch.randint(11, (2, 3))
    for temperature in (1.0, 0.7):
        expected = (logits / temperature).softmax(-1).gather(-1, ids[..., None])[..., 0].log()
        assert_close(token_logps(logits, ids, temperature), expected, 1e-5)


@pytest.mark.parametrize("chunked_from", [10**9, 1])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_trained_log_probs_equal_a_full_forward_and_stay_zero_elsewhere(
    monkeypatch, chunked_from, temperature
):
    monkeypatch.setattr("nanotir.logps.CHUNKED_FROM", chunked_from)
    model, ids = small_model(30), torch.randint(30, (3, 8))
    mask = torch.rand(3, 8) < 0.5
    mask[:, 0] = False
    logits = model(ids).index_fill(-1, torch.tensor([3, 4]), float("-inf"))
    keep = mask & (ids != 3) & (ids != 4)
    logps, entropy = trained_logps(model, ids, keep, temperature, [3, 4], entropy=True)
    full = torch.nn.functional.pad(token_logps(logits[:, :-1], ids[:, 1:], temperature), (1, 0))
    assert_close(logps[keep], full[keep], 1e-5)
    p = torch.nn.functional.pad((logits[:, :-1] / temperature).softmax(-1), (0, 0, 1, 0))
    assert_close(entropy[keep], -torch.where(p > 0, p * p.log(), 0.0).sum(-1)[keep], 1e-5)
    assert (logps[~keep] == 0).all() and (entropy[~keep] == 0).all()
    assert trained_logps(model, ids, keep)[1] is None


def test_log_probs_of_bf16_logits_are_computed_in_fp32():
    logits = torch.randn(4, 50).bfloat16()
    assert_close(
        token_logps(logits, torch.arange(4)),
        token_logps(logits.double(), torch.arange(4)).float(),
        1e-6,
    )


def leaves(*shapes, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in shapes
    ]


@pytest.mark.parametrize("chunk", [1, 3, 7, 64])
@pytest.mark.parametrize("banned", [[], [8, 9]])
@pytest.mark.parametrize("entropy", [False, True])
def test_gradients_of_chunked_log_probs_and_entropies_pass_gradcheck(
    monkeypatch, chunk, banned, entropy
):
    monkeypatch.setattr("nanotir.logps.CHUNK", chunk)
    ids, banned = torch.tensor([0, 1, 2, 10, 4, 5, 6]), torch.tensor(banned, dtype=torch.long)
    apply = lambda hidden, weight: [
        x for x in ChunkedLogps.apply(hidden, weight, ids, 0.7, banned, entropy) if x is not None
    ]
    assert torch.autograd.gradcheck(apply, leaves((7, 5), (11, 5)))


def test_chunked_log_probs_and_entropies_equal_the_plain_ones_and_their_gradients():
    ids, banned = (
        torch.randint(2, 300, (150,), generator=torch.Generator().manual_seed(1)),
        torch.tensor([0, 1]),
    )

    def results(head):
        hidden, weight = leaves((150, 16), (300, 16), dtype=torch.float32)
        logps, entropy = head(hidden, weight, ids, 0.9, banned, True)
        (logps.sum() + 0.3 * (entropy * torch.arange(150)).sum()).backward()
        return logps, entropy, hidden.grad, weight.grad

    assert len(ids) > 2 * CHUNK
    for chunked, plain in zip(results(ChunkedLogps.apply), results(head_logps)):
        torch.testing.assert_close(chunked, plain, atol=2e-5, rtol=2e-4)


def test_chunked_log_probs_under_autocast_use_its_precision_and_return_fp32():
    hidden, weight = leaves((9, 16), (40, 16), dtype=torch.float32)
    ids = torch.arange(9)
    with torch.autocast("cpu", torch.bfloat16):
        logps, _ = ChunkedLogps.apply(hidden, weight, ids, 1.0, NONE, False)
        expected = token_logps(torch.nn.functional.linear(hidden, weight), ids)
    logps.sum().backward()
    torch.testing.assert_close(logps, expected, atol=1e-5, rtol=1e-5)
    assert logps.dtype == hidden.grad.dtype == weight.grad.dtype == torch.float32


def test_the_weights_gradient_is_summed_over_many_chunks_in_fp32():
    hidden, weight = leaves((4000, 16), (40, 16), dtype=torch.bfloat16)
    ids = torch.randint(40, (4000,), generator=torch.Generator().manual_seed(0))
    ChunkedLogps.apply(hidden, weight, ids, 1.0, NONE, False)[0].sum().backward()
    exact = weight.detach().double().requires_grad_()
    token_logps(hidden.detach().double() @ exact.T, ids).sum().backward()
    assert (
        weight.grad.dtype == torch.bfloat16
        and (weight.grad - exact.grad).norm() / exact.grad.norm() < 5e-3
    )


def test_a_weight_without_a_use_of_its_gradient_still_lets_the_hidden_states_learn():
    hidden, weight = leaves((5, 4), (6, 4))
    ChunkedLogps.apply(hidden, weight.detach(), torch.arange(5), 1.0, NONE, False)[
        0
    ].sum().backward()
    p = (hidden @ weight.T).softmax(-1)
    torch.testing.assert_close(hidden.grad, (weight[:5] - p @ weight).detach())


def test_a_large_vocabulary_is_cut_into_chunks_and_a_small_one_is_not(monkeypatch):
    seen = []
    monkeypatch.setattr(
        ChunkedLogps, "apply", lambda *arguments: seen.append(len(arguments[1])) or (None, None)
    )
    for vocabulary in (16383, 16384):
        head_logps(
            torch.zeros(2, 4), torch.zeros(vocabulary, 4), torch.tensor([1, 2]), 1.0, NONE, False
        )
    assert seen == [16384]


@pytest.mark.parametrize("capability, dtype", [("AVX2", torch.float32), ("AVX512", torch.bfloat16)])
def test_bfloat16_is_left_alone_on_a_cpu_without_instructions_for_it(
    monkeypatch, capability, dtype
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    for bf16, expected in ((True, dtype), (False, torch.float32)):
        with autocast(torch.device("cpu"), bf16):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected
