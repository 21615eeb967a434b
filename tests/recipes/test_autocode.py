import math

import pytest
import torch

from nanotir.checkpoint import Stopped, open_run
from nanotir.config import PRESETS, build
from nanotir.logps import trained_logps
from nanotir.recipes import autocode
from nanotir.recipes.autocode import (
    AutoCodeConfig,
    better,
    both_ways,
    decision_logps,
    describe,
    explore,
    m_step,
    strategy,
    subsample,
)
from nanotir.sampler import Sampler
from nanotir.tokenizer import ASSISTANT
from nanotir.trajectory import collate

pytestmark = pytest.mark.usefixtures("shared_tools")


def config(tmp_path, **settings):
    values = {
        **autocode.SETTINGS,
        **PRESETS["probe"],
        "recipe": "autocode",
        "sft.steps": 4,
        "rl.steps": 4,
        "rl.problems": 2,
        "problems": 30,
        "out": str(tmp_path / "run"),
    }
    return build(values | {name.replace("__", "."): value for name, value in settings.items()})


@pytest.fixture
def run(tmp_path):
    with open_run(config(tmp_path)) as run:
        yield run


def sampler_of(run):
    return Sampler(run.model, run.tokenizer, run.tools, run.format, run.config.sampler)


def test_with_alpha_infinite_the_better_decision_wins_and_words_win_a_tie():
    assert strategy([0.9, 0.1], [0.25, 0.5], AutoCodeConfig()) == [0.0, 1.0]
    assert (
        strategy([0.1, 0.9], [0.5, 0.5], AutoCodeConfig()) == [1.0, 0.0] and better([0.5, 0.5]) == 0
    )


def test_with_finite_alpha_the_strategy_is_the_softmax_of_alpha_pi_q():
    s = strategy([0.3, 0.7], [0.5, 1.0], AutoCodeConfig(alpha=4.0))
    z = math.exp(4 * 0.3 * 0.5) + math.exp(4 * 0.7 * 1.0)
    assert s == pytest.approx([math.exp(4 * 0.3 * 0.5) / z, math.exp(4 * 0.7) / z])


def test_the_posterior_is_proportional_to_pi_q_and_the_prior_where_nothing_is_right():
    assert strategy([0.2, 0.8], [1.0, 0.5], AutoCodeConfig(posterior=True)) == pytest.approx(
        [1 / 3, 2 / 3]
    )
    assert strategy([0.2, 0.8], [0.0, 0.0], AutoCodeConfig(posterior=True)) == [0.2, 0.8]


def test_every_problem_is_demonstrated_with_both_decisions(run):
    tags = [run.tokenizer.tags[c] for c in autocode.DECISIONS]
    first = [t.ids[t.trained.index(1)] for t in both_ways(run)]
    assert first == [tags[0]] * len(run.problems) + [tags[1]] * len(run.problems)


def test_each_decision_is_forced_on_k_rollouts_and_its_prior_is_the_models(run):
    sampler, K = sampler_of(run), run.config.autocode.samples
    for row in explore(run, sampler, 0):
        prompt = torch.tensor([run.format.prompt(run.tokenizer, row["problem"].question)])
        logits = run.model(prompt)[0, -1][[run.tokenizer.tags[c] for c in autocode.DECISIONS]]
        assert row["prior"] == pytest.approx(logits.softmax(0).tolist(), abs=1e-5)
        for decision, rollouts in zip(autocode.DECISIONS, row["rollouts"]):
            assert len(rollouts) == K and {t.ids[t.trained.index(1)] for t in rollouts} == {
                run.tokenizer.tags[decision]
            }


def test_forced_code_is_run(run):
    rows = [t for row in explore(run, sampler_of(run), 0) for t in row["rollouts"][1]]
    closed = [t for t in rows if run.tokenizer.tags["</python>"] in t.ids]
    assert all(t.calls for t in closed)


def test_k_rollouts_a_problem_are_drawn_without_repetition_and_only_of_decisions_that_the_strategy_allows(
    run,
):
    explored = explore(run, sampler_of(run), 0)
    for row in explored:
        row["target"] = [0.0, 1.0]
    drawn = subsample(explored, run, 0)
    assert len(drawn) == run.config.autocode.samples * len(explored) and len(
        {id(t) for t, *_ in drawn}
    ) == len(drawn)
    assert {t.ids[t.trained.index(1)] for t, *_ in drawn} == {run.tokenizer.tags["<python>"]}


def test_the_log_probs_of_decisions_are_read_at_the_end_of_the_prompt_among_all_that_can_be_said(
    run,
):
    sampler, ids = (
        sampler_of(run),
        torch.randint(100, (2, 9), generator=torch.Generator().manual_seed(0)),
    )
    logits = run.model(ids)
    logits[..., sampler.banned] = float("-inf")
    tags = [run.tokenizer.tags[c] for c in autocode.DECISIONS]
    expected = torch.stack([logits[0, 3], logits[1, 5]]).log_softmax(-1)[:, tags]
    torch.testing.assert_close(
        decision_logps(run.model, ids, torch.tensor([4, 6]), sampler), expected
    )


