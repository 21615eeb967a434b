import random

import pytest
import torch
from doubles import RunDouble, ids_of

from nanotir.metrics import rollout_metrics, trace
from nanotir.problems import Problem
from nanotir.rewards import RewardConfig
from nanotir.rl import RLConfig
from nanotir.rollout import Rollout, Sample, check_tools, collect, hash_of
from nanotir.tools import DeadTool, ToolResult
from nanotir.trajectory import Call, Format

KINDS = ("right", "wrong", "mixed")
PROBLEMS = [Problem(f"{kind} {i}?", "1", family=kind) for kind in KINDS for i in range(6)]


class Actor:
    """Plays a sampler: all right, all wrong, or every other answer right, as the question asks.

    The lengths differ within every group.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.asked, self.seeds = [], []

    def generate(self, prompts, n, seed):
        self.asked.append(list(prompts))
        self.seeds.append(seed)
        return [self.answer(prompt, i) for prompt in prompts for i in range(n)]

    def answer(self, prompt, i):
        kind = prompt.split()[0]
        value = {"right": 1, "wrong": 2, "mixed": 1 if i % 2 else 2}[kind]
        text = "so " * 8 * i + f"\\boxed{{{value}}}"
        return Format().trajectory(self.tokenizer, prompt, [("text", text)])


def collected(actor, drawn_from=PROBLEMS, reward=None, step=0, **settings):
    """A rollout with groups of four, of all problems unless the settings say otherwise."""
    settings = {"problems": 18, "group_size": 4, "refills": 0} | settings
    reward = reward or RewardConfig()
    return collect(actor, drawn_from, RLConfig(**settings), reward, seed=0, step=step)


@pytest.fixture
def actor(tokenizer):
    return Actor(tokenizer)


@pytest.fixture(scope="module")
def rollout(tokenizer):
    return collected(Actor(tokenizer))


def families(samples):
    return {sample.problem.family for sample in samples}


def groups_of(samples, size=4):
    return [samples[start : start + size] for start in range(0, len(samples), size)]


# What is kept.


def test_groups_without_spread_of_correctness_are_dropped_though_their_lengths_differ(rollout):
    lengths_cost = [sample for sample in rollout.samples if sample.reward not in (0, 1)]
    assert families(lengths_cost) == set(KINDS)
    assert families(rollout.kept) == {"mixed"}
    assert len(rollout.kept) == 6 * 4


def test_all_that_was_sampled_is_there_in_the_order_of_the_questions(actor):
    rollout = collected(actor)
    questions = [question for question in actor.asked[0] for _ in range(4)]
    assert [sample.problem.question for sample in rollout.samples] == questions
    assert len(questions) == 18 * 4


def test_without_dynamic_sampling_every_group_is_kept_and_none_refilled(actor):
    rollout = collected(actor, dynamic=False, refills=3)
    assert rollout.kept == rollout.samples
    assert len(actor.asked) == 1


def test_groups_stay_whole(rollout):
    for group in groups_of(rollout.kept):
        assert len({sample.problem.question for sample in group}) == 1


def test_rewards_stay_with_their_trajectories(rollout, tokenizer):
    for sample in rollout.samples:
        right = sample.trajectory.completion(tokenizer).endswith("{1}")
        assert sample.correct == right
        assert (sample.reward > 0.5) == right


def test_a_sample_knows_the_parts_of_its_reward_by_name(rollout):
    for sample in rollout.samples:
        assert sample.parts.keys() == {"accuracy", "length"}
        assert sample.parts["accuracy"] == sample.correct
        assert sample.reward == pytest.approx(sample.correct + 0.4 * sample.parts["length"])


def test_a_coin_decides_which_groups_have_spread(actor):
    random.seed(0)
    rollout = collected(actor, reward=RewardConfig(coin=True, length=0.0))
    assert families(rollout.kept) == set(KINDS)
    for group in groups_of(rollout.kept):
        assert {sample.reward for sample in group} == {0.0, 1.0}


def test_with_a_coin_the_true_accuracy_is_logged(actor):
    random.seed(0)
    rollout = collected(actor, reward=RewardConfig(coin=True, length=0.0))
    assert rollout_metrics(rollout.samples, rollout.kept, 4)["accuracy"] == 0.5


FEW = PROBLEMS[:3] + PROBLEMS[-3:]


@pytest.mark.parametrize("refills", [0, 1, 4])
def test_refills_go_on_until_the_batch_is_full_or_the_cap_is_reached(actor, refills):
    rollout = collected(actor, FEW, problems=5, refills=refills)
    assert len(actor.asked) <= 1 + refills
    assert len(rollout.kept) <= 5 * 4
    assert len(actor.asked) == 1 + refills or len(rollout.kept) == 5 * 4


def test_a_refill_asks_only_for_the_groups_that_are_missing(actor):
    collected(actor, FEW, problems=5, refills=1)
    first, second = actor.asked
    mixed = sum(question.startswith("mixed") for question in first)
    assert (len(first), len(second)) == (5, 5 - mixed)


def test_every_step_and_every_round_has_its_own_seed(actor):
    for step in range(3):
        collected(actor, PROBLEMS[:6], step=step, refills=1)
    assert len(set(actor.seeds)) == 6


def test_the_same_step_samples_the_same(tokenizer):
    one, other = [collected(Actor(tokenizer), FEW, problems=5, refills=1) for _ in range(2)]
    trajectories = [[sample.trajectory for sample in r.samples] for r in (one, other)]
    assert ids_of(trajectories[0]) == ids_of(trajectories[1])


def test_the_order_of_numbers_matters_to_their_hash():
    assert len({hash_of(1, 2), hash_of(2, 1), hash_of(12), hash_of(1, 2, 0)}) == 4


# Metrics.


@pytest.fixture(scope="module")
def metrics(rollout):
    return rollout_metrics(rollout.samples, rollout.kept, 4)


def test_metrics_count_all_that_was_sampled(metrics):
    assert metrics["accuracy"] == 0.5
    assert metrics["finish"] == {"stop": 72}
    assert metrics["tool_rate"] == metrics["calls"] == 0


def test_metrics_count_groups(metrics):
    assert (metrics["groups_sampled"], metrics["groups_kept"]) == (18, 6)
    assert metrics["groups_without_spread"] == pytest.approx(12 / 18)


def test_the_lengths_of_right_and_wrong_answers_are_logged_apart(rollout, metrics):
    for name, correct in (("new_tokens_right", 1), ("new_tokens_wrong", 0)):
        answers = [sample for sample in rollout.samples if sample.correct == correct]
        mean = sum(sample.trajectory.new_tokens for sample in answers) / 36
        assert metrics[name] == pytest.approx(mean)
    assert metrics["new_tokens_right"] != metrics["new_tokens_wrong"]


def test_where_no_answer_was_wrong_their_length_is_not_logged(actor):
    rollout = collected(actor, PROBLEMS[:6], problems=6)
    assert "new_tokens_wrong" not in rollout_metrics(rollout.samples, rollout.kept, 4)


def with_calls(tokenizer, *results, problem=PROBLEMS[0]):
    """One sample with a call of python for each result."""
    trajectory = Format().trajectory(tokenizer, "q", [("text", "x")])
    trajectory.calls = [Call("python", "1", result) for result in results]
    return Sample(problem, trajectory, reward=0.0, correct=0.0)


DEAD = ToolResult("NameError: name 'x' is not defined", False, "error")
ALIVE = ToolResult("2")


def test_calls_are_logged_by_kind_and_by_status(tokenizer):
    kinds = [Problem("q", "1", kind="A"), Problem("q", "1", kind="C")]
    samples = [
        with_calls(tokenizer, ALIVE, DEAD, problem=kinds[0]),
        with_calls(tokenizer, ALIVE, problem=kinds[0]),
        with_calls(tokenizer, problem=kinds[1]),
        with_calls(tokenizer, problem=kinds[1]),
    ]
    metrics = rollout_metrics(samples, samples, 2)
    assert metrics["calls_by_kind"] == {"A": 1.5, "C": 0}
    assert metrics["call_status"] == {"ok": 2, "error": 1}
    assert (metrics["calls"], metrics["tool_rate"]) == (0.75, 0.5)


# Dead tools.


def check(tokenizer, results, dead, alive=0):
    sample = with_calls(tokenizer, *[DEAD] * dead, *[ALIVE] * alive)
    check_tools(Rollout(samples=[sample]), results)


def test_a_tool_that_only_fails_stops_the_run_and_says_why(tokenizer):
    with pytest.raises(DeadTool, match=r"'python' failed on 40 of 40 calls.*NameError"):
        check(tokenizer, {"python": []}, dead=40)


def test_a_tool_is_dead_if_more_than_nine_calls_of_ten_fail(tokenizer):
    with pytest.raises(DeadTool, match="37 of 40"):
        check(tokenizer, {"python": []}, dead=37, alive=3)


def test_a_tool_is_alive_if_a_tenth_of_its_calls_succeed(tokenizer):
    check(tokenizer, {"python": []}, dead=36, alive=4)


def test_few_failures_add_up_from_step_to_step(tokenizer):
    results = {"python": []}
    for _ in range(3):
        check(tokenizer, results, dead=10)  # too few to tell
    with pytest.raises(DeadTool, match="40 of 40"):
        check(tokenizer, results, dead=10)


def test_a_tool_that_died_later_is_not_excused_by_its_earlier_calls(tokenizer):
    results = {"python": []}
    check(tokenizer, results, dead=0, alive=40)
    with pytest.raises(DeadTool, match="40 of 40"):
        check(tokenizer, results, dead=40)


# Traces.


def traced(tokenizer, rollout, steps, step):
    run = RunDouble(None, tokenizer, rl=RLConfig(steps=steps, group_size=4))
    trace(rollout.kept, torch.arange(len(rollout.kept)), run, step)
    return run.traces


@pytest.mark.parametrize("steps, expected", [(10, 10), (20, 20), (100, 20), (119, 24)])
def test_about_twenty_steps_of_a_run_are_traced(tokenizer, rollout, steps, expected):
    written = [bool(traced(tokenizer, rollout, steps, step)) for step in range(steps)]
    assert sum(written) == expected


def test_a_trace_is_one_whole_group_that_was_learned_from(tokenizer, rollout):
    rows = traced(tokenizer, rollout, steps=5, step=3)
    group = rollout.kept[:4]
    assert [row["question"] for row in rows] == [group[0].problem.question] * 4
    assert [row["reward"] for row in rows] == [sample.reward for sample in group]
    assert [row["correct"] for row in rows] == [sample.correct for sample in group]
    assert [row["advantage"] for row in rows] == [0, 1, 2, 3]
    assert {(row["phase"], row["step"]) for row in rows} == {("rl", 4)}


def test_a_trace_records_the_trajectory(tokenizer, rollout):
    row = traced(tokenizer, rollout, steps=5, step=0)[0]
    record = rollout.kept[0].trajectory.record(tokenizer)
    assert {name: row[name] for name in record} == record
