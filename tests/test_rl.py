import copy
import random
from types import SimpleNamespace

import pytest
import torch
from conftest import small_model

from nanotir import rl, sft
from nanotir.config import build
from nanotir.losses import CLIPPED, LOSS_TYPES, group_advantages
from nanotir.problems.problem import Problem
from nanotir.rewards import RewardConfig
from nanotir.rl import (
    RLConfig,
    Rollout,
    budget,
    check_tools,
    collect,
    describe,
    first_loss_explained,
    learnable,
    rescore,
    split,
    train,
    update,
)
from nanotir.sampler import Sampler, SamplerConfig
from nanotir.tools import DeadTool, ToolResult
from nanotir.trajectory import Call, Format

PROBLEMS = [
    Problem(f"{kind} {i}?", "1", family=kind)
    for kind in ("right", "wrong", "mixed")
    for i in range(6)
]


class Actor:
    """Plays a sampler: all right, all wrong, or every other answer right, as the question asks. Lengths differ within every group."""

    def __init__(self, tokenizer):
        self.tokenizer, self.asked = tokenizer, []

    def generate(self, prompts, n, seed):
        self.asked.append(list(prompts))
        right = lambda prompt, i: prompt.startswith("right") or prompt.startswith("mixed") and i % 2
        text = lambda prompt, i: "so " * 8 * i + f"\\boxed{{{1 if right(prompt, i) else 2}}}"
        return [
            Format().trajectory(self.tokenizer, prompt, [("text", text(prompt, i))])
            for prompt in prompts
            for i in range(n)
        ]


def rollout_with(tokenizer, problems, wanted, refills, rewards=RewardConfig(), **settings):
    actor = Actor(tokenizer)
    return actor, collect(
        actor,
        problems,
        RLConfig(problems=wanted, group_size=4, refills=refills, **settings),
        rewards,
        seed=0,
        step=0,
    )


def test_groups_without_spread_of_correctness_are_dropped_though_their_lengths_differ(tokenizer):
    _, rollout = rollout_with(tokenizer, PROBLEMS, wanted=18, refills=0)
    kept = {id(t) for t in rollout.trajectories}
    families = {
        problem.family for problem, trajectory, *_ in rollout.sampled if id(trajectory) in kept
    }
    lengths_differ = {
        problem.family for problem, _, reward, correct in rollout.sampled if reward not in (0, 1)
    }
    assert lengths_differ == {"right", "wrong", "mixed"}
    assert families == {"mixed"} and len(rollout.trajectories) == len(rollout.rewards) == 6 * 4
    assert len(rollout.sampled) == 18 * 4


def test_without_dynamic_sampling_every_group_is_learned_from_and_none_refilled(tokenizer):
    actor, rollout = rollout_with(tokenizer, PROBLEMS, wanted=18, refills=3, dynamic=False)
    assert (
        rollout.trajectories == [trajectory for _, trajectory, *_ in rollout.sampled]
        and len(rollout.trajectories) == 18 * 4
    )
    assert (
        rollout.rewards == [reward for _, _, reward, _ in rollout.sampled] and len(actor.asked) == 1
    )


def test_where_a_coin_grades_it_decides_which_groups_have_spread_and_accuracy_is_logged_all_the_same(
    tokenizer,
):
    random.seed(0)
    _, rollout = rollout_with(
        tokenizer, PROBLEMS, wanted=18, refills=0, rewards=RewardConfig(coin=True, length=0.0)
    )
    kept = {id(trajectory) for trajectory in rollout.trajectories}
    assert {
        problem.family for problem, trajectory, *_ in rollout.sampled if id(trajectory) in kept
    } == {"right", "wrong", "mixed"}
    assert all(
        set(rollout.rewards[i : i + 4]) == {0.0, 1.0} for i in range(0, len(rollout.rewards), 4)
    )
    assert describe(rollout, RLConfig(group_size=4))["accuracy"] == 0.5


