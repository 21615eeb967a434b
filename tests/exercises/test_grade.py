"""Grading: what a submission earns, and that none harms or lies its way through."""

import contextlib
import csv
import inspect
import json
import os
from pathlib import Path

import pytest

from nanotir.exercises import apart, e08_advantages, grade, inside
from nanotir.exercises.apart import Apart, checked_value
from nanotir.exercises.exercise import edited_text, exercises
from nanotir.exercises.stub import stub
from nanotir.tools import lockdown

EXERCISE = e08_advantages.EXERCISE
FILE = "e08_advantages.py"
OWN = inspect.getsource(EXERCISE.function)
HEAD = stub(EXERCISE).split("\n\n\n")[0] + "\n\n\n"
ZEROS = """
import torch
def group_advantages(rewards, *options, **more):
    return torch.zeros(len(rewards))
"""


@pytest.fixture(scope="module")
def server():
    with Apart(EXERCISE) as started:
        yield started


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A file of somebody else's, which no submission may read, change or delete."""
    path = tmp_path_factory.mktemp("other") / "secret.py"
    path.write_text(HEAD + OWN)
    return path


def verdict_on(server, source: str, seed: int = 1):
    return grade.verdict(EXERCISE, server.ask(source, seed), seed)


def calling(*lines: str) -> str:
    """A file whose function begins with these lines and then returns zeros."""
    body = "\n    ".join(lines)
    return ZEROS.replace("return", f"{body}\n    return")


def test_the_packages_own_text_passes(server):
    assert verdict_on(server, HEAD + OWN).word == "passed"


def test_the_stub_is_to_do(server):
    assert verdict_on(server, stub(EXERCISE)).word == "to do"


def test_a_mistake_is_named(server):
    mistake = EXERCISE.mistakes[2]
    verdict = verdict_on(server, HEAD + edited_text(OWN, mistake))
    assert (verdict.word, verdict.sentence, verdict.mistake) == ("wrong", mistake.message, 2)


def test_an_error_is_told_with_the_students_own_line(server):
    verdict = verdict_on(server, calling("undefined + 1"))
    assert verdict.word == "error"
    assert "NameError" in verdict.sentence and "undefined + 1" in verdict.sentence


@pytest.mark.parametrize("exercise", exercises(), ids=lambda exercise: exercise.name)
def test_the_copy_of_every_exercise_has_no_solution(exercise, tmp_path):
    apart.copy_package(exercise, tmp_path)
    path = inspect.getfile(inspect.unwrap(exercise.function))
    text = (tmp_path / Path(path).relative_to(apart.PROJECT)).read_text()
    compile(text, path, "exec")
    assert "is cut out" in grade.body(text, exercise.name)[0]
    assert len(grade.body(text, exercise.name)) == 1


