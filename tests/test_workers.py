"""Workers sample what this process would, and end with it."""

import copy
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import small_model
from doubles import Spy, calling_transformer, ids_of, sampler_of

from nanotir import lora, threads, workers
from nanotir.config import RunConfig
from nanotir.tools.python import PythonConfig, PythonTool
from nanotir.trajectory import Format

QUESTIONS = [f"What is {a} * {b}?" for a in range(3) for b in range(3)]
SETTINGS = asdict(RunConfig(tools=""))


class Worker(workers.Worker):
    """One that an earlier test has left, if there is one: a new one imports PyTorch first."""

    idle = defaultdict(list)  # {policy: workers}

    def __new__(cls, policy):
        waiting = cls.idle[pickle.dumps(policy)]
        return waiting.pop() if waiting else super().__new__(cls)

    def __init__(self, policy):
        self.policy = pickle.dumps(policy)
        if not hasattr(self, "process"):
            super().__init__(policy)


@pytest.fixture(scope="module", autouse=True)
def closed_at_the_end():
    yield
    for worker in sum(Worker.idle.values(), []):
        worker.close()


@pytest.fixture
def beside(tokenizer, monkeypatch):
    """Start workers beside this process, for as long as a test runs."""
    contexts = []
    monkeypatch.setattr(workers, "Worker", Worker)

    def start(model, tools=(), settings=SETTINGS, number=1):
        threads.use_threads(1 + number)
        context = workers.beside(model, tokenizer, tools, Format(), settings)
        context.__enter__()
        contexts.append(context)

    yield start
    for worker in [worker for worker in workers._workers if isinstance(worker, Worker)]:
        if worker.process.poll() is None:
            workers._workers.remove(worker)
            Worker.idle[worker.policy].append(worker)
    for context in contexts:
        context.__exit__(None, None, None)


def rows_of(model, tokenizer, tools=(), **given):
    sampler = sampler_of(model, tokenizer, tools, max_new_tokens=24)
    return sampler.generate(QUESTIONS, 3, seed=5, **given)


def adapted(vocab_size: int):
    model = small_model(vocab_size)
    lora.adapt(model, 2)
    for name, weight in model.named_parameters():
        if name.endswith(".B"):
            torch.nn.init.normal_(weight)
    return model


MODELS = {
    "dense": small_model,
    "experts": lambda size: small_model(size, n_experts=4),
    "adapters": adapted,
    "a head of its own": lambda size: small_model(size, tie_embeddings=False),
}


@pytest.mark.parametrize("name", MODELS)
def test_workers_sample_what_one_process_does(tokenizer, beside, name):
    model = MODELS[name](len(tokenizer))
    alone = rows_of(model, tokenizer)
    beside(model, number=2)
    together = rows_of(model, tokenizer)
    assert ids_of(together) == ids_of(alone)
    for row, other in zip(together, alone):
        assert row.logps == pytest.approx(other.logps, abs=1e-4)


def test_weights_in_bf16_arrive_as_they_are(tokenizer, beside):
    model = small_model(len(tokenizer)).to(torch.bfloat16)
    alone = rows_of(model, tokenizer)
    beside(model)
    together = rows_of(model, tokenizer)
    for row, other in zip(together, alone):  # the first ids: rows share other batches
        assert row.logps[len(row.ids) - row.new_tokens] == pytest.approx(
            other.logps[len(other.ids) - other.new_tokens], abs=0.05
        )


def test_workers_sample_from_the_weights_of_now(tokenizer, beside):
    model = small_model(len(tokenizer))
    beside(model)
    before = rows_of(model, tokenizer)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    after = rows_of(model, tokenizer)
    workers.close()
    assert ids_of(after) == ids_of(rows_of(model, tokenizer)) != ids_of(before)


def test_workers_call_tools_of_their_own(tokenizer, python, beside):
    model = calling_transformer(tokenizer)
    alone = rows_of(model, tokenizer, [python])
    beside(model, [python], asdict(RunConfig(tools="python")))
    together = rows_of(model, tokenizer, [python])
    assert ids_of(together) == ids_of(alone)
    results = [[call.result.output for call in row.calls] for row in together]
    assert results == [[call.result.output for call in row.calls] for row in alone]
    assert any(map(any, results))


