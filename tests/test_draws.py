import numpy as np
import pytest
import torch

from nanotir.draws import truncate, uniforms

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


def test_a_uniform_times_a_sum_of_probabilities_stays_below_the_sum():
    largest = np.float32((2**22 - 1) / 2**22)
    totals = np.random.default_rng(0).uniform(0.5, 2.0, 1000).astype(np.float32)
    assert (largest * totals < totals).all()
    assert (uniforms(7, ROWS, POSITIONS) * 2**22 % 1 == 0).all()  # 22 bits
