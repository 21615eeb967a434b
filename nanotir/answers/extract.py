"""Find the final answer in what a model wrote. Code, and what a tool said, do not count."""

from __future__ import annotations

import re

MAX_LINE = 2000  # characters in which a named answer is looked for


FENCE = re.compile(r"```(\w*).*?(?:```|\Z)", re.S)
TOOL = re.compile(r"<(python|output|code|result|tool_call|tool_response)>.*?(?:</\1>|\Z)", re.S)
BOX = re.compile(
    r"\\(?:boxed|fbox)\s*(?:(?P<open>\{)|(?P<bare>-?[\w.]*\w))|(?P<escape>\\[{}])|(?P<brace>[{}])"
)
PHRASE = re.compile(
    r"(?:final answer(?: is)?|answer is|answer:|<answer>|####)[ \t]*:?[ \t]*\n?([^\n]+)", re.I
)
SPAN = re.compile(r"\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]")


def extract_answer(text: str) -> str | None:
    """The last box that is closed, else what the last "the answer is" or "####" names, else None. Code and what it printed do not count."""
    text = FENCE.sub(
        lambda block: block[0] if block[1] in ("latex", "tex", "math") else " ", TOOL.sub(" ", text)
    )
    box = last_box(text)
    if box is not None:
        return box
    phrases = PHRASE.findall(text)
    return named_answer(phrases[-1]) if phrases else None


def last_box(text: str) -> str | None:
    """The box that opens last of those that close, found in one pass over the braces."""
    open_braces, best = (
        [],
        (-1, None),
    )  # where each open brace's content starts, and whether it is a box
    for match in BOX.finditer(text):
        if match["bare"]:
            best = max(best, (match.start(), match["bare"]))
        elif match["open"] or match["brace"] == "{":
            open_braces.append((match.end(), bool(match["open"])))
        elif match["brace"] and open_braces:
            start, is_box = open_braces.pop()
            if is_box and start > best[0]:
                best = start, text[start : match.start()]
    return best[1]


def named_answer(line: str) -> str:
    """The answer in the rest of a line: its last formula, else what follows the last "is", up to the end of the sentence."""
    line = re.split(r"\.(?:\s|$)|</answer>", line[:MAX_LINE].replace("**", ""))[0].strip()
    spans = list(SPAN.finditer(line))
    rest = re.split(r"\bis\b", line)[-1].strip()
    if spans and not (rest != line and re.fullmatch(r"-?[\d.,/]+", rest)):
        rest = next(group for group in spans[-1].groups() if group)
    left, equals, right = rest.rpartition("=")
    return (
        right.strip() if equals and not re.search("[a-zA-Z]", left) else rest.rstrip(".").strip()
    )  # "16 + 1 = 17" names 17
