"""The fork server: a separate process that runs the programs which the model writes.

    trainer (python.py) --> server, forks workers --> worker, forks children --> child, runs a call

1. The trainer starts a server. To get a worker it sends the server a socket.
2. The worker forks a child that waits for a call, and tells the trainer that it is ready.
3. The trainer sends the worker the time limit and the socket of one call. The worker passes the
   socket on to the child, and forks the next child while the first one runs.
4. The child (cell.py) reads the program from that socket, locks itself down (lockdown.py), runs the
   program, and writes the output to the same socket.
5. The worker waits until the child ends or its time is up, and tells the trainer the status. This
   depends on how the child ended and on the clock, never on anything that the child wrote.

The trainer does not fork: it has threads, perhaps a GPU. Importing sympy takes half a second, and
forking a process that has it a few milliseconds, most of them for its memory. So there are two
servers, one with numpy and sympy and one without, and this file imports little. A child is a copy
of its worker, which reads no program and no output: no program finds other calls in its memory.

    python -m nanotir.tools.sandbox        show which layers of protection this machine has
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import json
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass

from nanotir.tools import lockdown
from nanotir.tools.cell import ERROR, MEMORY, OK, receive, run_child

NICE = 5  # less processor time for programs that run away, and more for the rows that decode


def main():
    """Serve, or show the layers, in a child process; clean up after it, however it ends."""
    if len(sys.argv) != 4:
        # A person types this. A server starts without the parser.
        from nanotir.commands import Parser

        about = "Show which layers of protection this machine has."
        Parser("python -m nanotir.tools.sandbox", about).parse_args()
    default = ("show", f"/tmp/nanotir-{os.urandom(8).hex()}", "1024")
    mode, base, memory_mb = sys.argv[1:] or default
    entered = enter(base)
    if entered is None:
        return
    forget_project()
    if mode == "show":
        show_layers(*entered, int(memory_mb))
    else:
        prepare(warm=mode == "warm")
        serve(base, int(memory_mb), entered[1])


def enter(base: str) -> tuple[bool, bool] | None:
    """Go on in a forked process, in the folder `base`; None in the first one, once that has ended.

    Returns whether it has namespaces of its own, and whether its mounts are its own.
    """
    os.makedirs(base, exist_ok=True)
    apart = lockdown.namespaces()
    if server := os.fork():
        os.waitpid(server, 0)
        remove(base)
        return None

    lockdown.die_with_parent()
    own_mounts = apart and lockdown.mount_memory(base)
    if apart:
        lockdown.limit_processes()
    os.chdir(base)
    return apart, own_mounts


def forget_project():
    """Let no program import this project, list its folders, or learn paths from .pth files.

    The functions here go on: they hold what they need of their modules.
    """
    # The first path is the project's, since `python -m` was started there.
    sys.path[:] = [path for path in sys.path[1:] if lockdown.is_pythons(path)]
    sys.meta_path[:] = [finder for finder in sys.meta_path if "frozen" in finder.__module__]
    for path in list(sys.path_importer_cache):
        if not lockdown.is_pythons(path):
            del sys.path_importer_cache[path]
    for name in list(sys.modules):
        if name.startswith(("nanotir", "__editable__")):
            del sys.modules[name]
    sys.argv[:] = sys.orig_argv[:] = [""]


def show_layers(apart: bool, own_mounts: bool, memory_mb: int):
    """Print a table of the layers. Each is tried on this process, which then ends."""
    layers = [("namespaces", apart, "the network, and seeing or signalling other processes")]
    layers += lockdown.lock_server(memory_mb, own_mounts)
    layers += lockdown.lock_child(os.getcwd(), seconds=60)
    lines = []
    for layer, in_force, stops in layers:
        lines.append(f"{layer:13} {'in force' if in_force else 'MISSING':9} {stops}")
    print("\n".join(lines))  # at once: the reader may hang up after a line


def prepare(warm: bool):
    """Do once what every call needs, while this process may still do it."""
    if warm:
        warm_up()
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace", line_buffering=True)
    # If the machine runs out of memory, the kernel should kill this process and its children.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a call has an output of its own
    os.environ["HOME"] = os.environ["TMPDIR"] = "."  # and a folder of its own
    # Every child inherits these two cached results.
    lockdown.filter_program()
    lockdown.needed()


def serve(base: str, memory_mb: int, own_mounts: bool):
    """Lock down, then fork a worker for every socket that the trainer sends, until it hangs up."""
    lockdown.lock_server(memory_mb, own_mounts)
    os.nice(NICE)
    trainer = socket.socket(fileno=0)
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


def fork() -> int:
    """os.fork, tried again for half a minute if there is no room for another process.

    A call that takes all the room is stopped earlier than that.
    """
    for _ in range(3000):
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
            seconds, call = receive(trainer)
            if call is None:
                break
            child = oversee(trainer, float(seconds), call, child, next(folders))
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
    trainer: socket.socket, limit: float, call: socket.socket, child: Child, next_folder: str
) -> Child:
    """Hand a call to the waiting child and tell the trainer how it ended; return the next child."""
    # The alarm repeats, because the first one may come just before the wait begins.
    started = time.monotonic()
    signal.signal(signal.SIGALRM, lambda *_: kill(child.pid))
    signal.setitimer(signal.ITIMER_REAL, limit, 0.1)
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
    # After a shutdown the trainer reads the end of the output, even if a copy of it is still open.
    with call, contextlib.suppress(OSError):
        call.shutdown(socket.SHUT_RDWR)
    late = max(seconds, usage.ru_utime + usage.ru_stime) >= limit
    report = {"status": verdict(code, late), "code": code, "seconds": seconds}
    trainer.sendall(json.dumps(report).encode())
    remove(child.folder)  # after the answer, because to remove many files takes long
    return next_child


def kill(pid: int):
    """Kill a child and its process group, which in its first moments it does not lead yet."""
    for send in (os.killpg, os.kill):
        # On macOS a process that has just died gives PermissionError.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            send(pid, signal.SIGKILL)


def verdict(code: int, late: bool) -> str:
    """The status of a call by its child's exit code, where a negative one is a signal."""
    if code in (-signal.SIGXCPU, -signal.SIGALRM) or (code == -signal.SIGKILL and late):
        return "timeout"
    if code in (0, -OK):
        return "ok"
    if code == -MEMORY:
        return "memory"
    return "error" if code > 0 or code == -ERROR else "crash"


def remove(folder: str):
    """Delete a folder with all that a program has left in it, mostly nothing."""
    with contextlib.suppress(OSError):
        return os.rmdir(folder)
    # shutil.rmtree recurses, and a program can nest folders deeper than Python's stack allows.
    # chmod comes first because the program may have made folders that cannot be listed.
    silent = [(os.POSIX_SPAWN_DUP2, 1, 2)]
    for command in (["/bin/chmod", "-R", "u+rwX", folder], ["/bin/rm", "-rf", folder]):
        # If there is no room for another process, the trainer cleans up when it closes.
        with contextlib.suppress(OSError):
            os.waitpid(os.posix_spawn(command[0], command, {}, file_actions=silent), 0)


if __name__ == "__main__":
    main()
