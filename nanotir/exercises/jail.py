"""Checks a student's file in a process of its own, however that ends, and without harm.

The child holds the inputs, not the right outputs: it runs the student's function and sends back
what that returned. Another process compares. So there is no verdict to forge in the child. Its
protections are those of the sandbox for programs (tools/lockdown.py): on Linux it can read Python
and its packages alone, write in an empty folder, and start or signal no other process. On other
systems only the limits of time and output hold.

Children are forked, so torch is imported once for all checks, and not at all where no exercise uses
it.
"""

from __future__ import annotations

import json
import linecache
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

from nanotir.checks import visible
from nanotir.exercises.check import TooSlow, Verdict, error_line, failure, judge, outcomes
from nanotir.exercises.exercise import Exercise
from nanotir.exercises.stub import CalledSolution, load, plug
from nanotir.tools import lockdown, sandbox

SECONDS = 5.0  # of processor time, which an exercise may take, all cases together
PATIENCE = 4.0  # by the clock, that many times more
MEMORY_MB = 1024  # more than the parent uses
MAX_CHARS = 200_000  # of a file


class Ending(NamedTuple):
    """How a child ended."""

    answer: str  # JSON of what it returned; "" if it ended before
    said: str  # the last line that it printed
    code: int  # negative: minus the signal that ended it
    late: bool


def check_file(exercise: Exercise, path: Path, seed: int = 0) -> Verdict:
    """The verdict on a student's file."""
    if path.is_symlink() or not path.is_file():
        return Verdict("error", "this is not a plain file")
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        source = file.read(MAX_CHARS)
    warm_up(exercise)
    ending = apart(lambda: of_file(exercise, source, str(path), seed))
    if not ending.answer:
        return Verdict("error", last_words(ending))
    # This, too, is a child: after a backward pass on a GPU machine, a process cannot be forked.
    judged = apart(lambda: verdict_on(exercise, ending.answer, seed), locked=False)
    if not judged.answer:
        return Verdict("error", f"what came back cannot be compared: {judged.said}")
    word, sentence, case, mistake = json.loads(judged.answer)
    return Verdict(word, visible(sentence), visible(case, obeyed="\n"), mistake)


def warm_up(exercise: Exercise):
    """What a child may no longer do: import the package, read about the processor."""
    assert exercise.function
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.set_num_threads(1)  # threads do not survive a fork
        torch.ones(1).exp()


def of_file(exercise: Exercise, source: str, path: str, seed: int) -> dict | list[dict]:
    """What the function in a student's file does, or the error that stops the file itself."""
    # In this child, which ends here, nothing may hold the package's solution.
    linecache.clearcache()
    plug(exercise, refuse)
    try:
        function = load(exercise, source, path)
    except BaseException as error:
        return failure(error, path)
    return outcomes(exercise, function, seed)


def verdict_on(exercise: Exercise, answer: str, seed: int) -> Verdict:
    """The verdict on what a student's process has sent."""
    theirs = json.loads(answer)
    if isinstance(theirs, dict):
        return Verdict("error", error_line(theirs))
    return judge(exercise, theirs, seed)


def refuse(*args, **kwargs):
    raise CalledSolution


def too_slow(*_):
    raise TooSlow(f"your code did not end within {SECONDS:g} s")


def apart(work: Callable[[], object], locked: bool = True) -> Ending:
    """Run `work` in a child process, and wait until it ends or its time is up."""
    folder = tempfile.mkdtemp(prefix="nanotir-")
    sys.stdout.flush()  # else the child would have the buffered text, too
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as printed:
        pid = os.fork()
        if pid == 0:
            run(work, answer, printed, folder if locked else "")
        ended, status = 0, 0
        try:
            until = time.monotonic() + PATIENCE * SECONDS
            while not ended and time.monotonic() < until:
                ended, status = os.waitpid(pid, os.WNOHANG)
                time.sleep(0.001)
        finally:
            sandbox.kill(pid)  # and whatever it has started
            if not ended:
                _, status = os.waitpid(pid, 0)
            sandbox.remove(folder)
        code = os.waitstatus_to_exitcode(status)
        *_, said = ["", *text_of(printed).splitlines()]
        return Ending(text_of(answer), visible(said), code, late=not ended)


def text_of(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def run(work: Callable[[], object], answer: IO[bytes], printed: IO[bytes], folder: str):
    """The child: give up all rights if `folder` is named, work, write the answer. Never returns."""
    try:
        lockdown.die_with_parent()
        os.setsid()  # makes a process group, which is killed as a whole
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor in (1, 2):
            os.dup2(printed.fileno(), descriptor)
        sys.stdout = sys.stderr = open(1, "w", buffering=1, errors="replace")
        if folder:
            keep = answer.fileno()
            os.closerange(3, keep)
            os.closerange(keep + 1, 4096)
            os.chdir(folder)
            lockdown.lock_server(MEMORY_MB, own_mounts=False)
            lockdown.lock_child(folder, 2 * SECONDS)
            signal.signal(signal.SIGPROF, too_slow)
            signal.setitimer(signal.ITIMER_PROF, SECONDS, 0.1)
        text = json.dumps(work())
        signal.setitimer(signal.ITIMER_PROF, 0)
        answer.write(text.encode())
        answer.flush()
        sys.stdout.flush()
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    finally:
        os._exit(0)


def last_words(ending: Ending) -> str:
    """Why a child has given no answer."""
    if ending.late or ending.code == -signal.SIGXCPU:
        return f"no end within {PATIENCE * SECONDS:g} s: is a loop endless?"
    if ending.code < 0:
        what = signal.strsignal(-ending.code) or f"signal {-ending.code}"
        return f"your code has crashed its process: {what}"
    return f"your code has ended its process, with code {ending.code}: is there an os._exit?"
