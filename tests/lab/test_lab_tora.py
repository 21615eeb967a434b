"""What a model makes of a tool that is silent."""

import math
from types import SimpleNamespace

import pytest
import torch

from nanotir.lab import tora
from nanotir.lab.tora import inventions, log_odds
from nanotir.sampler import SamplerConfig
from nanotir.trajectory import Format, Trajectory


@pytest.mark.parametrize("p", [1e-9, 0.3, 1 - 1e-9])
def test_log_odds_have_no_ends_where_a_probability_has(p):
    logits = torch.tensor([0.0, 0.0, math.log(2 * p / (1 - p))], dtype=torch.float64)
    expected = math.log(p / (1 - p))
    assert log_odds(lambda ids: logits.expand(1, 4, 3), [0, 1, 0, 1], 2) == pytest.approx(expected)


def test_what_a_silent_tool_would_say_is_looked_for_after_the_first_call(tokenizer, monkeypatch):
    tags = tokenizer.tags
    call = [tags["<python>"], 1, tags["</python>"]]
    invented = [*call, tags["<output>"], 2, tags["</output>"], *call]
    rows = [Trajectory(ids=ids) for ids in ([1, 2], call, invented)]
    seen = []
    sampler = SimpleNamespace(openers={"<python>"}, generate=lambda questions: rows)
    monkeypatch.setattr(tora, "Sampler", lambda *given: sampler)
    monkeypatch.setattr(tora, "log_odds", lambda model, ids, id: seen.append((ids, id)) or 2.0)
    run = SimpleNamespace(model=None, tokenizer=tokenizer, tools=[], format=Format(), held_out=[])
    run.config = SimpleNamespace(sampler=SamplerConfig())
    assert inventions(run) == {"invented": 1 / 3, "log_odds": 2.0}
    assert seen == [(call, tags["<output>"])] * 2
    assert not sampler.openers  # nothing runs the calls
