"""The laboratory's command on arms that only count how often they are run."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from nanotir.lab import __main__ as lab
from nanotir.lab import cells
from nanotir.lab.experiment import Arm, Compare, Experiment, compare
from nanotir.lab.tables import at_the_ends, least_shown, markdown, part_line


def toy(name="toy", number=1, **arms) -> Experiment:
    """A claim that the first arm beats the second. An arm is (key, function of the seed)."""
    made = {arm: Arm(key, run) for arm, (key, run) in arms.items()}
    better, worse = list(made)[:2]
    return Experiment(
        number=number,
        name=name,
        system="none",
        claim="good beats bad | always",
        source="nobody",
        published="none known",
        measure="counting",
        expected="up",
        arms=made,
        compare=(Compare(better, worse),),
    )


def good(seed, quick, folder):
    return {"accuracy": 0.9 + seed / 100}


def bad(seed, quick, folder):
    return {"accuracy": 0.5}


def endless(seed, quick, folder):
    (folder / "pid").write_text(str(os.getpid()))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as a run in training does
    time.sleep(1000)


def dying(seed, quick, folder):
    os.kill(os.getpid(), signal.SIGKILL)


# Worker processes import this module.
EXPERIMENTS = {
    "real": toy("real", good=("good", good), bad=("bad", bad)),
    "endless": toy("endless", good=("good", good), bad=("endless", endless)),
    "dying": toy("dying", good=("good", good), bad=("dying", dying)),
}


class Bench:
    """Runs the command in this process; `calls` lists the (key, seed, quick) it computed."""

    def __init__(self, monkeypatch):
        self.calls = []
        self.experiments = {}
        self.broken = {}  # {key: what its arm raises}
        module = SimpleNamespace(EXPERIMENTS=self.experiments)
        monkeypatch.setitem(sys.modules, "toy_experiments", module)

    def add(self, name, number=1, **arms):
        """arms: {name: (key, accuracy)}."""
        counted = {arm: (key, self.counted(key, value)) for arm, (key, value) in arms.items()}
        self.experiments[name] = toy(name, number, **counted)

    def counted(self, key, value):
        def run(seed, quick, folder):
            self.calls.append((key, seed, quick))
            print("working")
            if key in self.broken:
                raise self.broken[key]
            (folder / "own.txt").write_text(key)
            return {"accuracy": value + seed / 100, "reward": [[0, 0.0], [1, value]]}

        return run

    def run(self, *arguments) -> int:
        with pytest.raises(SystemExit) as exit:
            lab.main([*arguments, "--workers", "0"], "toy_experiments")
        return exit.value.code


@pytest.fixture
def bench(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lab, "RESULTS", tmp_path / "results")
    made = Bench(monkeypatch)
    made.add("toy", good=("good", 0.9), bad=("bad", 0.5))
    return made


def test_a_cell_is_computed_once_however_often_it_is_asked_for(bench):
    assert bench.run("toy") == 0
    assert bench.run("toy") == 0
    expected = [(key, seed, False) for key in ("bad", "good") for seed in range(1, 6)]
    assert sorted(bench.calls) == expected


def test_results_name_the_commits_of_the_code_that_computed_their_cells(bench, monkeypatch):
    for seeds, commit in enumerate(["old", "new"], 1):
        monkeypatch.setattr(cells, "commit", lambda commit=commit: commit)
        bench.run("toy", "--seeds", str(seeds))
    assert json.loads((cells.LAB / "toy/results.json").read_text())["commit"] == "new, old"


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_a_commit_says_whether_the_code_has_been_changed_since(monkeypatch, tmp_path):
    def git(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@b.example", "-c", "init.templateDir=")
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr(cells, "__file__", str(tmp_path / "lab/cells.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "lab").mkdir()
    (tmp_path / "model.py").write_text("1")
    (tmp_path / "results.json").write_text("1")
    assert cells.commit() == "unknown"
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    kept = cells.commit()
    assert re.fullmatch("[0-9a-f]{7,}", kept)
    (tmp_path / "results.json").write_text("2")
    assert cells.commit() == kept
    (tmp_path / "model.py").write_text("2")
    assert cells.commit() == kept + "+"


def test_two_experiments_share_the_cells_of_one_key(bench):
    bench.add("other", 2, better=("good", 0.9), worst=("worst", 0.1))
    assert bench.run("all", "--seeds", "2") == 0
    assert len(bench.calls) == 6
    assert bench.calls.count(("good", 1, False)) == 1
    for name in ("toy", "other"):
        assert (cells.LAB / name / "results.json").exists()


def test_seeds_come_one_after_the_other(bench):
    bench.run("toy", "--seeds", "2")
    assert [seed for _, seed, _ in bench.calls] == [1, 1, 2, 2]


def test_a_quick_run_takes_the_seed_that_is_for_tuning(bench):
    bench.run("toy", "--quick")
    assert [seed for _, seed, _ in bench.calls] == [0, 0]


def test_seeds_may_begin_with_another(bench):
    bench.run("toy", "--seeds", "2", "--first-seed", "40")
    assert [seed for _, seed, _ in bench.calls] == [40, 40, 41, 41]


def test_an_experiment_may_name_the_first_of_its_seeds(bench, capsys):
    bench.experiments["toy"] = replace(bench.experiments["toy"], first_seed=6)
    bench.run("toy", "--seeds", "2")
    assert [seed for _, seed, _ in bench.calls] == [6, 6, 7, 7]
    assert "(seeds 6 to 7, " in capsys.readouterr().out


def test_experiments_with_other_seeds_run_side_by_side(bench):
    bench.add("other", 2, better=("good", 0.9), worst=("worst", 0.1))
    bench.experiments["other"] = replace(bench.experiments["other"], first_seed=2)
    bench.run("all", "--seeds", "2")
    assert {seed for key, seed, _ in bench.calls if key == "good"} == {1, 2, 3}
    assert {seed for key, seed, _ in bench.calls if key == "worst"} == {2, 3}


def test_a_failing_arm_stops_no_other_and_is_told(bench, capsys):
    bench.broken["bad"] = ZeroDivisionError("nothing to divide by")
    assert bench.run("toy", "--seeds", "2") == 1
    said = capsys.readouterr().err
    assert "arm 'bad', seed 1 failed: ZeroDivisionError: nothing to divide by" in said
    assert "Traceback" in (cells.arm_folder("bad", 1, False) / "log.txt").read_text()
    assert cells.cell_path("good", 1, False).exists()
    assert not (cells.LAB / "toy" / "results.json").exists()


def test_an_arm_that_exits_fails_like_any_other(bench, capsys):
    bench.broken["bad"] = SystemExit(2)
    assert bench.run("toy", "--seeds", "2") == 1
    assert "arm 'bad', seed 1 failed: SystemExit: 2" in capsys.readouterr().err


def test_after_a_failure_only_what_is_missing_is_computed(bench):
    bench.broken["bad"] = ZeroDivisionError("nothing to divide by")
    bench.run("toy", "--seeds", "1")
    bench.broken.clear()
    assert bench.run("toy", "--seeds", "1") == 0
    assert [key for key, *_ in bench.calls] == ["good", "bad", "bad"]


def test_ctrl_c_leaves_what_is_done(bench, capsys):
    bench.broken["bad"] = KeyboardInterrupt()
    assert bench.run("toy") == 130
    assert cells.cell_path("good", 1, False).exists()
    assert capsys.readouterr().out.strip().startswith("interrupted")


def test_quick_and_full_cells_do_not_mix(bench):
    bench.run("toy", "--quick")
    bench.run("toy", "--seeds", "1")
    quick, full = bench.calls[:2], bench.calls[2:]
    assert quick == [("good", 0, True), ("bad", 0, True)]
    assert full == [("good", 1, False), ("bad", 1, False)]
    assert cells.cell_path("good", 0, True) != cells.cell_path("good", 0, False)


def test_what_an_arm_prints_goes_to_its_folder(bench, capsys):
    bench.run("toy", "--quick")
    assert "working" not in capsys.readouterr().out
    folder = cells.arm_folder("good", 0, True)
    assert (folder / "log.txt").read_text() == "working\n"
    assert (folder / "own.txt").exists()


def test_a_run_prints_arms_comparison_and_verdict(bench, capsys):
    bench.run("toy")
    said = capsys.readouterr().out
    assert "good  0.930 [0.910, 0.950]" in said
    assert "good better than bad, accuracy: +0.400 [+0.400, +0.400] shown" in said
    assert "verdict: shown (seeds 1 to 5, " in said


def test_one_seed_is_told_to_have_no_interval(bench, capsys):
    bench.run("toy", "--quick")
    assert "accuracy: +0.400 not shown (one seed has no interval)" in capsys.readouterr().out


def test_kept_results_are_those_of_the_run(bench):
    bench.run("toy", "--keep")
    kept = (lab.RESULTS / "toy.json").read_text()
    assert kept == (cells.LAB / "toy" / "results.json").read_text()
    assert json.loads(kept)["verdict"] == "shown"


def test_arms_and_curves_are_drawn_beside_the_results(bench):
    bench.experiments["toy"] = replace(bench.experiments["toy"], figure=("reward",))
    bench.run("toy", "--keep")
    drawn = (cells.LAB / "toy" / "figure.svg").read_text()
    assert drawn.startswith("<svg")
    assert ">accuracy</text>" in drawn and ">reward</text>" in drawn
    assert (lab.RESULTS / "toy.svg").read_text() == drawn
    assert "\n![The arms of toy](results/toy.svg)\n" in markdown(lab.committed())


def test_results_of_before_have_no_picture(bench):
    bench.run("toy", "--keep")
    (results,) = lab.committed()
    del results["drawn"]
    assert ".svg" not in markdown([results])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["toy", "--quick", "--keep"], "leave out --quick"),
        (["toy", "--first-seed", "5", "--keep"], "leave out --first-seed"),
        (["tog"], "no experiment 'tog': did you mean 'toy'?"),
        (["toy", "--seeds", "12"], "--seeds: it must be between 1 and 11, not 12"),
        (["toy", "--seeds", "0"], "--seeds: it must be between 1 and 11, not 0"),
        (["toy", "--first-seed", "0", "--keep"], "--keep is for the seeds that count"),
        (["toy", "--workers", "-1"], "--workers: it must be at least 0, not -1"),
        (["--write", "README.md"], "--write goes with --table"),
    ],
)
def test_a_mistake_is_one_line_and_runs_nothing(bench, capsys, arguments, message):
    assert bench.run(*arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert bench.calls == []


def test_the_list_says_what_is_committed(bench, capsys):
    bench.add("other", 2, better=("good", 0.9), worst=("worst", 0.1))
    bench.run("other", "--keep")
    capsys.readouterr()
    lab.main([], "toy_experiments")
    first, second = capsys.readouterr().out.splitlines()
    assert "1 toy" in first and "[no committed results]" in first
    assert "2 other" in second and "[shown]" in second


def test_the_tables_are_made_from_the_committed_files_alone(bench, capsys):
    bench.run("toy", "--keep")
    bench.experiments.clear()
    capsys.readouterr()
    lab.main(["--table"], "toy_experiments")
    said = capsys.readouterr().out
    assert said.startswith("### 1. toy: shown\n\ngood beats bad | always\n")
    assert re.search(r"^- Cost: seeds 1 to 5, 0\.0 min, commit \S+$", said, re.M)
    row = "| `good` 0.930 | `bad` 0.530 | accuracy | +0.400 [+0.400, +0.400] | +0.000 | shown |"
    assert said.splitlines()[-1] == row


def test_the_tables_replace_what_is_between_the_markers(bench, tmp_path):
    bench.run("toy", "--keep")
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- lab -->\nold\n<!-- /lab -->\nafter\n")
    tables = markdown(lab.committed())
    for _ in range(2):  # the second time changes nothing
        lab.main(["--table", "--write", str(readme)], "toy_experiments")
        expected = f"before\n<!-- lab -->\n\n{tables}\n\n<!-- /lab -->\nafter\n"
        assert readme.read_text() == expected


def test_a_file_without_markers_is_left_alone(bench, tmp_path, capsys):
    (tmp_path / "README.md").write_text("no table here\n")
    assert bench.run("--table", "--write", "README.md") == 2
    assert "to put the table between" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "no table here\n"


def part(low, high, margin=0.0, **more) -> dict:
    return {"low": low, "high": high, "margin": margin} | more


def test_the_least_difference_that_would_have_been_shown_is_half_the_interval_less_the_margin():
    assert least_shown(part(-0.1, 0.3)) == pytest.approx(0.2)
    assert least_shown(part(-0.1, 0.3, margin=0.05)) == pytest.approx(0.15)
    assert least_shown(part(None, None)) is None
    assert least_shown(part(0.0, 0.0, margin=0.5, equal=True)) is None


def test_an_equality_is_called_one():
    claim = Compare("a", "b", margin=0.5, equal=True)
    row = compare(claim, {1: 0.1, 2: 0.1}, {1: 0.1, 2: 0.1})
    assert part_line(row).startswith("a equal to b, accuracy (margin 0.5) (equal): +0.000")


def ended(better: float, worse: float, metric="accuracy", **more) -> list[str]:
    """The line on a comparison of two such values."""
    claim = Compare("a", "b", metric, **more)
    return at_the_ends({"parts": [compare(claim, {1: better}, {1: worse})]})


def test_arms_at_a_floor_or_a_ceiling_are_told():
    assert ended(0.951, 0.099) == ["Below 10% or above 95%: `a` 0.951 accuracy, `b` 0.099 accuracy"]
    assert ended(0.95, 0.10) == []
    assert ended(0.5, 0.99, "pass@16") == ["Below 10% or above 95%: `b` 0.990 pass@16"]


def test_floors_and_ceilings_are_those_of_shares_where_a_difference_is_claimed():
    assert ended(0.99, 0.5, "sampled_calls") == ended(-3.0, 0.5, "log_ratio_variance") == []
    assert ended(0.99, 0.98, margin=0.05) == ended(0.99, 0.98, equal=True, margin=0.1) == []
    assert at_the_ends({"parts": [compare(Compare("a", "b"), {1: None}, {1: 0.5})]}) == []


def test_floors_and_ceilings_stand_in_the_tables_and_in_the_summary(bench, capsys):
    bench.add("toy", good=("good", 0.95), bad=("bad", 0.5))
    bench.run("toy", "--keep")
    line = "Below 10% or above 95%: `good` 0.980 accuracy"
    assert line in capsys.readouterr().out
    assert f"- {line}\n" in markdown(lab.committed())


def test_arms_without_a_comparison_are_reported(bench):
    bench.add("three", 3, good=("good", 0.9), bad=("bad", 0.5), coin=("coin", 0.4))
    bench.run("three", "--keep")
    assert "- Not compared, accuracy: `coin` 0.430\n" in markdown(lab.committed())


def test_dictionaries_take_a_line_an_entry_and_lists_one():
    value = {"a": {"b": [[0, 1.0], [1, None]], "c": {}}, "d": [{"e": 1}]}
    assert json.loads(lab.layout(value)) == value
    assert len(lab.layout(value).splitlines()) == 7


def test_worker_processes_find_the_arms_by_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        lab.main(["real", "--workers", "1", "--seeds", "2"], __name__)
    assert exit.value.code == 0
    results = json.loads((cells.LAB / "real" / "results.json").read_text())
    assert results["parts"][0]["difference"] == pytest.approx(0.415)


def test_a_worker_that_is_killed_ends_the_command_and_keeps_what_is_done(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        lab.main(["dying", "--workers", "1", "--seeds", "1"], __name__)
    assert exit.value.code == 1
    assert "a worker was killed" in capsys.readouterr().err
    assert cells.cell_path("good", 1, False).exists()


START = "import sys; from nanotir.lab.__main__ import main; main(sys.argv[1:], 'test_lab')"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds: float = 60.0) -> bool:
    end = time.time() + seconds
    while not condition() and time.time() < end:
        time.sleep(0.05)
    return bool(condition())


@pytest.fixture
def busy(tmp_path):
    """(a command whose worker is in a cell that never ends, the worker's process id)."""
    folders = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
    process = subprocess.Popen(
        [sys.executable, "-c", START, "endless", "--workers", "1", "--seeds", "1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    path = tmp_path / cells.arm_folder("endless", 1, False) / "pid"
    assert wait_for(lambda: path.exists() and path.read_text())
    yield process, int(path.read_text())
    process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="it looks for the worker in /proc")
def test_ctrl_c_ends_the_workers_at_once(busy):
    process, worker = busy
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted" in out
    assert "Traceback" not in err and "leaked" not in err
    assert wait_for(lambda: not alive(worker), 10)


@pytest.mark.skipif(sys.platform != "linux", reason="it looks for the worker in /proc")
def test_workers_end_when_the_command_is_killed(busy):
    process, worker = busy
    process.kill()
    process.communicate(timeout=20)
    assert wait_for(lambda: not alive(worker), 10)
