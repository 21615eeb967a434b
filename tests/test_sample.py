import io
import json
import sys
from pathlib import Path

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


def test_several_answers_are_shown_without_tags(ask):
    text = ask("What is 1+1?", "--n", "3")
    assert "<|" not in text and "What is 1+1?" not in text
    assert [line[:3] for line in text.splitlines() if line[:1].isdigit()] == ["1. ", "2. ", "3. "]


def test_words_without_quotes_are_a_question(ask):
    assert ask("What", "is", "2?") == ask("What is 2?") == ask(" What is 2? ")


def piped(monkeypatch, text: str):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_without_a_question_it_asks_until_there_is_no_more(ask, monkeypatch):
    piped(monkeypatch, "What is 1+1?\n\nWhat is 2+2?\n")
    assert ask() == ask("What is 1+1?") + ask("What is 2+2?")


def test_every_line_of_json_from_a_pipe_is_json(ask, monkeypatch):
    piped(monkeypatch, "What is 1+1?\nWhat is 2+2?\n")
    rows = [json.loads(line) for line in ask("--json").splitlines()]
    assert [row["question"] for row in rows] == ["What is 1+1?", "What is 2+2?"]


def test_a_question_that_is_too_long_does_not_end_the_loop(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    piped(monkeypatch, "long " * 500 + "\nWhat is 1+1?\n")
    sample.main([])
    out, err = capsys.readouterr()
    assert out.strip()
    assert err.count("leaves no room") == 1


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("arguments, prompts", [([], 3), (["--json"], 0)])
def test_a_terminal_gets_a_prompt_unless_the_answers_are_for_a_program(
    folder, monkeypatch, arguments, prompts
):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "stdin", Terminal("\nWhat is 1+1?\n"))
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "dumb")
    sample.main(arguments)
    assert sys.stdout.getvalue().count("question> ") == prompts
    assert "\x1b" not in sys.stdout.getvalue()


def test_a_prompt_can_be_edited():
    assert "readline" in Path(sample.__file__).read_text()


def test_a_stdin_that_is_closed_is_one_line(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "stdin", None)
    assert "stdin is closed" in refused(capsys, "--run", "runs/tapo-probe-2")


@pytest.mark.parametrize("loop", [False, True])
def test_it_says_which_run_it_asks(folder, monkeypatch, capsys, loop):
    monkeypatch.chdir(folder)
    piped(monkeypatch, "What is 1+1?\n")
    sample.main([] if loop else ["What is 1+1?"])
    assert "runs/tapo-probe-2" in capsys.readouterr().err


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
