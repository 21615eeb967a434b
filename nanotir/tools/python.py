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
SERVER = Path(__file__).with_name("sandbox.py")


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


class PythonTool(Tool):
    """Run a program and return what it printed, its last bare expression's value, or the last line of its traceback.

    Every call is a fresh process with numpy and sympy at hand; calls that name the same `session` behave like the cells of one
    notebook: earlier cells are run again in silence, so nothing is left running between calls. The fork server starts on first use and
    ends with close(), or with our process. Settings: those of PythonConfig.
    """

    name = "python"

    def __init__(self, **settings):
        self.config = PythonConfig(**settings)
        self._lock = threading.Lock()
        self._server = self._socket = None
        self._sessions: dict[object, list[str]] = {}  # session -> its earlier cells
        self._ids = itertools.count()

    def run(self, text: str, session=None) -> ToolResult:
        return self.submit(text, session).result()

    def submit(self, text: str, session=None) -> Future:
        future = Future()
        if len(text) > MAX_CODE_CHARS:
            future.set_result(ToolResult("The code is too long.", False, "refused"))
            return future
        history = self._sessions.get(session, [])
        self._send(Waiting({"id": next(self._ids), "code": text, "history": history, **asdict(self.config)}, session, future))
        return future

    def _send(self, call: Waiting):
        with self._lock:
            if self._socket is None:
                try:
                    self._start()
                except OSError as error:
                    return self._answer(call, ToolResult(f"The sandbox cannot start: {error}", False, "crash"))
            self._pending[call.request["id"]] = call
            with contextlib.suppress(OSError):  # the server is dying: _receive will see it end, and send the call again
                self._socket.sendall(json.dumps(call.request).encode() + b"\n")

    def _start(self):
        self._base = tempfile.mkdtemp(prefix="nanotir-")
        ours, theirs = socket.socketpair()
        keep = {"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": self._base, "TMPDIR": self._base, "PYTHONHASHSEED": "0"}
        threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        command = [sys.executable, "-s", "-B", str(SERVER), str(theirs.fileno()), self._base, str(self.config.workers)]
        with theirs:
            self._server = subprocess.Popen(
                command, env=keep | threads, pass_fds=[theirs.fileno()], cwd=self._base, start_new_session=True, stdin=subprocess.DEVNULL
            )
        self._socket, self._closing, self._pending = ours, False, {}  # calls that this server has still to answer
        threading.Thread(target=self._receive, args=(ours, self._base, self._pending), daemon=True).start()

    def _receive(self, server, base, pending):
        """In a thread: hand out the results of one server. Where it dies, its calls are sent once more, to another."""
        with contextlib.suppress(ConnectionError):
            for line in server.makefile("rb"):
                if line.endswith(b"\n"):
                    reply = json.loads(line)
                    self._answer(pending.pop(reply["id"]), self._result(reply))
        with self._lock:
            if self._socket is server:
                self._socket = None
            lost = list(pending.values())
        subprocess.run(["rm", "-rf", base], check=False)  # where it was killed; else it has done so itself
        for call in lost:
            if call.sent_again or self._closing:
                self._answer(call, ToolResult("The sandbox has ended.", False, "crash"))
            else:
                call.sent_again = True
                self._send(call)

    def _result(self, reply) -> ToolResult:
        output, truncated = cut_middle(reply["head"], self.config.max_output_chars, reply["tail"], reply["lost"])
        return ToolResult(output.rstrip("\n"), reply["status"] == "ok", reply["status"], reply["seconds"], truncated)

    def _answer(self, call: Waiting, result: ToolResult):
        if call.session is not None and result.status in ("ok", "error"):  # a cell that was killed would only be killed again
            self._sessions[call.session] = [*self._sessions.get(call.session, []), call.request["code"]]
        call.future.set_result(result)

    def end_session(self, session):
        self._sessions.pop(session, None)

    def close(self):
        if self._server is not None:
            self._closing = True
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._server.wait()
            self._server = None
