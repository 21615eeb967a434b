"""From text to tokens: the LaTeX, Unicode and plain notation of one answer.

A token is a tuple: its kind, and for some kinds a value, as in ("+",) or ("sym", "x").
Every pattern takes linear time, so that no text can hang the checker.
"""

import functools
import re
from fractions import Fraction

from nanotir.answers.trees import fail
from nanotir.answers.units import UNITS, unit_name

# Names of tokens.
GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau "
    "upsilon phi chi psi omega"
).split()
LETTERS = [*GREEK, *"varepsilon vartheta varphi ell Gamma Delta Theta Lambda Xi Sigma".split()]
LETTERS += "Phi Psi Omega".split()
FUNCTIONS = (
    "sin cos tan cot sec csc arcsin arccos arctan asin acos atan sinh cosh tanh "
    "ln log lg exp sqrt cbrt abs floor ceil binom max min"
).split()
CONSTANTS = {"pi": "pi", "e": "e", "i": "i", "oo": "oo"}
CONSTANTS |= {"infty": "oo", "inf": "oo", "infinity": "oo"}

# The kinds of LaTeX commands that stand for a sign; the others are called as the sign is.
SIGNS = {"cdot": "*", "times": "*", "ast": "*", "div": "/", "colon": ":", "lor": ",", "land": ","}
SIGNS |= {"le": "<=", "leq": "<=", "leqslant": "<=", "ge": ">=", "geq": ">=", "geqslant": ">="}
SIGNS |= {"ne": "!=", "neq": "!=", "lt": "<", "gt": ">", "setminus": "minus", "backslash": "minus"}
SIGNS |= {"lvert": "|", "rvert": "|", "vert": "|", "mid": "|", "lbrace": "\\{", "rbrace": "\\}"}
SIGNS |= {"langle": "<(", "rangle": ")>", "emptyset": "empty", "varnothing": "empty"}
SIGNS |= dict.fromkeys(("frac", "dfrac", "tfrac", "cfrac"), "frac")
SIGNS |= dict.fromkeys(("binom", "dbinom", "tbinom"), "tex binom")
SIGNS |= {name: name for name in "in pm mp cup over choose lfloor rfloor lceil rceil".split()}
OTHER_SIGNS = {"**": "^", "\\%": "%", "\\|": "|", ";": ","}
ACCENTS = ("overline", "bar", "vec", "overrightarrow", "hat", "tilde")
MONEY = ("dollar", "euro", "pound")

COMMANDS = {name: ("sym", name) for name in LETTERS}
COMMANDS |= {name: ("fn", name) for name in FUNCTIONS}
COMMANDS |= {name: ("const", value) for name, value in CONSTANTS.items()}
COMMANDS |= {name: ("accent", name) for name in ACCENTS}
COMMANDS |= {name: ("word", name) for name in MONEY}
COMMANDS |= {name: (kind,) for name, kind in SIGNS.items()}

