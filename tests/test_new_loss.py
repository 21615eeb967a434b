"""A new loss touches two places: one surrogate function, and one row in LOSSES."""

import copy

import pytest
import torch
from closed_forms import B, T, case
from conftest import assert_same_gradient, small_model

from nanotir import losses, rl
from nanotir.batches import collate
from nanotir.losses import over_rows, policy_loss
from nanotir.trajectory import Trajectory

V = 30
HOW = rl.Drawing(temperature=0.7, banned=[3, 4], pad_id=0, max_new_tokens=16)


def cubed(t, options):
    """-ratio^3 A, without a bound."""
    nowhere = torch.zeros_like(t.mask)
    return -(t.ratio**3) * t.A, nowhere, nowhere


@pytest.fixture(autouse=True)
def new_loss(monkeypatch):
    monkeypatch.setitem(losses.LOSSES, "cubed", (cubed, over_rows))


def trajectories() -> list[Trajectory]:
    rows = []
    for n in range(1, 7):
        row = Trajectory()
        row.append("prompt", [5, 6, 7], 0)
        row.append("text", [(7 * n + i) % 20 + 5 for i in range(n)], 1, [-1.0] * n)
        row.append("output", [8, 9], 0)
        row.append("text", [10 + n], 1, [-1.0])
        rows.append(row)
    return rows


def test_policy_loss_takes_it():
    data = case()
    new = data["new"].clone().requires_grad_()
    loss, metrics = policy_loss(new, data["old"], data["A"], data["mask"], loss_type="cubed")
    loss.backward()
    weighted = (3 * (data["new"] - data["old"])).exp() * data["A"][:, None] * data["mask"]
    torch.testing.assert_close(loss.item(), -weighted.sum().item() / B)
    torch.testing.assert_close(new.grad, -3 * weighted / B)
    assert metrics["active_tokens"] == data["mask"].sum() < B * T


def test_policy_loss_gives_it_importance_weights_and_the_kl_term():
    data = case()
    options = {"loss_type": "cubed", "beta": 0.1, "ref_logps": data["ref"]}
    given = (data["new"], data["old"], data["A"], data["mask"])
    loss, _ = policy_loss(*given, importance_weights=data["weights"], **options)
    d = data["ref"] - data["new"]
    cubes = (3 * (data["new"] - data["old"])).exp() * data["A"][:, None] * data["weights"]
    per_token = 0.1 * (d.exp() - d - 1) - cubes
    torch.testing.assert_close(loss, (per_token * data["mask"]).sum() / B)


@pytest.mark.parametrize("fused", [False, True])
def test_an_update_of_a_run_learns_by_it(fused):
    model = small_model(V)
    expected = copy.deepcopy(model)
    rows = trajectories()
    settings = rl.RLConfig(loss_type="cubed", grad_clip=1e9, micro_batch_tokens=20, fused=fused)
    rl.rescore(model, rows, settings, HOW)
    A = torch.tensor([1.0, -1.0, 0.5, -0.5, 0.0, 2.0])
    metrics = rl.update(model, torch.optim.SGD(model.parameters(), lr=0.1), rows, A, settings, HOW)

    # The same step by hand, in one batch.
    batch = collate(rows, HOW.pad_id)
    logits = expected(batch.ids[:, :-1]).index_fill(-1, torch.tensor(HOW.banned), float("-inf"))
    all_logps = (logits / HOW.temperature).log_softmax(-1)
    logps = all_logps.gather(-1, batch.ids[:, 1:, None])[..., 0]
    cubes = (3 * (logps - logps.detach())).exp() * A[:, None]
    loss = -cubes[batch.mask[:, 1:]].sum() / len(rows)
    loss.backward()
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for after, before in zip(model.parameters(), expected.parameters(), strict=True):
        assert_same_gradient((before - after) / 0.1, before.grad, 1e-5)


def test_an_unknown_name_is_still_refused():
    with pytest.raises(ValueError, match="did you mean 'cubed'"):
        rl.RLConfig(loss_type="cubes")
