"""The page of a run: what it shows, what it never does, what it says where a file is missing."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import nanotir
from nanotir.model import ModelConfig, Transformer
from nanotir.page import pictures, records, svg, timeline
from nanotir.page.__main__ import POINTS, lines_of, main, page, thin

HOSTILE = "<script>alert(1)</script>\" onload='x' \u202e\u0000\u001b[0m\ud800"


def trace(tokenizer, question="What is 2 * 3?", advantage=1.0, words="6", **others):
    """A row of traces.jsonl: a call of Python and an answer."""
    tags = tokenizer.tags
    code = [tags["<python>"], *tokenizer.encode("2*3"), tags["</python>"]]
    output = [tags["<output>"], *tokenizer.encode("6"), tags["</output>"]]
    spans = [
        span("prompt", tokenizer.encode(question), 0),
        span("python", code, 1),
        span("output", output, 0),
        span("text", tokenizer.encode(words), 1),
    ]
    result = {"output": "6", "ok": True, "status": "ok", "seconds": 0.25, "truncated": False}
    return {
        "phase": "rl",
        "step": 1,
        "question": question,
        "answer": "6",
        "family": "mul",
        "reward": 1.0,
        "correct": 1.0,
        "advantage": advantage,
        "spans": spans,
        "calls": [{"tool": "python", "code": "2*3", "result": result}],
        "finish_reason": "stop",
        **others,
    }


def span(kind, ids, mask, gap=0.0):
    n = len(ids)
    logps = [-0.5 * mask] * n
    old_logps = [-0.5 * mask - gap] * n
    return {
        "kind": kind,
        "text": "never shown",
        "ids": ids,
        "mask": [mask] * n,
        "logps": logps,
        "old_logps": old_logps,
    }


def metric(step, phase="rl", **others):
    kinds = {"A": 1.0, "B": 0.5}
    measured = {"reward": step / 10, "accuracy": 0.5, "calls_by_kind": kinds, "loss": 1.0}
    return {"phase": phase, "step": step, **measured, **others}


def evaluation():
    numbers = {"accuracy": 0.5, "low": 0.25, "high": 0.75, "n": 40}
    means = {"calls_per_problem": 1.5, "mean_new_tokens": 20.0}
    by_kind = {"A": {"accuracy": 0.5, "n": 40, "calls_per_problem": 1.5}}
    return {"before": {"tools": {**numbers, **means, "by_kind": by_kind}}}


def config(vocab_size):
    """As much of a run's config as the page and the pictures read. There are no tools."""
    model = ModelConfig(vocab_size=vocab_size, n_layers=1, d_model=16, n_heads=2, n_kv_heads=1)
    settings = {"seed": 0, "threads": 1, "tools": "", "format": "tags"}
    clip = {"epsilon": 0.2, "epsilon_high": 0.28}
    return {**settings, "model": asdict(model), "sampler": {"max_new_tokens": 8}, "rl": clip}


@pytest.fixture
def make_run(tokenizer, tmp_path):
    """A function that writes a run folder."""

    def make(name="run", traces=None, metrics=None):
        folder = tmp_path / name
        (folder / "checkpoint").mkdir(parents=True)
        write(folder / "config.json", [config(len(tokenizer))])
        write(folder / "metrics.jsonl", metrics or [metric(1), metric(2)])
        write(folder / "traces.jsonl", traces or [trace(tokenizer)])
        write(folder / "eval.json", [evaluation()])
        tokenizer.save(folder / "checkpoint")
        return folder

    return make


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def page_of(*folders) -> str:
    main([str(folder) for folder in folders])
    return (folders[0] / "page.html").read_text(encoding="utf-8")


