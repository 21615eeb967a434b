"""The classroom: write functions of this package yourself, and be told what is wrong with them.

python -m nanotir.exercises                 the exercises, and how far you are
python -m nanotir.exercises start 8         write answers/e08_advantages.py, which you complete
python -m nanotir.exercises check 8         check it; without a number, all that are started
python -m nanotir.exercises watch 8         check it whenever you save it
python -m nanotir.exercises hint 8          a hint; one more each time, three in all
python -m nanotir.exercises diff 8          yours beside the package's, once it has passed
python -m nanotir.exercises probe           train six tiny worlds with your functions
python -m nanotir.exercises bug 3           find a bug that is planted in a copy of the package
python -m nanotir.exercises grade DIR       for the teacher: grade submissions
python -m nanotir.exercises pack SERVICE    for the teacher: an autograder for Gradescope or others

start takes a lab (A, B, C or D) as well. --answers DIR is a folder other than answers/.
"""

from __future__ import annotations

import ast
import difflib
import gc
import inspect
import os
import sys
import time
from importlib import import_module
from typing import NoReturn

from nanotir.checks import one_of
from nanotir.commands import Parser, one_line
from nanotir.exercises.answers import Answers, digest, function_node
from nanotir.exercises.check import Verdict
from nanotir.exercises.exercise import LABS, Exercise, exercises
from nanotir.exercises.jail import check_file

ELSEWHERE = {"probe": "probes", "bug": "bugs", "grade": "grade", "pack": "pack"}
COMMAND = "python -m nanotir.exercises"


def main(arguments=None) -> int:
    """Do what the command line says; 0 unless a check has found something."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in ("-h", "--help"):
        print(__doc__.strip())
        return 0
    if not arguments or arguments[0].startswith("-"):
        arguments = ["list", *arguments]
    verb, *rest = arguments
    with one_line("exercises"):
        one_of("command", verb, [*VERBS, *ELSEWHERE])
        if verb in ELSEWHERE:
            return import_module(f"nanotir.exercises.{ELSEWHERE[verb]}").main(rest) or 0
        return VERBS[verb](rest) or 0


def options_of(verb: str, about: str, arguments: list[str], which: str, *flags: str):
    """The command line of a verb: the exercises it names, its flags, and the folder of answers."""
    parser = Parser(f"{COMMAND} {verb}", about)
    if which:
        parser.add_argument("which", nargs=None if which == "N" else "?", metavar=which)
    for flag in flags:
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--answers", default="answers", metavar="DIR", help="folder of your files")
    options = parser.parse_args(arguments)
    options.answers = Answers(options.answers)
    return options


def chosen(which: str) -> list[Exercise]:
    """The exercise of a number (8 or C8) or a name, or those of a lab. ValueError for others."""
    if which.isdecimal() and (found := exercises(int(which))):
        return found
    known = exercises()
    name = which.upper()
    found = [e for e in known if which == e.name or name in (e.lab, f"{e.lab}{e.number}")]
    if not found:
        numbers = f"{known[0].number} to {known[-1].number}"
        raise ValueError(f"no exercise '{which}': there are {numbers}, and the labs A, B, C and D")
    return found


def show_list(arguments: list[str]):
    answers = options_of("list", "The exercises, and how far you are.", arguments, "").answers
    states = {exercise.number: answers.state(exercise) for exercise in exercises()}
    for lab, about in LABS.items():
        rows = [exercise for exercise in exercises() if exercise.lab == lab]
        print(f"{lab}  {about}, {sum(e.minutes for e in rows)} minutes")
        for e in rows:
            stars = "*" * e.stars
            print(
                f"{e.number:4}  {e.name:24} {stars:5}{e.minutes:3} min  {states[e.number]}".rstrip()
            )
    passed = list(states.values()).count("passed")
    print(f"{passed} of {len(states)} passed{following(states)}")


def following(states: dict[int, str]) -> str:
    """What to do next: to go on with what is begun, or to begin another exercise."""
    for number, state in states.items():
        if state not in ("", "passed", "skipped"):
            return f"; next: {COMMAND} check {number}"
    return next((f"; next: {COMMAND} start {n}" for n, state in states.items() if not state), "")


def start(arguments: list[str]):
    about = "Write the file of an exercise, or those of a lab (default: the next exercise)."
    options = options_of("start", about, arguments, "N|LAB")
    answers = options.answers
    wanted = chosen(options.which) if options.which else not_begun(answers)[:1]
    for exercise in wanted:
        path = answers.path(exercise)
        if not answers.start(exercise):
            print(f"{path} is there already and stays as it is")
            continue
        print(f"{path}: {exercise.teaches} About {exercise.minutes} minutes.")
        print(f"  read {', '.join(before_passing(exercise)) or exercise.read[0]}")
        print(f"  then {COMMAND} check {exercise.number}")


def not_begun(answers: Answers) -> list[Exercise]:
    return [exercise for exercise in exercises() if not answers.path(exercise).exists()]


def before_passing(exercise: Exercise) -> list[str]:
    """What to read, without the solution itself."""
    return [place for place in exercise.read if place != solution_of(exercise)]


def solution_of(exercise: Exercise) -> str:
    """Where the package's function stands: "nanotir/losses.py:clipped"."""
    return exercise.target.replace(".", "/").replace(":", ".py:")


