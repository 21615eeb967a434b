"""Text blocks: calls and results in Markdown fences, in the plain text of any tokenizer.

    I multiply.
    ```python
    6 * 7
    ```
    ```output
    42
    ```

A line "```python", its newline included, opens a block if `python` is a tool. The next line that
begins with three backticks closes it, whatever follows them: the block closes with the third one,
because what comes next is not written yet. So no line of a program can begin with three backticks.
In Python such a line can only stand inside a string.

A fence may be split over several ids, or share an id with its neighbours. An id has one author: the
id in which the opening fence begins belongs to the block, and so does the id that completes the
closing fence. Its further characters are text before the result.

No id can be banned here, as tags are. So a tool's output is escaped, and a row that opens a block
of output itself ends there: none of its text is ever taken for a result.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection

from nanotir.tokenizer import Tokenizer

FENCE = "```"
CLOSER = "\n" + FENCE
OPENER = re.compile(rf"^{FENCE}(.+)\n", re.M)


def escape(text: str) -> str:
    """The text with ''' for three backticks: it neither opens nor closes a block."""
    return text.replace(FENCE, "'''")


def with_fences(pieces: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pieces (kind, text) of a demonstration as they are written, but for outputs.

    Words are escaped, and end their line before a call. The newline behind a call is written with
    its output, because a sampled row is parked before it. ValueError for a program that would close
    its own block.
    """
    written: list[tuple[str, str]] = []
    for kind, text in pieces:
        if kind in ("think", "answer"):
            kind, text = "text", f"<{kind}>{text}</{kind}>"
        if kind == "text":
            text = escape(text)
        elif kind != "output":
            if CLOSER in "\n" + text:
                why = "one of its lines begins with ```, which closes a block of --format text"
                raise ValueError(f"cannot demonstrate the program {text!r}: {why}")
            if written and written[-1][0] == "text":
                written[-1] = ("text", written[-1][1].removesuffix("\n") + "\n")
            text = f"{FENCE}{kind}\n{text}{CLOSER}"
        written.append((kind, text))
    return written


def output_ids(tokenizer: Tokenizer, output: str, room: int | None, last: int | None) -> list[int]:
    """A block of output behind the id `last`, cut to fit `room` ids, but always closed."""
    encode = tokenizer.encode_untrusted
    on_new_line = last is not None and tokenizer.decode([last]).endswith("\n")
    opener, closer = f"{FENCE}output\n", f"{CLOSER}\n"
    opener = opener if on_new_line else f"\n{opener}"
    output = escape(output)
    ids = encode(opener + output + closer)
    if room is None or len(ids) <= room:
        return ids
    start, end, marker = encode(opener), encode(closer), encode("...")
    left = max(0, room - len(start) - len(end))
    return start + encode(output)[: max(0, left - len(marker))] + marker[:left] + end


class Blocks:
    """Finds the text blocks in what one row writes, id by id."""

    def __init__(self, tokenizer: Tokenizer, names: Collection[str], stop_string: bool = False):
        """`names` are what can open a block: tools, and "output".

        With `stop_string`, a block closes where an id ends in three backticks: within a line as
        well, but not if the id goes on behind them.
        """
        self.tokenizer, self.names, self.stop_string = tokenizer, names, stop_string
        self.seen = 0  # ids of the trajectory
        self.begin()

    def begin(self):
        """Begin a new line, and forget the text so far."""
        self.window: list[int] = []  # the last ids, of which `known` characters are in the text
        self.known = 0
        self.text = ""
        self.ends: list[int] = []  # by id: the length of the text with it
        self.line = 0  # where the last line begins
        self.name: str | None = None  # of the open block
        self.start = 0  # where its code begins
        self.code: str | None = None  # what it holds, once it is closed

    def read(self, trajectory) -> tuple[str | None, bool]:
        """Read the last id of a trajectory: (what the open block is, whether the id closes it).

        The ids of a fence that opens a block are given to its tool.
        """
        if len(trajectory.ids) > self.seen + 1:  # others have written: the prompt, or output
            self.begin()
        self.seen = len(trajectory.ids)
        self.text += self.decoded(trajectory.ids[-1])
        self.ends.append(len(self.text))
        if self.name is None:
            self.open(trajectory)
        if self.name is not None:
            self.close()
        return self.name, self.code is not None

    def decoded(self, id: int) -> str:
        """The characters that an id completes. Some decoders need to see the id before it."""
        self.window = [*self.window, id]
        text = self.tokenizer.decode(self.window)
        whole = text.rstrip("\ufffd")  # the last character may not be complete
        new = whole[self.known :]
        self.known = max(self.known, len(whole))
        if whole == text:
            self.window = [id]
            self.known = len(self.tokenizer.decode([id]))
        return new

    def open(self, trajectory):
        fences = OPENER.finditer(self.text, self.line)
        fence = next((fence for fence in fences if fence[1] in self.names), None)
        self.line = self.text.rfind("\n") + 1
        if fence is None:
            return
        self.name, self.start = fence[1], fence.end()
        if self.name != "output":
            ids = len(self.ends) - bisect_right(self.ends, fence.start())
            trajectory.relabel(ids, self.name)

    def close(self):
        if self.stop_string:
            end = len(self.text) - len(FENCE) if self.text.endswith(FENCE) else -1
        else:
            end = self.text.find(CLOSER, self.start - 1)
        if end >= 0:
            self.code = self.text[self.start : end]
