"""Grades one submission where a course runs it: writes what Gradescope or Classroom 50 reads.

python -m nanotir.exercises.service gradescope /autograder
python -m nanotir.exercises.service classroom50 CHECKOUT

pack.py puts this into a zip, with lab.json, which names the lab and the seed. The result is written
once, at the end. An error here is one of the grader: it leaves no result, and the course's staff is
told.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

from nanotir.exercises.exercise import LABS
from nanotir.exercises.grade import Grade, exercises_of, grade, total
from nanotir.tools.python import PROJECT


def main():
    service, folder = sys.argv[1], Path(sys.argv[2])
    lab = json.loads((PROJECT / "lab.json").read_text())
    chosen = exercises_of(lab["lab"])
    started = time.monotonic()
    if service == "gradescope":
        grades = grade({"": folder / "submission"}, chosen, lab["seed"])
        path = folder / "results/results.json"
        result = gradescope(grades, time.monotonic() - started)
    else:
        grades = grade({"": folder}, chosen, lab["seed"])
        path = folder / "result.json"
        result = classroom50(grades, os.environ, submitted(folder))
    path.unlink(missing_ok=True)  # a student's checkout may hold one, or a link of that name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1), encoding="utf-8")


def gradescope(grades: list[Grade], seconds: float) -> dict:
    """The content of results.json."""
    tests = []
    for one in grades:
        passed = one.verdict == "passed"
        tests.append(
            {
                "score": one.points,
                "max_score": one.max_points,
                "status": "passed" if passed else "failed",
                "name": one.name,
                "number": one.exercise,
                "output": f"{one.verdict}: {one.sentence}",
                "output_format": "text",
                "visibility": "visible",
                "extra_data": {"mistake": one.mistake, "copied": one.copied},
            }
        )
    return {
        "score": total(grades)["points"],
        "execution_time": round(seconds),
        "output": summary(grades),
        "output_format": "text",
        "stdout_visibility": "hidden",
        "tests": tests,
    }


def classroom50(grades: list[Grade], environment: Mapping[str, str], when: datetime) -> dict:
    """The content of result.json. KeyError without the variables that the runner sets."""
    tests = []
    for one in grades:
        tests.append(
            {
                "test-name": f"{one.exercise} {one.name}",
                "passed": one.verdict == "passed",
                "score": one.points,
                "max-score": one.max_points,
                "message": f"{one.verdict}: {one.sentence}",
                "mistake": one.mistake,
                "copied": one.copied,
            }
        )
    of_all = total(grades)
    return {
        "schema": "classroom50/result/v1",
        "classroom": environment["CLASSROOM"],
        "assignment": environment["ASSIGNMENT"],
        "submission": environment["SUBMISSION_TAG"],
        "commit": environment["COMMIT_URL"],
        "release": environment["RELEASE_URL"],
        "review": environment.get("REVIEW_URL") or environment["COMMIT_URL"],
        "datetime": when.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "score": of_all["points"],
        "max-score": of_all["max_points"],
        "tests": tests,
    }


def submitted(checkout: Path) -> datetime:
    """When the graded commit was made, which a later grading does not change; else now."""
    command = ["git", "-C", str(checkout), "show", "--no-patch", "--format=%ct", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True)
    seconds = int(found.stdout) if found.returncode == 0 else time.time()
    return datetime.fromtimestamp(seconds, timezone.utc)


def summary(grades: list[Grade]) -> str:
    """One line on the whole submission."""
    lab = grades[0].exercise[0]
    passed = sum(one.verdict == "passed" for one in grades)
    return f"Lab {lab}, {LABS[lab]}: {passed} of {len(grades)} exercises pass."


if __name__ == "__main__":
    main()