def test_refills_go_on_until_the_batch_is_full_or_the_cap_is_reached(tokenizer):
    problems = PROBLEMS[:3] + PROBLEMS[-3:]
    for refills in (0, 1, 4):
        actor, rollout = rollout_with(tokenizer, problems, wanted=5, refills=refills)
        assert len(actor.asked) <= 1 + refills and len(rollout.trajectories) <= 5 * 4
        assert len(actor.asked) == 1 + refills or len(rollout.trajectories) == 5 * 4
        assert [len(asked) for asked in actor.asked][0] == 5


def test_rewards_stay_with_their_trajectories_and_groups_stay_whole(tokenizer):
    _, rollout = rollout_with(tokenizer, PROBLEMS, wanted=18, refills=0)
    reward_of = {id(trajectory): reward for _, trajectory, reward, _ in rollout.sampled}
    assert [reward_of[id(trajectory)] for trajectory in rollout.trajectories] == rollout.rewards
    prompts = [tuple(t.ids[: t.spans[0].end]) for t in rollout.trajectories]
    assert all(len(set(prompts[i : i + 4])) == 1 for i in range(0, len(prompts), 4))


def test_what_is_logged_counts_all_that_was_sampled(tokenizer):
    _, rollout = rollout_with(tokenizer, PROBLEMS, wanted=18, refills=0)
    metrics = describe(rollout, RLConfig(group_size=4))
    assert metrics["accuracy"] == 0.5 and (metrics["groups_sampled"], metrics["groups_kept"]) == (
        18,
        6,
    )
    assert metrics["groups_without_spread"] == pytest.approx(12 / 18)
    assert metrics["finish"] == {"stop": 72} and metrics["tool_rate"] == metrics["calls"] == 0


def test_lengths_are_logged_of_right_and_wrong_answers_apart(tokenizer):
    _, rollout = rollout_with(tokenizer, PROBLEMS, wanted=18, refills=0)
    metrics = describe(rollout, RLConfig(group_size=4))
    lengths = {
        right: [t.new_tokens for _, t, _, correct in rollout.sampled if correct == right]
        for right in (0, 1)
    }
    assert metrics["new_tokens_right"] == pytest.approx(sum(lengths[1]) / 36) and metrics[
        "new_tokens_wrong"
    ] == pytest.approx(sum(lengths[0]) / 36)
    assert metrics["new_tokens_right"] != metrics["new_tokens_wrong"]
    assert "new_tokens_wrong" not in describe(
        rollout_with(tokenizer, PROBLEMS[:6], 6, 0)[1], RLConfig(group_size=4)
    )  # none was wrong


@pytest.mark.parametrize(
    "budgets, steps, calls",
    [
        ("2,3,4", 9, [2, 2, 2, 3, 3, 3, 4, 4, 4]),
        ("2, 3,4", 7, [2, 2, 2, 3, 3, 4, 4]),
        ("5", 3, [5, 5, 5]),
        ("", 3, [9, 9, 9]),
        ("2,3,4", 1, [2]),
    ],
)
def test_the_budget_of_calls_grows_in_equal_parts_of_the_run(budgets, steps, calls):
    assert [
        budget(RLConfig(steps=steps, budgets=budgets), step, 9) for step in range(steps)
    ] == calls


def with_outputs(tokenizer, n=6):
    """Answers of different lengths that quote tools."""
    calls = lambda i: [
        ("python", "1+1"),
        ("output", "2 " * (5 - i)),
        ("text", "a"),
        ("search", "x"),
        ("output", "y"),
    ]
    return [
        Format().trajectory(tokenizer, "q", [("text", "so " * i), *calls(i), ("text", "b")])
        for i in range(n)
    ]


@pytest.fixture()
def forger(tokenizer, python, search):
    model = small_model(len(tokenizer))
    return model, Sampler(model, tokenizer, [python, search], Format(), SamplerConfig(forge=True))


