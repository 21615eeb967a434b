"""What routers chose, counted and compared."""

import copy

import pytest
import torch
import torch.nn as nn
from conftest import small_model

from nanotir.demonstrate import act_out
from nanotir.lab.experiments import EXPERIMENTS
from nanotir.lab.experts import (
    KINDS,
    chosen_experts,
    expert_disagreement,
    expert_use,
    kinds_of_spans,
    kinds_of_tokens,
)
from nanotir.problems import load
from nanotir.trajectory import Format

E = 4


def moe_model(vocab_size, seed=0, **settings):
    return small_model(vocab_size, seed, **{"n_experts": E} | settings)


def test_expert_use_counts_choices_by_kind_and_layer(tokenizer, demonstrations):
    model = moe_model(len(tokenizer))
    counts = {kind: torch.zeros(2, E) for kind in ("prompt", "text", "python", "output")}
    for t in demonstrations:
        chosen = chosen_experts(model, torch.tensor([t.ids]))  # (L, 1, T, k)
        for span in t.spans:
            for layer in range(2):
                for e in chosen[layer, 0, span.start : span.end].flatten().tolist():
                    counts[span.kind][layer, e] += 1
    use = expert_use(model, tokenizer, demonstrations)
    assert list(use) == list(counts)
    for kind, shares in use.items():
        expected = counts[kind] / counts[kind].sum(1, keepdim=True)
        torch.testing.assert_close(torch.tensor(shares), expected)


def test_kinds_of_tokens_tell_digits_code_and_tags_apart(tokenizer, python):
    (problem,) = load("generated:mul", n=1)
    script = [[("text", "I get 7."), ("python", "6*2")]]
    (t,) = act_out([problem], script, tokenizer, Format(), {"python": python})
    said = {kind: [] for kind in KINDS}
    for id, kind in zip(t.ids, kinds_of_tokens(t, tokenizer)):
        said[kind].append(tokenizer.decode([id]))
    tags = ["<|user|>", "<|assistant|>", "<python>", "</python>", "<output>", "</output>"]
    assert said["tags"] == [*tags, tokenizer.decode([tokenizer.end_id])]
    assert "".join(said["code"]) == "6*2"
    assert "".join(said["tool output"]) == "12"
    asked = [character for character in problem.question if character.isdigit()]
    assert [digit.strip() for digit in said["digits"]] == [*asked, "7"]
    assert "I get" in "".join(said["words"])


def test_expert_use_counts_any_kind_that_ids_are_given(tokenizer, demonstrations):
    model = moe_model(len(tokenizer))
    by_token = expert_use(model, tokenizer, demonstrations, kinds_of_tokens)
    assert set(by_token) == set(KINDS)
    kinds = [kind for t in demonstrations for kind in kinds_of_tokens(t, tokenizer)]
    spans = [kind for t in demonstrations for kind in kinds_of_spans(t, tokenizer)]
    for use, names in ((by_token, kinds), (expert_use(model, tokenizer, demonstrations), spans)):
        whole = sum(torch.tensor(use[kind]) * names.count(kind) for kind in use) / len(names)
        torch.testing.assert_close(whole.sum(1), torch.ones(2))
        torch.testing.assert_close(whole, all_choices(model, demonstrations))


def all_choices(model, rows):
    """For every layer, each expert's share of all choices: (L, E)."""
    chosen = [chosen_experts(model, torch.tensor([t.ids])).flatten(1) for t in rows]
    return torch.nn.functional.one_hot(torch.cat(chosen, 1), E).float().mean(1)


def test_sampler_and_trainer_choose_the_same_experts(tokenizer, demonstrations):
    model = moe_model(len(tokenizer))
    assert expert_disagreement(model, demonstrations, tokenizer.pad_id) < 0.01


def renumber(block):
    """Give every expert of a layer the next number: its output stays, every choice changes."""
    moe = block.ff
    moe.router.weight.data = moe.router.weight.data.roll(1, 0)
    moe.experts = nn.ModuleList([moe.experts[-1], *moe.experts[:-1]])


def test_disagreement_is_the_share_of_changed_sets(tokenizer, demonstrations):
    model = moe_model(len(tokenizer), n_experts_per_token=1)
    other = copy.deepcopy(model)
    given = (model, demonstrations, tokenizer.pad_id, other)
    renumber(other.blocks[1])
    assert expert_disagreement(*given) == pytest.approx(0.5, abs=0.01)  # one of two layers
    renumber(other.blocks[0])
    assert expert_disagreement(*given) == pytest.approx(1.0, abs=0.01)


def test_the_order_of_a_tokens_experts_is_no_disagreement(tokenizer, demonstrations):
    model = moe_model(len(tokenizer), n_experts=2)
    other = copy.deepcopy(model)
    other.blocks[-1].ff.router.weight.data *= -1  # both are still chosen, the other one first
    ids = torch.tensor([[1, 2, 3]])
    assert not torch.equal(chosen_experts(model, ids), chosen_experts(other, ids))
    assert expert_disagreement(model, demonstrations, tokenizer.pad_id, other) == 0


def test_padding_is_no_disagreement_and_no_agreement(tokenizer, demonstrations):
    model, other = moe_model(len(tokenizer)), moe_model(len(tokenizer), seed=1)
    lengths = [len(t.ids) for t in demonstrations]
    assert lengths[0] != lengths[1]
    assert 3 * min(lengths) >= 2 * max(lengths)  # so that they share a micro-batch
    apart = [expert_disagreement(model, [t], tokenizer.pad_id, other) for t in demonstrations]
    together = expert_disagreement(model, demonstrations, tokenizer.pad_id, other)
    expected = sum(n * share for n, share in zip(lengths, apart)) / sum(lengths)
    assert 0 < together == pytest.approx(expected, abs=1e-9)


def given_to(arm: str, name: str) -> dict:
    run = EXPERIMENTS["experts"].arms[arm].run
    closed = dict(zip(run.__code__.co_freevars, run.__closure__))
    return closed[name].cell_contents


def settings_of(arm: str) -> dict:
    """The settings that an arm of the experiment adds to its cold start's."""
    return given_to(arm, "settings")


def test_arms_of_both_ratios_differ_in_the_ratio_alone():
    for policy in ("experts", "dense"):
        token, sequence = (settings_of(f"{policy}, {level}") for level in ("token", "sequence"))
        assert token | {"rl.ratio_level": "sequence"} == sequence != token


def test_only_one_arm_has_no_auxiliary_loss_from_the_cold_start_on():
    for arm in EXPERIMENTS["experts"].arms:
        free = arm == "experts, no auxiliary loss"
        assert (given_to(arm, "start").get("model.router_aux_coef") == 0.0) == free
    assert settings_of("experts, no auxiliary loss") == settings_of("experts, token")


def test_gspos_clip_is_tried_beside_grpos():
    tight = settings_of("experts, sequence, 3e-4")
    clips = {"rl.epsilon": 3e-4, "rl.epsilon_high": 4e-4}
    assert tight == settings_of("experts, sequence") | clips
