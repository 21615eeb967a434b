import numpy as np
import pytest
import torch

from nanotir.draws import LARGE, draw, precise, truncate, uniforms

ROWS = np.repeat(np.arange(200), 50)
POSITIONS = np.tile(np.arange(50), 200)


def correlation(a, b) -> float:
    return abs(np.corrcoef(a.ravel(), b.ravel())[0, 1])


@pytest.mark.parametrize(
    "top_p, top_k, kept",
    [
        (1.0, 0, [0.1, 0.4, 0.2, 0.3]),
        (1.0, 2, [0.0, 0.4, 0.0, 0.3]),
        (0.65, 0, [0.0, 0.4, 0.0, 0.3]),  # the id that crosses top_p is kept
        (0.75, 0, [0.0, 0.4, 0.2, 0.3]),
        (0.65, 3, [0.0, 0.4, 0.0, 0.3]),  # 0.65 of the 0.9 that top_k left
        (1e-9, 0, [0.0, 0.4, 0.0, 0.0]),
        (1.0, 99, [0.1, 0.4, 0.2, 0.3]),
    ],
)
def test_truncate_keeps_the_likeliest_and_renormalises_nothing(top_p, top_k, kept):
    probs = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    torch.testing.assert_close(truncate(probs, top_p, top_k), torch.tensor([kept]))


def test_uniforms_are_uniform():
    u = uniforms(7, ROWS, POSITIONS)
    assert ((0 <= u) & (u < 1)).all()
    assert abs(u.mean() - 0.5) < 0.02 and abs(u.var() - 1 / 12) < 0.005


def test_a_uniform_depends_on_seed_row_and_position_alone():
    order = np.random.default_rng(0).permutation(len(ROWS))
    shuffled = uniforms(7, ROWS[order], POSITIONS[order])
    assert (shuffled == uniforms(7, ROWS, POSITIONS)[order]).all()


def test_neighbours_by_row_position_and_seed_are_independent():
    grid = uniforms(7, ROWS, POSITIONS).reshape(200, 50)
    assert correlation(grid[:-1], grid[1:]) < 0.05
    assert correlation(grid[:, :-1], grid[:, 1:]) < 0.05
    assert correlation(grid, uniforms(8, ROWS, POSITIONS)) < 0.05


def test_the_uniforms_of_a_key_never_change():
    steps = uniforms(7, [0, 1, 199], [0, 3, 10**6]) * 2**22
    assert steps.astype(int).tolist() == [794582, 957711, 3810360]


def test_uniforms_have_51_bits():
    u = uniforms(7, ROWS, POSITIONS)
    assert (u * 2**51 % 1 == 0).all()
    assert (u * 2**50 % 1 != 0).mean() == pytest.approx(0.5, abs=0.02)


# Draws.


def peaked(vocabulary, head=0.999) -> torch.Tensor:
    """(1, V): the first id has nearly all of the probability, and the others share the rest."""
    probs = torch.full((1, vocabulary), (1 - head) / (vocabulary - 1))
    probs[0, 0] = head
    return probs


def test_an_id_is_drawn_by_the_uniforms_that_fall_on_its_share():
    probs = torch.tensor([[0.5, 0.0, 1.0, 0.5]]).expand(6, -1)
    assert draw(probs, [0.0, 0.24, 0.25, 0.7, 0.75, 0.99]).tolist() == [0, 0, 2, 2, 3, 3]


@pytest.mark.parametrize("vocabulary", [LARGE, 152064])
def test_every_id_of_a_large_vocabulary_can_be_drawn(vocabulary):
    probs = precise(peaked(vocabulary))
    edges = probs.cumsum(-1)[0] / probs.sum()
    rare = torch.arange(1, vocabulary, vocabulary // 32)
    u = (edges[rare - 1] + edges[rare]) / 2  # the middle of each id's share
    assert draw(probs.expand(len(rare), -1), u.numpy()).tolist() == rare.tolist()


def test_a_small_vocabulary_uses_22_bits_of_a_uniform():
    edge = 2.0**-2 + 2.0**-24  # between two steps of 22 bits
    probs = precise(torch.tensor([[edge, 1 - edge]]))
    assert draw(probs, [edge + 2.0**-40]).tolist() == [0]
    assert draw(probs.double(), [edge + 2.0**-40]).tolist() == [1]


@pytest.mark.parametrize("dtype, bits", [(torch.float32, 22), (torch.float64, 51)])
def test_the_largest_uniform_never_lands_beyond_the_last_id_that_can_be_drawn(dtype, bits):
    totals = np.random.default_rng(0).uniform(0.5, 2.0, 1000)
    probs = torch.zeros(1000, 3, dtype=dtype)
    probs[:, 1] = torch.as_tensor(totals)
    for u in (1 - 2.0**-bits, 1 - 2.0**-53):
        assert set(draw(probs, np.full(1000, u)).tolist()) == {1}


@pytest.mark.parametrize("vocabulary", [LARGE, 50257, 152064])
def test_a_draw_by_blocks_is_that_of_the_cumulative_sum_over_all_ids(vocabulary):
    logits = 3 * torch.randn(50, vocabulary, generator=torch.Generator().manual_seed(0))
    probs = precise(logits.softmax(-1))
    u = uniforms(0, range(50), [1] * 50)
    cumulative = probs.cumsum(-1)
    target = torch.as_tensor(u)[:, None] * cumulative[:, -1:]
    expected = torch.searchsorted(cumulative, target, right=True)[:, 0]
    assert draw(probs, u).tolist() == expected.tolist()


def test_a_draw_by_blocks_never_lands_on_an_id_without_probability():
    probs = torch.zeros(64, LARGE, dtype=torch.float64)
    probs[:, 1000:3000:7] = torch.rand(64, 286, generator=torch.Generator().manual_seed(0)).double()
    u = np.r_[uniforms(0, range(62), [1] * 62), 0.0, 1 - 2.0**-53]
    assert (probs[torch.arange(64), draw(probs, u)] > 0).all()


def test_only_a_large_vocabulary_is_summed_in_float64():
    assert precise(peaked(LARGE)).dtype == torch.float64
    assert precise(peaked(LARGE - 1)).dtype == torch.float32
