"""The fork server that runs model-written code: a process apart that has numpy and sympy in memory and forks a child per call.

    trainer  --requests-->  fork server  --fork-->  child: locked down, then the code, then it is gone
             <--results---               <--pipe--

Importing sympy takes a quarter of a second; forking a process that has it takes a millisecond. The trainer itself never forks (it has
threads, perhaps a GPU), and never runs a line of the model's code. This file is run as a script by tools/python.py and imports only
the standard library until it serves. What a call's verdict rests on is how the child ended and what the clock says, never on
anything the child wrote.

    python -m nanotir.tools.sandbox        which layers are in force on this machine, and what each stops
"""
from __future__ import annotations

import ast
import contextlib
import ctypes
import errno
import functools
import gc
import json
import os
import platform
import random
import resource
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

OK, ERROR, MEMORY = 101, 102, 103  # how a child exits whose last cell returned, raised, or ran out of memory; others are the program's own
LINUX = sys.platform == "linux"
LIBC = ctypes.CDLL(None)


def serve(control: socket.socket, base: str, workers: int):
    """Answer requests, one JSON object a line, until the other side hangs up, however it ends; then leave nothing behind."""
    namespaces(base)
    warm_up()
    filter_program()
    server = Server(control, base, workers)
    try:
        server.loop()
    except ConnectionError:
        pass  # the trainer has hung up
    finally:
        for call in list(server.running.values()):
            call.kill()
        remove(base)


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
        self.waiting, self.running = [], {}  # requests; calls by process id
        self.count, self.size = 0, memory_size()
        self.selector = selectors.DefaultSelector()
        control.setblocking(False)
        self.selector.register(control, selectors.EVENT_READ, self.read_requests)
        wake_read, wake_write = os.pipe()
        for end in (wake_read, wake_write):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler must exist for the wake-up to be written
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self.selector.register(wake_read, selectors.EVENT_READ, lambda: os.read(wake_read, 4096))

    def loop(self):
        while True:
            deadlines = [call.deadline for call in self.running.values()]
            timeout = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
            for key, _ in self.selector.select(timeout):
                key.data()
            for call in list(self.running.values()):
                if call.ended() or call.overdue():
                    self.finish(call)
            while self.waiting and len(self.running) < self.workers and self.start(self.waiting[0]):
                self.waiting.pop(0)

    def read_requests(self):
        self.send(b"")  # the selector also wakes us when there is room to send
        with contextlib.suppress(BlockingIOError):
            data = self.control.recv(1 << 20)
            if not data:
                raise ConnectionResetError
            *lines, self.incoming = (self.incoming + data).split(b"\n")
            self.waiting += [json.loads(line) for line in lines]

    def start(self, request) -> bool:
        """Fork a child for the request; False where the others have left no room on the disk for it, until one of them has ended."""
        folder = os.path.join(self.base, str(self.count))
        try:
            os.makedirs(folder)  # where Landlock is missing, a call may have deleted the base
        except OSError:
            if not self.running:
                raise
            return False
        self.count += 1
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            run_child(request, folder, write_end, self.size)
        os.close(write_end)
        os.set_blocking(read_end, False)
        call = self.running[pid] = Call(pid, request, folder, read_end)
        self.selector.register(read_end, selectors.EVENT_READ, lambda: call.read() or self.selector.unregister(read_end))
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

    def __init__(self, pid, request, folder, pipe):
        self.pid, self.request, self.folder, self.pipe = pid, request, folder, pipe
        self.started = time.monotonic()
        self.deadline = self.started + request["timeout"]
        self.head, self.tail, self.written = b"", b"", 0
        self.timed_out = False

    def read(self) -> bool:
        """Take what is in the pipe, but not for ever, however fast it fills up; False at its end."""
        cap = self.request["max_output_chars"]
        with contextlib.suppress(BlockingIOError):
            for _ in range(16):
                data = os.read(self.pipe, 1 << 16)
                self.written += len(data)
                taken = max(0, cap - len(self.head))
                self.head, rest = self.head + data[:taken], data[taken:]
                self.tail = (self.tail + rest)[-cap:]
                if not data:
                    return False
        return True

    def ended(self) -> bool:
        # Look without reaping: while the dead child still holds its id, nobody else can have it, so killpg hits the right group.
        if hasattr(os, "waitid"):
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        pid, *self.reaped = os.wait4(self.pid, os.WNOHANG)  # macOS before Python 3.13
        return pid != 0

    def overdue(self) -> bool:
        self.timed_out = time.monotonic() >= self.deadline
        return self.timed_out

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # the child leads its own group: this reaches its children too
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)  # it may have died before setsid

    def result(self) -> dict:
        self.kill()
        wait_status, usage = os.wait4(self.pid, 0)[1:] if hasattr(os, "waitid") or self.timed_out else self.reaped
        self.read()
        os.close(self.pipe)
        remove(self.folder)
        lost, code = self.written - len(self.head) - len(self.tail), os.waitstatus_to_exitcode(wait_status)
        return {
            "id": self.request["id"],
            "status": self.verdict(code, usage.ru_utime + usage.ru_stime),
            "replayable": not self.timed_out and code in (OK, ERROR),  # a cell that was killed, or left, would do so again
            "head": self.head.decode("utf-8", "ignore" if lost else "replace"),  # a cut may have gone through a character
            "tail": self.tail.decode("utf-8", "ignore" if lost else "replace"),
            "lost": lost,
            "seconds": time.monotonic() - self.started,
        }

    def verdict(self, code: int, cpu_seconds: float) -> str:
        if self.timed_out or code == -signal.SIGXCPU or (code == -signal.SIGKILL and cpu_seconds >= self.request["timeout"]):
            return "timeout"
        if code < 0:
            return "crash"
        return {OK: "ok", 0: "ok", MEMORY: "memory"}.get(code, "error")


