"""The fork server that runs model-written code: a process apart that has numpy and sympy in memory and forks a child per call.

    trainer  --requests-->  fork server  --fork-->  child: locked down, then the code, then it is gone
             <--results---               <--pipe--

Importing sympy takes a quarter of a second; forking a process that has it takes a millisecond, and not even that is waited for: a spare
child stands by. The trainer itself never forks (it has threads, perhaps a GPU), and never runs a line of the model's code. tools/python.py
starts this file as a program of its own; what a child loses before it runs anything is in lockdown.py. What a call's verdict rests on is how
the child ended and what the clock says, never on anything the child wrote.

    python -m nanotir.tools.sandbox        which layers are in force on this machine, and what each stops
"""
from __future__ import annotations

import ast
import contextlib
import ctypes
import gc
import json
import os
import random
import resource
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time

from nanotir.tools.lockdown import LIBC, LINUX, filter_program, lock_down, namespaces, readable

OK, ERROR, MEMORY = 101, 102, 103  # how a child exits whose last cell returned, raised, or ran out of memory; others are the program's own


def serve(control: socket.socket, base: str, workers: int):
    """Answer requests, one JSON object a line, until the other side hangs up, however it ends; then leave nothing behind."""
    namespaces(base)
    warm_up()
    filter_program(), readable()
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")  # where the machine runs out of memory, we and our children go first
    perturb(1)
    server, pid = Server(control, base, workers), os.getpid()
    try:
        pipes = server.loop()
    except BaseException as end:
        if os.getpid() != pid:
            os._exit(ERROR)  # a child that was only just born: nothing here is its own
        for call in server.running.values():
            call.kill()
        remove(base)
        if isinstance(end, ConnectionError):  # the trainer has hung up
            return
        raise
    server.selector.close()  # whose callbacks know the server
    del server, control  # so that in a child no Python object is left that knows of other calls, for its program to find
    perturb(0)
    run_child(*pipes)


def perturb(byte: int):
    """Have malloc overwrite what is freed (glibc), lest a child's empty arrays hold other calls' words; 0 leaves it as it is."""
    if hasattr(LIBC, "mallopt"):
        LIBC.mallopt(-6, byte)


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
    """One loop over three kinds of events: a request came in, a child wrote something, a child ended or ran out of time."""

    def __init__(self, control, base, workers):
        self.control, self.base, self.workers = control, base, workers
        self.incoming, self.outgoing = b"", b""
        self.waiting, self.running = [], {}  # requests, as they came; calls by process id
        self.count = 0
        self.spare = None  # a child that waits for its request: (process id, pipe to write that to, pipe to read what it says)
        self.selector = selectors.DefaultSelector()
        control.setblocking(False)
        self.selector.register(control, selectors.EVENT_READ, self.read_requests)
        wake_read, wake_write = os.pipe()
        for end in (wake_read, wake_write):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler must exist for the wake-up to be written
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self.selector.register(wake_read, selectors.EVENT_READ, lambda: os.read(wake_read, 4096))

    def loop(self) -> tuple[int, int]:
        """Serve for ever. What returns is a child, with its pipes: for its request, and for what it says."""
        while True:
            if self.spare is None and (pipes := self.fork()):  # while the call that has just begun runs, where there are two cores
                return pipes
            if self.waiting and len(self.running) < self.workers and self.start(json.loads(self.waiting[0])):
                self.waiting.pop(0)
                continue
            deadlines = [call.deadline for call in self.running.values()]
            timeout = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
            for key, _ in self.selector.select(timeout):
                key.data()
            for call in list(self.running.values()):
                if call.ended():
                    self.finish(call)

    def fork(self) -> tuple[int, int] | None:
        """Have a child stand by. In that child itself, its pipes."""
        (requests, to_child), (output, from_child) = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            return requests, from_child
        os.close(requests)
        os.close(from_child)
        os.set_blocking(output, False)
        self.spare = pid, to_child, output

    def read_requests(self):
        self.send(b"")  # the selector also wakes us when there is room to send
        with contextlib.suppress(BlockingIOError):
            data = self.control.recv(1 << 16)
            if not data:
                raise ConnectionResetError
            *lines, self.incoming = (self.incoming + data).split(b"\n")
            self.waiting += lines

    def start(self, request) -> bool:
        """Give a child the request; False where the others have left no room on the disk for it, until one of them has ended."""
        folder = os.path.join(self.base, str(self.count))
        try:
            os.makedirs(folder)  # where Landlock is missing, a call may have deleted the base
        except OSError:
            if not self.running:
                raise
            return False
        self.count += 1
        (pid, requests, output), self.spare = self.spare, None
        call = self.running[pid] = Call(pid, output, folder, request["id"], request["timeout"], request["max_output_chars"])
        self.selector.register(output, selectors.EVENT_READ, lambda: call.read() or self.selector.unregister(output))
        with contextlib.suppress(BrokenPipeError), open(requests, "w") as pipe:  # a spare that somebody killed: its call is a crash
            pipe.write(json.dumps(request | {"folder": folder}) + "\n")
        return True

    def finish(self, call):
        with contextlib.suppress(KeyError):
            self.selector.unregister(call.pipe)
        del self.running[call.pid]
        self.send(json.dumps(call.result()).encode() + b"\n")

    def send(self, data):
        """Never wait for the trainer to read: it may be waiting for us to read."""
        self.outgoing += data
        with contextlib.suppress(BlockingIOError):
            while self.outgoing:
                self.outgoing = self.outgoing[self.control.send(self.outgoing) :]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self.outgoing else 0)
        self.selector.modify(self.control, events, self.read_requests)


