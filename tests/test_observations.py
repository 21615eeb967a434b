"""Whether RL learns from tool output: not at all, only counted, or as if the model had said it."""

import copy

import pytest
import torch
from conftest import small_model
from doubles import sampler_of
from test_rl import PROBLEMS, randn, rollout_of, run_of, step, with_outputs

from nanotir import rl
from nanotir.batches import collate
from nanotir.config import build
from nanotir.rl import RLConfig, drawing_of, rescore, train, update
from nanotir.sampler import SamplerConfig


@pytest.fixture
def forger(tokenizer, python, search):
    """(a model, a sampler that lets it write tool output)"""
    model = small_model(len(tokenizer))
    return model, sampler_of(model, tokenizer, [python, search], forge=True)


def gradient(forger, trajectories, **settings):
    """(metrics, gradient of all weights in a row) of one update."""
    model, how = copy.deepcopy(forger[0]), drawing_of(forger[1])
    trajectories = copy.deepcopy(trajectories)
    rescore(model, trajectories, RLConfig(), how)
    before = copy.deepcopy(model)
    settings = {"grad_clip": 1e9, "micro_batch_tokens": 80, **settings}
    advantages = randn(len(trajectories), seed=2)
    metrics = step((model, how, trajectories), advantages, lr=1.0, **settings)
    pairs = zip(before.parameters(), model.parameters())
    return metrics, torch.cat([(a - b).flatten() for a, b in pairs])


@pytest.mark.parametrize("loss_type", ["dapo", "bnpo"])
def test_counted_outputs_shrink_the_gradient_by_their_share_and_change_nothing_else(
    tokenizer, forger, loss_type
):
    rows = with_outputs(tokenizer)
    share = sum(t.new_tokens for t in rows) / sum(t.with_output_in_mask().new_tokens for t in rows)
    masked, g_masked = gradient(forger, rows, loss_type=loss_type, observations="masked")
    counted, g_counted = gradient(forger, rows, loss_type=loss_type, observations="counted")
    assert share < 0.8
    assert masked["grad_norm"] > 0
    torch.testing.assert_close(g_counted, share * g_masked, atol=1e-6, rtol=1e-4)
    assert counted["loss"] == pytest.approx(share * masked["loss"], rel=1e-4)
    assert counted["active_tokens"] == masked["active_tokens"]


@pytest.mark.parametrize("observations", ["masked", "learned"])
def test_the_gradient_reaches_tool_output_exactly_where_it_is_learned(
    tokenizer, forger, observations
):
    """Measured after the last attention, where positions no longer mix."""
    model, how = forger[0], drawing_of(forger[1])
    (trajectory,) = with_outputs(tokenizer, 1)
    row = trajectory.with_output_in_mask() if observations == "learned" else trajectory
    rescore(model, [row], RLConfig(), how)
    kept = []

    def keep(module, inputs, output):
        output.retain_grad()
        kept.append(output)

    model.blocks[-1].attention.register_forward_hook(keep)
    step((model, how, [row]), torch.ones(1), observations=observations)
    reached = (kept[0].grad[0].abs().sum(-1) > 0).tolist()
    kinds = [span.kind for span in trajectory.spans for _ in range(span.start, span.end)]
    unreached = ("prompt",) if observations == "learned" else ("prompt", "output")
    assert reached == [kind not in unreached for kind in kinds[1:]]


def test_tool_output_that_is_learned_from_has_an_importance_weight_of_1(tokenizer, forger):
    model, how = forger[0], drawing_of(forger[1])
    rows = [trajectory.with_output_in_mask() for trajectory in with_outputs(tokenizer, 2)]
    rescore(model, rows, RLConfig(), how)
    for row, trajectory in zip(rows, with_outputs(tokenizer, 2)):
        row.logps = [old - 0.5 if m else 0.0 for old, m in zip(row.old_logps, trajectory.mask)]
    micro = collate(rows, how.pad_id)
    weights = rl.importance_weights(micro.old_logps, micro, RLConfig(importance_cap=1.2))
    is_sampled = collate(with_outputs(tokenizer, 2), how.pad_id).mask
    assert (weights[is_sampled] == 1.2).all()
    assert (weights[micro.mask & ~is_sampled] == 1).all()
    assert (micro.mask & ~is_sampled).any()


@pytest.mark.parametrize("forge, finite", [(True, True), (False, False)])
def test_tool_output_has_a_probability_only_if_the_model_may_write_it(
    tokenizer, forger, forge, finite
):
    model, sampler = forger
    sampler = sampler_of(model, tokenizer, sampler.tools.values(), forge=forge)
    rows = [trajectory.with_output_in_mask() for trajectory in with_outputs(tokenizer, 2)]
    rescore(model, rows, RLConfig(), drawing_of(sampler))
    for row in rows:
        assert torch.tensor(row.old_logps).isfinite().all() == finite


def test_to_learn_tool_output_the_model_must_be_able_to_write_it():
    with pytest.raises(ValueError, match="needs --sampler.forge true"):
        build({"rl.observations": "learned"})
    assert build({"rl.observations": "learned", "sampler.forge": True}).sampler.forge


@pytest.mark.parametrize("observations", ["masked", "counted", "learned"])
def test_a_run_learns_from_tool_output_only_if_told_to_and_logs_the_same(
    monkeypatch, tokenizer, python, search, observations
):
    rows, learned = with_outputs(tokenizer, 4), []

    def recorded(model, optimizer, trajectories, *rest):
        learned.extend(trajectories)
        return update(model, optimizer, trajectories, *rest)

    monkeypatch.setattr(rl, "collect", lambda *_: rollout_of(copy.deepcopy(rows)))
    monkeypatch.setattr(rl, "update", recorded)
    settings = {"steps": 1, "updates": 1, "group_size": 2, "observations": observations}
    forging, tools = SamplerConfig(forge=True), [python, search]
    run = run_of(small_model(len(tokenizer)), tokenizer, PROBLEMS, tools, forging, **settings)
    train(run)

    expected = [
        row.with_output_in_mask().mask if observations == "learned" else row.mask for row in rows
    ]
    assert sorted(row.mask for row in learned) == sorted(expected)
    for row in learned:
        assert [int(logp != 0) for logp in row.old_logps] == row.mask
    assert run.metrics[0]["new_tokens"] == sum(row.new_tokens for row in rows) / 4
    assert run.metrics[0]["ratio_mean"] == pytest.approx(1, abs=1e-5)
