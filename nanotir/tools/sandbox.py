"""The fork server: a separate process that runs the programs which the model writes.

    trainer (python.py) --> server, forks workers --> worker, forks children --> child, runs a call

1. The trainer starts a server. To get a worker it sends the server a socket.
2. The worker forks a child that waits for a call, and tells the trainer that it is ready.
3. The trainer sends the worker the time limit and the socket of one call. The worker passes the
   socket on to the child, and forks the next child while the first one runs.
4. The child reads the program from that socket, locks itself down (lockdown.py), runs the program,
   and writes the output to the same socket.
5. The worker waits until the child ends or its time is up, and tells the trainer the status. This
   depends on the exit code and the clock, never on anything that the child wrote.

The trainer does not fork: it has threads, perhaps a GPU. Importing sympy takes half a second, and
forking a process that has it a few milliseconds, most of them for its memory. So there are two
servers, one with numpy and sympy and one without, and this file imports little. A child is a copy
of its worker, which reads no program and no output: no program finds other calls in its memory.

    python -m nanotir.tools.sandbox        show which layers of protection this machine has
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import gc
import itertools
import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass

from nanotir.tools import lockdown

# Exit codes of a child whose last cell returned, raised, or ran out of memory.
OK = 101
ERROR = 102
MEMORY = 103


def main():
    """Serve, or show the layers, in a child process; clean up after it, however it ends."""
    if len(sys.argv) != 4:
        # A person types this. A server starts without the parser.
        from nanotir.commands import Parser

        about = "Show which layers of protection this machine has."
        Parser("python -m nanotir.tools.sandbox", about).parse_args()
    default = ("show", f"/tmp/nanotir-{os.urandom(8).hex()}", "1024")
    mode, base, memory_mb = sys.argv[1:] or default
    os.makedirs(base, exist_ok=True)
    apart = lockdown.namespaces()
    if server := os.fork():
        os.waitpid(server, 0)
        remove(base)
        return

    lockdown.die_with_parent()
    if apart:
        lockdown.mount_memory(base)
    os.chdir(base)
    # No call may read the project's folder. It comes first, since `python -m` was started there.
    sys.path[:] = [path for path in sys.path if path != sys.path[0]]
    if mode == "show":
        show_layers(apart, int(memory_mb))
    else:
        serve(socket.socket(fileno=0), base, int(memory_mb), warm=mode == "warm")


def show_layers(apart: bool, memory_mb: int):
    """Print a table of the layers. Each is tried on this process, which then ends."""
    layers = [("namespaces", apart, "the network, and seeing or signalling other processes")]
    layers += lockdown.lock_server(memory_mb)
    layers += lockdown.lock_child(os.getcwd(), seconds=60)
    lines = []
    for layer, in_force, stops in layers:
        lines.append(f"{layer:13} {'in force' if in_force else 'MISSING':9} {stops}")
    print("\n".join(lines))  # at once: the reader may hang up after a line


def serve(trainer: socket.socket, base: str, memory_mb: int, warm: bool):
    """Fork a worker for every socket that the trainer sends, until the trainer hangs up."""
    if warm:
        warm_up()
    for stream in filter(None, (sys.stdin, sys.stdout, sys.stderr)):  # None if closed
        stream.reconfigure(encoding="utf-8", errors="replace", line_buffering=True)
    # If the machine runs out of memory, the kernel should kill this process and its children.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a call has an output of its own
    os.environ["HOME"] = os.environ["TMPDIR"] = "."  # and a folder of its own
    lockdown.lock_server(memory_mb)
    # Every child inherits these two cached results.
    lockdown.filter_program()
    lockdown.needed()
    # Workers that end must not stay as zombies, since nothing waits for them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # A child's garbage collector must not write to memory that it shares with the server.
    gc.collect()
    gc.freeze()
    while end := receive(trainer)[1]:
        if fork() == 0:
            work(end, base)
        end.close()


def warm_up():
    """Import both libraries, and use the parts of them that are only loaded or filled on use."""
    import numpy
    import numpy.fft
    import numpy.linalg
    import numpy.polynomial
    import numpy.random
    import sympy

    x = sympy.Symbol("x")
    sympy.solve(x**3 - 6 * x**2 + 11 * x - 6, x)
    sympy.solve(x**3 + x + 1, x)
    sympy.nsolve(x**3 - 2, 1)
    sympy.series(sympy.sin(x), x)
    sympy.integrate(x * sympy.sin(x), x)
    sympy.simplify((x**2 - 1) / (x - 1))
    sympy.factorint(1001)
    sympy.limit(sympy.sin(x) / x, x, 0)
    sympy.Matrix([[2, 1], [1, 3]]).eigenvals()
    numpy.linalg.solve(numpy.eye(2), numpy.ones(2))
    numpy.random.seed(0)
    if lockdown.LINUX:
        use_huge_pages()


def use_huge_pages():
    """Move the heap to pages of 2 MB: a fork copies the table of pages, then 500 times shorter."""
    with open("/proc/self/maps") as maps:
        lines = maps.read().splitlines()
    for line in lines:
        ends, access, _, _, inode, *_ = line.split()
        start, end = [int(address, 16) for address in ends.split("-")]
        start = (start + 2**21 - 1) >> 21 << 21
        end = end >> 21 << 21
        if access == "rw-p" and inode == "0" and start < end:
            # MADV_COLLAPSE, from Linux 6.1 on, is a hint that the kernel may refuse.
            lockdown.LIBC.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), 25)


def receive(end: socket.socket) -> tuple[bytes, socket.socket | None]:
    """A message and the socket sent with it; b"" and None if the other side has hung up."""
    with contextlib.suppress(ConnectionError):
        text, sockets, *_ = socket.recv_fds(end, 64, 1)
        return text, socket.socket(fileno=sockets[0]) if sockets else None
    return b"", None


def fork() -> int:
    """os.fork, tried again for two seconds if there is no room for another process."""
    for _ in range(200):
        with contextlib.suppress(OSError):
            return os.fork()
        time.sleep(0.01)
    return os.fork()


@dataclass
class Child:
    """A child that waits for its call, as its worker sees it."""

    pid: int
    folder: str  # where its program will run
    socket: socket.socket  # where it waits for the call


def work(trainer: socket.socket, base: str):
    """Oversee one call after the other until the trainer hangs up. Never returns."""
    try:
        lockdown.die_with_parent()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        folders = (f"{base}/{os.getpid()}-{number}" for number in itertools.count())
        child = stand_by(next(folders))
        trainer.sendall(b"!")  # ready
        while True:
            timeout, call = receive(trainer)
            if call is None:
                break
            child = oversee(trainer, float(timeout), call, child, next(folders))
    finally:
        os._exit(0)


def stand_by(folder: str) -> Child:
    """Fork a child that waits for a call, which it will run in this folder."""
    ours, theirs = socket.socketpair()
    pid = fork()
    if pid == 0:
        run_child(theirs, folder)
    theirs.close()
    return Child(pid, folder, ours)


def oversee(
    trainer: socket.socket, timeout: float, call: socket.socket, child: Child, next_folder: str
) -> Child:
    """Hand a call to the waiting child and tell the trainer how it ended; return the next child."""
    # The alarm repeats, because the first one may come just before the wait begins.
    started = time.monotonic()
    signal.signal(signal.SIGALRM, lambda *_: kill(child.pid))
    signal.setitimer(signal.ITIMER_REAL, timeout, 0.1)
    # If the child has died already, its exit code tells.
    with child.socket, contextlib.suppress(ConnectionError):
        socket.send_fds(child.socket, [b"!"], [call.fileno()])
    # Fork the next child now: it saves time, and that child cannot know how this one ends.
    next_child = stand_by(next_folder)
    _, ending, usage = os.wait4(child.pid, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    seconds = time.monotonic() - started
    code = os.waitstatus_to_exitcode(ending)

    # Its group may still run. The kernel does not give its number to another process so soon.
    kill(child.pid)
    remove(child.folder)
    # After a shutdown the trainer reads the end of the output, even if a copy of it is still open.
    with call, contextlib.suppress(OSError):
        call.shutdown(socket.SHUT_RDWR)
    late = max(seconds, usage.ru_utime + usage.ru_stime) >= timeout
    # A cell that was killed or called os._exit would end every later call of its session, too.
    report = {"status": verdict(code, late), "replayable": code in (OK, ERROR), "seconds": seconds}
    trainer.sendall(json.dumps(report).encode())
    return next_child


def kill(pid: int):
    """Kill a child and its process group, which in its first moments it does not lead yet."""
    for send in (os.killpg, os.kill):
        # On macOS a process that has just died gives PermissionError.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            send(pid, signal.SIGKILL)


def verdict(code: int, late: bool) -> str:
    """The status of a call by its child's exit code, where a negative one is a signal."""
    if code == -signal.SIGXCPU or (code == -signal.SIGKILL and late):
        return "timeout"
    if code < 0:
        return "crash"
    return {OK: "ok", 0: "ok", MEMORY: "memory"}.get(code, "error")


