"""Silent bugs: each is planted in a copy, found by its place, and named by nobody before that."""

import filecmp
import re
from pathlib import Path

import pytest

from nanotir import rl
from nanotir.exercises import bug_table, bugs
from nanotir.exercises.bug_list import BUGS
from nanotir.exercises.bugs import NEAR, ROOT, bug_of, grade, main, plant
from nanotir.exercises.probes import WORLDS, climb

HIDDEN = {"bug_list.py", "bug_table.py", "bugs.py", "BUGS.md"}


def source_of(bug) -> str:
    return (ROOT / "nanotir" / bug.file).read_text()


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.what)
def test_a_bug_applies_to_the_package_and_compiles(bug):
    planted = bug.planted(source_of(bug))
    assert planted != source_of(bug)
    compile(planted, bug.file, "exec")


def test_an_edit_whose_text_is_not_there_once_is_an_error():
    with pytest.raises(ValueError, match="occurs 0 times"):
        BUGS[0].planted("")
    with pytest.raises(ValueError, match="occurs 2 times"):
        BUGS[0].planted(source_of(BUGS[0]) * 2)


def test_two_seeds_have_two_bugs_and_so_have_two_hunts():
    everything = set(BUGS)
    assert {bug_of(3, seed) for seed in range(len(BUGS))} == everything
    assert {bug_of(hunt, 5) for hunt in range(1, len(BUGS) + 1)} == everything


def test_a_copy_differs_from_the_package_by_its_bug_alone(tmp_path):
    bug = BUGS[-1]
    plant(bug, tmp_path)
    copied = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    _, different, missing = filecmp.cmpfiles(ROOT, tmp_path, map(str, copied), shallow=False)
    assert set(different) == {f"nanotir/{bug.file}", "nanotir/exercises/bugs.py"} and not missing
    wanted = {path.relative_to(ROOT) for path in (ROOT / "nanotir").rglob("*.py")}
    assert {path.name for path in wanted - set(copied)} == HIDDEN - {"BUGS.md", "bugs.py"}
    assert len({path.stat().st_mtime for path in tmp_path.rglob("*.py")}) == 1


@pytest.fixture
def hunted(tmp_path, monkeypatch, capsys):
    """What a student reads at the beginning of hunt 2."""
    monkeypatch.setattr(bugs.tempfile, "tempdir", str(tmp_path))
    assert main(["2", "--seed", "6"]) == 0
    return capsys.readouterr().out


def test_a_hunt_says_where_the_copy_is_and_not_what_is_wrong_with_it(hunted):
    bug = bug_of(2, 6)
    folder = Path(re.search(r"is in (\S+)", hunted)[1])
    copy = (folder / "nanotir" / bug.file).read_text()
    assert bug.new in copy and copy == bug.planted(source_of(bug))
    assert bug.what not in hunted and bug.file not in hunted.replace("losses.py:105", "")


def test_the_copy_sends_those_who_answer_in_it_back(hunted):
    folder = Path(re.search(r"is in (\S+)", hunted)[1])
    with pytest.raises(ValueError, match="answer from where you started"):
        exec((folder / "nanotir/exercises/bugs.py").read_text())


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.what)
def test_an_answer_is_graded_by_its_place(bug):
    lines = bug.lines(source_of(bug))
    first, last = lines[0], lines[-1]
    planted = bug.planted(source_of(bug)).splitlines()
    assert "\n".join(planted[first - 1 : last]).find(bug.new.strip()) >= 0
    for line, right in [
        (first, True),
        (last, True),
        (first - NEAR, True),
        (last + NEAR, True),
        (first - NEAR - 1, False),
        (last + NEAR + 1, False),
    ]:
        assert grade(bug, f"{bug.file}:{line}, because")[0] == right
    assert grade(bug, f"nanotir/{bug.file}:{first}: because")[0]
    assert not grade(bug, f"room.py:{first}, because")[0]


def test_only_the_right_place_is_told_the_story(capsys):
    bug = bug_of(1, 0)
    line = bug.lines(source_of(bug))[0]
    assert main(["1", "--answer", f"{bug.file}:{line + 40}, it looks odd"]) == 1
    wrong = capsys.readouterr().out
    assert main(["1", "--answer", f"{bug.file}:{line}, it looks odd"]) == 0
    right = capsys.readouterr().out
    assert bug.what in right and bug.silent in right and "it looks odd" in right
    assert bug.what not in wrong and "0 of" in wrong


@pytest.mark.parametrize("answer", ["losses.py:105", "losses.py:105, ", "the mask", ""])
def test_an_answer_without_a_place_or_a_reason_is_refused(answer):
    with pytest.raises(ValueError, match="losses.py:105, why"):
        grade(BUGS[0], answer)


def test_a_planted_bug_keeps_its_probe_from_being_solved(monkeypatch):
    bug = next(bug for bug in BUGS if "nothing depends on it" in bug.what)
    names = {"__name__": "nanotir.losses"}
    exec(compile(bug.planted(source_of(bug)), bug.file, "exec"), names)
    monkeypatch.setattr(rl, "policy_loss", names["policy_loss"])
    assert climb(WORLDS[0]).solved is None


def climbs(solved, best=1.0, gap=1e-6):
    return 3 * [{"solved": solved, "best": best, "gap": gap, "seconds": 6.0, "error": ""}]


def test_the_table_marks_what_shows_a_bug_and_lists_the_bugs_that_nothing_shows():
    clean = [climbs(10)] * len(WORLDS)
    never, gap = [*clean[1:], climbs(None, best=0.25)], [*clean[1:], climbs(10, gap=0.5)]
    text = bug_table.markdown(clean, [never, gap] + [clean] * (len(BUGS) - 2), seeds=3)
    rows = [line for line in text.splitlines() if line.startswith("| ") and "`" in line]
    assert rows[0].endswith("| 10 | **3 of 3: 0.25** | no |")
    assert rows[1].endswith("| 10 | 10 | **yes** |") and "*" not in rows[2]
    assert f"2 of {len(BUGS)} bugs are shown by a probe or by the gap." in text
    assert "Those that are not: 2, 3," in text


def test_the_committed_table_has_a_row_for_every_bug():
    text = (ROOT / "nanotir/exercises/BUGS.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [row[1:4] for row in rows[2:]] == [
        [bug.what, f"`{bug.file}`", str(bug.points)] for bug in BUGS
    ]
