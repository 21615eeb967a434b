"""The fork server that runs model-written code: a process apart, which may have numpy and sympy in memory, its forks, and forks of those.

    trainer --a socket each--> fork server --fork--> workers --fork--> children: each locks itself down, runs one program and is gone
            <------------------------------one more socket, of a call: the program, its output------------------------------>

Importing sympy takes half a second; forking a process that has it takes a millisecond or two, and not even that is waited for: every
worker has its next child stand by. Two thirds of what a child costs is the memory it is a copy of, so there is one server that has the libraries
and one that has not. The trainer itself never forks (it has threads, perhaps a GPU), and never runs a line of the model's code. A worker reads
no program and no output, it only hands on the call's socket, so a child, which is its copy, has no word of another call in memory. What a child
loses before it runs anything is in lockdown.py. The verdict rests on how the child ended and on the clock, never on anything the child wrote.

    python -m nanotir.tools.sandbox        which layers are in force on this machine, and what each stops
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

from nanotir.tools.lockdown import (
    LIBC,
    LINUX,
    die_with_parent,
    filter_program,
    lock_child,
    lock_server,
    mount_memory,
    namespaces,
    needed,
)

OK, ERROR, MEMORY = (
    101,
    102,
    103,
)  # how a child exits whose last cell returned, raised, or ran out of memory; others are the program's own


def main():
    """Serve, or show the layers, in another process; and clean up behind it, however it ends."""
    how, base, memory_mb = sys.argv[1:] or ("show", f"/tmp/nanotir-{os.urandom(8).hex()}", "1024")
    os.makedirs(base, exist_ok=True)
    apart = namespaces()
    if server := os.fork():
        os.waitpid(server, 0)
        return remove(base)
    die_with_parent()
    if apart:
        mount_memory(base)
    os.chdir(base)
    sys.path[:] = [
        path for path in sys.path if path != sys.path[0]
    ]  # where nanotir lies: no call may read it
    if how == "show":
        show_layers(apart, int(memory_mb))
    else:
        serve(socket.socket(fileno=0), base, int(memory_mb), warm=how == "warm")


def show_layers(apart: bool, memory_mb: int):
    """A table of the layers, each tried on this process, which ends with it."""
    rows = [
        (
            "namespaces",
            apart,
            "the network; seeing or signalling any other process (users, processes, network and IPC apart, for the whole server)",
        )
    ]
    for layer, in_force, stops in (
        rows + lock_server(memory_mb) + lock_child(os.getcwd(), seconds=60)
    ):
        print(f"{layer:13} {'in force' if in_force else 'MISSING':9} {stops}")


def serve(trainer: socket.socket, base: str, memory_mb: int, warm: bool):
    """Make a worker for every socket that the trainer sends, until it hangs up."""

    if warm:
        warm_up()
    for stream in filter(
        None, (sys.stdin, sys.stdout, sys.stderr)
    ):  # None: the trainer has closed it
        stream.reconfigure(encoding="utf-8", errors="replace", line_buffering=True)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")  # where the machine runs out of memory, we and our children go first
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a call says what it says elsewhere
    os.environ["HOME"] = os.environ["TMPDIR"] = "."  # a call's folder is where it is
    lock_server(memory_mb)
    filter_program(), needed()  # once, for all
    signal.signal(
        signal.SIGCHLD, signal.SIG_IGN
    )  # nobody asks how a worker ended, and it leaves no zombie
    gc.collect()
    gc.freeze()  # so that a child's garbage collector leaves our pages alone, and they stay shared
    while end := receive(trainer)[1]:
        if fork() == 0:
            work(end, base)
        end.close()


def warm_up():
    """Load both libraries once: a child then finds them in memory. Their lazy parts are touched here."""
    import numpy
    import numpy.fft  # noqa: E401
    import numpy.linalg
    import numpy.polynomial
    import numpy.random
    import sympy

    x = sympy.Symbol("x")
    (
        sympy.solve(x**3 - 6 * x**2 + 11 * x - 6, x),
        sympy.solve(x**3 + x + 1, x),
        sympy.nsolve(x**3 - 2, 1),
        sympy.series(sympy.sin(x), x),
    )
    (
        sympy.integrate(x * sympy.sin(x), x),
        sympy.simplify((x**2 - 1) / (x - 1)),
        sympy.factorint(1001),
        sympy.limit(sympy.sin(x) / x, x, 0),
    )
    sympy.Matrix([[2, 1], [1, 3]]).eigenvals(), numpy.linalg.solve(numpy.eye(2), numpy.ones(2))
    numpy.random.seed(0)
    if LINUX:
        use_huge_pages()


def use_huge_pages():
    """Move the heap to pages of 2 MB (Linux 6.1 on): a fork copies the table of pages, which is then 500 times shorter."""
    for line in open("/proc/self/maps").read().splitlines():
        ends, access, _, _, inode, *_ = line.split()
        start, end = (int(address, 16) for address in ends.split("-"))
        start, end = (start + 2**21 - 1) >> 21 << 21, end >> 21 << 21
        if access == "rw-p" and inode == "0" and start < end:
            LIBC.madvise(
                ctypes.c_void_p(start), ctypes.c_size_t(end - start), 25
            )  # MADV_COLLAPSE: a hint, the kernel may refuse


def receive(end: socket.socket) -> tuple[bytes, socket.socket | None]:
    """A message, and the socket that came with it; b"" and None where the other side has hung up."""
    with contextlib.suppress(ConnectionError):
        text, sockets, *_ = socket.recv_fds(end, 64, 1)
        return text, socket.socket(fileno=sockets[0]) if sockets else None
    return b"", None


def fork() -> int:
    """os.fork; where there is no room for one more process, for two seconds again and again."""
    for _ in range(200):
        with contextlib.suppress(OSError):
            return os.fork()
        time.sleep(0.01)
    return os.fork()


def work(trainer: socket.socket, base: str):
    """A worker: call after call, each in a child of its own, until the trainer hangs up. Never returns."""
    try:
        die_with_parent()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        folders = (f"{base}/{os.getpid()}-{number}" for number in itertools.count())
        spare = stand_by(next(folders))
        trainer.sendall(b"!")  # ready
        while (message := receive(trainer))[1]:
            spare = oversee(trainer, *message, *spare, next_folder=next(folders))
    finally:
        os._exit(0)


def stand_by(folder: str) -> tuple[int, str, socket.socket]:
    """Fork the child of a call to come, which runs in this folder: (its process id, the folder, the socket on which it waits for the call)."""
    ours, theirs = socket.socketpair()
    if (pid := fork()) == 0:
        run_child(theirs, folder)
    theirs.close()
    return pid, folder, ours


def oversee(
    trainer: socket.socket,
    timeout: bytes,
    call: socket.socket,
    pid: int,
    folder: str,
    child: socket.socket,
    next_folder: str,
) -> tuple:
    """Hand a call on to the child that stands by for it, fork the next one meanwhile, kill it when its time is up, say how it ended."""

    def kill(*_):
        for send in (
            os.killpg,
            os.kill,
        ):  # the child leads its own group, its children among it; but not in its first moments
            with contextlib.suppress(
                ProcessLookupError, PermissionError
            ):  # the latter on macOS, where it has just died
                send(pid, signal.SIGKILL)

    started, timeout = time.monotonic(), float(timeout)
    signal.signal(signal.SIGALRM, kill)
    signal.setitimer(
        signal.ITIMER_REAL, timeout, 0.1
    )  # again and again: the first alarm may come a moment before the wait begins
    with child, contextlib.suppress(ConnectionError):  # it is dead already: so says its ending
        socket.send_fds(child, [b"!"], [call.fileno()])
    spare = stand_by(next_folder)
    _, ending, usage = os.wait4(pid, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    seconds, code = time.monotonic() - started, os.waitstatus_to_exitcode(ending)
    kill()  # its group may live on. Its number is not given out again until all others have had a turn
    remove(folder)
    status = verdict(code, late=max(seconds, usage.ru_utime + usage.ru_stime) >= timeout)
    replayable = code in (OK, ERROR)  # a cell that was killed, or left, would do so again
    with call, contextlib.suppress(OSError):  # nobody listens any more
        call.shutdown(socket.SHUT_RDWR)  # whoever else has it: here ends what there is to read
    trainer.sendall(
        json.dumps({"status": status, "replayable": replayable, "seconds": seconds}).encode()
    )
    return spare


def verdict(code: int, late: bool) -> str:
    if code == -signal.SIGXCPU or code == -signal.SIGKILL and late:
        return "timeout"
    return "crash" if code < 0 else {OK: "ok", 0: "ok", MEMORY: "memory"}.get(code, "error")


def remove(folder: str):
    """Delete a call's folder; `rm` where it is not empty, since Python's rmtree recurses and a program can nest folders deeper."""
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return
    except OSError:
        for command in (
            ["/bin/chmod", "-R", "u+rwX"],
            ["/bin/rm", "-rf"],
        ):  # it may have made folders that nobody may list
            with contextlib.suppress(
                OSError
            ):  # no more room for a process, or for files to say so: the trainer will see to it
                os.waitpid(
                    os.posix_spawn(
                        command[0],
                        [*command, folder],
                        {},
                        file_actions=[(os.POSIX_SPAWN_DUP2, 1, 2)],
                    ),
                    0,
                )


def make(folder: str):
    """Make a call's folder. Where other calls have left no room, it waits until they are gone, while its clock runs."""
    while True:
        with contextlib.suppress(OSError):
            return os.makedirs(
                folder
            )  # where Landlock is missing, a call may have deleted the base
        time.sleep(0.01)


def run_child(worker: socket.socket, folder: str):
    """In the child: wait for the call, take away what its code must not have, run it, leave without cleaning up. Never returns."""
    code = ERROR
    try:
        die_with_parent()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        os.setsid()  # its own process group, which the worker kills as one
        os.dup2(worker.fileno(), 0)
        os.closerange(3, 4096)  # the sockets of the worker
        _, call = receive(socket.socket(fileno=0))
        os.dup2(call.fileno(), 0), call.close()
        request = json.load(sys.stdin)  # all there is to read
        make(folder)
        os.chdir(folder)
        silence = os.open(os.devnull, os.O_WRONLY)
        lock_child(folder, request["timeout"])
        random.seed(0)
        names = {"__name__": "__main__"}
        os.dup2(silence, 1), os.dup2(silence, 2), os.close(silence)
        for cell in request["history"]:  # an earlier cell of the session: once more, in silence
            run_cell(cell, names)
        os.dup2(0, 1), os.dup2(0, 2)
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
        print("".join(traceback.format_exception_only(error)).strip().splitlines()[-1], flush=True)
        return ERROR


if __name__ == "__main__":
    main()
