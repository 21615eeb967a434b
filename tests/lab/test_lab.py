"""The laboratory's command on arms that only count how often they are run."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from nanotir.lab import __main__ as lab
from nanotir.lab import cells
from nanotir.lab.experiment import Arm, Compare, Experiment


def toy(name="toy", number=1, **arms) -> Experiment:
    """A claim that the first arm beats the second. An arm is (key, function of the seed)."""
    made = {arm: Arm(key, run) for arm, (key, run) in arms.items()}
    better, worse = list(made)[:2]
    return Experiment(
        number,
        name,
        "none",
        "good beats bad | always",
        "nobody",
        "none known",
        "counting",
        "up",
        made,
        (Compare(better, worse),),
    )


EXPERIMENTS = {
    "real": toy(
        "real",
        good=("good", lambda seed, quick, folder: {"accuracy": 0.9 + seed / 100}),
        bad=("bad", lambda seed, quick, folder: {"accuracy": 0.5}),
    )
}


class Bench:
    """Runs the command in this process; `calls` lists the (key, seed, quick) that were computed."""

    def __init__(self, monkeypatch):
        self.calls, self.experiments, self.broken = [], {}, {}
        monkeypatch.setitem(
            __import__("sys").modules,
            "toy_experiments",
            SimpleNamespace(EXPERIMENTS=self.experiments),
        )

    def add(self, name, number=1, **arms):
        """arms: {name: (key, accuracy)}."""
        self.experiments[name] = toy(
            name,
            number,
            **{arm: (key, self.counted(key, value)) for arm, (key, value) in arms.items()},
        )

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
    assert (bench.run("toy"), bench.run("toy")) == (0, 0)
    assert sorted(bench.calls) == sorted(
        (key, seed, False) for key in ("good", "bad") for seed in range(3)
    )


def test_two_experiments_share_the_cells_of_one_key(bench):
    bench.add("other", 2, better=("good", 0.9), worst=("worst", 0.1))
    assert bench.run("all", "--seeds", "2") == 0
    assert len(bench.calls) == 6 and bench.calls.count(("good", 0, False)) == 1
    assert all((cells.LAB / name / "results.json").exists() for name in ("toy", "other"))


def test_seeds_come_one_after_the_other(bench):
    bench.run("toy", "--seeds", "2")
    assert [seed for _, seed, _ in bench.calls] == [0, 0, 1, 1]


def test_a_failing_arm_stops_no_other_and_is_told(bench, capsys):
    bench.broken["bad"] = ZeroDivisionError("nothing to divide by")
    assert bench.run("toy", "--seeds", "2") == 1
    said = capsys.readouterr().err
    assert "arm 'bad', seed 1 failed: ZeroDivisionError: nothing to divide by" in said
    assert "Traceback" in cells.arm_folder("bad", 1, False).joinpath("log.txt").read_text()
    assert (
        cells.cell_path("good", 1, False).exists()
        and not (cells.LAB / "toy" / "results.json").exists()
    )


def test_after_a_failure_only_what_is_missing_is_computed(bench):
    bench.broken["bad"] = ZeroDivisionError("nothing to divide by")
    bench.run("toy", "--seeds", "1")
    bench.broken.clear()
    assert bench.run("toy", "--seeds", "1") == 0
    assert [key for key, *_ in bench.calls] == ["good", "bad", "bad"]


def test_ctrl_c_leaves_what_is_done(bench, capsys):
    bench.broken["bad"] = KeyboardInterrupt()
    assert bench.run("toy") == 130
    assert cells.cell_path(
        "good", 0, False
    ).exists() and capsys.readouterr().out.strip().startswith("interrupted")


def test_quick_and_full_cells_do_not_mix(bench):
    bench.run("toy", "--quick")
    bench.run("toy", "--seeds", "1")
    assert bench.calls == [
        ("good", 0, True),
        ("bad", 0, True),
        ("good", 0, False),
        ("bad", 0, False),
    ]
    assert cells.cell_path("good", 0, True) != cells.cell_path("good", 0, False)


def test_what_an_arm_prints_goes_to_its_folder(bench, capsys):
    bench.run("toy", "--quick")
    assert "working" not in capsys.readouterr().out
    folder = cells.arm_folder("good", 0, True)
    assert (
        folder.joinpath("log.txt").read_text() == "working\n"
        and folder.joinpath("own.txt").exists()
    )


def test_a_run_prints_arms_comparison_and_verdict(bench, capsys):
    bench.run("toy")
    said = capsys.readouterr().out
    assert "good  0.910 [0.885, 0.935]" in said
    assert (
        "good better than bad, accuracy: +0.400 [+0.400, +0.400] shown" in said
        and "verdict: shown (3 seeds" in said
    )


def test_one_seed_is_told_to_have_no_interval(bench, capsys):
    bench.run("toy", "--quick")
    assert "accuracy: +0.400 not shown (one seed has no interval)" in capsys.readouterr().out


def test_kept_results_are_those_of_the_run(bench):
    bench.run("toy", "--keep")
    kept, ran = (
        (lab.RESULTS / "toy.json").read_text(),
        (cells.LAB / "toy" / "results.json").read_text(),
    )
    assert kept == ran and json.loads(kept)["verdict"] == "shown"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["toy", "--quick", "--keep"], "leave out --quick"),
        (["tog"], "no experiment 'tog': did you mean 'toy'?"),
        (["toy", "--seeds", "12"], "--seeds must be 1 to 11"),
        (["--write", "README.md"], "--write goes with --table"),
    ],
)
def test_a_mistake_is_one_line_and_runs_nothing(bench, capsys, arguments, message):
    assert bench.run(*arguments) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and bench.calls == []


def test_the_list_says_what_is_committed(bench, capsys):
    bench.add("other", 2, better=("good", 0.9), worst=("worst", 0.1))
    bench.run("other", "--keep")
    capsys.readouterr()
    lab.main([], "toy_experiments")
    first, second = capsys.readouterr().out.splitlines()
    assert (
        "1 toy" in first
        and "no committed results" in first
        and "2 other" in second
        and "[shown]" in second
    )


def test_the_table_is_made_from_the_committed_files_alone(bench, capsys):
    bench.run("toy", "--keep")
    bench.experiments.clear()
    capsys.readouterr()
    lab.main(["--table"], "toy_experiments")
    row = capsys.readouterr().out.splitlines()[2]
    assert row.startswith(
        "| 1 | good beats bad \\| always | nobody | none known |"
    ) and row.endswith("| shown |")
    assert (
        "accuracy: good 0.910, bad 0.510, difference +0.400 [+0.400, +0.400] (3 seeds, 0.0 min)"
        in row
    )


def test_the_table_replaces_what_is_between_the_markers(bench, tmp_path):
    bench.run("toy", "--keep")
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- lab -->\nold\n<!-- /lab -->\nafter\n")
    for _ in range(2):  # the second time changes nothing
        lab.main(["--table", "--write", str(readme)], "toy_experiments")
        text = readme.read_text()
        assert (
            text == f"before\n<!-- lab -->\n{lab.markdown(lab.committed())}\n<!-- /lab -->\nafter\n"
        )


def test_a_file_without_markers_is_left_alone(bench, tmp_path, capsys):
    (tmp_path / "README.md").write_text("no table here\n")
    assert bench.run("--table", "--write", "README.md") == 2
    assert (
        "to put the table between" in capsys.readouterr().err
        and (tmp_path / "README.md").read_text() == "no table here\n"
    )


def test_dictionaries_take_a_line_an_entry_and_lists_one():
    value = {"a": {"b": [[0, 1.0], [1, None]], "c": {}}, "d": [{"e": 1}]}
    assert json.loads(lab.layout(value)) == value and len(lab.layout(value).splitlines()) == 7


def test_worker_processes_find_the_arms_by_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TQDM_DISABLE", "1")  # so that it is unset again
    with pytest.raises(SystemExit) as exit:
        lab.main(["real", "--workers", "1", "--seeds", "2"], __name__)
    assert exit.value.code == 0
    assert json.loads((cells.LAB / "real" / "results.json").read_text())["parts"][0][
        "difference"
    ] == pytest.approx(0.405)


def test_the_readmes_table_is_that_of_the_committed_results():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert (
        lab.MARKERS.search(readme)[0]
        == f"<!-- lab -->\n{lab.markdown(lab.committed())}\n<!-- /lab -->"
    )
