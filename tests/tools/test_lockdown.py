"""What a program may not do. Linux only: elsewhere most layers are missing."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nanotir.tools import PythonTool, lockdown

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the layers are Linux's")


@pytest.fixture(scope="module")
def tool():
    with PythonTool(timeout=5.0, memory_mb=256) as tool:
        yield tool


def test_the_table_names_every_layer(layers):
    names = ["namespaces", "no_new_privs", "capabilities", "Landlock", "seccomp", "limits"]
    assert list(layers) == names
    assert layers["limits"]


# What a program tries, by the layer that forbids it.
LANDLOCK = [
    "open('/etc/passwd').read()",
    "open('/proc/1/environ').read()",
    "import os\nos.listdir('/')",
    "import os\nos.listdir('..')",
    "open('/tmp/nanotir-was-here', 'w')",
    "open('/dev/shm/nanotir-was-here', 'w')",
    "import os\nos.symlink('/etc', '../link')",
    "import os\nos.mkfifo('/tmp/nanotir-fifo')",
]
PAIR = "import socket\na, b = socket.socketpair(type=socket.SOCK_DGRAM)\n"
FILE = "import os\nopen('f', 'w').close()\n"
LIBRARY = "import decimal, fcntl, os\nfd = os.open(decimal.__file__, 0)\n"
SECCOMP = [
    "import os\nos.fork()",
    "import os\nos.execv('/bin/true', ['true'])",
    "import subprocess\nsubprocess.run(['true'])",
    "import os\nos.posix_spawn('/bin/true', ['true'], {})",
    "import multiprocessing\nmultiprocessing.Process(target=print).start()",
    "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_STREAM)",
    "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "import socket\nsocket.socket(socket.AF_UNIX)",
    PAIR + "a.sendto(b'x', '/tmp/s')",
    PAIR + "a.connect('/tmp/s')",
    PAIR + "import fcntl\nfcntl.fcntl(a, fcntl.F_SETOWN, 1)",
    "import os\nos.kill(1, 0)",
    "import os\nos.kill(-1, 9)",
    "import os\nos.killpg(0, 9)",
    "import os, signal\nsignal.pidfd_send_signal(os.pidfd_open(os.getpid()), 9)",
    "import os\nos.setsid()",
    FILE + "os.chmod('f', 0o4777)",
    FILE + "os.chown('f', 0, 0)",
    FILE + "os.utime('f', (0, 0))",
    "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (99, 99))",
    "import os\nos.nice(-5)",
    "import os\nos.memfd_create('x')",
    "import os\nos.sched_setaffinity(1, {0})",
    "import ctypes\nif ctypes.CDLL(None).prctl(1, 0): raise PermissionError",
    "import os\nif not hasattr(os, 'unshare'): raise PermissionError\nos.unshare(0x10000000)",
    LIBRARY + "fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)",
    LIBRARY + "fcntl.fcntl(fd, fcntl.F_NOTIFY, fcntl.DN_ACCESS)",
    LIBRARY + "fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)",
    LIBRARY + "fcntl.fcntl(fd, 1036, bytes(8))",  # F_SET_RW_HINT
    LIBRARY + "fcntl.ioctl(fd, 0x40087602, bytes(8))",  # FS_IOC_SETVERSION
    LIBRARY + "fcntl.ioctl(fd, 0x80086601, bytes(8))",  # FS_IOC_GETFLAGS
]
REFUSED = dict.fromkeys(LANDLOCK, "Landlock") | dict.fromkeys(SECCOMP, "seccomp")


@pytest.mark.parametrize("code", REFUSED)
def test_what_is_not_allowed_is_an_error_that_the_model_can_read(tool, needs, code):
    needs(REFUSED[code])
    result = tool.run(code)
    assert result.status == "error"
    assert re.search("PermissionError|not permitted|not allowed", result.output)
    for path in ("/tmp/nanotir-was-here", "/dev/shm/nanotir-was-here", "/tmp/nanotir-fifo"):
        assert not os.path.exists(path)


RAW_CALLS = {
    "fork": "57",
    "vfork": "58",
    "clone": "56, 17",
    "clone3": "435, 0, 0",
    "ptrace": "101, 16, 1, 0, 0",
    "mount": "165, 0, 0, 0, 0, 0",
    "unshare": "272, 0x10000000",
    "io_uring_setup": "425, 8, 0",
    "bpf": "321, 0, 0, 0",
    "execve": "59, 0, 0, 0",
    "setxattrat": "463, 0, 0, 0, 0, 0, 0",
    "file_setattr": "469, 0, 0, 0, 0, 0",
    "shmat": "30, 0, 0, 0",
    "shmctl": "31, 0, 13, 0",
    "clone a thread with its own descriptors": "56, 0x10f00 & ~0x400, 0",
    "close_range with its own descriptors": "436, 50, 60, 2",
    "inotify_init1": "294, 0",
    "inotify_add_watch": "254, 0, b'/tmp', 0xfff",
    "fanotify_init": "300, 0x200, 0",
    "statmount": "457, 0, 0, 0, 0",
    "listmount": "458, 0, 0, 0, 0",
    "syslog": "103, 3, 0, 0",
    "cachestat": "451, 0, 0, 0, 0",
}
RAW_CALL = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print(libc.syscall({call}), ctypes.get_errno())
"""