def error_of(capsys, *arguments) -> str:
    """What main says on stderr before it exits with 2."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_hostile_text_is_shown_and_not_obeyed(make_run, tokenizer):
    page = page_of(make_run(traces=[trace(tokenizer, HOSTILE, words=HOSTILE[:-1])]))
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&quot; onload=&#x27;x&#x27;" in page
    assert "&lt;U+202E&gt;&lt;U+0000&gt;&lt;U+001B&gt;[0m&lt;U+D800&gt;" in page
    assert not re.search("[\u0000\u001b\u202e]", page)


def test_hostile_names_in_the_metrics_are_escaped(make_run):
    page = page_of(make_run(metrics=[metric(1, call_status={HOSTILE: 3, "ok": 1})]))
    assert "<script" not in page
    assert "\u202e" not in page


def test_the_page_fetches_nothing_and_runs_nothing(make_run):
    page = page_of(make_run())
    for forbidden in ("<script", "<link", "<img", "<iframe", "src=", "href=", "url(", "@import"):
        assert forbidden not in page
    assert not re.search(r"https?:|\bon\w+=", page)


def test_the_page_of_a_long_run_is_small_and_says_what_it_leaves_out(make_run, tokenizer):
    group = [trace(tokenizer, words="1 " * 1000) for _ in range(20)]
    traces = [{**row, "step": step} for step in range(25) for row in group]
    folder = make_run(traces=traces, metrics=[metric(step) for step in range(10_000)])
    page = page_of(folder)
    assert len(page.encode()) < 3_000_000
    assert "of 25 recorded groups are shown" in page
    assert "12 of its 20 samples" in page
    assert "ids left out]" in page


def test_two_long_runs_share_the_room(make_run, tokenizer):
    traces = [trace(tokenizer, words="<" * 500, step=step) for step in range(300)]
    first, second = (make_run(name, traces=traces) for name in ("first", "second"))
    assert len(page_of(first, second).encode()) < 3_000_000


def test_a_thinned_curve_keeps_its_ends_and_its_peak():
    points = [(step, 0.0) for step in range(100_000)]
    points[777] = (777, 5.0)
    kept = thin(points)
    assert {points[0], points[777], points[-1]} <= set(kept)
    assert len(kept) <= POINTS + 2


def test_tokens_are_read_from_the_recorded_ids(make_run, tokenizer):
    page = page_of(make_run(traces=[trace(tokenizer, words="<|end|>")]))
    assert f'title="id {tokenizer.end_id}, log-prob -0.5000, gap +0.0000">&lt;|end|&gt;</i>' in page
    assert "never shown" not in page


def test_half_a_character_is_shown_as_its_byte(make_run, tokenizer):
    ids = [id for id in range(len(tokenizer)) if tokenizer.decode([id]) == "\ufffd"]
    row = trace(tokenizer)
    row["spans"].append(span("text", ids, 1))
    assert "&lt;0xE2&gt;" in page_of(make_run(traces=[row]))


def test_whole_characters_of_several_bytes_are_shown_as_they_are():
    assert records.half_characters("\ufffd\u00e9".encode()) == "\ufffd\u00e9"
    assert records.half_characters(b" \xe2\x80") == " <0xE2><0x80>"


def test_a_token_has_a_class_for_each_colouring(make_run, tokenizer):
    row = trace(tokenizer, advantage=-2.0)
    row["spans"].append(span("text", [tokenizer.end_id], 1, gap=0.05))
    page = page_of(make_run(traces=[row]))
    assert '<article class="v0">' in page
    assert f'<i class="text m l1 g3" title="id {tokenizer.end_id}, ' in page
    assert '<i class="prompt" title=' in page


def test_every_colouring_has_a_switch_and_a_legend(make_run):
    page = page_of(make_run())
    for name in ("author", "mask", "advantage", "log-prob", "gap"):
        assert f'id="{name}"' in page
        assert f'<div class="legend {name}">' in page
        assert f"#{name}:checked" in page


def test_a_group_is_sorted_by_advantage(make_run, tokenizer):
    rows = [trace(tokenizer, advantage=value) for value in (-0.5, 1.5, 0.25)]
    found = re.findall("<b>advantage ([-+.0-9]+)", page_of(make_run(traces=rows)))
    assert found == ["+1.50", "+0.25", "-0.50"]


def test_calls_are_listed_with_tool_status_and_seconds(make_run):
    assert "<li>python: ok, 0.250 s</li>" in page_of(make_run())


def test_a_prompt_is_shown_at_each_evaluation(make_run, tokenizer):
    rows = [
        trace(tokenizer, phase="eval", name=name, correct=name == "final")
        for name in ("before", "after_sft", "final")
    ]
    page = page_of(make_run(traces=rows))
    found = re.findall(r"<article class=\"[^\"]*\"><p><b>(\w+)</b>, (\w+)", page)
    assert found == [("before", "wrong"), ("after_sft", "wrong"), ("final", "right")]


def test_of_the_answers_to_a_prompt_those_with_tools_are_shown(make_run, tokenizer):
    rows = [
        trace(tokenizer, phase="eval", name=name, mode=mode, correct=mode == "tools")
        for name in ("before", "after_sft", "final")
        for mode in ("tools", "text")
    ]
    found = re.findall(r"<b>(\w+)</b>, (\w+)", page_of(make_run(traces=rows)))
    assert found == [("before", "right"), ("after_sft", "right"), ("final", "right")]


def test_results_have_their_interval(make_run):
    page = page_of(make_run())
    assert "<td>50.0%</td><td>25.0% to 75.0%</td>" in page


def test_two_runs_are_drawn_in_the_same_charts(make_run):
    page = page_of(make_run("first"), make_run("second"))
    reward = next(part for part in page.split("<figure>") if 'aria-label="reward"' in part)
    assert reward.count("<polyline") == 2
    assert 'class="c1 dash line"' in reward
    assert ">first<" in reward and ">second<" in reward


@pytest.mark.parametrize("last, tick", [(0.3, ">0.2<"), (0.0, ">30<")])
def test_the_loss_is_drawn_on_a_logarithmic_axis_where_it_is_above_0(make_run, last, tick):
    losses = [{"phase": "sft", "step": i, "loss": loss} for i, loss in enumerate((25.0, last))]
    page = page_of(make_run(metrics=losses))
    loss = next(part for part in page.split("<figure>") if 'aria-label="loss"' in part)
    assert tick in loss


def test_numbers_that_are_not_finite_are_left_out_of_a_curve(make_run):
    page = page_of(make_run(metrics=[metric(1, reward=float("nan")), metric(2), metric(3)]))
    assert "nan" not in page.split("<h2>Curves</h2>")[1].split("<h2>Trajectories</h2>")[0]


@pytest.mark.parametrize(
    "file, sentence",
    [
        ("metrics.jsonl", "metrics.jsonl has no rows"),
        ("traces.jsonl", "traces.jsonl has no rows"),
        ("eval.json", "eval.json is missing"),
        ("checkpoint/tokenizer.json", "tokenizer.json is missing"),
    ],
)
def test_what_is_missing_is_said_in_its_section(make_run, file, sentence):
    folder = make_run()
    (folder / file).unlink()
    assert sentence in page_of(folder)


def test_half_a_last_line_is_left_out(make_run):
    folder = make_run()
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"phase": "rl", "st')
    assert "<polyline" in page_of(folder)


@pytest.mark.parametrize(
    "file, words",
    [
        ("config.json", "{"),
        ("eval.json", "{"),
        ("eval.json", '{"before": {"tools": {}}}'),
        ("metrics.jsonl", "{}\n"),
        ("metrics.jsonl", "3\n"),
        ("traces.jsonl", "{'phase'}\n"),
        ("traces.jsonl", '{"phase": "rl"}\n'),
        ("checkpoint/tokenizer.json", "{"),
    ],
)
def test_a_damaged_file_is_one_line_on_stderr(make_run, capsys, file, words):
    folder = make_run()
    (folder / file).write_text(words)
    assert error_of(capsys, folder).count("\n") == 1


def test_spans_of_unequal_length_are_an_error(make_run, capsys, tokenizer):
    row = trace(tokenizer)
    row["spans"][0]["mask"].pop()
    assert "as many mask and logps as ids" in error_of(capsys, make_run(traces=[row]))


def test_a_folder_that_is_no_run_is_an_error(tmp_path, capsys):
    assert "is not a run folder" in error_of(capsys, tmp_path)


def test_three_runs_are_an_error(make_run, capsys):
    folder = make_run()
    assert "one run or two" in error_of(capsys, folder, folder, folder)


def test_rounds_of_expectation_maximisation_are_drawn_as_reinforcement_learning(make_run):
    rows = [metric(step, "em") | {"accuracy": 0.5, "Q_code": 0.25 * step} for step in (1, 2)]
    shown = page([records.read_run(make_run(metrics=rows))])
    assert "<h3>Expectation-maximisation</h3>" in shown
    assert 'aria-label="accuracy"' in shown and "Q_code" in shown


@pytest.mark.parametrize("phase", ["sft", "rl"])
def test_held_out_accuracy_is_a_curve_of_the_steps_that_have_it(make_run, phase):
    rows = [metric(step, phase) | {"held_out/accuracy": step / 4} for step in (2, 4)]
    folder = make_run(metrics=[metric(1, phase), rows[0], metric(3, phase), rows[1]])
    (line,) = lines_of([records.read_run(folder)], phase, "held_out/accuracy")
    assert line.points == [(2, 0.5), (4, 1.0)]
    assert 'aria-label="held_out/accuracy"' in page([records.read_run(folder)])


def test_the_pictures_are_written_and_well_formed(make_run, tmp_path, tokenizer):
    folder = make_run(traces=[trace(tokenizer, HOSTILE[:-1])])
    model = Transformer(ModelConfig(**config(len(tokenizer))["model"]), 0)
    torch.save({"model": model.state_dict()}, folder / "checkpoint" / "state.pt")
    main(["--pictures", str(folder), "--out", str(tmp_path / "out")])
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["clip.svg", "house.svg", "rl.svg", "rows.svg", "trajectory.svg"]
    for name in names:
        root = ElementTree.parse(tmp_path / "out" / name).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_pictures_need_a_run_that_has_called_a_tool(make_run, capsys, tokenizer):
    folder = make_run(traces=[trace(tokenizer, calls=[])])
    assert "train for longer" in error_of(capsys, "--pictures", folder)


def test_the_house_is_drawn_as_the_package_is():
    package = Path(nanotir.__file__).parent
    files = {path.name for path in package.glob("*.py")}
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    recipes = {f"recipes/{path.name}" for path in package.glob("recipes/[a-z]*.py")}
    expected = (files | folders | recipes | {"tools/tool.py"}) - {"__init__.py", "recipes"}
    drawn = [name for group in pictures.HOUSE.values() for name in group]
    assert sorted(drawn) == sorted(expected)


@pytest.mark.parametrize(
    "ratio, advantage, loss",
    [(1.5, 1.0, -1.28), (1.1, 1.0, -1.1), (0.5, -1.0, 0.8), (1.5, -1.0, 1.5)],
)
def test_the_clipped_loss_is_that_of_policy_loss(ratio, advantage, loss):
    assert pictures.clipped_loss(ratio, advantage, 0.2, 0.28) == pytest.approx(loss)


def test_a_row_is_parked_from_its_closing_tag_to_the_output():
    events = [("start", 0.0), ("text", 1.0), ("python", 2.0), ("output", 5.0), ("text", 6.0)]
    assert timeline.states(events, [(1.5, 4.0)]) == [
        ("decoding", 0.0, 2.0),
        ("parked", 2.0, 5.0),
        ("tool", 2.0, 4.0),
        ("resumed", 5.0, 6.0),
    ]


def test_ticks_are_round_and_cover_the_values():
    assert svg.ticks(0.13, 0.92) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert svg.ticks(3.0, 3.0) == [3.0, 4.0]


@pytest.mark.parametrize(
    "low, high, ticks",
    [
        (0.3, 25, [0.2, 0.5, 1, 2, 5, 10, 20, 50]),
        (1, 1, [1, 2]),
        (0.06, 0.09, [0.05, 0.1]),
        (9.999999999999999e-6, 1e-5, [5e-6, 1e-5]),
    ],
)
def test_ticks_of_a_logarithmic_axis_cover_the_values(low, high, ticks):
    assert svg.log_ticks(low, high) == ticks


def test_equal_ratios_are_equal_distances_on_a_logarithmic_axis():
    points = [(0.0, 0.2), (1.0, 2.0), (2.0, 20.0)]
    marks, _ = svg.chart([svg.Line("only", points)], "title", "unit", log=True)
    (drawn,) = re.findall(r'<polyline[^>]* points="([^"]*)"', marks)
    heights = [float(point.split(",")[1]) for point in drawn.split()]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.11)


def test_a_chart_of_one_point_shows_it():
    marks, _ = svg.chart([svg.Line("only", [(1.0, 2.0)])], "title", "unit")
    assert marks.count("<circle") == 1
