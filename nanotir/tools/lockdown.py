"""What is taken away from a process before it runs a model's program: limits, then layer upon layer of the Linux kernel's own protections.

None of them needs root, a container or a package; each layer is left out where the kernel refuses it, and a table shows which are in force. No
layer is enough by itself: Landlock leaves processes and sockets, seccomp leaves files. The numbers are those of the kernel's own headers.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import platform
import resource
import signal
import struct
import sys

LINUX = sys.platform == "linux"
LIBC = ctypes.CDLL(None)


def die_with_parent():
    """Be killed when the process that forked this one ends, however it does. Linux only."""
    if LINUX:
        LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def namespaces() -> bool:
    """Move the process that is forked next to namespaces of its own, where that is allowed. It becomes their process 1: when it dies, all die."""
    USER, PID, NET, IPC = 0x10000000, 0x20000000, 0x40000000, 0x08000000
    uid, gid = os.getuid(), os.getgid()
    if not LINUX or LIBC.unshare(USER | PID | NET | IPC) and LIBC.unshare(PID | NET | IPC):
        return False
    for file, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        with contextlib.suppress(OSError), open(f"/proc/self/{file}", "w") as map:
            map.write(text)
    return True


def mount_memory(base: str):
    """A file system of our own for the calls' folders: in memory, no more than 256 MB all together. Nothing, where it is not allowed."""
    if LIBC.unshare(0x00020000) == 0:
        LIBC.mount(None, b"/", None, 1 << 14 | 1 << 18, None)  # private, with all below
        LIBC.mount(
            b"tmpfs", base.encode(), b"tmpfs", 2 | 4, b"size=256m,nr_inodes=16384"
        )  # no set-uid files, no devices


def lock_server(memory_mb: int) -> list[tuple]:
    """Take away for good, once, what no call may have and the server can do without: (layer, whether it is in force, what it stops)."""
    limits = {"FSIZE": 8 * 2**20, "CORE": 0}  # bytes in one file
    if LINUX:  # bytes beyond what is in use already: a growing list ends in MemoryError
        limits["AS"] = (
            int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            + memory_mb * 2**20
        )
    limit(**limits)
    if not LINUX:
        return [
            (
                "all others",
                False,
                "only the limits hold here: no protection of files, network and other processes",
            )
        ]
    no_new_privs = LIBC.prctl(38, 1, 0, 0, 0) == 0
    no_capabilities = LIBC.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)) == 0
    return [
        ("no_new_privs", no_new_privs, "gaining rights through set-uid programs"),
        ("capabilities", no_capabilities, "whatever root may do: all of them are dropped"),
    ]


def lock_child(folder: str, seconds: float) -> list[tuple]:
    """The same for a child that is about to run a program in this folder."""
    # Seconds of processor time, open files, and processes of this user, all calls together: seccomp allows a call none at all.
    limit(CPU=int(seconds) + 1, NOFILE=64, NPROC=1024)
    limits = (
        "limits",
        True,
        "endless time, processor time, memory (on Linux), file size and output; the process group is killed as a whole",
    )
    if not LINUX:
        return [limits]
    return [  # in this order: the last one forbids the first
        (
            "Landlock",
            landlock(folder),
            "reading anything but Python, its packages and system libraries; writing outside its own folder; TCP",
        ),
        (
            "seccomp",
            seccomp(),
            "sockets, other programs, new processes, signals to others, ptrace, mounts, changed modes and owners, raised limits",
        ),
        limits,
    ]


def limit(**limits: int):
    """Lower the limits of these resources, for good."""
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def landlock(folder: str) -> bool:
    """Files: what Python needs may be read, the call's own folder written, and nothing else opened (Linux 5.13 on; truncation 6.2)."""
    version = LIBC.syscall(444, None, 0, 1)
    if version < 1:
        return False
    everything = (
        1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)
    ) - 1  # one bit for each way of using a file
    READ_FILE, READ_DIR, WRITE_FILE, no = (
        1 << 2,
        1 << 3,
        1 << 1,
        1 << 0 | 1 << 6 | 1 << 9 | 1 << 11 | 1 << 15,
    )  # execute, devices, sockets, ioctl
    attributes = struct.pack(
        "QQQ", everything, 3, 3
    )  # and TCP from version 4, signals and abstract sockets from version 6
    ruleset = LIBC.syscall(444, attributes, 8 if version < 4 else 16 if version < 6 else 24, 0)
    readable = [
        (path, READ_FILE | READ_DIR if is_folder else READ_FILE) for path, is_folder in needed()
    ]
    for path, access in [
        *readable,
        ("/dev/null", READ_FILE | WRITE_FILE),
        (folder, everything & ~no),
    ]:
        fd = os.open(path, os.O_PATH)
        LIBC.syscall(445, ruleset, 1, struct.pack("=Qi", access, fd), 0)
        os.close(fd)
    in_force = LIBC.syscall(446, ruleset, 0) == 0
    os.close(ruleset)
    return in_force


@functools.lru_cache
def needed() -> list[tuple[str, bool]]:
    """(path, whether it is a folder) of what Python reads: its packages, system libraries, time zones, random numbers."""
    system = [
        "/lib",
        "/lib64",
        "/usr/lib",
        "/usr/lib64",
        "/usr/share/zoneinfo",
        "/etc/localtime",
        "/etc/ld.so.cache",
        "/dev/urandom",
    ]
    system += [*sys.path, f"{sys.base_prefix}/lib"]
    real = sorted({os.path.realpath(path) for path in system if os.path.exists(path)})
    return [
        (path, os.path.isdir(path))
        for path in real
        if not any(path.startswith(f"{other}/") for other in real)
    ]  # one rule holds for all below


