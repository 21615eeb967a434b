import json
import sys
from contextlib import nullcontext

import pytest
from conftest import SHARED

from nanotir.replay import main, parse, replay, transcript

RECORDED = "I compute.\n```python\n%s\n```\n```output\n%s\n```\nThe answer is $\\boxed{%s}$."
TORA = SHARED / "data" / "tora" / "gsm8k-tora-code-34b.jsonl"


@pytest.fixture(autouse=True)
def one_python_tool(request, monkeypatch):
    """All tests but that of the command share a tool, because new servers take a second."""
    if "command" not in request.node.name:
        tool = request.getfixturevalue("python")
        monkeypatch.setattr(sys.modules["nanotir.replay"], "PythonTool", lambda: nullcontext(tool))


def record(code, pred="42", gold="42"):
    return {"gt": gold, "pred": [pred], "code": [code]}


def replayed(tmp_path, *records):
    path = tmp_path / "recorded.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in records))
    return replay(str(path))


def test_a_transcript_replayed_as_recorded_counts_in_full(tmp_path):
    result = replayed(tmp_path, record(RECORDED % ("x = 6\nprint(x * 7)", "42", "42")))
    assert result == {
        "transcripts": 1,
        "programs": 1,
        "same_output": 1.0,
        "same_verdict": 1.0,
        "recorded_accuracy": 1.0,
    }


def test_another_output_than_recorded_is_counted(tmp_path):
    same = record(RECORDED % ("print(6 * 7)", "42", "42"))
    other = record(RECORDED % ("print(6 * 7)", "43", "42"))
    assert replayed(tmp_path, same, other)["same_output"] == 1 / 2


def test_white_space_in_outputs_is_ignored(tmp_path):
    code = RECORDED % ("1/0", "ZeroDivisionError: division by  zero", "42")
    assert replayed(tmp_path, record(code))["same_output"] == 1.0


def test_the_programs_of_a_transcript_share_their_variables(tmp_path):
    code = RECORDED % ("x = 20\nx", "20", "0") + "\n" + RECORDED % ("x + 1", "21", "21.0")
    result = replayed(tmp_path, record(code, pred="21", gold="21"))
    assert (result["programs"], result["same_output"], result["same_verdict"]) == (2, 1.0, 1.0)


def test_a_wrong_answer_that_was_recorded_as_wrong_is_the_same_verdict(tmp_path):
    result = replayed(tmp_path, record(RECORDED % ("43", "43", "43"), pred="43", gold="42"))
    assert (result["same_verdict"], result["recorded_accuracy"]) == (1.0, 0.0)


def test_an_answer_that_we_read_otherwise_than_recorded_is_another_verdict(tmp_path):
    result = replayed(tmp_path, record(RECORDED % ("5", "5", "5"), pred="6", gold="6"))
    assert (result["same_verdict"], result["recorded_accuracy"]) == (0.0, 1.0)


def test_an_answer_inside_a_program_or_an_output_does_not_count(tmp_path):
    boxed = "print('\\\\boxed{42}')"
    code = f"```python\n{boxed}\n```\n```output\n\\boxed{{42}}\n```\nI do not know."
    result = replayed(tmp_path, record(code))
    assert (result["same_output"], result["same_verdict"]) == (1.0, 0.0)


def test_without_programs_the_share_of_same_outputs_is_undefined(tmp_path):
    result = replayed(tmp_path, record("It is \\boxed{42}."))
    assert (result["programs"], result["same_output"]) == (0, None)


@pytest.mark.parametrize("pred, gold", [("1,017", "1017"), ("42.0", "42"), (" x ", "x")])
def test_without_a_report_equal_numbers_or_texts_are_right(pred, gold):
    assert transcript(record("...", pred, gold)).recorded


@pytest.mark.parametrize("verdict", [True, False])
def test_a_report_decides_what_was_recorded(verdict):
    assert transcript(record("...") | {"report": [verdict]}).recorded == verdict


@pytest.mark.parametrize("report", [None, [None]])
def test_a_report_without_a_verdict_decides_nothing(report):
    assert transcript(record("...") | {"report": report}).recorded


def test_an_empty_transcript_has_no_answer(tmp_path):
    result = replayed(tmp_path, record(""))
    assert (result["programs"], result["same_verdict"]) == (0, 0.0)


def test_parse_reads_back_what_a_transcript_says():
    call = "```python\n1+1\n2\n```\n```output\n2\n```\n"
    search = "```search\nwho?\n```\n"
    assert parse(f"First.{call}Then.{search}Last.") == [
        ("text", "First."),
        ("python", "1+1\n2"),
        ("output", "2"),
        ("text", "Then."),
        ("search", "who?"),
        ("text", "Last."),
    ]


def test_a_block_that_is_never_closed_is_text():
    assert parse("Open ```python\n3") == [("text", "Open ```python\n3")]


def test_the_command_prints_one_line_of_json(tmp_path, capsys):
    path = tmp_path / "recorded.jsonl"
    path.write_text(json.dumps(record("It is \\boxed{42}.")) + "\n")
    main([str(path)])
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and json.loads(out)["transcripts"] == 1


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "not JSON"),
        ('{"gt": "1", "code": ["x"]}', "no field 'pred'"),
        ('{"gt": "1", "pred": ["1"], "code": [3]}', "list of texts"),
        ('{"gt": "1", "pred": ["1"], "code": []}', "'code' is not a list of texts"),
        ('{"gt": "1", "pred": ["1"], "code": "x"}', "'code' is not a list of texts"),
        ('{"gt": "1", "pred": ["1"], "code": null}', "'code' is not a list of texts"),
        ('{"gt": "1", "pred": [], "code": ["x"]}', "'pred' is not a list of texts"),
        ('{"gt": "1", "pred": "1", "code": ["x"]}', "'pred' is not a list of texts"),
        ('{"gt": "1", "pred": ["1"], "code": ["x"], "report": []}', "list of verdicts"),
        ('{"gt": "1", "pred": ["1"], "code": ["x"], "report": "no"}', "list of verdicts"),
        ('{"gt": "1", "pred": ["1"], "code": ["x"], "report": ["no"]}', "list of verdicts"),
        ('{"gt": NaN, "pred": ["1"], "code": ["x"]}', "finite number"),
        ("[]", "a JSON object is needed"),
    ],
)
def test_a_bad_line_in_a_recording_is_named_and_the_exit_code_is_2(tmp_path, capsys, line, message):
    path = tmp_path / "recorded.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(SystemExit) as stopped:
        main([str(path)])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert f"{path}:1" in error and message in error and error.count("\n") == 1


@pytest.mark.skipif(not TORA.exists(), reason="the recorded transcripts are not here")
def test_real_transcripts_say_today_what_they_said_then():
    result = replay(str(TORA))
    assert result["transcripts"] == 1319
    assert result["same_output"] >= 0.995 and result["same_verdict"] >= 0.995
