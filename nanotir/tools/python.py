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

from nanotir.tools import sandbox
from nanotir.tools.tool import Tool, ToolResult, cut_middle

MAX_CODE_CHARS = 100_000


@dataclass
class PythonConfig:
    timeout: float = 5.0  # seconds a call may take, by the clock
    memory_mb: int = 1024  # memory a call may take beyond what numpy and sympy need
    max_output_chars: int = 2000  # longer output is cut in the middle
    workers: int = 16  # calls that run at the same time; more wait

    def __post_init__(self):
        if min(self.timeout, self.memory_mb, self.max_output_chars, self.workers) <= 0:
            raise ValueError("the python tool needs timeout, memory_mb, max_output_chars and workers above 0")


class PythonTool(Tool):
    """Run a program and return what it printed, its last bare expression's value, or the last line of its traceback.

    Every call is a fresh process with numpy and sympy at hand; calls that name the same `session` behave like the cells of one
    notebook. The fork server starts on first use and ends with close(), or with our process. Settings: those of PythonConfig.
    """

    name = "python"

    def __init__(self, **settings):
        self.config = PythonConfig(**settings)
        self._lock = threading.Lock()
        self._server = None
        self._sessions: dict[object, list[str]] = {}  # session -> its earlier cells
        self._ids = itertools.count()

    def run(self, text: str, session=None) -> ToolResult:
        return self.submit(text, session).result()

    def submit(self, text: str, session=None) -> Future:
        future = Future()
        if not text.strip() or len(text) > MAX_CODE_CHARS:
            future.set_result(ToolResult("No code to run." if not text.strip() else "The code is too long.", False, "refused"))
            return future
        with self._lock:
            if self._server is None or self._server.poll() is not None:
                self._start()
            history = self._sessions.get(session, [])
            request = {"id": next(self._ids), "code": text, "history": history, **asdict(self.config)}
            try:
                self._send(request, future, session)
            except OSError:  # the server is dying: once more, with another, unless the call has been answered as a crash already
                unanswered = self._pending
                self._server.kill()
                self._server.wait()
                self._start()
                if unanswered.pop(request["id"], None):
                    self._send(request, future, session)
        return future

    def _send(self, request, future, session):
        self._pending[request["id"]] = future, session, request["code"]
        self._socket.sendall(json.dumps(request).encode() + b"\n")

    def _answer(self, waiting, result: ToolResult):
        future, session, cell = waiting
        if session is not None and result.status in ("ok", "error"):  # a cell that was killed would only be killed again
            self._sessions[session] = [*self._sessions.get(session, []), cell]
        future.set_result(result)

    def end_session(self, session):
        self._sessions.pop(session, None)

    def _start(self):
        self._base = tempfile.mkdtemp(prefix="nanotir-")
        self._socket, theirs = socket.socketpair()
        keep = {"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": self._base, "TMPDIR": self._base, "PYTHONHASHSEED": "0"}
        threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        command = [sys.executable, "-s", "-B", sandbox.__file__, str(theirs.fileno()), self._base, str(self.config.workers)]
        self._server = subprocess.Popen(
            command, env=keep | threads, pass_fds=[theirs.fileno()], cwd=self._base, start_new_session=True, stdin=subprocess.DEVNULL
        )
        theirs.close()
        self._pending: dict[int, tuple] = {}  # calls that this server has still to answer
        threading.Thread(target=self._receive, args=(self._socket, self._pending), daemon=True).start()

    def _receive(self, server, pending):
        with contextlib.suppress(ConnectionError):
            for line in server.makefile("rb"):
                reply = json.loads(line)
                self._answer(pending.pop(reply["id"]), self._result(reply))
        while pending:  # the server is gone: nobody may wait for ever
            self._answer(pending.popitem()[1], ToolResult("The sandbox has ended.", False, "crash"))

    def _result(self, reply) -> ToolResult:
        output, truncated = cut_middle(reply["head"], self.config.max_output_chars, reply["tail"], reply["lost"])
        return ToolResult(output.rstrip("\n"), reply["status"] == "ok", reply["status"], reply["seconds"], truncated)

    def close(self):
        if self._server is not None:
            self._socket.shutdown(socket.SHUT_RDWR)
            self._server.wait()
            self._server = None