def test_a_workers_tool_has_the_settings_of_the_run(tokenizer, beside):
    """Here it cuts outputs to eight characters."""
    model = calling_transformer(tokenizer)
    short = PythonTool(max_output_chars=8)
    with short:
        alone = rows_of(model, tokenizer, [short])
        settings = asdict(RunConfig(tools="python", python=PythonConfig(max_output_chars=8)))
        beside(model, [short], settings)
        assert ids_of(rows_of(model, tokenizer, [short])) == ids_of(alone)


def test_workers_force_the_same_first_ids(tokenizer, beside):
    model = small_model(len(tokenizer))
    force = tokenizer.encode("The answer")
    beside(model)
    for row in rows_of(model, tokenizer, force=force):
        first = len(row.ids) - row.new_tokens
        assert row.ids[first : first + len(force)] == force


@pytest.mark.parametrize("name", ["dense", "adapters"])
def test_threads_that_generate_at_the_same_time_sample_what_one_does(tokenizer, beside, name):
    model = MODELS[name](len(tokenizer))
    alone = ids_of(rows_of(model, tokenizer))
    beside(model)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(rows_of, model, tokenizer) for _ in range(6)]
        assert all(ids_of(call.result()) == alone for call in calls)


def test_a_forked_process_does_without_workers(tokenizer, beside):
    model = small_model(len(tokenizer))
    beside(model, number=2)
    alone = ids_of(rows_of(model, tokenizer))
    pid = os.fork()
    if not pid:
        status = 1
        try:
            workers.Worker.ask = None  # calling it would be an error
            status = int(ids_of(rows_of(model, tokenizer)) != alone)
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert ids_of(rows_of(model, tokenizer)) == alone


def test_inside_another_run_no_workers_start_and_those_of_the_outer_stay(tokenizer, beside):
    model = small_model(len(tokenizer))
    beside(model)
    before = list(workers._workers)
    with workers.beside(small_model(len(tokenizer), seed=1), tokenizer, (), Format(), SETTINGS):
        assert workers._workers == before
    assert workers._workers == before


def test_a_run_that_begins_while_workers_start_does_without(tokenizer, beside, monkeypatch):
    model = small_model(len(tokenizer))
    started = []

    def other_run():
        with workers.beside(model, tokenizer, (), Format(), SETTINGS):
            pass

    class Starting:
        def __init__(self, policy):
            started.append(policy)
            with ThreadPoolExecutor(1) as pool:
                pool.submit(other_run).result(10)

        def close(self):
            pass

    monkeypatch.setattr(workers, "Worker", Starting)
    beside(model, number=2)
    assert len(started) == len(workers._workers) == 2


def test_a_worker_imports_from_paths_that_are_not_strings(tokenizer, beside, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path])
    model = small_model(len(tokenizer))
    alone = ids_of(rows_of(model, tokenizer))
    beside(model)
    assert ids_of(rows_of(model, tokenizer)) == alone


def test_the_rows_are_shared_out_among_workers(tokenizer, beside, monkeypatch):
    model = small_model(len(tokenizer))
    beside(model, number=2)
    asked = []
    ask = workers.Worker.ask

    def keep(self, sampler, part):
        asked.append(part[0])
        ask(self, sampler, part)

    monkeypatch.setattr(workers.Worker, "ask", keep)
    rows_of(model, tokenizer)
    assert [list(part) for part in asked] == [[1, 4, 7], [2, 5, 8]]


def test_a_watch_is_told_of_the_ends_of_all_rows(tokenizer, beside):
    model = small_model(len(tokenizer))
    beside(model, number=2)
    finished = []

    def watch(row, kind, ids):
        if kind == "finish":
            finished.append(row)

    rows_of(model, tokenizer, watch=watch)
    assert sorted(finished) == list(range(3 * len(QUESTIONS)))


def killed():
    """Kill the workers, so that a call that asks them fails."""
    for worker in workers._workers:
        os.kill(worker.process.pid, signal.SIGKILL)
        worker.process.wait()


