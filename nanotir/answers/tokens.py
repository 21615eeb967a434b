"""From text to tokens: LaTeX, Unicode and plain notation of one answer. Every pattern takes linear time."""

from __future__ import annotations

import functools
import re
import unicodedata
from fractions import Fraction


class Unparsable(ValueError):
    """The text is not an answer this grammar knows."""


def fail(why: str):
    raise Unparsable(why)


GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon phi varphi chi psi omega "
    "Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell"
).split()
UNICODE = {
    "−": "-",
    "–": "-",
    "—": "-",
    "×": "*",
    "·": "*",
    "⋅": "*",
    "∙": "*",
    "÷": "/",
    "∕": "/",
    "⁄": "/",
    "π": "\\pi ",
    "∞": "\\infty ",
    "√": "\\sqrt ",
    "≤": "\\le ",
    "≥": "\\ge ",
    "≠": "\\ne ",
    "±": "\\pm ",
    "∓": "\\mp ",
    "∪": "\\cup ",
    "∈": "\\in ",
    "∅": "\\emptyset ",
    "ℝ": "\\mathbb{R}",
    "ℤ": "\\mathbb{Z}",
    "\u00a0": " ",
    "\u2009": " ",
    "\u202f": " ",
    "（": "(",
    "）": ")",
    "，": ",",
    "…": "...",
    "≈": "\\approx ",
    "€": "\\euro ",
    "£": "\\pound ",
    **{digit: f"^{{{i}}}" for i, digit in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    **{digit: f"_{{{i}}}" for i, digit in enumerate("₀₁₂₃₄₅₆₇₈₉")},
    **{
        char: "\\frac{%s}{%s} " % tuple(unicodedata.normalize("NFKC", char).split("⁄"))
        for char in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
    },
    **{
        unicodedata.lookup(f"GREEK SMALL LETTER {name.replace('lambda', 'lamda')}"): f"\\{name} "
        for name in GREEK
        if name.islower() and name[:3] not in ("var", "ell")
    },
}
UNICODE = str.maketrans(UNICODE)
DROP = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|angle|triangle|nolimits)(?![a-zA-Z])|\\!"
)
SPACE = re.compile(r"(?<!\\)\\[,;: ]|~|\\q?quad(?![a-zA-Z])|\s+")
DEGREE = re.compile(r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree|\\circ(?![a-zA-Z])|º")


@functools.lru_cache(maxsize=1024)
def tidy(text: str) -> str:
    """The answer without math delimiters, spacing, final dots and the like; Unicode signs as LaTeX."""
    text = re.sub(r"\\\$", r"\\dollar ", text.translate(UNICODE))
    exact_value, _, about = text.partition("\\approx")
    text = exact_value if about and re.search(r"\d", exact_value) else text
    text = re.sub(
        r"\* ?I\b", "*i", re.sub(r"([\d}] ?)([kc]?m) ?/ ?(s|h|hr|sec)\b", r"\1\\text{\2/\3}", text)
    )
    if text.count("$") == 1 and re.match(r"\s*-?\$\s*[\d.]", text):
        text = text.replace("$", "\\dollar ")
    text = SPACE.sub(" ", DROP.sub("", re.sub(r"\$|\\[()\[\]]", " ", text)))
    text = re.sub(
        r"\b([ap])\. ?m\b\.?",
        r"\1m",
        re.sub(r"\{ ?, ?\}", ",", DEGREE.sub("°", text), flags=re.I),
        flags=re.I,
    )
    return re.sub(r"(\\\\|(?<!\.)\.|[,;]|\*\*| )+$", "", text).removeprefix("**").strip()


UNIT_NAMES = {  # how a unit is written -> its name; other words of four letters and more are units of their own
    name: names.split()[0]
    for names in (
        "cm centimeter centimetre",
        "mm millimeter millimetre",
        "km kilometer kilometre",
        "meter metre",
        "kg kilogram kilo",
        "gram",
        "mg milligram",
        "inch inche in",
        "foot feet ft",
        "yard yd",
        "mile mi",
        "lb pound lbs",
        "ounce oz",
        "second sec",
        "minute min",
        "hour hr",
        "day",
        "week",
        "month",
        "year yr",
        "ml milliliter",
        "liter litre",
        "dollar usd buck",
        "cent",
        "euro",
        "degree deg",
        "mph",
        "kph kmh",
        "unit",
        "square sq",
        "cubic",
        "am",
        "pm",
        "percent",
        "rad radian",
        "way",
        "men",
        "per",
    )
    for name in names.split()
}
UNITS = frozenset(UNIT_NAMES.values())
UNIT_LETTERS = {"m": "meter", "s": "second", "g": "gram", "h": "hour", "l": "liter", "L": "liter"}
MULTIPLES = {
    "hundred": 2,
    "thousand": 3,
    "million": 6,
    "billion": 9,
    "trillion": 12,
}  # powers of ten
FUNCTIONS = "sin cos tan cot sec csc arcsin arccos arctan asin acos atan sinh cosh tanh ln log lg exp sqrt cbrt abs floor ceil binom max min".split()
CONSTANTS = {
    "pi": "pi",
    "e": "e",
    "i": "i",
    "infty": "oo",
    "oo": "oo",
    "inf": "oo",
    "infinity": "oo",
}
COMMANDS = {  # LaTeX command -> its token
    **{command: ("sym", command) for command in GREEK},
    **{command: ("fn", command) for command in FUNCTIONS},
    **{command: ("const", name) for command, name in CONSTANTS.items()},
    "emptyset": ("empty",),
    "varnothing": ("empty",),
    **{
        command: ("accent", command)
        for command in ("overline", "bar", "vec", "overrightarrow", "hat", "tilde")
    },
    **{command: ("word", command) for command in ("dollar", "euro", "pound")},
    **{
        command: (kind,)
        for kind, commands in {
            "*": "cdot times ast",
            "/": "div",
            "<=": "le leq leqslant",
            ">=": "ge geq geqslant",
            "!=": "ne neq",
            "<": "lt",
            ">": "gt",
            "in": "in",
            "pm": "pm",
            "mp": "mp",
            "cup": "cup",
            "minus": "setminus backslash",
            ":": "colon",
            "|": "lvert rvert vert mid",
            "over": "over",
            "choose": "choose",
            "\\{": "lbrace",
            "\\}": "rbrace",
            "<(": "langle",
            ")>": "rangle",
            "lfloor": "lfloor",
            "rfloor": "rfloor",
            "lceil": "lceil",
            "rceil": "rceil",
            "frac": "frac dfrac tfrac cfrac",
            "tex binom": "binom dbinom tbinom",
            ",": "lor land",
        }.items()
        for command in commands.split()
    },
}
OTHER_SIGNS = {"**": "^", "\\%": "%", "\\|": "|", ";": ","}
FRACTION = r"\\[cdt]?frac ?(?:\{ ?(?P<n1>\d+) ?\}|(?P<n2>\d)) ?(?:\{ ?(?P<d1>\d+) ?\}|(?P<d2>\d))"
MIXED = re.compile(rf"(?P<whole>\d+) ?(?:{FRACTION}|(?<= )(?P<n3>\d+) ?/ ?(?P<d3>\d+)(?!\d))")
REPEATING = re.compile(
    r"(?P<whole>\d*)\.(?P<fixed>\d*)(?:\\(?:overline|bar|dot) ?\{(?P<over>\d+)\}|\((?P<round>\d+)\)|(?<=\d\d\d)(?P<dots>\.\.\.|\\l?dots))"
)
GROUPED = re.compile(r"\d{1,3}(?:(?:,\d{3})+(?!\d|,\d)|(?: \d{3})+(?! ?\d))(?:\.\d+)?")
PLAIN = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,9}(?![\d.]))?")
WRAPPED = re.compile(
    r"\\(text(?:bf|it|rm|sf|tt|normal)?|mbox|math(?:rm|bf|it|sf)|operatorname\*?|textnormal) ?\{([^{}]*)\}"
)
RUN = re.compile("[A-Za-z]+| +")
OTHER = re.compile(
    r"\\mathbb ?\{? ?([A-Z]) ?\}?|\\(begin|end) ?\{(\w+)\}(?:\{[lcr| ]*\})?|\\([a-zA-Z]+)|\\\\|\\[{}%|]|\*\*|<=|>=|!=|[-+*/^_=<>(){}\[\]|!:,;&%°']"
)


