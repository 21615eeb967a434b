"""The side of grading that the student's code can reach: a server in a copy of the package.

The copy lacks the body of the exercise's function (apart.py makes it). So this process knows the
questions, that is the cases, but neither the solution nor what is right. The fork server of the
sandbox (tools/sandbox.py) runs every student's file in a process of its own.

    python -m nanotir.exercises.inside FOLDER MEMORY_MB
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import signal
import sys

import torch

import nanotir
from nanotir.exercises.check import failure, outcomes
from nanotir.exercises.jail import too_slow
from nanotir.exercises.stub import forbidden, load
from nanotir.tools import cell, lockdown, sandbox

NOBODY = 65534


def main():
    """Serve, as sandbox.main does, with the package in memory."""
    base, memory_mb = sys.argv[1:]
    torch.set_num_threads(1)
    torch.ones(64).exp()  # torch looks at the processor now, while it may read /proc
    import_package()
    # Nothing of the package is read from now on, and no student's process may read it.
    sys.path[:] = [path for path in sys.path[1:] if lockdown.is_pythons(path)]
    if lockdown.landlock_version() < 1 and os.getuid() == 0:
        become_nobody(base)
    entered = sandbox.enter(base)
    if entered is None:
        return
    cell.run_cells = answer  # what a child of this server does with a call
    sandbox.prepare(warm=False)
    sandbox.serve(base, int(memory_mb), entered[1])


def become_nobody(base: str):
    """Give up the rights of root, and keep the folder `base`.

    Without Landlock, a student's process could else write all files of the grader, which runs as
    root in the containers of courses.
    """
    os.chown(base, NOBODY, NOBODY)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    lockdown.LIBC.prctl(4, 1)  # PR_SET_DUMPABLE: else /proc/self stays root's, and no uid is mapped


def import_package():
    """Import all that a student's file may import."""
    for module in pkgutil.walk_packages(nanotir.__path__, "nanotir."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def answer(request: dict, silence: int) -> int:
    """Run a student's file on all cases and write what it did as JSON; return how to end.

    After `seconds` of processor time, an error is raised in whatever the file does. What it prints
    goes nowhere. It can write to the same place as this function, and so lie about its outputs.
    This gains nothing, since whoever reads them knows the right ones.
    """
    channel = os.dup(0)
    for descriptor in range(3):
        os.dup2(silence, descriptor)
    torch.manual_seed(0)
    signal.signal(signal.SIGPROF, too_slow)
    signal.setitimer(signal.ITIMER_PROF, request["seconds"], 0.1)
    found = what_it_does(request["seed"], request["file"], *request["programs"])
    signal.setitimer(signal.ITIMER_PROF, 0)
    text = json.dumps(found).encode()
    while text:
        text = text[os.write(channel, text) :]
    return cell.OK


def what_it_does(seed: int, name: str, source: str) -> dict:
    """{"outcomes": what the function did in every case} or {"error": why there is no function}."""
    exercise = importlib.import_module(f"nanotir.exercises.{name.removesuffix('.py')}").EXERCISE
    try:
        with forbidden(exercise):
            function = load(exercise, source, name)
    except BaseException as error:
        return {"error": failure(error, name)}
    return {"outcomes": outcomes(exercise, function, seed)}


if __name__ == "__main__":
    main()
