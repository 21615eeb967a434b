"""Text to ids and back: byte-level BPE with single digits, and tags that are single ids.

A tag such as <python> is an instruction to the harness, so who may write one matters. `encode` is for text that we write and turns
a tag into its id. `encode_untrusted` is for everybody else's text (questions, tool output): there a tag is ordinary characters, and
no text whatever yields a tag's id. Its tokenizer has never heard of the tags, so there is nothing to filter and nothing to forget.
"""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

PAD, END, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"
THOUGHT = ("<think>", "</think>", "<answer>", "</answer>")  # how a model may divide its own words
TAGS = (
    PAD,
    END,
    USER,
    ASSISTANT,
    *THOUGHT,
    "<python>",
    "</python>",
    "<search>",
    "</search>",
    "<output>",
    "</output>",
    "```python\n",
    "```search\n",
    "```output\n",
    "\n```\n",
)


class Tokenizer:
    """Ids of text and text of ids. `tags` maps every tag to its id; `end_id` ends a row and `pad_id` fills one up."""

    def __init__(self, trusted: tokenizers.Tokenizer):
        self._trusted = trusted
        state = json.loads(trusted.to_str())
        self.tags: dict[str, int] = {
            token["content"]: token["id"] for token in state["added_tokens"]
        }
        state["added_tokens"] = []
        self._untrusted = tokenizers.Tokenizer.from_str(json.dumps(state))
        self.pad_id, self.end_id = self.tags[PAD], self.tags[END]

    @classmethod
    def train(cls, texts, vocab_size: int) -> Tokenizer:
        """Learn merges from an iterable of texts. ValueError where vocab_size has no room for the 256 bytes and the tags."""
        smallest = 256 + len(TAGS)
        if vocab_size < smallest:
            raise ValueError(
                f"vocab_size is {vocab_size}, but 256 bytes and {len(TAGS)} tags need at least {smallest}"
            )
        bpe = tokenizers.Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )  # single digits: a number is spelled the same way wherever it stands, so it can be copied and carried
        bpe.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()  # all 256 bytes, so that any text has ids
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(TAGS),
            initial_alphabet=alphabet,
            show_progress=False,
        )
        bpe.train_from_iterator(texts, trainer)
        return cls(bpe)

    @classmethod
    def load(cls, folder) -> Tokenizer:
        """Read tokenizer.json from a folder."""
        return cls(tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json")))

    def save(self, folder):
        self._trusted.save(str(Path(folder) / "tokenizer.json"))

    def __len__(self) -> int:
        return self._trusted.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of text that we wrote: tags become their single ids."""
        return self._trusted.encode(_unicode(text), add_special_tokens=False).ids

    def encode_untrusted(self, text: str) -> list[int]:
        """Ids of anybody's text: never a tag's id, whatever the text says."""
        return self._untrusted.encode(_unicode(text), add_special_tokens=False).ids

    def decode(self, ids) -> str:
        """The text of ids, tags written out. For reading only: what was decoded is never encoded again."""
        return self._trusted.decode(list(ids), skip_special_tokens=False)


def _unicode(text: str) -> str:
    """Lone surrogates (half a character, as some JSON files hold them) have no bytes: they become '?'."""
    return text.encode("utf-8", "replace").decode("utf-8")
