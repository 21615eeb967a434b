import json
import math

import pytest
import torch

from nanotir import rl
from nanotir.batches import collate
from nanotir.config import PRESETS, build
from nanotir.lab.toy import make_run
from nanotir.logps import autocast, masked_logps
from nanotir.problems import Problem
from nanotir.recipes import autocode
from nanotir.recipes.autocode import (
    AutoCodeConfig,
    Explored,
    decision_logps,
    em_metrics,
    explore,
    in_code,
    m_step,
    strategy,
    subsample,
    target_of,
)
from nanotir.rl import make_sampler
from nanotir.routing import Routing, router_loss
from nanotir.run import Run, Stopped
from nanotir.tokenizer import ASSISTANT

pytestmark = pytest.mark.usefixtures("shared_tools")


def config(tmp_path, **settings):
    small = {"sft.steps": 4, "rl.steps": 4, "rl.problems": 2, "problems": 30}
    own = {"recipe": "autocode", "out": str(tmp_path / "run")}
    given = {name.replace("__", "."): value for name, value in settings.items()}
    return build({**autocode.SETTINGS, **PRESETS["probe"], **small, **own, **given})


@pytest.fixture
def run(tmp_path):
    with make_run(config(tmp_path)) as run:
        yield run


def decision_tags(run) -> list[int]:
    return [run.tokenizer.tags[decision] for decision in autocode.DECISIONS]


def first_id(trajectory) -> int:
    """The first id that the model wrote: its decision."""
    return trajectory.ids[trajectory.mask.index(1)]


# The strategy s*.


def test_with_alpha_infinite_the_decision_with_the_larger_product_wins():
    assert strategy([0.9, 0.1], [0.25, 0.5], AutoCodeConfig()) == [1.0, 0.0]
    assert strategy([0.4, 0.6], [0.5, 0.5], AutoCodeConfig()) == [0.0, 1.0]


def test_with_alpha_infinite_the_strategy_is_the_limit_of_the_formula():
    sharp = AutoCodeConfig(alpha=1e6)
    for prior, Q in [([0.9, 0.1], [0.25, 0.5]), ([0.3, 0.7], [0.5, 0.25]), ([0.2, 0.8], [0, 0])]:
        assert strategy(prior, Q, AutoCodeConfig()) == pytest.approx(strategy(prior, Q, sharp))


def test_equal_products_share_the_limit():
    assert strategy([0.5, 0.5], [0.5, 0.5], AutoCodeConfig()) == [0.5, 0.5]


def test_by_default_the_target_is_the_papers(run):
    for row in explore(run, make_sampler(run), 0):
        assert row.target == strategy(row.prior, row.Q, AutoCodeConfig())


def test_by_quality_the_better_decision_wins_whatever_the_prior():
    quality = AutoCodeConfig(strategy="quality")
    assert target_of([0.9, 0.1], [0.25, 0.5], quality) == [0.0, 1.0]
    assert target_of([0.1, 0.9], [0.5, 0.5], quality) == [1.0, 0.0]  # words win a tie


def test_the_posterior_is_proportional_to_pi_q():
    posterior = AutoCodeConfig(strategy="posterior")
    assert target_of([0.25, 0.75], [0.5, 0.5], posterior) == pytest.approx([0.25, 0.75])
    assert target_of([0.5, 0.5], [0.25, 0.75], posterior) == pytest.approx([0.25, 0.75])


def test_where_nothing_is_right_the_posterior_is_the_prior():
    assert target_of([0.25, 0.75], [0.0, 0.0], AutoCodeConfig(strategy="posterior")) == [0.25, 0.75]


def test_with_finite_alpha_the_strategy_is_the_softmax_of_alpha_pi_q():
    s = strategy([0.3, 0.7], [0.5, 1.0], AutoCodeConfig(alpha=4.0))
    words, code = math.exp(4 * 0.3 * 0.5), math.exp(4 * 0.7 * 1.0)
    assert s == pytest.approx([words / (words + code), code / (words + code)])


