"""Exercise 5: run a program, and say what the model should see of it."""

from __future__ import annotations

import io
import random
import re
from contextlib import redirect_stderr, redirect_stdout

from nanotir.exercises.exercise import Case, Exercise, Mistake
from nanotir.tools import cell

ENDINGS = {cell.OK: "OK", cell.ERROR: "ERROR", cell.MEMORY: "MEMORY"}
PROGRAMS = {
    "a program that prints": "print('a')\nprint('b', end='')",
    "the value of the last expression": "x = 6\nx * 7",
    "a text as the last expression": "'a' + 'b'",
    "a value that str and repr show differently": "from fractions import Fraction\nFraction(1, 2)",
    "None as the last expression": "print('x')",
    "a value that counts as false": "x = 3\nx - 3",
    "an expression that is not the last": "1 + 1\nx = 2",
    "prints and a last expression": "for i in range(3):\n    print(i)\ni",
    "no program": "",
    "a comment": "# nothing",
    "no Python": "if x\n    y",
    "an error after output": "print('before')\n1 / 0\nprint('after')",
    "an error in the last expression": "x = []\nx[3]",
    "an error whose message has two lines": "raise ValueError('first\\nsecond')",
    "an error in a function": "def f(n):\n    return 1 / n\n\nf(0)",
    "a function that calls another": "def f():\n    return 3\n\ndef g():\n    return f()\n\ng()",
    "the variables of earlier cells": "kept += 1\nkept",
    "sys.exit()": "import sys\nprint('a')\nsys.exit()\nprint('b')",
    "sys.exit(0) as the last expression": "import sys\nsys.exit(0)",
    "sys.exit(2)": "import sys\nprint('a')\nsys.exit(2)",
    "sys.exit with a text": "import sys\nsys.exit('no solution')",
    "an interrupt, which is no Exception": "print('a')\nraise KeyboardInterrupt",
    "too little memory": "raise MemoryError('of 10 GB')",
    "output to stderr": "import sys\nsys.stderr.write('warning')\n1",
    "another stream in the place of sys.stdout": "import io, sys\nsys.stdout = io.StringIO()\n"
    "print('lost')\n'kept'",
    "an error with another sys.stdout": "import io, sys\nsys.stdout = io.StringIO()\n1 / 0",
    "sys.exit with another sys.stdout": "import io, sys\nprint('a')\nsys.stdout = io.StringIO()\n"
    "sys.exit()",
    "an error that a program handles": "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    e",
}


def cases(seed: int) -> list[Case]:
    rng = random.Random(seed)
    a, b = rng.sample(range(2, 99), 2)
    sums = f"a = {a}\nb = {b}\nprint(a + b)\n[a * b, a - b]"
    return [
        *(Case(name, (code,), {}, shown) for name, code in PROGRAMS.items()),
        Case("sums", (sums,), {}, shown),
    ]


class Pipe(io.StringIO):
    """An output of which the world sees what has been flushed: the process ends abruptly."""

    seen = ""

    def flush(self):
        self.seen = self.getvalue()


def shown(function, code) -> dict:
    """How a program ends, what is seen of its output, and a variable that it leaves behind."""
    out, errors, names = Pipe(), Pipe(), {"kept": 7}
    with redirect_stdout(out), redirect_stderr(errors):
        try:
            ending = function(code, names)
            ending = ENDINGS.get(ending, ending)
        except (SystemExit, KeyboardInterrupt) as error:
            ending = f"the child dies of {type(error).__name__}"
    # The lines of a traceback are nobody's mistake: that there is one is.
    output = re.sub(r"(?m)^  .*\n", "", out.seen)
    return {"ending": ending, "output": output, "stderr": errors.seen, "kept": names.get("kept")}