@pytest.mark.parametrize("name", RAW_CALLS)
def test_a_system_call_by_number_is_refused_as_well(tool, needs, name):
    needs("seccomp")
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers are x86-64's")
    output = tool.run(RAW_CALL.format(call=RAW_CALLS[name])).output
    assert output in ("-1 1", "-1 38")  # EPERM, or ENOSYS for clone3


def test_no_process_can_be_seen_even_without_opening_a_file(tool, needs):
    needs("namespaces")
    code = "import os\n[p for p in range(1, 5000) if os.path.exists(f'/proc/{p}')]"
    assert tool.run(code).output == "[]"


LOOK_FOR_THE_PROJECT = """
import sys
folders = [path for path in (*sys.path, *sys.path_importer_cache) if path.startswith({root!r})]
modules = [name for name in sys.modules if name.split('.')[0] == 'nano' 'tir']
print(folders, modules, sys.argv, sys.orig_argv)
import nanotir
"""


def test_a_program_finds_nothing_of_this_project_by_the_import_system(tool):
    output = tool.run(LOOK_FOR_THE_PROJECT.format(root=str(ROOT))).output
    found, error = output.splitlines()
    assert found == "[] [] [''] ['']"
    assert error == "ModuleNotFoundError: No module named 'nanotir'"


def test_only_paths_where_python_is_installed_can_be_read(monkeypatch, tmp_path):
    """A .pth file, as an editable installation leaves, puts any folder on sys.path."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    lockdown.needed.cache_clear()
    assert str(tmp_path.resolve()) not in [path for path, _ in lockdown.needed()]
    lockdown.needed.cache_clear()


THREADS = """
import ctypes, platform
libc = ctypes.CDLL(None)
memory = ctypes.create_string_buffer(1 << 20)
stacks = ctypes.addressof(memory)
libc.mmap.restype = ctypes.c_void_p
code = libc.mmap(None, ctypes.c_size_t(4096), 7, 0x22, -1, ctypes.c_long(0))
# clone(flags, stack); a new thread pauses for ever, the old one returns.
machine = bytes.fromhex("b838000000 0f05 4885c0 7401 c3 b822000000 0f05 ebf7".replace(" ", ""))
ctypes.memmove(code, machine, len(machine))
clone = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long, ctypes.c_long)(code)
count = 0
while count < 5000 and clone(0x10f00, stacks + (1 << 19)) > 0: count += 1
count
"""


def test_threads_of_a_call_are_limited_as_root_too(needs):
    needs("namespaces")
    if os.uname().machine != "x86_64" or release() < (6, 14):
        pytest.skip("a namespace of processes has its own limit from Linux 6.14 on")
    with PythonTool(timeout=2.0) as tool:
        assert int(tool.run(THREADS).output) < 1024
        assert [tool.run(str(i)).output for i in range(5)] == list("01234")


def release() -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))


def test_a_shell_through_libc_runs_nothing(tool, needs, tmp_path):
    needs("seccomp")
    touch = f"touch {tmp_path}/mine /tmp/nanotir-shell"
    assert tool.run(f"import ctypes\nctypes.CDLL(None).system(b'{touch}')").output != "0"
    assert not list(tmp_path.iterdir())
    assert not os.path.exists("/tmp/nanotir-shell")


@pytest.mark.parametrize(
    "code",
    [
        "open({key!r}).read()",
        "open({key!r}, 'w')",
        "import os\nos.remove({key!r})",
        "import os\nos.rename({key!r}, 'x')",
        "import os\nos.link({key!r}, 'x')",
        "import os\nos.symlink({key!r}, 'x')\nopen('x').read()",
        "import os\nos.truncate({key!r}, 0)",
    ],
)
def test_a_file_of_the_trainer_can_be_neither_read_changed_nor_removed(tool, needs, tmp_path, code):
    needs("Landlock")
    key = tmp_path / "answers.txt"
    key.write_text("the answer is 42")
    result = tool.run(code.format(key=str(key)))
    assert result.status == "error"
    assert "42" not in result.output
    assert key.read_text() == "the answer is 42"
    assert list(tmp_path.iterdir()) == [key]


def test_no_server_can_be_reached(tool, needs):
    needs("seccomp")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.3)
        port = server.getsockname()[1]
        tool.run(f"import urllib.request\nurllib.request.urlopen('http://127.0.0.1:{port}')")
        tool.run(f"import asyncio\nasyncio.run(asyncio.open_connection('127.0.0.1', {port}))")
        with pytest.raises(TimeoutError):
            server.accept()


THREAD = """
import threading
thread = threading.Thread(target=print, args=('hi',))
thread.start()
thread.join()
"""
POOL = """
from concurrent.futures import ThreadPoolExecutor
list(ThreadPoolExecutor(3).map(abs, [-1, -2]))
"""
SIXTEEN_THREADS = """
from concurrent.futures import ThreadPoolExecutor
sum(ThreadPoolExecutor(16).map(lambda i: len([str(j) for j in range(1000)]), range(64)))
"""
COROUTINE = """
import asyncio
async def f():
    await asyncio.sleep(0)
    return 5
