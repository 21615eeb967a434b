"""A student's file in a process of its own: however that ends, it is a sentence."""

import inspect

import pytest

from nanotir.exercises import jail
from nanotir.exercises.exercise import exercises
from nanotir.exercises.stub import stub

EXERCISE = next(exercise for exercise in exercises() if exercise.number == 8)
TO_DO = 'raise NotImplementedError("exercise 8")  # your code goes here'
LINE = stub(EXERCISE)[: stub(EXERCISE).index(TO_DO)].count("\n") + 1


@pytest.fixture
def verdict_on(tmp_path, monkeypatch):
    monkeypatch.setattr(jail, "SECONDS", 1.0)
    monkeypatch.setattr(jail, "PATIENCE", 20.0)

    def check(body: str, text: str = stub(EXERCISE)):
        file = tmp_path / "e08_advantages.py"
        file.write_text(text.replace(TO_DO, body))
        return jail.check_file(EXERCISE, file)

    return check


@pytest.mark.parametrize("exercise", exercises(), ids=lambda exercise: exercise.name)
def test_the_package_s_function_passes_with_what_the_stub_imports(exercise, tmp_path):
    function = inspect.getsource(inspect.unwrap(exercise.function))
    imports, _, _ = stub(exercise).partition(function.splitlines()[0])
    file = tmp_path / "own.py"
    file.write_text(imports + function)
    assert jail.check_file(exercise, file) == ("passed", exercise.look, "", None)


def test_a_stub_is_to_do(verdict_on):
    assert verdict_on(TO_DO).word == "to do"


@pytest.mark.parametrize(
    "body, word, sentence",
    [
        ("while True: pass", "error", "did not end within 1 s, in line {line}: while True: pass"),
        ("exit()", "error", "SystemExit, in line {line}: exit()"),
        ("import os; os._exit(0)", "error", "ended its process, with code 0"),
        ("import ctypes; ctypes.string_at(0)", "error", "crashed its process: Segmentation fault"),
        ("bytearray(10**10)", "error", "MemoryError, in line {line}: bytearray(10**10)"),
        (
            "return 1 / 0",
            "error",
            "ZeroDivisionError: division by zero, in line {line}: return 1 / 0",
        ),
        ("return helper()", "error", "name 'helper' is not defined, in line {line}"),
        ("pass", "wrong", "the output is None: is a `return` missing?"),
        ("(", "error", "SyntaxError: '(' was never closed, in line {line}: ("),
        (
            "from nanotir.advantages import group_advantages as g; return g(rewards, group_size)",
            "wrong",
            "it calls the package's own group_advantages",
        ),
        (
            "import torch; r = torch.as_tensor(rewards); r *= 2; return r / 1",
            "wrong",
            "it changes its input rewards: work on a copy",
        ),
        ("print('passed'); return 0.0", "wrong", "the output is of type float, not tensor"),
    ],
)
def test_what_a_function_does_is_told_in_one_sentence(verdict_on, body, word, sentence):
    verdict = verdict_on(body)
    assert verdict.word == word
    assert sentence.format(line=LINE) in verdict.sentence
    assert "\n" not in verdict.sentence


def test_a_file_without_the_function_is_told_so(verdict_on):
    assert "defines no function group_advantages" in verdict_on("", "x = 1\n").sentence


FORGE = """import contextlib, os
    for descriptor in range(3, 30):
        with contextlib.suppress(OSError):
            os.write(descriptor, SENT)
    os._exit(0)
"""


@pytest.mark.parametrize("sent", ["[]", "1", "{", "[[]]", "[" * 5000, '[{"output": ["None"]}]'])
def test_what_a_process_sends_instead_of_outputs_does_not_pass(verdict_on, sent):
    verdict = verdict_on(FORGE.replace("SENT", repr(sent.encode())))
    assert verdict.word == "error"
    assert verdict.sentence.startswith("what came back cannot be compared: ")


def test_what_a_process_sends_is_shown_without_control_characters(verdict_on):
    sent = rb'{"kind": "E", "message": "", "line": "\u001b[2K\n", "code": ""}'
    verdict = verdict_on(FORGE.replace("SENT", repr(sent)))
    assert "\x1b" not in verdict.sentence
    assert "<U+001B>[2K↵" in verdict.sentence


def test_files_outside_are_out_of_reach(verdict_on, needs, tmp_path):
    needs("Landlock")
    precious = tmp_path / "precious.txt"
    precious.write_text("other people's answers")
    assert "PermissionError" in verdict_on(f"open({str(precious)!r}).read()").sentence
    assert "PermissionError" in verdict_on(f"__import__('os').remove({str(precious)!r})").sentence
    assert precious.exists()


def test_the_solution_is_out_of_reach(verdict_on, needs):
    needs("Landlock")
    read = "import inspect, nanotir.advantages as a; inspect.getsource(a)"
    again = "import importlib, nanotir.advantages as a; importlib.reload(a)"
    assert "could not get source code" in verdict_on(read).sentence
    # Where another process has just written to the folder, Python lists it anew, and may not.
    refused = ("PermissionError", "ModuleNotFoundError: spec not found")
    assert verdict_on(again).sentence.startswith(refused)


SEARCH = """import gc, types
    generators = [one for one in gc.get_objects() if isinstance(one, types.GeneratorType)]
    found = [one.gi_frame.f_locals.get("kept") for one in generators if one.gi_frame]
    raise ValueError(sorted(code.co_name for code, *_ in filter(None, found)))
"""


def test_the_solution_s_code_is_not_in_memory(verdict_on):
    assert "ValueError: ['stand_in']" in verdict_on(SEARCH).sentence


def test_a_link_is_not_followed(tmp_path):
    link = tmp_path / "e08_advantages.py"
    link.symlink_to(tmp_path / "another_student.py")
    (tmp_path / "another_student.py").write_text(stub(EXERCISE))
    assert jail.check_file(EXERCISE, link) == ("error", "this is not a plain file", "", None)


def test_it_starts_no_process(verdict_on, needs):
    needs("seccomp")
    assert "not permitted" in verdict_on("import os; os.fork()").sentence


def test_a_printed_line_belongs_to_its_case(verdict_on):
    verdict = verdict_on("print(len(rewards)); return 0.0")
    assert "  printed   12" in verdict.case.splitlines()