# Unicode signs as LaTeX.
UNICODE = dict(zip("−–—×·⋅∙÷∕⁄（），\u00a0\u2009\u202f", "---****///(),   "))
UNICODE |= {"π": "\\pi ", "∞": "\\infty ", "√": "\\sqrt ", "≤": "\\le ", "≥": "\\ge "}
UNICODE |= {"≠": "\\ne ", "±": "\\pm ", "∓": "\\mp ", "∪": "\\cup ", "∈": "\\in ", "…": "..."}
UNICODE |= {"∅": "\\emptyset ", "≈": "\\approx ", "€": "\\euro ", "£": "\\pound "}
UNICODE |= {"ℝ": "\\mathbb{R}", "ℤ": "\\mathbb{Z}"}
UNICODE |= {sign: f"\\{name} " for sign, name in zip("αβγδεζηθικλμνξρστυφχψω", GREEK)}
UNICODE |= {sign: f"^{{{digit}}}" for digit, sign in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
UNICODE |= {sign: f"_{{{digit}}}" for digit, sign in enumerate("₀₁₂₃₄₅₆₇₈₉")}
PARTS = "12 13 23 14 34 15 25 35 45 16 56 18 38 58 78".split()
UNICODE |= {s: f"\\frac{{{n}}}{{{d}}} " for s, (n, d) in zip("½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞", PARTS)}
UNICODE = str.maketrans(UNICODE)

LAYOUT = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?|(?:display|text)style|(?:no)?limits|(?:tri)?angle)(?![a-zA-Z])"
    r"|\\!"
)
SPACE = re.compile(r"(?<!\\)\\[,;: ]|~|\\q?quad(?![a-zA-Z])|\s+")
DEGREE = re.compile(r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree|\\circ(?![a-zA-Z])|º")


@functools.lru_cache(maxsize=1024)
def tidy(text: str) -> str:
    """Return the answer without math delimiters, spacing and final dots; Unicode as LaTeX."""
    text = text.translate(UNICODE).replace("\\$", "\\dollar ")
    # Of "1/3 \approx 0.33" the first is the answer.
    exact, approx, _ = text.partition("\\approx")
    if approx and re.search(r"\d", exact):
        text = exact
    # Units with a slash, and the imaginary unit of computer algebra, 2*I.
    text = re.sub(r"([\d}] ?)([kc]?m) ?/ ?(s|h|hr|sec)\b", r"\1\\text{\2/\3}", text)
    text = re.sub(r"\* ?I\b", "*i", text)
    # A single $ before a number is money; the others are math delimiters.
    if text.count("$") == 1 and re.match(r"\s*-?\$\s*[\d.]", text):
        text = text.replace("$", "\\dollar ")
    text = re.sub(r"\$|\\[()\[\]]", " ", text)
    text = SPACE.sub(" ", LAYOUT.sub("", text))
    text = DEGREE.sub("°", text)
    text = re.sub(r"\{ ?, ?\}", ",", text)
    text = re.sub(r"\b([ap])\. ?m\b\.?", r"\1m", text, flags=re.I)
    text = re.sub(r"(\\\\|(?<!\.)\.|[,;]|\*\*| )+$", "", text)
    return text.removeprefix("**").strip()


# The numbers.
FRACTION = r"\\[cdt]?frac ?(?:\{ ?(\d+) ?\}|(\d)) ?(?:\{ ?(\d+) ?\}|(\d))"
MIXED = re.compile(rf"(\d+) ?(?:{FRACTION}|(?<= )(\d+) ?/ ?(\d+)(?!\d))")
REPEATING = re.compile(
    r"(?P<whole>\d*)\.(?P<fixed>\d*)(?:\\(?:overline|bar|dot) ?\{(?P<over>\d+)\}"
    r"|\((?P<round>\d+)\)|(?<=\d\d\d)(?P<dots>\.\.\.|\\l?dots))"
)
GROUPED = re.compile(r"\d{1,3}(?:(?:,\d{3})+(?!\d|,\d)|(?: \d{3})+(?! ?\d))(?:\.\d+)?")
PLAIN = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,9}(?![\d.]))?")
# The words and signs.
WRAPPED = re.compile(
    r"\\(text(?:bf|it|rm|sf|tt|normal)?|mbox|math(?:rm|bf|it|sf)|operatorname\*?) ?\{([^{}]*)\}"
)
RUN = re.compile("[A-Za-z]+| +")
SIGN = re.compile(
    r"\\mathbb ?\{? ?([A-Z]) ?\}?|\\(begin|end) ?\{(\w+)\}(?:\{[lcr| ]*\})?|\\([a-zA-Z]+)"
    r"|\\\\|\\[{}%|]|\*\*|<=|>=|!=|[-+*/^_=<>(){}\[\]|!:,;&%°']"
)
DEEPER = {"(": 1, "[": 1, "\\{": 1, ")": -1, "]": -1, "\\}": -1}


