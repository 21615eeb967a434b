import numpy as np
import torch

from nanotir.draws import truncate, uniforms


def test_truncate_keeps_the_likeliest_and_renormalises_nothing():
    probs = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    assert_close = lambda a, b: torch.testing.assert_close(a, torch.tensor([b]))
    assert_close(truncate(probs, 1.0, 0), [0.1, 0.4, 0.2, 0.3])
    assert_close(truncate(probs, 1.0, 2), [0.0, 0.4, 0.0, 0.3])
    assert_close(
        truncate(probs, 0.65, 0), [0.0, 0.4, 0.0, 0.3]
    )  # the id that crosses top_p is kept
    assert_close(truncate(probs, 0.75, 0), [0.0, 0.4, 0.2, 0.3])
    assert_close(truncate(probs, 0.65, 3), [0.0, 0.4, 0.0, 0.3])  # 0.65 of the 0.9 that top_k left
    assert_close(truncate(probs, 1e-9, 0), [0.0, 0.4, 0.0, 0.0])
    assert_close(truncate(probs, 1.0, 99), [0.1, 0.4, 0.2, 0.3])


def test_uniforms_belong_to_seed_row_and_position_alone():
    rows, positions = np.repeat(np.arange(200), 50), np.tile(np.arange(50), 200)
    u = uniforms(7, rows, positions)
    assert (
        ((0 <= u) & (u < 1)).all() and abs(u.mean() - 0.5) < 0.02 and abs(u.var() - 1 / 12) < 0.005
    )
    order = np.random.default_rng(0).permutation(len(u))
    assert (uniforms(7, rows[order], positions[order]) == u[order]).all()
    grid = u.reshape(200, 50)
    for a, b in (
        (grid[:-1], grid[1:]),
        (grid[:, :-1], grid[:, 1:]),
    ):  # neighbours, by row and by position
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.05
    assert np.abs(np.corrcoef(uniforms(8, rows, positions), u)[0, 1]) < 0.05
