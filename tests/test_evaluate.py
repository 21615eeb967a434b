import itertools
import json
import math

import pytest
from conftest import SHARED, ScriptedModel, follow

from nanotir.evaluate import (
    EvalConfig,
    evaluate,
    main,
    maj_at_k,
    pass_at_k,
    replay,
    statistics,
    table,
    wilson_interval,
)
from nanotir.problems.problem import Problem
from nanotir.sampler import SamplerConfig
from nanotir.tools import ToolResult
from nanotir.trajectory import Call, Format


def test_pass_at_k_is_the_share_of_k_subsets_with_a_right_answer():
    for n in range(1, 7):
        for c in range(n + 1):
            for k in range(1, n + 1):
                subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
                assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_needs_k_samples(k):
    with pytest.raises(ValueError, match="samples"):
        pass_at_k(4, 2, k)


@pytest.mark.parametrize(
    "answers, k, value",
    [
        (["1", "2", "2"], 3, 0),
        (["1", "2", "1"], 3, 1),
        (["2", "1", "1"], 1, 0),
        (["1", "2"], 2, 1),
        (["2", "1"], 2, 0),
        ([None, None, "1"], 3, 1),
        ([None], 1, 0),
        ([], 1, 0),
        (["0.5", "1/2", "1", "1/2"], 4, 0),
        (["1.0", "2", "2/2"], 3, 1),
    ],
)
def test_the_majority_decides_and_the_first_wins_a_tie(answers, k, value):
    assert maj_at_k(answers, "1", k) == value


def test_wilson_interval_solves_its_equation():
    for successes, n in ((0, 10), (3, 10), (10, 10), (95, 100)):
        low, high = wilson_interval(successes, n)
        assert 0 <= low <= successes / n <= high <= 1
        for edge in (
            low,
            high,
        ):  # (p - edge)^2 = z^2 edge (1 - edge) / n, where the edge is not cut at 0 or 1
            assert (successes / n - edge) ** 2 == pytest.approx(
                1.96**2 * edge * (1 - edge) / n, abs=1e-12
            )
    assert wilson_interval(0, 0) == (0.0, 1.0)


def groups(tokenizer):
    right, wrong = ([("text", f"\\boxed{{{n}}}")] for n in (1, 2))
    made = lambda pieces: Format().trajectory(tokenizer, "q", pieces)
    rows = [
        [made(right), made(wrong)],
        [made(right), made(right)],
        [made(wrong), made([("text", "none")])],
    ]
    rows[0][0].calls = [
        Call("python", "1", ToolResult("1")),
        Call("python", "(", ToolResult("SyntaxError", False, "error")),
    ]
    rows[2][0].calls = [Call("search", "1", ToolResult("x"))]
    return rows


def test_statistics_are_what_their_names_say(tokenizer):
    problems = [
        Problem("a", "1", "f", "A"),
        Problem("b", "1", "g", "A"),
        Problem("c", "1", "g", "B"),
    ]
    s = statistics(problems, groups(tokenizer), tokenizer, [1, 2])
    assert (
        s["accuracy"] == 0.5
        and (s["low"], s["high"]) == wilson_interval(1.5, 3)
        and (s["n"], s["samples"]) == (3, 2)
    )
    assert s["pass@k"] == {1: 0.5, 2: pytest.approx(2 / 3)} and s["maj@k"] == {
        1: pytest.approx(2 / 3),
        2: pytest.approx(2 / 3),
    }
    assert s["calls_per_problem"] == 3 / 6 and s["calls_per_correct"] == 3 / 3
    assert s["call_status"] == {"ok": 2 / 3, "error": 1 / 3} and s["finish"] == {"stop": 6}
    assert s["by_family"]["g"] == {
        "accuracy": 0.5,
        "n": 2,
        "calls_per_problem": 0.25,
        "calls_by_tool": {"search": 1},
    }
    assert {kind: row["accuracy"] for kind, row in s["by_kind"].items()} == {"A": 0.75, "B": 0.0}
    assert s["mean_new_tokens"] == pytest.approx(
        sum(t.new_tokens for group in groups(tokenizer) for t in group) / 6
    )
    assert "50.0%" in table({"final": {"tools": s}})


def test_program_accuracy_is_the_share_of_answers_whose_last_call_printed_the_gold_answer(
    tokenizer,
):
    def answer(*outputs, text="\\boxed{1}"):
        trajectory = Format().trajectory(tokenizer, "q", [("text", text)])
        trajectory.calls = [Call("python", "x", ToolResult(output)) for output in outputs]
        return trajectory

    rows = [
        [answer("1"), answer("2", "1.0")],
        [answer("1", "2"), answer()],
        [answer("NameError: 1"), answer("0", "1\n", text="\\boxed{7}")],
    ]
    s = statistics([Problem(question, "1") for question in "abc"], rows, tokenizer, [1])
    assert (
        s["program_accuracy"] == 3 / 6 and s["accuracy"] == 5 / 6
    )  # what was answered in words does not matter