def test_a_worker_outlives_a_signal_to_all_processes_of_a_run(tokenizer, beside):
    model = small_model(len(tokenizer))
    beside(model)
    before = rows_of(model, tokenizer)
    for worker in workers._workers:
        os.kill(worker.process.pid, signal.SIGTERM)
    assert ids_of(rows_of(model, tokenizer)) == ids_of(before)


def test_a_sampler_with_another_tokenizer_or_format_needs_no_workers(tokenizer, beside):
    model = small_model(len(tokenizer))
    beside(model)
    killed()
    for other in (
        sampler_of(model, copy.copy(tokenizer)),
        sampler_of(model, tokenizer, (), "text"),
    ):
        assert len(other.generate(["a", "b"])) == 2


@pytest.mark.parametrize("name", MODELS)
def test_workers_are_asked_whatever_the_model(tokenizer, python, beside, name):
    model = MODELS[name](len(tokenizer))
    beside(model, [python], asdict(RunConfig(tools="python")))
    killed()
    with pytest.raises(ValueError, match="has ended"):
        rows_of(model, tokenizer, [python])


def test_a_worker_that_has_ended_is_an_error_in_one_line(tokenizer, beside):
    model = small_model(len(tokenizer))
    beside(model)
    killed()
    with pytest.raises(ValueError, match=r"worker .* has ended \(exit code -9\): --threads 1 does"):
        rows_of(model, tokenizer)


def test_other_models_other_tools_and_a_caller_that_may_stop_need_no_workers(tokenizer, beside):
    model = small_model(len(tokenizer))
    beside(model)
    killed()
    other = small_model(len(tokenizer), seed=1)
    assert len(rows_of(other, tokenizer)) == 3 * len(QUESTIONS)
    assert len(rows_of(model, tokenizer, [Spy()])) == 3 * len(QUESTIONS)
    rows = rows_of(model, tokenizer, stop=lambda: True)
    assert {row.finish_reason for row in rows} == {"cancelled"}


def test_what_a_workers_sampler_refuses_is_refused_here(tokenizer, beside):
    model = small_model(len(tokenizer), max_seq_len=64)
    beside(model)
    sampler = sampler_of(model, tokenizer, max_new_tokens=24)
    with pytest.raises(ValueError, match="leaves no room"):
        sampler.generate(["short", "long " * 100])
    assert not workers._workers


def test_an_interrupted_call_ends_the_workers(tokenizer, beside):
    model = small_model(len(tokenizer))
    beside(model, number=2)
    processes = [worker.process for worker in workers._workers]

    def watch(row, kind, ids):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rows_of(model, tokenizer, watch=watch)
    assert [process.poll() for process in processes] == [-9, -9]


@pytest.mark.parametrize("tools, changed", [([], {"answers": "answers"}), ([Spy()], {})])
def test_a_run_with_what_only_this_process_has_samples_alone(tokenizer, beside, tools, changed):
    beside(small_model(len(tokenizer)), tools, SETTINGS | changed)
    assert not workers._workers


PARENT = """
import time, torch
from nanotir import threads, workers
from nanotir.model import ModelConfig, Transformer
from nanotir.trajectory import Format
from test_workers import SETTINGS
threads.use_threads(2)
with workers.beside(Transformer(ModelConfig()), None, (), Format(), SETTINGS):
    print(workers._workers[0].process.pid, flush=True)
    time.sleep(60)
"""


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(") ")[1][:1]
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_ends_with_a_process_that_is_killed():
    paths = os.pathsep.join(path for path in sys.path if path)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    worker = int(parent.stdout.readline())
    assert is_alive(worker)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while is_alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(worker)


def test_a_worker_with_a_model_of_another_shape_ends_instead_of_waiting(tokenizer, beside):
    beside(small_model(len(tokenizer)))
    other = small_model(len(tokenizer), d_ff=32)
    workers._serve = (other, *workers._serve[1:])
    with pytest.raises(ValueError, match="has ended"):
        rows_of(other, tokenizer)
