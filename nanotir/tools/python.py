"""PythonTool: runs model-written Python in another process, never in ours. The client of the fork server in sandbox.py."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path

from nanotir.tools.tool import Tool, ToolResult, cut_middle

MAX_CODE_CHARS = 100_000
PROJECT = Path(__file__).parents[2]


@dataclass
class PythonConfig:
    timeout: float = 5.0  # seconds a call may take, by the clock
    memory_mb: int = 1024  # memory a call may take beyond what numpy and sympy need
    max_output_chars: int = 2000  # longer output is cut in the middle
    workers: int = 16  # calls that run at the same time; more wait

    def __post_init__(self):
        if (
            min(self.timeout, self.memory_mb, self.max_output_chars, self.workers) <= 0
            or self.workers > 256
        ):
            raise ValueError(
                "the python tool needs timeout, memory_mb, max_output_chars and workers above 0, and at most 256 workers"
            )


class ForkServer:
    """A fork server as we see it: its process, the socket on which it takes orders for workers, and sockets to those that are idle."""

    def __init__(self, warm: bool, memory_mb: int):
        self.idle: list[socket.socket] = []
        self.control, theirs = socket.socketpair()
        self.base = tempfile.mkdtemp(prefix="nanotir-")
        keep = {"PATH": os.defpath, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
        threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        command = [
            sys.executable,
            "-s",
            "-m",
            "nanotir.tools.sandbox",
            "warm" if warm else "bare",
            self.base,
            str(memory_mb),
        ]
        try:
            self.process = subprocess.Popen(
                command, env=keep | threads, cwd=PROJECT, start_new_session=True, stdin=theirs
            )
        except OSError:
            os.rmdir(self.base)
            raise
        finally:
            theirs.close()

    def worker(self) -> socket.socket:
        """A worker that nobody else talks to: one that is idle, or else a new one, as soon as its first child stands by."""
        with contextlib.suppress(IndexError):
            return self.idle.pop()
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self.control, [b"!"], [theirs.fileno()])
        if not ours.recv(1):
            raise ConnectionResetError("the fork server has ended")
        return ours

    def call(self, request: dict) -> tuple[dict, bytes, int]:
        """(how the child ended that ran the request, what it said, how many bytes are missing from its middle). ConnectionError where worker
        or server end before they can tell."""
        worker, (ours, theirs) = self.worker(), socket.socketpair()
        with ours:
            with theirs:
                socket.send_fds(worker, [str(request["timeout"]).encode()], [theirs.fileno()])
            with contextlib.suppress(
                ConnectionError
            ):  # the child is gone already: we shall be told
                ours.sendall(json.dumps(request).encode())
                ours.shutdown(socket.SHUT_WR)
            said, missing = listen(ours, 4 * request["max_output_chars"])
        if not (ending := worker.recv(1024)):
            raise ConnectionResetError("the fork server has ended")
        self.idle.append(worker)
        return json.loads(ending), said, missing

    def end(self):
        """Close it, whatever runs on it, and clean up."""
        with contextlib.suppress(OSError):  # it is dead
            self.control.shutdown(socket.SHUT_RDWR)
        self.process.wait()
        subprocess.run(
            ["rm", "-rf", self.base], check=False
        )  # where it was killed; else it has done so itself


def listen(end: socket.socket, room: int) -> tuple[bytes, int]:
    """(all that comes, or `room` bytes of it, half from either end, how many bytes are missing between)."""
    said, missing = b"", 0
    with contextlib.suppress(ConnectionError):
        while data := end.recv(1 << 18):
            said += data
            if len(said) > room:
                said, missing = said[: room // 2] + said[-room // 2 :], missing + len(said) - room
                time.sleep(0.002)  # whoever floods us waits, and not we for him
    return said, missing


class PythonTool(Tool):
    """Run a program and return what it printed, its last bare expression's value, or the last line of its traceback.

    Every call is a fresh process, with numpy and sympy in memory if it names one of them, for one without them costs less to fork. Calls that name
    the same `session` behave like the cells of one notebook: earlier cells are run again in silence, so nothing is left running between calls.
    Both fork servers start on first use and end with close(), or with our process. Settings: those of PythonConfig.
    """

    name = "python"
    deterministic = (
        True  # but for what it asks the clock or the system: every call starts from the same state
    )

    def __init__(self, **settings):
        self.config = PythonConfig(**settings)
        self.threads = self.config.workers
        self._room, self._lock = threading.Semaphore(self.config.workers), threading.Lock()
        self._servers: dict[
            bool, ForkServer
        ] = {}  # whether it has the libraries -> a server; another dict after each close()
        self._sessions: dict[
            object, tuple[list[str], float]
        ] = {}  # session -> its earlier cells, the seconds that all of them took

    def run(self, text: str, session=None) -> ToolResult:
        return self._run(self._servers, text, session)

    def submit(self, text: str, session=None) -> Future:
        return self._later(self._run, self._servers, text, session)

    def _run(self, servers: dict, text: str, session) -> ToolResult:
        if len(text) > MAX_CODE_CHARS:
            return ToolResult("The code is too long.", False, "refused")
        history, seconds = self._sessions.get(session, ([], 0.0))
        request = {"code": text, "history": history, **asdict(self.config)}
        request["timeout"] += 2 * seconds  # time to run the earlier cells again
        try:
            ending, said, missing = self._call(servers, request)
        except Exception as error:  # whatever it is, the model gets an answer
            return ToolResult(f"The sandbox has ended, or cannot start: {error}", False, "crash")
        if session is not None and ending["replayable"]:
            self._sessions[session] = (
                [*history, text],
                min(ending["seconds"], seconds + self.config.timeout),
            )
        output, truncated = cut_middle(
            said.decode("utf-8", "replace"), self.config.max_output_chars, missing
        )
        return ToolResult(
            output.rstrip("\n"),
            ending["status"] == "ok",
            ending["status"],
            ending["seconds"],
            truncated,
        )

    def _call(self, servers: dict, request: dict) -> tuple[dict, bytes, int]:
        """Where a server dies, its calls are sent once more, to another; where the tool was closed meanwhile, they are not."""
        warm = any(
            re.search("sympy|numpy", cell) for cell in [request["code"], *request["history"]]
        )
        for last in (False, True):
            with self._room:
                with self._lock:
                    if servers is not self._servers:
                        raise ConnectionAbortedError("it was closed")
                    self._start(servers)
                    server = servers[warm]
                try:
                    return server.call(request)
                except ConnectionError:
                    with self._lock:
                        if servers.get(warm) is server:
                            del servers[warm]
                    server.end()
                    if last:
                        raise

    def _start(self, servers: dict):
        """Start what is missing of the two servers, side by side, each with a worker that waits for the first call."""
        missing = {
            warm: ForkServer(warm, self.config.memory_mb)
            for warm in (False, True)
            if warm not in servers
        }
        try:
            for server in missing.values():
                server.idle.append(server.worker())
        except BaseException:
            for server in missing.values():
                server.end()
            raise
        servers |= missing

    def end_session(self, session):
        self._sessions.pop(session, None)

    def close(self):
        with self._lock:
            servers, self._servers = list(self._servers.values()), {}
        for server in servers:
            server.end()
        super().close()
