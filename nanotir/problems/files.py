"""Problems from files: GSM8K, MATH, SVAMP, and a plain format of our own.

A reader turns the record of one line into a Problem. To support another format, write a reader and
add it to READERS. An invalid line raises a ValueError that names the file and the line. A
file whose name ends in .json is one array of records, as SVAMP.json is, or one record. A folder is
all such files in it and below, as MATH has them: the first of every subject, the next of each.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count, cycle
from math import isfinite
from pathlib import Path

from nanotir.answers import equivalent, extract_answer
from nanotir.problems.problem import Problem

MAX_BOXES = 20
MAX_LINE = 2**20  # characters; a longer line is no problem that a model could read

# What is left of \frac, \beta or \neq where JSON holds them with a single backslash. White space
# may also be just that.
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|[\t\n\r](?=[a-z])")

# Each piece but the first begins with a box.
BOXES = re.compile(r"(?=\\(?:boxed|fbox)\b)")


def read_lines(reader: Callable, path: str) -> list:
    """Apply `reader` to the JSON object on each line of a file. Empty lines are skipped.

    Of a folder, to all of its files, by name and then by subfolder, so that subjects take turns.
    ValueError for a folder that holds both splits.
    """
    files = [path]
    if os.path.isdir(path):
        found = [file for file in Path(path).rglob("*") if file.suffix in (".json", ".jsonl")]
        names = {part for file in found for part in file.relative_to(path).parts}
        if {"train", "test"} <= {re.split(r"[-_.]", name)[0] for name in names}:  # train-00.jsonl
            raise ValueError(f"'{path}' holds problems to train and to test on: name one folder")
        files = [str(file) for file in sorted(found, key=lambda file: (file.name, file.parent))]
    rows = [row for file in files for row in _read_file(reader, file)]
    if not rows:
        raise ValueError(f"no problems in '{path}'")
    return rows


def _read_file(reader: Callable, path: str) -> list:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return list(_read_rows(reader, file, path))
    except OSError as error:
        message = f"cannot read {reader.__name__} data: {error.strerror}: '{path}'"
        raise ValueError(message) from None
    except UnicodeDecodeError:
        message = f"cannot read {reader.__name__} data: '{path}' is not UTF-8 text"
        raise ValueError(message) from None


def _read_rows(reader: Callable, file, path: str) -> Iterator:
    if path.endswith(".json"):
        yield from _read_array(reader, file.read(), path)
        return
    for number in count(1):
        # No more is read than fits: a file without newlines may be larger than the memory.
        line = file.readline(MAX_LINE + 1)
        if not line:
            return
        where = f"{path}:{number}"
        if len(line) > MAX_LINE:
            raise ValueError(f"{where}: a line of more than {MAX_LINE:,} characters")
        if line.strip():
            yield _read_line(reader, line, where)


def _read_array(reader: Callable, text: str, path: str) -> Iterator:
    fault = f"{path}: not a JSON array; lines of JSON belong into a .jsonl file"
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{fault} ({error})") from None
    records = [records] if isinstance(records, dict) else records
    if not isinstance(records, list):
        raise ValueError(fault)
    for number, record in enumerate(records, 1):
        yield _read_line(reader, json.dumps(record), f"{path}[{number}]")


def _read_line(reader: Callable, line: str, where: str):
    try:
        record = json.loads(line)
    except RecursionError:
        raise ValueError(f"{where}: JSON that is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{where}: not JSON: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where}: a JSON object is needed, not {type(record).__name__}")
    try:
        row = reader(record)
        return replace(row, answer=gold(row.answer), source=where)
    except KeyError as missing:
        fields = ", ".join(record)[:100]
        raise ValueError(f"{where}: no field {missing}, only: {fields}") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def text_field(record: dict, field: str) -> str:
    """The field as text. Numbers are accepted; empty text, booleans and lists are not."""
    value = record[field]
    is_text = isinstance(value, (str, int, float)) and not isinstance(value, bool)
    if not is_text or not str(value).strip():
        raise ValueError(f"field '{field}' is not text")
    if not _is_finite(str(value)):
        raise ValueError(f"field '{field}' is {value}, which is neither text nor a finite number")
    return str(value)


def optional(record: dict, field: str) -> str:
    """The field as text, which is empty where it is missing or null."""
    return "" if record.get(field) is None else str(record[field])


def _is_finite(text: str) -> bool:
    """False for what Python writes where a number is missing or too large, as "nan"."""
    try:
        return isfinite(float(text))
    except ValueError:
        return True


def gold(answer: str) -> str:
    """A correct answer, unwrapped from its boxes. ValueError if no answer could ever equal it."""
    answer = boxed(answer) or answer
    if broken := CONTROL.search(answer):  # before strip(), to which a form feed is white space
        mend = r"write \\frac, not \frac, in JSON"
        raise ValueError(f"the answer holds the control character {broken[0]!r}: {mend}")
    answer = answer.strip()
    if not answer:
        # With an empty gold answer, a model that says nothing would be right.
        raise ValueError("the answer is empty")
    if not _is_finite(answer):
        raise ValueError(f"the answer is {answer}, which is no finite number")
    if not equivalent(extract_answer(f"\\boxed{{{answer}}}") or "", answer):
        mend = "is a brace missing?"
        raise ValueError(f"the answer {answer[:60]!r} cannot be read back from a box: {mend}")
    return answer


def boxed(text: str) -> str:
    """The contents of all boxes that differ, as a list; empty if there are none."""
    pieces = BOXES.split(text)[1:]
    found = []
    for answer in dict.fromkeys(map(extract_answer, pieces)):
        if answer and not any(equivalent(answer, other) for other in found):
            found.append(answer)
        if len(found) > MAX_BOXES:
            raise ValueError(f"more than {MAX_BOXES} boxes: which of them is the answer?")
    return ", ".join(found)


# GSM8K marks each calculation in its solutions: "He has 3*4 = <<3*4=12>>12."
MARK = re.compile(r"<<([^<>=]+)=[^<>]*>>")


def gsm8k(record: dict) -> Problem:
    """{"question", "answer"}: the answer is a solution in words that ends in "#### 72".

    Its calculator marks become calls of the Python tool. The value in a mark is left out.
    """
    worked, marker, answer = text_field(record, "answer").rpartition("####")
    if not marker:
        raise ValueError("the answer does not end in '#### ...': plain answers are for jsonl:PATH")
    return Problem(
        question=text_field(record, "question"),
        answer=answer,
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
    """{"problem", "solution"}, optionally "answer": by default all that the solution boxes."""
    solution = optional(record, "solution")
    answer = text_field(record, "answer") if "answer" in record else boxed(solution)
    if not answer:
        raise ValueError("neither an 'answer' nor a \\boxed{} in the 'solution'")
    family = str(record.get("subject") or record.get("type") or "math")
    question = text_field(record, "problem")
    return Problem(question=question, answer=answer, family=family, rationale=solution)


def jsonl(record: dict) -> Problem:
    """{"question", "answer"}, optionally "family" and "rationale"."""
    answer = text_field(record, "answer")
    if "####" in answer:
        raise ValueError("the answer is a whole solution with '####': read the file by gsm8k:PATH")
    return Problem(
        question=text_field(record, "question"),
        answer=answer,
        family=optional(record, "family") or "file",
        rationale=optional(record, "rationale"),
    )


def svamp(record: dict) -> Problem:
    """{"Body", "Question", "Answer"} (Patel et al. 2021)."""
    question = f"{text_field(record, 'Body')} {text_field(record, 'Question')}"
    return Problem(question=question, answer=text_field(record, "Answer"), family="svamp")


READERS = {"gsm8k": gsm8k, "math": math, "jsonl": jsonl, "svamp": svamp}
