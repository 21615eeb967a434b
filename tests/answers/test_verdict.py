import ast
import importlib.util
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SHARED
from pairs_of_expressions import EXPRESSIONS
from pairs_of_numbers import NUMBERS

from nanotir.answers import equivalent, extract_answer, verdict

CASES = [
    (kind, gold, prediction, equal)
    for kind, rows in {**NUMBERS, **EXPRESSIONS}.items()
    for gold, same, different in rows
    for equal, predictions in ((True, same), (False, different))
    for prediction in predictions
]


# Kinds of pairs where the form of the gold decides what may be left out.
ONE_SIDED = ("percent, money, units", "bases, times, ratios", "tricks")
ONE_SIDED += ("lists, sets, several roots",)


def wrong_pairs(cases):
    return [
        (gold, prediction, equal)
        for _, gold, prediction, equal in cases
        if equivalent(prediction, gold) is not equal
    ]


@pytest.mark.parametrize("kind", sorted({case[0] for case in CASES}))
def test_answers_of_a_kind(kind):
    assert wrong_pairs(case for case in CASES if case[0] == kind) == []


def test_the_public_pairs():
    path = SHARED / "checks" / "answers.jsonl"
    if not path.exists():
        pytest.skip("the public answer pairs are not here")
    rows = [row for row in map(json.loads, path.open()) if not row["policy"]]
    wrong = []
    for row in rows:
        said = row["pred"] if row["mode"] == "answer" else extract_answer(row["pred"]) or ""
        if equivalent(said, row["gold"]) is not row["equal"]:
            wrong.append(row["id"])
    assert len(wrong) < 0.01 * len(rows), wrong


def test_equality_is_symmetric():
    odd = []
    for kind, gold, prediction, _ in CASES[::4]:
        forth, back = equivalent(prediction, gold), equivalent(gold, prediction)
        if forth is not back and kind not in ONE_SIDED:
            odd.append((gold, prediction))
    assert not odd


def test_every_answer_equals_itself():
    assert all(equivalent(text, text) for case in CASES for text in case[1:3])


@pytest.mark.parametrize(
    "exact, decimal, equal",
    [
        ("\\sqrt{7}", "2.64575", True),
        ("\\sqrt{7}", "2.6458", False),
        ("\\sqrt{7}", "2.64576", False),
        ("\\frac{2}{3}", "0.666667", True),
        ("\\frac{2}{3}", "0.666666", True),
        ("\\frac{2}{3}", "0.666668", False),
        ("3", "3.0000001", False),
        ("3", "2.9999999999999996", False),
        ("0.7", "0.7000000000000001", True),
        ("0.7", "0.7000001", False),
    ],
)
def test_six_correct_digits_for_what_is_no_decimal_and_all_for_integers(exact, decimal, equal):
    assert equivalent(decimal, exact) is equal


@pytest.mark.parametrize("n", [30, 60, 120, 300])
def test_tolerance_is_relative_however_small_the_numbers(n):
    assert not equivalent(
        f"\\sqrt{{2}}\\cdot 10^{{-{n}}}", f"\\sqrt{{3}}\\cdot 10^{{-{n}}}"
    ) and not equivalent(f"\\pi\\cdot 10^{{-{n}}}", "0")
    same = f"\\sqrt{{2}}\\cdot 10^{{-{n}}}", f"\\frac{{2}}{{\\sqrt2}}\\cdot 10^{{-{n}}}"
    assert equivalent(*same, deadline=20.0)  # also where all processors are busy


@pytest.mark.parametrize(
    "prediction",
    [
        "",
        " ",
        "\n",
        "1, 2, 3, 4, 5, 6, 7",
        "5 or 6",
        "5 and 5",
        "\\pm 5",
        "5, -5",
        "4 < 5",
        "5 = 6",
        "5 = 5",
        "[0, 10]",
        "5 5",
        "5 cm 6",
        "5 not 6",
        "x",
        "x=5=6",
        "{5",
        "5}",
        "(5",
        "5)",
        "What is the value of 2 + 3?",
        "2 + 3 = ?",
        "nan",
        "inf",
        "\\text{any number}",
        "9**9**9",
        "9^{9^{9^{9}}}",
        "0/0",
        "5/0",
        "5^",
        "\\frac{5}",
        "5_7",
        "{5: 5}",
        "5 if True else 6",
        "lambda: 5",
        "[5][0]",
        "int('5')",
        "5#6",
        "\\boxed{}",
        "5\\boxed{6}",
        "\x005",
        "5;6",
        "5\\\\6",
        "5&6",
        "5!",
        "5?",
        "0x5",
        "5e",
        "gold",
        "*",
        "5:5",
        "\\sqrt{25}i",
    ],
)
def test_a_hack_does_not_equal_five(prediction):
    assert not equivalent(prediction, "5")


