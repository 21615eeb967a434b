import copy
from types import SimpleNamespace

import pytest
import torch
from conftest import small_model

from nanotir.logps import trained_logps
from nanotir.sampler import Sampler, SamplerConfig
from nanotir.sft import (
    SFTConfig,
    batch_of,
    learning_rate,
    make_optimizers,
    set_learning_rate,
    train,
)
from nanotir.trajectory import Format, collate

QUESTIONS = [
    ("2+3?", "2+3", "5"),
    ("Add 10 and 4.", "10+4", "14"),
    ("7 and 8?", "7+8", "15"),
    ("What is 20 plus 30?", "20+30", "50"),
]


@pytest.fixture(scope="module")
def demonstrations(tokenizer):
    pieces = lambda code, value: [
        ("text", "I add."),
        ("python", code),
        ("output", value),
        ("text", f"The answer is {value}."),
    ]
    return [
        Format().trajectory(tokenizer, question, pieces(code, value))
        for question, code, value in QUESTIONS
    ]


class Run(SimpleNamespace):
    """What the loop needs of a run, without a folder."""

    def restore(self, phase, optimizers):
        return 0

    def finish_step(self, step, metrics, optimizers, last=False):
        self.metrics.append(metrics)


def run_of(model, tokenizer, **settings):
    return Run(
        model=model,
        tokenizer=tokenizer,
        config=SimpleNamespace(sft=SFTConfig(**settings), seed=0),
        metrics=[],
    )


def test_the_loss_reaches_what_the_model_wrote_and_nothing_else(tokenizer, demonstrations):
    """The gradient where positions part, past the last attention, each to predict its next id: zero unless that id is trained."""
    model, kept = small_model(len(tokenizer)), []
    model.blocks[-1].attention.register_forward_hook(
        lambda module, inputs, output: output.retain_grad() or kept.append(output)
    )
    batch = collate(demonstrations, tokenizer.pad_id)
    trained_logps(model, batch.ids, batch.mask)[0].sum().backward()
    reached = kept[0].grad.abs().sum(-1) > 0  # (B, T - 1)
    assert torch.equal(reached, batch.mask[:, 1:])
    assert (kept[0].grad[~batch.mask[:, 1:]] == 0).all()
    for row, trajectory in enumerate(demonstrations):
        assert (
            trajectory.ids[-1] == tokenizer.end_id and reached[row, len(trajectory.ids) - 2]
        )  # stopping is taught
        for span in trajectory.spans:
            if span.kind in ("prompt", "output"):
                assert not reached[row, max(span.start - 1, 0) : span.end - 1].any()
        assert not reached[row, len(trajectory.ids) - 1 :].any()  # padding


def test_the_logits_at_tool_and_padding_positions_do_not_matter(tokenizer, demonstrations):
    model = small_model(len(tokenizer))
    batch = collate(demonstrations, tokenizer.pad_id)
    ids = batch.ids.clone()
    ids[~batch.mask.roll(-1, 1) & ~batch.mask & (ids == tokenizer.pad_id)] = 300  # other padding
    assert torch.equal(
        trained_logps(model, ids, batch.mask)[0], trained_logps(model, batch.ids, batch.mask)[0]
    )


def test_micro_batches_make_the_same_step_as_one_batch(tokenizer, demonstrations):
    first = small_model(len(tokenizer))
    second = copy.deepcopy(first)
    settings = dict(steps=1, batch_size=4, warmup=0, lr=1e-3, adam_lr=1e-3)
    runs = [
        run_of(first, tokenizer, micro_batch_tokens=10_000, **settings),
        run_of(second, tokenizer, micro_batch_tokens=20, **settings),
    ]
    for run in runs:
        train(run, demonstrations)
    assert runs[0].metrics[0]["loss"] == pytest.approx(runs[1].metrics[0]["loss"], rel=1e-5)
    assert runs[0].metrics[0]["grad_norm"] == pytest.approx(
        runs[1].metrics[0]["grad_norm"], rel=1e-4
    )


def test_the_loss_is_the_mean_over_all_trained_ids_of_the_step(tokenizer, demonstrations):
    model = small_model(len(tokenizer))
    with torch.no_grad():
        batch = collate(demonstrations, tokenizer.pad_id)
        expected = -trained_logps(model, batch.ids, batch.mask)[0].sum() / batch.mask.sum()
    run = run_of(model, tokenizer, steps=1, batch_size=4, micro_batch_tokens=60)
    train(run, demonstrations)
    assert run.metrics[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_a_model_learns_to_call_read_answer_and_stop(tokenizer, demonstrations, python):
    model = small_model(len(tokenizer), n_layers=2, d_model=64)
    model.reset_parameters()
    train(run_of(model, tokenizer, steps=60, batch_size=4, warmup=5), demonstrations)
    rows = Sampler(model, tokenizer, [python], Format(), SamplerConfig(temperature=0)).generate(
        [question for question, *_ in QUESTIONS]
    )
    assert [row.ids for row in rows] == [demonstration.ids for demonstration in demonstrations]
    assert [row.finish_reason for row in rows] == ["stop"] * 4


def test_every_parameter_has_one_optimizer():
    model = small_model(50)
    owned = [
        p
        for optimizer in make_optimizers(model, SFTConfig())
        for group in optimizer.param_groups
        for p in group["params"]
    ]
    assert len(owned) == len({id(p) for p in owned}) and {id(p) for p in owned} == {
        id(p) for p in model.parameters()
    }


def test_the_learning_rate_rises_stays_and_falls_to_zero():
    share = [learning_rate(step, 100, 10, 0.5) for step in range(101)]
    assert share[0] == 0.1 and share[9] == share[49] == 1 and share[100] == 0
    assert (
        share[75] == pytest.approx(0.5)
        and share[:10] == sorted(share[:10])
        and share[50:] == sorted(share[50:], reverse=True)
    )


def test_the_learning_rate_that_is_set_is_the_one_that_is_used():
    model = small_model(50)
    optimizers = make_optimizers(model, SFTConfig(lr=0.02, adam_lr=0.004))
    for share in (0.5, 0.25):
        set_learning_rate(optimizers, share)
        assert [group["lr"] for o in optimizers for group in o.param_groups] == [
            0.02 * share,
            0.004 * share,
        ]


def test_an_epoch_shows_every_demonstration_once_and_the_next_in_another_order():
    items = list(range(10))
    epochs = [
        [x for step in range(5 * epoch, 5 * epoch + 5) for x in batch_of(step, items, 2, 0)]
        for epoch in range(2)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == items and epochs[0] != epochs[1]
    assert batch_of(3, items, 2, 0) == batch_of(3, items, 2, 0) != batch_of(3, items, 2, 1)
    assert len(batch_of(0, items, 25, 0)) == 25  # a batch may be larger than the data
