"""Problems from files: GSM8K, MATH, and plain JSON lines. A bad line stops everything, with its file and number."""

from __future__ import annotations

import json
import re
from difflib import get_close_matches

from nanotir.answers import extract_answer


def read(source: str, path: str) -> list[dict]:
    """The fields of every problem in a file of one of the READERS' formats. ValueError in one line for anything that is wrong."""
    if source not in READERS:
        near = get_close_matches(source, [*READERS, "generated"], n=1)
        hint = (
            f"did you mean '{near[0]}'?" if near else f"there are generated, {', '.join(READERS)}"
        )
        raise ValueError(f"no data source '{source}': {hint}")
    return read_lines(READERS[source], path)


def read_lines(reader, path: str) -> list[dict]:
    """What `reader` makes of every JSON line of a file."""
    try:
        with open(path, encoding="utf-8") as lines:
            rows = [
                _row(reader, line, f"{path}:{number}")
                for number, line in enumerate(lines, 1)
                if line.strip()
            ]
    except OSError as error:
        raise ValueError(
            f"cannot read {reader.__name__} data: {error.strerror}: '{path}'"
        ) from None
    except UnicodeDecodeError:
        raise ValueError(
            f"cannot read {reader.__name__} data: '{path}' is not UTF-8 text"
        ) from None
    if not rows:
        raise ValueError(f"no problems in '{path}'")
    return rows


def _row(reader, line: str, where: str) -> dict:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where}: a JSON object is needed, not {type(record).__name__}")
    try:
        fields = reader(record)
        if not fields["answer"].strip():
            raise ValueError("the answer is empty")  # or a model that says nothing would be right
        return fields
    except KeyError as missing:
        raise ValueError(f"{where}: no field {missing}") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def _text(record: dict, field: str) -> str:
    value = record[field]
    if (
        not isinstance(value, (str, int, float))
        or isinstance(value, bool)
        or not str(value).strip()
    ):
        raise ValueError(f"field '{field}' is not text")
    return str(value)


MARK = re.compile(r"<<([^<>=]+)=([^<>]*)>>")  # GSM8K's calculator: <<48/2=24>>


def gsm8k(record: dict) -> dict:
    """{"question", "answer"}: the answer is a worked solution with calculator marks, which become tool calls, and ends in "#### 72"."""
    worked, marker, answer = _text(record, "answer").rpartition("####")
    if not marker:
        raise ValueError("the answer does not end in '#### ...'")
    words = MARK.split(
        worked.strip() + "\n"
    )  # text, expression, value, text, expression, value, ..., text
    pieces = [("text", words[0])]
    for expression, after in zip(words[1::3], words[3::3]):
        pieces += [("python", expression.strip()), ("text", after)]
    solution = tuple((kind, text) for kind, text in pieces if text)
    return dict(
        question=_text(record, "question"),
        answer=answer.strip(),
        family="gsm8k",
        solution=solution,
        rationale=MARK.sub("", worked).strip(),
    )


def math(record: dict) -> dict:
    """{"problem", "solution"} and perhaps "answer": without one, the answer is what the solution boxes last."""
    solution = str(record.get("solution", ""))
    answer = _text(record, "answer") if "answer" in record else extract_answer(solution)
    if answer is None:
        raise ValueError("neither an 'answer' nor a \\boxed{} in the 'solution'")
    family = str(record.get("subject") or record.get("type") or "math")
    return dict(question=_text(record, "problem"), answer=answer, family=family, rationale=solution)


def jsonl(record: dict) -> dict:
    """{"question", "answer"}, and "family" and "rationale" if there are any."""
    question, answer = _text(record, "question"), _text(record, "answer")
    return dict(
        question=question,
        answer=answer,
        family=str(record.get("family", "file")),
        rationale=str(record.get("rationale", "")),
    )


READERS = {"gsm8k": gsm8k, "math": math, "jsonl": jsonl}


def transcript(record: dict) -> dict:
    """{"gt", "code", "pred"}, as ToRA records its answers: the gold one, the whole transcript with fences, the final answer. The last two are
    lists of samples, of which the first counts. Whether it was right is recorded in "report", else told by the two numbers."""
    code, answer, prediction = record["code"][0], _text(record, "gt"), str(record["pred"][0])
    if not isinstance(code, str):
        raise ValueError("field 'code' is not a list of texts")
    verdict = record.get("report", [None])[0]
    return dict(
        transcript=code,
        answer=answer,
        recorded=_same_number(prediction, answer) if verdict is None else bool(verdict),
    )


def _same_number(a: str, b: str) -> bool:
    try:
        return abs(float(a.replace(",", "")) - float(b.replace(",", ""))) < 1e-6
    except ValueError:
        return a.strip() == b.strip()
