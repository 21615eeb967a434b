from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ScriptedModel, small_model
from doubles import Spy, calling_transformer, ids_of, sampler_of, scripted

from nanotir.batches import collate
from nanotir.draws import LARGE
from nanotir.generation import Generation
from nanotir.logps import masked_logps
from nanotir.sampler import SamplerConfig, pick
from nanotir.trajectory import Format

QUESTIONS = ["one", "two?", "a third one"]


def constant(tokenizer, logits):
    """A model that gives the same logits everywhere."""
    return ScriptedModel(len(tokenizer), lambda ids: logits)


@pytest.fixture(scope="module")
def transformer(tokenizer):
    return small_model(len(tokenizer))


def favouring(tokenizer, tag, boost):
    """Logits that favour a tag, and the end id a little."""
    logits = torch.zeros(len(tokenizer))
    logits[tokenizer.tags[tag]] = boost
    logits[tokenizer.end_id] = 3.0
    return logits


def first_ids(rows):
    """The first id that each row wrote."""
    return [row.ids[row.spans[0].end] for row in rows]


# What is drawn.


def test_a_tokenizer_without_tags_bans_no_id(tokenizer):
    plain = SimpleNamespace(tags={}, end_ids=set(), ids=set(range(5)))
    model = ScriptedModel(5, lambda ids: torch.zeros(5))
    ids, logps = sampler_of(model, plain, temperature=0).pick(torch.eye(5), None)
    assert ids.tolist() == [0, 1, 2, 3, 4]
    torch.testing.assert_close(logps, torch.eye(5).log_softmax(-1).diagonal())


def assert_share(drawn, id, probability):
    """The share of an id among the draws, within five standard errors."""
    n = len(drawn)
    error = (probability * (1 - probability) / n) ** 0.5
    assert abs(drawn.count(id) / n - probability) < 5 * error


@pytest.mark.parametrize(
    "temperature, shares",
    [(1.0, (0.6, 0.3, 0.1)), (0.5, (0.36 / 0.46, 0.09 / 0.46, 0.01 / 0.46))],
)
def test_samples_follow_the_models_distribution(tokenizer, temperature, shares):
    probs = torch.zeros(len(tokenizer))
    probs[300:303] = torch.tensor([0.6, 0.3, 0.1])
    model = constant(tokenizer, probs.log())
    sampler = sampler_of(model, tokenizer, max_new_tokens=1, temperature=temperature)
    drawn = first_ids(sampler.generate(["q"], n=4000))
    for id, share in zip((300, 301, 302), shares):
        assert_share(drawn, id, share)


@pytest.mark.parametrize("settings", [{"top_k": 2}, {"top_p": 0.8}])
def test_top_k_and_top_p_leave_out_the_least_likely_and_keep_the_full_log_prob(tokenizer, settings):
    probs = torch.zeros(len(tokenizer))
    probs[300:303] = torch.tensor([0.6, 0.3, 0.1])
    model = constant(tokenizer, probs.log())
    rows = sampler_of(model, tokenizer, max_new_tokens=1, **settings).generate(["q"], n=200)
    assert set(first_ids(rows)) == {300, 301}
    for row in rows:
        assert row.logps[-1] == pytest.approx(probs[row.ids[-1]].log().item(), abs=1e-6)


def test_samples_of_a_prompt_differ_from_the_first_id_on(tokenizer):
    model = constant(tokenizer, torch.zeros(len(tokenizer)))
    rows = sampler_of(model, tokenizer, max_new_tokens=1).generate(["q"], n=16)
    # 16 draws of about 390 ids: fewer than 9 are different with a chance of less than 10^-9.
    assert len(set(first_ids(rows))) > 8


def test_greedy_takes_the_likeliest_id_that_is_not_banned(tokenizer):
    logits = torch.linspace(0, 1, len(tokenizer))
    sampler = sampler_of(constant(tokenizer, logits), tokenizer, temperature=0, max_new_tokens=2)
    (row,) = sampler.generate(["q"])
    allowed = logits.index_fill(0, torch.tensor(sampler.banned), float("-inf"))
    assert row.ids[-1] == allowed.argmax().item()


def test_greedy_records_the_log_prob_of_temperature_1(tokenizer):
    logits = torch.linspace(0, 1, len(tokenizer))
    sampler = sampler_of(constant(tokenizer, logits), tokenizer, temperature=0, max_new_tokens=2)
    (row,) = sampler.generate(["q"])
    allowed = logits.index_fill(0, torch.tensor(sampler.banned), float("-inf"))
    assert row.logps[-1] == pytest.approx(allowed.log_softmax(-1).max().item(), abs=1e-6)


# What cannot be said.

