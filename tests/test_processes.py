"""Several processes do what one does. Most are forked here, the others started by torchrun."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.multiprocessing
from conftest import small_model
from doubles import RunDouble, calling_transformer, ids_of, sampler_of
from test_train import SHORT, wait_for
from tools.processes import below, children, is_alive

import train
from nanotir import processes, rl, rollout, sft
from nanotir.config import parse
from nanotir.demonstrate import TeacherConfig, demonstrate
from nanotir.evaluate import EvalConfig, evaluate
from nanotir.lora import adapt
from nanotir.problems import load
from nanotir.recipes import autocode
from nanotir.rewards import RewardConfig
from nanotir.rl import RLConfig
from nanotir.run import Stopped
from nanotir.sampler import SamplerConfig
from nanotir.sft import SFTConfig
from nanotir.tools import TOOLS, Tool, ToolResult
from nanotir.trajectory import Format

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
ROOT = Path(__file__).resolve().parents[1]


class Python(Tool):
    """Stands for the sandbox: the same answers everywhere, at once."""

    name = "python"
    deterministic = True

    def __init__(self, **settings):
        super().__init__()

    def run(self, text, session=None):
        return ToolResult(str(sum(map(ord, text))))


def child(rank, n, port, folder, work, given):
    variables = {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    variables |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n}
    os.environ.update({name: str(value) for name, value in variables.items()})
    with processes.joined():
        torch.save(work(*given), folder / f"{n}-{rank}.pt")


def in_processes(n: int, folder: Path, work, *given) -> list:
    """What work(*given) returns in each of n processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (n, port, folder, work, given)
    torch.multiprocessing.start_processes(child, arguments, n, start_method="fork")
    return [torch.load(folder / f"{n}-{rank}.pt", weights_only=False) for rank in range(n)]


# Rollouts, optimiser steps and evaluations.

# AdamW divides a gradient by its own size. So an element whose gradient is all but 0 may differ by
# more than 1e-6 in fp32 (in float64, 1e-12): which problems have such an element is chance, and
# these families do not change.
PROBLEMS = "plain:mul,power,gcd,det,quot,last,parity"
RL = {"problems": 5, "group_size": 3, "refills": 2, "updates": 2, "steps": 2, "lr": 1e-3}
VARIANTS = {
    "dapo": {"beta": 0.1, "entropy_coef": 0.01, "importance_cap": 2.0},
    "grpo": {"loss_type": "grpo", "ratio_level": "sequence", "dynamic": False, "updates": 1},
    "dr_grpo": {"loss_type": "dr_grpo", "updates": 3, "micro_batch_tokens": 60, "scale": "whiten"},
    "counted": {"observations": "counted"},
    "fewer rows than processes": {"problems": 1, "group_size": 2, "dynamic": False},
}


def graded(trajectories, *_):
    """Grades that differ within a group, for models that are never right."""
    right = [float(sum(t.ids) % 3 == 0) for t in trajectories]
    return right, {"outcome": right, "accuracy": right}


def by_rl(tokenizer, model, **settings):
    """(metrics, traces, weights) of a few steps of reinforcement learning."""
    sections = {"rl": RLConfig(**RL | settings), "reward": RewardConfig()}
    run = RunDouble(model, tokenizer, sampler=SamplerConfig(max_new_tokens=12), **sections)
    run.tools, run.problems = [Python()], load(PROBLEMS, n=30)
    with mock.patch.object(rollout, "score", graded):
        rl.train(run)
    return run.metrics, run.traces, model.state_dict()


def by_imitation(tokenizer, model, **settings):
    shown = [load(PROBLEMS, n=13), tokenizer, Format(), {"python": Python()}, TeacherConfig()]
    sections = {
        "sft": SFTConfig(steps=2, batch_size=7, warmup=0, lr=1e-3, adam_lr=1e-3, **settings)
    }
    run = RunDouble(model, tokenizer, **sections)
    sft.train(run, demonstrate(*shown))
    return run.metrics, [], model.state_dict()


