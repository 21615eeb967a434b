"""Files that a student might hand in to be graded well for nothing, or to do harm."""

import json

from nanotir.exercises.apart import PROJECT
from nanotir.exercises.exercise import exercises
from nanotir.tools import cell

ZEROS = """
import torch
def group_advantages(rewards, *options, **more):
    return torch.zeros(len(rewards))
"""


def calling(*lines: str) -> str:
    """A file whose function begins with these lines and then returns zeros."""
    body = "\n    ".join(lines)
    return ZEROS.replace("return", f"{body}\n    return")


REFUSED = "PermissionError"
CALLED = "it calls the package's own group_advantages: write yours"
DIFFERS = "the output"  # begins a sentence about the outputs
FORGED = '{"outcomes": [{"output": ["tensor", [], [12], "float64"], "changed": []}]}'
CASES = len(exercises(8)[0].cases(0))
HUGE = {"output": ["tensor", [10**400] * 12, [12], "float64"], "changed": []}
PACKAGE = PROJECT / "nanotir"


def forging(text: str) -> str:
    """A file that writes its outputs itself, and ends as a process does that is done."""
    write = f"    try: os.write(d, {text.encode()!r})\n    except OSError: pass\n"
    return f"import os\nfor d in range(3, 9):\n{write}os.kill(os.getpid(), {cell.OK})"


