import copy

import pytest
import torch
from conftest import small_model
from doubles import RunDouble, ids_of, sampler_of

from nanotir.batches import collate
from nanotir.logps import masked_logps, packed, packs
from nanotir.sft import SFTConfig, batch_of, train
from nanotir.trajectory import Format

QUESTIONS = {
    "2+3?": ("2+3", "5"),
    "Add 10 and 4.": ("10+4", "14"),
    "7 and 8?": ("7+8", "15"),
    "What is 20 plus 30?": ("20+30", "50"),
}


@pytest.fixture(scope="module")
def demonstrations(tokenizer):
    made = []
    for question, (code, value) in QUESTIONS.items():
        call = [("python", code), ("output", value)]
        pieces = [("text", "I add."), *call, ("text", f"The answer is {value}.")]
        made.append(Format().trajectory(tokenizer, question, pieces))
    return made


def imitated(model, tokenizer, demonstrations, **settings):
    """The metrics of all steps."""
    run = RunDouble(model, tokenizer, sft=SFTConfig(**settings))
    train(run, demonstrations)
    return run.metrics


def gradient_reaches(model, batch, tokenizer):
    """(B, T - 1): whether the loss has a gradient at each position, to predict its next id.

    It is measured after the last attention, where positions no longer mix.
    """
    kept = []

    def keep(module, inputs, output):
        output.retain_grad()
        kept.append(output)

    hook = model.blocks[-1].attention.register_forward_hook(keep)
    masked_logps(model, batch.ids, batch.mask)[0].sum().backward()
    hook.remove()
    reached = kept[0].grad.abs().sum(-1) > 0
    if not packs(model):
        return reached
    mask = batch.mask[:, 1:]
    places = torch.arange(mask.numel()).view(mask.shape)
    return torch.zeros_like(mask).put(packed(places, mask)[0], reached)


# What is learned.


def test_the_loss_reaches_exactly_the_ids_that_the_model_wrote(tokenizer, demonstrations):
    batch = collate(demonstrations, tokenizer.pad_id)
    reached = gradient_reaches(small_model(len(tokenizer)), batch, tokenizer)
    assert torch.equal(reached, batch.mask[:, 1:])


def test_stopping_is_learned(tokenizer, demonstrations):
    batch = collate(demonstrations, tokenizer.pad_id)
    reached = gradient_reaches(small_model(len(tokenizer)), batch, tokenizer)
    for row, trajectory in enumerate(demonstrations):
        assert trajectory.ids[-1] == tokenizer.end_id
        assert reached[row, len(trajectory.ids) - 2]


def test_prompts_tool_output_and_padding_are_not_learned(tokenizer, demonstrations):
    batch = collate(demonstrations, tokenizer.pad_id)
    reached = gradient_reaches(small_model(len(tokenizer)), batch, tokenizer)
    for row, trajectory in enumerate(demonstrations):
        assert not reached[row, len(trajectory.ids) - 1 :].any()
        for span in trajectory.spans:
            if span.kind in ("prompt", "output"):
                assert not reached[row, max(span.start - 1, 0) : span.end - 1].any()


def test_what_the_padding_is_does_not_matter(tokenizer, demonstrations):
    model = small_model(len(tokenizer))
    batch = collate(demonstrations, tokenizer.pad_id)
    other = collate(demonstrations, pad_id=300)
    assert not torch.equal(batch.ids, other.ids)
    logps, others = [masked_logps(model, b.ids, b.mask)[0] for b in (batch, other)]
    assert torch.equal(logps, others)


def test_the_loss_is_the_mean_over_all_ids_of_the_step_that_the_teacher_wrote(
    tokenizer, demonstrations
):
    model = small_model(len(tokenizer))
    batch = collate(demonstrations, tokenizer.pad_id)
    with torch.no_grad():
        expected = -masked_logps(model, batch.ids, batch.mask)[0].sum() / batch.mask.sum()
    settings = {"steps": 1, "batch_size": 4, "micro_batch_tokens": 60}
    (metrics,) = imitated(model, tokenizer, demonstrations, **settings)
    assert metrics["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert metrics["tokens"] == batch.mask.sum()


def test_observations_learned_teaches_tool_output_as_well(tokenizer, demonstrations):
    model = small_model(len(tokenizer))
    expected = sum(
        demonstration.with_output_in_mask().new_tokens for demonstration in demonstrations
    )
    settings = {"steps": 1, "batch_size": 4, "observations": "learned"}
    (metrics,) = imitated(model, tokenizer, demonstrations, **settings)
    assert metrics["tokens"] == expected


# Steps.


def test_micro_batches_make_the_same_step_as_one_batch(tokenizer, demonstrations):
    whole = small_model(len(tokenizer))
    parts = copy.deepcopy(whole)
    settings = {"steps": 1, "batch_size": 4, "warmup": 0, "lr": 1e-3, "adam_lr": 1e-3}
    (one,) = imitated(whole, tokenizer, demonstrations, micro_batch_tokens=10_000, **settings)
    (many,) = imitated(parts, tokenizer, demonstrations, micro_batch_tokens=20, **settings)
    assert one["loss"] == pytest.approx(many["loss"], rel=1e-5)
    assert one["grad_norm"] == pytest.approx(many["grad_norm"], rel=1e-4)


def test_the_learning_rate_follows_the_schedule(tokenizer, demonstrations):
    settings = {"steps": 8, "batch_size": 1, "warmup": 2, "decay": 0.5}
    metrics = imitated(small_model(len(tokenizer)), tokenizer, demonstrations, **settings)
    shares = [row["lr_share"] for row in metrics]
    assert shares == [0.5, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_no_steps_change_nothing(tokenizer, demonstrations):
    model = small_model(len(tokenizer))
    before = copy.deepcopy(model.state_dict())
    assert imitated(model, tokenizer, demonstrations, steps=0) == []
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_model_learns_to_call_read_answer_and_stop(tokenizer, demonstrations, python):
    model = small_model(len(tokenizer), d_model=64)
    model.reset_parameters()
    imitated(model, tokenizer, demonstrations, steps=60, batch_size=4, warmup=5)
    rows = sampler_of(model, tokenizer, [python], temperature=0).generate(list(QUESTIONS))
    assert ids_of(rows) == ids_of(demonstrations)
    assert [row.finish_reason for row in rows] == ["stop"] * 4


# Batches.


def epoch_of(number, seed=0):
    """The ten items of an epoch of five steps, in order."""
    steps = range(5 * number, 5 * number + 5)
    return [item for step in steps for item in batch_of(step, list(range(10)), 2, seed)]


@pytest.mark.parametrize("number", [0, 1])
def test_an_epoch_shows_every_demonstration_once(number):
    assert sorted(epoch_of(number)) == list(range(10))


def test_every_epoch_has_its_own_order():
    assert epoch_of(0) != epoch_of(1)


def test_a_batch_depends_on_the_step_and_the_seed_alone():
    items = list(range(10))
    assert batch_of(3, items, 2, 0) == batch_of(3, items, 2, 0) != batch_of(3, items, 2, 1)


def test_a_batch_may_be_larger_than_the_data():
    assert len(batch_of(0, list(range(10)), 25, 0)) == 25


def test_an_unknown_name_for_observations_is_refused():
    with pytest.raises(ValueError, match="sft.observations"):
        SFTConfig(observations="hidden")
