"""Servers, workers and trainers that die or close: no call is lost, and nothing is left behind.

Linux only: the tests look into /proc.
"""

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from processes import (
    base_of,
    below,
    children,
    folders_of_calls,
    is_alive,
    light_servers,
    memory_of,
    resident_mb,
    server_of,
    workers_and_children,
)

from nanotir.tools import PythonTool
from nanotir.tools import python as client

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture(scope="module", autouse=True)
def light():
    """How a server lives and dies does not depend on the libraries that it has imported."""
    with light_servers():
        yield


@pytest.fixture(scope="module")
def mortal(light):
    """A tool whose servers are killed."""
    with PythonTool() as tool:
        yield tool


@pytest.fixture
def fresh(mortal):
    """The same tool with a new server, which has one worker."""
    assert mortal.run("1").ok
    mortal._servers.pop(False).end()
    assert mortal.run("1").ok
    return mortal


def pause(seconds: float, value) -> str:
    """A program that takes some time."""
    return f"import time\ntime.sleep({seconds})\n{value}"


def submit_numbers(tool, n: int, seconds: float) -> list:
    return [tool.submit(pause(seconds, i)) for i in range(n)]


def outputs(futures) -> list[str]:
    return [future.result(timeout=60).output for future in futures]


def numbers(n: int) -> list[str]:
    return [str(i) for i in range(n)]


def descriptors() -> int:
    """How many files and sockets this process has open."""
    return len(os.listdir("/proc/self/fd"))


def test_the_first_call_starts_all_that_calls_one_by_one_will_need():
    with PythonTool() as tool:
        assert tool.run("1").ok
        workers_and_children(tool, 1)
        processes = len(below(os.getpid()))
        for code in ("2", "import sympy", "import numpy", "3"):
            assert tool.run(code).ok
        time.sleep(0.3)
        assert len(below(os.getpid())) == processes


def test_500_calls_leave_no_process_no_file_no_descriptor_and_no_memory_behind():
    code = "open('f', 'w').write('x')\nprint('y' * 3000)"
    with PythonTool(workers=4) as tool:
        wait(submit_numbers(tool, 4, seconds=0.5))  # now there are four workers
        wait([tool.submit(code) for _ in range(50)])
        workers, _ = workers_and_children(tool, 4)
        server = [tool._servers[False].process.pid, server_of(tool), *workers]
        opened = descriptors()
        memory = resident_mb(server)

        wait([tool.submit(code) for _ in range(500)])
        assert workers_and_children(tool, 4)[0] == workers
        assert descriptors() == opened
        assert resident_mb(server) - memory < 10
        assert folders_of_calls(tool) == []
        assert all(len(os.listdir(f"/proc/{pid}/fd")) < 16 for pid in server)
        base = base_of(tool)
    assert not os.path.exists(base)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in server)


TRAINER = """
import sys
sys.path.insert(0, {root!r})
from nanotir.tools import PythonTool
tool = PythonTool(timeout=60)
tool.run("1")
print(*[server.base for server in tool._servers.values()], flush=True)
tool.run("import time\\ntime.sleep(60)")
"""


SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]


@pytest.fixture(scope="module")
def trainers():
    """{signal that it will get: a trainer}. They start together, to save time."""
    command = [sys.executable, "-c", TRAINER.format(root=str(ROOT))]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with contextlib.ExitStack() as stack:
        yield {n: stack.enter_context(subprocess.Popen(command, **pipes)) for n in SIGNALS}


@pytest.mark.parametrize("number", SIGNALS)
def test_a_trainer_that_is_interrupted_or_killed_leaves_no_process_and_no_folder(trainers, number):
    trainer = trainers[number]
    bases = trainer.stdout.readline().split()
    time.sleep(0.2)  # the long call is running
    offspring = below(trainer.pid)
    trainer.send_signal(number)
    trainer.wait(timeout=30)

    def left() -> list:
        alive = [pid for pid in offspring if is_alive(pid)]
        return alive + [base for base in bases if os.path.exists(base)]

    deadline = time.monotonic() + 10
    while left() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert offspring and len(bases) == 2
    assert not left()


def test_the_calls_of_a_server_that_dies_are_sent_once_more_and_none_is_lost(fresh):
    base = base_of(fresh)
    futures = submit_numbers(fresh, 12, seconds=0.4)
    time.sleep(0.1)
    os.kill(server_of(fresh), signal.SIGKILL)
    assert outputs(futures) == numbers(12)
    assert fresh.run("2").output == "2"
    assert not os.path.exists(base)


def test_a_call_whose_server_dies_twice_is_a_crash(fresh):
    future = fresh.submit(pause(5, 1))
    first = fresh._servers[False]
    time.sleep(0.1)
    os.kill(server_of(fresh), signal.SIGKILL)
    while fresh._servers.get(False) in (None, first):
        time.sleep(0.01)
    os.kill(server_of(fresh), signal.SIGKILL)
    assert future.result(timeout=60).status == "crash"
    assert fresh.run("2").output == "2"


