"""PythonTool: runs programs that the model writes, each in a process of its own.

This is the trainer's side. The processes are those of sandbox.py, which explains a call's way.
A program that is stopped, crashes or leaves by itself says nothing, so the model is told here.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from nanotir.checks import Count, Range, check_settings
from nanotir.tools import cell
from nanotir.tools.tool import Tool, ToolResult, cut_middle

MAX_CODE_CHARS = 100_000
TOGETHER = 64  # trusted programs that run in one process
PROJECT = Path(__file__).parents[2]

Seconds = Annotated[float, Range(0, 86400, above=True)]
Megabytes = Annotated[int, Range(1, 2**20)]
Workers = Annotated[int, Range(1, 256)]


@dataclass
class PythonConfig:
    timeout: Seconds = 2.0  # seconds a call may take, by the clock
    memory_mb: Megabytes = 1024  # memory a call may take beyond what numpy and sympy need
    max_output_chars: Count = 2000  # longer output is cut in the middle
    workers: Workers = 16  # calls of a process that run at the same time; more wait

    def __post_init__(self):
        check_settings(self, "python")


class PythonTool(Tool):
    """Run a program and return its output, as a notebook cell does.

    The output is what the program prints and the value of its last expression, or the last line of
    a traceback. Every call runs in a new process. numpy and sympy are in its memory if the program
    names one of them. Calls that name the same `session` behave like the cells of one notebook:
    each call runs the earlier cells again in silence, so a session keeps no process alive.

    The servers start with the first call and end with close() or with this process. Settings: those
    of PythonConfig.
    """

    name = "python"
    deterministic = True  # unless a program asks for the time: calls start from the same state

    def __init__(self, **settings):
        self.config = PythonConfig(**settings)
        self.threads = self.config.workers
        self._room = threading.Semaphore(self.config.workers)
        self._lock = threading.Lock()
        # The server with the libraries is at True, the one without at False. close() replaces the
        # dict, so a call that holds the old one knows that the tool was closed meanwhile.
        self._servers: dict[bool, ForkServer] = {}
        self._sessions: dict[object, Session] = {}

    def run(self, text: str, session=None) -> ToolResult:
        return self._run(self._servers, text, self._session(session))

    def submit(self, text: str, session=None) -> Future:
        return self._later(self._run, self._servers, text, self._session(session))

    def _session(self, key) -> Session:
        """A call takes its session along: one that ends meanwhile does not come back."""
        return Session() if key is None else self._sessions.setdefault(key, Session())

    def end_session(self, session):
        self._sessions.pop(session, None)

    def close(self):
        with self._lock:
            servers = list(self._servers.values())
            self._servers = {}
        for server in servers:
            server.end()
        super().close()

    def _start_anew(self):
        super()._start_anew()
        for server in self._servers.values():
            server.leave()
        self._room = threading.Semaphore(self.config.workers)
        self._lock = threading.Lock()
        self._servers = {}
        for session in self._sessions.values():
            session.lock = threading.Lock()

    def _run(self, servers: dict, text: str, session: Session) -> ToolResult:
        if len(text) > MAX_CODE_CHARS:
            return ToolResult("The code is too long.", False, "refused")
        with session.lock:
            request = {"programs": [text], "history": session.cells, **asdict(self.config)}
            # The earlier cells need time to run again.
            request["limit"] = self.config.timeout + 2 * session.seconds
            # Whatever goes wrong here, the model gets an answer and the run goes on.
            try:
                ending, output, missing = self._call(servers, request)
            except Exception as error:
                return ToolResult(
                    f"The sandbox has ended, or cannot start: {error}", False, "crash"
                )
            # A cell that was killed or called os._exit would end every later call, too.
            if ending["code"] in (-cell.OK, -cell.ERROR):
                session.cells.append(text)
                session.seconds += self.config.timeout
                session.seconds = min(session.seconds, ending["seconds"])

        return self._result(ending, output.decode("utf-8", "replace"), missing)

    def _result(self, ending: dict, shown: str, missing: int = 0) -> ToolResult:
        shown, truncated = cut_middle(shown, self.config.max_output_chars, missing)
        shown = shown.rstrip("\n")
        if said := last_words(ending, shown, self.config):
            shown = f"{shown}\n{said}".lstrip("\n")
        status = ending["status"]
        return ToolResult(shown, status == "ok", status, ending["seconds"], truncated)

    def run_all(self, texts: list[str]) -> Iterator[ToolResult]:
        """As run(), for programs that are trusted: TOGETHER of them share a process.

        They share what libraries remember, and they could find each other's output.
        """
        groups = [texts[i : i + TOGETHER] for i in range(0, len(texts), TOGETHER)]
        futures = [self._later(self._run_together, self._servers, group) for group in groups]
        return (result for future in futures for result in future.result())

    def _run_together(self, servers: dict, texts: list[str]) -> list[ToolResult]:
        """The results of programs in one process; or each in its own, if one ends the process."""
        mark = os.urandom(16).hex()
        request = {"programs": texts, "mark": mark, "history": [], **asdict(self.config)}
        request["limit"] = self.config.timeout
        with contextlib.suppress(Exception):
            ending, output, missing = self._call(servers, request)
            shown = re.split(f"{mark}(\\d+);", output.decode("utf-8", "replace"))
            codes = [*map(int, shown[1::2]), -ending["code"]]
            status = {cell.OK: "ok", cell.ERROR: "error"}
            if len(codes) == len(texts) and status.keys() >= set(codes) and not missing:
                seconds = ending["seconds"] / len(texts)
                endings = [{"status": status[c], "code": -c, "seconds": seconds} for c in codes]
                return list(map(self._result, endings, shown[::2]))
        return [self._run(servers, text, Session()) for text in texts]

    def _call(self, servers: dict, request: dict) -> tuple[dict, bytes, int]:
        """Send the request to a server; if that one dies, once more, to a new one."""
        code = "\n".join([*request["history"], *request["programs"]])
        warm = re.search("sympy|numpy", code) is not None
        for last_attempt in (False, True):
            with self._room:
                server = self._server(servers, warm)
                try:
                    return server.call(request)
                except ConnectionError:
                    # Another thread may have replaced it already.
                    with self._lock:
                        if servers.get(warm) is server:
                            del servers[warm]
                    server.end()
                    if last_attempt:
                        raise

    def _server(self, servers: dict, warm: bool) -> ForkServer:
        """A server of this kind. Missing servers start side by side, with one worker each."""
        with self._lock:
            if servers is not self._servers:
                raise ConnectionAbortedError("it was closed")
            missing = [kind for kind in (False, True) if kind not in servers]
            started = {}
            for kind in missing:
                arguments = ["nanotir.tools.sandbox", "warm" if kind else "bare"]
                started[kind] = ForkServer(arguments, self.config.memory_mb)
            try:
                for server in started.values():
                    server.idle.append(server.worker())
            except BaseException:
                for server in started.values():
                    server.end()
                raise
            servers |= started
            return servers[warm]


@dataclass
class Session:
    """The cells of a session so far, and the seconds that all of them took."""

    cells: list[str] = field(default_factory=list)
    seconds: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)  # one cell runs after the other


def last_words(ending: dict, shown: str, config: PythonConfig) -> str:
    """The line that tells the model how a program ended that could not say so itself, or ""."""
    status, code = ending["status"], ending["code"]
    if status == "timeout":
        return f"TimeoutError: no answer within {config.timeout:g} s"
    if status == "crash":
        return f"Crash: {signal.strsignal(-code) or 'signal'} ({-code})"
    if code >= 0:
        return f"SystemExit: the program has ended itself with code {code}"
    if status == "memory" and not shown:
        return "MemoryError"
    if status == "error" and not shown:
        return "Error: the program failed and had closed its output"
    return ""


class ForkServer:
    """A fork server: its process, the socket to order workers by, and sockets to idle workers."""

    def __init__(self, arguments: list[str], memory_mb: int, project: Path = PROJECT):
        """Run `python -m ARGUMENTS FOLDER MEMORY_MB` in the folder of a project."""
        self.idle: list[socket.socket] = []
        self.control, theirs = socket.socketpair()
        self.base = tempfile.mkdtemp(prefix="nanotir-")
        # A new environment: nothing of ours reaches the model. Hashes and threads are fixed.
        environment = {"PATH": os.defpath, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
        # Each thread's own arena of memory would count as used, whole.
        environment["MALLOC_ARENA_MAX"] = "1"
        for library in ("OPENBLAS", "OMP", "MKL"):
            environment[f"{library}_NUM_THREADS"] = "1"
        command = [sys.executable, "-s", "-m", *arguments, self.base, str(memory_mb)]
        try:
            self.process = subprocess.Popen(
                command,
                env=environment,
                cwd=project,
                start_new_session=True,
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                stderr=None if sys.__stderr__ else subprocess.DEVNULL,
            )
        except OSError:
            os.rmdir(self.base)
            raise
        finally:
            theirs.close()

    def worker(self) -> socket.socket:
        """A worker that no other call uses: an idle one, or a new one once it is ready."""
        with contextlib.suppress(IndexError):
            return self.idle.pop(0)  # the others may still be removing files
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self.control, [b"!"], [theirs.fileno()])
        if not ours.recv(1):
            raise ConnectionResetError("the fork server has ended")
        return ours

    def call(self, request: dict) -> tuple[dict, bytes, int]:
        """Run a request: the worker's report, the output, the bytes missing from its middle."""
        worker = self.worker()
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                socket.send_fds(worker, [str(request["limit"]).encode()], [theirs.fileno()])
            # If the child has died already, the worker will say so.
            with contextlib.suppress(ConnectionError):
                ours.sendall(json.dumps(request).encode())
                ours.shutdown(socket.SHUT_WR)
            output, missing = listen(
                ours, 4 * request["max_output_chars"] * len(request["programs"])
            )
        ending = worker.recv(1024)
        if not ending:
            raise ConnectionResetError("the fork server has ended")
        self.idle.append(worker)
        return json.loads(ending), output, missing

    def leave(self):
        """Let go of the server in a process that does not own it."""
        for end in (self.control, *self.idle):
            end.close()

    def end(self):
        """End the server with everything that runs on it, and remove its folder."""
        with contextlib.suppress(OSError):  # it may have ended already
            self.control.shutdown(socket.SHUT_RDWR)
        self.process.wait()
        # A server that was killed could not remove its folder itself.
        subprocess.run(["rm", "-rf", self.base], check=False)


def listen(end: socket.socket, room: int) -> tuple[bytes, int]:
    """All output, or `room` bytes of its two ends; and how many bytes are missing between."""
    output = b""
    missing = 0
    with contextlib.suppress(ConnectionError):
        while data := end.recv(1 << 18):
            output += data
            if len(output) > room:
                missing += len(output) - room
                output = output[: room // 2] + output[-room // 2 :]
                time.sleep(0.002)  # a program that writes too much must not keep us busy
    return output, missing
