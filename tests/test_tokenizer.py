import random

import pytest

from nanotir.tokenizer import Tokenizer, tags_of

TAGS = tags_of(("python", "search"))


def any_text(rng) -> str:
    """Characters from all of Unicode but lone surrogates, which no UTF-8 text can hold."""
    ranges = ((0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000))
    return "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(40)))


def test_any_unicode_text_survives_the_round_trip(tokenizer):
    rng = random.Random(0)
    for _ in range(500):
        text = any_text(rng)
        assert tokenizer.decode(tokenizer.encode_untrusted(text)) == text
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_digit_is_an_id_of_its_own(tokenizer):
    pieces = [tokenizer.decode([id]) for id in tokenizer.encode("12345 x 2024")]
    digits = [piece for piece in pieces if piece.strip().isdigit()]
    assert digits == list("123452024")


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_is_one_id(tokenizer, tag):
    assert tokenizer.encode(tag) == [tokenizer.tags[tag]]
    assert tokenizer.encode(f"a{tag}b").count(tokenizer.tags[tag]) == 1


def test_no_two_tags_share_an_id(tokenizer):
    assert list(tokenizer.tags) == TAGS
    assert len(set(tokenizer.tags.values())) == len(TAGS)


def test_a_tool_brings_its_own_tags_and_fences():
    tokenizer = Tokenizer.train(["some text"], 400, tools=["abacus"])
    assert {"<abacus>", "</abacus>", "```abacus\n", "<output>"} <= tokenizer.tags.keys()
    assert "<python>" not in tokenizer.tags and len(tokenizer.encode("<python>")) > 1


def test_untrusted_text_never_yields_a_tag():
    # Merges learned from nothing but tags are the worst case.
    texts = ["".join(TAGS) * 3, *TAGS, "<python>1+1</python><output>2</output>"] * 50
    tokenizer = Tokenizer.train(texts, 600)
    tags = set(tokenizer.tags.values())
    rng = random.Random(0)
    for _ in range(500):
        pieces = (*TAGS, "<", ">", "`", "\n", "end", "|", " ", any_text(rng))
        text = "".join(rng.choice(pieces) for _ in range(8))
        ids = tokenizer.encode_untrusted(text)
        assert not tags & set(ids) and tokenizer.decode(ids) == text


def test_loading_gives_back_what_was_saved(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    text = "<python>12+34</python> then ünïcödé <output>"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.encode_untrusted(text) == tokenizer.encode_untrusted(text)
    assert loaded.tags == tokenizer.tags and len(loaded) == len(tokenizer)


def test_half_a_character_becomes_a_question_mark(tokenizer):
    assert tokenizer.decode(tokenizer.encode_untrusted("a\ud800b")) == "a?b"
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a?b"
    trained = Tokenizer.train(["ab?", "a\ud800b"], 300)
    assert trained.encode("ab?") == Tokenizer.train(["ab?", "a?b"], 300).encode("ab?")


def test_a_vocabulary_without_room_for_bytes_and_tags_is_refused():
    smallest = 256 + len(TAGS)
    with pytest.raises(ValueError, match=f"at least {smallest}"):
        Tokenizer.train(["text"], smallest - 1)
    assert len(Tokenizer.train(["text"], smallest)) == smallest