# System calls that model code may not make, with their numbers on x86-64 and arm64. What else needs a capability is refused for lack of one.
DENIED = """
    socket 41 198  connect 42 203  bind 49 200  sendmsg 46 211  sendmmsg 307 269  fork 57 -  vfork 58 -  execve 59 221  execveat 322 281
    ptrace 101 117  process_vm_readv 310 270  process_vm_writev 311 271  tkill 200 130  rt_sigqueueinfo 129 138  rt_tgsigqueueinfo 297 240
    pidfd_open 434 434  pidfd_send_signal 424 424  pidfd_getfd 438 438  setsid 112 157  setpgid 109 154  setrlimit 160 164
    setpriority 141 140  sched_setparam 142 118  sched_setscheduler 144 119  sched_setattr 314 274  sched_setaffinity 203 122  ioprio_set 251 30
    truncate 76 45  removexattr 197 14  lremovexattr 198 15  fremovexattr 199 16  unshare 272 97  setns 308 268  mount 165 40
    umount2 166 39  bpf 321 280  perf_event_open 298 241  userfaultfd 323 282  io_uring_setup 425 425  io_setup 206 0  keyctl 250 219  add_key 248 217  request_key 249 218  personality 135 92
    semget 64 190  semop 65 193  semtimedop 220 192  semctl 66 191  msgget 68 186  msgsnd 69 189  msgrcv 70 188  msgctl 71 187  mq_open 240 180
    shmget 29 194  shmat 30 196  shmctl 31 195  memfd_create 319 279  seccomp 317 277  mknod 133 -  mknodat 259 33
    chmod 90 -  fchmod 91 52  fchmodat 268 53  fchmodat2 452 452  chown 92 -  fchown 93 55  lchown 94 -  fchownat 260 54  utime 132 -
    utimes 235 -  utimensat 280 88  futimesat 261 -  setxattr 188 5  lsetxattr 189 6  fsetxattr 190 7
    setxattrat 463 463  removexattrat 466 466  file_setattr 469 469
"""


@functools.lru_cache
def filter_program(pid: int = 0xDEADBEEF) -> bytes:
    """The seccomp filter: a little program, in BPF, that the kernel runs on the number and the arguments of every system call."""
    column, arch = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}.get(
        platform.machine(), (None, 0)
    )
    if column is None:
        return b""
    LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
    step = lambda code, k, if_true=0, if_false=0: struct.pack("HBBI", code, if_true, if_false, k)
    KILL, ALLOW, REFUSE = (
        step(RETURN, 0x80000000),
        step(RETURN, 0x7FFF0000),
        step(RETURN, 0x00050000 | errno.EPERM),
    )
    argument = lambda i, high=0: step(LOAD, 16 + 8 * i + 4 * high)
    is_zero = lambda i: (
        argument(i) + step(EQUAL, 0, 0, 3) + argument(i, 1) + step(EQUAL, 0, 0, 1) + ALLOW + REFUSE
    )
    refuse_if = lambda i, *values: (
        argument(i) + b"".join(step(EQUAL, value, 0, 1) + REFUSE for value in values) + ALLOW
    )
    itself = argument(0) + step(EQUAL, pid, 0, 1) + ALLOW + REFUSE
    special = {
        (56, 220): argument(0)
        + step(ANY_BIT, 0x10000, 0, 1)
        + ALLOW
        + REFUSE,  # clone: threads, no processes
        (435, 435): step(
            RETURN, 0x00050000 | errno.ENOSYS
        ),  # clone3: its flags cannot be seen from here, and libc falls back on clone
        (62, 129): itself,
        (234, 131): itself,  # kill, tgkill
        (44, 206): is_zero(4),  # sendto: over a connected pair, to no address
        (302, 261): is_zero(2),  # prlimit64: may ask, not set
        (72, 25): refuse_if(1, 8, 10, 15),
        (16, 29): refuse_if(
            1, 0x8901, 0x8902
        ),  # fcntl, ioctl: no signal to others when a socket stirs
        (157, 167): refuse_if(0, 1),  # prctl: it dies with the server
    }
    words = DENIED.split()
    denied = [
        int(numbers[column]) for numbers in zip(words[1::3], words[2::3]) if numbers[column] != "-"
    ]
    program = (
        step(LOAD, 4)
        + step(EQUAL, arch, 1, 0)
        + KILL
        + step(LOAD, 0)
        + step(AT_LEAST, 0x40000000, 0, 1)
        + KILL
    )  # other calling conventions
    for numbers, then in special.items():
        program += step(EQUAL, numbers[column], 0, len(then) // 8) + then
    for left, number in zip(range(len(denied), 0, -1), denied):
        program += step(EQUAL, number, left)  # past the others that are left, and past ALLOW
    return program + ALLOW + REFUSE


def seccomp() -> bool:
    program = filter_program().replace(struct.pack("I", 0xDEADBEEF), struct.pack("I", os.getpid()))
    code = ctypes.create_string_buffer(program)
    return (
        bool(program)
        and LIBC.prctl(22, 2, struct.pack("HP", len(program) // 8, ctypes.addressof(code)), 0, 0)
        == 0
    )
