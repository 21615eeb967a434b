"""TAPO's grammar: thoughts, calls with their outputs, and then one answer (--format grammar)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby

from nanotir.tokenizer import Tokenizer
from nanotir.trajectory import Trajectory

# As regular expressions over `symbols`. First, any thoughts and calls that are well
# formed. (An output without a call is an objection to an earlier answer.)
BEGINNING = r"(<think> (words )*</think> |(call )?output )*"
REST = {  # what may follow, and what to say of it; the first that matches counts
    r"<answer> (words )*</answer> $": None,
    r"<answer> (words )*</answer> ": "nothing may follow the answer",
    r"<(think|answer)> (words )*(half a )?call": "a call inside <think> or <answer>",
    r"(half a )?call": "a call without a result",
    r"(<(think|answer)> (words )*)?(?P<tag></(think|answer)>)": r"\g<tag> closes nothing",
    r"(?P<tag><(think|answer)>) (words )*(output|$)": r"\g<tag> is never closed",
    r"(?P<tag><(think|answer)>)": r"\g<tag> holds another tag",
    r"$": "it must end with an <answer>",
    r"": "words outside <think> and <answer>",
}


def grammar_error(trajectory: Trajectory, tokenizer: Tokenizer) -> str | None:
    """What breaks TAPO's grammar in an answer, or None.

        (<think>..</think> | call output)* <answer>..</answer>, and no words outside

    The paper's <code> and <response> are <python> and <output> here. A tag is its one id: the same
    letters in other ids are words.
    """
    text = "".join(f"{symbol} " for symbol in symbols(trajectory, tokenizer))
    rest = text[re.match(BEGINNING, text).end() :]
    for pattern, complaint in REST.items():
        if found := re.match(pattern, rest):
            return complaint and found.expand(complaint)


def symbols(trajectory: Trajectory, tokenizer: Tokenizer) -> Iterator[str]:
    """What the grammar is made of: tags, the words between them, calls and outputs."""
    names = {id: tag for tag, id in tokenizer.tags.items() if id not in tokenizer.end_ids}
    for span in trajectory.spans:
        ids = trajectory.ids[span.start : span.end]
        if span.kind == "text":
            words = [id for id in ids if id not in tokenizer.end_ids]
            for tag, run in groupby(words, names.get):
                if tag is None and tokenizer.decode(run).strip():
                    yield "words"
                elif tag is not None:
                    yield from [tag for _ in run]
        elif span.kind == "output":
            yield "output"
        elif span.kind != "prompt":
            yield "call" if names.get(ids[-1]) == f"</{span.kind}>" else "half a call"