def gradients(forger, trajectories, **settings):
    model, sampler = forger
    model, trajectories = copy.deepcopy(model), copy.deepcopy(trajectories)
    rescore(model, trajectories, RLConfig(), sampler)
    before = copy.deepcopy(model)
    advantages = torch.randn(len(trajectories), generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    metrics = update(
        model,
        optimizer,
        trajectories,
        advantages,
        RLConfig(grad_clip=1e9, micro_batch_tokens=80, **settings),
        sampler,
    )
    return metrics, torch.cat(
        [(a - b).flatten() for a, b in zip(before.parameters(), model.parameters())]
    )


@pytest.mark.parametrize("loss_type", ["dapo", "bnpo"])
def test_counted_outputs_shrink_the_gradient_by_their_share_of_all_ids_and_change_nothing_else(
    tokenizer, forger, loss_type
):
    trajectories = with_outputs(tokenizer)
    share = sum(t.new_tokens for t in trajectories) / sum(
        t.unmasked().new_tokens for t in trajectories
    )
    gradient = lambda observations: gradients(
        forger, trajectories, loss_type=loss_type, observations=observations
    )
    (masked, g_masked), (counted, g_counted) = gradient("masked"), gradient("counted")
    torch.testing.assert_close(g_counted, share * g_masked, atol=1e-6, rtol=1e-4)
    assert (
        counted["loss"] == pytest.approx(share * masked["loss"], rel=1e-4)
        and counted["active_tokens"] == masked["active_tokens"]
    )
    assert share < 0.8 and masked["grad_norm"] > 0


@pytest.mark.parametrize("observations", ["masked", "learned"])
def test_the_gradient_reaches_tool_output_exactly_where_it_is_learned(
    tokenizer, forger, observations
):
    """The gradient where positions part, past the last attention, each to predict its next id."""
    model, sampler = forger
    (trajectory,), kept = with_outputs(tokenizer, 1), []
    row = trajectory.unmasked() if observations == "learned" else trajectory
    rescore(model, [row], RLConfig(), sampler)
    model.blocks[-1].attention.register_forward_hook(
        lambda module, inputs, output: output.retain_grad() or kept.append(output)
    )
    update(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        [row],
        torch.ones(1),
        RLConfig(observations=observations),
        sampler,
    )
    reached = (kept[0].grad[0].abs().sum(-1) > 0).tolist()
    kinds = [span.kind for span in trajectory.spans for _ in range(span.start, span.end)]
    unreached = ("prompt",) if observations == "learned" else ("prompt", "output")
    assert reached == [kind not in unreached for kind in kinds[1:]]


def test_to_learn_tool_output_one_must_be_able_to_say_it(tokenizer, forger):
    model, sampler = forger
    strict = Sampler(model, tokenizer, sampler.tools.values(), Format(), SamplerConfig())
    rows = [[trajectory.unmasked() for trajectory in with_outputs(tokenizer, 2)] for _ in range(2)]
    for one, row in zip((sampler, strict), rows):
        rescore(model, row, RLConfig(), one)
    said, masked = ([torch.tensor(t.logps).isfinite().all().item() for t in row] for row in rows)
    assert said == [True, True] and masked == [False, False]
    with pytest.raises(ValueError, match="needs --sampler.forge true"):
        build({"rl.observations": "learned"})
    assert build({"rl.observations": "learned", "sampler.forge": True}).sampler.forge


@pytest.fixture()
def sampled(tokenizer, python):
    model = small_model(len(tokenizer))
    sampler = Sampler(
        model, tokenizer, [python], Format(), SamplerConfig(max_new_tokens=12, temperature=0.7)
    )
    return model, sampler, sampler.generate(["a", "b?", "what is c"], n=4)


def step(model, sampler, trajectories, advantages, **settings):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return update(model, optimizer, trajectories, advantages, RLConfig(**settings), sampler)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_micro_batches_make_the_same_update_as_one_batch(sampled, loss_type):
    model, sampler, trajectories = sampled
    advantages, parts = (
        torch.randn(12, generator=torch.Generator().manual_seed(0)),
        copy.deepcopy(model),
    )
    settings = dict(
        loss_type=loss_type, entropy_coef=0.01, epsilon_high=5.0 if loss_type == "cispo" else 0.28
    )
    whole = step(model, sampler, trajectories, advantages, micro_batch_tokens=10_000, **settings)
    split_up = step(parts, sampler, trajectories, advantages, micro_batch_tokens=40, **settings)
    for a, b in zip(model.parameters(), parts.parameters()):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    for name in ("loss", "grad_norm", "ratio_mean", "active_tokens", "entropy"):
        assert whole[name] == pytest.approx(split_up[name], rel=1e-4, abs=1e-6)


def test_before_the_first_update_ratios_are_one_and_the_loss_is_minus_the_mean_advantage(sampled):
    model, sampler, trajectories = sampled
    advantages = group_advantages(torch.rand(12, generator=torch.Generator().manual_seed(1)), 4)
    sampled_logps = [list(t.logps) for t in trajectories]
    gap = rescore(model, trajectories, RLConfig(), sampler)
    metrics = step(model, sampler, trajectories, advantages)
    tokens = torch.tensor([t.new_tokens for t in trajectories], dtype=torch.float32)
    assert 0 < gap <= 1e-5 and metrics["ratio_mean"] == pytest.approx(1, abs=1e-5)
    assert gap == pytest.approx(
        max(
            abs(a - b) for old, t in zip(sampled_logps, trajectories) for a, b in zip(old, t.logps)
        ),
        abs=1e-9,
    )
    assert all(len(t.logps) == len(t.ids) for t in trajectories)
    assert metrics["clip_low"] == metrics["clip_high"] == 0 and metrics["grad_norm"] > 0
    assert metrics["loss"] == pytest.approx(
        -float((advantages * tokens).sum() / tokens.sum()), abs=1e-5
    )
    text = first_loss_explained(metrics)
    assert (
        "0 but for the different lengths" in text
        and f"{metrics['loss']:+.4f}" in text
        and f"{metrics['grad_norm']:.3f}" in text
        and f"{metrics['ratio_mean']:.4f}" in text
    )


@pytest.mark.parametrize("loss_type", CLIPPED)
def test_the_fused_loss_makes_the_same_update(sampled, loss_type):
    model, sampler, trajectories = sampled
    rescore(model, trajectories, RLConfig(), sampler)
    advantages, fused, reference = (
        torch.randn(12, generator=torch.Generator().manual_seed(0)),
        copy.deepcopy(model),
        small_model(model.config.vocab_size, seed=1),
    )
    make = lambda model, **more: update(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        trajectories,
        advantages,
        RLConfig(loss_type=loss_type, beta=0.1, delta=3.0, **more),
        sampler,
        reference,
    )
    plain, other = make(model), make(fused, fused=True)
    assert {name: value for name, value in plain.items() if name != "entropy"} == pytest.approx(
        other, rel=1e-4, abs=1e-6
    )
    for a, b in zip(model.parameters(), fused.parameters()):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_the_entropy_bonus_makes_the_policy_less_certain(sampled):
    model, sampler, trajectories = sampled
    entropies = [
        step(model, sampler, trajectories, torch.zeros(12), entropy_coef=1.0, grad_clip=0.1)[
            "entropy"
        ]
        for _ in range(3)
    ]
    assert entropies[0] < entropies[1] < entropies[2]


def test_answers_cut_short_count_in_their_group_but_are_not_learned_from(tokenizer):
    trajectories = [
        Format().trajectory(tokenizer, "q", [("text", "x")], end=end)
        for end in (True, False, True, False)
    ]
    assert learnable(trajectories, RLConfig(filter_overlong=True)) == [0, 2]
    assert learnable(trajectories, RLConfig()) == [0, 1, 2, 3]


def test_zero_advantages_move_nothing(sampled):
    model, sampler, trajectories = sampled
    before = copy.deepcopy(model.state_dict())
    assert step(model, sampler, trajectories, torch.zeros(12))["grad_norm"] == 0
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def test_a_step_makes_good_samples_likelier_and_bad_ones_less_likely(sampled):
    model, sampler, trajectories = sampled
    advantages = torch.zeros(12)
    advantages[0], advantages[5] = 1.0, -1.0
    logp = lambda row: update(
        model,
        torch.optim.SGD(model.parameters(), lr=0.0),
        [trajectories[row]],
        torch.ones(1),
        RLConfig(),
        sampler,
    )["ratio_mean"]
    step(model, sampler, trajectories, advantages, grad_clip=0.1)
    assert logp(0) > 1 > logp(5)


def test_the_gradient_norm_is_clipped(sampled):
    model, sampler, trajectories = sampled
    before = copy.deepcopy(model)
    metrics = step(
        model,
        sampler,
        trajectories,
        100 * torch.randn(12, generator=torch.Generator().manual_seed(0)),
        grad_clip=0.5,
    )
    moved = (
        sum((a - b).square().sum() for a, b in zip(model.parameters(), before.parameters())).sqrt()
        / 0.1
    )
    assert metrics["grad_norm"] > 0.5 and moved.item() == pytest.approx(0.5, rel=1e-3)


def test_every_row_belongs_to_one_update():
    for n, parts in ((10, 1), (10, 3), (2, 4), (0, 2)):
        rows = split(list(range(5, 5 + n)), parts, seed=0, step=1)
        assert sorted(row for part in rows for row in part) == list(range(5, 5 + n)) and len(
            rows
        ) == min(n, parts)
    assert split(list(range(50)), 2, 0, 1) != split(list(range(50)), 2, 0, 2)


def with_calls(tokenizer, *results):
    trajectory = Format().trajectory(tokenizer, "q", [("text", "x")])
    trajectory.calls = [Call("python", "1", result) for result in results]
    return trajectory


def test_a_tool_that_only_fails_stops_the_run_and_says_why(tokenizer):
    dead, alive = ToolResult("NameError: name 'x' is not defined", False, "error"), ToolResult("2")

    def check(seen, *results):
        check_tools(
            Rollout(sampled=[(PROBLEMS[0], with_calls(tokenizer, *results), 0.0, 0.0)]), seen
        )

    with pytest.raises(DeadTool, match=r"'python' failed on 40 of 40 calls.*NameError"):
        check({"python": []}, *[dead] * 40)
    with pytest.raises(DeadTool, match="37 of 40"):
        check({"python": []}, *[dead] * 37, *[alive] * 3)
    check({"python": []}, *[dead] * 36, *[alive] * 4)  # 90%, not more
    seen = {"python": []}
    for _ in range(3):
        check(seen, *[dead] * 10)  # too few to tell
    with pytest.raises(DeadTool, match="40 of 40"):
        check(seen, *[dead] * 10)  # but they add up from step to step


@pytest.mark.parametrize(
    "settings",
    [
        {"loss_type": "ppo"},
        {"ratio_level": "word"},
        {"scale": "std"},
        {"baseline": "median"},
        {"group_size": 1},
        {"problems": 0},
        {"kl": "k4"},
        {"loss_type": "cispo"},
        {"delta": 1.2},
        {"observations": "hidden"},
        {"budgets": "2,x"},
        {"budgets": "2,,4"},
        {"fused": True, "loss_type": "gmpo"},
        {"fused": True, "entropy_coef": 0.1},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError):
        RLConfig(**settings)


class Run(SimpleNamespace):
    def restore(self, phase, optimizers):
        return 0

    def finish_step(self, step, metrics, optimizers, last=False):
        self.metrics.append(metrics)

    def log(self, row, file):
        self.traces.append(row)


def trained(monkeypatch, tokenizer, rollout, sampler=SamplerConfig(), tools=(), **settings):
    """What `train` hands to its updates, and how many calls each rollout may make, where every rollout is this one."""
    model, learned, allowed = small_model(len(tokenizer)), [], []
    run = Run(
        model=model,
        tokenizer=tokenizer,
        format=Format(),
        tools=tools,
        problems=PROBLEMS,
        metrics=[],
        traces=[],
        state={},
    )
    run.config = SimpleNamespace(
        seed=0, rl=RLConfig(group_size=2, **settings), reward=RewardConfig(), sampler=sampler
    )
    monkeypatch.setattr(
        rl,
        "collect",
        lambda sampler, *_: allowed.append(sampler.config.max_calls) or copy.deepcopy(rollout),
    )
    monkeypatch.setattr(
        rl,
        "update",
        lambda model, optimizer, chosen, *rest: (
            learned.extend(chosen) or update(model, optimizer, chosen, *rest)
        ),
    )
    train(run)
    return run, learned, allowed


def test_each_rollout_may_make_the_calls_of_its_part_of_the_run(monkeypatch, tokenizer):
    empty = Rollout(sampled=[(PROBLEMS[0], with_calls(tokenizer), 0.0, 0.0)])
    assert trained(monkeypatch, tokenizer, empty, steps=6, budgets="2,3,4")[2] == [2, 2, 3, 3, 4, 4]
    assert trained(monkeypatch, tokenizer, empty, SamplerConfig(max_calls=7), steps=2)[2] == [7, 7]


@pytest.mark.parametrize("observations", ["masked", "counted", "learned"])
def test_a_run_learns_from_tool_output_only_if_told_to_and_what_it_logs_is_the_same(
    monkeypatch, tokenizer, python, search, observations
):
    rows = with_outputs(tokenizer, 4)
    rollout = Rollout(
        rows,
        [0.0, 1.0] * 2,
        [(problem, row, i % 2, i % 2) for i, (problem, row) in enumerate(zip(PROBLEMS, rows))],
    )
    sampler, tools = SamplerConfig(forge=True), [python, search]
    run, learned, _ = trained(
        monkeypatch,
        tokenizer,
        rollout,
        sampler,
        tools,
        steps=1,
        updates=1,
        observations=observations,
    )
    expected = [
        row.unmasked().trained if observations == "learned" else row.trained for row in rows
    ]
    assert sorted(row.trained for row in learned) == sorted(expected)
    assert all(
        (logp != 0) == bool(chosen)
        for row in learned
        for logp, chosen in zip(row.logps, row.trained)
    )
    assert run.metrics[0]["new_tokens"] == sum(row.new_tokens for row in rows) / 4
    assert run.metrics[0]["ratio_mean"] == pytest.approx(1, abs=1e-5)


QUESTIONS = [("2+3?", "2+3", "5"), ("Add 10 and 4.", "10+4", "14")]


@pytest.fixture(scope="module")
def undecided(tokenizer):
    """A cold start that guesses wrong half of the time, and calls the other half."""
    called = lambda code, value: [
        ("python", code),
        ("output", value),
        ("text", f"\\boxed{{{value}}}"),
    ]
    trajectory = lambda question, pieces: Format().trajectory(tokenizer, question, pieces)
    shown = [
        t
        for q, code, value in QUESTIONS
        for t in (trajectory(q, called(code, value)), trajectory(q, [("text", "\\boxed{99}")]))
    ]
    model = small_model(len(tokenizer), d_model=64)
    model.reset_parameters()
    run = Run(model=model, tokenizer=tokenizer, metrics=[], traces=[], state={})
    run.config = SimpleNamespace(sft=sft.SFTConfig(steps=100, batch_size=4, warmup=5), seed=0)
    sft.train(run, shown)
    return model


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"updates": 2, "beta": 0.01, "kl": "k3_weighted"},
        {"loss_type": "grpo", "ratio_level": "sequence", "epsilon": 3e-2},
        {"loss_type": "sapo"},
        {"loss_type": "cispo", "epsilon_high": 5.0},
        {"loss_type": "gmpo", "epsilon": 0.4},
        {"loss_type": "luspo", "lr": 2e-4},
        {"loss_type": "vespo"},
        {"loss_type": "dr_grpo", "fused": True, "delta": 3.0},
        {"scale": "whiten", "entropy_coef": 1e-3, "filter_overlong": True},
    ],
)
def test_a_policy_that_may_guess_or_call_learns_that_calling_pays(
    undecided, tokenizer, python, settings
):
    """RL has to find out by itself which half of what the cold start does to keep."""
    run = Run(
        model=copy.deepcopy(undecided),
        tokenizer=tokenizer,
        format=Format(),
        tools=[python],
        problems=[Problem(q, value) for q, _, value in QUESTIONS],
        metrics=[],
        traces=[],
        state={},
    )
    rl = dict(steps=8, problems=2, group_size=8, lr=5e-4, warmup=0, refills=0) | settings
    run.config = SimpleNamespace(
        seed=0, rl=RLConfig(**rl), reward=RewardConfig(), sampler=SamplerConfig(max_new_tokens=24)
    )
    train(run)
    accuracy = [metrics["accuracy"] for metrics in run.metrics]
    assert accuracy[0] < 0.6 and sum(accuracy[-3:]) / 3 > 0.9
    assert max(metrics["logp_gap"] for metrics in run.metrics) <= 1e-4
    assert {"phase", "step", "question", "reward", "advantage", "spans"} <= run.traces[0].keys()
