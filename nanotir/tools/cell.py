"""The child's side of the sandbox: it waits for a call, locks itself down and runs one program.

What it is given is a session's earlier cells and one more. Each is run like a notebook's.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import random
import signal
import socket
import sys
import time
from types import ModuleType

from nanotir.tools import lockdown
from nanotir.tools.tool import last_line

# The signals by which a child ends itself once its last cell has returned, raised, or run out of
# memory. No program ends like that by chance, whatever it gives to os._exit.
OK, ERROR, MEMORY = (60, 61, 62) if lockdown.LINUX else (30, 31, 27)
FEW_FILES = 64  # of the 16,384 that all calls may make (lockdown.mount_memory)


def receive(end: socket.socket) -> tuple[bytes, socket.socket | None]:
    """A message and the socket sent with it; b"" and None if the other side has hung up."""
    with contextlib.suppress(ConnectionError):
        text, sockets, *_ = socket.recv_fds(end, 64, 1)
        return text, socket.socket(fileno=sockets[0]) if sockets else None
    return b"", None


def run_child(worker: socket.socket, folder: str):
    """Wait for a call, lock down, run its program, exit without cleaning up. Never returns."""
    ending = ERROR
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
        lockdown.lock_child(folder, request["limit"])
        ending = run_cells(request, silence)
    finally:
        leave(ending)


def make(folder: str):
    """Make a call's folder. While the disk has room for a few files alone, wait; the clock runs.

    A folder may be the last file that a disk can hold: then its call could write nothing.
    """
    while True:
        # Without Landlock a call may have deleted `base`, hence makedirs.
        with contextlib.suppress(OSError):
            os.makedirs(folder)
            break
        time.sleep(0.01)
    while 0 <= room_for_files(folder) <= FEW_FILES:
        time.sleep(0.01)


def room_for_files(folder: str) -> int:
    """How many more files the disk of this folder can hold; -1 if their number has no limit."""
    disk = os.statvfs(folder)
    return disk.f_favail if disk.f_files else -1


def run_cells(request: dict, silence: int) -> int:
    """Run a session's earlier cells in silence, to restore its variables, and then the new one.

    Where there are several programs, each has variables of its own, and a mark with its ending
    follows what all but the last have written.
    """
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    os.close(silence)
    names = new_program()
    for cell in request["history"]:
        run_cell(cell, names)
    if request["history"]:
        # The new cell has the time of any other. The worker's limit counts the earlier ones too.
        signal.setitimer(signal.ITIMER_REAL, request["timeout"])
    os.dup2(0, 1)
    os.dup2(0, 2)
    *others, last = request["programs"]
    for code in others:
        ending = run_cell(code, names)
        os.write(1, f"{request['mark']}{ending};".encode())
        names = new_program()
    return run_cell(last, names)


def new_program() -> dict:
    """The variables of a new program. What it finds as `__main__` is its own, say to pickle."""
    random.seed(0)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    program = sys.modules["__main__"] = ModuleType("__main__")
    return program.__dict__


def run_cell(code: str, names: dict) -> int:
    """Run a program in `names` like a notebook cell; return how to `leave`: OK, ERROR or MEMORY.

    The value of a last expression is printed, and of an error the last line alone.
    """
    # A program may put something else in the place of sys.stdout.
    streams = (sys.stdout, sys.stderr)
    try:
        tree = ast.parse(code)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "<code>", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "<code>", "eval"), names)
            if value is not None:
                print(value if isinstance(value, str) else repr(value), file=streams[0])
        finish(streams)
        return OK
    except SystemExit as stop:
        if stop.code in (None, 0):
            finish(streams)
            return OK
        say(stop.code if isinstance(stop.code, str) else f"SystemExit: {stop.code}", streams)
        return ERROR
    except BaseException as error:
        say(last_line(error), streams)
        return MEMORY if isinstance(error, MemoryError) else ERROR


def finish(streams):
    """Write what is buffered. OSError if the program has closed its output."""
    for stream in streams:
        stream.flush()
    os.fstat(1)


def say(line: str, streams):
    """Print a last line, past the program's own output if that is closed."""
    with contextlib.suppress(OSError, ValueError):
        finish(streams)
        return print(line, file=streams[0], flush=True)
    with contextlib.suppress(OSError):
        os.write(0, f"{line}\n".encode("utf-8", "replace"))


def leave(ending: int, kill=os.kill, exit=os._exit):
    """End this process by a signal that says how, even if the program has blocked it."""
    with contextlib.suppress(BaseException):
        signal.signal(ending, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [ending])
        kill(os.getpid(), ending)
    exit(1)