def test_many_threads_may_submit_while_servers_die(fresh):
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(fresh.run, pause(0.01, i)) for i in range(120)]
        time.sleep(0.15)
        os.kill(server_of(fresh), signal.SIGKILL)
        assert outputs(futures) == numbers(120)


def test_a_worker_that_dies_costs_its_server_and_no_call(fresh):
    (worker,), _ = workers_and_children(fresh, 1)
    futures = submit_numbers(fresh, 6, seconds=0.4)
    time.sleep(0.2)
    os.kill(worker, signal.SIGKILL)
    assert outputs(futures) == numbers(6)


def test_a_call_whose_waiting_child_was_killed_is_a_crash_and_the_next_one_is_not(fresh):
    _, (child,) = workers_and_children(fresh, 1)
    os.kill(child, signal.SIGKILL)
    assert fresh.run("2").status == "crash"
    assert fresh.run("3").output == "3"


def test_whatever_is_killed_at_random_no_call_hangs_and_none_has_a_wrong_answer():
    rng = random.Random(0)
    killed = set()
    others = set(below(os.getpid()))  # of the session's own tool
    with PythonTool(workers=8) as tool:
        for _ in range(6):
            calls = {tool.submit(pause(rng.random() / 5, i)): str(i) for i in range(12)}
            for _ in range(2):
                time.sleep(rng.random() / 5)
                if offspring := set(below(os.getpid())) - others:
                    victim = rng.choice(sorted(offspring))
                    killed.add(victim)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(victim, signal.SIGKILL)
            assert not wait(calls, timeout=60).not_done
            for call, expected in calls.items():
                result = call.result()
                assert result.status == "crash" or result.output == expected
        bases = [server.base for server in tool._servers.values()]
    assert killed and not set(below(os.getpid())) - others
    assert not any(os.path.exists(base) for base in bases)


MIXED = [
    ("print(6 * 7)", "ok"),
    ("1/0", "error"),
    ("open('f', 'w').write('x' * 999)", "ok"),
    ("import os\nos._exit(101)", "error"),
    ("import ctypes\nctypes.string_at(0)", "crash"),
    ("bytearray(10**11)", "memory"),
    ("import os\nos.fork()", "error"),
]


def test_many_calls_of_every_kind_leave_nothing_behind():
    with PythonTool(workers=8) as tool:
        wait(submit_numbers(tool, 8, seconds=0.5))  # now there are eight workers
        workers, _ = workers_and_children(tool, 8)
        opened = descriptors()
        calls = [(tool.submit(code), status) for code, status in MIXED * 60]
        assert [call.result(timeout=120).status for call, _ in calls] == [s for _, s in calls]
        assert workers_and_children(tool, 8)[0] == workers
        assert descriptors() == opened
        assert folders_of_calls(tool) == []


def test_a_worker_that_removes_files_is_not_asked_next_if_another_one_is_idle(fresh):
    wait(submit_numbers(fresh, 2, seconds=0.5))  # now there are two workers
    server = fresh._servers[False]
    littering = server.idle[0]
    assert fresh.run("open('f', 'w').close()").ok
    assert len(server.idle) == 2 and server.idle[-1] is littering


def test_processes_that_are_copied_into_children_never_see_a_program_or_its_output(fresh):
    fresh.run("said = 'telltale variable'", session="a")
    both = fresh.run("said, 'telltale result'", session="a").output
    assert both == "('telltale variable', 'telltale result')"
    assert fresh.run("raise ValueError('telltale error')").status == "error"
    (worker,), (child,) = workers_and_children(fresh, 1)
    for pid in (server_of(fresh), worker, child):
        try:
            memory = memory_of(pid)
        except PermissionError:
            pytest.skip("this machine forbids looking into another process")
        assert b"nanotir.tools.lockdown" in memory
        assert b"telltale" not in memory


LOOK_INTO_FRAMES = """
import sys
frame, found = sys._getframe(), []
while frame:
    found += [name for name, value in frame.f_locals.items() if value == 77 or name == 'usage']
    frame = frame.f_back
found
"""


def test_no_frame_of_a_child_holds_how_an_earlier_call_ended(fresh):
    for _ in range(3):
        assert fresh.run("import os\nos._exit(77)").status == "error"
    assert fresh.run(LOOK_INTO_FRAMES).output == "[]"


def in_a_forked_process(function) -> str:
    """What the function returns there, or "" if it has no answer within 30 seconds."""
    ours, theirs = os.pipe()
    if (child := os.fork()) == 0:
        with contextlib.suppress(BaseException):
            signal.alarm(30)
            os.write(theirs, function().encode())
        os._exit(0)
    os.close(theirs)
    with open(ours) as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return said


