"""The fork server that runs model-written code: a process apart that has numpy and sympy in memory and forks a child per call.

    trainer  <--a child's two sockets--  fork server  --fork-->  child: waits for its program, locks itself down, runs it, is gone
             --------------------------the program, its output--------------------------

Importing sympy takes a quarter of a second; forking a process that has it takes a millisecond, and not even that is waited for: a spare
child stands by. The trainer itself never forks (it has threads, perhaps a GPU), and never runs a line of the model's code. The server reads
no program and no output, so a child, which is its copy, has no word of another call in memory. What a child loses before it runs anything is
in lockdown.py. What a call's verdict rests on is how the child ended and what the clock says, never on anything the child wrote.

    python -m nanotir.tools.sandbox        which layers are in force on this machine, and what each stops
"""
from __future__ import annotations

import ast
import contextlib
import ctypes
import gc
import json
import math
import os
import random
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time

from nanotir.tools.lockdown import LIBC, LINUX, filter_program, lock_down, namespaces, readable

OK, ERROR, MEMORY = 101, 102, 103  # how a child exits whose last cell returned, raised, or ran out of memory; others are the program's own


def serve(control: socket.socket, base: str):
    """Hand out children until the trainer hangs up, however it ends; then leave nothing behind."""
    namespaces(base)
    warm_up()
    filter_program(), readable()
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")  # where the machine runs out of memory, we and our children go first
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() if LINUX else 0  # address space that is in use already
    server, pid = Server(control, base), os.getpid()
    try:
        run_child(*server.loop(), size)
    except BaseException as end:
        if os.getpid() != pid:
            os._exit(ERROR)  # a child that was only just born: nothing here is its own
        for child in server.children.values():
            child.kill()
        remove(base)
        if not isinstance(end, ConnectionError):  # the trainer has hung up
            raise


def warm_up():
    """Load, once, what model code will use: a child then finds it in memory. Lazy parts of both libraries are touched here."""
    import numpy
    import numpy.fft, numpy.linalg, numpy.polynomial, numpy.random  # noqa: E401
    import sympy

    x = sympy.Symbol("x")
    sympy.solve(x**3 - 6 * x**2 + 11 * x - 6, x), sympy.solve(x**3 + x + 1, x), sympy.nsolve(x**3 - 2, 1), sympy.series(sympy.sin(x), x)
    sympy.integrate(x * sympy.sin(x), x), sympy.simplify((x**2 - 1) / (x - 1)), sympy.factorint(1001), sympy.limit(sympy.sin(x) / x, x, 0)
    sympy.Matrix([[2, 1], [1, 3]]).eigenvals(), numpy.linalg.solve(numpy.eye(2), numpy.ones(2))
    numpy.random.seed(0)
    gc.collect()
    gc.freeze()  # so that a child's garbage collector leaves our pages alone, and they stay shared
    if LINUX:
        use_huge_pages()


def use_huge_pages():
    """Move the heap to pages of 2 MB (Linux 6.1 on): a fork copies the table of pages, which is then 500 times shorter."""
    for line in open("/proc/self/maps").read().splitlines():
        ends, access, _, _, inode, *_ = line.split()
        start, end = (int(address, 16) for address in ends.split("-"))
        start, end = (start + 2**21 - 1) >> 21 << 21, end >> 21 << 21
        if access == "rw-p" and inode == "0" and start < end:
            LIBC.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), 25)  # MADV_COLLAPSE: a hint, the kernel may refuse


class Server:
    """One loop over three kinds of events: a child is put to use, a child ends or runs out of time, the trainer hangs up."""

    def __init__(self, control: socket.socket, base: str):
        self.control, self.base = control, base
        self.children: dict[int, Child] = {}  # by process id
        self.count = 0
        self.wake, wake = os.pipe()
        os.set_blocking(self.wake, False), os.set_blocking(wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler must exist for the wake-up to be written
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)

    def loop(self) -> tuple[socket.socket, str]:
        """Serve for ever. What returns is a child, with its socket and its folder."""
        while True:
            children = self.children.values()
            if not any(child.spare for child in children) and (born := self.fork()):
                return born
            first = min((child.deadline for child in children), default=math.inf)
            timeout = None if first == math.inf else max(0.0, first - time.monotonic())
            ready, _, _ = select.select([self.control, self.wake, *(child.user for child in children)], [], [], timeout)
            if self.control in ready:  # where the trainer never says a word
                raise ConnectionResetError
            if self.wake in ready:
                os.read(self.wake, 4096)
                with contextlib.suppress(ChildProcessError):  # none is left
                    while (ending := os.wait3(os.WNOHANG))[0]:
                        self.children[ending[0]].ending = ending
            for child in [child for child in children if child.user in ready]:
                child.start()
            for child in [child for child in children if not child.spare and (child.ending or child.deadline <= time.monotonic())]:
                del self.children[child.pid]
                child.report()

    def fork(self) -> tuple[socket.socket, str] | None:
        """Have a child stand by, and hand the trainer the other ends of its sockets; not where the running ones have left no room on the disk."""
        folder = os.path.join(self.base, str(self.count))
        try:
            os.makedirs(folder)  # where Landlock is missing, a call may have deleted the base
        except OSError:
            if not self.children:
                raise
            return None
        self.count += 1
        (program, channel), (verdict, user) = socket.socketpair(), socket.socketpair()
        if (pid := os.fork()) == 0:
            return channel, folder
        self.children[pid] = Child(pid, channel, user, folder)
        with program, verdict:
            socket.send_fds(self.control, [b"!"], [program.fileno(), verdict.fileno()])


