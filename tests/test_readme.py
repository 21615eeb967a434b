"""The README's examples are run, and the files that it names exist."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import nanotir.losses
import nanotir.rewards
from nanotir.config import RECIPES

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
TOOL_AND_FAMILY, REWARD, LOSS = PYTHON


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_example_of_a_tool_and_a_family_trains_and_can_be_asked(tmp_path):
    (tmp_path / "mine.py").write_text(TOOL_AND_FAMILY)
    flags = "mine.py --tools reverse --data generated:backwards --preset probe --out run"
    (ask,) = re.findall(r"`python -c \"(import mine, .*?)\"", README)
    for arguments in (
        [*flags.split(), "--rl.steps", "0"],
        ["-c", ask, "--run", "run", "Write cab backwards."],
    ):
        result = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    tokenizer = json.loads((tmp_path / "run/checkpoint/tokenizer.json").read_text())
    assert "<reverse>" in [token["content"] for token in tokenizer["added_tokens"]]
    row = json.loads((tmp_path / "run/traces.jsonl").read_text().splitlines()[0])
    assert row["answer"] in row["question"][::-1] and row["family"] == "backwards"


def test_the_example_of_a_reward_is_all_that_rewards_needs():
    function, row = REWARD.split("\n\npolite:")
    source = Path(nanotir.rewards.__file__).read_text()
    source = source.replace("def weight(", f"{function}\n\n\ndef weight(")
    source = source.replace("    max_calls:", f"    polite:{row}    max_calls:")
    names = {"__name__": "nanotir.rewards"}
    exec(compile(source, "rewards.py with the README's reward", "exec"), names)
    config = names["RewardConfig"](polite=0.2, length=0.0)

    class Answer:
        ids, mask, calls = [], [], []

        def __init__(self, text):
            self.completion = lambda tokenizer: text
            self.turns = lambda tokenizer: []

    class Question:
        question, answer = "6 * 7?", "42"

    said = [Answer("\\boxed{42} please"), Answer("\\boxed{42}"), Answer("please")]
    rewards, _ = names["score"](said, [Question] * 3, None, config)
    assert rewards == pytest.approx([1.0, 0.8, 0.0])


def test_the_example_of_a_loss_is_all_that_losses_needs():
    function, row = LOSS.split('\n\n"a2c"')
    source = Path(nanotir.losses.__file__).read_text()
    source = source.replace("LOSSES = {", f'{function}\n\n\nLOSSES = {{\n    "a2c"{row}')
    names = {"__name__": "nanotir.losses"}
    exec(compile(source, "losses.py with the README's loss", "exec"), names)
    logps = torch.tensor([[-1.0, -2.0, -3.0]])
    mask = torch.tensor([[0, 1, 1]])
    loss, _ = names["policy_loss"](logps, logps, torch.tensor([0.5]), mask, loss_type="a2c")
    assert loss.item() == pytest.approx(0.5 * (2 + 3) / 2)


def test_the_examples_have_at_most_fifteen_lines_of_code():
    for block in PYTHON:
        code = [line for line in block.splitlines() if line.strip() and "import" not in line]
        assert len(code) <= 15


@pytest.mark.parametrize("title", ["Read it", "One RL step"])
def test_every_file_that_is_named_exists(title):
    names = re.findall(r"`([\w/]+(?:\.py|/))`", section(title))
    assert len(names) > 9
    for name in names:
        places = [ROOT / name, ROOT / "nanotir" / name, ROOT / "nanotir" / "tools" / name]
        assert any(place.exists() for place in places), name


@pytest.mark.parametrize("folder", [".", "nanotir", "nanotir/tools", "nanotir/recipes"])
def test_every_link_and_picture_exists(folder):
    text = (ROOT / folder / "README.md").read_text()
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (ROOT / folder / link).exists(), link


@pytest.mark.parametrize(
    "folder, names", [("nanotir", nanotir.losses.LOSSES), ("nanotir/recipes", RECIPES)]
)
def test_every_loss_and_recipe_is_in_its_table(folder, names):
    text = (ROOT / folder / "README.md").read_text()
    for name in names:
        assert re.search(rf"`(loss-type )?{name}`", text), name


def test_every_metric_of_a_run_is_in_the_glossary():
    text = (ROOT / "nanotir" / "README.md").read_text()
    glossary = text.split("\n## What the numbers in metrics.jsonl mean\n")[1].split("\n## ")[0]
    source = (ROOT / "nanotir" / "metrics.py").read_text()
    for name in re.findall(r'^ {8}"(\w+)":', source, re.MULTILINE):
        assert f"`{name}`" in glossary, name
