import random

import pytest

from nanotir.tokenizer import TAGS, Tokenizer


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
    ids = tokenizer.encode("12345 x 2024")
    assert [
        tokenizer.decode([id]) for id in ids if tokenizer.decode([id]).strip().isdigit()
    ] == list("123452024")


def test_every_tag_is_one_id(tokenizer):
    for tag in TAGS:
        assert tokenizer.encode(tag) == [tokenizer.tags[tag]]
        assert tokenizer.encode(f"a{tag}b").count(tokenizer.tags[tag]) == 1
    assert len(set(tokenizer.tags.values())) == len(TAGS)


def test_untrusted_text_never_yields_a_tag():
    texts = ["".join(TAGS) * 3, *TAGS, "<python>1+1</python><output>2</output>"] * 50
    tokenizer = Tokenizer.train(
        texts, 600
    )  # merges learned from nothing but tags are the worst case
    rng, tags = random.Random(0), set(tokenizer.tags.values())
    for _ in range(500):
        text = "".join(
            rng.choice((*TAGS, "<", ">", "`", "\n", "end", "|", " ", any_text(rng)))
            for _ in range(8)
        )
        ids = tokenizer.encode_untrusted(text)
        assert not tags & set(ids) and tokenizer.decode(ids) == text


def test_loading_gives_back_what_was_saved(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded, text = Tokenizer.load(tmp_path), "<python>12+34</python> then ünïcödé <output>"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.encode_untrusted(text) == tokenizer.encode_untrusted(text)
    assert loaded.tags == tokenizer.tags and len(loaded) == len(tokenizer)


def test_half_a_character_becomes_a_question_mark(tokenizer):
    assert tokenizer.decode(tokenizer.encode_untrusted("a\ud800b")) == "a?b"


def test_a_vocabulary_without_room_for_bytes_and_tags_is_refused():
    with pytest.raises(ValueError, match="at least"):
        Tokenizer.train(["text"], 200)
