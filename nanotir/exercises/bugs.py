"""Silent bugs: planted in a copy of the package, where nothing crashes and training goes on.

    python -m nanotir.exercises bug 3 [--seed S]
    python -m nanotir.exercises bug 3 [--seed S] --answer "losses.py:105, why"

The bugs are in bug_list.py, and which probe shows which of them in BUGS.md.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from nanotir.checks import Count, Whole
from nanotir.commands import Parser, number
from nanotir.exercises.bug_list import BUGS, Bug

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "python -m nanotir.exercises"
NEAR = 3  # lines that an answer may be off
KEPT_BACK = ("bug*.py", "BUGS.md", "__pycache__")  # from a copy
ELSEWHERE = 'raise ValueError("answer from where you started the hunt, not from the copy")\n'


def bug_of(hunt: int, seed: int) -> Bug:
    """The bug of a hunt for a seed: no two hunts of a seed share one, nor do two near seeds.

    ValueError where there are fewer hunts.
    """
    if hunt > len(BUGS):
        raise ValueError(f"there is no hunt {hunt}: there are 1 to {len(BUGS)}")
    return BUGS[(seed + 9 * (hunt - 1)) % len(BUGS)]


def plant(bug: Bug | None, folder: Path):
    """Copy the package into a folder, with the bug. All files there have the same time."""
    ignored = shutil.ignore_patterns(*KEPT_BACK)
    shutil.copytree(ROOT / "nanotir", folder / "nanotir", ignore=ignored)
    for name in ("train.py", "sample.py"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "nanotir/exercises/bugs.py").write_text(ELSEWHERE)
    if bug:
        path = folder / "nanotir" / bug.file
        path.write_text(bug.planted(path.read_text(encoding="utf-8")), encoding="utf-8")
    for path in folder.rglob("*"):
        os.utime(path, (0, 0))


def hunt(number: int, seed: int) -> str:
    """Plant a bug, and say what to do."""
    bug = bug_of(number, seed)
    folder = Path(tempfile.mkdtemp(prefix=f"nanotir-bug-{number}-"))
    plant(bug, folder)
    return f"""A copy of nanotir with a bug in it is in {folder}
Nothing crashes there, and training goes on. Go there and compare with what happens here:
  {COMMAND} probe    six tiny worlds: which are learned, and how
  python train.py --out run            six minutes: its log (logp_gap, grad_norm, ratio_mean)
  python -m nanotir.page run           the same, and its traces, as a page
Then read the code that these point to. (To compare the files themselves would be no exercise.)
Answer from here, with the line in that copy and the reason:
  {COMMAND} bug {number} --seed {seed} --answer "losses.py:105, why"\
"""


def grade(bug: Bug, answer: str) -> tuple[bool, str]:
    """(whether the place is right, what to tell). ValueError for an answer that names no place."""
    found = re.fullmatch(r"\s*(\S+?\.py):(\d+)\W+(.*\w.*)", answer, re.DOTALL)
    if not found:
        raise ValueError(f"'{answer}' is no answer: write it as \"losses.py:105, why\"")
    file, line, why = found[1], int(found[2]), found[3].strip()
    source = (ROOT / "nanotir" / bug.file).read_text(encoding="utf-8")
    lines = bug.lines(source)
    right_file = f"/nanotir/{bug.file}".endswith("/" + file.removeprefix("./"))
    if not right_file or not lines[0] - NEAR <= line <= lines[-1] + NEAR:
        return False, f"0 of {bug.points} points: it is not at {file}:{line}. Your reason: {why}"
    story = [
        f"{bug.points} of {bug.points} points for the place. Your reason: {why}",
        f"What it does: {bug.what}",
        f"Why it is silent: {bug.silent}",
        f"{bug.file}:{lines[0]} was",
        *bug.old.splitlines(),
        "and is",
        *bug.new.splitlines(),
    ]
    return True, "\n".join(story)


def main(arguments=None) -> int:
    parser = Parser(f"{COMMAND} bug", "Find a silent bug in a copy of the package.")
    parser.add_argument("number", type=number(Count), metavar="N", help="which hunt: 1, 2, ...")
    about = "each has other bugs: your number in the class"
    parser.add_argument("--seed", type=number(Whole), default=0, metavar="S", help=about)
    parser.add_argument("--answer", metavar="PLACE", help='such as "losses.py:105, why"')
    options = parser.parse_args(arguments)
    if options.answer is None:
        print(hunt(options.number, options.seed))
        return 0
    right, told = grade(bug_of(options.number, options.seed), options.answer)
    print(told)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
