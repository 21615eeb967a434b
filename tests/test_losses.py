import math

import pytest
import torch

from conftest import small_model
from nanotir.losses import LOSS_TYPES, METRICS, combine_metrics, group_advantages, policy_loss, token_logps, trained_logps

torch.manual_seed(0)
B, T = 6, 9
A = torch.tensor([1.0, -1.0, 0.5, -0.5, 2.0, -2.0], dtype=torch.float64)
L_MAX = 12
assert_close = lambda a, b, tolerance=1e-9: torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def case(on_policy=False):
    """(logps that want a gradient, old_logps, ref_logps, mask): masks with a prompt, a hole (tool output), padding, and an empty row."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda scale: scale * torch.randn(B, T, generator=generator, dtype=torch.float64)
    old = -1 - draw(0.5).abs()
    new = old.clone() if on_policy else old + draw(0.3)
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[:, :2], mask[1, 4:6], mask[2, 6:], mask[5] = False, False, False, False
    return new.requires_grad_(), old, old + draw(0.2), mask


def by_hand(new, old, ref, mask, loss_type, level, low, high, beta):
    """The same loss, one token at a time, from the formulas of the papers, and its gradient with respect to every log-prob."""
    loss, gradient = 0.0, torch.zeros(B, T, dtype=torch.float64)
    for i in range(B):
        tokens = mask[i].nonzero()[:, 0].tolist()
        share = {"grpo": 1 / (B * max(len(tokens), 1)), "dr_grpo": 1 / (B * L_MAX)}.get(loss_type, 1 / int(mask.sum()))
        mean_log_ratio = sum((new[i, t] - old[i, t]).item() for t in tokens) / max(len(tokens), 1)
        a = A[i].item()
        for t in tokens:
            ratio = math.exp(mean_log_ratio if level == "sequence" else (new[i, t] - old[i, t]).item())
            clipped = min(max(ratio, 1 - low), 1 + high)
            loss -= share * min(ratio * a, clipped * a)
            stopped = ratio > 1 + high if a > 0 else ratio < 1 - low
            if not stopped:
                for s in tokens if level == "sequence" else [t]:
                    gradient[i, s] -= share * a * ratio / (len(tokens) if level == "sequence" else 1)
            d = (ref[i, t] - new[i, t]).item()
            loss += share * beta * (math.exp(d) - d - 1)
            gradient[i, t] += share * beta * (1 - math.exp(d))
    return loss, gradient


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("low, high", [(0.2, 0.2), (0.2, 0.28), (0.05, 0.1)])
@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("on_policy", [False, True])
def test_loss_and_gradient_equal_those_derived_by_hand(loss_type, level, low, high, beta, on_policy):
    new, old, ref, mask = case(on_policy)
    settings = dict(loss_type=loss_type, ratio_level=level, epsilon=low, epsilon_high=high, beta=beta, ref_logps=ref, max_completion_length=L_MAX)
    loss, _ = policy_loss(new, old, A, mask, **settings)
    loss.backward()
    expected, gradient = by_hand(new.detach(), old, ref, mask, loss_type, level, low, high, beta)
    assert_close(loss.item(), expected)
    assert_close(new.grad, gradient)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_on_policy_the_gradient_is_reinforces(loss_type):
    new, old, _, mask = case(on_policy=True)
    policy_loss(new, old, A, mask, loss_type=loss_type, max_completion_length=L_MAX)[0].backward()
    share = {"grpo": 1 / (B * mask.sum(1, keepdim=True).clamp(min=1).double()), "dr_grpo": 1 / (B * L_MAX)}.get(loss_type, 1 / int(mask.sum()))
    assert_close(new.grad, -(A[:, None] * mask * share))


def test_what_is_masked_touches_nothing():
    new, old, ref, mask = case()
    settings = dict(beta=0.1, ref_logps=ref)
    loss, metrics = policy_loss(new, old, A, mask, **settings)
    loss.backward()
    assert (new.grad[~mask] == 0).all() and (new.grad[mask] != 0).any()
    for nonsense in (7.0, float("nan"), float("inf"), float("-inf")):
        fill = lambda x: x.detach().masked_fill(~mask, nonsense)
        again = fill(new).requires_grad_()
        other, others = policy_loss(again, fill(old), A, mask, beta=0.1, ref_logps=fill(ref))
        other.backward()
        assert other == loss and others == metrics and torch.equal(again.grad[mask], new.grad[mask])
        assert (again.grad[~mask] == 0).all()


def test_micro_batches_add_up_to_one_batch():
    new, old, _, mask = case()
    whole, _ = policy_loss(new, old, A, mask, num_active_tokens=mask.sum())
    whole.backward()
    gradient, new.grad = new.grad.clone(), None
    parts = [policy_loss(new[rows], old[rows], A[rows], mask[rows], num_active_tokens=mask.sum())[0] for rows in ([0], [1, 2], [3, 4, 5])]
    sum(parts).backward()
    assert_close(sum(parts), whole)
    assert_close(new.grad, gradient)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_padding_changes_no_loss(loss_type):
    new, old, ref, mask = case()
    pad = lambda x: torch.nn.functional.pad(x.detach(), (0, 5))
    settings = dict(loss_type=loss_type, beta=0.1, max_completion_length=L_MAX)
    assert_close(policy_loss(pad(new), pad(old), A, pad(mask), ref_logps=pad(ref), **settings)[0], policy_loss(new, old, A, mask, ref_logps=ref, **settings)[0].detach())


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_an_empty_mask_gives_zero_and_finite_gradients(loss_type, level):
    new, old, ref, mask = case()
    loss, metrics = policy_loss(new, old, A, mask & False, loss_type=loss_type, ratio_level=level, beta=0.1, ref_logps=ref, max_completion_length=L_MAX)
    loss.backward()
    assert loss.item() == 0 and (new.grad == 0).all() and metrics["active_tokens"] == 0


def test_advantages_may_differ_from_token_to_token():
    new, old, _, mask = case()
    per_token = A[:, None].expand(B, T).clone()
    assert_close(policy_loss(new, old, per_token, mask)[0], policy_loss(new, old, A, mask)[0])
    per_token[0, 4] += 1
    assert policy_loss(new, old, per_token, mask)[0] != policy_loss(new, old, A, mask)[0]


def test_no_gradient_flows_into_the_old_policy_or_the_reference():
    new, old, ref, mask = case()
    old.requires_grad_(), ref.requires_grad_()
    policy_loss(new, old, A, mask, beta=0.1, ref_logps=ref)[0].backward()
    assert old.grad is None and ref.grad is None


def test_metrics_count_what_the_bounds_stopped():
    old, mask = torch.zeros(2, 4), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    new = torch.tensor([[1.5, 1.1, 0.5, 1.0], [0.5, 1.5, 9.0, 9.0]]).log()
    _, metrics = policy_loss(new, old, torch.tensor([1.0, -1.0]), mask, epsilon=0.2, epsilon_high=0.28)
    assert_close(metrics["clip_high"], 1 / 6, 1e-6)  # 1.5 with a positive advantage
    assert_close(metrics["clip_low"], 1 / 6, 1e-6)  # 0.5 with a negative one
    assert_close(metrics["ratio_mean"], (1.5 + 1.1 + 0.5 + 1 + 0.5 + 1.5) / 6, 1e-6)
    assert_close(metrics["ratio_max"], 1.5, 1e-6)
    assert metrics["active_tokens"] == 6 and metrics["zero_advantage"] == 0


def test_metrics_of_parts_combine_to_those_of_the_whole():
    new, old, ref, mask = case()
    metrics = lambda rows: policy_loss(new[rows], old[rows], A[rows], mask[rows], beta=0.1, ref_logps=ref[rows])[1]
    combined, whole = combine_metrics([metrics([0, 1]), metrics([2, 3, 4]), metrics([5])]), metrics(list(range(B)))
    for name in (*METRICS, "ratio_max", "active_tokens"):
        assert_close(combined[name], whole[name], 1e-6)


def test_advantages_compare_each_sample_with_its_siblings():
    rewards = torch.tensor([1.0, 0, 0, 0, 3, 1, 1, 3], dtype=torch.float64)
    expected = torch.tensor([0.75, -0.25, -0.25, -0.25, 1, -1, -1, 1], dtype=torch.float64)
    assert_close(group_advantages(rewards, 4, scale="none"), expected)
    stds = torch.tensor([0.5] * 4 + [(4 / 3) ** 0.5] * 4, dtype=torch.float64)  # ddof 1
    assert_close(group_advantages(rewards, 4), expected / (stds + 1e-4))
    assert_close(group_advantages(rewards, 4, scale="batch"), expected / (rewards.std() + 1e-4))
    assert_close(group_advantages(rewards, 4, scale="none", baseline="leave_one_out"), expected * 4 / 3)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
def test_a_constant_group_gives_exactly_zero(scale, baseline):
    advantages = group_advantages([0.1] * 7 + [1.0] * 6 + [0.0], 7, scale=scale, baseline=baseline)
    assert (advantages[:7] == 0).all() and advantages[7:].abs().max() < 10
    assert (group_advantages([0.3], 1, scale=scale, baseline=baseline) == 0).all()


def test_a_group_that_is_not_whole_is_refused():
    with pytest.raises(ValueError, match="groups of 4"):
        group_advantages([1.0] * 6, 4)


def test_log_probs_are_those_of_the_softmax_at_the_temperature():
    logits = torch.randn(2, 3, 11, dtype=torch.float32)
    ids = torch.randint(11, (2, 3))
    for temperature in (1.0, 0.7):
        expected = (logits / temperature).softmax(-1).gather(-1, ids[..., None])[..., 0].log()
        assert_close(token_logps(logits, ids, temperature), expected, 1e-5)


def test_trained_log_probs_equal_a_full_forward_and_stay_zero_elsewhere():
    model, ids = small_model(30), torch.randint(30, (3, 8))
    mask = torch.rand(3, 8) < 0.5
    mask[:, 0] = False
    logits = model(ids).index_fill(-1, torch.tensor([3, 4]), float("-inf"))
    keep = mask & (ids != 3) & (ids != 4)
    logps = trained_logps(model, ids, keep, 0.7, [3, 4])
    full = torch.nn.functional.pad(token_logps(logits[:, :-1], ids[:, 1:], 0.7), (1, 0))
    assert_close(logps[keep], full[keep], 1e-5)
    assert (logps[~keep] == 0).all()


@pytest.mark.parametrize("settings, word", [
    ({"loss_type": "ppo"}, "no loss_type 'ppo'"), ({"ratio_level": "word"}, "no ratio_level"), ({"beta": 0.1}, "ref_logps"), ({"loss_type": "dr_grpo"}, "max_completion"),
])  # fmt: skip
def test_impossible_settings_are_refused(settings, word):
    new, old, _, mask = case()
    with pytest.raises(ValueError, match=word):
        policy_loss(new, old, A, mask, **settings)
