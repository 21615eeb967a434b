"""Takes rights away from a process before it runs a program that the model wrote.

Resource limits hold everywhere. All other layers are protections of the Linux kernel that need no
root, no container and no package. A layer that the kernel refuses is left out, and the functions
say so. No layer is enough alone: Landlock does not cover processes, seccomp does not cover files.
The numbers, and the names in comments, are those of the kernel's headers.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import platform
import re
import resource
import signal
import struct
import sys

LINUX = sys.platform == "linux"
LIBC = ctypes.CDLL(None)
Layer = tuple[str, bool, str]  # its name, whether it is in force, what it stops


def die_with_parent():
    """Have this process killed when its parent ends, for whatever reason. Linux only."""
    if LINUX:
        LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def namespaces() -> bool:
    """Give the next forked process its own namespaces; return whether the kernel allows it.

    That process becomes process 1 in there: when it dies, the kernel kills all its descendants.
    """
    uid = os.getuid()
    gid = os.getgid()
    # An ordinary user needs a user namespace too. Where those are forbidden, root does without.
    apart = 0x20000000 | 0x40000000 | 0x08000000  # CLONE_NEWPID, CLONE_NEWNET, CLONE_NEWIPC
    with_user = apart | 0x10000000  # CLONE_NEWUSER
    if not LINUX or (LIBC.unshare(with_user) and LIBC.unshare(apart)):
        return False
    maps = {"setgroups": "deny", "uid_map": f"{uid} {uid} 1", "gid_map": f"{gid} {gid} 1"}
    for name, text in maps.items():
        with contextlib.suppress(OSError), open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    return True


def mount_memory(base: str) -> bool:
    """Mount a file system in memory for the folders of all calls; return whether mounts are ours.

    Only then is it safe to mount more.
    """
    size = b"size=256m,nr_inodes=16384"
    if LIBC.unshare(0x20000):  # CLONE_NEWNS
        return False
    # The rest of the machine must not see what is mounted here.
    LIBC.mount(None, b"/", None, 1 << 18 | 1 << 14, None)  # MS_PRIVATE, MS_REC
    LIBC.mount(b"tmpfs", base.encode(), b"tmpfs", 2 | 4, size)  # MS_NOSUID, MS_NODEV
    return True


def limit_processes():
    """At most 1,024 processes and threads for all calls. NPROC does not bind root.

    The number belongs to the namespace only from Linux 6.14 on. Before, it is the whole machine's.
    """
    major, minor = re.match(r"(\d+)\.(\d+)", platform.release()).groups()
    if (int(major), int(minor)) >= (6, 14):
        with contextlib.suppress(OSError), open("/proc/sys/kernel/pid_max", "w") as file:
            file.write("1024")


def lock_server(memory_mb: int, own_mounts: bool) -> list[Layer]:
    """Drop for good, once in the fork server, what neither the server nor any call needs."""
    limit(FSIZE=8 * 2**20, CORE=0)
    if not LINUX:
        stops = "only the limits hold here: no protection of files, network and other processes"
        return [("all others", False, stops)]
    # The limit on memory counts from what is in use now, so a growing list ends in MemoryError.
    with open("/proc/self/statm") as file:
        in_use = int(file.read().split()[0]) * resource.getpagesize()
    limit(AS=in_use + memory_mb * 2**20)
    if own_mounts:
        # Without opening a file, /proc tells which processes the machine has. So cover it.
        LIBC.mount(b"tmpfs", b"/proc", b"tmpfs", 1, b"mode=000")  # MS_RDONLY
    no_new_privs = LIBC.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    no_capabilities = LIBC.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)) == 0
    return [
        ("no_new_privs", no_new_privs, "gaining rights through set-uid programs"),
        ("capabilities", no_capabilities, "everything that only root may do"),
    ]


def lock_child(folder: str, seconds: float) -> list[Layer]:
    """Lock down a child that is about to run a program in this folder."""
    # NPROC counts all processes of this user, hence of all calls. Seccomp allows a call none.
    limit(CPU=int(seconds) + 1, NOFILE=64, NPROC=1024)
    limits = "too much time, processor time, memory (on Linux) or output, and large files"
    if not LINUX:
        return [("limits", True, limits)]
    files = "reading all but Python and system libraries, writing outside the call's folder, TCP"
    calls = "sockets, programs, processes, signals to others, ptrace, mounts, new modes and owners"
    # Landlock first: seccomp forbids the calls that it needs.
    return [
        ("Landlock", landlock(folder), files),
        ("seccomp", seccomp(), calls),
        ("limits", True, limits),
    ]


def limit(**limits: int):
    """Lower the limits of these resources, for good."""
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(kind, (value, value))


# Landlock's first system call, and the bits of three ways to use a path.
CREATE_RULESET = 444
WRITE_FILE = 1 << 1
READ_FILE = 1 << 2
READ_DIR = 1 << 3


def landlock_version() -> int:
    """The version of Landlock that the kernel has; less than 1 if it has none."""
    return LIBC.syscall(CREATE_RULESET, None, 0, 1) if LINUX else 0  # ..._RULESET_VERSION


def landlock(folder: str) -> bool:
    """Allow reading what Python needs and writing in `folder`; refuse to open anything else."""
    version = landlock_version()
    if version < 1:
        return False
    # A ruleset forbids what no rule allows, and newer versions know of more ways to use a file.
    everything = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    attributes = struct.pack("Q", everything)
    if version >= 4:
        attributes += struct.pack("Q", 3)  # to bind and to connect by TCP
    if version >= 6:
        attributes += struct.pack("Q", 3)  # to reach abstract sockets and to signal others
    ruleset = LIBC.syscall(CREATE_RULESET, attributes, len(attributes), 0)

    # No execution, character devices, sockets, block devices, or ioctl on devices.
    own = everything & ~(1 << 0 | 1 << 6 | 1 << 9 | 1 << 11 | 1 << 15)
    add_rule(ruleset, folder, own)
    add_rule(ruleset, "/dev/null", READ_FILE | WRITE_FILE)
    for path, is_folder in needed():
        add_rule(ruleset, path, READ_FILE | READ_DIR if is_folder else READ_FILE)
    in_force = LIBC.syscall(446, ruleset, 0) == 0  # landlock_restrict_self
    os.close(ruleset)
    return in_force


def add_rule(ruleset: int, path: str, access: int):
    """Allow these uses of a path, and of all that lies below it."""
    fd = os.open(path, os.O_PATH)
    LIBC.syscall(445, ruleset, 1, struct.pack("=Qi", access, fd), 0)  # landlock_add_rule
    os.close(fd)


@functools.lru_cache
def needed() -> list[tuple[str, bool]]:
    """What Python reads: (path, whether it is a folder). The server asks once for all children."""
    folders = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo"]
    files = ["/etc/localtime", "/etc/ld.so.cache", "/dev/urandom"]
    wanted = [*folders, *files, *filter(is_pythons, sys.path), f"{sys.base_prefix}/lib"]
    # One rule holds for all below a path, and a folder sorts before what it contains.
    paths = []
    for path in sorted({os.path.realpath(path) for path in wanted if os.path.exists(path)}):
        if not any(path.startswith(f"{above}/") for above in paths):
            paths.append(path)
    return [(path, os.path.isdir(path)) for path in paths]


def is_pythons(path: str) -> bool:
    """Whether a path lies where Python is installed. A .pth file may name any other folder."""
    path = os.path.realpath(path)
    homes = {os.path.realpath(home) for home in (sys.prefix, sys.base_prefix)}
    return any(path.startswith(f"{home}/") for home in homes)


# System calls that a program may not make: names, numbers on x86-64, numbers on arm64 (which lacks
# some). Other dangerous calls need a capability, and all capabilities have been dropped.
DENIED = [
    ("socket connect bind sendmsg sendmmsg", [41, 42, 49, 46, 307], [198, 203, 200, 211, 269]),
    ("fork vfork execve execveat", [57, 58, 59, 322], [221, 281]),
    ("ptrace process_vm_readv process_vm_writev", [101, 310, 311], [117, 270, 271]),
    ("tkill rt_sigqueueinfo rt_tgsigqueueinfo", [200, 129, 297], [130, 138, 240]),
    ("pidfd_open pidfd_send_signal pidfd_getfd", [434, 424, 438], [434, 424, 438]),
    ("setsid setpgid setrlimit setpriority", [112, 109, 160, 141], [157, 154, 164, 140]),
    ("sched_setparam sched_setscheduler sched_setattr", [142, 144, 314], [118, 119, 274]),
    ("sched_setaffinity ioprio_set", [203, 251], [122, 30]),
    ("truncate removexattr lremovexattr fremovexattr", [76, 197, 198, 199], [45, 14, 15, 16]),
    ("flock", [73], [32]),  # on a library file it can be seen by other calls
    ("unshare setns mount umount2", [272, 308, 165, 166], [97, 268, 40, 39]),
    ("bpf perf_event_open userfaultfd", [321, 298, 323], [280, 241, 282]),
    ("io_uring_setup io_setup", [425, 206], [425, 0]),
    ("keyctl add_key request_key personality", [250, 248, 249, 135], [219, 217, 218, 92]),
    ("semget semop semtimedop semctl", [64, 65, 220, 66], [190, 193, 192, 191]),
    ("msgget msgsnd msgrcv msgctl mq_open", [68, 69, 70, 71, 240], [186, 189, 188, 187, 180]),
    ("shmget shmat shmctl memfd_create", [29, 30, 31, 319], [194, 196, 195, 279]),
    ("seccomp mknod mknodat", [317, 133, 259], [277, 33]),
    ("chmod fchmod fchmodat fchmodat2", [90, 91, 268, 452], [52, 53, 452]),
    ("chown fchown lchown fchownat", [92, 93, 94, 260], [55, 54]),
    ("utime utimes utimensat futimesat", [132, 235, 280, 261], [88]),
    ("setxattr lsetxattr fsetxattr", [188, 189, 190], [5, 6, 7]),
    ("setxattrat removexattrat file_setattr", [463, 466, 469], [463, 466, 469]),
    ("inotify_init inotify_init1 inotify_add_watch", [253, 294, 254], [26, 27]),
    ("fanotify_init fanotify_mark", [300, 301], [262, 263]),
    ("statmount listmount syslog", [457, 458, 103], [457, 458, 116]),
    ("mincore cachestat sync syncfs", [27, 451, 162, 306], [232, 451, 81, 267]),
]

# The operations of BPF, the language of seccomp filters, that are used here.
LOAD = 0x20
EQUAL = 0x15
AT_LEAST = 0x35
ANY_BIT = 0x45
RETURN = 0x06

# The server builds the filter once. A child puts its own process id in the place of this number.
PID = 0xDEADBEEF


def step(operation: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One BPF instruction; a comparison skips `if_true` or `if_false` of the next ones."""
    return struct.pack("HBBI", operation, if_true, if_false, value)


