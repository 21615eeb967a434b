"""Find the final answer in what a model wrote. Code, and what a tool printed, do not count."""

import re

MAX_LINE = 2000  # characters in which a named answer is looked for

FENCE = re.compile(r"```(\w*).*?(?:```|\Z)", re.S)
TOOL = re.compile(r"<(python|output|code|result|tool_call|tool_response)>.*?(?:</\1>|\Z)", re.S)
BOX = re.compile(
    r"\\(?:boxed|fbox)\s*(?:(?P<box>\{)|(?P<bare>-?[\w.]*\w))|\\[{}]|(?P<open>\{)|(?P<close>\})"
)
PHRASE = re.compile(
    r"(?:final answer(?: is)?|answer is|answer:|<answer>|####)[ \t]*:?[ \t]*\n?([^\n]+)", re.I
)
FORMULA = re.compile(r"\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]")


def extract_answer(text: str) -> str | None:
    """Return the last closed box, else what the last "the answer is" or "####" names, else None."""
    text = FENCE.sub(without_code, TOOL.sub(" ", text))
    box = last_box(text)
    if box is not None:
        return box
    phrases = PHRASE.findall(text)
    return named_answer(phrases[-1]) if phrases else None


def without_code(block: re.Match) -> str:
    """Keep a fenced block of LaTeX, which may hold the answer."""
    return block[0] if block[1] in ("latex", "tex", "math") else " "


def last_box(text: str) -> str | None:
    """Return the content of the box that opens last among those that close."""
    # One pass over the braces takes linear time, also where thousands of boxes never close.
    open_braces = []  # for each one: where its content starts, and whether it is a box
    best_start, best = -1, None
    for match in BOX.finditer(text):
        start, content = match.start(), match["bare"]
        if match["box"] or match["open"]:
            open_braces.append((match.end(), bool(match["box"])))
        elif match["close"] and open_braces:
            start, is_box = open_braces.pop()
            content = text[start : match.start()] if is_box else None
        if content is not None and start > best_start:
            best_start, best = start, content
    return best


def named_answer(line: str) -> str:
    """Return the last formula of the sentence, or what follows its last "is"."""
    sentence = re.split(r"\.(?:\s|$)|</answer>", line[:MAX_LINE].replace("**", ""))[0].strip()
    answer = re.split(r"\bis\b", sentence)[-1].strip()
    formulas = FORMULA.findall(sentence)
    # "the sum $s$ is 40" names 40, although it has a formula.
    is_number = answer != sentence and re.fullmatch(r"-?[\d.,/]+", answer)
    if formulas and not is_number:
        answer = "".join(formulas[-1])
    # "16 + 1 = 17" names 17, but "x = 3" is an answer as it stands.
    left, equals, right = answer.rpartition("=")
    if equals and not re.search("[a-zA-Z]", left):
        return right.strip()
    return answer.rstrip(".").strip()
