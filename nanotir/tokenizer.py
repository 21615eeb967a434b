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
from tokenizers import decoders, models, pre_tokenizers, trainers

PAD, END, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"
THOUGHT = ("<think>", "</think>", "<answer>", "</answer>")  # how a model may divide its own words
FENCE_END = "\n```\n"


def tags_of(tools: Iterable[str]) -> list[str]:
    """All tags of a tokenizer: those of its tools and of their output, as tags and as fences."""
    blocks = [*tools, "output"]
    tags = [tag for name in blocks for tag in (f"<{name}>", f"</{name}>")]
    fences = [f"```{name}\n" for name in blocks]
    return [PAD, END, USER, ASSISTANT, *THOUGHT, *tags, *fences, FENCE_END]


class Tokenizer:
    """Ids of text and text of ids. `tags` maps every tag to its id; `end_id` ends a row."""

    def __init__(self, trusted: tokenizers.Tokenizer):
        self._trusted = trusted
        state = json.loads(trusted.to_str())
        self.tags: dict[str, int] = {
            token["content"]: token["id"] for token in state["added_tokens"]
        }
        state["added_tokens"] = []
        self._untrusted = tokenizers.Tokenizer.from_str(json.dumps(state))
        self.pad_id = self.tags[PAD]
        self.end_id = self.tags[END]

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
        bpe.train_from_iterator(texts, trainer)
        return cls(bpe)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read tokenizer.json from a folder."""
        return cls(tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json")))

    def save(self, folder: str | Path):
        text = self._trusted.to_str(pretty=True)
        (Path(folder) / "tokenizer.json").write_text(text, encoding="utf-8")

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


def _unicode(text: str) -> str:
    """Replace lone surrogates (half a character, found in some JSON files), which have no bytes."""
    return text.encode("utf-8", "replace").decode("utf-8")