@pytest.mark.parametrize(
    "settings",
    [
        {"samples": 1},
        {"alpha": -1.0},
        {"strategy": "best"},
        {"strategy": "posterior", "alpha": 4.0},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError):
        AutoCodeConfig(**settings)


# What is imitated.


def test_every_problem_is_demonstrated_with_both_decisions(run):
    words, code = decision_tags(run)
    shown = autocode.demonstrations(run)
    assert [first_id(t) for t in shown] == [words] * 30 + [code] * 30


def test_where_no_program_helps_a_hasty_coder_prints_the_last_word():
    problem = Problem("Which is the last of a, b?", "c", solution=(("text", "It is c."),))
    assert in_code(problem) == [("python", "'b'"), ("text", "The answer is \\boxed{b}.")]


# The E-step.


def test_each_decision_is_forced_on_k_rollouts(run):
    tags = decision_tags(run)
    for row in explore(run, make_sampler(run), 0):
        assert [len(rollouts) for rollouts in row.rollouts] == [run.config.autocode.samples] * 2
        assert [{first_id(t) for t in rollouts} for rollouts in row.rollouts] == [
            {tag} for tag in tags
        ]


@pytest.mark.parametrize("baseline, best", [("mean", 0.75), ("leave_one_out", 1.0)])
def test_advantages_are_computed_as_in_rl(run, monkeypatch, baseline, best):
    run.config.rl.scale, run.config.rl.baseline = "none", baseline

    def one_in_four(rows, *rest):
        paid = [float(i % 4 == 0) for i in range(len(rows))]
        return paid, {"outcome": paid, "accuracy": paid}

    monkeypatch.setattr(autocode, "score", one_in_four)
    for row in explore(run, make_sampler(run), 0):
        assert [advantages[0] for advantages in row.advantages] == [best, best]


def test_the_prior_of_a_decision_is_the_models(run):
    for row in explore(run, make_sampler(run), 0):
        prompt = torch.tensor([run.format.prompt(run.tokenizer, row.problem.question)])
        logits = run.model(prompt)[0, -1][decision_tags(run)]
        assert row.prior == pytest.approx(logits.softmax(0).tolist(), abs=1e-5)


def test_forced_code_is_run(run):
    rows = [t for row in explore(run, make_sampler(run), 0) for t in row.rollouts[1]]
    closed = [t for t in rows if run.tokenizer.tags["</python>"] in t.ids]
    assert all(t.calls for t in closed)


def test_k_rollouts_a_problem_are_drawn_without_repetition(run):
    explored = explore(run, make_sampler(run), 0)
    drawn = subsample(explored, run, 0)
    assert len(drawn) == run.config.autocode.samples * len(explored)
    assert len({id(trajectory) for trajectory, _, _ in drawn}) == len(drawn)


def test_rollouts_are_drawn_only_of_decisions_that_the_strategy_allows(run):
    explored = explore(run, make_sampler(run), 0)
    for row in explored:
        row.target = [0.0, 1.0]
    _, code = decision_tags(run)
    assert {first_id(trajectory) for trajectory, _, _ in subsample(explored, run, 0)} == {code}


# The M-step.


def test_log_probs_of_decisions_are_those_at_the_prompts_end_among_all_that_can_be_sampled(run):
    sampler = make_sampler(run)
    ids = torch.randint(100, (2, 9), generator=torch.Generator().manual_seed(0))
    logits = run.model(ids)
    logits[..., sampler.banned] = float("-inf")
    logps = torch.stack([logits[0, 3], logits[1, 5]]).log_softmax(-1)
    found = decision_logps(run.model, ids, torch.tensor([4, 6]), sampler)
    torch.testing.assert_close(found, logps[:, decision_tags(run)])


def decision_logps_of(run, rollouts):
    """log pi(c|x) (B, 2) at the decisions of the rollouts, as the M-step computes it."""
    batch = collate(rollouts, run.tokenizer.pad_id)
    return decision_logps(run.model, batch.ids, batch.mask.int().argmax(1), make_sampler(run))


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_log_probs_of_decisions_are_the_sampler_s_at_its_temperature(run, temperature):
    run.config.sampler.temperature = temperature
    for row in explore(run, make_sampler(run), 0):
        found = decision_logps_of(run, [rollouts[0] for rollouts in row.rollouts])
        assert found[0].tolist() == pytest.approx(row.logps, abs=1e-4)


class Watched:
    """An optimizer that keeps the gradient and changes nothing."""

    def __init__(self, model):
        self.model = model

    def step(self):
        self.taken = {name: w.grad.clone() for name, w in self.model.named_parameters()}

    def zero_grad(self):
        self.model.zero_grad()


def one_m_step(run, advantages, targets):
    """(the gradient of one M-step by name, its losses, its rollouts)."""
    sampler = make_sampler(run)
    explored = explore(run, sampler, 0)
    rollouts = [t for row in explored for group in row.rollouts for t in group]
    drawn = list(zip(rollouts, advantages, targets))
    optimizer = Watched(run.model)
    losses = m_step(run.model, optimizer, drawn, run.config.rl, sampler)
    return optimizer.taken, losses, rollouts[: len(drawn)]


def test_without_advantages_the_m_step_is_the_cross_entropy_of_the_decision(run):
    taken, losses, rollouts = one_m_step(run, [0.0] * 4, [[0.25, 0.75]] * 4)
    logps = decision_logps_of(run, rollouts)
    expected = -(torch.tensor([0.25, 0.75]) * logps).sum(1).mean()
    assert losses["decision_loss"] == pytest.approx(expected.item(), abs=1e-5)
    assert losses["loss"] == pytest.approx(0.0, abs=1e-6)

    expected.backward()
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.config.rl.grad_clip)
    assert norm > 0
    for name, weight in run.model.named_parameters():
        torch.testing.assert_close(taken[name], weight.grad, atol=1e-5, rtol=1e-3)


