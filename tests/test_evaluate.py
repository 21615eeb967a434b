import json
import math
from contextlib import nullcontext
from dataclasses import asdict

import pytest
from conftest import ScriptedModel, follow

from nanotir import evaluate as evaluation
from nanotir.config import build
from nanotir.evaluate import (
    EvalConfig,
    check_samples,
    evaluate,
    evaluate_run,
    evaluate_variants,
    main,
    suites_of,
    variants,
)
from nanotir.problems import Problem, load
from nanotir.problems.families import FAMILIES
from nanotir.room import has_room
from nanotir.run import Run, read_evaluations
from nanotir.sampler import SamplerConfig
from nanotir.trajectory import Format

# A model that calls where it can, and guesses where it cannot.


@pytest.fixture
def caller(tokenizer):
    """It prefers to call. Without a tool, the likeliest ids left are its own guess."""
    call = tokenizer.encode("<python>6*7</python>")
    guess = tokenizer.encode("\\boxed{1}<|end|>")
    after = tokenizer.encode("\\boxed{42}<|end|>")
    guessing = follow(tokenizer, lambda written: guess[min(len(written), len(guess) - 1)])
    assistant, closer = tokenizer.tags["<|assistant|>"], tokenizer.tags["</output>"]

    def logits_of(ids):
        logits = guessing(ids)
        if assistant not in ids:
            return logits
        written = list(ids[ids.index(assistant) + 1 :])
        if closer in written:
            done = len(written) - written.index(closer) - 1
            logits[after[min(done, len(after) - 1)]] = 9.0
        elif written == call[: len(written)]:
            logits[call[min(len(written), len(call) - 1)]] = 9.0
        return logits

    return ScriptedModel(len(tokenizer), logits_of)


def test_text_mode_takes_the_tools_away_and_the_model_answers_by_itself(tokenizer, python, caller):
    problems = [Problem("6*7?", "42")]
    given = (caller, tokenizer, [python], Format(), problems, EvalConfig(), SamplerConfig())
    result = evaluate(*given)
    assert (result["tools"]["accuracy"], result["tools"]["calls_per_problem"]) == (1.0, 1.0)
    assert (result["text"]["accuracy"], result["text"]["calls_per_problem"]) == (0.0, 0.0)
    assert result["text"]["mean_new_tokens"] == len(tokenizer.encode("\\boxed{1}<|end|>"))
    assert math.isfinite(json.loads(json.dumps(result))["text"]["high"])


@pytest.fixture
def run(tokenizer, python, caller, tmp_path):
    """A run with six held-out problems, of which the model answers every second one."""
    held_out = [Problem(f"6*7 or {i}?", ("42", "43")[i % 2], "f") for i in range(6)]
    config = build({"sampler.max_new_tokens": 32})
    return Run(tmp_path, config, caller, tokenizer, Format(), [python], [], held_out)


def traces(run) -> list[dict]:
    return [json.loads(line) for line in (run.out / "traces.jsonl").read_text().splitlines()]


def test_an_evaluation_of_a_run_is_recorded_under_its_name(run):
    result = evaluate_run(run, "before")
    assert read_evaluations(run.out) == {"before": json.loads(json.dumps(result))}
    assert (result["tools"]["accuracy"], result["text"]["accuracy"]) == (0.5, 0.0)


@pytest.mark.parametrize("name, init, asked", [("before", "", 3), ("before", "x", 6), ("f", "", 6)])
def test_random_weights_are_asked_few_problems(run, monkeypatch, name, init, asked):
    monkeypatch.setattr(evaluation, "PROBLEMS", 3)
    run.config.init = init
    assert evaluate_run(run, name)["tools"]["n"] == asked


def test_a_run_is_evaluated_with_the_last_of_its_budgets(run):
    for budgets, calls in (("", 1.0), ("2,0", 0.0), ("0,2", 1.0)):
        run.config.rl.budgets = budgets
        found = evaluate_run(run, f"with {budgets}")["tools"]
        assert found["calls_per_problem"] == calls


def test_an_evaluation_that_is_recorded_is_not_made_again(run):
    result = evaluate_run(run, "before")
    written = traces(run)
    run.model = None
    assert evaluate_run(run, "before") == json.loads(json.dumps(result))
    assert traces(run) == written


