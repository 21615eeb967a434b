"""From the text of an answer to tokens: first one spelling for each sign, then one pass.

A token is a tuple, as ("+",), ("sym", "x"), ("unit", "cm") or ("num", value, digits, text).
"""

import functools
import re
import unicodedata
from fractions import Fraction
from pathlib import Path

from nanotir.answers.trees import fail

TEXT = Path(__file__).with_name("words.txt").read_text(encoding="utf-8")
# For each kind of words: what is written -> the name that it stands for.
WORDS: dict[str, dict[str, str]] = {}
for kind, names in re.findall(r"^(\w+): (.*)", TEXT, re.M):
    for name, *others in map(str.split, names.split("; ")):
        WORDS.setdefault(kind, {}).update(dict.fromkeys((name, *others), name))
# A command of LaTeX or a sign of several spellings -> its token.
COMMANDS = {}
for kind in ("unit", "power", "fn", "root", "const", "sym"):
    COMMANDS |= {name: (kind, ours) for name, ours in WORDS[kind].items()}
COMMANDS |= {name: (sign,) for name, sign in WORDS["sign"].items()}  # \cup is no unit
# A character of Unicode -> its spelling. A space ends a command.
CHARACTERS = {sign: ours + " " * ours[1:].isalpha() for sign, ours in WORDS["character"].items()}
# Units, also in the plural.
UNITS = {word + end: WORDS["unit"][word] for end in ("es", "s", "") for word in WORDS["unit"]}
VALUES = ("num", "const", "unit", ")", "]", "}", "|", "!", "/", "power")

GROUPED = r"(?<![\d.^_])\d{1,3}(?:(?:,\d{3})+(?!\d|,\d)|(?: \d{3})+(?! ?[\d/]))(?=\D|\Z)"
MIXED = r"(?<![\d.^_])(\d+) ?(?:\\[cdt]?frac ?\{ ?(\d+) ?\} ?\{ ?(\d+) ?\}|(?<= )(\d+) ?/ ?(\d+))"
REPEATING = (
    r"(?<!\d)(\d*)\.(\d*)(?:\\(?:overline|bar|dot) ?\{(\d+)\}|\((\d+)\)"
    r"|(?<=000|111|222|333|444|555|666|777|888|999)(?:\.\.\.|\\l?dots))"
)
TOKEN = re.compile(
    r"(?P<num>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3}(?![\d.]))?)|(?P<word>[^\W\d_]+)"
    r"|\\(?P<command>[a-zA-Z]{2,})|(?P<quote>\")| "
    r"|(?P<sign>\\\\|\\[{}%|]|\*\*|<=|>=|!=|!+|.)"
)


def spelled(match: re.Match) -> str:
    """Return one sign of Unicode as LaTeX."""
    sign = match[0]
    if sign in CHARACTERS:
        return CHARACTERS[sign]
    tag = unicodedata.decomposition(sign).partition(">")[0]
    plain = "".join(CHARACTERS.get(c, c) for c in unicodedata.normalize("NFKC", sign))
    # The marks let neighbours join: x¹² is x^{12}.
    mark = {"<super": "^", "<sub": "_"}.get(tag)
    return f"{mark}{{{plain}\ue000}}" if mark else plain


def mixed(match: re.Match) -> str:
    whole, n, d = (part for part in match.groups() if part)
    return f"({whole}+{n}/{d})" if int(n) < int(d) else match[0]


def repeating(match: re.Match) -> str:
    """Return 0.1\\overline{6}, 0.1(6) or 0.1666... as a fraction."""
    whole, fixed = match[1], match[2]
    period = match[3] or match[4] or fixed[-1]
    nines = (10 ** len(period) - 1) * 10 ** len(fixed)
    return f"({Fraction(f'{whole or 0}.{fixed}0') + Fraction(int(period), nines)})"


def ungrouped(match: re.Match) -> str:
    """Return 1,234 as 1234. Within brackets a comma never belongs to a number."""
    return match[0] if match[0][0] in "([\\" else re.sub("[, ]", "", match[0])


# A notation -> how the tokenizer reads it, in this order.
RULES = [
    (r"[^\x00-\x7f]", spelled),
    *re.findall(r'^rule (.+) -> "(.*)"$', TEXT, re.M),
    (rf"[(\[].*|\\\{{.*|{GROUPED}", ungrouped),
    (REPEATING, repeating),
    (MIXED, mixed),
]


@functools.lru_cache(maxsize=1024)
def normalise(text: str) -> str:
    """Return an answer in the notation that the tokenizer reads, without what surrounds it."""
    for pattern, replacement in RULES:
        text = re.sub(pattern, replacement, text)
    return text


def tokenise(text: str) -> list[tuple]:
    tokens, in_text = [], False
    for match in TOKEN.finditer(text):
        kind, found = match.lastgroup, match[match.lastgroup or 0]
        if kind == "num":
            mantissa = found.lower().partition("e")[0]
            decimal = mantissa.replace(".", "").lstrip("0") if "." in mantissa else ""
            tokens.append(("num", Fraction(found), len(decimal), found))
        elif kind == "word":
            tokens += word_tokens(found, in_text, tokens, text[match.end() :])
        elif kind in ("command", "sign"):
            tokens.append(COMMANDS.get(found) or fail(found))
        in_text ^= kind == "quote"
    return tokens


def word_tokens(run: str, in_text: bool, tokens: list, rest: str) -> list[tuple]:
    """Return the tokens of a run of letters: a unit, a function, a word, a name, a product."""
    lower = run.lower()
    # AB is the name of a segment, ab is a product.
    is_name = 1 < len(run) < 4 and run.isupper() and lower not in WORDS["word"]
    if in_text or not is_name or run in ("USD", "AM", "PM"):
        if unit := after_value(run, lower, in_text, tokens, rest):
            return unit
    token = COMMANDS.get(run, ("text", lower))
    if token[0] in ("fn", "root", "const", "or", "and") or token[0] == "sym" and not in_text:
        return [token]
    if is_name:
        return [("sym", run)]
    if len(run) > 3 or lower in WORDS["word"] or in_text and len(run) > 1:
        return [("text", lower)]
    return [("const" if letter in "ei" else "sym", letter) for letter in run]


def after_value(run: str, lower: str, in_text: bool, tokens: list, rest: str) -> list[tuple]:
    """Return the tokens of a unit or a numeral after a value, none of another word."""
    kinds = [token[0] for token in tokens[-2:]]
    in_fraction = in_text and kinds[-1:] == ["{"] and tokens[0][0] == "num"
    if not in_fraction and (not kinds or kinds[-1] not in VALUES):
        return []
    if tokens[-1] == ("unit", "°") and lower in ("c", "f", "celsius", "fahrenheit"):
        tokens.pop()
        return [("unit", "celsius" if lower[0] == "c" else "fahrenheit")]
    if lower in WORDS["after"]:
        return tokenise("1" + WORDS["after"][lower])[1:]
    is_function = run in ("min", "sec") and re.match(r" ?[(\\a-z0-9]", rest)
    if is_function or lower in ("am", "pm") and kinds != [":", "num"]:
        return []
    # One letter is a unit in m/s and in \text{m}.
    is_unit = in_text or kinds == ["unit", "/"] or re.match(r" ?/ ?[sh]", rest)
    name = UNITS.get(lower) if len(run) > 1 else is_unit and WORDS["letter"].get(run)
    return [("unit", name)] if name else []