def tokenize(text: str, words: bool = False, depth: int = 0, before: tuple = ()) -> list[tuple]:
    """Return the tokens before and those of the text.

    With `words` every run of letters is a word, as in \\text{}. `depth` counts the brackets
    around: within brackets a comma never belongs to a number.
    """
    tokens, at = list(before), 0
    while at < len(text):
        number = number_at(text, at, tokens, depth) if text[at] in "0123456789." else None
        if number:
            at, token = number
            tokens.append(token)
            continue
        found = WRAPPED.match(text, at) or RUN.match(text, at) or SIGN.match(text, at)
        if not found:
            fail(text[at])
        at = found.end()
        if found.re is WRAPPED:
            inner = found[2].strip()
            is_text = not found[1].startswith(("math", "oper"))
            words_inside = is_text or len(inner) > 1 and inner not in FUNCTIONS
            tokens = tokenize(inner, words_inside, depth, tokens)
        elif found.re is RUN:
            # "min" before a bracket is the function; elsewhere it is minutes.
            called = text.startswith(("(", " ("), at)
            unit = found[0] in ("min", "sec") and not called
            tokens += letters(found[0].strip(), words or unit, tokens)
        else:
            tokens.append(sign(found))
            depth += DEEPER.get(tokens[-1][0], 0)
    return tokens


def number_at(text: str, at: int, tokens: list, depth: int):
    """Return (end, token) of the number that starts here, or None.

    Its token is ("num", value, significant digits of a decimal, text).
    """
    # In 2^1 \frac{1}{2} and in \frac1 2 the first digit is an argument of its own.
    bound = tokens and tokens[-1][0] in ("^", "_", "frac", "tex binom")
    if match := None if bound else MIXED.match(text, at):
        whole, n, d = (int(part) for part in match.groups() if part)
        if n < d:
            return match.end(), ("num", whole + Fraction(n, d), 0, "mixed")

    match = REPEATING.match(text, at)
    if match and (not match["dots"] or len(set(match["fixed"][-3:])) == 1):
        return match.end(), ("num", repeating(match), 0, "repeating")

    match = None if bound or depth else GROUPED.match(text, at)
    match = match or PLAIN.match(text, at)
    if match is None:
        return None
    number = re.sub("[, ]", "", match[0]).lower()
    mantissa, _, exponent = number.partition("e")
    if exponent and abs(int(exponent)) > 1000:
        fail("exponent")
    decimal = mantissa.replace(".", "").lstrip("0") if "." in mantissa else ""
    return match.end(), ("num", Fraction(number), len(decimal), match[0])


def repeating(match: re.Match) -> Fraction:
    """Return the value of 0.1\\overline{6}, 0.1(6) or 0.1666..."""
    fixed = match["fixed"]
    period = match["over"] or match["round"] or fixed[-1]
    nines = (10 ** len(period) - 1) * 10 ** len(fixed)
    return Fraction(f"{match['whole'] or 0}.{fixed or 0}") + Fraction(int(period), nines)


def letters(run: str, words: bool, tokens: list) -> list[tuple]:
    """Return the tokens of a run of letters."""
    lower = run.lower()
    if lower in ("", "or", "and"):
        return [(",", lower)] if lower else []
    if run in FUNCTIONS and not words or run in ("arcsin", "arccos", "arctan"):
        return [("fn", run)]
    if run in CONSTANTS and (len(run) > 1 or not words):
        return [("const", CONSTANTS[run])]
    if run in LETTERS and not words:
        return [("sym", run)]
    if is_word(run, words, tokens):
        return [("word", run)]
    # AB is the name of a segment, ab is a product.
    if len(run) > 1 and run.isupper():
        return [("sym", run)]
    return [("const" if letter in "ei" else "sym", letter) for letter in run]


def is_word(run: str, words: bool, tokens: list) -> bool:
    """Whether a run of letters is a unit or another word, and no product of unknowns."""
    after_number = bool(tokens) and tokens[-1][0] in ("num", ")", "}", "/", "word")
    if len(run) > 3 or unit_name(run) in UNITS and (len(run) > 2 or after_number):
        return True
    return words and (after_number or len(run) > 1 and not run.isupper())


def sign(match: re.Match) -> tuple:
    """Return the token of a command or a sign."""
    blackboard, edge, environment, command = match.groups()
    if blackboard:
        return ("sym", f"set {blackboard}")
    if edge:
        return (edge, environment)
    if command:
        return COMMANDS.get(command) or fail(command)
    return (OTHER_SIGNS.get(match[0], match[0]),)
