"""How a run ends: by a signal, by a second writer, or because the disk is full."""

import os
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import small_model

from nanotir import run, run_files
from nanotir.config import RunConfig
from nanotir.run import Run, Stopped
from nanotir.trajectory import Format


def contents(folder) -> dict:
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def saved_step(run: Run) -> int:
    return torch.load(run.out / "checkpoint" / "state.pt", weights_only=True)["step"]


@pytest.fixture(autouse=True)
def hangup():
    """SIGHUP as in a terminal, also if the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def small(tokenizer, tmp_path):
    """A run of which nothing but the start is saved."""
    model = small_model(len(tokenizer))
    return Run(tmp_path / "run", RunConfig(), model, tokenizer, Format(), [], [], []).create()


def another(run: Run) -> Run:
    """The same run, as another process would open it."""
    return Run(run.out, run.config, run.model, run.tokenizer, run.format, [], [], [])


def test_a_folder_that_is_being_written_to_is_left_alone(small):
    small.log({"phase": "sft", "step": 1})
    before = contents(small.out)
    with pytest.raises(ValueError, match="another process is writing to"):
        another(small).resume()
    assert contents(small.out) == before


@pytest.mark.parametrize(
    "started, told",
    [("train.py", "train.py"), ("/home/me/mine.py", "mine.py"), ("lab/__main__.py", "train.py")],
)
def test_a_run_goes_on_with_the_script_that_has_started_it(small, monkeypatch, started, told):
    monkeypatch.setattr("sys.argv", [started, "--seed", "1"])
    assert f"go on with: python {told} --resume {small.out}" in small.how_to_go_on()


def test_a_folder_with_a_blank_in_its_name_is_quoted(small):
    small.out = Path("my run")
    assert small.again.endswith("--resume 'my run'")


def test_a_folder_is_free_when_its_run_has_ended(small):
    with small:
        pass
    with another(small).resume() as second, pytest.raises(ValueError, match="another process"):
        another(second).resume()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_folder_is_free_when_its_process_was_killed(small):
    small.lock.close()
    ready, is_ready = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            small.lock = run_files.lock(small.out)
            os.write(is_ready, b"!")
            time.sleep(60)
        finally:
            os._exit(1)
    os.read(ready, 1)
    with pytest.raises(ValueError, match="another process"):
        another(small).resume()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    another(small).resume()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_a_step_saves_that_step(small, number):
    with pytest.raises(Stopped, match="stopped and saved after step 2 of sft; .*--resume"), small:
        for step in small.remaining("sft", [], 5):
            if step == 1:
                signal.raise_signal(number)
            small.finish_step(step + 1, {}, [])
    assert saved_step(small) == 2


def test_a_signal_between_two_phases_stops_at_once(small):
    with pytest.raises(Stopped, match="interrupted; the last checkpoint .* intact; .*--resume"):
        with small:
            signal.raise_signal(signal.SIGINT)
            pytest.fail("it went on")


def test_a_second_signal_stops_in_the_middle_of_a_step(small):
    with pytest.raises(Stopped, match="interrupted"), small:
        for _ in small.remaining("sft", [], 5):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("it went on")


def test_a_hangup_that_nohup_ignores_stays_ignored(small):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with small:
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert not small.stop_requested


def test_a_terminal_that_is_gone_does_not_keep_a_run_from_saving(small, monkeypatch, capfd):
    def write(text):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(run.tqdm, "write", write)
    with pytest.raises(Stopped), small:
        for step in small.remaining("sft", [], 5):
            signal.raise_signal(signal.SIGHUP)
            small.finish_step(step + 1, {}, [])
    assert saved_step(small) == 1


class Large:
    """Stands for an optimizer that has more to save than there is room for."""

    def state_dict(self):
        return {"large": torch.zeros(10**6)}


@pytest.fixture
def little_room():
    """Files may have 2 MB, as on a disk that is nearly full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * 10**6, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_without_room_for_a_checkpoint_the_last_one_stands(small, little_room):
    before = contents(small.out / "checkpoint")
    with pytest.raises(ValueError, match="File too large.*; the last checkpoint .* intact"), small:
        for step in small.remaining("sft", [], 5):
            small.finish_step(step + 1, {}, [Large()], last=True)
    assert contents(small.out / "checkpoint") == before
    assert another(small).resume().state["step"] == 0


def test_without_room_for_the_start_no_folder_is_left(small, little_room, tmp_path):
    large = another(small)
    large.out = tmp_path / "large"
    large.state["optimizers"] = []
    large.save = lambda optimizers: Run.save(large, [Large()])
    with pytest.raises(ValueError, match="cannot make the run folder '.*large': File too large"):
        large.create()
    assert not large.out.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux")
def test_a_full_disk_is_told_by_its_own_error():
    with pytest.raises(OSError, match="No space left on device"):
        run.save_state({"weights": torch.zeros(10**6)}, Path("/dev/full"))