def test_nothing_right_leaves_calls_per_correct_undefined(tokenizer):
    assert (
        statistics([Problem("c", "7", "g")], groups(tokenizer)[2:], tokenizer, [1])[
            "calls_per_correct"
        ]
        is None
    )


def test_text_mode_masks_the_tools_and_the_same_model_answers_by_itself(tokenizer, python):
    """The model prefers to call; where it cannot, the likeliest id left is its own guess."""
    call, guess = (tokenizer.encode(text) for text in ("<python>6*7</python>", "\\boxed{1}<|end|>"))
    after = tokenizer.encode("\\boxed{42}<|end|>")

    def logits_of(ids):
        logits = follow(tokenizer, lambda written: guess[min(len(written), len(guess) - 1)])(ids)
        if tokenizer.tags["<|assistant|>"] in ids:
            written = ids[ids.index(tokenizer.tags["<|assistant|>"]) + 1 :]
            if tokenizer.tags["</output>"] in written:
                done = len(written) - written.index(tokenizer.tags["</output>"]) - 1
                logits[after[min(done, len(after) - 1)]] = 9.0
            elif tuple(written) == tuple(call[: len(written)]):
                logits[call[min(len(written), len(call) - 1)]] = 9.0
        return logits

    model = ScriptedModel(len(tokenizer), logits_of)
    result = evaluate(
        model, tokenizer, [python], Format(), [Problem("6*7?", "42")], EvalConfig(), SamplerConfig()
    )
    assert (result["tools"]["accuracy"], result["tools"]["calls_per_problem"]) == (1.0, 1.0)
    assert (result["text"]["accuracy"], result["text"]["calls_per_problem"]) == (0.0, 0.0)
    assert json.loads(json.dumps(result))["text"]["mean_new_tokens"] == len(guess)
    assert math.isfinite(result["text"]["high"])


@pytest.mark.parametrize(
    "settings", [{"modes": "tool"}, {"k": "2"}, {"k": "0"}, {"k": "x"}, {"samples": 4, "k": "1,5"}]
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError):
        EvalConfig(**settings)


def test_a_folder_that_is_no_run_is_one_line_and_exit_code_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--run", str(tmp_path)])
    out, err = capsys.readouterr()
    assert (
        stopped.value.code == 2 and out == "" and err.count("\n") == 1 and "not a run folder" in err
    )


RECORDED = "I compute.\n```python\n%s\n```\n```output\n%s\n```\nThe answer is $\\boxed{%s}$."


def test_a_replay_counts_the_same_outputs_and_the_same_verdicts(tmp_path):
    rows = [
        (RECORDED % ("x = 6\nprint(x * 7)", "42", "42"), "42", "42"),  # as recorded
        (RECORDED % ("print(6 * 7)", "43", "43"), "43", "42"),  # another output; wrong, as recorded
        (
            RECORDED % ("x = 20\nx", "20", "0") + "\n" + RECORDED % ("x + 1", "21", "21.0"),
            "21",
            "21",
        ),  # two cells of one notebook
        (
            RECORDED % ("1/0", "ZeroDivisionError: division by  zero", "5"),
            "6",
            "6",
        ),  # we read another answer than was recorded
    ]
    path = tmp_path / "recorded.jsonl"
    path.write_text(
        "".join(
            json.dumps({"gt": gold, "pred": [pred], "code": [code]}) + "\n"
            for code, pred, gold in rows
        )
    )
    assert replay(str(path)) == {
        "transcripts": 4,
        "programs": 5,
        "same_output": 4 / 5,
        "same_verdict": 3 / 4,
        "recorded_accuracy": 3 / 4,
    }


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "not JSON"),
        ('{"gt": "1", "code": ["x"]}', "no field 'pred'"),
        ('{"gt": "1", "pred": ["1"], "code": [3]}', "list of texts"),
    ],
)
def test_a_bad_line_in_a_recording_is_named(tmp_path, capsys, line, message):
    path = tmp_path / "recorded.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(SystemExit) as stopped:
        main(["--replay", str(path)])
    assert (
        stopped.value.code == 2
        and f"{path}:1" in (err := capsys.readouterr().err)
        and message in err
        and err.count("\n") == 1
    )


@pytest.mark.skipif(
    not (SHARED / "data" / "tora").exists(), reason="the recorded transcripts are not here"
)
def test_real_transcripts_say_today_what_they_said_then():
    result = replay(str(SHARED / "data" / "tora" / "gsm8k-tora-code-34b.jsonl"))
    assert (
        result["transcripts"] == 1319
        and result["same_output"] >= 0.995
        and result["same_verdict"] >= 0.995
    )