REFUSED = "PermissionError"
CALLED = "it calls the package's own group_advantages: write yours"
DIFFERS = "the output"  # begins a sentence about the outputs
FORGED = '{"outcomes": [{"output": ["tensor", [], [12], "float64"], "changed": []}]}'
PACKAGE = Path(apart.PROJECT) / "nanotir"

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
    "reads the exercise": (f"open('{PACKAGE}/exercises/{FILE}').read()", REFUSED),
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
    "forges outputs and ends as if it were done": (
        "import os\nfor d in range(3, 9):\n"
        f"    try: os.write(d, {FORGED.encode()!r})\n    except OSError: pass\n"
        "os.kill(os.getpid(), 60)",
        "wrote to the place",
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


@pytest.mark.skipif(lockdown.landlock_version() < 1, reason="needs Landlock")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_does_not_pass_and_is_answered_in_a_sentence(
    name, server, outside, monkeypatch
):
    source, sentence = HOSTILE[name]
    if "loop" in name:
        monkeypatch.setattr(apart, "SECONDS", 0.2)
        monkeypatch.setattr(apart, "PATIENCE", 5 if "ignores" in name else 100)
    verdict = verdict_on(server, source.replace("OUTSIDE", str(outside)))
    assert verdict.word in ("wrong", "error")
    assert sentence in verdict.sentence
    assert "\n" not in verdict.sentence and len(verdict.sentence) < 500
    assert outside.read_text() == HEAD + OWN


@pytest.mark.parametrize(
    "value",
    [
        ["tensor", [], [12], "float64"],
        ["tensor", ["1"], [1], "float64"],
        ["tensor", [1.0], [1]],
        ["float", "1.0"],
        ["int", True],
        ["list", [1, 2]],
        ["dict", [["item", [["int", 1]]]]],
        [["float"], 1.0],
        [],
    ],
)
def test_a_value_that_is_not_what_it_says_is_refused(value):
    with pytest.raises((ValueError, TypeError)):
        checked_value(value)


def test_the_text_of_an_object_is_no_list_of_values():
    assert checked_value(["Span", "looks like one"]) == ["object Span", "looks like one"]


def test_a_hostile_file_does_not_harm_the_next(server, outside):
    for name in ("closes everything", "kills its parent", "leaves a thread behind"):
        server.ask(HOSTILE[name][0].replace("OUTSIDE", str(outside)), 1)
    assert verdict_on(server, HEAD + OWN).word == "passed"


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_nobody_keeps_no_folder_but_the_servers(tmp_path, outside, monkeypatch):
    outside.chmod(0o600)
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path / "base")
    if (pid := os.fork()) == 0:
        inside.become_nobody(".")
        open("own", "w").close()
        os._exit(os.access(outside, os.R_OK))
    assert os.waitpid(pid, 0)[1] == 0
    assert (tmp_path / "base/own").exists()


@pytest.fixture
def alone(server, monkeypatch):
    """The class has one exercise, whose server is running already."""
    monkeypatch.setattr(grade, "Apart", lambda exercise: contextlib.nullcontext(server))
    monkeypatch.setattr(grade, "exercises", lambda: [EXERCISE])


@pytest.fixture
def students(tmp_path):
    """Four students: one is right, one is wrong, one has a link to the first, one has nothing."""
    wrong = HEAD + edited_text(OWN, EXERCISE.mistakes[0])
    for path, text in {
        "ada": HEAD + OWN,
        "bob/answers": wrong,
        "cy/deep/er": None,
        "dan": "",
    }.items():
        (tmp_path / path).mkdir(parents=True)
        if text:
            (tmp_path / path / FILE).write_text(text)
    (tmp_path / "cy/deep/er" / FILE).symlink_to(tmp_path / "ada" / FILE)
    return tmp_path


def printed(capsys, *arguments) -> str:
    grade.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def test_the_grades_of_four_students(alone, students, capsys):
    rows = list(csv.DictReader(printed(capsys, students, "--csv").splitlines()))
    found = [(row["student"], row["verdict"], row["points"], row["copied"]) for row in rows]
    assert found == [
        ("ada", "passed", "20", "True"),
        ("bob", "wrong", "10", "False"),
        ("cy", "error", "0", "False"),
        ("dan", "to do", "0", "False"),
    ]
    assert rows[1]["mistake"] == EXERCISE.mistakes[0].message
    assert rows[2]["sentence"] == "the file is a link out of its folder"


def test_the_same_seed_gives_the_same_bytes(alone, students, capsys):
    first = printed(capsys, students, "--json", "--seed", 5)
    assert first == printed(capsys, students, "--json", "--seed", 5)
    assert json.loads(first)["seed"] == 5


def test_one_students_folder_is_graded_under_its_name(alone, students, capsys):
    report = json.loads(printed(capsys, students / "ada", "--json"))
    assert [student["student"] for student in report["students"]] == ["ada"]


def test_a_spreadsheet_takes_no_text_for_a_formula():
    assert grade.harmless("=1+1") == "'=1+1"
