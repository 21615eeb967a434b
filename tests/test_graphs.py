"""The code of DecodeGraphs, with the graphs left out: there is no GPU here."""

import pytest
import torch
from conftest import small_model
from doubles import ids_of, sampler_of

from nanotir import generation, graphs
from nanotir.graphs import DecodeGraphs


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Generations decode by DecodeGraphs, with shapes that are rounded up and change often."""
    monkeypatch.setattr(graphs, "ROWS", 3)
    monkeypatch.setattr(graphs, "SLOTS", 16)
    made = []

    class Everywhere(generation.Generation):
        def __init__(self, *given):
            super().__init__(*given)
            self.step = DecodeGraphs(self.model, self.cache)
            made.append(self.step)

    monkeypatch.setattr("nanotir.sampler.Generation", Everywhere)
    return made


def test_the_steps_are_those_of_the_model(tokenizer, python, request):
    model = small_model(len(tokenizer))
    given = (model, tokenizer, [python])
    settings = {"max_rows": 7, "max_new_tokens": 40}
    plain = sampler_of(*given, **settings).generate(["a", "bb", "1+1?"], n=5, seed=1)
    made = request.getfixturevalue("as_on_a_gpu")
    again = sampler_of(*given, **settings).generate(["a", "bb", "1+1?"], n=5, seed=1)
    assert ids_of(again) == ids_of(plain)
    for row, other in zip(plain, again):
        torch.testing.assert_close(torch.tensor(row.logps), torch.tensor(other.logps))
    assert len(made[0].steps) > 3  # pairs of rounded sizes
    assert all(rows % 3 == 0 or rows == 7 for rows, _ in made[0].steps)


def test_rows_that_fill_up_a_shape_change_no_other(tokenizer):
    model = small_model(len(tokenizer))
    sampler = sampler_of(model, tokenizer, max_rows=64)
    with torch.inference_mode():
        rows = generation.Generation(sampler, [[1, 2, 3]], 40, 0)
        rows.admit()
        step = DecodeGraphs(model, rows.cache)
        padded = step([3, 3, 3], [2, 2, 2])
        assert list(step.steps) == [(32, 128)]
        torch.testing.assert_close(padded, rows.step([3] * 40, [2] * 40)[:3])