def test_the_m_step_computes_in_bf16_where_that_is_asked_for(run):
    run.config.rl.bf16 = True
    _, losses, rollouts = one_m_step(run, [0.0] * 4, [[0.25, 0.75]] * 4)
    found = {}
    for bf16 in (True, False):
        with autocast(torch.device("cpu"), bf16):
            logps = decision_logps_of(run, rollouts)
        found[bf16] = -(torch.tensor([0.25, 0.75]) * logps).sum(1).mean().item()
    assert found[True] != found[False]
    assert abs(losses["decision_loss"] - found[True]) < abs(losses["decision_loss"] - found[False])


def test_routers_learn_to_spread_the_load_in_the_m_step(tmp_path):
    with make_run(config(tmp_path, model__n_experts=4)) as run:
        taken, losses, rollouts = one_m_step(run, [0.0] * 4, [[0.0, 0.0]] * 4)
        batch = collate(rollouts, run.tokenizer.pad_id)
        routing = Routing()
        run.model.hidden(batch.ids[:, :-1], routing=routing)
        real = batch.real[:, 1:]
        expected, balance = router_loss(routing, real, int(real.sum()), run.model.config)
        expected.backward()
    assert losses["router_aux"] == pytest.approx(balance, abs=1e-4)
    routers = [name for name in taken if "router" in name]
    assert routers
    for name in routers:
        gradient = run.model.get_parameter(name).grad
        assert gradient.abs().max() > 0
        torch.testing.assert_close(taken[name], gradient, atol=1e-6, rtol=1e-3)


def test_the_policy_gradient_leaves_the_decision_id_alone(run, monkeypatch):
    seen = []

    def spied(model, ids, mask, *rest, **options):
        seen.append((ids, mask))
        return masked_logps(model, ids, mask, *rest, **options)

    monkeypatch.setattr(rl, "masked_logps", spied)
    one_m_step(run, [1.0, -1.0, 0.5, -0.5], [[1.0, 0.0]] * 4)
    assert seen
    for ids, mask in seen:
        rows = range(len(ids))
        first = (ids == run.tokenizer.tags[ASSISTANT]).int().argmax(1) + 1  # (B,)
        assert not mask[rows, first].any()
        assert mask[rows, first + 1].all()


def improved(tmp_path, **settings) -> tuple:
    """(the log-probs of before the M-step, how far from them each update's ratios are)."""
    with make_run(config(tmp_path, rl__steps=1, rl__lr=3e-3, rl__warmup=0, **settings)) as run:
        seen, before = [], []
        rescored, updated = autocode.rescore, autocode.m_step

        def rescore(model, trajectories, *rest):
            gap = rescored(model, trajectories, *rest)
            before.extend(list(t.old_logps) for t in trajectories)
            return gap

        def m_step(model, optimizer, drawn, *rest):
            seen.append((drawn, updated(model, optimizer, drawn, *rest)))
            return seen[-1][1]

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(autocode, "rescore", rescore)
            patched.setattr(autocode, "m_step", m_step)
            autocode.improve(run)
        logged = [json.loads(row) for row in (run.out / "metrics.jsonl").read_text().splitlines()]
    return before, seen, logged[-1]


def test_the_m_step_learns_from_the_same_rows_several_times(tmp_path):
    _, seen, _ = improved(tmp_path, rl__updates=1, rl__iterations=3)
    rows = [[id(trajectory) for trajectory, _, _ in drawn] for drawn, _ in seen]
    assert len(rows) == 3 and rows[0] == rows[1] == rows[2]