def tokenize(text: str, words: bool = False, depth: int = 0, tokens: tuple = ()) -> list[tuple]:
    """[(kind, value), ...] after those there are. With `words` every run of letters is a word, as in \\text{}. Within brackets a comma never
    belongs to a number."""
    tokens, at = list(tokens), 0
    while at < len(text):
        end, number = number_at(text, at, tokens, depth) if text[at] in "0123456789." else (0, None)
        wrapped = WRAPPED.match(text, at) if text[at] == "\\" else None
        found = wrapped or RUN.match(text, at) or OTHER.match(text, at)
        if number:
            tokens.append(number)
        elif wrapped:
            inner = wrapped[2].strip()
            tokens = tokenize(
                inner,
                not wrapped[1].startswith(("math", "oper"))
                or len(inner) > 1
                and inner not in FUNCTIONS,
                depth,
                tokens,
            )
        elif not found:
            fail(text[at])
        elif found.re is RUN:
            unit = found[0] in ("min", "sec") and not text.startswith(("(", " ("), found.end())
            tokens += letters(found[0].strip(), words or unit, tokens)
        else:
            tokens.append(sign(found))
            depth += {"(": 1, "[": 1, "\\{": 1, ")": -1, "]": -1, "\\}": -1}.get(tokens[-1][0], 0)
        at = end or found.end()
    return tokens


