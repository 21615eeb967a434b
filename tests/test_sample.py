import io
import json
import sys

import pytest

import sample
import train
from nanotir.config import parse

SHORT = [
    "--preset",
    "probe",
    "--problems",
    "120",
    "--data",
    "generated:itself,cancel",
    "--eval.problems",
    "4",
    "--rl.steps",
    "0",
]


@pytest.fixture(scope="module")
def folder(shared_tools, tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    for number, steps in ((1, "1"), (2, "60")):
        train.train(
            parse(
                [
                    *SHORT,
                    "--out",
                    str(folder / "runs" / f"tapo-probe-{number}"),
                    "--sft.steps",
                    steps,
                ]
            )
        )
    return folder


@pytest.fixture()
def ask(folder, monkeypatch, capsys):
    def ask(*arguments):
        monkeypatch.chdir(folder)
        sample.main(list(arguments))
        return capsys.readouterr().out

    return ask


def test_without_a_run_one_line_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        sample.main(["What is 1+1?"])
    out, err = capsys.readouterr()
    assert (
        stopped.value.code == 2 and out == "" and err.count("\n") == 1 and "python train.py" in err
    )


def test_a_wrong_run_folder_is_named(folder, capsys):
    with pytest.raises(SystemExit) as stopped:
        sample.main(["--run", str(folder / "nowhere"), "What is 1+1?"])
    assert stopped.value.code == 2 and "nowhere" in capsys.readouterr().err


def test_the_latest_run_answers_and_a_pipe_gets_no_colour(ask, folder):
    text = ask("What is 384 * 927?")
    assert text.strip() and "\x1b" not in text
    assert text == ask("What is 384 * 927?", "--run", str(folder / "runs" / "tapo-probe-2"))
    assert text == ask("What is 384 * 927?")  # greedy


def test_json_is_one_line_an_answer(ask):
    lines = ask("What is 1+1?", "--n", "3", "--json").splitlines()
    assert len(lines) == 3 and all(json.loads(line)["question"] == "What is 1+1?" for line in lines)
    assert len({line for line in lines}) > 1  # several answers are drawn at temperature 1
    assert {json.loads(line)["finish_reason"] for line in lines} <= {"stop", "length", "budget"}


def test_no_tools_means_no_calls(ask):
    for line in ask("What is 1+1?", "--n", "8", "--json", "--no-tools").splitlines():
        assert json.loads(line)["calls"] == []


def test_without_a_question_it_asks_until_there_is_no_more(ask, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is 1+1?\n\nWhat is 2+2?\n"))
    text = ask()
    assert text.count("question> ") == 4 and len(text.splitlines()) >= 2


@pytest.mark.parametrize(
    "arguments, hint",
    [
        (["--temperature", "-1", "q"], "temperature"),
        (["q " * 500], "leaves no room"),
        (["--n", "0", "q"], "--n"),
    ],
)
def test_a_mistake_is_one_line(ask, capsys, arguments, hint):
    with pytest.raises(SystemExit) as stopped:
        ask(*arguments)
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and hint in err and "Traceback" not in err