@pytest.mark.parametrize(
    "text",
    [
        "1e999999999",
        "9" * 10**7,
        "1/" + "9" * 10**6,
        "\\boxed{" * 10**4,
        "inf",
        "nan",
        "--1",
        "1,,000",
        "\x00",
        "{" * 1500,
        "(" * 1500,
        "\\sqrt" * 300,
        "-" * 1500,
        "1+" * 900 + "1",
        "\\frac" * 300,
        "2^" * 900 + "2",
        "|" * 1000,
        "9**9**9**9",
        "(10^{9})!",
        "\\sin(10^{10^{8}})",
        "\ud800",
        "P(",
        "f^{-1}(",
        "\\{x",
        "\\lg(1,2,3)",
        "\\log_2(1,3)",
    ],
)
def test_odd_answers_neither_raise_nor_hang(text):
    start = time.perf_counter()
    assert equivalent(text, "7") is False and equivalent("7", text) is False
    assert equivalent(text, text)
    extract_answer(text)
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("small", ["\\frac{1}{1000!}", "\\sin \\pi", "10^{-300}"])
def test_very_small_numbers_do_not_raise(small):
    assert not equivalent("e^{100}", small) and not equivalent("\\tanh 40", small)
    assert not equivalent("10^{-299}", small) and equivalent(small, f"{small} + 0")


def test_no_text_raises_or_hangs():
    pieces = [
        "\\frac",
        "{",
        "}",
        "(",
        ")",
        "[",
        "]",
        "^",
        "_",
        "\\sqrt",
        "9",
        "x",
        "\\pm",
        "\\boxed{",
        "|",
        ",",
        "=",
        "<",
        "\\cup",
        "\\{",
        "\\}",
        "\\text{",
        "!",
        "%",
        "\\sin",
        " and ",
        "\\begin{pmatrix}",
        "\\end{pmatrix}",
        "&",
        "\\\\",
        "e",
        "i",
        "1e9",
        "$",
        "°",
        "/",
        "-",
        "*",
        ":",
        "\\binom",
        "\\log_",
        "\\infty",
        "\\mathbb{R}",
        "\\setminus",
        "0.",
        "cm",
        "\x00",
        "é",
        "９",
        "½",
        *"abcdfghjklmnopqrstuvwyzPQS'",
    ]
    draw = random.Random(0)
    texts = [text for case in CASES for text in case[1:3]]
    texts = [text for text in texts if "9^9" not in text and "9^{9" not in text]
    for k in range(2_500):
        text = draw.choice(texts)
        if k % 2:
            text = "".join(draw.choices(pieces, k=draw.randrange(1, 8)))
        cut = draw.randrange(len(text) + 1)
        # Half of the texts end in the middle, after a piece that may open something.
        rest = text[cut + draw.randrange(2) :] if k % 4 < 2 else ""
        text = text[:cut] + draw.choice(pieces) + rest
        assert equivalent(text, draw.choice(texts)) in (True, False)
        assert k % 10 or extract_answer(text) in (None, extract_answer(text))


@pytest.mark.parametrize(
    "code",
    [
        "__import__('os').mkdir('{}')",
        "exec(\"import os; os.mkdir('{}')\")",
        "\\text{{__import__('os').mkdir('{}')}}",
        "open('{}', 'w')",
    ],
)
def test_nothing_is_executed(tmp_path, code):
    target = tmp_path / "made"
    assert not equivalent(code.format(target), "1") and not equivalent("1", code.format(target))
    assert not target.exists()


def test_no_text_reaches_an_evaluator():
    called = set()
    for file in Path(verdict.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", None) or getattr(node.func, "attr", "")
                called.add(name)
    assert "search" in called or "match" in called
    assert not called & {
        "eval",
        "exec",
        "sympify",
        "parse_expr",
        "parse_latex",
        "__import__",
        "compile_command",
        "literal_eval",
    }


def test_importing_is_cheap():
    code = """
import sys
from nanotir.answers import equivalent
assert equivalent("1/2", "0.5")
assert not {"sympy", "mpmath", "torch", "numpy"} & set(sys.modules)
"""
    assert importlib.util.find_spec("mpmath")
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
