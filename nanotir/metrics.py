"""What to watch while a policy learns. Each number is explained where it is computed."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from nanotir.scores import mean


@torch.no_grad()
def update_metrics(terms, low_hit, high_hit, kl=None, entropy=None) -> dict[str, float]:
    """One update's metrics from losses.Terms, and from what the loss computed, each (B, T).

    All are means over the ids that the model chose, except for the last two.
    """
    ratio, moved = terms.ratio, terms.log_ratio
    means = {
        "clip_low": low_hit,  # share of ids whose gradient the lower bound stops
        "clip_high": high_hit,  # and an upper bound, or delta (cispo: whose weight is capped)
        "ratio_mean": ratio,  # 1 in the first update after a rollout
        "ratio_variance": (ratio - 1).square(),  # how far the ratios are from 1
        "approx_kl": moved.exp() - 1 - moved,  # k3 estimate of KL(old policy || policy)
        "kl": torch.zeros_like(ratio) if kl is None else kl,  # estimate of the KL to the reference
        "zero_advantage": terms.A == 0,  # share of ids from which nothing is learned
    }
    if terms.weights is not None:
        means["importance_weight"] = terms.weights  # trainer's probability / sampler's, capped
    if entropy is not None:
        means["entropy"] = entropy  # of the policy at this update, where the ids stand, in nats

    mask = terms.mask
    n = mask.sum()
    numbers = [torch.where(mask, x.float(), 0.0).sum() / n.clamp(min=1) for x in means.values()]
    numbers.append(torch.where(mask, ratio, 0.0).amax() if mask.numel() else n)  # ratio_max
    numbers.append(n)  # active_tokens: the ids that are learned from

    # One transfer for all of them, because each one makes a GPU wait.
    *values, ratio_max, active_tokens = torch.stack([x.float() for x in numbers]).tolist()
    return dict(zip(means, values), ratio_max=ratio_max, active_tokens=int(active_tokens))


def combine_metrics(parts: list[dict]) -> dict[str, float]:
    """The metrics of several batches as those of one: means over all of their ids.

    ratio_max is the largest, and active_tokens is the sum.
    """
    total = sum(part["active_tokens"] for part in parts)
    combined = {}
    for name in parts[0]:
        weighted = sum(part[name] * part["active_tokens"] for part in parts)
        combined[name] = weighted / max(total, 1)
    ratio_max = max(part["ratio_max"] for part in parts)
    return combined | {"ratio_max": ratio_max, "active_tokens": total}


def step_metrics(updates: list[dict]) -> dict[str, float]:
    """The metrics of a step's updates as one row; empty where there was nothing to learn from.

    loss and grad_norm are plain means over the updates. The others are combined as those of
    batches are, so active_tokens counts the ids of all updates.
    """
    if not updates:
        return {}
    combined = combine_metrics(updates)
    for name in ("loss", "grad_norm"):
        combined[name] = mean([update[name] for update in updates])
    return combined


def rollout_metrics(samples, kept, group_size: int) -> dict:
    """What was sampled in a step. Both lists are whole groups of rollout.Sample."""
    trajectories = [sample.trajectory for sample in samples]
    right = [t.new_tokens for t, sample in zip(trajectories, samples) if sample.correct]
    wrong = [t.new_tokens for t, sample in zip(trajectories, samples) if not sample.correct]
    calls = [call for t in trajectories for call in t.calls]
    found = {
        "reward": mean([sample.reward for sample in samples]),
        "accuracy": mean([sample.correct for sample in samples]),
        "groups_sampled": len(samples) // group_size,
        "groups_kept": len(kept) // group_size,  # and learned from
        "groups_without_spread": share_without_spread(samples, group_size),
        "tool_rate": mean([bool(t.calls) for t in trajectories]),  # answers with a call
        "calls": len(calls) / len(samples),
        "calls_by_kind": calls_by_kind(samples),  # for each kind of problem
        "call_status": dict(Counter(call.result.status for call in calls)),
        "new_tokens": mean([t.new_tokens for t in trajectories]),  # tool output is not counted
        "finish": dict(Counter(t.finish_reason for t in trajectories)),
    }
    for name in samples[0].parts:
        found[f"reward/{name}"] = mean([sample.parts[name] for sample in samples])
    if right:
        found["new_tokens_right"] = mean(right)
    if wrong:
        found["new_tokens_wrong"] = mean(wrong)
    return found


def largest_gap(trajectories: list) -> float:
    """The largest difference of trainer's and sampler's log-prob of a sampled id; nan if one is."""
    gaps = [0.0]
    for row in trajectories:
        pairs = zip(row.old_logps, row.logps, row.mask)
        gaps += [abs(old - logp) for old, logp, sampled in pairs if sampled]
    return torch.tensor(gaps).max().item()


def share_without_spread(samples, group_size: int) -> float:
    """The share of groups that are all right or all wrong.

    With dynamic sampling they are not learned from, unless a coin paid for them.
    """
    starts = range(0, len(samples), group_size)
    groups = [{sample.correct for sample in samples[i : i + group_size]} for i in starts]
    return mean([len(group) == 1 for group in groups])


def calls_by_kind(samples) -> dict[str, float]:
    """Calls per answer for each kind of problem, or for each family where kinds are unknown."""
    calls: dict[str, list[int]] = {}
    for sample in samples:
        kind = sample.problem.kind or sample.problem.family
        calls.setdefault(kind, []).append(len(sample.trajectory.calls))
    return {kind: round(mean(calls[kind]), 3) for kind in sorted(calls)}


def first_loss_explained(first: dict) -> str:
    """Why DAPO's loss in a run's first update says nothing, with its own numbers."""
    return (
        f"first update: the loss is {first['loss']:+.4f}, which says nothing about learning: the "
        f"ratio of new to old policy is still {first['ratio_mean']:.4f} everywhere, so the loss is "
        f"minus the mean advantage over all ids, 0 but for the different lengths of answers, and "
        f"nothing is clipped ({first['clip_low'] + first['clip_high']:.0%}). The policy learns "
        f"from the gradient, of norm {first['grad_norm']:.3f}."
    )


def trace(samples: list, advantages: Tensor, run, step: int):
    """Write down one whole group that was learned from: at each step, or 20 to 39 times a run."""
    if step % max(1, run.config.rl.steps // 20):
        return
    group = samples[: run.config.rl.keep or run.config.rl.group_size]
    for sample, advantage in zip(group, advantages.tolist()):
        row = {"phase": "rl", "step": step + 1, **sample.problem.summary()}
        row |= {"reward": sample.reward, "correct": sample.correct, "advantage": advantage}
        run.log(row | sample.trajectory.record(run.tokenizer), "traces.jsonl")


def show(bar, metrics: dict):
    """Show a step's metrics in the progress bar."""
    clipped = metrics.get("clip_low", 0) + metrics.get("clip_high", 0)
    bar.set_postfix(
        reward=f"{metrics['reward']:.2f}",
        right=f"{metrics['accuracy']:.0%}",
        tools=f"{metrics['tool_rate']:.0%}",
        len=f"{metrics['new_tokens']:.0f}",
        clip=f"{clipped:.1%}",
    )