def remove(folder: str):
    """Delete a call's folder; `rm` where it is not empty, since Python's rmtree recurses and a program can nest folders deeper."""
    try:
        os.rmdir(folder)
    except OSError:
        for command in (["/bin/chmod", "-R", "u+rwX"], ["/bin/rm", "-rf"]):  # it may have made folders that nobody may list
            subprocess.run([*command, folder], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def run_child(request, folder, pipe, size: int):
    """In the child: take away what the code must not have, run it, leave without cleaning up. Never returns."""
    code = ERROR
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()  # its own process group, which the server kills as one
        silence = os.open(os.devnull, os.O_RDWR)
        for target, source in ((0, silence), (1, silence), (2, silence)):
            os.dup2(source, target)
        stream = lambda fd, mode: open(fd, mode, encoding="utf-8", errors="replace", buffering=1, closefd=False)
        sys.stdin, sys.stdout, sys.stderr = stream(0, "r"), stream(1, "w"), stream(2, "w")
        os.dup2(pipe, 3)
        os.closerange(4, 4096)  # the server's sockets and the other calls' pipes
        os.chdir(folder)
        os.environ["HOME"] = os.environ["TMPDIR"] = folder
        limit_resources(request["timeout"], size + request["memory_mb"] * 2**20)
        lock_down(folder)
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


def memory_size() -> int:
    """Bytes of address space that this process has."""
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() if LINUX else 0


def limit_resources(timeout: float, address_space: int):
    limits = {
        "CPU": int(timeout) + 1,  # seconds of processor time: a loop that ignores every signal still ends
        "AS": address_space if LINUX else resource.RLIM_INFINITY,  # a growing list ends in MemoryError
        "FSIZE": 8 * 2**20,  # bytes in one file
        "NOFILE": 64,  # open files
        "NPROC": 1024,  # processes of this user, all calls together; seccomp allows a call none at all
        "CORE": 0,
    }
    for name, limit in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (limit, limit))


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


def lock_down(folder: str) -> list[tuple]:
    """Take rights away for good from this process, a child about to run a program: (layer, whether it is in force, what it stops)."""
    if not LINUX:
        return []
    LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: die with the server
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")  # where the machine runs out of memory, this process goes first
    return [  # in this order, for the last ones forbid the first
        ("no_new_privs", LIBC.prctl(38, 1, 0, 0, 0) == 0, "gaining rights through set-uid programs"),
        ("Landlock", landlock(folder), "reading anything but Python, its packages and system libraries; writing outside its own folder; TCP"),
        ("capabilities", LIBC.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)) == 0, "whatever root may do: all of them are dropped"),
        ("seccomp", seccomp(), "sockets, other programs, new processes, signals to others, ptrace, mounts, changed modes and owners, raised limits"),
    ]