class Call:
    """One running child: what it wrote so far (head and tail, never more than the cap), and when its time is up."""

    def __init__(self, pid, pipe, folder, id, timeout, cap):
        self.pid, self.pipe, self.folder, self.id, self.timeout, self.cap = pid, pipe, folder, id, timeout, cap
        self.started = time.monotonic()
        self.deadline = self.started + timeout
        self.head, self.tail, self.written = b"", b"", 0
        self.ending = None  # wait status and resources used, once it is dead

    def read(self) -> bool:
        """Take what is in the pipe, but not for ever, however fast it fills up; False at its end."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(16):
                data = os.read(self.pipe, 1 << 16)
                self.written += len(data)
                taken = max(0, self.cap - len(self.head))
                self.head, rest = self.head + data[:taken], data[taken:]
                self.tail = (self.tail + rest)[-self.cap :]
                if not data:
                    return False
        return True

    def ended(self) -> bool:
        pid, *ending = os.wait4(self.pid, os.WNOHANG)
        if pid:
            self.ending = ending
        return pid != 0 or time.monotonic() >= self.deadline

    def kill(self):
        with contextlib.suppress(ProcessLookupError, PermissionError):  # the latter on macOS, where it has just died
            os.killpg(self.pid, signal.SIGKILL)  # the child leads its own group: this reaches its children too
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)  # it may have died before setsid

    def result(self) -> dict:
        self.kill()  # also if it is dead: its group may live on. Its number is not given out again until all others have had a turn
        timed_out = self.ending is None
        wait_status, usage = self.ending or os.wait4(self.pid, 0)[1:]
        self.read()
        os.close(self.pipe)
        remove(self.folder)
        lost, code = self.written - len(self.head) - len(self.tail), os.waitstatus_to_exitcode(wait_status)
        return {
            "id": self.id,
            "status": "timeout" if timed_out else self.verdict(code, usage.ru_utime + usage.ru_stime),
            "replayable": not timed_out and code in (OK, ERROR),  # a cell that was killed, or left, would do so again
            "head": self.head.decode("utf-8", "ignore" if lost else "replace"),  # a cut may have gone through a character
            "tail": self.tail.decode("utf-8", "ignore" if lost else "replace"),
            "lost": lost,
            "seconds": time.monotonic() - self.started,
        }

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


def run_child(requests, pipe):
    """In the child: wait for the request, take away what its code must not have, run it, leave without cleaning up. Never returns."""
    code = ERROR
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()  # its own process group, which the server kills as one
        os.dup2(requests, 0)  # where the server has, or had, its socket
        os.dup2(pipe, 3)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1), os.dup2(silence, 2)
        os.closerange(4, 4096)  # the other calls' pipes, and the other ends of its own
        stream = lambda fd, mode: open(fd, mode, encoding="utf-8", errors="replace", buffering=1, closefd=False)
        sys.stdin, sys.stdout, sys.stderr = stream(0, "r"), stream(1, "w"), stream(2, "w")
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() if LINUX else 0  # address space that is in use already
        request = json.loads(sys.stdin.readline())  # all there is to read; nothing at all: the server is gone, and so are we
        folder = os.environ["HOME"] = os.environ["TMPDIR"] = request["folder"]
        os.chdir(folder)
        lock_down(folder, request["timeout"], size + request["memory_mb"] * 2**20)
        random.seed(0)
        names = {"__name__": "__main__"}
        for cell in request["history"]:  # an earlier cell of the session: once more, in silence
            run_cell(cell, names)
        for target in (1, 2):
            os.dup2(3, target)
        os.close(3)
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
    base, workers = sys.argv[1:]
    ours = ("", base, os.getcwd(), os.environ.pop("PYTHONPATH"))  # the calls' folders and nanotir itself: no child may read them
    sys.path[:] = [path for path in sys.path if path not in ours]
    serve(socket.socket(fileno=0), base, int(workers))


if __name__ == "__main__":
    main() if len(sys.argv) > 1 else show_layers()
