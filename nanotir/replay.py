"""Run the recorded transcripts of other models again, and grade their answers again.

    python -m nanotir.replay FILE

FILE holds JSON lines as ToRA publishes them. Do the programs still print what was recorded? Do we
find the same answers right? Both shares are printed as one line of JSON.
"""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import fmean

from tqdm import tqdm

from nanotir.answers import equivalent, extract_answer
from nanotir.commands import Parser, one_line
from nanotir.problems.files import read_lines, text_field
from nanotir.tools import PythonTool

# A block between Markdown fences: a tool call or its output.
BLOCK = re.compile(r"```(python|search|output)\n(.*?)\n?```(?:\n|$)", re.DOTALL)


@dataclass(frozen=True)
class Transcript:
    text: str  # words, programs and outputs, the last two between fences
    answer: str  # the correct answer
    recorded: bool  # whether the final answer was recorded as correct
    source: str = ""  # file and line


def replay(path: str) -> dict:
    """Replay a file of transcripts. Raises a ValueError that names the first invalid line."""
    rows = read_lines(transcript, path)
    with PythonTool() as tool, ThreadPoolExecutor(16) as pool:
        replayed = pool.map(lambda row: replay_one(row, tool), rows)
        with tqdm(replayed, "replay", len(rows), leave=False, dynamic_ncols=True) as bar:
            seen = list(bar)
    outputs = [same for row_outputs, _ in seen for same in row_outputs]
    return {
        "transcripts": len(rows),
        "programs": len(outputs),
        "same_output": fmean(outputs) if outputs else None,
        "same_verdict": fmean(agrees for _, agrees in seen),
        "recorded_accuracy": fmean(row.recorded for row in rows),
    }


def replay_one(row: Transcript, tool: PythonTool) -> tuple[list[bool], bool]:
    """For each program, whether its output is the recorded one; and whether our verdict is.

    White space in outputs is ignored. The programs of a transcript share their variables.
    """
    pieces = parse(row.text)
    session = object()
    same = []
    for (kind, code), (next_kind, output) in zip(pieces, pieces[1:]):
        if kind == "python" and next_kind == "output":
            result = tool.run(code, session)
            same.append(result.output.split() == output.split())
    tool.end_session(session)

    # As in our own rewards, the answer is read from the words, not from programs or outputs.
    answer = extract_answer("\n".join(text for kind, text in pieces if kind == "text"))
    right = answer is not None and equivalent(answer, row.answer)
    return same, right == row.recorded


def parse(text: str) -> list[tuple[str, str]]:
    """The (kind, text) pieces of a transcript. A block that is never closed is text."""
    pieces = []
    end = 0
    for block in BLOCK.finditer(text):
        pieces.append(("text", text[end : block.start()]))
        pieces.append((block[1], block[2]))
        end = block.end()
    pieces.append(("text", text[end:]))
    return [(kind, piece) for kind, piece in pieces if kind != "text" or piece.strip()]


def transcript(record: dict) -> Transcript:
    """{"gt", "code", "pred"}, optionally "report", as ToRA records its answers.

    They are the correct answer, the transcripts, their final answers, and whether those are right.
    All but "gt" are lists with one entry a sample; we read the first. Without a report, the final
    answer is right if it is the same number as the correct one.
    """
    code = _first(record, "code", str, "texts")
    answer = text_field(record, "gt")
    prediction = str(_first(record, "pred", (str, int, float), "texts"))
    if record.get("report") in (None, [None]):
        return Transcript(code, answer, _same_number(prediction, answer))
    return Transcript(code, answer, bool(_first(record, "report", (bool, int), "verdicts")))


def _first(record: dict, field: str, kind, kinds: str):
    """The first sample's entry in a field that is a list with one entry a sample."""
    entries = record[field]
    if not isinstance(entries, list) or not entries or not isinstance(entries[0], kind):
        raise ValueError(f"field '{field}' is not a list of {kinds}")
    return entries[0]


def _same_number(a: str, b: str) -> bool:
    try:
        return abs(float(a.replace(",", "")) - float(b.replace(",", ""))) < 1e-6
    except ValueError:
        return a.strip() == b.strip()


def main(arguments: list[str] | None = None):
    parser = Parser("python -m nanotir.replay", "Run and grade recorded transcripts again.")
    parser.add_argument("file", metavar="FILE", help="JSON lines with code, pred and gt")
    with one_line("replay"):
        print(json.dumps(replay(parser.parse_args(arguments).file)))


if __name__ == "__main__":
    main()