def number_at(text: str, at: int, tokens: list, depth: int):
    """(end, ("num", value, significant digits of a decimal, text)) of the number that starts here; (0, None) without one."""
    bound = tokens and tokens[-1][0] in ("^", "_", "frac", "tex binom")
    if match := None if bound else MIXED.match(text, at):
        n, d = (Fraction(next(filter(None, (match[f"{part}{i}"] for i in "123")))) for part in "nd")
        if n < d:
            return match.end(), ("num", int(match["whole"]) + n / d, 0, "mixed")
    match = REPEATING.match(text, at)
    if match and (not match["dots"] or len(set(match["fixed"][-3:])) == 1):
        period = match["over"] or match["round"] or match["fixed"][-1]
        value = Fraction((match["whole"] or "0") + "." + (match["fixed"] or "0"))
        return match.end(), (
            "num",
            value + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(match["fixed"])),
            0,
            "repeating",
        )
    match = (None if bound or depth else GROUPED.match(text, at)) or PLAIN.match(text, at)
    if match is None:
        return 0, None
    mantissa, _, exponent = re.sub("[, ]", "", match[0]).lower().partition("e")
    digits = len(mantissa.replace(".", "").lstrip("0")) if "." in mantissa else 0
    if exponent and abs(int(exponent)) > 1000:
        fail("exponent")
    return match.end(), (
        "num",
        Fraction(mantissa) * (Fraction(10) ** int(exponent) if exponent else 1),
        digits,
        match[0],
    )


def letters(run: str, words: bool, before: list) -> list[tuple]:
    """The tokens of a run of letters: a connective, a function, a constant, a unit or a word, a name like AB, or a product of single letters."""
    lower = run.lower()
    if lower in ("", "or", "and"):
        return [(",", lower)] if lower else []
    if run in FUNCTIONS and not words or run in ("arcsin", "arccos", "arctan"):
        return [("fn", run)]
    if run in CONSTANTS and (len(run) > 1 or not words):
        return [("const", CONSTANTS[run])]
    if run in GREEK and not words:
        return [("sym", run)]
    after_number = bool(before) and before[-1][0] in ("num", ")", "}", "/", "word")
    if (
        unit_name(lower) in UNITS
        and (len(run) > 2 or after_number)
        or len(run) > 3
        or words
        and (len(run) > 1 and not run.isupper() or after_number)
    ):
        return [("word", run)]
    if len(run) > 1 and run.isupper():
        return [("sym", run)]
    return [("const", letter) if letter in "ei" else ("sym", letter) for letter in run]


def sign(match: re.Match) -> tuple:
    """The token of a command or a sign."""
    blackboard, edge, environment, command = match.groups()
    if blackboard or edge:
        return (edge, environment) if edge else ("sym", f"set {blackboard}")
    if command:
        return COMMANDS.get(command) or fail(command)
    return (OTHER_SIGNS.get(match[0], match[0]),)


def unit_name(word: str) -> str:
    word = word.lower()
    return (
        UNIT_NAMES.get(word)
        or UNIT_NAMES.get(word.removesuffix("s"))
        or word.removesuffix("s")
        or word
    )
