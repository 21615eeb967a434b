"""One call and its child: programs that fill the disk, write without end, or forge their status.

Linux only: the tests look into /proc, or need a layer of protection that only Linux has.
"""

import json
import os
import random
import resource
import sys
import time
from concurrent.futures import wait

import pytest
from conftest import SHARED
from processes import folders_of_calls, light_servers, server_of
from test_lockdown import REFUSED
from test_python import ENDINGS, STATUSES

from nanotir.tools import PythonTool, sandbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the layers are Linux's")


@pytest.fixture(scope="module")
def tool():
    with PythonTool(timeout=5.0, memory_mb=256) as tool:
        yield tool


@pytest.fixture(scope="module")
def impatient():
    with PythonTool(timeout=0.8, max_output_chars=1000) as tool:
        with light_servers():
            assert tool.run("1").ok
        yield tool


@pytest.fixture
def light():
    with light_servers():
        yield


def test_a_program_that_closes_its_output_and_goes_on_is_timed_out(impatient):
    code = "import os\nos.close(1)\nos.close(2)\nwhile True: pass"
    assert impatient.run(code).status == "timeout"


def test_endless_output_is_cut_and_does_not_hold_up_other_calls(impatient):
    flood = impatient.submit("import os\nwhile True: os.write(1, b'x' * 65536)")
    assert [impatient.run(f"{i}").output for i in range(20)] == [str(i) for i in range(20)]
    result = flood.result(timeout=30)
    assert result.status == "timeout"
    assert result.truncated and len(result.output) < 1200


def test_a_full_disk_is_an_error_and_the_next_call_has_room_again(tool, needs):
    needs("namespaces")
    result = tool.run("for i in range(10**6): open(str(i), 'wb').write(b'x' * (1 << 20))")
    assert result.status == "error" and "No space left" in result.output
    assert tool.run("open('f', 'wb').write(b'x' * (4 << 20))").output == str(4 << 20)


GREEDY = """
import os, time
try:
    for i in range(20_000): open(str(i), 'w')
except OSError as error:
    print(error.strerror, flush=True)
for i in range(LEFT): os.remove(str(i))
time.sleep(2)
"""
MODEST = """
for i in range(40): open(str(i), 'w')
i
"""


def await_full_disk(tool, left: int):
    """Wait until the file system of the calls' folders has no room for more than `left` files."""
    deadline = time.monotonic() + 10
    while os.statvfs(f"/proc/{server_of(tool)}/cwd").f_favail > left:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("left", [0, 30])
def test_a_call_that_finds_the_disk_full_waits_for_room(light, needs, left):
    needs("namespaces")
    with PythonTool(workers=2, timeout=10) as tool:
        futures = [tool.submit("import time\ntime.sleep(0.3)") for _ in range(2)]
        assert all(future.result().ok for future in futures)  # now there are two workers
        assert none_left(tool)
        first = tool.submit(GREEDY.replace("LEFT", str(left)))
        await_full_disk(tool, left)
        second = tool.submit(MODEST)
        assert not first.done()
        assert first.result(timeout=30).output == "No space left on device"
        assert second.result(timeout=30).output == "39"


def none_left(tool) -> bool:
    """Whether no folder of a call is left, once all are removed: that comes after the answer."""
    deadline = time.monotonic() + 10
    while folders_of_calls(tool) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not folders_of_calls(tool)


FILES = "for i in range(10_000): open(str(i), 'w').close()\nwhile True: pass"


def test_the_answer_does_not_wait_for_the_cleaning_up(impatient):
    started = time.monotonic()
    assert impatient.run(FILES).status in ("timeout", "error")
    assert time.monotonic() - started < 1.5
    assert none_left(impatient)


def test_a_deep_tree_of_folders_is_removed(tool):
    deep = "import os\nfor _ in range(3000):\n  os.mkdir('d')\n  os.chdir('d')"
    assert tool.run(deep).status in ("ok", "error")
    assert none_left(tool)
    code = "import os\nos.path.basename(os.getcwd()) in os.getcwd()"
    assert tool.run(code).output == "True"


OPEN_DESCRIPTORS = """
import os
for fd in range(3, 6000):
    try: print(fd, os.fstat(fd) and '')
    except OSError: pass
"""