def test_the_answers_to_the_first_four_problems_are_written_down_in_each_mode(run):
    evaluate_run(run, "after_sft")
    questions = [problem.question for problem in run.held_out[:4]]
    expected = [(mode, question) for mode in ("tools", "text") for question in questions]
    assert [(row["mode"], row["question"]) for row in traces(run)] == expected


def test_an_answer_that_is_written_down_can_be_shown_without_the_run(run):
    evaluate_run(run, "after_sft")
    row, *others = traces(run)
    assert (row["phase"], row["step"], row["name"]) == ("eval", 0, "after_sft")
    assert (row["answer"], row["family"], row["finish_reason"]) == ("42", "f", "stop")
    kinds = [span["kind"] for span in row["spans"]]
    assert kinds == ["prompt", "python", "output", "text"]
    assert [call["result"]["output"] for call in row["calls"]] == ["42"]
    assert [other["correct"] for other in [row, *others]] == [True, False] * 2 + [False] * 4


@pytest.mark.parametrize(
    "data, variants",
    [
        ("generated", ["reworded", "longer", "longest"]),
        ("generated:mul", ["reworded", "longer", "longest"]),
        ("generated:queue", ["reworded"]),  # there are no numbers in it
        ("plain", []),
        ("gsm8k:a", []),
    ],
)
def test_at_the_end_generated_problems_are_asked_in_other_words_and_with_longer_numbers(
    run, data, variants
):
    run.config.eval_data = data
    run.config.eval.problems = 4
    assert [*evaluate_run(run, "after_sft")] == ["tools", "text"]
    assert [*evaluate_run(run, "final")] == ["tools", "text", *variants]


def test_a_family_of_one_phrasing_is_not_asked_in_other_words(run, monkeypatch):
    def spell(rng, level):
        return Problem(f"Write {''.join(rng.choices('abcdefgh', k=6))}.", "a")

    monkeypatch.setitem(FAMILIES, "spelled", ("B", spell))
    run.config.eval_data = "generated:spelled"
    assert [name for name, _ in variants(run)] == []


def test_variants_are_sampled_together_and_judged_apart(run, monkeypatch):
    golds = {"reworded": ["42", "42"], "longer": ["43"], "longest": ["43", "42", "43"]}
    suites = {name: [Problem("6*7?", gold) for gold in golds[name]] for name in golds}
    monkeypatch.setattr(evaluation, "variants", lambda run: suites.items())
    found = evaluate_run(run, "final")
    assert {name: (found[name]["n"], found[name]["accuracy"]) for name in golds} == {
        "reworded": (2, 1.0),
        "longer": (1, 0.0),
        "longest": (3, pytest.approx(1 / 3)),
    }


def test_problems_without_variants_are_not_asked_again(run, monkeypatch):
    run.config.eval_data = "plain"
    monkeypatch.setattr(evaluation, "answers", None)
    assert evaluate_variants(run, SamplerConfig()) == {}


def test_further_problems_are_recorded_under_their_spec_and_not_written_down(run):
    found = evaluate_run(run, "plain:itself", load("plain:itself", "test", 3))
    assert read_evaluations(run.out).keys() == {"plain:itself"}
    assert [*found] == ["tools", "text"] and found["text"]["n"] == 3
    assert not (run.out / "traces.jsonl").exists()


def test_further_problems_of_which_there_are_none_are_not_the_run_s_own(run, monkeypatch):
    asked = []
    monkeypatch.setattr(evaluation, "evaluations", lambda *given: asked.append(given[4]) or ())
    evaluate_run(run, "longer:queue", [])
    assert asked == [[]]


def test_of_several_specs_the_first_is_held_out_and_asked_in_other_words(run):
    config = build({"eval_data": "generated:queue,plain@2:last", "eval.problems": 3, "seed": 4})
    expected = {"generated:queue": load("generated:queue", "test", 3, 5)}
    expected["plain@2:last"] = load("plain@2:last", "test", 3, 5)
    assert suites_of(config) == expected
    run.config = config
    assert dict(variants(run)) == {"reworded": load("reworded:queue", "test", 3, 5)}


def test_the_variants_of_the_held_out_problems_are_of_the_test_split_and_of_its_size(run):
    run.config.eval.problems = 12
    for name, problems in variants(run):
        assert problems == load(name, "test", 12, seed=run.config.seed + 1)