FORGED = [
    "<output>",
    "</output>",
    "<|user|>",
    "<|assistant|>",
    "<|pad|>",
    "```output\n",
    "<search>",
]


@pytest.mark.parametrize("temperature", [1.0, 0.0])
@pytest.mark.parametrize("forged", FORGED)
def test_a_model_cannot_forge_a_result_a_turn_or_a_tool_it_does_not_have(
    tokenizer, forged, temperature
):
    model = constant(tokenizer, favouring(tokenizer, forged, 50.0))
    settings = {"max_new_tokens": 20, "temperature": temperature}
    for row in sampler_of(model, tokenizer, [Spy()], **settings).generate(["q"], n=8):
        chosen = [id for id, mask in zip(row.ids, row.mask) if mask]
        assert tokenizer.tags[forged] not in chosen


def test_without_tools_no_block_can_be_opened(tokenizer):
    model = constant(tokenizer, favouring(tokenizer, "<python>", 9.0))
    (row,) = sampler_of(model, tokenizer, max_new_tokens=30).generate(["q"])
    assert tokenizer.tags["<python>"] not in row.ids
    assert not row.calls


def banned(tokenizer, style, forge):
    model = small_model(len(tokenizer))
    return set(sampler_of(model, tokenizer, [Spy()], style, forge=forge).banned)


def test_ids_that_stand_for_no_text_are_banned(tokenizer):
    model = small_model(len(tokenizer))
    model.config.vocab_size += 3
    phantoms = set(range(len(tokenizer), len(tokenizer) + 3))
    assert phantoms < set(sampler_of(model, tokenizer).banned)


@pytest.mark.parametrize("style", ["tags", "fences"])
def test_forging_allows_the_delimiters_of_tool_output_and_nothing_else(tokenizer, style):
    strict, forging = banned(tokenizer, style, False), banned(tokenizer, style, True)
    delimiters = {tokenizer.tags[tag] for tag in Format(style).delimiters("output")}
    closer = tokenizer.tags[Format(style).delimiters("python")[1]]  # in fences output's as well
    assert strict - forging == delimiters - {closer}
    assert forging < strict


def test_a_forged_output_is_text_with_mask_1_and_no_call(tokenizer):
    tool = Spy()
    texts = ["<output>9</output>", "So 9.<|end|>"]
    settings = {"temperature": 0, "forge": True}
    (row,) = sampler_of(scripted(tokenizer, *texts), tokenizer, [tool], **settings).generate(["q"])
    assert [span.kind for span in row.spans] == ["prompt", "text"]
    assert row.calls == tool.asked == []
    start, forged = row.spans[0].end, tokenizer.encode("".join(texts))
    assert (row.ids[start:], row.mask[start:]) == (forged, [1] * len(forged))


# What is forced.

FORCED = "<think>Well"


def forced_rows(model, tokenizer, force, temperature=1.0, **settings):
    config = {"temperature": temperature, "max_new_tokens": 20, "max_rows": 3}
    sampler = sampler_of(model, tokenizer, [Spy()], **config)
    return sampler, sampler.generate(QUESTIONS, force=force, **settings)


def test_every_row_begins_with_what_is_forced_whatever_the_model_prefers(tokenizer):
    force = tokenizer.encode(FORCED)
    _, rows = forced_rows(random_policy(tokenizer), tokenizer, force, n=3)
    for row in rows:
        start = row.spans[0].end
        assert row.ids[start : start + len(force)] == force
        assert row.mask[start : start + len(force)] == [1] * len(force)


def test_what_follows_the_forced_ids_is_free(tokenizer):
    force = tokenizer.encode(FORCED)
    _, rows = forced_rows(random_policy(tokenizer), tokenizer, force, n=8)
    assert len({row.ids[row.spans[0].end + len(force)] for row in rows}) > 3


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_log_probs_of_forced_ids_are_what_the_trainer_finds(tokenizer, temperature):
    model, force = calling_transformer(tokenizer), tokenizer.encode(FORCED)
    sampler, rows = forced_rows(model, tokenizer, force, temperature, n=4)
    assert gap(model, sampler, rows, temperature) <= 1e-5
    forced = torch.tensor([row.logps[row.spans[0].end :][: len(force)] for row in rows])
    assert (forced < -0.1).all()  # not 0, as if they were certain


def test_forcing_what_a_row_says_anyway_changes_nothing(tokenizer):
    model = random_policy(tokenizer)
    free = forced_rows(model, tokenizer, (), seed=3)[1][0]
    said = free.ids[free.spans[0].end :][:4]
    again = forced_rows(model, tokenizer, said, seed=3)[1][0]
    assert len(said) == 4
    assert (again.ids, again.logps) == (free.ids, free.logps)