KILL = step(RETURN, 0x80000000)
ALLOW = step(RETURN, 0x7FFF0000)
REFUSE = step(RETURN, 0x00050000 | errno.EPERM)
MISSING = step(RETURN, 0x00050000 | errno.ENOSYS)


def argument(index: int, high: int = 0) -> bytes:
    """Load an argument of the system call: its lower half, or the higher one."""
    return step(LOAD, 16 + 8 * index + 4 * high)


def if_zero(index: int) -> bytes:
    """Allow the call if this argument, of 64 bits, is 0."""
    low_half = argument(index) + step(EQUAL, 0, 0, 3)
    high_half = argument(index, high=1) + step(EQUAL, 0, 0, 1)
    return low_half + high_half + ALLOW + REFUSE


def only(index: int, *values: int) -> bytes:
    """Allow the call only if this argument has one of these values."""
    tests = [step(EQUAL, value, 0, 1) + ALLOW for value in values]
    return argument(index) + b"".join(tests) + REFUSE


# What Python asks of descriptors: copies, flags, locks on records, the size of a pipe. Others would
# send signals, hold a lease on a file of Python's, or leave a hint that outlives the call.
FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)
# TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX. Others would change a file's attributes.
IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)


def conditions() -> list[tuple[int, int, bytes]]:
    """System calls that depend on arguments: number on x86-64, number on arm64, the test."""
    to_itself = argument(0) + step(EQUAL, PID, 0, 1) + ALLOW + REFUSE
    # CLONE_THREAD, and CLONE_FILES: each table of descriptors may hold 64 more full sockets.
    is_thread = argument(0) + step(ANY_BIT, 0x10000, 0, 2) + step(ANY_BIT, 0x400, 0, 1)
    same_table = argument(2) + step(ANY_BIT, 2, 0, 1)  # CLOSE_RANGE_UNSHARE
    not_parent = argument(0) + step(EQUAL, 1, 0, 1)  # PR_SET_PDEATHSIG
    return [
        (56, 220, is_thread + ALLOW + REFUSE),  # clone: threads, but no processes
        (436, 436, same_table + REFUSE + ALLOW),  # close_range
        (435, 435, MISSING),  # clone3 hides its flags in memory; libc then falls back on clone
        (62, 129, to_itself),  # kill
        (234, 131, to_itself),  # tgkill
        (44, 206, if_zero(4)),  # sendto: over a connected pair, but to no address
        (302, 261, if_zero(2)),  # prlimit64: may read limits, but not set them
        (72, 25, only(1, *FCNTL)),
        (16, 29, only(1, *IOCTL)),
        (157, 167, not_parent + REFUSE + ALLOW),  # prctl: it must die with its parent
    ]