def test_ratios_stay_against_the_policy_that_explored(tmp_path):
    before, seen, _ = improved(tmp_path, rl__updates=1, rl__iterations=3)
    after = [t.old_logps for t, _, _ in seen[-1][0]]
    assert sorted(map(str, after)) == sorted(map(str, before))
    variances = [metrics["ratio_variance"] for _, metrics in seen]
    assert variances[0] < 1e-8 < min(variances[1:])


def test_what_is_clipped_is_logged(tmp_path):
    _, seen, logged = improved(tmp_path, rl__updates=1, rl__iterations=3, rl__epsilon_high=1e-6)
    assert {"clip_low", "clip_high", "ratio_variance", "decision_loss"} <= set(logged)


def test_by_default_the_ratio_is_clipped_alike_on_both_sides(tmp_path):
    settings = config(tmp_path).rl
    assert (settings.epsilon, settings.epsilon_high) == (0.2, 0.2)


# Whole runs.


SHORT = {"sampler__max_new_tokens": 16}  # what is looked at does not depend on long answers


@pytest.mark.parametrize("winner", [0, 1])
def test_em_moves_the_policy_towards_the_decision_that_answers(tmp_path, monkeypatch, winner):
    """Where only words are right, eight rounds make words likelier; where only code is, code."""

    def graded(trajectories, problems, tokenizer, reward):
        right = tokenizer.tags[autocode.DECISIONS[winner]]
        values = [float(first_id(t) == right) for t in trajectories]
        return values, {"outcome": values, "accuracy": values}

    monkeypatch.setattr(autocode, "score", graded)
    with make_run(config(tmp_path, rl__steps=8, rl__lr=3e-3, rl__warmup=1, **SHORT)) as run:
        autocode.improve(run)
        explored = explore(run, make_sampler(run), 99)
    rate = em_metrics(explored)["code_rate"]
    assert rate > 0.8 if winner else rate < 0.2


def weights(run) -> dict:
    return {name: weight.clone() for name, weight in run.model.state_dict().items()}


def test_stopped_and_resumed_expectation_maximisation_is_the_same(tmp_path, monkeypatch):
    with make_run(config(tmp_path / "whole", **SHORT)) as run:
        autocode.improve(run)
        whole = weights(run)

    finish = Run.finish_step

    def stop_after_two(self, step, *rest, **options):
        self.stop_requested = step == 2
        finish(self, step, *rest, **options)

    half = config(tmp_path / "half", **SHORT)
    with monkeypatch.context() as patched, make_run(half) as stopped:
        patched.setattr(Run, "finish_step", stop_after_two)
        with pytest.raises(Stopped):
            autocode.improve(stopped)

    with make_run(config(tmp_path / "again", **SHORT)) as run:
        run.out = stopped.out
        run.resume()
        assert run.state["step"] == 2
        autocode.improve(run)
    for name, weight in weights(run).items():
        assert torch.equal(weight, whole[name]), name


def test_a_coin_decides_what_em_learns_and_not_what_is_reported(tmp_path):
    with make_run(config(tmp_path, reward__coin=True)) as run:
        explored = explore(run, make_sampler(run), 0)
    assert any(q > 0 for row in explored for q in row.Q)
    assert [row.accuracy for row in explored] == [[0.0, 0.0]] * len(explored)
    assert em_metrics(explored)["accuracy"] == 0.0


# What is reported.


def test_metrics_say_how_the_policy_decides_and_how_well():
    even = Explored(Problem("?", "1"), logps=[math.log(0.25)] * 2, accuracy=[0.5, 1.0])
    code = Explored(Problem("!", "1"), logps=[math.log(0.2), math.log(0.8)], accuracy=[0.0, 1.0])
    metrics = em_metrics([even, code])
    assert metrics["accuracy"] == pytest.approx((0.5 * 0.5 + 0.5 * 1.0 + 0.8 * 1.0) / 2)
    assert (metrics["Q_words"], metrics["Q_code"]) == (0.25, 1.0)
    assert metrics["code_rate"] == pytest.approx((0.5 + 0.8) / 2)
    assert metrics["decided"] == pytest.approx((0.5 + 1.0) / 2)
    assert metrics["clear"] == 1.0
    assert metrics["clear_selection"] == 0.5  # words are not the better decision of the first


def test_decisions_that_hardly_differ_are_no_selection():
    tie = Explored(Problem("?", "1"), logps=[-1.0, -2.0], accuracy=[0.5, 0.75])
    metrics = em_metrics([tie])
    assert metrics["clear"] == 0 and "clear_selection" not in metrics