def remove(folder: str):
    """Delete the folder of a call, with all that the program has left in it."""
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return
    except OSError:
        # shutil.rmtree recurses, and a program can nest folders deeper than Python's stack allows.
        # chmod comes first because the program may have made folders that cannot be listed.
        silent = [(os.POSIX_SPAWN_DUP2, 1, 2)]
        for command in (["/bin/chmod", "-R", "u+rwX", folder], ["/bin/rm", "-rf", folder]):
            # If there is no room for another process, the trainer cleans up when it closes.
            with contextlib.suppress(OSError):
                os.waitpid(os.posix_spawn(command[0], command, {}, file_actions=silent), 0)


def run_child(worker: socket.socket, folder: str):
    """Wait for a call, lock down, run its program, exit without cleaning up. Never returns."""
    code = ERROR
    try:
        lockdown.die_with_parent()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        os.setsid()  # makes a process group, which the worker kills as a whole
        # Keep one socket, as descriptor 0, and close all that the worker has open.
        os.dup2(worker.fileno(), 0)
        os.closerange(3, 4096)
        _, call = receive(socket.socket(fileno=0))
        os.dup2(call.fileno(), 0)
        call.close()
        request = json.load(sys.stdin)
        make(folder)
        os.chdir(folder)
        silence = os.open(os.devnull, os.O_WRONLY)
        lockdown.lock_child(folder, request["timeout"])
        # The earlier cells of the session run once more, in silence, to restore its variables.
        random.seed(0)
        names = {"__name__": "__main__"}
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        os.close(silence)
        for cell in request["history"]:
            run_cell(cell, names)
        os.dup2(0, 1)
        os.dup2(0, 2)
        code = run_cell(request["code"], names)
    finally:
        os._exit(code)


def make(folder: str):
    """Make a call's folder. If the disk is full, wait for other calls to end; the clock runs."""
    while True:
        # Without Landlock a call may have deleted `base`, hence makedirs.
        with contextlib.suppress(OSError):
            return os.makedirs(folder)
        time.sleep(0.01)


def run_cell(code: str, names: dict) -> int:
    """Run a program like a notebook cell, printing its last expression; return an exit code."""
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
        print("".join(traceback.format_exception_only(error)).strip().splitlines()[-1], flush=True)
        return ERROR


if __name__ == "__main__":
    main()