def check(arguments: list[str]) -> int:
    """Check one exercise, or all that are started and tell more about the first that fails."""
    options = options_of("check", "Check what you have written.", arguments, "[N|LAB]")
    answers = options.answers
    wanted = chosen(options.which) if options.which else exercises()
    rows = [exercise for exercise in wanted if answers.path(exercise).exists()]
    if not rows:
        answers.source(wanted[0])  # says how to start
    told = False
    for exercise in rows:
        verdict = checked(answers, exercise)
        is_told = verdict.word not in ("passed", "to do") and not told
        print(report(exercise, verdict, details=is_told or len(rows) == 1), flush=True)
        told = told or is_told
    return int(any(answers.state(exercise) not in ("passed", "skipped") for exercise in rows))


def checked(answers: Answers, exercise: Exercise) -> Verdict:
    """The verdict on a file, which is kept for the list."""
    source = answers.source(exercise)
    verdict = check_file(exercise, answers.path(exercise))
    answers.keep(exercise, word=verdict.word, file=digest(source))
    return verdict


def report(exercise: Exercise, verdict: Verdict, details: bool = True) -> str:
    """The verdict's word, one sentence, one case, and where to read."""
    head = f"{verdict.word.upper():6} {exercise.number} {exercise.name}"
    if not details:
        return head if verdict.word == "passed" else f"{head}: {verdict.sentence}"
    lines = [f"{head}: {verdict.sentence}", *(f"  {line}" for line in verdict.case.splitlines())]
    if verdict.word == "passed":
        lines.append(f"  read  {solution_of(exercise)}, and `{COMMAND} diff {exercise.number}`")
    elif places := before_passing(exercise):
        lines.append(f"  read  {', '.join(places)}, or `{COMMAND} hint {exercise.number}`")
    return "\n".join(lines)


def watch(arguments: list[str]):
    """Check a file whenever it is saved, until it passes."""
    options = options_of(
        "watch", "Check a file whenever you save it, until it passes.", arguments, "N"
    )
    exercise = chosen(options.which)[0]
    options.answers.source(exercise)
    seen = None
    while True:
        path = options.answers.path(exercise)
        saved = path.stat().st_mtime_ns if path.exists() else seen  # an editor may replace it
        if saved != seen:
            seen = saved
            verdict = checked(options.answers, exercise)
            print(f"{time.strftime('%H:%M:%S')} {report(exercise, verdict)}", flush=True)
            if verdict.word == "passed":
                return
        time.sleep(0.2)


def hint(arguments: list[str]):
    options = options_of("hint", "A hint; one more each time, three in all.", arguments, "N")
    exercise = chosen(options.which)[0]
    options.answers.source(exercise)
    taken = min(options.answers.record(exercise).get("hints", 0) + 1, len(exercise.hints))
    options.answers.keep(exercise, hints=taken)
    for number, text in enumerate(exercise.hints[:taken], 1):
        print(f"{number} of {len(exercise.hints)}  {text}")


def diff(arguments: list[str]):
    about = "Your function beside the package's, once it has passed."
    options = options_of("diff", about, arguments, "N", "--give-up")
    exercise = chosen(options.which)[0]
    source = options.answers.source(exercise)
    if not options.give_up and checked(options.answers, exercise).word != "passed":
        raise ValueError("it has not passed yet: check it, take a hint, or add --give-up")
    node = function_node(exercise, source)
    yours = (ast.get_source_segment(source, node) if node else source).splitlines()
    its = inspect.getsource(inspect.unwrap(exercise.function)).splitlines()
    names = (str(options.answers.path(exercise)), solution_of(exercise))
    print(
        "\n".join(difflib.unified_diff(yours, its, *names, n=100, lineterm="")) or "the same text"
    )
    print(exercise.look)


VERBS = {
    "list": show_list,
    "start": start,
    "check": check,
    "watch": watch,
    "hint": hint,
    "diff": diff,
}


def check_and_exit() -> NoReturn:
    """main(), and the end of this process, without two steps that take a third of a check's time.

    Importing torch makes many objects. Python would search them for garbage again and again, and
    free them one by one at the end. A check leaves nothing else to clean up.
    """
    gc.disable()
    code = main()
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    if sys.argv[1:2] == ["check"]:
        check_and_exit()
    sys.exit(main())
