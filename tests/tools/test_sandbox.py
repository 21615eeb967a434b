"""Processes that end badly, servers that die, trainers that leave: what they leave behind is nothing. Linux only: looks into /proc."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from conftest import SHARED

from nanotir.tools import STATUSES, PythonTool, sandbox
from nanotir.tools import python as client

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the layers are Linux's")


@pytest.fixture(scope="module")
def tool():
    with PythonTool(timeout=5.0, memory_mb=256) as tool:
        yield tool


@pytest.fixture(scope="module")
def impatient():
    with PythonTool(timeout=0.8, max_output_chars=1000) as tool:
        yield tool


@pytest.fixture(scope="module")
def mortal():
    """One whose servers are killed. To start both takes a second or two, to replace the one without libraries does not."""
    with PythonTool() as tool:
        yield tool


@pytest.fixture
def fresh(mortal):
    """The same with a new server, which has one worker."""
    assert mortal.run("1").ok
    mortal._servers.pop(False).end()
    assert mortal.run("1").ok
    return mortal


def test_a_program_that_closes_its_output_and_goes_on_is_timed_out(impatient):
    assert (
        impatient.run("import os\nos.close(1)\nos.close(2)\nwhile True: pass").status == "timeout"
    )


def test_a_flood_of_output_is_cut_and_does_not_hold_up_the_others(impatient):
    flood = impatient.submit("import os\nwhile True: os.write(1, b'x' * 65536)")
    assert [impatient.run(f"{i}").output for i in range(20)] == [str(i) for i in range(20)]
    result = flood.result(timeout=30)
    assert result.status == "timeout" and result.truncated and len(result.output) < 1200


def test_a_full_disk_is_an_error_and_the_next_call_has_room_again(tool, needs):
    needs("namespaces")
    result = tool.run("for i in range(10**6): open(str(i), 'wb').write(b'x' * (1 << 20))")
    assert result.status == "error" and "No space left" in result.output
    assert tool.run("open('f', 'wb').write(b'x' * (4 << 20))").output == str(4 << 20)


def at_rest(tool, workers: int) -> tuple[list[int], list[int]]:
    """The fork server's workers, and the children that stand by, once there is one to each worker and no other."""
    deadline, one_each = time.monotonic() + 10, False
    while not one_each and time.monotonic() < deadline:
        time.sleep(0.01)
        found = children(server_of(tool))
        spares = [spare for worker in found for spare in children(worker)]
        one_each = len(found) == len(spares) == len(below(server_of(tool))) - len(found) == workers
    assert one_each
    return found, spares


def base_of(tool) -> str:
    """The server's folder, which holds those of the calls."""
    return os.readlink(f"/proc/{server_of(tool)}/cwd")


def folders_of_calls(tool) -> list[str]:
    """What lies in the server's folder, as the server sees it: under namespaces it has a file system of its own there."""
    return os.listdir(f"/proc/{server_of(tool)}/cwd")


def test_a_call_that_finds_the_disk_full_waits_for_room(needs):
    needs("namespaces")
    with PythonTool(workers=2) as tool:
        assert [
            future.result().ok
            for future in [tool.submit("import time\ntime.sleep(0.3)") for _ in range(2)]
        ] == [True] * 2
        greedy = "import time\ntry:\n  for i in range(20_000): open(str(i), 'w')\nexcept OSError as error: print(error.strerror, flush=True)\ntime.sleep(0.5)"
        first = tool.submit(greedy)
        time.sleep(0.5)  # all that the file system can hold is taken
        second = tool.submit("open('mine', 'w').write('abc')")
        assert (
            first.result(timeout=30).output == "No space left on device"
            and second.result(timeout=30).output == "3"
        )


def test_a_deep_tree_of_folders_is_removed(tool):
    assert tool.run(
        "import os\nfor _ in range(3000):\n  os.mkdir('d')\n  os.chdir('d')"
    ).status in ("ok", "error")
    assert (
        folders_of_calls(tool) == []
        and tool.run("import os\nos.path.basename(os.getcwd()) in os.getcwd()").output == "True"
    )


