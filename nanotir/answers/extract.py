"""Find the final answer in what a model wrote. Thoughts, code and a tool's output do not count."""

import re

from nanotir.answers.text import UNITS

MAX_SENTENCE, MAX_UNNAMED = 2000, 200  # characters that may hold a named, an unnamed answer
# A tag in backticks is only mentioned.
TAG = re.compile(r"(?<!`)<(/?)(think|python|output|code|result|tool_call|tool_response)>")
CUT_OFF = ("think", "python", "tool_call")  # blocks that may be the last, and not be closed
FENCE = re.compile(r"```(?!latex|tex|math).*?(?:```|\Z)|```\w*", re.S)
BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:(?P<box>\{)|(?P<bare>-?\d[\d.,]*))|\\[{}]|[{}]")
MARK = re.compile(
    r"(?:\banswer\*?(?:\s+is\b|\s*:|(?=\s*(?:\$|\\[\[(])))|\bfinal answer\b(?:\s+is\b)?|#### ?)"
    r"[*\s:]*(?:(?:indeed|therefore|thus|simply|exactly|just|equal to|given by)\s+)*",
    re.I,
)
# A closing $ stands before no digit: $18 - $3 are amounts of money.
FORMULA = re.compile(r"\$\$([^$]+)\$\$|\$((?:\\.|[^$\\])+)\$(?!\d)|\\[(\[]((?:.|\n)+?)\\[)\]]")
INSIDE = r"\1\2\3"
# How a sentence goes on after its answer, and what would change it.
REASON = re.compile(
    r",?\s(?:(?P<cause>because|since)|as|which|when|where|if|so|for|in|and we|(?:and )?that is"
    r"|altogether|total|every|each)\b"
    r"|\sa\b|,\s(?:not|that)\b|;\s(?=[a-z]{2})|\s\((?=\$|[^()]*[a-z]{2})"
)
CASES = re.compile(r"\b(?:or|otherwise|else)\b|\band\b.*\b(?:for|if|when)\b")
NUMBER = r"(?<![\w.])(-?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?)"
PROSE = re.compile(
    r"((?:\\?\$)?-?(?:\\?\$)?\d[\d,.]*%? ([a-z]+))(?! (?:or|per|and|to|out|of)\b) [a-z ]+"
)


def extract_answer(text: str) -> str | None:
    """Return the last closed box, else what the last "the answer is" or "####" names, else None."""
    text = words_of(text)
    # Where there is an <answer> tag, only what it holds counts.
    _, tag, tagged = text.rpartition("<answer>")
    tagged = tagged.partition("</answer>")[0].strip() if tag else ""
    box = last_box(tagged or text)
    if box is not None:
        return box
    text = re.sub(r"\*\*|__|`", "", tagged or text)
    *_, start = [None, *(mark.end() for mark in MARK.finditer(text))]
    return named_answer(text[start : start + MAX_SENTENCE]) if start else tagged or None


def likely_answers(text: str) -> list[str]:
    """Return what may be an unnamed answer: the end of the last sentence, the last number."""
    text = words_of(text).strip()[-MAX_SENTENCE:]
    sentence = re.split(r"(?<=[.!?])\s+|\n", text)[-1]
    *_, last = [None, *re.finditer(f"{FORMULA.pattern}|{NUMBER}", text)]
    found = [named_answer(sentence)] if len(sentence) <= MAX_UNNAMED else []
    return found + ([last.expand(f"{INSIDE}\\4").strip(",")] if last else [])


def words_of(text: str) -> str:
    """Return the text without thoughts, code, and what a tool printed."""
    tags = list(TAG.finditer(text))
    last_end = {tag[2]: tag.start() for tag in tags if tag[1]}
    kept, start, block = [], 0, None
    for tag in tags:
        is_end, name = tag.groups()
        if is_end and name == (block or "think"):
            kept = kept if block else []  # thoughts may have begun in the prompt
            start, block = tag.end(), None
        elif not is_end and block is None:
            is_closed = last_end.get(name, -1) > tag.start()
            if is_closed or name in CUT_OFF or text.startswith("\n", tag.end()):
                kept.append(text[start : tag.start()])
                block = name
    return FENCE.sub(" ", " ".join(kept if block else [*kept, text[start:]]))


def last_box(text: str) -> str | None:
    """Return the content of the box that closes last; an empty one only if there is no other."""
    # One pass over the braces takes linear time, also where thousands of boxes never close.
    open_braces, best = [], None  # where the content of a box starts; None for other braces
    for match in BOX.finditer(text):
        content = match["bare"]
        if match[0].endswith("{") and match[0] != "\\{":
            open_braces.append(match.end() if match["box"] else None)
        elif match[0] == "}" and open_braces:
            start = open_braces.pop()
            content = None if start is None else text[start : match.start()]
        if content is not None and (content.strip() or best is None):
            best = content
    while best is not None and (inner := re.fullmatch(r"\s*\\boxed\s*\{([^{}]*)\}\s*", best)):
        best = inner[1]
    return best


def named_answer(text: str) -> str:
    """Return the answer at the beginning of a sentence, without what follows."""
    if formula := FORMULA.match(text):
        text = formula.expand(INSIDE).strip() + text[formula.end() :]
    answer = FORMULA.sub(INSIDE, re.split(r"\.(?:\s|$)|\n", text)[0])
    reason = REASON.search(answer)
    if not reason:
        answer = re.split(r"\bis\b", answer)[-1]
    elif reason["cause"] or not CASES.search(answer, reason.end()):
        answer = answer[: reason.start()]
    # "16 + 1 = 17" names 17, but "x = 3" is an answer as it stands.
    left, equals, right = answer.rpartition("=")
    if equals and not re.search("[a-zA-Z]", left.replace(" x ", "")):
        answer = right
    answer = answer.strip().rstrip(".,").strip()
    # "72 clips sold" names 72 clips.
    prose = PROSE.fullmatch(answer)
    return prose[1] if prose and prose[2] in UNITS else answer
