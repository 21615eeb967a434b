"""The command as a user runs it: in a process of its own, judged by its exit code, its output and what lies on the disk afterwards."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import train
from nanotir.checkpoint import load_run

ROOT = Path(__file__).resolve().parents[1]
SHORT = [
    "--preset",
    "probe",
    "--problems",
    "60",
    "--eval.problems",
    "4",
    "--sampler.max_new_tokens",
    "24",
    "--model.d_model",
    "32",
    "--model.n_layers",
    "1",
]


def command(*arguments):
    return [sys.executable, str(ROOT / "train.py"), *map(str, arguments)]


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A whole run, on its way while the first test interrupts another."""
    folder = tmp_path_factory.mktemp("user")
    with subprocess.Popen(
        command(*SHORT), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        yield folder, process
        process.kill()


@pytest.fixture(scope="module")
def finished(running):
    folder, process = running
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return folder, out, err


def test_ctrl_c_saves_and_the_run_can_go_on(running, tmp_path, monkeypatch):
    process = subprocess.Popen(
        command(
            *SHORT,
            "--tools",
            "python",
            "--eval.problems",
            "1",
            "--sft.steps",
            "100000",
            "--rl.steps",
            "1",
        ),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    metrics = tmp_path / "runs" / "tapo-probe-1" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 3)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert (
        process.returncode == 130 and "--resume runs/tapo-probe-1" in out and "Traceback" not in out
    )
    load_run(tmp_path / "runs" / "tapo-probe-1")
    config = json.loads((tmp_path / "runs" / "tapo-probe-1" / "config.json").read_text())
    steps = metrics.read_text().count("\n")
    config["sft"]["steps"] = steps + 2  # so that the resumed run ends soon
    (tmp_path / "runs" / "tapo-probe-1" / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    train.main(["--resume", "runs/tapo-probe-1"])
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()][
        : steps + 2
    ] == list(range(1, steps + 3))


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_a_run_leaves_its_folder_and_says_where_to_look(finished):
    folder, stdout, stderr = finished
    out = folder / "runs" / "tapo-probe-1"
    assert {path.name for path in out.iterdir()} >= {
        "config.json",
        "metrics.jsonl",
        "eval.json",
        "checkpoint",
    }
    assert "runs/tapo-probe-1" in stdout and "python sample.py" in stdout and "final" in stdout
    for bar in ("sft", "rl", "loss=", "reward=", "tools=", "len=", "clip="):
        assert bar in stderr
    assert "Traceback" not in stderr
    evaluations = json.loads((out / "eval.json").read_text())
    fields = {
        "accuracy",
        "low",
        "high",
        "n",
        "by_family",
        "calls_per_problem",
        "calls_per_correct",
        "call_status",
        "mean_new_tokens",
    }
    for name in ("before", "after_sft", "final"):
        assert set(evaluations[name]) == {"tools", "text"} and fields <= set(
            evaluations[name]["tools"]
        )


def test_the_folder_holds_the_config_that_was_used(finished):
    config = json.loads((finished[0] / "runs" / "tapo-probe-1" / "config.json").read_text())
    assert (
        config["problems"] == 60
        and config["model"]["d_model"] == 32
        and config["preset"] == "probe"
    )


def test_nothing_but_the_run_folder_is_left_behind(finished):
    assert [path.name for path in finished[0].iterdir()] == ["runs"]


def lines_of(path, *rows):
    path.write_text("\n".join(rows))
    return path


def mistakes(folder):
    good, bad = (
        '{"question": "q", "answer": "1"}',
        lines_of(folder / "bad.jsonl", '{"question": "q", "answer": "1"}', "{oops"),
    )
    (folder / "empty").mkdir()
    other = ["--eval-data", "generated"]
    return [
        (["--data", "jsonl:nowhere.jsonl", *other], "nowhere.jsonl"),
        (["--data", f"jsonl:{bad}", *other], "bad.jsonl:2"),
        (["--data", f"jsonl:{bad}"], "--eval-data"),
        (["--data", f"gsm8k:{lines_of(folder / 'a', good)}", *other], "a:1"),
        (["--data", "generated:mull"], "mul"),
        (["--data", "gsm8q:x", *other], "did you mean 'gsm8k'"),
        (["--recipe", "tapoo"], "did you mean 'tapo'"),
        (["--resume", "nowhere"], "not a run folder"),
        (["--resume", "empty"], "not a run folder"),
        (["--init", "empty"], "not a run folder"),
        (["--device", "tpu"], "there are cpu"),
        (["--tools", "pyton"], "no tool 'pyton'"),
        (["--format", "xml"], "no format 'xml'"),
        (["--out", "empty"], "exists already"),
        (["--out", "a/b"], "cannot make"),
        (["--sampler.temperature", "0"], "RL needs"),
        (["--search.path", "nowhere.txt"], "nowhere.txt"),
        (["--rl.loss_type", "ppo"], "no loss_type"),
        (["--sampler.max-rows", "0"], "max_rows"),
        (["--python.workers", "0"], "workers"),
        (["--model.n-kv-heads", "0"], "n_kv_heads"),
        (["--rl.refills", "-1"], "refills"),
        (["--init", "empty", "--model.n-layers", "3"], "leave out --model.n-layers"),
        (["--search.path", str(folder)], "cannot read documents"),
        (["--model.vocab_size", "100"], "at least"),
        (["--level", "0"], "level"),
        (["--problems", "0"], "problems"),
    ]


def test_a_users_mistake_is_one_line_exit_code_2_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments, hint in mistakes(tmp_path):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as stopped:
            train.main(
                [*SHORT, *arguments] if arguments[0] not in ("--resume", "--init") else arguments
            )
        out, err = capsys.readouterr()
        assert (
            stopped.value.code == 2
            and err.count("\n") == 1
            and err.startswith("train.py: ")
            and hint in err
        ), (arguments, err)
        assert sorted(tmp_path.rglob("*")) == before, arguments
