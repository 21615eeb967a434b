import time

import pytest

from nanotir.answers import extract_answer, likely_answers


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
        ("The answer is 72 clips sold in all.", "72 clips"),
        ("The answer is 5 mm.", "5 mm"),
        ("#### 3 min", "3 min"),
        ("The answer is 60 miles per hour.", "60 miles per hour"),
        ("The answer is 3 dollars per kg", "3 dollars per kg"),
    ],
)
def test_the_final_answer_is_the_last_one_given(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "text, likely",
    [
        ("", [""]),
        ("The product is 12.", ["12", "12"]),
        ("I add 5. It is odd.", ["odd", "5"]),
        ("5 + 7 = 12", ["12", "12"]),
        ("So the derivative is 12x^2 + 5.", ["12x^2 + 5", "5"]),
        ("We get $\\frac{1}{2}$.", ["We get \\frac{1}{2}", "\\frac{1}{2}"]),
        ("It costs 1,234, plus tax.", ["It costs 1,234, plus tax", "1,234"]),
        ("from 5-3 to -1/2", ["from 5-3 to -1/2", "-1/2"]),
        ("<think>7</think> 5\n```python\n8\n```", ["5", "5"]),
        ("v1.2 x2", ["v1.2 x2"]),
        ("7 " + "long " * 100, ["7"]),
    ],
)
def test_where_no_answer_is_named_it_may_be_the_end_or_the_last_number(text, likely):
    assert likely_answers(text) == likely


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
    start = time.process_time()
    extract_answer(piece * 200_000)
    likely_answers(piece * 200_000)
    assert time.process_time() - start < 5
