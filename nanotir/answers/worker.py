"""A small Python process that compares the slow pairs, and is killed when it takes too long."""

import functools
import json
import math
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path

SERVE = "from nanotir.answers import values, verdict, worker; worker.serve(verdict.decide)"


@functools.lru_cache(maxsize=1)
def own_worker(pid: int) -> "Worker":
    """Return the worker of the process `pid`. A fork has another pid, and a worker of its own."""
    return Worker()


class Worker:
    """Starts its process with the first pair, and again after it was killed or has died."""

    def __init__(self):
        self.lock = threading.Lock()
        self.process = None

    def ask(self, p: str, g: str, deadline: float) -> bool:
        with self.lock:
            answer = b""
            with suppress(OSError):  # it may have died meanwhile
                if self.process is None or self.process.poll() is not None:
                    self.start()
                self.process.stdin.write(json.dumps([p, g, deadline]).encode() + b"\n")
                answer = self.read(deadline)
            if answer not in (b"0", b"1"):
                self.stop()
        return answer == b"1"

    def start(self):
        self.stop()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        command = [sys.executable, "-c", SERVE]
        root = Path(__file__).parents[2]
        self.process = subprocess.Popen(command, cwd=root, bufsize=0, **pipes)
        # Kills it when this object is gone, at the latest when the program ends.
        self.kill = weakref.finalize(self, kill, self.process, os.getpid())
        self.read(30.0)  # it has imported what it needs

    def read(self, seconds: float) -> bytes:
        """Return the next byte, or none if it does not come in time."""
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        return self.process.stdout.read(1) if ready else b""

    def stop(self):
        if self.process is not None:
            self.kill()
            self.process = None


def kill(process: subprocess.Popen, owner: int):
    if os.getpid() == owner:  # a fork holds a copy of the object
        process.kill()
        process.communicate()


def serve(decide):
    """Answer each line, a pair, with one byte. The process ends when its input does."""
    import resource

    with suppress(ValueError, OSError):  # not every system limits memory
        resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
    os.write(1, b"?")
    for line in sys.stdin:
        p, g, deadline = json.loads(line)
        # If our parent is killed while we compare, this limit ends us.
        seconds = math.ceil(time.process_time() + deadline) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
        os.write(1, b"1" if decide(p, g) else b"0")