def test_the_servers_own_descriptors_are_closed_however_many_files_the_trainer_has_open(tmp_path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 5000:
        pytest.skip("this machine allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (5000, hard))
    try:
        files = [open(os.devnull) for _ in range(4200)]
        with PythonTool() as tool:
            code = "import os\nfor fd in range(3, 6000):\n  try: print(fd, os.fstat(fd) and '')\n  except OSError: pass"
            assert tool.run(code).output == ""
    finally:
        [file.close() for file in files]
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_verdict_is_not_the_programs_to_give(tool):
    forged = '{"id": 0, "status": "ok", "head": "2", "tail": "", "lost": 0, "seconds": 0}'
    result = tool.run(f"import os\nprint('''{forged}''', flush=True)\nos.abort()")
    assert result.status == "crash" and not result.ok and result.output == forged


def everything_at_once():
    from test_lockdown import REFUSED
    from test_python import test_a_program_that_does_not_end_well_has_a_status as ends

    killers = [code for code, _ in ends.pytestmark[0].args[1]]
    return [
        *REFUSED,
        *killers,
        "import os\nos.closerange(0, 99)",
        "raise SystemExit(3)",
        "def f(): f()\nf()",
        "'(' * 10**6",
        "print('\\x00' * 99)",
    ]


def test_all_hostile_programs_at_once_in_any_order_leave_a_tool_that_answers():
    for seed in range(2):
        programs = everything_at_once()
        random.Random(seed).shuffle(programs)
        with PythonTool(timeout=1.0, memory_mb=128) as tool:
            futures = [tool.submit(code) for code in programs]
            futures += [tool.submit(f"{i} * {i}") for i in range(8)]
            assert not wait(futures, timeout=120).not_done
            assert all(future.result().status in STATUSES for future in futures)
            assert tool.run("6 * 7").output == "42"


@pytest.mark.skipif(
    not (SHARED / "checks" / "hostile.jsonl").exists(),
    reason="the public hostile programs are not here",
)
def test_the_public_hostile_programs_end_as_they_should_in_parallel(needs):
    needs("namespaces", "no_new_privs", "Landlock", "capabilities", "seccomp")
    cases = [json.loads(line) for line in open(SHARED / "checks" / "hostile.jsonl")]
    random.Random(0).shuffle(cases)
    with PythonTool(timeout=4.0, memory_mb=512, max_output_chars=8192, workers=8) as tool:
        futures = [(case, tool.submit(case["code"])) for case in cases]
        for case, future in futures:
            result, expected = future.result(timeout=120), case["check"]
            allowed = {
                {"killed": "crash", "output": "ok"}.get(name, name)
                for name in expected.get("status", STATUSES)
            }
            allowed |= {"refused", "memory", "error"} if "error" in allowed else set()
            assert result.status in allowed | ({"timeout"} if result.seconds > 4 else set()), case[
                "id"
            ]
            assert (
                all(text in result.output for text in expected.get("has", []))
                or result.status == "timeout"
            ), case["id"]
            assert not any(text in result.output for text in expected.get("lacks", [])), case["id"]


def children(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError):  # a thread that has ended
                found += map(int, (thread / "children").read_text().split())
    return found


def below(pid: int) -> list[int]:
    """The processes that descend from one."""
    return [descendant for child in children(pid) for descendant in (child, *below(child))]


def resident_mb(pids) -> float:
    return (
        sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
        * os.sysconf("SC_PAGE_SIZE")
        / 2**20
    )


def test_the_first_call_starts_all_that_calls_one_by_one_will_need():
    with PythonTool() as tool:
        assert tool.run("1").ok
        processes = len(at_rest(tool, 1)[1]) and len(below(os.getpid()))
        for code in ("2", "import sympy", "import numpy", "3"):
            assert tool.run(code).ok
        time.sleep(0.3)
        assert len(below(os.getpid())) == processes


def test_500_calls_leave_no_process_no_file_no_descriptor_and_no_memory_behind():
    with PythonTool(workers=4) as tool:
        wait([tool.submit("import time\ntime.sleep(0.5)") for _ in range(4)])  # now there are four
        wait([tool.submit("open('f', 'w').write('x')\nprint('y' * 3000)") for _ in range(50)])
        server = [tool._servers[False].process.pid, server_of(tool), *at_rest(tool, 4)[0]]
        descriptors, memory = len(os.listdir("/proc/self/fd")), resident_mb(server)
        wait([tool.submit("open('f', 'w').write('x')\nprint('y' * 3000)") for _ in range(500)])
        assert at_rest(tool, 4)[0] == server[2:] and len(os.listdir("/proc/self/fd")) == descriptors
        assert resident_mb(server) - memory < 10
        base = base_of(tool)
        assert folders_of_calls(tool) == []
        assert all(len(os.listdir(f"/proc/{pid}/fd")) < 16 for pid in server)
    assert not os.path.exists(base) and not any(os.path.exists(f"/proc/{pid}") for pid in server)


def is_alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    return False


CALLER = """
import sys
sys.path.insert(0, {root!r})
from nanotir.tools import PythonTool
tool = PythonTool(timeout=60)
tool.run("1")
print(*[server.base for server in tool._servers.values()], flush=True)
tool.run("import time\\ntime.sleep(60)")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_caller_that_is_interrupted_or_killed_leaves_no_orphan_and_no_folder(number):
    caller = subprocess.Popen(
        [sys.executable, "-c", CALLER.format(root=str(ROOT))],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    bases = caller.stdout.readline().split()
    time.sleep(0.2)  # the long call is running
    offspring = below(caller.pid)
    caller.send_signal(number)
    caller.wait(timeout=30)
    deadline = time.monotonic() + 10
    alive = lambda: [pid for pid in offspring if is_alive(pid)]
    while (alive() or any(map(os.path.exists, bases))) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert offspring and not alive() and len(bases) == 2 and not any(map(os.path.exists, bases))


def server_of(tool) -> int:
    """The fork server: process 1 of its own namespace, where it has one, else the process that was started."""
    number_inside = lambda pid: re.search(
        r"NSpid:.*\t(\d+)\n", Path(f"/proc/{pid}/status").read_text()
    )[1]
    started = tool._servers[False].process.pid
    return next((pid for pid in below(started) if number_inside(pid) == "1"), started)


def test_the_calls_of_a_server_that_dies_are_sent_once_more_and_none_is_lost(fresh):
    base, futures = (
        base_of(fresh),
        [fresh.submit(f"import time\ntime.sleep(0.4)\n{i}") for i in range(12)],
    )
    time.sleep(0.1)
    os.kill(server_of(fresh), signal.SIGKILL)
    assert [future.result(timeout=60).output for future in futures] == [str(i) for i in range(12)]
    assert fresh.run("2").output == "2" and not os.path.exists(base)


def test_a_call_whose_server_dies_twice_is_a_crash(fresh):
    future, first = fresh.submit("import time\ntime.sleep(5)"), fresh._servers[False]
    time.sleep(0.1)
    os.kill(server_of(fresh), signal.SIGKILL)
    while fresh._servers.get(False) in (None, first):
        time.sleep(0.01)
    os.kill(server_of(fresh), signal.SIGKILL)
    assert future.result(timeout=60).status == "crash"
    assert fresh.run("2").output == "2"


def test_the_fork_server_whose_copy_every_child_is_never_sees_a_program_or_its_output(fresh):
    words = ["telltale variable", "telltale result", "telltale error"]
    fresh.run(f"said = '{words[0]}'", session="a")
    assert fresh.run(f"said, '{words[1]}'", session="a").output == f"('{words[0]}', '{words[1]}')"
    assert fresh.run(f"raise ValueError('{words[2]}')").status == "error"
    (worker,), (spare,) = at_rest(fresh, 1)
    for pid in (server_of(fresh), worker, spare):
        memory = memory_of(pid)
        assert b"nanotir.tools.lockdown" in memory and b"telltale" not in memory


def test_no_frame_of_a_child_holds_how_an_earlier_call_ended(fresh):
    look = "import sys\nframe, found = sys._getframe(), []\nwhile frame:\n  found += [n for n, v in frame.f_locals.items() if v == 77 or n == 'usage']\n  frame = frame.f_back\nfound"
    for _ in range(3):
        assert fresh.run("import os\nos._exit(77)").status == "error"
    assert fresh.run(look).output == "[]"


def memory_of(pid: int) -> bytes:
    """All that a process can write to: heap, stack, data."""
    areas = []
    try:
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as bytes_of:
            for area, access, *_ in (line.split() for line in maps):
                if access.startswith("rw"):
                    start, end = (int(address, 16) for address in area.split("-"))
                    bytes_of.seek(start)
                    areas.append(bytes_of.read(end - start))
    except PermissionError:
        pytest.skip("this machine forbids looking into another process")
    return b"".join(areas)


def test_a_call_whose_spare_child_was_killed_is_a_crash_and_the_next_one_is_not(fresh):
    _, (spare,) = at_rest(fresh, 1)
    os.kill(spare, signal.SIGKILL)
    assert fresh.run("2").status == "crash"
    assert fresh.run("3").output == "3"


def test_a_server_that_cannot_start_is_a_crash_and_no_exception(monkeypatch):
    monkeypatch.setattr(client.sys, "executable", "/no/such/python")
    before = set(Path(tempfile.gettempdir()).glob("nanotir-*"))
    with PythonTool() as tool:
        result = tool.run("1")
    assert result.status == "crash" and "cannot start" in result.output
    assert set(Path(tempfile.gettempdir()).glob("nanotir-*")) <= before


def test_a_call_cannot_be_cancelled_and_so_cannot_hold_up_the_others(tool):
    futures = [tool.submit("import time\ntime.sleep(0.2)\n5") for _ in range(3)]
    time.sleep(0.1)
    assert not futures[0].cancel()
    assert [future.result(timeout=30).output for future in futures] == ["5"] * 3 and tool.run(
        "6"
    ).output == "6"


def test_a_worker_that_dies_costs_its_server_and_no_call(fresh):
    (worker,), _ = at_rest(fresh, 1)
    futures = [fresh.submit(f"import time\ntime.sleep(0.4)\n{i}") for i in range(6)]
    time.sleep(0.2)
    os.kill(worker, signal.SIGKILL)
    assert [future.result(timeout=60).output for future in futures] == [str(i) for i in range(6)]


def test_whoever_is_interrupted_loses_his_call_and_its_worker_and_no_more():
    """Python handles signals in the main thread, between any two lines."""

    class Interrupt(BaseException):
        pass

    def interrupt(*_):
        raise Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with PythonTool(timeout=0.6) as tool:
            for _ in range(2):
                assert tool.run("1").ok
            descriptors = len(os.listdir("/proc/self/fd"))
            for delay in (0.0005, 0.002, 0.004, 0.1):
                signal.setitimer(signal.ITIMER_REAL, delay)
                with pytest.raises(Interrupt):
                    tool.run("while True: pass")
                    time.sleep(10)
            assert tool.run("2").output == "2"
            at_rest(tool, 1)  # once the forsaken calls have run out of time
            assert len(os.listdir("/proc/self/fd")) == descriptors
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_call_that_is_submitted_while_the_tool_is_closed_has_a_result_and_leaves_no_server():
    tool, others = PythonTool(), children(os.getpid())
    for i in (0, 4, 10):
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(tool.run, "import time\ntime.sleep(0.05)\n1") for _ in range(3)]
            time.sleep(0.01 * i)
            closings = [pool.submit(tool.close) for _ in range(2)]
            assert all(future.result(timeout=60).status in ("ok", "crash") for future in asked)
            assert all(closing.result(timeout=60) is None for closing in closings)
        tool.close()
        assert set(children(os.getpid())) <= set(others)


def test_a_trainer_that_has_too_many_files_open_gets_a_crash_and_leaks_none():
    import resource

    limits, files = resource.getrlimit(resource.RLIMIT_NOFILE), []
    with PythonTool() as tool:
        assert tool.run("1").ok
        before = len(os.listdir("/proc/self/fd"))
        try:
            resource.setrlimit(
                resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 8, limits[1])
            )
            with contextlib.suppress(OSError):
                while True:
                    files.append(open(os.devnull))
            assert tool.run("1").status == "crash"
            files.pop().close()  # room for one of the two sockets
            assert tool.run("1").status == "crash"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            [file.close() for file in files]
        assert tool.run("2").output == "2" and len(os.listdir("/proc/self/fd")) == before


def test_closing_while_another_server_starts_and_others_wait_for_their_turn_leaves_no_server():
    tool, others = PythonTool(workers=2), children(os.getpid())
    assert tool.run("1").ok
    with ThreadPoolExecutor(7) as pool:
        asked = [
            pool.submit(tool.run, code)
            for code in ("import sympy", *["import time\ntime.sleep(30)"] * 6)
        ]
        time.sleep(0.3)
        tool.close()
        first, *rest = [future.result(timeout=60).status for future in asked]
        assert (
            first in ("ok", "crash") and rest == ["crash"] * 6
        )  # the first may get its answer before its server hears
    assert set(children(os.getpid())) <= set(others)
    assert tool.run("2").output == "2"
    tool.close()


def test_closing_ends_what_is_running_works_after_the_servers_death_and_is_not_the_end():
    tool = PythonTool()
    running = tool.submit("import time\ntime.sleep(30)")
    time.sleep(0.1)
    tool.close()
    assert tool.run("1 + 1").output == "2"
    assert running.result(timeout=30).status == "crash"
    os.kill(server_of(tool), signal.SIGKILL)
    time.sleep(0.5)
    tool.close()
    tool.close()


def test_many_threads_may_submit_while_servers_die(fresh):
    with ThreadPoolExecutor(8) as pool:
        futures = [
            pool.submit(fresh.run, f"import time\ntime.sleep(0.01)\n{i}") for i in range(120)
        ]
        time.sleep(0.15)
        os.kill(server_of(fresh), signal.SIGKILL)
        assert [future.result(timeout=60).output for future in futures] == [
            str(i) for i in range(120)
        ]


def test_a_cell_that_leaves_without_returning_is_not_replayed(tool):
    assert tool.run("x = 1", session="a").ok and tool.run("import os\nos._exit(0)", session="a").ok
    assert tool.run("print(x + 1)", session="a").output == "2"


def test_earlier_cells_have_their_own_time(impatient):
    for _ in range(3):
        assert impatient.run("import time\ntime.sleep(0.5)\n7", session="a").output == "7"


def test_the_time_that_earlier_cells_are_given_is_no_more_than_they_could_have_had():
    with PythonTool(timeout=0.6) as tool:
        assert tool.run("import time\ntime.sleep(0.5)", session="a").ok
        assert tool.run(
            "time.sleep(0.9)", session="a"
        ).ok  # its own time, and what the replay left over
        assert tool._sessions["a"][1] <= 2 * 0.6


def test_a_fork_for_which_there_is_no_room_is_tried_again_but_not_for_ever(monkeypatch):
    outcomes = [BlockingIOError(), BlockingIOError(), 7]

    def fork():
        outcome = outcomes.pop(0) if outcomes else BlockingIOError()
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    monkeypatch.setattr(sandbox.os, "fork", fork)
    monkeypatch.setattr(sandbox.time, "sleep", lambda seconds: None)
    assert sandbox.fork() == 7
    with pytest.raises(BlockingIOError):
        sandbox.fork()
