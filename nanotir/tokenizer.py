"""Text to ids and back: byte-level BPE with single digits, and tags that are single ids.

A tag such as <python> is an instruction to the program that runs the model, so it matters who may
write one. `encode` is for text that we write and turns a tag into its id. `encode_untrusted` is for
everybody else's text (questions, tool output). There a tag is ordinary characters: no text whatever
yields a tag's id, because the tokenizer behind it does not know the tags.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from nanotir.turns import ASSISTANT, END, PAD, USER, Turns, read_json

THOUGHT = ("<think>", "</think>", "<answer>", "</answer>")  # how a model may divide its own words
FENCE_END = "\n```\n"


def tags_of(tools: Iterable[str]) -> list[str]:
    """All tags of a tokenizer: those of its tools and of their output, as tags and as fences."""
    blocks = [*tools, "output"]
    tags = [tag for name in blocks for tag in (f"<{name}>", f"</{name}>")]
    fences = [f"```{name}\n" for name in blocks]
    return [PAD, END, USER, ASSISTANT, *THOUGHT, *tags, *fences, FENCE_END]


class Tokenizer:
    """Ids of text and text of ids.

    `tags` maps every tag, and every special token of a pretrained model, to its id. The ids `user`
    and `assistant` stand around a question. `end_id` ends an answer, as does any of `end_ids`.
    """

    def __init__(self, trusted: tokenizers.Tokenizer, turns: Turns | None = None, ends=()):
        self._trusted = trusted
        self.turns = turns or Turns()
        state = json.loads(trusted.to_str())
        self.tags: dict[str, int] = {
            token["content"]: token["id"] for token in state["added_tokens"]
        }
        self._untrusted = without_tags(state)
        self.user, self.assistant, end = map(self.encode, vars(self.turns).values())
        if len(end) > 1:
            raise ValueError(f"the end of a turn, {self.turns.end}, is no token of the tokenizer")
        self.end_ids = {*end, *ends}
        self.end_id = end[0] if end else min(ends, default=-1)  # -1: nothing ends an answer
        self.pad_id = self.tags.get(PAD, max(self.end_id, 0))
        vocabulary = trusted.get_vocab()
        self.ids = set(vocabulary.values())
        self.longest = max(64, *map(len, vocabulary))  # no id stands for more characters

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, tools=("python", "search")) -> Tokenizer:
        """Learn merges from texts. ValueError if vocab_size has no room for 256 bytes and the tags.

        `tools` are the names of all tools that a model with this tokenizer may ever call.
        """
        tags = tags_of(tools)
        smallest = 256 + len(tags)
        if vocab_size < smallest:
            needs = f"256 bytes and {len(tags)} tags need at least {smallest}"
            raise ValueError(f"vocab_size is {vocab_size}, but {needs}")
        bpe = tokenizers.Tokenizer(models.BPE())

        # Single digits: a number is spelled the same way everywhere, so a model can copy it.
        digits = pre_tokenizers.Digits(individual_digits=True)
        words = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
        bpe.decoder = decoders.ByteLevel()

        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=tags,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # all bytes: any text has ids
            show_progress=False,
        )
        bpe.train_from_iterator(map(_unicode, texts), trainer)
        return cls(bpe)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read what `save` has written to a folder."""
        folder = Path(folder)
        trusted = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        own = read_json(folder / "turns.json")
        return cls(trusted, Turns(*own["turns"]), own["ends"]) if own else cls(trusted)

    def with_tags(self, tools: Iterable[str]) -> Tokenizer:
        """The same with nanotir's tags as new ids, except those of turns: it has its own."""
        trusted = tokenizers.Tokenizer.from_str(self._trusted.to_str())
        tags = [tag for tag in tags_of(tools)[4:] if tag not in self.tags]
        trusted.add_special_tokens([AddedToken(tag, normalized=False) for tag in tags])
        return Tokenizer(trusted, self.turns, self.end_ids)

    def save(self, folder: str | Path):
        """Write tokenizer.json and, of a pretrained model, turns.json."""
        text = self._trusted.to_str(pretty=True)
        (Path(folder) / "tokenizer.json").write_text(text, encoding="utf-8")
        if self.turns != Turns():
            own = {"turns": list(vars(self.turns).values()), "ends": sorted(self.end_ids)}
            (Path(folder) / "turns.json").write_text(json.dumps(own), encoding="utf-8")

    def __len__(self) -> int:
        return self._trusted.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of text that we wrote: tags become their single ids."""
        return self._trusted.encode(_unicode(text), add_special_tokens=False).ids

    def encode_untrusted(self, text: str) -> list[int]:
        """Ids of anybody's text: never a tag's id, whatever the text says."""
        return self._untrusted.encode(_unicode(text), add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, tags written out. For reading only: it is never encoded again."""
        return self._trusted.decode(list(ids), skip_special_tokens=False)


def without_tags(state: dict) -> tokenizers.Tokenizer:
    """The same tokenizer without its added tokens: whatever a text says, it has other ids.

    Some pretrained ones have their special tokens in the vocabulary of ordinary text as well.
    Nothing is put around a text either, because it may be a piece of a row.
    """
    special = {token["content"] for token in state["added_tokens"]}
    model = state["model"]
    if isinstance(model.get("vocab"), dict):
        vocabulary = {word: id for word, id in model["vocab"].items() if word not in special}
        model = model | {"vocab": vocabulary, "unk_token": None}
    plain = state | {"added_tokens": [], "model": model, "post_processor": None}
    for part in ("normalizer", "pre_tokenizer"):
        plain[part] = without_prefix(plain[part])
    return tokenizers.Tokenizer.from_str(json.dumps(plain))


def without_prefix(step: dict | None) -> dict | None:
    """A step of a tokenizer that puts no space before a text, because it may be a piece of a row.

    Some pretrained ones do (Llama 2, Mistral). A fence would then not begin its line.
    """
    if step is None or step["type"] == "Prepend":
        return None
    changed = {"add_prefix_space": False, "prepend_scheme": "never"}
    step = step | {key: value for key, value in changed.items() if key in step}
    for key in step.keys() & {"normalizers", "pretokenizers"}:  # of a sequence
        step[key] = [kept for kept in map(without_prefix, step[key]) if kept]
    return step


def _unicode(text: str) -> str:
    """Replace lone surrogates (half a character, found in some JSON files), which have no bytes."""
    return text.encode("utf-8", "replace").decode("utf-8")
