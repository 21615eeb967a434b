"""PythonTool: runs model-written Python in another process, never in ours. The client of the fork server in sandbox.py."""
from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
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
        if min(self.timeout, self.memory_mb, self.max_output_chars, self.workers) <= 0:
            raise ValueError("the python tool needs timeout, memory_mb, max_output_chars and workers above 0")


@dataclass
class Waiting:
    """A call that has been sent and not answered."""

    request: dict
    session: object
    future: Future
    sent_again: bool = False


class Connection:
    """One fork server as we see it: its process, its folder, our end of the socket, and the calls that it has still to answer."""

    def __init__(self, workers: int):
        self.pending: dict[int, Waiting] = {}
        self.closing = False
        self.base = tempfile.mkdtemp(prefix="nanotir-")
        self.socket, theirs = socket.socketpair()
        keep = {"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": self.base, "TMPDIR": self.base, "PYTHONHASHSEED": "0", "PYTHONPATH": PROJECT}
        threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        command = [sys.executable, "-s", "-B", "-m", "nanotir.tools.sandbox", self.base, str(workers)]
        try:
            self.process = subprocess.Popen(command, env=keep | threads, cwd=self.base, start_new_session=True, stdin=theirs)
        except OSError:
            self.socket.close()
            os.rmdir(self.base)
            raise
        finally:
            theirs.close()

    def send(self, call: Waiting):
        self.pending[call.request["id"]] = call
        with contextlib.suppress(OSError):  # the server is dying: whoever reads its replies will see it end, and send the call again
            self.socket.sendall(json.dumps(call.request).encode() + b"\n")

    def replies(self):
        """(call, reply) as they come in, until the server ends."""
        with contextlib.suppress(ConnectionError):
            for line in self.socket.makefile("rb"):
                if line.endswith(b"\n"):
                    reply = json.loads(line)
                    yield self.pending.pop(reply["id"]), reply


class PythonTool(Tool):
    """Run a program and return what it printed, its last bare expression's value, or the last line of its traceback.

    Every call is a fresh process with numpy and sympy at hand; calls that name the same `session` behave like the cells of one
    notebook: earlier cells are run again in silence, so nothing is left running between calls. The fork server starts on first use and
    ends with close(), or with our process. Settings: those of PythonConfig.
    """

    name = "python"
    deterministic = True  # every call starts from the same state, that of random and numpy.random included

    def __init__(self, **settings):
        self.config = PythonConfig(**settings)
        self._lock = threading.Lock()
        self._server: Connection | None = None
        self._sessions: dict[object, tuple[list[str], float]] = {}  # session -> its earlier cells, the seconds that all of them took
        self._ids = itertools.count()

    def run(self, text: str, session=None) -> ToolResult:
        return self.submit(text, session).result()

    def submit(self, text: str, session=None) -> Future:
        future = Future()
        future.set_running_or_notify_cancel()  # from here on nobody can cancel it
        if len(text) > MAX_CODE_CHARS:
            future.set_result(ToolResult("The code is too long.", False, "refused"))
            return future
        history, seconds = self._sessions.get(session, ([], 0.0))
        request = {"id": next(self._ids), "code": text, "history": history, **asdict(self.config)}
        request["timeout"] += 2 * seconds  # time to run the earlier cells again
        self._send(Waiting(request, session, future))
        return future

    def _send(self, call: Waiting):
        try:
            with self._lock:
                if self._server is None:
                    self._server = Connection(self.config.workers)
                    threading.Thread(target=self._receive, args=[self._server], daemon=True).start()
                self._server.send(call)
        except OSError as error:
            call.future.set_result(ToolResult(f"The sandbox cannot start: {error}", False, "crash"))

    def _receive(self, server: Connection):
        """In a thread: hand out the results of one server. Where it dies, its calls are sent once more, to another."""
        for call, reply in server.replies():
            self._answer(call, reply)
        with self._lock:
            if self._server is server:
                self._server = None
        server.process.wait()
        subprocess.run(["rm", "-rf", server.base], check=False)  # where it was killed; else it has done so itself
        for call in server.pending.values():
            if call.sent_again or server.closing:
                call.future.set_result(ToolResult("The sandbox has ended.", False, "crash"))
            else:
                call.sent_again = True
                self._send(call)

    def _answer(self, call: Waiting, reply: dict):
        if call.session is not None and reply["replayable"]:
            self._sessions[call.session] = [*call.request["history"], call.request["code"]], reply["seconds"]
        output, truncated = cut_middle(reply["head"], self.config.max_output_chars, reply["tail"], reply["lost"])
        call.future.set_result(ToolResult(output.rstrip("\n"), reply["status"] == "ok", reply["status"], reply["seconds"], truncated))

    def end_session(self, session):
        self._sessions.pop(session, None)

    def close(self):
        with self._lock:
            server, self._server = self._server, None
            if server is not None:
                server.closing = True
        if server is not None:
            server.socket.shutdown(socket.SHUT_RDWR)
            server.process.wait()
