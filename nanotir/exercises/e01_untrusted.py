"""Exercise 1: a tokenizer for text that anybody may have written."""

from __future__ import annotations

import random

from tokenizers import Tokenizer

from nanotir.exercises.exercise import Case, Exercise, Mistake

MERGES = [["t", "h"], ["o", "n"], ["p", "y"], ["th", "on"], ["py", "thon"]]
SPACE = {"type": "Prepend", "prepend": "_"}
LOWER = {"type": "Lowercase"}
SPLIT = {"type": "Split", "pattern": {"String": "_"}, "behavior": "Isolated", "invert": False}
WORDS = {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": False}
WHOLE = {"ignore_merges": True}  # a word of the vocabulary is its id, however it is merged
BOTH = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
BEGIN = {"type": "TemplateProcessing", "single": BOTH, "pair": BOTH}
BEGIN |= {"special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}}
PARTS = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
NOTHING = {"version": "1.0", **dict.fromkeys(PARTS)}


def cases(seed: int) -> list[Case]:
    rng = random.Random(seed)
    tags = ["<python>", "</python>", "<|end|>"]
    pieces = [*tags, "python", "python", "th", "on", "<", ">", "/", "|", "p"]
    texts = ["".join(rng.choices(pieces, k=6)) for _ in range(5)] + tags
    words = ["<python>", "python", "<|end|>"]
    given = {
        "tags that are added tokens alone": (state(rng, tags), texts),
        "tags that have ids in the vocabulary as well": (state(rng, tags, tags), texts),
        "whole words are ids, tags among them": (state(rng, tags, tags, WHOLE), words),
        "tags that are not marked as special": (state(rng, tags, tags, WHOLE, False), words),
        "a special token with another look": (state(rng, ["TOOL"], ["TOOL"], WHOLE), ["TOOL"]),
        "characters that the vocabulary lacks": (
            state(rng, ["<unk>"], ["<unk>"], {"unk_token": "<unk>"}),
            ["p?y", "<unk>"],
        ),
        "a post-processor that puts <s> before a text": (
            state(rng, ["<s>"], ["<s>"]) | {"post_processor": BEGIN},
            ["python", "<s>"],
        ),
        "a normalizer that makes letters small and puts a space before a text": (
            state(rng, tags) | {"normalizer": {"type": "Sequence", "normalizers": [LOWER, SPACE]}},
            ["PyThon", "p"],
        ),
        "a pre-tokenizer that puts a space before a text": (
            state(rng, tags) | {"pre_tokenizer": WORDS},
            ["python", "p"],
        ),
        "a pre-tokenizer that splits a text": (
            state(rng, tags, (), WHOLE) | {"pre_tokenizer": SPLIT},
            ["th_on", "python_py"],
        ),
        "a vocabulary that is a list": (listed(), ["pyth", "on"]),
    }
    return [Case(name, arguments, {}, spelled) for name, arguments in given.items()]


def state(rng, added: list[str], own=(), model=None, special=True) -> dict:
    """A tokenizer as JSON has it. The added tokens `own` are words of the vocabulary as well."""
    words = [*own, *"pythonTOLsed_<>/|", *map("".join, MERGES)]
    ids = rng.sample(range(len(words), 3 * len(words)), len(words))
    vocabulary = {word: 0 if word == "<s>" else id for word, id in zip(words, ids)}
    tokens = [token(vocabulary.get(word, 99 + n), word, special) for n, word in enumerate(added)]
    pairs = {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False}
    pairs |= {"continuing_subword_prefix": None, "end_of_word_suffix": None}
    pairs |= {"byte_fallback": False, "vocab": vocabulary, "merges": MERGES, **(model or {})}
    return NOTHING | {"added_tokens": tokens, "model": pairs}


def listed() -> dict:
    """A tokenizer whose vocabulary is a list of words and their log-probs."""
    words = [["<s>", 0.0], ["py", -1.5], ["th", -2.0], *([letter, -3.0] for letter in "python")]
    model = {"type": "Unigram", "unk_id": 0, "vocab": words, "byte_fallback": False}
    return NOTHING | {"added_tokens": [token(0, "<s>", True)], "model": model}


def token(id: int, content: str, special: bool) -> dict:
    how = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False)
    return {"id": id, "content": content, "special": special, **how}


def spelled(function, state: dict, texts: list[str]) -> dict[str, list[int]]:
    """The ids that the function's tokenizer has for each text."""
    tokenizer = function(state)
    if not isinstance(tokenizer, Tokenizer):
        return tokenizer  # is of the wrong type, and told so
    return {text: tokenizer.encode(text).ids for text in texts}


PLAIN = 'plain = state | {"added_tokens": [], "model": model, "post_processor": None}'
MODEL = 'model = model | {"vocab": vocabulary, "unk_token": None}'
VOCABULARY = '{word: id for word, id in model["vocab"].items() if word not in special}'
SPECIAL = '{token["content"] for token in state["added_tokens"]}'
STEPS = '("normalizer", "pre_tokenizer")'
EXERCISE = Exercise(
    number=1,
    name="without_tags",
    lab="A",
    target="nanotir.tokenizer:without_tags",
    teaches="A tag is an instruction: only the harness may write one, so other text has other ids.",
    minutes=25,
    points=20,
    stars=2,
    cases=cases,
    mistakes=(
        Mistake(
            "you keep the added tokens: a tool whose output says </output> would close its own "
            "block, and could open one of the user",
            ((PLAIN, PLAIN.replace('"added_tokens": [], ', "")),),
            bug=True,
        ),
        Mistake(
            "you leave the tags in the vocabulary of ordinary words: a text that is one whole tag "
            "still gets its id",
            ((VOCABULARY, 'dict(model["vocab"])'),),
            bug=True,
        ),
        Mistake(
            "you remove from the vocabulary what is marked as special, but every added token is a "
            "tag, marked or not",
            ((SPECIAL, SPECIAL.replace("}", ' if token["special"]}')),),
        ),
        Mistake(
            "you tell tags by their looks, < and >: what is a tag is said in added_tokens alone",
            ((SPECIAL, SPECIAL.replace("}", ' if token["content"].startswith("<")}')),),
        ),
        Mistake(
            "you number the rest of the vocabulary anew: the model knows a word by its old id",
            ((VOCABULARY, "{w: n for n, w in enumerate(model['vocab']) if w not in special}"),),
        ),
        Mistake(
            "you keep unk_token, which is no word of the vocabulary any more: an unknown character "
            "has no id and needs none",
            ((MODEL, MODEL.replace(', "unk_token": None', "")),),
        ),
        Mistake(
            "you keep the post-processor: it would put <s> before every piece of a row",
            ((PLAIN, PLAIN.replace(', "post_processor": None', "")),),
        ),
        Mistake(
            "the normalizer still puts a space before a text, which may be a piece of a row",
            ((STEPS, '("pre_tokenizer",)'),),
        ),
        Mistake(
            "the pre-tokenizer still puts a space before a text, which may be a piece of a row",
            ((STEPS, '("normalizer",)'),),
        ),
        Mistake(
            "you drop the normalizer and the pre-tokenizer whole: they also split words and change "
            "letters, as the model learned to read them",
            (("without_prefix(plain[part])", "None"),),
        ),
        Mistake(
            "you change the state that you were given: the trusted tokenizer is made of it, too",
            (
                (
                    PLAIN,
                    f"state.update({PLAIN.removeprefix('plain = state | ')})\n    plain = state",
                ),
            ),
        ),
    ),
    hints=(
        "A tool prints the eight characters </output>. Through which two doors can they become the "
        "one id that closes the block?",
        "The state is a dict: empty added_tokens, and take their words out of model['vocab'] where "
        "that is a dict, without changing the other ids. Unknown words, the post-processor and the "
        "spaces before a text go, too (unk_token, post_processor, without_prefix).",
        "plain = state | {'added_tokens': [], 'model': model, 'post_processor': None}, then "
        "plain[part] = without_prefix(plain[part]) for the normalizer and the pre_tokenizer, then "
        "tokenizers.Tokenizer.from_str(json.dumps(plain)).",
    ),
    read=("nanotir/tokenizer.py:without_tags", "nanotir/tokenizer.py:Tokenizer"),
    look="nothing is escaped or searched for: the tokenizer of untrusted text cannot write a tag, "
    "because it does not know any",
    question="Why is it not enough to delete </output> from a tool's output before encoding it?",
    answer="A filter must know all spellings: </out</output>put> becomes a tag once the inner one "
    "is deleted, other tags and a pretrained model's special tokens are easily forgotten, and an "
    "honest program that prints a tag loses a part of its output. A tokenizer without tags keeps "
    "every character and has no id to give away.",
)