def namespaces(base: str) -> bool:
    """Move the server, not yet started, to namespaces of its own where that is allowed. It becomes their process 1: when it dies, all die."""
    USER, PID, NET, IPC = 0x10000000, 0x20000000, 0x40000000, 0x08000000
    uid, gid = os.getuid(), os.getgid()
    if not LINUX or LIBC.unshare(USER | PID | NET | IPC) and LIBC.unshare(PID | NET | IPC):
        return False
    for file, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with contextlib.suppress(OSError), open(f"/proc/self/{file}", "w") as map:
            map.write(text)
    if pid := os.fork():
        os.closerange(3, 256)  # the control socket is the child's alone
        os.waitpid(pid, 0)
        with contextlib.suppress(OSError):
            os.rmdir(base)
        os._exit(0)
    LIBC.prctl(1, signal.SIGKILL)
    if LIBC.unshare(0x00020000) == 0:  # and mounts apart: the calls' folders lie in memory, all together no more than 256 MB
        LIBC.mount(None, b"/", None, 1 << 14 | 1 << 18, None)  # private, with all below
        LIBC.mount(b"tmpfs", base.encode(), b"tmpfs", 2 | 4, b"size=256m,nr_inodes=16384")  # no set-uid files, no devices
        os.chdir(base)
    return True


def landlock(folder: str) -> bool:
    """Files: what Python needs may be read, the call's own folder written, and nothing else opened (Linux 5.13 on; truncation 6.2)."""
    version = LIBC.syscall(444, None, 0, 1)
    if version < 1:
        return False
    everything = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1  # one bit for each way of using a file
    READ_FILE, READ_DIR, WRITE_FILE, no = 1 << 2, 1 << 3, 1 << 1, 1 << 0 | 1 << 6 | 1 << 9 | 1 << 11 | 1 << 15  # execute, devices, sockets, ioctl
    attributes = struct.pack("QQQ", everything, 3, 3)  # and TCP from version 4, signals and abstract sockets from version 6
    ruleset = LIBC.syscall(444, attributes, 8 if version < 4 else 16 if version < 6 else 24, 0)
    system = [*sys.path, f"{sys.base_prefix}/lib", "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/localtime", "/etc/ld.so.cache", "/dev/urandom"]
    rules = [(path, READ_FILE | READ_DIR if os.path.isdir(path) else READ_FILE) for path in system if os.path.exists(path)]
    for path, access in [*rules, ("/dev/null", READ_FILE | WRITE_FILE), (folder, everything & ~no)]:
        fd = os.open(path, os.O_PATH)
        LIBC.syscall(445, ruleset, 1, struct.pack("=Qi", access, fd), 0)
        os.close(fd)
    in_force = LIBC.syscall(446, ruleset, 0) == 0
    os.close(ruleset)
    return in_force


# System calls that model code may not make, with their numbers on x86-64 and arm64. What else needs a capability is refused for lack of one.
DENIED = """
    socket 41 198  connect 42 203  bind 49 200  sendmsg 46 211  sendmmsg 307 269  fork 57 -  vfork 58 -  execve 59 221  execveat 322 281
    ptrace 101 117  process_vm_readv 310 270  process_vm_writev 311 271  tkill 200 130  rt_sigqueueinfo 129 138  rt_tgsigqueueinfo 297 240
    pidfd_open 434 434  pidfd_send_signal 424 424  pidfd_getfd 438 438  setsid 112 157  setpgid 109 154  setrlimit 160 164
    setpriority 141 140  sched_setparam 142 118  sched_setscheduler 144 119  sched_setattr 314 274  sched_setaffinity 203 122  ioprio_set 251 30
    truncate 76 45  removexattr 197 14  lremovexattr 198 15  fremovexattr 199 16  unshare 272 97  setns 308 268  mount 165 40  umount2 166 39  bpf 321 280  perf_event_open 298 241
    userfaultfd 323 282  io_uring_setup 425 425  io_setup 206 0  keyctl 250 219  add_key 248 217  request_key 249 218  personality 135 92
    semget 64 190  msgget 68 186  shmget 29 194  mq_open 240 180  memfd_create 319 279  seccomp 317 277  mknod 133 -  mknodat 259 33
    chmod 90 -  fchmod 91 52  fchmodat 268 53  fchmodat2 452 452  chown 92 -  fchown 93 55  lchown 94 -  fchownat 260 54  utime 132 -
    utimes 235 -  utimensat 280 88  futimesat 261 -  setxattr 188 5  lsetxattr 189 6  fsetxattr 190 7
"""