@functools.lru_cache
def filter_program() -> bytes:
    """The seccomp filter, which the kernel runs on every system call. Cached, see PID."""
    machines = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
    if platform.machine() not in machines:
        return b""
    column, architecture = machines[platform.machine()]
    # Under another calling convention the same numbers mean other calls.
    program = step(LOAD, 4) + step(EQUAL, architecture, 1, 0) + KILL
    program += step(LOAD, 0) + step(AT_LEAST, 0x40000000, 0, 1) + KILL
    for *numbers, test in conditions():
        program += step(EQUAL, numbers[column], 0, len(test) // 8) + test
    # Each comparison that holds skips the ones that are left, and ALLOW.
    denied = [number for _, *numbers in DENIED for number in numbers[column]]
    for done, number in enumerate(denied):
        program += step(EQUAL, number, len(denied) - done)
    return program + ALLOW + REFUSE


def seccomp() -> bool:
    """Put the filter in force for this process; return whether the kernel accepts it."""
    program = filter_program().replace(struct.pack("I", PID), struct.pack("I", os.getpid()))
    if not program:
        return False
    code = ctypes.create_string_buffer(program)
    filter = struct.pack("HP", len(program) // 8, ctypes.addressof(code))
    return LIBC.prctl(22, 2, filter, 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