def m_step_gradient(run, advantages, targets):
    """The gradient of one M-step on the explored rollouts, by name, without the step."""
    sampler, taken = sampler_of(run), {}
    explored = explore(run, sampler, 0)
    rollouts = [t for row in explored for group in row["rollouts"] for t in group][
        : len(advantages)
    ]

    class Optimizer:
        def step(self):
            taken.update(
                {name: weight.grad.clone() for name, weight in run.model.named_parameters()}
            )

        def zero_grad(self):
            run.model.zero_grad()

    losses = m_step(
        run.model, Optimizer(), list(zip(rollouts, advantages, targets)), run.config.rl, sampler
    )
    return taken, losses, rollouts


def test_without_advantages_the_m_step_is_the_cross_entropy_of_the_decision(run):
    taken, losses, rollouts = m_step_gradient(run, [0.0] * 4, [[0.25, 0.75]] * 4)
    batch = collate(rollouts, run.tokenizer.pad_id)
    logps = decision_logps(run.model, batch.ids, batch.mask.int().argmax(1), sampler_of(run))
    expected = -(torch.tensor([0.25, 0.75]) * logps).sum(1).mean()
    assert losses["decision_loss"] == pytest.approx(expected.item(), abs=1e-5) and losses[
        "loss"
    ] == pytest.approx(0.0, abs=1e-6)
    expected.backward()
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.config.rl.grad_clip)
    assert norm > 0
    for name, weight in run.model.named_parameters():
        torch.testing.assert_close(taken[name], weight.grad, atol=1e-5, rtol=1e-3)


def test_the_policy_gradient_leaves_the_decision_id_alone(run, monkeypatch):
    masks = []
    spied = lambda model, ids, mask, *rest, **options: (
        masks.append((ids, mask)) or trained_logps(model, ids, mask, *rest, **options)
    )
    monkeypatch.setattr(autocode, "trained_logps", spied)
    m_step_gradient(run, [1.0, -1.0, 0.5, -0.5], [[1.0, 0.0]] * 4)
    for ids, mask in masks:
        first = (ids == run.tokenizer.tags[ASSISTANT]).int().argmax(1) + 1  # (B,)
        assert not mask[range(len(ids)), first].any() and mask[range(len(ids)), first + 1].all()


def test_em_moves_the_policy_towards_the_decision_that_answers(tmp_path, monkeypatch):
    """Where only code is right, twenty rounds make code likelier; where only words are, words."""
    right = {"think": 0.0, "python": 1.0}

    def graded(trajectories, problems, tokenizer, reward):
        values = [
            right["python" if t.ids[t.trained.index(1)] == tokenizer.tags["<python>"] else "think"]
            for t in trajectories
        ]
        return values, {"outcome": values, "accuracy": values}

    monkeypatch.setattr(autocode, "score", graded)
    rates = {}
    for winner in ("think", "python"):
        right.update(think=float(winner == "think"), python=float(winner == "python"))
        with open_run(config(tmp_path / winner, rl__steps=8, rl__lr=3e-3, rl__warmup=1)) as run:
            autocode.maximise(run)
            rates[winner] = describe(explore(run, sampler_of(run), 99))["code_rate"]
    assert rates["think"] < 0.2 and rates["python"] > 0.8


def test_stopped_and_resumed_expectation_maximisation_is_the_same(tmp_path):
    def weights(run):
        return {name: weight.clone() for name, weight in run.model.state_dict().items()}

    with open_run(config(tmp_path / "whole")) as run:
        autocode.maximise(run)
        whole = weights(run)
    with open_run(config(tmp_path / "half")) as run, pytest.raises(Stopped):
        finish = run.finish_step

        def stop_after_two(step, *rest, **options):
            run.stop_requested = step == 2
            finish(step, *rest, **options)

        run.finish_step = stop_after_two
        autocode.maximise(run)
    resumed = config(tmp_path / "half")
    resumed.resume = resumed.out
    with open_run(resumed) as run:
        autocode.maximise(run)
        for name, weight in weights(run).items():
            assert torch.equal(weight, whole[name]), name


def test_a_coin_decides_what_em_learns_and_not_what_is_reported(tmp_path):
    with open_run(config(tmp_path, reward__coin=True)) as run:
        explored = explore(run, sampler_of(run), 0)
    assert any(0 < q for row in explored for q in row["Q"]) and all(
        row["accuracy"] == [0.0, 0.0] for row in explored
    )
    assert describe(explored)["accuracy"] == 0.0
