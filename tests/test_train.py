"""The command as a user runs it: exit code, output, and what lies on the disk afterwards."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import train
from nanotir.config import RunConfig, build, parse
from nanotir.policy import load_run
from nanotir.problems import Problem
from nanotir.run_files import new_folder

ROOT = Path(__file__).resolve().parents[1]
SHORT = (
    "--preset probe --problems 60 --eval.problems 4 --sampler.max_new_tokens 24 "
    "--model.d_model 32 --model.n_layers 1"
).split()


def started(folder, *arguments, stderr=subprocess.PIPE) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "train.py"), *SHORT, *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=stderr, text=True)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A whole run, on its way while the first test interrupts another."""
    folder = tmp_path_factory.mktemp("user")
    with started(folder) as process:
        yield folder, process
        process.kill()


@pytest.fixture(scope="module")
def finished(running):
    """(the folder in which the command ran, what it printed, what it printed as errors)."""
    folder, process = running
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return folder, out, err


def test_ctrl_c_saves_and_the_run_can_go_on(running, tmp_path, monkeypatch):
    long = "--tools python --eval.problems 1 --sft.steps 100000 --rl.steps 1".split()
    process = started(tmp_path, *long, stderr=subprocess.DEVNULL)
    out = tmp_path / "runs" / "tapo-probe-1"
    metrics = out / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 3)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume runs/tapo-probe-1" in said
    assert "Traceback" not in said
    load_run(out)

    # Two more steps are left to the run that goes on.
    config = json.loads((out / "config.json").read_text())
    steps = metrics.read_text().count("\n") + 2
    config["sft"]["steps"] = steps
    (out / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    train.main(["--resume", "runs/tapo-probe-1"])
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [row["step"] for row in rows if row["phase"] == "sft"] == list(range(1, steps + 1))


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_documents_are_found_again_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = train.resolved(build({"search.path": "docs.txt"}))
    assert config.search.path == str(tmp_path / "docs.txt")


def test_held_out_problems_that_are_trained_on_are_counted(capsys):
    a, b, c = (Problem(f"{name}?", "1") for name in "abc")
    train.warn_of_known([a, b], {"x": [a, c], "y": [c]})
    assert capsys.readouterr().out == "of 2 held-out problems of x, 1 are trained on as well\n"


def test_a_run_says_where_to_look(finished):
    _, said, _ = finished
    for words in ("runs/tapo-probe-1", "python sample.py", "before", "after_sft", "final"):
        assert words in said


def test_progress_bars_show_what_is_learned(finished):
    _, _, err = finished
    for words in ("sft", "rl", "loss=", "reward=", "tools=", "len=", "clip="):
        assert words in err
    assert "Traceback" not in err


def test_a_run_leaves_its_folder_and_nothing_else_behind(finished):
    folder, _, _ = finished
    assert [path.name for path in folder.iterdir()] == ["runs"]
    assert [path.name for path in (folder / "runs").iterdir()] == ["tapo-probe-1"]
    files = {"config.json", "metrics.jsonl", "traces.jsonl", "eval.json", "checkpoint"}
    assert {path.name for path in (folder / "runs" / "tapo-probe-1").iterdir()} == files


def test_a_run_is_evaluated_before_after_imitation_and_at_the_end(finished):
    out = finished[0] / "runs" / "tapo-probe-1"
    evaluations = json.loads((out / "eval.json").read_text())
    assert list(evaluations) == ["before", "after_sft", "final"]
    fields = {"accuracy", "low", "high", "n", "by_family", "calls_per_problem"}
    fields |= {"calls_per_correct", "call_status", "mean_new_tokens"}
    variants = {"reworded", "longer", "longest"}
    for name, modes in evaluations.items():
        assert set(modes) == {"tools", "text"} | (variants if name == "final" else set())
        assert fields <= set(modes["tools"])


def test_the_folder_holds_the_config_that_was_used(finished):
    config = json.loads((finished[0] / "runs" / "tapo-probe-1" / "config.json").read_text())
    assert config["preset"] == "probe"
    assert config["problems"] == 60
    assert config["model"]["d_model"] == 32


def test_a_run_that_learns_nothing_says_so(finished, tmp_path):
    _, said, _ = finished
    assert said.count("RL has learned nothing") == 1
    rows = [{"phase": "sft"}, {"phase": "rl"}, {"phase": "rl", "zero_advantage": 1.0}]
    assert train.nothing_learned(written(tmp_path, rows))
    rows.append({"phase": "rl", "zero_advantage": 0.9})
    assert not train.nothing_learned(written(tmp_path, rows))
    assert not train.nothing_learned(written(tmp_path, [{"phase": "em"}]))


def written(folder, rows) -> Path:
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_last_line_names_what_there_is_and_the_run_that_it_is_about(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(["runs/old", "runs/new", "else where"]):
        path = tmp_path / name / "checkpoint" / "state.pt"
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (age, age))
    (tmp_path / "runs/new/traces.jsonl").touch()
    ask = "python sample.py %s'What is 384 * 927?'"
    said = train.where_to_look(Path("runs/new"))
    assert said == "look at runs/new/traces.jsonl, or ask it something: " + ask % ""
    assert train.where_to_look(Path("runs/old")) == "ask it: " + ask % "--run runs/old "
    assert train.where_to_look(Path("else where")) == "ask it: " + ask % "--run 'else where' "
    monkeypatch.setattr("sys.argv", ["mine.py"])  # whose tool sample.py does not know
    assert train.where_to_look(Path("runs/new")) == "look at runs/new/traces.jsonl"


def test_ctrl_c_before_anything_is_saved_promises_nothing(desk, capsys, monkeypatch):
    def interrupt(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(train.policy, "make_policy", interrupt)
    with pytest.raises(SystemExit) as stopped:
        train.main([*SHORT])
    out, err = capsys.readouterr()
    assert (stopped.value.code, out, err) == (130, "", "interrupted\n")


# Mistakes.

OTHER = "--eval-data generated"
MISTAKES = {  # arguments: a word of the one line that they get
    f"--data jsonl:nowhere.jsonl {OTHER}": "nowhere.jsonl",
    f"--data jsonl:bad.jsonl {OTHER}": "bad.jsonl:2",
    "--data jsonl:bad.jsonl": "--eval-data",
    f"--data gsm8k:good.jsonl {OTHER}": "good.jsonl:1",
    "--eval-data generated,jsonl:nowhere.jsonl": "nowhere.jsonl",
    "--data generated:mull": "mul",
    f"--data gsm8q:x {OTHER}": "did you mean 'gsm8k'",
    "--recipe tapoo": "did you mean 'tapo'",
    "--device tpu": "no device 'tpu': did you mean 'cpu'?",
    "--tools pyton": "no tool 'pyton'",
    "--format xml": "no format 'xml'",
    "--out empty": "exists already",
    "--out good.jsonl/b": "cannot make",
    "--sampler.temperature 0": "RL needs",
    "--search.path nowhere.txt": "nowhere.txt",
    "--search.path empty": "cannot read documents",
    "--rl.loss_type ppo": "no loss_type",
    "--sampler.max-rows 0": "--sampler.max-rows must be at least 1, not 0",
    "--python.workers 0": "workers",
    "--model.n-kv-heads 0": "--model.n-kv-heads",
    "--rl.refills -1": "refills",
    "--model.vocab_size 100": "at least",
    "--level 0": "level",
    "--problems 0": "problems",
}
MISTAKEN_FOLDERS = {
    "--resume nowhere": "not a run folder",
    "--resume empty": "not a run folder",
    "--init empty": "not a run folder",
    "--init empty --model.n-layers 3": "leave out --model.n-layers",
}


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with a good file of problems, a bad one, and an empty folder."""
    good = '{"question": "q", "answer": "1"}\n'
    (tmp_path / "good.jsonl").write_text(good)
    (tmp_path / "bad.jsonl").write_text(good + "{oops")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def one_line(desk, capsys, *arguments) -> str:
    """What a mistaken command says: one line, with exit code 2, and it leaves nothing behind."""
    before = sorted(desk.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        train.main(list(arguments))
    out, err = capsys.readouterr()
    assert stopped.value.code == 2
    assert err.count("\n") == 1 and err.startswith("train.py: ")
    assert sorted(desk.rglob("*")) == before
    return err


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_users_mistake_is_one_line_and_leaves_nothing(desk, capsys, arguments):
    assert MISTAKES[arguments] in one_line(desk, capsys, *SHORT, *arguments.split())


@pytest.mark.parametrize("arguments", MISTAKEN_FOLDERS)
def test_a_mistaken_folder_is_one_line_and_leaves_nothing(desk, capsys, arguments):
    assert MISTAKEN_FOLDERS[arguments] in one_line(desk, capsys, *arguments.split())


def test_folders_of_runs_without_a_name_are_numbered(desk):
    for number in (1, 2, 3):
        assert new_folder(RunConfig()) == f"runs/tapo-tiny-{number}"
        (desk / "runs" / f"tapo-tiny-{number}").mkdir(parents=True)


def test_of_two_runs_without_a_name_the_slower_one_takes_the_next_number(desk, monkeypatch):
    def slow(run):
        (desk / "runs" / "tapo-probe-1").mkdir(parents=True)  # by another run
        return []

    def stop(run, when):
        raise ValueError(run.out)

    monkeypatch.setattr(train, "taught", slow)
    monkeypatch.setattr(train, "evaluate_run", stop)
    with pytest.raises(ValueError, match="runs/tapo-probe-2"):
        train.train(parse(SHORT))
    config = json.loads((desk / "runs" / "tapo-probe-2" / "config.json").read_text())
    assert config["out"] == "runs/tapo-probe-2"