def test_a_program_has_no_descriptor_of_ours_however_many_files_are_open(light):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 5000:
        pytest.skip("this machine allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (5000, hard))
    files = []
    try:
        for _ in range(4200):
            files.append(open(os.devnull))
        with PythonTool() as tool:
            assert tool.run(OPEN_DESCRIPTORS).output == ""
    finally:
        for file in files:
            file.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_program_has_less_priority_than_the_trainer_and_cannot_take_more(tool):
    code = "import os\nbefore = os.getpriority(os.PRIO_PROCESS, 0)\nprint(before)\nos.nice(-1)"
    result = tool.run(code)
    expected = min(19, os.getpriority(os.PRIO_PROCESS, 0) + sandbox.NICE)
    assert result.output.splitlines()[0] == str(expected)
    assert result.status == "error" and "PermissionError" in result.output


def test_a_program_cannot_forge_its_status(tool):
    forged = '{"id": 0, "status": "ok", "head": "2", "tail": "", "lost": 0, "seconds": 0}'
    result = tool.run(f"import os\nprint('''{forged}''', flush=True)\nos.abort()")
    assert result.status == "crash" and not result.ok
    assert result.output == f"{forged}\nCrash: Aborted (6)"


HOSTILE = [
    *REFUSED,
    *(code for code, _ in ENDINGS),
    "import os\nos.closerange(0, 99)",
    "raise SystemExit(3)",
    "def f(): f()\nf()",
    "'(' * 10**6",
    "print('\\x00' * 99)",
]


def test_all_hostile_programs_at_once_in_any_order_leave_a_tool_that_answers(seed=0):
    programs = list(HOSTILE)
    random.Random(seed).shuffle(programs)
    with PythonTool(timeout=1.0, memory_mb=128) as tool:
        futures = [tool.submit(code) for code in programs]
        futures += [tool.submit(f"{i} * {i}") for i in range(8)]
        assert not wait(futures, timeout=120).not_done
        assert all(future.result().status in STATUSES for future in futures)
        assert tool.run("6 * 7").output == "42"


PUBLIC = SHARED / "checks" / "hostile.jsonl"


def allowed_statuses(expected: dict) -> set[str]:
    """The statuses that a public check accepts, in the tool's own words."""
    names = {"killed": "crash", "output": "ok"}
    allowed = {names.get(name, name) for name in expected.get("status", STATUSES)}
    if "error" in allowed:
        allowed |= {"refused", "memory"}
    return allowed


@pytest.mark.skipif(not PUBLIC.exists(), reason="the public hostile programs are not here")
def test_the_public_hostile_programs_end_as_they_should_in_parallel(needs):
    needs("namespaces", "no_new_privs", "Landlock", "capabilities", "seccomp")
    cases = [json.loads(line) for line in PUBLIC.read_text().splitlines()]
    random.Random(0).shuffle(cases)
    with PythonTool(timeout=4.0, memory_mb=512, max_output_chars=8192, workers=16) as tool:
        futures = [tool.submit(case["code"]) for case in cases]
        for case, future in zip(cases, futures):
            result = future.result(timeout=120)
            # On a busy machine a program may run out of time.
            allowed = allowed_statuses(case["check"])
            if result.seconds > 4:
                allowed.add("timeout")
            assert result.status in allowed, case["id"]
            if result.status != "timeout":
                assert all(text in result.output for text in case["check"].get("has", []))
            for text in case["check"].get("lacks", []):
                assert text not in result.output, case["id"]


def test_a_cell_that_leaves_without_returning_is_not_replayed(tool):
    assert tool.run("x = 1", session="a").ok
    assert tool.run("import os\nos._exit(0)", session="a").ok
    assert tool.run("print(x + 1)", session="a").output == "2"


def test_earlier_cells_have_their_own_time(impatient):
    for _ in range(3):  # in the end, they take longer than one cell may
        assert impatient.run("import time\ntime.sleep(0.45)\n7", session="a").output == "7"


def test_the_time_for_earlier_cells_is_no_more_than_they_could_have_had(light):
    with PythonTool(timeout=0.6) as tool:
        for _ in range(2):
            assert tool.run("import time\ntime.sleep(0.5)", session="a").ok
        assert tool._sessions["a"].seconds <= 2 * 0.6


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
