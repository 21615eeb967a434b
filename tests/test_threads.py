"""Several threads compute what one does, to the last bit."""

import os
import threading

import pytest
import torch
from conftest import small_model
from doubles import Spy, calling_transformer, sampler_of

from nanotir import optim, rl, sft, threads
from nanotir.batches import drawing_of
from nanotir.demonstrate import TeacherConfig, demonstrate
from nanotir.problems import load
from nanotir.rl import RLConfig
from nanotir.trajectory import Format


@pytest.fixture(scope="module")
def demonstrations(tokenizer):
    problems = load("generated", n=12, seed=2)
    return demonstrate(problems, tokenizer, Format(), {}, TeacherConfig())


def gradients(model):
    return {name: weight.grad for name, weight in model.named_parameters()}


def assert_equal(one: dict, other: dict):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def imitated(tokenizer, demonstrations, experts: int, bf16: bool, checkpointing: bool):
    """What two steps in micro-batches of a row or two make of a model."""
    model = small_model(len(tokenizer), n_experts=experts)
    model.checkpointing = checkpointing
    config = sft.SFTConfig(micro_batch_tokens=100, bf16=bf16)
    optimizers = optim.muon_and_adamw(model, config.lr, config.adam_lr)
    given = (model, optimizers, demonstrations, tokenizer.pad_id, config)
    return [sft.imitate(*given) for _ in range(2)], model.state_dict()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("experts", [0, 4])
def test_imitation_by_threads_takes_the_same_steps_to_the_last_bit(
    tokenizer, demonstrations, experts, bf16, checkpointing
):
    given = (tokenizer, demonstrations, experts, bf16, checkpointing)
    one_metrics, one = imitated(*given)
    threads.use_threads(3)
    metrics, many = imitated(*given)
    assert metrics == one_metrics
    assert_equal(one, many)


def updated(tokenizer, number: int, bf16: bool):
    """The log-probs, metrics and weights of two updates by so many threads."""
    threads.use_threads(number)
    model = calling_transformer(tokenizer)
    sampler = sampler_of(model, tokenizer, [Spy()])
    rows = sampler.generate(["What is 2 * 3?", "What is 4 * 5?"], 8)
    how, settings = drawing_of(sampler), RLConfig(micro_batch_tokens=100, bf16=bf16)
    rl.rescore(model, rows[8:], settings, how)
    optimizer = optim.adamw(model.parameters(), 1e-3)
    advantages = torch.linspace(-1, 1, 8)
    metrics = [
        rl.update(model, optimizer, part, advantages, settings, how)
        for part in (rows[:8], rows[8:])
    ]
    return [row.old_logps for row in rows], metrics, model.state_dict()


@pytest.mark.parametrize("bf16", [False, True])
def test_updates_by_threads_are_the_same_to_the_last_bit(tokenizer, bf16):
    one_logps, one_metrics, one = updated(tokenizer, 1, bf16)
    logps, metrics, many = updated(tokenizer, 3, bf16)
    assert logps == one_logps and metrics == one_metrics
    assert_equal(one, many)


def test_so_many_items_are_computed_at_a_time_and_come_in_their_order():
    threads.use_threads(3)
    together = threading.Barrier(3)

    def work(item):
        together.wait(timeout=10)
        return item, torch.get_num_threads()

    assert list(threads.each(work, range(6))) == [(item, 1) for item in range(6)]


def test_an_error_in_a_micro_batch_ends_the_step():
    threads.use_threads(2)
    with pytest.raises(ZeroDivisionError):
        threads.backpropagate(torch.nn.Linear(1, 1), lambda micro: 1 / 0, [1, 2])


def test_weights_that_no_micro_batch_uses_have_no_gradient():
    threads.use_threads(2)
    model = torch.nn.ModuleDict({"used": torch.nn.Linear(1, 1), "left": torch.nn.Linear(1, 1)})
    threads.backpropagate(model, lambda x: (model["used"](torch.ones(1)).sum() * x, x), [1.0, 2.0])
    assert model["left"].weight.grad is None and model["used"].weight.grad.item() == 3.0


def test_a_forked_process_which_has_no_threads_does_without():
    threads.use_threads(2)
    pid = os.fork()
    if not pid:
        doubled = list(threads.each(lambda number: 2 * number, [1, 2, 3]))
        os._exit(doubled == [2, 4, 6])
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def test_no_more_results_are_held_than_are_computed_and_one():
    threads.use_threads(2)
    held, most = [], []

    def work(number):
        held.append(number)
        most.append(len(held))
        return number

    for number in threads.each(work, range(20)):
        held.remove(number)
    assert max(most) <= 3