def by_autocode(tokenizer, model):
    """One M-step on rows of both decisions."""
    sampler = sampler_of(model, tokenizer, [Python()], max_new_tokens=12)
    rows = sampler.generate(["a", "b", "c"], 2)
    drawn = [(row, (-1.0) ** i, [0.25, 0.75]) for i, row in enumerate(rows)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    metrics = autocode.m_step(model, optimizer, drawn, RLConfig(), sampler)
    return [metrics], [], model.state_dict()


def experts(tokenizer):
    return small_model(len(tokenizer), n_experts=4)


def adapted(tokenizer):
    model = calling_transformer(tokenizer)
    adapt(model, rank=2)
    return model


def all_work(tokenizer) -> dict:
    """Whatever a process does in training and in evaluation."""
    done = {}
    # In fp32 the second rollout could differ: a draw may lie within the weights' noise of another
    # id. So one step is compared in fp32, and two in float64.
    for name, settings in VARIANTS.items():
        done[name] = by_rl(tokenizer, calling_transformer(tokenizer), **settings, steps=1)
        in_float64 = by_rl(tokenizer, calling_transformer(tokenizer).double(), **settings)
        done[f"{name}, float64"] = in_float64
    # Experts are balanced within each micro-batch: here, in all processes, each is one row.
    alone = {"micro_batch_tokens": 1}
    done["dapo, experts"] = by_rl(tokenizer, experts(tokenizer), **alone, steps=1)
    done["dapo, adapters"] = by_rl(tokenizer, adapted(tokenizer), steps=1)
    done["imitation"] = by_imitation(tokenizer, calling_transformer(tokenizer))
    done["imitation, experts"] = by_imitation(tokenizer, experts(tokenizer), **alone)
    done["autocode"] = by_autocode(tokenizer, small_model(len(tokenizer)))

    sampler = sampler_of(calling_transformer(tokenizer), tokenizer, [Python()], max_new_tokens=12)
    done["rows"] = sampler.generate(list("abcde"), 3, seed=5)
    settings = EvalConfig(5, samples=4, k="1,4")
    problems = load("generated", "test", n=5)
    policy = (sampler.model, tokenizer, [Python()], Format())
    done["evaluation"] = evaluate(*policy, problems, settings, SamplerConfig(max_new_tokens=9))
    done["messages"] = messages()
    return done


def messages() -> dict:
    rows = list(range(7))
    return {
        "back": processes.gather(processes.share(rows)) == rows,
        "pairs": processes.gather(processes.share(rows, 2), 2) == rows,
        "once": processes.once(os.getpid),
        "own": processes.share(rows, 2),
        "main": processes.is_main(),
        "printed": sys.stdout.name == os.devnull,
    }


@pytest.fixture(scope="module")
def work(tokenizer, tmp_path_factory) -> dict:
    """{number of processes: what each of them has done}."""
    folder = tmp_path_factory.mktemp("work")
    done = {1: [all_work(tokenizer)]}
    for n in (2, 4):
        done[n] = in_processes(n, folder, all_work, tokenizer)
    return done


STEPS = [
    *VARIANTS,
    *(f"{name}, float64" for name in VARIANTS),
    "dapo, experts",
    "dapo, adapters",
    "imitation",
    "imitation, experts",
    "autocode",
]


TIMES = ("time", "seconds_rollout", "seconds_update")


def close(found: dict, wanted: dict):
    """Metrics that are equal but for float noise and time."""
    assert list(found) == list(wanted)
    for name in found:
        expected = wanted[name]
        if name != "phase":
            expected = pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert name in TIMES or found[name] == expected, name


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("n", [2, 4])
def test_all_processes_make_the_optimiser_steps_of_one(work, n, name):
    _, _, wanted = work[1][0][name]
    for done in work[n]:
        _, _, weights = done[name]
        for key in wanted:
            close_to = {"atol": 1e-6, "rtol": 1e-5}
            if wanted[key].dtype == torch.float64:
                close_to = {"atol": 1e-12, "rtol": 0.0}
            torch.testing.assert_close(weights[key], wanted[key], **close_to, msg=key)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("n", [2, 4])
def test_all_processes_hold_the_same_weights_to_the_bit(work, n, name):
    first, *others = [done[name][2] for done in work[n]]
    assert all(torch.equal(other[key], first[key]) for other in others for key in first)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("n", [2, 4])
def test_all_processes_log_the_metrics_of_one(work, n, name):
    for done in work[n]:
        for found, wanted in zip(done[name][0], work[1][0][name][0], strict=True):
            close(found, wanted)


@pytest.mark.parametrize("n", [2, 4])
def test_processes_write_down_the_rows_of_one_with_the_trainers_log_probs(work, n):
    wanted, found = work[1][0]["dapo"][1], work[n][0]["dapo"][1]
    assert len(found) == len(wanted) > 0
    for row, expected in zip(found, wanted):
        for span, other in zip(row.pop("spans"), expected["spans"], strict=True):
            assert span.pop("logps") == pytest.approx(other["logps"], abs=2e-4)
            assert span.pop("old_logps") == pytest.approx(other["old_logps"], abs=2e-4)
            assert span.items() <= other.items()


@pytest.mark.parametrize("n", [2, 4])
def test_all_processes_have_the_rows_that_one_samples(work, n):
    for done in work[n]:
        assert ids_of(done["rows"]) == ids_of(work[1][0]["rows"])
        assert [t.calls for t in done["rows"]] == [t.calls for t in work[1][0]["rows"]]
    assert any(t.calls for t in done["rows"])


@pytest.mark.parametrize("n", [2, 4])
def test_an_evaluation_is_that_of_one_process(work, n):
    assert all(done["evaluation"] == work[1][0]["evaluation"] for done in work[n])


@pytest.mark.parametrize("n", [1, 2, 4])
def test_rows_are_shared_in_groups_and_come_back_in_their_order(work, n):
    found = [done["messages"] for done in work[n]]
    assert all(messages["back"] and messages["pairs"] for messages in found)
    assert [m["own"] for m in found] == {
        1: [[0, 1, 2, 3, 4, 5, 6]],
        2: [[0, 1, 4, 5], [2, 3, 6]],
        4: [[0, 1], [2, 3], [4, 5], [6]],
    }[n]


@pytest.mark.parametrize("n", [2, 4])
def test_only_the_first_process_prints_and_computes_what_depends_on_time(work, n):
    found = [done["messages"] for done in work[n]]
    assert (
        [m["main"] for m in found]
        == [not m["printed"] for m in found]
        == [True] + [False] * (n - 1)
    )
    assert len({m["once"] for m in found}) == 1


def drifted(tokenizer):
    model = small_model(len(tokenizer))
    if processes.rank() == 1:
        weight = model.blocks[0].ff.down.weight.data
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    try:
        processes.check_equal(model)
    except ValueError as error:
        return str(error)


def test_one_bit_of_one_weight_that_differs_is_noticed_by_all(tokenizer, tmp_path):
    for said in in_processes(2, tmp_path, drifted, tokenizer):
        assert "the processes' weights differ" in said


def deaf(tokenizer):
    """A process that SIGTERM does not end, as while it waits for another one."""
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.raise_signal(signal.SIGTERM)
    time.sleep(60)


def test_sigterm_ends_a_process_whatever_it_waits_for(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "GRACE", 1)
    with pytest.raises(torch.multiprocessing.ProcessExitedException, match="SIGALRM"):
        in_processes(2, tmp_path, deaf, tokenizer)


@pytest.mark.parametrize("name, here", [("cuda", "1 GPUs"), ("mps", "one mps")])
def test_each_process_needs_a_gpu_of_its_own(monkeypatch, name, here):
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match=f"process 2 of a machine with {here}: start fewer"):
        processes.own_device(name)