asyncio.run(f())
"""
TEMPORARY_FILE = """
import tempfile
with tempfile.TemporaryFile() as file:
    print(file.write(b'abc'))
"""
FILES = """
import os
os.mkdir('a')
open('a/b', 'w').write('x')
os.rename('a/b', 'c')
sorted(os.listdir('.'))
"""
LIBRARIES = """
import zoneinfo, decimal, statistics, fractions, itertools, json, re, csv, html
statistics.mean([1, 2, 3])
"""
NUMPY = """
import numpy as np
np.linalg.eigvalsh(np.array([[2., 1], [1, 2]])).round(6).tolist()
"""
OWN_SIGNAL = """
import signal, os
signal.signal(10, lambda *_: print('caught'))
os.kill(os.getpid(), 10)
"""


@pytest.mark.parametrize(
    "code, output",
    [
        (THREAD, "hi"),
        (POOL, "[1, 2]"),
        (SIXTEEN_THREADS, "64000"),
        ("import os\nos.isatty(0), os.get_blocking(0)", "(False, True)"),
        ("import os\nos.closerange(50, 60)", ""),
        (COROUTINE, "5"),
        (TEMPORARY_FILE, "3"),
        (FILES, "['a', 'c']"),
        ("import sqlite3\nsqlite3.connect(':memory:').execute('select 1+1').fetchone()", "(2,)"),
        (LIBRARIES, "2"),
        (NUMPY, "[1.0, 3.0]"),
        (OWN_SIGNAL, "caught"),
        ("import os, random\nlen(os.urandom(4)), random.SystemRandom().random() < 1", "(4, True)"),
    ],
)
def test_what_honest_programs_do_still_works(tool, code, output):
    assert tool.run(code).output == output


# A trainer that is root by name but has none of root's capabilities.
ORDINARY = r"""
import ctypes, json, struct, sys
sys.path.insert(0, {root!r})
from nanotir.tools import PythonTool, lockdown
ctypes.CDLL(None).capset(struct.pack("Ii", 0x20080522, 0), bytes(24))

threads = '''
import threading, time
threads = [threading.Thread(target=time.sleep, args=(0.2,)) for _ in range(8)]
for thread in threads: thread.start()
'all'
'''
hidden = '''
import os
os.mkdir('d', 0o300)
for i in range(7): open(f'd/{{i}}', 'wb').write(b'x' * (8 << 20))
'''
with PythonTool() as tool:
    codes = ["open({key!r}).read()", "import os\nos.fork()", "import socket\nsocket.socket()"]
    refused = [tool.run(code).output for code in codes]
    hidden = [tool.run(hidden).status for _ in range(6)]
    futures = [tool.submit(threads) for _ in range(16)]
    threads = [future.result().output for future in futures]
    print(json.dumps([refused, hidden, threads, tool.run("6 * 7").output]))
"""


def test_an_ordinary_user_has_the_same_protection_and_no_less_room(needs, tmp_path):
    needs("Landlock", "seccomp")
    key = tmp_path / "key.txt"
    key.write_text("42")
    command = [sys.executable, "-c", ORDINARY.format(root=str(ROOT), key=str(key))]
    trainer = subprocess.run(command, capture_output=True, timeout=120)
    refused, hidden, threads, last = json.loads(trainer.stdout)
    assert all("PermissionError" in output for output in refused)
    assert hidden == ["ok"] * 6
    assert threads == ["all"] * 16
    assert last == "42"