@functools.lru_cache
def filter_program(pid: int = 0xDEADBEEF) -> bytes:
    """The seccomp filter: a little program, in BPF, that the kernel runs on the number and the arguments of every system call."""
    column, arch = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}.get(platform.machine(), (None, 0))
    if column is None:
        return b""
    LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
    step = lambda code, k, if_true=0, if_false=0: struct.pack("HBBI", code, if_true, if_false, k)
    KILL, ALLOW, REFUSE = step(RETURN, 0x80000000), step(RETURN, 0x7FFF0000), step(RETURN, 0x00050000 | errno.EPERM)
    argument = lambda i, high=0: step(LOAD, 16 + 8 * i + 4 * high)
    is_zero = lambda i: argument(i) + step(EQUAL, 0, 0, 3) + argument(i, 1) + step(EQUAL, 0, 0, 1) + ALLOW + REFUSE
    refuse_if = lambda i, *values: argument(i) + b"".join(step(EQUAL, value, 0, 1) + REFUSE for value in values) + ALLOW
    itself = argument(0) + step(EQUAL, pid, 0, 1) + ALLOW + REFUSE
    special = {
        (56, 220): argument(0) + step(ANY_BIT, 0x10000, 0, 1) + ALLOW + REFUSE,  # clone: threads, no processes
        (435, 435): step(RETURN, 0x00050000 | errno.ENOSYS),  # clone3: its flags cannot be seen from here, and libc falls back on clone
        (62, 129): itself, (234, 131): itself,  # kill, tgkill
        (44, 206): is_zero(4),  # sendto: over a connected pair, to no address
        (302, 261): is_zero(2),  # prlimit64: may ask, not set
        (72, 25): refuse_if(1, 8, 10, 15), (16, 29): refuse_if(1, 0x8901, 0x8902),  # fcntl, ioctl: no signal to others when a socket stirs
        (157, 167): refuse_if(0, 1),  # prctl: it dies with the server
    }  # fmt: skip
    words = DENIED.split()
    denied = {numbers: REFUSE for numbers in zip(words[1::3], words[2::3]) if numbers[column] != "-"}
    program = step(LOAD, 4) + step(EQUAL, arch, 1, 0) + KILL + step(LOAD, 0) + step(AT_LEAST, 0x40000000, 0, 1) + KILL  # other calling conventions
    for numbers, then in (special | denied).items():
        program += step(EQUAL, int(numbers[column]), 0, len(then) // 8) + then
    return program + ALLOW


def seccomp() -> bool:
    program = filter_program().replace(struct.pack("I", 0xDEADBEEF), struct.pack("I", os.getpid()))
    code = ctypes.create_string_buffer(program)
    return bool(program) and LIBC.prctl(22, 2, struct.pack("HP", len(program) // 8, ctypes.addressof(code)), 0, 0) == 0


def show_layers():
    """A table of the layers, each tried on this process, which ends with it."""
    apart = namespaces(tempfile.mkdtemp(prefix="nanotir-"))
    rows = [("namespaces", apart, "the network; seeing or signalling any other process (users, processes, network and IPC apart, for the whole server)")]
    rows += lock_down(os.getcwd()) or [("all of these", False, "only the limits hold here: no protection of files, network and other processes")]
    rows += [("limits", True, "endless time, processor time, memory (on Linux), file size and output; the process group is killed as a whole")]
    for layer, in_force, stops in rows:
        print(f"{layer:13} {'in force' if in_force else 'MISSING':9} {stops}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        show_layers()
    else:
        sys.path.pop(0)  # this file's own folder
        control = socket.socket(fileno=int(sys.argv[1]))
        os.dup2(control.fileno(), 3)  # a low number, whatever the trainer's was: a child closes all from 4 on
        if control.fileno() != 3:
            control.close()
            control = socket.socket(fileno=3)
        serve(control, sys.argv[2], int(sys.argv[3]))