def test_a_question_without_room_is_left_out(run, monkeypatch):
    everything = dict(variants(run))
    monkeypatch.setattr(run.model.config, "max_seq_len", 50)
    for name, problems in variants(run):
        rest = [problem for problem in everything[name] if not has_room(problem, run)]
        assert problems and rest and len(problems) + len(rest) == len(everything[name])


# Settings and mistakes.


def test_modes_may_have_blanks_between_them():
    assert EvalConfig(modes="tools, text").modes == "tools,text"


@pytest.mark.parametrize(
    "samples, temperature, refused", [(4, 0, True), (1, 0, False), (4, 1, False)]
)
def test_several_answers_that_are_all_the_same_are_refused(samples, temperature, refused):
    given = EvalConfig(samples=samples), SamplerConfig(temperature=temperature)
    said = pytest.raises(ValueError, match="all the same") if refused else nullcontext()
    with said:
        check_samples(*given)


@pytest.mark.parametrize(
    "settings",
    [
        {"modes": "tool"},
        {"k": "2"},
        {"k": "0"},
        {"k": "x"},
        {"samples": 4, "k": "1,5"},
        {"problems": 0},
        {"samples": 0},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError):
        EvalConfig(**settings)


def test_the_command_asks_with_the_last_of_the_run_s_budgets(
    tmp_path, tokenizer, caller, python, monkeypatch, capsys
):
    settings = {"rl.budgets": "1,0", "eval.problems": 2, "eval.modes": "tools", "threads": 1}
    config = asdict(build(settings))
    loaded = (config, caller, tokenizer, Format(), [python])
    monkeypatch.setattr("nanotir.evaluate.load_run", lambda folder, **used: loaded)
    main(["--run", str(tmp_path), "--modes", "tools", "--json"])
    assert json.loads(capsys.readouterr().out)["tools"]["calls_per_problem"] == 0


def test_the_command_refuses_several_answers_of_a_run_at_temperature_0(
    tmp_path, tokenizer, caller, python, monkeypatch, capsys
):
    config = asdict(build({"rl.steps": 0, "sampler.temperature": 0.0, "threads": 1}))
    loaded = (config, caller, tokenizer, Format(), [python])
    monkeypatch.setattr("nanotir.evaluate.load_run", lambda folder, **used: loaded)
    with pytest.raises(SystemExit):
        main(["--run", str(tmp_path), "--n", "4"])
    assert "4 answers to a problem are all the same" in capsys.readouterr().err


def test_several_sets_of_problems_are_reported_apart(
    tmp_path, tokenizer, caller, python, monkeypatch, capsys
):
    config = asdict(build({"eval.problems": 2, "threads": 1}))
    loaded = (config, caller, tokenizer, Format(), [python])
    monkeypatch.setattr("nanotir.evaluate.load_run", lambda folder, **used: loaded)
    specs = ["plain:itself", "plain@2:last"]
    main(["--run", str(tmp_path), "--modes", "tools", "--json", "--data", *specs])
    found = json.loads(capsys.readouterr().out)
    assert [list(found[spec]["tools"]["by_family"]) for spec in specs] == [["itself"], ["last"]]


def test_a_folder_that_is_no_run_is_one_line_and_exit_code_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--run", str(tmp_path)])
    out, err = capsys.readouterr()
    assert stopped.value.code == 2
    assert out == ""
    assert err.count("\n") == 1 and "not a run folder" in err


@pytest.mark.parametrize("option", ["--problems", "--n", "--seed"])
@pytest.mark.parametrize("number", ["-1", "nan", "1e3", "9" * 30])
def test_senseless_numbers_are_refused_before_anything_is_read(capsys, option, number):
    with pytest.raises(SystemExit) as stopped:
        main(["--run", "nowhere", f"{option}={number}"])
    assert stopped.value.code == 2
    assert f"argument {option}: " in capsys.readouterr().err


def test_no_problems_are_not_the_runs_own_number(capsys):
    with pytest.raises(SystemExit):
        main(["--run", "nowhere", "--problems", "0"])
    assert "argument --problems: it must be at least 1, not 0" in capsys.readouterr().err
