"""What a program may not do, whoever runs it. Linux only: elsewhere most layers are missing, and the table says so."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nanotir.tools import PythonTool

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the layers are Linux's")


@pytest.fixture(scope="module")
def tool():
    with PythonTool(timeout=5.0, memory_mb=256) as tool:
        yield tool


def test_the_table_names_every_layer(layers):
    assert (
        list(layers)
        == ["namespaces", "no_new_privs", "capabilities", "Landlock", "seccomp", "limits"]
        and layers["limits"]
    )


REFUSED = {  # what a program tries, and a layer that forbids it
    "open('/etc/passwd').read()": "Landlock",
    "open('/proc/1/environ').read()": "Landlock",
    "import os\nos.listdir('/')": "Landlock",
    "import os\nos.listdir('..')": "Landlock",
    "open('/tmp/nanotir-was-here', 'w')": "Landlock",
    "open('/dev/shm/nanotir-was-here', 'w')": "Landlock",
    "import os\nos.symlink('/etc', '../link')": "Landlock",
    "import os\nos.mkfifo('/tmp/nanotir-fifo')": "Landlock",
    "import os\nos.fork()": "seccomp",
    "import os\nos.execv('/bin/true', ['true'])": "seccomp",
    "import subprocess\nsubprocess.run(['true'])": "seccomp",
    "import os\nos.posix_spawn('/bin/true', ['true'], {})": "seccomp",
    "import multiprocessing\nmultiprocessing.Process(target=print).start()": "seccomp",
    "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_STREAM)": "seccomp",
    "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM)": "seccomp",
    "import socket\nsocket.socket(socket.AF_UNIX)": "seccomp",
    "import socket\na, b = socket.socketpair(type=socket.SOCK_DGRAM)\na.sendto(b'x', '/tmp/s')": "seccomp",
    "import socket\na, b = socket.socketpair(type=socket.SOCK_DGRAM)\na.connect('/tmp/s')": "seccomp",
    "import os\nos.kill(1, 0)": "seccomp",
    "import os\nos.kill(-1, 9)": "seccomp",
    "import os\nos.killpg(0, 9)": "seccomp",
    "import os, signal\nsignal.pidfd_send_signal(os.pidfd_open(os.getpid()), 9)": "seccomp",
    "import os\nos.setsid()": "seccomp",
    "open('f', 'w').close()\nimport os\nos.chmod('f', 0o4777)": "seccomp",
    "open('f', 'w').close()\nimport os\nos.chown('f', 0, 0)": "seccomp",
    "open('f', 'w').close()\nimport os\nos.utime('f', (0, 0))": "seccomp",
    "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (99, 99))": "seccomp",
    "import os\nos.nice(-5)": "seccomp",
    "import os\nos.memfd_create('x')": "seccomp",
    "import os\nos.sched_setaffinity(1, {0})": "seccomp",
    "import fcntl, socket\nfcntl.fcntl(socket.socketpair()[0], fcntl.F_SETOWN, 1)": "seccomp",
    "import ctypes\nctypes.CDLL(None).prctl(1, 0) and (_ for _ in ()).throw(PermissionError)": "seccomp",
    "import os\nos.unshare(0x10000000) if hasattr(os, 'unshare') else (_ for _ in ()).throw(PermissionError)": "seccomp",
}


@pytest.mark.parametrize("code", REFUSED)
def test_what_is_not_allowed_is_an_error_that_the_model_can_read(tool, needs, code):
    needs(REFUSED[code])
    result = tool.run(code)
    assert result.status == "error" and re.search(
        "PermissionError|not permitted|not allowed", result.output
    )
    assert not any(
        os.path.exists(f"/{folder}/nanotir-{name}")
        for folder in ("tmp", "dev/shm")
        for name in ("was-here", "fifo")
    )


@pytest.mark.parametrize(
    "call",
    [
        "57",
        "58",
        "56, 17",
        "435, 0, 0",
        "101, 16, 1, 0, 0",
        "165, 0, 0, 0, 0, 0",
        "272, 0x10000000",
        "425, 8, 0",
        "321, 0, 0, 0",
        "59, 0, 0, 0",
        "463, 0, 0, 0, 0, 0, 0",
        "469, 0, 0, 0, 0, 0",
        "30, 0, 0, 0",
        "31, 0, 13, 0",
    ],
)
def test_a_raw_system_call_is_refused_as_well(tool, needs, call):
    """fork, vfork, clone, clone3, ptrace, mount, unshare, io_uring, bpf, execve, setxattrat, file_setattr, shmat and shmctl by number, past Python's
    own functions."""
    needs("seccomp")
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers are x86-64's")
    result = tool.run(
        f"import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nprint(libc.syscall({call}), ctypes.get_errno())"
    )
    assert result.output in ("-1 1", "-1 38")  # EPERM, or ENOSYS for clone3


def test_a_shell_through_libc_runs_nothing(tool, needs, tmp_path):
    needs("seccomp")
    assert (
        tool.run(
            f"import ctypes\nctypes.CDLL(None).system(b'touch {tmp_path}/mine /tmp/nanotir-shell')"
        ).output
        != "0"
    )
    assert not list(tmp_path.iterdir()) and not os.path.exists("/tmp/nanotir-shell")


def test_files_of_the_trainer_can_be_neither_read_changed_nor_removed(tool, needs, tmp_path):
    needs("Landlock")
    key = tmp_path / "answers.txt"
    key.write_text("the answer is 42")
    for code in (
        f"open({str(key)!r}).read()",
        f"open({str(key)!r}, 'w')",
        f"import os\nos.remove({str(key)!r})",
        f"import os\nos.rename({str(key)!r}, 'x')",
        f"import os\nos.link({str(key)!r}, 'x')",
        f"import os\nos.symlink({str(key)!r}, 'x')\nopen('x').read()",
        f"import os\nos.truncate({str(key)!r}, 0)",
    ):
        result = tool.run(code)
        assert result.status == "error" and "42" not in result.output
    assert key.read_text() == "the answer is 42" and list(tmp_path.iterdir()) == [key]


def test_nobody_can_be_reached(tool, needs):
    needs("seccomp")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.3)
        port = server.getsockname()[1]
        tool.run(f"import urllib.request\nurllib.request.urlopen('http://127.0.0.1:{port}')")
        tool.run(f"import asyncio\nasyncio.run(asyncio.open_connection('127.0.0.1', {port}))")
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize(
    "code, output",
    [
        (
            "import threading\nt = threading.Thread(target=print, args=('hi',))\nt.start()\nt.join()",
            "hi",
        ),
        (
            "from concurrent.futures import ThreadPoolExecutor\nlist(ThreadPoolExecutor(3).map(abs, [-1, -2]))",
            "[1, 2]",
        ),
        (
            "import asyncio\nasync def f():\n  await asyncio.sleep(0)\n  return 5\nasyncio.run(f())",
            "5",
        ),
        ("import tempfile\nwith tempfile.TemporaryFile() as f:\n  print(f.write(b'abc'))", "3"),
        (
            "import os\nos.mkdir('a')\nopen('a/b', 'w').write('x')\nos.rename('a/b', 'c')\nsorted(os.listdir('.'))",
            "['a', 'c']",
        ),
        ("import sqlite3\nsqlite3.connect(':memory:').execute('select 1+1').fetchone()", "(2,)"),
        (
            "import zoneinfo, decimal, statistics, fractions, itertools, json, re, csv, html\nstatistics.mean([1, 2, 3])",
            "2",
        ),
        (
            "import numpy as np\nnp.linalg.eigvalsh(np.array([[2., 1], [1, 2]])).round(6).tolist()",
            "[1.0, 3.0]",
        ),
        (
            "import signal, os\nsignal.signal(10, lambda *_: print('caught'))\nos.kill(os.getpid(), 10)",
            "caught",
        ),
        ("import os, random\nlen(os.urandom(4)), random.SystemRandom().random() < 1", "(4, True)"),
    ],
)
def test_what_honest_programs_do_still_works(tool, code, output):
    assert tool.run(code).output == output


ORDINARY = r"""
import ctypes, json, struct, sys
from concurrent.futures import wait
sys.path.insert(0, {root!r})
from nanotir.tools import PythonTool
ctypes.CDLL(None).capset(struct.pack("Ii", 0x20080522, 0), bytes(24))  # root's name without root's rights
threads = "import threading, time\nts = [threading.Thread(target=time.sleep, args=(0.2,)) for _ in range(8)]\n[t.start() for t in ts]\n'all'"
hidden = "import os\nos.mkdir('d', 0o300)\nfor i in range(7): open(f'd/{{i}}', 'wb').write(b'x' * (8 << 20))"
with PythonTool() as tool:
    print(json.dumps([
        tool.run("open({key!r}).read()").output, tool.run("import os\nos.fork()").output, tool.run("import socket\nsocket.socket()").output,
        [tool.run(hidden).status for _ in range(6)], [f.result().output for f in [tool.submit(threads) for _ in range(16)]], tool.run("6 * 7").output]))
"""


def test_an_ordinary_user_has_the_same_protection_and_no_less_room(needs, tmp_path):
    needs("Landlock", "seccomp")
    key = tmp_path / "key.txt"
    key.write_text("42")
    script = ORDINARY.format(root=str(ROOT), key=str(key))
    shown = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    read, fork, connect, hidden, threads, last = json.loads(shown.stdout)
    assert all("PermissionError" in output for output in (read, fork, connect))
    assert hidden == ["ok"] * 6 and threads == ["all"] * 16 and last == "42"
