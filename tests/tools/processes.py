"""Looks at the processes of a PythonTool from outside, by Linux's /proc."""

import contextlib
import os
import re
import time
from pathlib import Path
from unittest import mock

from nanotir.tools.python import ForkServer


@contextlib.contextmanager
def light_servers():
    """Servers that start meanwhile import no libraries, so they start in a tenth of the time.

    For tests of the life of servers and calls. A program can import the libraries itself.
    """
    start = ForkServer.__init__

    def start_bare(server, arguments, *rest):
        start(server, [*arguments[:-1], "bare"], *rest)

    with mock.patch.object(ForkServer, "__init__", start_bare):
        yield


def children(pid: int) -> list[int]:
    """The processes that this one has started, by any of its threads."""
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError):  # a thread that has ended
                found += map(int, (thread / "children").read_text().split())
    return found


def below(pid: int) -> list[int]:
    """The processes that descend from this one."""
    found = []
    for child in children(pid):
        found += [child, *below(child)]
    return found


def is_alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    return False


def resident_mb(pids) -> float:
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory_of(pid: int) -> bytes:
    """All memory that a process can write to: heap, stack, data. May raise PermissionError."""
    areas = []
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            area, access, *_ = line.split()
            if access.startswith("rw"):
                start, end = (int(address, 16) for address in area.split("-"))
                memory.seek(start)
                areas.append(memory.read(end - start))
    return b"".join(areas)


def server_of(tool) -> int:
    """The fork server without libraries.

    It is process 1 of its own namespace, if it has one, else the process that was started.
    """
    started = tool._servers[False].process.pid
    for pid in below(started):
        status = Path(f"/proc/{pid}/status").read_text()
        if re.search(r"NSpid:.*\t(\d+)\n", status)[1] == "1":
            return pid
    return started


def workers_and_children(tool, workers: int) -> tuple[list[int], list[int]]:
    """The server's workers and the waiting children, once each worker has one child."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        time.sleep(0.01)
        found = children(server_of(tool))
        waiting = [child for worker in found for child in children(worker)]
        others = len(below(server_of(tool))) - len(found) - len(waiting)
        if len(found) == len(waiting) == workers and not others:
            return found, waiting
    raise AssertionError(f"{len(found)} workers, {len(waiting)} children and {others} others")


def base_of(tool) -> str:
    """The path of the server's folder, which holds those of the calls."""
    return os.readlink(f"/proc/{server_of(tool)}/cwd")


def folders_of_calls(tool) -> list[str]:
    """What lies in the server's folder, as the server sees it: it may have its own mount there."""
    return os.listdir(f"/proc/{server_of(tool)}/cwd")
