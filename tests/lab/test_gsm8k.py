"""Imitation of GSM8K's solutions, and how often a calculation is right."""

import json
from types import SimpleNamespace

import pytest

from nanotir.lab import toy
from nanotir.lab.__main__ import main
from nanotir.lab.experiments import EXPERIMENTS
from nanotir.lab.gsm8k import FOLDER, calculated
from nanotir.problems.files import gsm8k
from nanotir.tools import ToolResult
from nanotir.trajectory import Call, Format, Trajectory

RECORD = {"question": "2 bags of 3?", "answer": "There are 2*3 = <<2*3=6>>6 in them.\n#### 6"}


@pytest.fixture
def problems(tmp_path, monkeypatch):
    """The data set in a folder, as the experiment needs it: many copies of a tiny problem."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / FOLDER
    folder.mkdir(parents=True)
    for name in ("train.jsonl", "test.jsonl"):
        (folder / name).write_text((json.dumps(RECORD) + "\n") * 8)


@pytest.mark.usefixtures("problems", "shared_tools")
def test_both_arms_imitate_as_many_ids(tmp_path, monkeypatch):
    small = {"model.n_layers": 1, "model.d_model": 32, "model.n_heads": 2, "model.d_ff": 32}
    monkeypatch.setattr("nanotir.lab.gsm8k.IDS", 100_000)
    monkeypatch.setattr(toy, "TOY", toy.TOY | small)
    experiment = EXPERIMENTS["gsm8k"]
    ids = {}
    for arm in ("tool", "words"):
        found = experiment.arms[arm].run(0, True, tmp_path / arm)
        assert {*experiment.metrics, *experiment.figure} <= set(found)
        rows = (tmp_path / arm / "run" / "metrics.jsonl").read_text().splitlines()
        assert len(rows) == found["steps"] > 1
        ids[arm] = json.loads(rows[0])["tokens"] * found["steps"]
    assert ids["tool"] == pytest.approx(ids["words"], rel=0.15)


@pytest.mark.parametrize(
    "words, value, right",
    [("6 in them", "", True), ("60", "", False), ("many", "", False)]
    + [("60", "6", True), ("6", "60", False), ("6", None, False)],
)
def test_a_tool_s_value_or_a_number_in_words_is_the_calculation(
    tokenizer, monkeypatch, words, value, right
):
    row = Trajectory()
    row.append("text", tokenizer.encode(words), 1)
    if value:
        row.calls.append(Call("python", "2*3", ToolResult(value)))
    asked = []

    def generate(prompts, seed):
        asked.extend(prompts)
        return [row]

    sampler = SimpleNamespace(generate=generate)
    monkeypatch.setattr("nanotir.lab.gsm8k.make_sampler", lambda run, **changes: sampler)
    run = SimpleNamespace(
        held_out=[gsm8k(RECORD)],
        tools=[] if value == "" else ["python"],
        tokenizer=tokenizer,
        format=Format(),
        config=SimpleNamespace(seed=0),
    )
    assert calculated(run) == [right]
    end = "There are 2*3 =" + " " * bool(run.tools)  # where both arms have learned to go on
    assert tokenizer.decode(asked[0]).endswith(end)


def test_without_its_data_it_is_skipped_with_a_reason(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        main(["gsm8k", "--quick", "--workers", "0"])
    assert exit.value.code == 0
    assert (
        "gsm8k skipped: its data are not here, in the folder data/gsm8k" in capsys.readouterr().out
    )
