"""Problems from files of JSON lines: GSM8K, MATH, and a plain format of our own.

A reader turns the record of one line into a Problem. To support another format, write a reader and
add it to READERS. An invalid line raises a ValueError that names the file and the line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import cycle

from nanotir.answers import extract_answer
from nanotir.problems.problem import Problem


def read_lines(reader: Callable, path: str) -> list:
    """Apply `reader` to the JSON object on each line of a file. Empty lines are skipped."""
    try:
        with open(path, encoding="utf-8") as lines:
            rows = [
                _read_line(reader, line, f"{path}:{number}")
                for number, line in enumerate(lines, 1)
                if line.strip()
            ]
    except OSError as error:
        message = f"cannot read {reader.__name__} data: {error.strerror}: '{path}'"
        raise ValueError(message) from None
    except UnicodeDecodeError:
        message = f"cannot read {reader.__name__} data: '{path}' is not UTF-8 text"
        raise ValueError(message) from None
    if not rows:
        raise ValueError(f"no problems in '{path}'")
    return rows


def _read_line(reader: Callable, line: str, where: str):
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where}: a JSON object is needed, not {type(record).__name__}")
    try:
        row = reader(record)
        # With an empty gold answer, a model that says nothing would be right.
        if not row.answer.strip():
            raise ValueError("the answer is empty")
        return row
    except KeyError as missing:
        raise ValueError(f"{where}: no field {missing}") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def text_field(record: dict, field: str) -> str:
    """The field as text. Numbers are accepted; empty text, booleans and lists are not."""
    value = record[field]
    is_text = isinstance(value, (str, int, float)) and not isinstance(value, bool)
    if not is_text or not str(value).strip():
        raise ValueError(f"field '{field}' is not text")
    return str(value)


# GSM8K marks each calculation in its solutions: "He has 3*4 = <<3*4=12>>12."
MARK = re.compile(r"<<([^<>=]+)=[^<>]*>>")


def gsm8k(record: dict) -> Problem:
    """{"question", "answer"}: the answer is a solution in words that ends in "#### 72".

    Its calculator marks become calls of the Python tool. The value in a mark is left out.
    """
    worked, marker, answer = text_field(record, "answer").rpartition("####")
    if not marker:
        raise ValueError("the answer does not end in '#### ...'")
    return Problem(
        question=text_field(record, "question"),
        answer=answer.strip(),
        family="gsm8k",
        solution=tuple(_calls_for_marks(worked.strip() + "\n")),
        rationale=MARK.sub("", worked).strip(),
    )


def _calls_for_marks(worked: str):
    # Splitting at the marks gives words, an expression, words, an expression, ..., words.
    for kind, text in zip(cycle(("text", "python")), MARK.split(worked)):
        if kind == "python":
            text = text.strip()
        if text:
            yield kind, text


def math(record: dict) -> Problem:
    """{"problem", "solution"}, optionally "answer": by default what the solution boxes last."""
    solution = str(record.get("solution", ""))
    answer = text_field(record, "answer") if "answer" in record else extract_answer(solution)
    if answer is None:
        raise ValueError("neither an 'answer' nor a \\boxed{} in the 'solution'")
    family = str(record.get("subject") or record.get("type") or "math")
    question = text_field(record, "problem")
    return Problem(question=question, answer=answer, family=family, rationale=solution)


def jsonl(record: dict) -> Problem:
    """{"question", "answer"}, optionally "family" and "rationale"."""
    return Problem(
        question=text_field(record, "question"),
        answer=text_field(record, "answer"),
        family=str(record.get("family", "file")),
        rationale=str(record.get("rationale", "")),
    )


READERS = {"gsm8k": gsm8k, "math": math, "jsonl": jsonl}
