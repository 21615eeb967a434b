import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from nanotir.answers import equivalent
from nanotir.answers.worker import own_worker

SLOW = "\\sin(10^{10^{8}})"  # needs a hundred million digits of pi
TOWER = ("3\\cdot 2^{1000003}", "2^{1000003}\\cdot 3")  # equal, and slow enough for the worker

# What the programs below begin with.
BEGIN = f"""
import os, threading, time
from nanotir.answers import equivalent
from nanotir.answers.worker import own_worker
assert equivalent(*{TOWER!r})
worker = own_worker(os.getpid())
print(worker.process.pid, flush=True)
"""


@pytest.fixture
def worker():
    own_worker.cache_clear()
    yield own_worker(os.getpid())
    own_worker.cache_clear()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def gone(pid: int, seconds: float) -> bool:
    """Whether a process ends in time."""
    give_up = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < give_up:
        time.sleep(0.05)
    return not alive(pid)


def pid_printed_by(code: str) -> int:
    command = [sys.executable, "-c", BEGIN + code]
    return int(subprocess.run(command, capture_output=True, text=True, timeout=60).stdout)


def test_cheap_pairs_start_no_process(worker):
    assert equivalent("\\sqrt{8}", "2\\sqrt2") and equivalent("x=1, x=2", "2, 1")
    assert worker.process is None


def test_the_deadline_holds_in_a_thread_and_the_next_pair_is_answered(worker):
    verdicts = []
    equivalent(*TOWER)  # starts it
    start = time.perf_counter()
    thread = threading.Thread(target=lambda: verdicts.append(equivalent(SLOW, "1", deadline=0.5)))
    thread.start()
    thread.join(20)
    assert verdicts == [False] and time.perf_counter() - start < 3
    assert equivalent(*TOWER)


def test_the_deadline_is_by_the_clock(worker):
    equivalent(*TOWER)
    pid = worker.process.pid
    os.kill(pid, signal.SIGSTOP)  # takes no time of the processor any more, and never answers
    start = time.perf_counter()
    assert not equivalent(*TOWER, deadline=0.2)
    assert time.perf_counter() - start < 3 and not alive(pid)


def test_a_worker_past_its_deadline_is_gone(worker):
    equivalent(*TOWER)
    pid = worker.process.pid
    assert not equivalent(SLOW, "1", deadline=0.2)
    assert not alive(pid) and worker.process is None


def test_a_worker_that_dies_is_replaced(worker):
    assert equivalent(*TOWER)
    worker.process.kill()
    worker.process.wait()
    assert equivalent(*TOWER)


def test_a_worker_that_nobody_holds_is_gone():
    own_worker.cache_clear()
    own_worker(os.getpid()).ask(*TOWER, 1.0)
    pid = own_worker(os.getpid()).process.pid
    own_worker.cache_clear()
    assert not alive(pid)


def test_threads_share_the_worker_and_get_their_own_verdicts(worker):
    verdicts = {}

    def ask(k):
        verdicts[k] = equivalent(f"2^{{{10**6 + k}}}", "2^{1000003}\\cdot 1", deadline=5.0)

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == {k: k == 3 for k in range(8)}


@pytest.mark.parametrize("end", ["pass", "os._exit(0)", "os.kill(os.getpid(), 9)"])
def test_no_process_outlives_ours(end):
    assert gone(pid_printed_by(end), seconds=10)


def test_a_busy_worker_whose_parent_is_killed_ends_by_itself():
    code = f"""
threading.Thread(target=equivalent, args=({SLOW!r}, "1"), daemon=True).start()
time.sleep(0.3)
os.kill(os.getpid(), 9)
"""
    assert gone(pid_printed_by(code), seconds=30)


def test_a_fork_while_a_thread_waits_for_the_worker_has_its_own():
    code = f"""
worker.lock.acquire()
child = os.fork()
if child == 0:
    own = own_worker(os.getpid())
    fine = equivalent(*{TOWER!r}) and own.process.pid != worker.process.pid
    own.stop()
    os._exit(0 if fine else 1)
worker.lock.release()
parent = worker.process.pid
assert os.waitpid(child, 0)[1] == 0
assert equivalent(*{TOWER!r}) and worker.process.pid == parent
"""
    command = [sys.executable, "-c", BEGIN + code]
    assert subprocess.run(command, capture_output=True, timeout=20).returncode == 0


def test_a_fork_that_ends_leaves_the_process_of_its_parent():
    code = f"""
child = os.fork()
if child == 0:
    raise SystemExit
parent = worker.process.pid
os.waitpid(child, 0)
assert equivalent(*{TOWER!r}) and worker.process.pid == parent
"""
    command = [sys.executable, "-c", BEGIN + code]
    assert subprocess.run(command, capture_output=True, timeout=20).returncode == 0
