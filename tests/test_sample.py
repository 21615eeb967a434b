import io
import json
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

import sample
import train
from nanotir.config import parse

SHORT = (
    "--preset probe --problems 120 --data generated:itself,cancel --eval.problems 4 --rl.steps 0 "
    "--threads 1"
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


def test_the_name_of_a_run_without_its_folder_is_completed(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    error = refused(capsys, "--run", "tapo-probe-1", "What is 1+1?")
    assert "did you mean 'runs/tapo-probe-1'?" in error


def test_a_tool_that_a_script_of_the_users_own_defines_is_named(folder, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(folder / "runs" / "tapo-probe-1", run)
    config = json.loads((run / "config.json").read_text()) | {"tools": "python,reverse"}
    (run / "config.json").write_text(json.dumps(config))
    error = refused(capsys, "--run", str(run), "What is 1+1?")
    assert f"'{run}' calls the tool 'reverse'" in error
    assert "import the script that defines it" in error


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


def test_a_star_that_the_shell_has_read_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", ".hidden"):
        Path(name).touch()
    with pytest.raises(SystemExit):
        sample.main(["3", "a", "b", "4"])
    assert "put the question in quotes" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["-5x", "-.5", "-(2)", "-x^2", "-\\frac12"])
def test_a_word_that_begins_with_a_minus_is_part_of_a_question(ask, word):
    assert ask("x^2", word, "+", "6") == ask(f"x^2 {word} + 6")


QUESTIONS = ["What is 1+1?", "What is 2+2?"]


def piped(monkeypatch, text: str):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_without_a_question_it_asks_until_there_is_no_more(ask, monkeypatch):
    piped(monkeypatch, "\n\n".join(QUESTIONS))
    answers = [f"question> {question}\n{ask(question)}" for question in QUESTIONS]
    assert ask() == "".join(answers)


@pytest.mark.parametrize("word", ["exit", "quit", "q", "quit()", " EXIT "])
def test_exit_and_quit_leave_the_loop(ask, monkeypatch, word):
    piped(monkeypatch, f"{QUESTIONS[0]}\n{word}\n{QUESTIONS[1]}\n")
    assert ask().count("question> ") == 1


@pytest.mark.parametrize("word", ["help", "?", "Help"])
def test_help_in_the_loop_shows_the_examples_and_asks_nothing(folder, monkeypatch, capsys, word):
    monkeypatch.chdir(folder)
    piped(monkeypatch, f"{word}\n")
    sample.main([])
    out, err = capsys.readouterr()
    assert out == "" and err.count(sample.EXAMPLES) == 1


def test_every_line_of_json_from_a_pipe_is_json(ask, monkeypatch):
    piped(monkeypatch, "\n".join(QUESTIONS))
    rows = [json.loads(line) for line in ask("--json").splitlines()]
    assert [row["question"] for row in rows] == QUESTIONS


def test_a_question_that_is_too_long_does_not_end_the_loop(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    piped(monkeypatch, "long " * 500 + "\nWhat is 1+1?\n")
    sample.main([])
    out, err = capsys.readouterr()
    assert out.strip()
    assert err.count("leaves no room") == 1


def test_the_command_s_help_shows_ten_examples(capsys):
    with pytest.raises(SystemExit):
        sample.main(["--help"])
    assert sample.EXAMPLES in capsys.readouterr().out
    assert len(set(sample.EXAMPLES.splitlines())) == 10


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


@pytest.mark.parametrize("data, times", [("generated:mul", 1), ("jsonl:problems.jsonl", 0)])
def test_the_loop_begins_with_examples_for_a_model_of_generated_problems(
    folder, monkeypatch, capsys, data, times
):
    loaded = sample.load_run(folder / "runs" / "tapo-probe-2")
    loaded[0]["data"] = data
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sample, "load_run", lambda folder, **used: loaded)
    monkeypatch.setattr(sys, "stdin", Terminal(""))
    monkeypatch.setattr(sys, "stdout", Terminal())
    sample.main([])
    assert capsys.readouterr().err.count(sample.EXAMPLES) == times


@pytest.mark.parametrize("at", [Terminal, io.StringIO])
def test_ctrl_c_ends_an_answer_at_a_terminal_and_all_answers_of_a_pipe(folder, monkeypatch, at):
    asked = []

    def interrupted(sampler, question, *_):
        asked.append(question)
        raise KeyboardInterrupt

    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "stdin", at("What is 1+1?\nWhat is 2+2?\n"))
    monkeypatch.setattr(sys, "stdout", at())
    monkeypatch.setattr(sample, "answer", interrupted)
    with pytest.raises(SystemExit) if at is io.StringIO else nullcontext():
        sample.main([])
    assert len(asked) == (1 if at is io.StringIO else 2)


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


# What the run scored, and which answers are not to be trusted.


def make_evaluation(**trusts) -> dict:
    """Of two modes, with what they say of trust."""
    accuracies = {"tools": 0.96, "text": 0.32}
    return {
        mode: {"accuracy": accuracy, "n": 250, "trust": trusts.get(mode)}
        for mode, accuracy in accuracies.items()
    }


@pytest.fixture
def scored(folder, monkeypatch):
    """Says what the latest run is to have recorded of its evaluations."""
    monkeypatch.chdir(folder)

    def scored(**evaluations):
        monkeypatch.setattr(sample, "read_evaluations", lambda folder: evaluations)

    return scored


@pytest.mark.parametrize(
    "names, when",
    [(["before", "final"], ""), (["before"], " (before)"), (["x", "after_sft"], " (after_sft)")],
)
def test_it_says_what_the_run_scored_last(scored, capsys, names, when):
    scored(**{name: make_evaluation() for name in names})
    sample.main(["What is 1+1?"])
    line = "96.0% with tools, 32.0% without tools, of 250 held-out questions"
    assert capsys.readouterr().err == f"runs/tapo-probe-2{when}: {line}\n"


def test_a_run_that_was_never_evaluated_has_no_score(scored, capsys):
    scored()
    sample.main(["What is 1+1?"])
    assert capsys.readouterr().err == "runs/tapo-probe-2: not evaluated yet\n"


def test_an_evaluation_that_is_damaged_is_one_line(scored, capsys):
    scored(final={"tools": {}})
    assert "eval.json' cannot be used" in refused(capsys, "What is 1+1?")


@pytest.fixture
def doubts(ask, scored, monkeypatch):
    """What is said to be the lowest log-prob trusted, when a question is asked so."""

    def doubts(*arguments):
        asked = []
        monkeypatch.setattr(sample, "doubt", lambda *given: asked.append(given[2]))
        ask("What is 1+1?", *arguments)
        (lowest,) = set(asked)
        return lowest

    scored(final=make_evaluation(tools={"lowest": -0.5}, text={"lowest": -2.0}))
    return doubts


@pytest.mark.parametrize(
    "arguments, lowest",
    [
        ([], -0.5),
        (["--n", "2"], -0.5),
        (["--no-tools"], -2.0),
        (["--temperature", "0.5"], None),  # there, log-probs are on another scale
    ],
)
def test_log_probs_are_compared_with_those_of_the_evaluation(doubts, arguments, lowest):
    assert doubts(*arguments) == lowest


def test_a_run_of_an_older_version_trusts_every_log_prob(doubts, scored):
    scored(final={"tools": {"accuracy": 0.5, "n": 4}})
    assert doubts() is None


@pytest.fixture
def best(folder):
    """The weights of the first run as the best ones of the second, the latest."""
    part = folder / "runs" / "tapo-probe-2" / "best"
    shutil.copytree(folder / "runs" / "tapo-probe-1" / "checkpoint", part)
    found = {"phase": "rl", "step": 20, "problems": 64, "accuracy": 0.75}
    (part / "best.json").write_text(json.dumps(found))
    yield part
    shutil.rmtree(part)


def test_the_best_weights_answer_if_asked_to(ask, best):
    other = ask("What is 384 * 927?", "--run", "runs/tapo-probe-1")
    assert ask("What is 384 * 927?", "--best") == other != ask("What is 384 * 927?")


def test_the_best_weights_have_a_score_of_their_own(scored, best, capsys):
    scored(final=make_evaluation())
    sample.main(["What is 1+1?", "--best"])
    line = "75.0% with tools at step 20 of rl, of 64 questions"
    assert capsys.readouterr().err == f"runs/tapo-probe-2/best: {line}\n"


def test_the_best_weights_are_not_measured_by_the_log_probs_of_the_last(doubts, best):
    assert doubts("--best") is None


def test_a_run_that_has_kept_no_best_weights_is_one_line(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    said = refused(capsys, "1?", "--best")
    assert "'runs/tapo-probe-2' has kept no best weights: train with --eval.every" in said


HINT = "(check this answer: the call failed)"


def test_a_doubt_is_one_line_below_each_answer(ask, monkeypatch):
    plain = {n: ask("What is 1+1?", "--n", n) for n in "13"}
    assert "check this answer" not in plain["1"].splitlines()[0]
    monkeypatch.setattr(sample, "doubt", lambda *given: "the call failed")
    for n in "13":
        assert ask("What is 1+1?", "--n", n).splitlines().count(HINT) == int(n)


def test_an_answer_that_is_trusted_has_no_line_below_it(ask, monkeypatch):
    monkeypatch.setattr(sample, "doubt", lambda *given: None)
    assert "check this answer" not in ask("What is 1+1?", "--n", "3")


def test_one_answer_is_shown_as_each_of_several_but_for_its_number(ask):
    alone = ask("What is 1+1?")
    first, rest = ask("What is 1+1?", "--n", "2", "--temperature", "0").split("\n2. ")
    assert first == f"1. {alone}".rstrip("\n") and rest == alone


@pytest.mark.parametrize("generated", [True, False])
def test_only_a_model_of_generated_problems_must_use_all_numbers(ask, monkeypatch, generated):
    asked = []
    monkeypatch.setattr(sample, "is_generated", lambda spec: generated)
    monkeypatch.setattr(sample, "doubt", lambda *given: asked.append(given[3]))
    ask("What is 1+1?")
    assert asked == ["What is 1+1?" if generated else None]


@pytest.mark.parametrize("reason", [None, "the call failed"])
def test_in_json_a_doubt_is_a_field(ask, monkeypatch, reason):
    monkeypatch.setattr(sample, "doubt", lambda *given: reason)
    (line,) = ask("What is 1+1?", "--json").splitlines()
    assert json.loads(line)["doubt"] == reason


@pytest.mark.parametrize("term, line", [("xterm", f"\x1b[2m{HINT}\x1b[0m"), ("dumb", HINT)])
def test_a_doubt_is_dim_on_a_terminal(folder, monkeypatch, term, line):
    monkeypatch.chdir(folder)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(sample, "doubt", lambda *given: "the call failed")
    monkeypatch.setattr(sys, "stdout", Terminal())
    sample.main(["What is 1+1?"])
    assert sys.stdout.getvalue().endswith(f"\n{line}\n")


@pytest.mark.parametrize(
    "arguments, hint",
    [
        (["--temperature", "-1", "q"], "temperature"),
        (["q " * 500], "leaves no room"),
        (["--n", "0", "q"], "--n"),
        ([" "], "the question is empty"),
    ],
)
def test_a_mistake_is_one_line(folder, monkeypatch, capsys, arguments, hint):
    monkeypatch.chdir(folder)
    assert hint in refused(capsys, *arguments)