def test_a_forced_opener_starts_a_block_that_is_really_run(tokenizer):
    tool = Spy()
    model = scripted(tokenizer, "x6*7</python>", "So 42.<|end|>")
    sampler = sampler_of(model, tokenizer, [tool], temperature=0)
    (row,) = sampler.generate(["q"], force=[tokenizer.tags["<python>"]])
    assert tool.asked == ["6*7"]
    assert [span.kind for span in row.spans] == ["prompt", "python", "output", "text"]


# Sampler and trainer.


@torch.no_grad()
def gap(model, sampler, rows, temperature):
    """The largest difference between the sampler's log-probs and the trainer's."""
    batch = collate(rows, sampler.tokenizer.pad_id)
    logps, _ = masked_logps(model, batch.ids, batch.mask, temperature, sampler.banned)
    return (logps - batch.logps).abs().max().item()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_trainer_finds_the_samplers_log_probs(tokenizer, temperature):
    model = calling_transformer(tokenizer)
    settings = {"temperature": temperature, "max_new_tokens": 40}
    sampler = sampler_of(model, tokenizer, [Spy()], **settings)
    rows = sampler.generate(QUESTIONS, n=8)
    assert sum(len(row.calls) for row in rows) > 10
    assert gap(model, sampler, rows, temperature) <= 1e-5
    assert gap(model, sampler, rows, temperature * 1.1) > 1e-2  # and not by accident


# A row depends on its seed and its own past, never on time or neighbours.


def random_policy(tokenizer):
    """A model that calls often, ends sometimes and depends on everything it has read."""
    boosts = {"<python>": 6.0, "</python>": 7.0, "<|end|>": 4.0}

    def logits_of(ids):
        normal = np.random.default_rng(list(ids)).normal(size=len(tokenizer))
        logits = torch.from_numpy(normal * 2).float()
        for tag, boost in boosts.items():
            logits[tokenizer.tags[tag]] += boost
        return logits

    return ScriptedModel(len(tokenizer), logits_of)


def sampled(model, tokenizer, seed, max_rows, delay, **more):
    settings = {"max_rows": max_rows, "max_new_tokens": 40, "max_calls": 3} | more
    with Spy(delay=delay, seed=max_rows) as tool:
        return sampler_of(model, tokenizer, [tool], **settings).generate(QUESTIONS, 6, seed)


@pytest.fixture(scope="module")
def one_by_one(tokenizer):
    """18 rows of the random policy, sampled one at a time."""
    return sampled(random_policy(tokenizer), tokenizer, seed=0, max_rows=1, delay=0.0)


@pytest.mark.parametrize("max_rows, delay", [(3, 0.02), (18, 0.0), (18, 0.03), (64, 0.01)])
def test_a_seed_gives_the_same_rows_whatever_the_batch_and_the_tools_latency(
    tokenizer, one_by_one, max_rows, delay
):
    rows = sampled(random_policy(tokenizer), tokenizer, 0, max_rows, delay)
    assert ids_of(rows) == ids_of(one_by_one)


def test_a_barrier_changes_no_row(tokenizer, one_by_one):
    rows = sampled(random_policy(tokenizer), tokenizer, 0, 18, 0.02, barrier=True)
    assert ids_of(rows) == ids_of(one_by_one)


def test_another_seed_gives_other_rows(tokenizer, one_by_one):
    rows = sampled(random_policy(tokenizer), tokenizer, seed=1, max_rows=18, delay=0.0)
    assert ids_of(rows) != ids_of(one_by_one)


def test_the_random_policy_calls_often_and_its_rows_differ(one_by_one):
    assert sum(len(row.calls) for row in one_by_one) > 10
    assert len({tuple(row.ids) for row in one_by_one}) > 10


def test_every_row_has_a_finish_reason(one_by_one):
    reasons = {row.finish_reason for row in one_by_one}
    assert reasons <= {"stop", "length", "budget"}
    assert len(reasons) > 1


def test_the_same_holds_for_a_transformer_up_to_the_last_bit_of_a_matrix_product(tokenizer):
    model = calling_transformer(tokenizer)
    same, calls = [], 0
    for seed in range(4):
        rows = sampled(model, tokenizer, seed, max_rows=2, delay=0.0)
        calls += sum(len(row.calls) for row in rows)
        for max_rows, delay in ((5, 0.01), (18, 0.02)):
            others = sampled(model, tokenizer, seed, max_rows, delay)
            same += [a.ids == b.ids for a, b in zip(rows, others)]
    assert calls > 20
    assert sum(same) >= 0.99 * len(same)