# Whole runs, stopped and resumed.

TINY = [*SHORT, "--tools", "python", "--data", "generated:mul,power", "--eval.problems", "3"]
TINY += "--sft.steps 4 --rl.steps 3 --rl.dynamic false --rl.refills 0".split()
FLAGS = {
    "tapo": "--eval.every 2",
    "tora": "--recipe tora --sft.steps 2 --tora.samples 2 --tora.keep 2",
    "autocode": "--recipe autocode --rl.steps 2 --rl.problems 3",
}


@pytest.fixture(autouse=True)
def instant_tool(monkeypatch):
    monkeypatch.setitem(TOOLS, "python", Python)
    monkeypatch.setattr(rollout, "score", graded)


def whole_run(arguments, stop=None):
    """A run by its command. At a step of imitation, one process gets a signal: (rank, step)."""
    batch_of = sft.batch_of

    def stopping(step, *given):
        if stop == (processes.rank(), step):
            signal.raise_signal(signal.SIGINT)
        return batch_of(step, *given)

    with mock.patch.object(sft, "batch_of", stopping):
        try:
            train.train(parse(arguments))
        except Stopped as stopped:
            return str(stopped)


def logged(folder, file="metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / file).read_text().splitlines()]


def state_of(folder) -> dict:
    return torch.load(folder / "checkpoint" / "state.pt", weights_only=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """{recipe: the folder of its run by one process}."""
    folder = tmp_path_factory.mktemp("alone")
    with mock.patch.dict(TOOLS, python=Python), mock.patch.object(rollout, "score", graded):
        for recipe, flags in FLAGS.items():
            whole_run([*TINY, *flags.split(), "--out", str(folder / recipe)])
    return folder


def same_run(found: Path, wanted: Path):
    for row, expected in zip(logged(found), logged(wanted), strict=True):
        close(row, expected)
    assert (found / "eval.json").read_text() == (wanted / "eval.json").read_text()
    mine, theirs = state_of(found)["model"], state_of(wanted)["model"]
    for key in theirs:
        torch.testing.assert_close(mine[key], theirs[key], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("recipe", ["tora", "autocode"])
def test_a_whole_run_by_two_processes_is_that_of_one(alone, tmp_path, recipe):
    flags = FLAGS[recipe].split()
    in_processes(2, tmp_path, whole_run, [*TINY, *flags, "--out", str(tmp_path / recipe)])
    same_run(tmp_path / recipe, alone / recipe)


def test_a_run_goes_on_with_another_number_of_processes(alone, tmp_path):
    out, resume = tmp_path / "run", ["--resume", str(tmp_path / "run")]
    first = [*TINY, *FLAGS["tapo"].split(), "--out", str(out)]
    for said in in_processes(2, tmp_path, whole_run, first, (1, 1)):
        assert "stopped and saved after step 2 of sft" in said
    assert state_of(out)["step"] == 2
    assert "stopped and saved after step 3 of sft" in whole_run(resume, (0, 2))
    in_processes(4, tmp_path, whole_run, resume)
    same_run(out, alone / "tapo")
    assert logged(out, "traces.jsonl")


# As a user starts them.


def started(folder, n: int, *arguments) -> subprocess.Popen:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, f"--nproc_per_node={n}", str(ROOT / "train.py"), *arguments]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(
        command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, **output
    )


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Two runs, (torchrun with two processes, its folder), started together to save time."""
    long = "--tools python --eval.problems 1 --sft.steps 100000".split()
    folders = [tmp_path_factory.mktemp("torchrun") for _ in range(2)]
    arguments = (2, *SHORT, *long, "--out", "run")
    with ExitStack() as stack:
        runs = [(stack.enter_context(started(f, *arguments)), f) for f in folders]
        yield list(runs)
        for process, _ in runs:
            process.kill()


@pytest.fixture
def running(launched):
    """(torchrun with two processes, its run folder, all processes that it has started)."""
    process, folder = launched.pop()
    metrics = folder / "run" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 3)
    yield process, folder / "run", below(process.pid)
    process.kill()


def end_of(process, started) -> tuple[float, str]:
    """(seconds until it and all that it has started are gone, what they have said)."""
    begun = time.monotonic()
    while process.poll() is None or any(map(is_alive, started)):
        assert time.monotonic() < begun + 30, "it goes on"
        time.sleep(0.05)
    return time.monotonic() - begun, process.stdout.read()


def test_when_a_process_is_killed_all_end_within_ten_seconds(running):
    process, _, started = running
    os.kill(children(process.pid)[0], signal.SIGKILL)
    seconds, said = end_of(process, started)
    assert seconds < 10
    assert process.returncode != 0
    assert "Signal 9 (SIGKILL)" in said


def test_ctrl_c_saves_one_checkpoint_and_all_end(running):
    process, out, started = running
    process.send_signal(signal.SIGINT)
    _, said = end_of(process, started)
    assert process.returncode != 0
    assert said.count("go on with: python train.py --resume run") == 1
    assert state_of(out)["step"] == logged(out)[-1]["step"] >= 3
