"""PythonTool: runs model-written Python in another process, never in ours. The client of the fork server in sandbox.py."""
from __future__ import annotations

import contextlib
import json
import os
import queue
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
PROJECT = str(Path(__file__).parents[2])


@dataclass
class PythonConfig:
    timeout: float = 5.0  # seconds a call may take, by the clock
    memory_mb: int = 1024  # memory a call may take beyond what numpy and sympy need
    max_output_chars: int = 2000  # longer output is cut in the middle
    workers: int = 16  # calls that run at the same time; more wait

    def __post_init__(self):
        if min(self.timeout, self.memory_mb, self.max_output_chars, self.workers) <= 0 or self.workers > 256:
            raise ValueError("the python tool needs timeout, memory_mb, max_output_chars and workers above 0, and at most 256 workers")


class Output:
    """What a program says: head and tail, never more of either than `cap` bytes, and how many bytes it was."""

    def __init__(self, cap: int):
        self.head, self.tail, self.written, self.cap = b"", b"", 0, cap

    def add(self, data: bytes):
        room = self.cap - len(self.head)
        self.head, self.tail = self.head + data[:room], (self.tail + data[room:])[-self.cap :]
        self.written += len(data)

    def text(self) -> tuple[str, bool]:
        """All of it, or what a model gets to read of it, and whether that is less. A cut may have gone through a character."""
        lost = self.written - len(self.head) - len(self.tail)
        head, tail = (self.head, self.tail) if lost else (self.head + self.tail, b"")
        return cut_middle(head.decode("utf-8", "ignore" if lost else "replace"), self.cap, tail.decode("utf-8", "ignore"), lost)


class ForkServer:
    """One fork server as we see it: its process, its folder, and our end of the socket that it hands us children on."""

    def __init__(self):
        self.lock = threading.Lock()
        self.control, theirs = socket.socketpair()
        self.base = tempfile.mkdtemp(prefix="nanotir-")
        keep = {"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": self.base, "TMPDIR": self.base, "PYTHONHASHSEED": "0", "PYTHONPATH": PROJECT}
        threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        command = [sys.executable, "-s", "-B", "-m", "nanotir.tools.sandbox", self.base]
        try:
            self.process = subprocess.Popen(command, env=keep | threads, cwd=self.base, start_new_session=True, stdin=theirs)
        except OSError:
            os.rmdir(self.base)
            raise
        finally:
            theirs.close()

    def call(self, request: dict) -> tuple[dict, Output]:
        """(how a child ended that was given the request, what it said). ConnectionError where the server ends before it can tell."""
        with self.lock:
            data, sockets, *_ = socket.recv_fds(self.control, 1, 2, getattr(socket, "MSG_CMSG_CLOEXEC", 0))
        if not data:
            raise ConnectionResetError("the fork server has ended")
        ends = [socket.socket(fileno=fd) for fd in sockets]
        if len(ends) < 2:
            raise OSError("too many open files")
        output, (program, server) = Output(request["max_output_chars"]), ends
        with program, server:
            with contextlib.suppress(ConnectionError):  # it is gone already: we shall be told
                server.sendall(str(request["timeout"]).encode())
                program.sendall(json.dumps(request).encode() + b"\n")
                program.shutdown(socket.SHUT_WR)
                while data := program.recv(1 << 18):
                    output.add(data)
                    if output.written > 1 << 18:
                        time.sleep(0.002)  # whoever floods us waits, and not we for him
            if ending := server.recv(1 << 16):
                return json.loads(ending), output
        raise ConnectionResetError("the fork server has ended")

    def end(self):
        """Close it, whatever runs on it, and clean up."""
        with contextlib.suppress(OSError):  # it is dead
            self.control.shutdown(socket.SHUT_RDWR)
        self.process.wait()
        subprocess.run(["rm", "-rf", self.base], check=False)  # where it was killed; else it has done so itself


class PythonTool(Tool):
    """Run a program and return what it printed, its last bare expression's value, or the last line of its traceback.

    Every call is a fresh process with numpy and sympy at hand; calls that name the same `session` behave like the cells of one
    notebook: earlier cells are run again in silence, so nothing is left running between calls. The fork server starts on first use and
    ends with close(), or with our process. Settings: those of PythonConfig.
    """

    name = "python"
    deterministic = True  # but for what it asks the clock or the system: every call starts from the same state

    def __init__(self, **settings):
        self.config = PythonConfig(**settings)
        self._lock = threading.Lock()
        self._server: ForkServer | None = None
        self._calls: queue.SimpleQueue | None = None  # those that wait for one of our threads; another one after each close()
        self._sessions: dict[object, tuple[list[str], float]] = {}  # session -> its earlier cells, the seconds that all of them took

    def run(self, text: str, session=None) -> ToolResult:
        return self.submit(text, session).result()

    def submit(self, text: str, session=None) -> Future:
        future = Future()
        future.set_running_or_notify_cancel()  # from here on nobody can cancel it
        if len(text) > MAX_CODE_CHARS:
            future.set_result(ToolResult("The code is too long.", False, "refused"))
            return future
        history, seconds = self._sessions.get(session, ([], 0.0))
        request = {"code": text, "history": history, **asdict(self.config)}
        request["timeout"] += 2 * seconds  # time to run the earlier cells again
        with self._lock:
            if self._calls is None:
                self._calls = queue.SimpleQueue()
                for _ in range(self.config.workers):  # daemons: who leaves in a hurry need not wait for them
                    threading.Thread(target=self._work, args=[self._calls], daemon=True).start()
            self._calls.put((future, request, session))
        return future

    def _work(self, calls: queue.SimpleQueue):
        while call := calls.get():
            future, request, session = call
            future.set_result(self._result(request, session, calls))

    def _result(self, request: dict, session, calls) -> ToolResult:
        try:
            ending, output = self._call(request, calls)
        except Exception as error:  # whatever it is, the model gets an answer
            return ToolResult(f"The sandbox has ended, or cannot start: {error}", False, "crash")
        if session is not None and ending["replayable"]:
            self._sessions[session] = [*request["history"], request["code"]], ending["seconds"]
        text, truncated = output.text()
        return ToolResult(text.rstrip("\n"), ending["status"] == "ok", ending["status"], ending["seconds"], truncated)

    def _call(self, request: dict, calls) -> tuple[dict, Output]:
        """Where a server dies, its calls are sent once more, to another; where it was closed, they are not."""
        for last in (False, True):
            with self._lock:
                if self._calls is not calls:
                    raise ConnectionAbortedError("it was closed")
                server = self._server = self._server or ForkServer()
            try:
                return server.call(request)
            except ConnectionError:
                self._end(server)
                if last:
                    raise

    def _end(self, server: ForkServer):
        with self._lock:
            if self._server is not server:
                return  # somebody else sees to it
            self._server = None
        server.end()

    def end_session(self, session):
        self._sessions.pop(session, None)

    def close(self):
        with self._lock:
            server, calls, self._server, self._calls = self._server, self._calls, None, None
        for _ in range(self.config.workers if calls else 0):
            calls.put(None)
        if server:
            server.end()