EXEC = 'exec(compile(tree, "<code>", "exec"), names)'
SHOW = "print(value if isinstance(value, str) else repr(value), file=streams[0])"
LAST = "say(last_line(error), streams)"
MEMORY = "return MEMORY if isinstance(error, MemoryError) else ERROR"
EXERCISE = Exercise(
    number=5,
    name="run_cell",
    lab="B",
    target="nanotir.tools.cell:run_cell",
    teaches="A program that fails is an answer, too: its model learns from the last line of it.",
    minutes=35,
    points=30,
    stars=3,
    cases=cases,
    mistakes=(
        Mistake(
            "the value of the last expression is not shown: a model that forgets to print learns "
            "nothing from its call",
            (("if value is not None:", "if False:"),),
            bug=True,
        ),
        Mistake(
            "you show a text with quotes around it: print a str as it is, other values by repr",
            ((SHOW, SHOW.replace("value if isinstance(value, str) else ", "")),),
            bug=True,
        ),
        Mistake(
            "you show a value by str, and the model cannot see what it is: take repr",
            ((SHOW, SHOW.replace("repr(value)", "value")),),
        ),
        Mistake(
            "you show only values that are true: 0, False and [] are values as well",
            (("if value is not None:", "if value:"),),
        ),
        Mistake(
            "you show None: as in a notebook, it is no value",
            (("if value is not None:", "if True:"),),
        ),
        Mistake(
            "you show the whole traceback: a model pays for every id that it reads, and the last "
            "line says what is wrong",
            ((LAST, LAST.replace("last_line(error)", "__import__('traceback').format_exc()")),),
            bug=True,
        ),
        Mistake(
            "you show an error's message without its type",
            ((LAST, LAST.replace("last_line(error)", "str(error)")),),
        ),
        Mistake(
            "the model reads nothing of an error, and cannot tell it from a program without output",
            ((LAST, "pass"),),
            bug=True,
        ),
        Mistake(
            "an error counts as a success",
            ((MEMORY, "return OK"),),
            bug=True,
        ),
        Mistake(
            "you do not tell a program that ran out of memory from other errors",
            ((MEMORY, "return ERROR"),),
        ),
        Mistake(
            "you catch Exception alone: an interrupt, and whatever else is none, ends the child",
            (("except BaseException as error:", "except Exception as error:"),),
        ),
        Mistake(
            "every sys.exit counts as an error: without a code, or with 0, it is a normal end",
            (("if stop.code in (None, 0):", "if False:"),),
        ),
        Mistake(
            "every sys.exit counts as a success: one with another code, or a text, is an error",
            (("if stop.code in (None, 0):", "if True:"),),
        ),
        Mistake(
            "what a program has printed may be lost: write it out (finish) before you return",
            (
                (
                    "        finish(streams)\n        return OK\n    except",
                    "        return OK\n    except",
                ),
            ),
        ),
        Mistake(
            "you print to sys.stdout, in whose place the program may have put something else",
            ((SHOW, SHOW.replace(", file=streams[0]", "")),),
        ),
        Mistake(
            "the program runs with two sets of names, and its functions do not find one another",
            ((EXEC, EXEC.replace("names)", "names, names := dict(names))")),),
        ),
        Mistake(
            "the next cell will not find this one's variables: run the program in `names` itself",
            (("    try:\n        tree", "    names = dict(names)\n    try:\n        tree"),),
        ),
    ),
    hints=(
        "A program ends in 1/0, another in sys.exit(), a third with the line x. What would you "
        "like to read of each, if you could read nothing else?",
        "ast.parse the code and take the last statement off if it is an expression. exec the rest "
        "and eval the expression, both in `names`. Catch SystemExit, then BaseException: `say` "
        "prints a last line, `finish` writes out what is buffered.",
        "OK: done, or SystemExit with None or 0. ERROR: say(last_line(error)), or of SystemExit "
        "its text, or 'SystemExit: code'. MEMORY: a MemoryError. Note the streams first.",
    ),
    read=("nanotir/tools/cell.py:run_cell", "nanotir/tools/sandbox.py:oversee"),
    look="the two streams are noted before the program runs, and it returns how to end instead of "
    "ending: run_child does that by a signal which no program can send by chance",
    question="This function has no limit of time. Who stops an endless loop, and why not here?",
    answer="The worker, another process: it kills the child's whole group when the time is up "
    "(oversee), and the kernel limits processor time and memory (lockdown). A limit inside the "
    "process, as an alarm, is in the program's own hands: it can catch or clear it, fork, or sit "
    "in C code that never returns to Python.",
)