class Child:
    """One process, which stands by or runs a call; its end of the channel on which it gets its program and says what it says; and a socket to
    whoever uses it, who tells how long it may take, and is told how it ended."""

    def __init__(self, pid: int, channel: socket.socket, user: socket.socket, folder: str):
        self.pid, self.channel, self.user, self.folder = pid, channel, user, folder
        self.spare, self.timeout, self.started, self.deadline = True, 0.0, math.inf, math.inf
        self.ending = None  # (pid, wait status, resources used), once it is dead

    def start(self):
        """The clock starts; where the user has hung up, it has run down already."""
        self.spare, self.timeout, self.started = False, float(self.user.recv(64) or 0), time.monotonic()
        self.deadline = self.started + self.timeout

    def kill(self):
        for kill in (os.killpg, os.kill):  # the child leads its own group, its children among it; but not in its first moments
            with contextlib.suppress(ProcessLookupError, PermissionError):  # the latter on macOS, where it has just died
                kill(self.pid, signal.SIGKILL)

    def report(self):
        """Leave nothing of it behind, and say how it ended."""
        self.kill()  # also if it is dead: its group may live on. Its number is not given out again until all others have had a turn
        timed_out = self.ending is None
        _, wait_status, usage = self.ending or os.wait4(self.pid, 0)
        remove(self.folder)
        code = os.waitstatus_to_exitcode(wait_status)
        status = "timeout" if timed_out else self.verdict(code, usage.ru_utime + usage.ru_stime)
        replayable = not timed_out and code in (OK, ERROR)  # a cell that was killed, or left, would do so again
        verdict = {"status": status, "replayable": replayable, "seconds": time.monotonic() - self.started}
        with contextlib.suppress(OSError), self.channel, self.user:  # nobody may be listening any more
            self.channel.shutdown(socket.SHUT_RDWR)  # for whoever has it: here ends what there is to read
            self.user.sendall(json.dumps(verdict).encode())

    def verdict(self, code: int, cpu_seconds: float) -> str:
        if code == -signal.SIGXCPU or (code == -signal.SIGKILL and cpu_seconds >= self.timeout):
            return "timeout"
        return "crash" if code < 0 else {OK: "ok", 0: "ok", MEMORY: "memory"}.get(code, "error")


def remove(folder: str):
    """Delete a call's folder; `rm` where it is not empty, since Python's rmtree recurses and a program can nest folders deeper."""
    try:
        os.rmdir(folder)
    except OSError:
        for command in (["/bin/chmod", "-R", "u+rwX"], ["/bin/rm", "-rf"]):  # it may have made folders that nobody may list
            subprocess.run([*command, folder], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def run_child(channel: socket.socket, folder: str, size: int):
    """In the child: wait for the request, take away what its code must not have, run it, leave without cleaning up. Never returns."""
    code = ERROR
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()  # its own process group, which the server kills as one
        os.dup2(channel.fileno(), 0)  # where the server has its own socket
        os.dup2(0, 3)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1), os.dup2(silence, 2)
        os.closerange(4, 4096)  # the sockets of the other calls
        stream = lambda fd, mode: open(fd, mode, encoding="utf-8", errors="replace", buffering=1, closefd=False)
        sys.stdin, sys.stdout, sys.stderr = stream(0, "r"), stream(1, "w"), stream(2, "w")
        request = json.loads(sys.stdin.readline())  # all there is to read; nothing at all: nobody wants us any more
        os.environ["HOME"] = os.environ["TMPDIR"] = folder
        os.chdir(folder)
        lock_down(folder, request["timeout"], size + request["memory_mb"] * 2**20)
        random.seed(0)
        names = {"__name__": "__main__"}
        for cell in request["history"]:  # an earlier cell of the session: once more, in silence
            run_cell(cell, names)
        os.dup2(3, 1), os.dup2(3, 2), os.close(3)
        code = run_cell(request["code"], names)
    finally:
        os._exit(code)


def run_cell(code: str, names: dict) -> int:
    """Run one program like a notebook cell: a last bare expression is printed. Returns how the child should exit."""
    try:
        tree = ast.parse(code)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "<code>", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "<code>", "eval"), names)
            if value is not None:
                print(value if isinstance(value, str) else repr(value))
        sys.stdout.flush()
        return OK
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code)
        sys.stdout.flush()
        return OK if stop.code in (None, 0) else ERROR
    except MemoryError:
        print("MemoryError", flush=True)
        return MEMORY
    except BaseException as error:
        import traceback

        print("".join(traceback.format_exception_only(error)).strip().splitlines()[-1], flush=True)
        return ERROR


def show_layers():
    """A table of the layers, each tried on this process, which ends with it."""
    base = tempfile.mkdtemp(prefix="nanotir-")
    apart = namespaces(base)
    if not apart:
        os.rmdir(base)
    rows = [("namespaces", apart, "the network; seeing or signalling any other process (users, processes, network and IPC apart, for the whole server)")]
    rows += lock_down(os.getcwd(), seconds=60, address_space=2**40)
    for layer, in_force, stops in rows:
        print(f"{layer:13} {'in force' if in_force else 'MISSING':9} {stops}", flush=True)


def main():
    base = sys.argv[1]
    ours = ("", base, os.getcwd(), os.environ.pop("PYTHONPATH"))  # the calls' folders and nanotir itself: no child may read them
    sys.path[:] = [path for path in sys.path if path not in ours]
    serve(socket.socket(fileno=0), base)


if __name__ == "__main__":
    main() if len(sys.argv) > 1 else show_layers()