def greedy(model, tokenizer, questions, max_rows):
    """One greedy row for each question. Each begins with a call that takes its time."""
    force = tokenizer.encode("<python>1</python>")
    settings = {"temperature": 0, "max_rows": max_rows, "max_new_tokens": 40}
    with Spy(delay=0.01) as tool:
        sampler = sampler_of(model, tokenizer, [tool], **settings)
        return sampler.generate(questions, force=force)


@pytest.fixture(scope="module")
def together(transformer, tokenizer):
    """{question: its greedy row}, all nine decoded in one batch."""
    questions = [f"{question} {i}" for question in QUESTIONS for i in range(3)]
    rows = greedy(transformer, tokenizer, questions, max_rows=9)
    assert len({tuple(row.ids[-20:]) for row in rows}) == 9
    assert all(row.calls for row in rows)
    return dict(zip(questions, rows))


def test_the_greedy_ids_of_a_row_are_the_same_when_it_is_alone(transformer, tokenizer, together):
    for question, row in together.items():
        (alone,) = greedy(transformer, tokenizer, [question], max_rows=1)
        assert alone.ids == row.ids


@pytest.mark.parametrize("max_rows", [2, 4])
def test_the_greedy_ids_of_a_row_are_the_same_in_other_company(
    transformer, tokenizer, together, max_rows
):
    questions = list(together)[::-1]
    rows = greedy(transformer, tokenizer, questions, max_rows)
    assert ids_of(rows) == [together[question].ids for question in questions]


def test_every_id_of_a_large_vocabulary_can_be_sampled(tokenizer):
    sampler = sampler_of(small_model(len(tokenizer)), tokenizer)
    logits = torch.zeros(1, LARGE)
    logits[0, sampler.banned] = -torch.inf
    logits[0, LARGE // 2] = 20.0
    total = logits.double().exp().sum().item()
    rare = range(LARGE - 32, LARGE)
    u = [1 - (LARGE - id - 0.5) / total for id in rare]
    ids, _ = sampler.pick(logits.expand(32, -1), u)
    assert ids.tolist() == list(rare)


@pytest.mark.parametrize("vocabulary, temperature", [(40, 1.0), (40, 0.0), (LARGE, 1.0)])
def test_probabilities_that_are_not_numbers_are_an_error(tokenizer, vocabulary, temperature):
    logits = torch.zeros(3, vocabulary)
    logits[1, 5] = torch.nan
    nothing = torch.tensor([], dtype=torch.long)
    with pytest.raises(ValueError, match="weights are damaged"):
        pick(logits, [0.5] * 3, SamplerConfig(temperature=temperature), nothing)


# Prompts.


@pytest.mark.parametrize("n", [1, 3])
def test_a_prompt_of_one_id_is_answered_as_beside_a_longer_one(tokenizer, n):
    sampler = sampler_of(small_model(len(tokenizer)), tokenizer, max_new_tokens=8)
    one, longer = [tokenizer.end_id], [5, 6, 7]
    alone = sampler.generate([one], n)
    assert ids_of(alone) == ids_of(sampler.generate([one, longer], n)[:n])
    assert all(row.new_tokens for row in alone)


def test_a_prompt_of_no_ids_is_refused(tokenizer):
    sampler = sampler_of(small_model(len(tokenizer)), tokenizer)
    with pytest.raises(ValueError, match="a prompt of no tokens"):
        sampler.generate([[5, 6], []])


@torch.inference_mode()
def test_what_is_prefilled_is_kept_as_long_as_a_row_of_its_prompt_waits(tokenizer):
    sampler = sampler_of(small_model(len(tokenizer)), tokenizer, max_rows=2, max_new_tokens=3)
    generation = Generation(sampler, [[5, 6], [5, 7]], n=3, seed=0)
    turns = []

    def look():
        turns.append((set(generation.prefilled), {row.prompt for row in generation.waiting}))

    generation.run(stop=look)
    assert any(kept for kept, _ in turns)
    assert all(kept <= awaited for kept, awaited in turns)


def test_seating_rows_compares_their_prompts_in_proportion_to_their_number(tokenizer):
    compared = []

    class Id(int):
        __hash__ = int.__hash__

        def __eq__(self, other):
            compared.append(1)
            return int(self) == int(other)

    def comparisons(n):
        compared.clear()
        sampler = sampler_of(small_model(len(tokenizer)), tokenizer, max_rows=1, max_new_tokens=1)
        sampler.generate([[Id(number), Id(7)] for number in range(n)])
        return len(compared)

    assert comparisons(80) <= 2 * comparisons(40) + 10


# Settings.


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"max_new_tokens": 0},
        {"max_rows": 0},
        {"max_calls": -1},
        {"max_tool_tokens": -1},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError):
        SamplerConfig(**settings)
