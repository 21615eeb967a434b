"""Find the final answer in what a model wrote. Thoughts, code and a tool's output do not count."""

import re

from nanotir.answers.units import unit_name

MAX_LINE = 2000  # characters in which a named answer is looked for

# A tag in backticks is only mentioned.
TAG = re.compile(r"(?<!`)<(/?)(think|python|output|code|result|tool_call|tool_response)>")
CUT_OFF = ("think", "python", "tool_call")  # blocks that may be the last, and not be closed
FENCE = re.compile(r"```(\w*).*?(?:```|\Z)", re.S)
BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:(?P<box>\{)|(?P<bare>-?\d[\d.,]*))|\\[{}]|[{}]")
MARK = re.compile(
    r"(?:\banswer\*?(?:\s+is\b|\s*:|(?=\s*(?:\$|\\[\[(])))|\bfinal answer\b|#### ?)[*\s:]*"
    r"(?:(?:indeed|therefore|thus|simply|exactly|just|equal to|given by)\s+)*",
    re.I,
)
# A closing $ stands before no digit: $18 - $3 are amounts of money.
FORMULA = re.compile(
    r"\$\$([^$]+)\$\$|\$((?:\\.|[^$\\])+)\$(?!\d)|\\\(((?:.|\n)+?)\\\)|\\\[((?:.|\n)+?)\\\]"
)
END = re.compile(r"\.(?:\s|$)|\n")
# How a sentence goes on after its answer.
REASON = re.compile(
    r",?\s(?:because|since|as|which|when|where|if|so|for|in|and we|that is|altogether|a|each)\b"
    r"|,\s(?:not|that)\b|;\s(?=[a-z]{2})|\s\((?=\$|[^()]*[a-z]{2})"
)
PROSE = re.compile(r"((?:\\?\$)?-?(?:\\?\$)?\d[\d,.]*%?) ([a-z]+) [a-z ]+")


def extract_answer(text: str) -> str | None:
    """Return the last closed box, else what the last "the answer is" or "####" names, else None.

    Where there is an <answer> tag, only what it holds counts.
    """
    text = FENCE.sub(without_code, without_blocks(text))
    _, tag, tagged = text.rpartition("<answer>")
    tagged = tagged.partition("</answer>")[0].strip()
    if tag and tagged:
        text = tagged
    box = last_box(text)
    if box is not None:
        return box
    marks = list(MARK.finditer(text.replace("**", "").replace("__", "").replace("`", "")))
    if marks:
        start = marks[-1].end()
        return named_answer(marks[-1].string[start : start + MAX_LINE])
    return tagged if tag and tagged else None


def without_blocks(text: str) -> str:
    """Return the text without what stands in the tags of thoughts and tools."""
    kept, start, block = [], 0, None
    last_end = {}
    for tag in TAG.finditer(text):
        if tag[1]:
            last_end[tag[2]] = tag.start()
    for tag in TAG.finditer(text):
        is_end, name = tag.groups()
        if block is None and is_end and name == "think":
            kept, start = [], tag.end()  # its beginning stood in the prompt
        elif block is None and not is_end:
            is_closed = last_end.get(name, -1) > tag.start()
            if is_closed or name in CUT_OFF or text.startswith("\n", tag.end()):
                kept.append(text[start : tag.start()])
                block = name
        elif is_end and name == block:
            start, block = tag.end(), None
    return " ".join(kept if block else [*kept, text[start:]])


def without_code(block: re.Match) -> str:
    """Keep a fenced block of LaTeX, which may hold the answer."""
    return block[0] if block[1] in ("latex", "tex", "math") else " "


def last_box(text: str) -> str | None:
    """Return the content of the box that closes last; an empty one only if there is no other."""
    # One pass over the braces takes linear time, also where thousands of boxes never close.
    open_braces, best = [], None  # for each brace: where a box's content starts, or None
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
        text = "".join(filter(None, formula.groups())).strip() + text[formula.end() :]
    sentence = END.split(text)[0]
    sentence = FORMULA.sub(lambda found: "".join(filter(None, found.groups())), sentence)
    answer = re.split(r"\bis\b", sentence)[-1] if not REASON.search(sentence) else sentence
    # "5 if n is even, or 6" is no answer of 5.
    reason = REASON.search(answer)
    is_open = reason and re.search(r"\b(?:or|otherwise|else)\b", answer[reason.end() :])
    if reason and (not is_open or reason[0].endswith(("because", "since"))):
        answer = answer[: reason.start()]
    # "16 + 1 = 17" names 17, but "x = 3" is an answer as it stands.
    left, equals, right = answer.rpartition("=")
    if equals and not re.search("[a-zA-Z]", left.replace(" x ", "")):
        answer = right
    answer = answer.strip().rstrip(".,").strip()
    # "72 clips sold" names 72 clips.
    prose = PROSE.fullmatch(answer)
    if prose and unit_name(prose[2]) and " or " not in answer and " per " not in answer:
        answer = f"{prose[1]} {prose[2]}"
    return answer