def test_a_process_that_forks_after_a_call_has_servers_of_its_own():
    with PythonTool() as tool:
        assert tool.submit("x = 1", session="a").result(timeout=60).ok
        servers = dict(tool._servers)
        futures = submit_numbers(tool, 4, seconds=0.8)

        def calls() -> str:
            said = [tool.run("2").output, tool.submit("3").result(timeout=20).output]
            said.append(tool.run("x", session="a").output)
            tool.close()
            return " ".join(said)

        assert in_a_forked_process(calls) == "2 3 1"
        assert outputs(futures) == numbers(4)
        assert [tool.run(str(i)).output for i in range(5)] == numbers(5)
        assert tool._servers == servers


def test_a_trainer_whose_output_is_closed_still_gets_outputs():
    code = "import sys; sys.path.insert(0, {!r})\nfrom nanotir.tools import PythonTool\n"
    code += "with PythonTool() as tool: sys.exit(tool.run('print(2)\\n3').output != '2\\n3')"
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
    command = [*closed, sys.executable, "-c", code.format(str(ROOT))]
    assert subprocess.run(command, timeout=60).returncode == 0


def test_a_server_that_cannot_start_is_a_crash_and_no_exception(tmp_path, monkeypatch):
    monkeypatch.setattr(client.sys, "executable", "/no/such/python")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with PythonTool() as tool:
        result = tool.run("1")
    assert result.status == "crash" and "cannot start" in result.output
    assert not list(tmp_path.iterdir())


def test_a_call_cannot_be_cancelled_and_so_cannot_hold_up_the_others(mortal):
    futures = [mortal.submit(pause(0.2, 5)) for _ in range(3)]
    time.sleep(0.1)
    assert not futures[0].cancel()
    assert outputs(futures) == ["5"] * 3
    assert mortal.run("6").output == "6"


class Interrupt(BaseException):
    pass


@pytest.fixture
def alarm():
    """SIGALRM raises Interrupt. Python handles signals in the main thread, between two lines."""

    def interrupt(*_):
        raise Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.signal(signal.SIGALRM, before)


def test_an_interrupted_call_costs_its_worker_and_no_more(alarm):
    with PythonTool(timeout=0.6) as tool:
        for _ in range(2):
            assert tool.run("1").ok
        opened = descriptors()
        for delay in (0.0005, 0.002, 0.004, 0.1):
            signal.setitimer(signal.ITIMER_REAL, delay)
            with pytest.raises(Interrupt):
                tool.run("while True: pass")
                time.sleep(10)
        assert tool.run("2").output == "2"
        workers_and_children(tool, 1)  # once the interrupted calls have run out of time
        assert descriptors() == opened


def test_a_trainer_with_too_many_open_files_gets_a_crash_and_leaks_none():
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = []
    with PythonTool() as tool:
        assert tool.run("1").ok
        before = descriptors()
        try:
            room = max(map(int, os.listdir("/proc/self/fd"))) + 8
            resource.setrlimit(resource.RLIMIT_NOFILE, (room, limits[1]))
            with contextlib.suppress(OSError):
                while True:
                    files.append(open(os.devnull))
            assert tool.run("1").status == "crash"
            files.pop().close()  # room for one of the two sockets
            assert tool.run("1").status == "crash"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for file in files:
                file.close()
        assert tool.run("2").output == "2"
        assert descriptors() == before


@pytest.mark.parametrize("delay", [0.0, 0.04, 0.1])
def test_calls_while_the_tool_is_closed_have_results_and_leave_no_server(delay):
    tool = PythonTool()
    others = children(os.getpid())
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(tool.run, pause(0.05, 1)) for _ in range(3)]
        time.sleep(delay)
        closings = [pool.submit(tool.close) for _ in range(2)]
        assert all(call.result(timeout=60).status in ("ok", "crash") for call in calls)
        assert all(closing.result(timeout=60) is None for closing in closings)
    tool.close()
    assert set(children(os.getpid())) <= set(others)


def test_closing_while_another_server_starts_and_calls_wait_leaves_no_server():
    tool = PythonTool(workers=2)
    others = children(os.getpid())
    assert tool.run("1").ok
    with ThreadPoolExecutor(7) as pool:
        codes = ["import sympy", *[pause(30, 1)] * 6]
        calls = [pool.submit(tool.run, code) for code in codes]
        time.sleep(0.3)
        tool.close()
        first, *rest = [call.result(timeout=60).status for call in calls]
    assert first in ("ok", "crash")  # it may be answered before its server is closed
    assert rest == ["crash"] * 6
    assert set(children(os.getpid())) <= set(others)
    assert tool.run("2").output == "2"
    tool.close()


def test_closing_ends_what_is_running_and_the_tool_can_be_used_again():
    with PythonTool() as tool:
        running = tool.submit(pause(30, 1))
        time.sleep(0.1)
        tool.close()
        assert tool.run("1 + 1").output == "2"
        assert running.result(timeout=30).status == "crash"


def test_a_tool_can_be_closed_twice_and_after_the_death_of_its_server():
    tool = PythonTool()
    assert tool.run("1").ok
    os.kill(server_of(tool), signal.SIGKILL)
    time.sleep(0.5)
    tool.close()
    tool.close()
