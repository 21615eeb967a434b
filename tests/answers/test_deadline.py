import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from nanotir.answers import equivalent, verdict

SLOW = "\\sin(10^{10^{8}})"  # needs a hundred million digits of pi
TOWER = ("3\\cdot 2^{1000003}", "2^{1000003}\\cdot 3")  # equal, but slow enough for a process

# What the programs below begin with. They print the ids of the processes that they start.
BEGIN = """
import os, subprocess, sys, threading, time
from nanotir.answers import equivalent

class Popen(subprocess.Popen):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        os.write(1, b"%d\\n" % self.pid)

subprocess.Popen = Popen
"""


@pytest.fixture
def started(monkeypatch):
    """The processes that a test starts."""
    processes = []

    class Popen(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            processes.append(self)

    monkeypatch.setattr(verdict.subprocess, "Popen", Popen)
    return processes


def gone(pid: int, seconds: float) -> bool:
    """Whether a process ends in time."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def run(code: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", BEGIN + code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_cheap_pairs_start_no_process(started):
    assert equivalent("\\sqrt{8}", "2\\sqrt2") and equivalent("x=1, x=2", "2, 1")
    assert started == []


def test_a_slow_pair_is_compared_in_a_process_that_ends(started):
    assert equivalent(*TOWER)
    assert not equivalent(TOWER[0], TOWER[1] + "+1")
    assert len(started) == 2 and all(gone(process.pid, 5) for process in started)


def test_the_process_finds_this_package_wherever_python_looks(monkeypatch):
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    assert equivalent(*TOWER)


def test_the_deadline_holds_in_a_thread_and_the_next_pair_is_answered(started):
    verdicts = []
    thread = threading.Thread(target=lambda: verdicts.append(equivalent(SLOW, "1", deadline=0.5)))
    thread.start()
    thread.join(30)
    assert verdicts == [False] and gone(started[0].pid, 5)
    assert equivalent(*TOWER)


def test_the_deadline_is_by_the_clock(monkeypatch):
    class Stopped(subprocess.Popen):
        """Takes no time of the processor after its start, and never answers."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.first = self.stdout
            self.stdout = self

        def read(self, n):
            byte = self.first.read(n)
            os.kill(self.pid, signal.SIGSTOP)
            return byte

        def fileno(self):
            return self.first.fileno()

        def close(self):
            self.first.close()

    monkeypatch.setattr(verdict.subprocess, "Popen", Stopped)
    start = time.perf_counter()
    assert not equivalent(*TOWER, deadline=0.2)
    assert time.perf_counter() - start < 10


def test_a_process_that_dies_says_different(monkeypatch):
    monkeypatch.setattr(verdict, "SERVE", "import os; os.write(1, b'?')")
    assert not equivalent(*TOWER)
    monkeypatch.setattr(verdict, "SERVE", "raise SystemExit")
    assert not equivalent(*TOWER)


def test_threads_get_their_own_verdicts():
    verdicts = {}

    def ask(k):
        verdicts[k] = equivalent(f"2^{{{10**6 + k}}}", "2^{1000003}\\cdot 1", deadline=20.0)

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == {k: k == 3 for k in range(8)}


@pytest.mark.parametrize("end", ["pass", "os._exit(0)", "os.kill(os.getpid(), 9)"])
def test_no_process_outlives_ours(end):
    assert gone(int(run(f"equivalent(*{TOWER!r})\n" + end).stdout), seconds=10)


def test_a_busy_process_whose_parent_is_killed_ends_by_itself():
    code = f"""
threading.Thread(target=equivalent, args=({SLOW!r}, "1"), daemon=True).start()
time.sleep(1)
os.kill(os.getpid(), 9)
"""
    assert gone(int(run(code).stdout), seconds=60)


def test_a_fork_compares_slow_pairs_too():
    code = f"""
child = os.fork()
if child == 0:
    os._exit(0 if equivalent(*{TOWER!r}) else 1)
assert os.waitpid(child, 0)[1] == 0 and equivalent(*{TOWER!r})
"""
    assert run(code).returncode == 0


@pytest.mark.parametrize(
    "begin, end",
    [("x^{", "}"), ("(", "!)"), ("\\tanh(", ")"), ("\\log(1+", ")"), ("\\sqrt{x+", "}"), ("½", "")],
)
def test_what_is_not_left_to_a_process_takes_little_time(monkeypatch, begin, end):
    monkeypatch.setattr(verdict, "decide_in_time", lambda *pair: False)
    text = begin * 25 + "x" + end * 25
    start = time.process_time()
    equivalent(text + "+0", text)
    assert time.process_time() - start < 1


def test_a_long_text_is_read_in_the_process(monkeypatch):
    read = []
    monkeypatch.setattr(verdict, "decide_in_time", lambda *pair: read.append(pair))
    equivalent("½" * 1900, "7")
    equivalent("7", "½" * 1900)
    assert len(read) == 2
