import time

import pytest

from nanotir.answers import extract_answer


@pytest.mark.parametrize(
    "text, answer",
    [
        ("so \\boxed{12}.", "12"),
        ("\\boxed{1} then \\boxed{2}", "2"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("The answer is 5.", "5"),
        ("the answer is 3\nthe answer is 4.", "4"),
        ("work #### 72", "72"),
        ("", None),
        ("no answer", None),
        ("\\boxed{open", None),
        ("\\boxed{}", ""),
        ("\\fbox{9}", "9"),
        ("\\boxed {9}", "9"),
        ("\\boxed9", "9"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\boxed{9}}", "9"),
        ("\\boxed{5} or \\boxed{6", "5"),
        ("\\boxed{x \\left\\{ y}", "x \\left\\{ y"),
        ("Final Answer: the sum $s$ is 40.", "40"),
        ("so the answer is **41**.", "41"),
        ("The answer is $40 + 2 = 42$.", "42"),
        ("the answer is $x = 3$.", "x = 3"),
        ("<answer>43</answer>", "43"),
        ("#### 1,234", "1,234"),
        ("The answer is \\(\\frac{1}{2}\\), as said.", "\\frac{1}{2}"),
        ("The answer is 3.5. Indeed.", "3.5"),
        ("the answer is 1. No: \\boxed{2}. The answer is 3.", "2"),
        ("the answer is (3, 4).", "(3, 4)"),
    ],
)
def test_the_final_answer_is_the_last_one_given(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "block",
    [
        "```python\n%s\n```",
        "```output\n%s\n```",
        "<python>%s</python>",
        "<output>%s</output>",
        "```python\n%s",
        "<python>%s",
    ],
)
def test_a_box_in_code_or_in_its_output_is_no_answer(block):
    text = block % "print('\\boxed{5}')"
    assert extract_answer(text) is None
    assert extract_answer("\\boxed{4} " + text) == "4"


@pytest.mark.parametrize(
    "piece",
    [
        "{",
        "\\boxed{",
        "}",
        "\\boxed{1}",
        "answer is ",
        "```",
        "<python>",
        "$",
        "\\boxed{}{",
        "#### ",
        "9",
        " ",
        "\\(",
        "\\\\",
    ],
)
def test_extraction_takes_linear_time(piece):
    start = time.perf_counter()
    extract_answer(piece * 200_000)
    assert time.perf_counter() - start < 5