# What a hostile file does: its text, and what the sentence about it must contain.
HOSTILE = {
    "loops for ever": ("while True: pass", "in line 1: while True: pass"),
    "loops for ever and ignores signals": (
        "import signal\nfor s in set(range(1, 65)) - {9, 19, 32, 33}:\n"
        "    signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
        "nor when told to",
    ),
    "forks without end": ("import os\nwhile True: os.fork()", REFUSED),
    "starts a program": ("import subprocess\nsubprocess.run(['touch', 'OUTSIDE'])", REFUSED),
    "kills its parent": ("import os\nos.kill(os.getppid(), 9)", REFUSED),
    "calls the network": ("import socket\nsocket.socket()", REFUSED),
    "reads another student's file": ("exec(open('OUTSIDE').read())", REFUSED),
    "reads the exercise": (f"open('{PACKAGE}/exercises/e08_advantages.py').read()", REFUSED),
    "reads the package's source": (f"exec(open('{PACKAGE}/advantages.py').read())", REFUSED),
    "deletes files": ("import os\nos.remove('OUTSIDE')", REFUSED),
    "writes results.json": (
        "open('results.json', 'w').write('{}')\nopen('OUTSIDE', 'w').write('{}')",
        REFUSED,
    ),
    "imports the solution": ("from nanotir.advantages import group_advantages", CALLED),
    "wraps the solution": (
        "import nanotir.advantages as a\n"
        "def group_advantages(*args, **kwargs): return a.group_advantages(*args, **kwargs)",
        CALLED,
    ),
    "finds the solution in sys.modules": (
        calling("import sys", "sys.modules['nanotir.advantages'].group_advantages(rewards, 4)"),
        CALLED,
    ),
    "reloads the solution": (
        "import importlib, nanotir.advantages\nimportlib.reload(nanotir.advantages)",
        "Error: ",
    ),
    "raises an error whose class has no name": (
        "class M(type): __name__ = property(lambda c: 1 / 0)\n"
        "class Nameless(Exception, metaclass=M): pass\n"
        "raise Nameless",
        "Nameless",
    ),
    "inspects the solution": (
        "import inspect, nanotir.advantages as a\nexec(inspect.getsource(a.group_advantages))",
        "OSError",
    ),
    "has the reference compiled": (
        "from nanotir.exercises.check import UNCHANGED\n"
        "from nanotir.exercises.exercise import edited\n"
        "from nanotir.exercises.e08_advantages import EXERCISE\n"
        "group_advantages = edited(EXERCISE, UNCHANGED)",
        "OSError",
    ),
    "collects code from memory": (
        "import gc, types\n"
        "codes = [f.__code__ for f in gc.get_objects() if type(f) is types.FunctionType]\n"
        "codes = [c for c in codes if c.co_name == 'group_advantages' and 'centred' in "
        "c.co_varnames]\nassert codes, 'nothing found'",
        "nothing found",
    ),
    "looks for the right outputs in frames": (
        calling(
            "import sys",
            "frame = sys._getframe()",
            "while frame := frame.f_back:",
            "    assert not {'right', 'its', 'expected'} & set(frame.f_locals)",
        ),
        DIFFERS,
    ),
    "patches torch": (
        "import torch\ntorch.allclose = torch.equal = torch.Tensor.equal = lambda *a, **k: True"
        + ZEROS,
        DIFFERS,
    ),
    "patches the check": (
        "from nanotir.exercises import check, values\n"
        "check.difference = values.difference = check.compared = lambda *a: None\n"
        "check.judge = lambda *a: check.Verdict('passed', '')" + ZEROS,
        DIFFERS,
    ),
    "forges outputs": (forging(FORGED), "wrote to the place"),
    "forges no outputs": (forging('{"outcomes": []}'), "0 outcomes of"),
    "forges a number that is too large": (
        forging(json.dumps({"outcomes": [HUGE] * CASES})),
        "cannot be compared: OverflowError",
    ),
    "prints a verdict": (
        'print(\'{"verdict": "passed", "points": 100}\')\nimport os\n'
        'for d in range(64):\n    try: os.write(d, b\'{"word": "passed"}\')\n'
        "    except OSError: pass" + ZEROS,
        "wrote to the place",
    ),
    "writes without end": (
        "import os\nd = [d for d in range(3, 9) if os.path.exists('/')]\n"
        "for _ in range(3):\n    for d in range(3, 9):\n"
        "        try: os.write(d, b'x' * 2**20)\n        except OSError: pass" + ZEROS,
        "too large",
    ),
    "leaves with success": ("import os\nos._exit(0)", "ended its own process, with code 0"),
    "exits in the function": (calling("import sys", "sys.exit(0)"), "SystemExit"),
    "exits on import": ("raise SystemExit(0)", "SystemExit"),
    "takes ten gigabytes": (calling("import torch", "torch.ones(10 * 2**30)"), "RuntimeError"),
    "makes a long list": (calling("x = [0] * 2**31"), "MemoryError"),
    "recurses deeply": (calling("return group_advantages(rewards)"), "RecursionError"),
    "writes to address 0": ("import ctypes\nctypes.memset(0, 1, 1)", "it crashed"),
    "returns what equals everything": (
        calling("return type('All', (), {'__eq__': lambda s, o: True, '__len__': lambda s: 1})()"),
        "of type",
    ),
    "returns a lying tensor": (
        calling(
            "class Lying(torch.Tensor):",
            "    def __torch_function__(self, *args, **kwargs): return True",
            "return torch.zeros(len(rewards)).as_subclass(Lying)",
        ),
        "",
    ),
    "raises what has no text": (
        calling(
            "class Error(Exception):",
            "    def __str__(self): raise SystemExit(0)",
            "raise Error",
        ),
        "Error: its text raises SystemExit, in line 6: raise Error",
    ),
    "loops in an error's text": (
        calling(
            "class Error(Exception):",
            "    def __str__(self):",
            "        while True: pass",
            "raise Error",
        ),
        "Error: its text raises TooSlow",
    ),
    "closes everything": ("import os\nos.closerange(0, 256)" + ZEROS, "broke what writes"),
    "leaves a thread behind": (
        "import threading\ndef work():\n    while True: pass\n"
        "threading.Thread(target=work).start()" + ZEROS,
        DIFFERS,
    ),
    "forges at exit": (
        f"import atexit, os\natexit.register(lambda: os.write(3, {FORGED.encode()!r}))" + ZEROS,
        DIFFERS,
    ),
}
