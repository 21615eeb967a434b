import io
import json
import sys

import pytest

import sample
import train
from nanotir.config import parse

SHORT = (
    "--preset probe --problems 120 --data generated:itself,cancel --eval.problems 4 --rl.steps 0"
).split()


@pytest.fixture(scope="module")
def folder(shared_tools, tmp_path_factory):
    """A folder with two runs, of which the second, the latest, has learned to stop."""
    folder = tmp_path_factory.mktemp("user")
    for number, steps in ((1, "1"), (2, "60")):
        out = folder / "runs" / f"tapo-probe-{number}"
        train.train(parse([*SHORT, "--out", str(out), "--sft.steps", steps]))
    return folder


@pytest.fixture
def ask(folder, monkeypatch, capsys):
    def ask(*arguments) -> str:
        monkeypatch.chdir(folder)
        sample.main(list(arguments))
        return capsys.readouterr().out

    return ask


def refused(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as stopped:
        sample.main(list(arguments))
    out, err = capsys.readouterr()
    assert stopped.value.code == 2
    assert out == ""
    assert err.count("\n") == 1 and err.startswith("sample.py: ")
    return err


def test_without_a_run_one_line_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "python train.py" in refused(capsys, "What is 1+1?")


def test_a_wrong_run_folder_is_named(folder, capsys):
    assert "nowhere" in refused(capsys, "--run", str(folder / "nowhere"), "What is 1+1?")


def test_the_latest_run_answers(ask, folder):
    text = ask("What is 384 * 927?")
    assert text.strip()
    assert text == ask("What is 384 * 927?", "--run", str(folder / "runs" / "tapo-probe-2"))
    assert text != ask("What is 384 * 927?", "--run", str(folder / "runs" / "tapo-probe-1"))


def test_one_answer_is_greedy(ask):
    assert ask("What is 384 * 927?") == ask("What is 384 * 927?", "--seed", "1")


def test_a_pipe_gets_no_colour(ask):
    assert "\x1b" not in ask("What is 384 * 927?")


def test_json_is_one_line_an_answer(ask):
    rows = [json.loads(line) for line in ask("What is 1+1?", "--n", "3", "--json").splitlines()]
    assert [row["question"] for row in rows] == ["What is 1+1?"] * 3
    assert {row["finish_reason"] for row in rows} <= {"stop", "length", "budget"}


def test_several_answers_are_drawn_at_temperature_1(ask):
    assert len(set(ask("What is 1+1?", "--n", "3", "--json").splitlines())) > 1


def test_several_answers_are_shown_one_after_the_other(ask):
    assert len(ask("What is 1+1?", "--n", "3").splitlines()) >= 3


def test_no_tools_means_no_calls(ask):
    for line in ask("What is 1+1?", "--n", "8", "--json", "--no-tools").splitlines():
        assert json.loads(line)["calls"] == []


def test_without_a_question_it_asks_until_there_is_no_more(ask, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is 1+1?\n\nWhat is 2+2?\n"))
    text = ask()
    assert text.count("question> ") == 4
    assert len(text.splitlines()) >= 2


@pytest.mark.parametrize(
    "arguments, hint",
    [
        (["--temperature", "-1", "q"], "temperature"),
        (["q " * 500], "leaves no room"),
        (["--n", "0", "q"], "--n"),
    ],
)
def test_a_mistake_is_one_line(folder, monkeypatch, capsys, arguments, hint):
    monkeypatch.chdir(folder)
    assert hint in refused(capsys, *arguments)
