import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from nanotir import tour
from nanotir.config import RunConfig
from nanotir.run import Run
from nanotir.sampler import SamplerConfig
from nanotir.trajectory import Format

PROJECT = Path(tour.__file__).parents[1]
SOURCE = re.compile(r"^ *(\d+)  (.*)$")


@pytest.fixture(scope="module")
def printed():
    out = io.StringIO()
    with redirect_stdout(out):
        tour.main([])
    return out.getvalue()


@pytest.fixture(scope="module")
def walk():
    return tour.small_walk()


def cells(text: str, label: str) -> list[str]:
    """All cells of the rows of a table that have this label, from left to right."""
    rows = [line.split() for line in text.splitlines()]
    return [cell for row in rows if row and row[0] == label for cell in row[1:]]


def files_of(printed: str) -> list[str]:
    return re.findall(r"^nanotir/(\S+\.py):\d+$", printed, re.M)


def test_the_stops_are_the_readmes_core_modules_in_its_order(printed):
    _, _, section = (PROJECT / "README.md").read_text().partition("\n## Read it\n")
    core, _, _ = section.partition("The supporting modules")
    files = re.findall(r"^\| `((?:tools/)?\w+\.py)` \|", core, re.M)
    assert len(files) == 13
    assert files_of(printed) == files


def test_a_stop_has_the_name_of_its_file(printed):
    assert [Path(file).stem for file in files_of(printed)] == list(tour.STOPS)


def test_every_stop_prints_lines_that_stand_in_the_file_at_those_numbers(printed):
    places = re.findall(r"^(nanotir/\S+\.py):(\d+)\n\n((?: *\d+  .*\n)+)", printed, re.M)
    assert len(places) == len(tour.STOPS)
    for path, start, code in places:
        lines = (PROJECT / path).read_text().splitlines()
        shown = [SOURCE.match(line).groups() for line in code.splitlines()]
        assert shown[0][0] == start
        assert all(text and text in lines[int(number) - 1] for number, text in shown)


def test_what_is_printed_of_a_trajectory_is_the_trajectorys(walk):
    text = tour.page(walk, "trajectory")
    assert cells(text, "id") == [str(id) for id in walk.answer.ids]
    assert cells(text, "mask") == [str(mask) for mask in walk.answer.mask]
    assert cells(text, "logp") == [f"{logp:.3f}" for logp in walk.answer.logps]


def test_the_small_policy_calls_python_and_its_answers_differ_in_correctness(walk):
    assert walk.answer.calls[0].result.output in walk.tokenizer.decode(walk.answer.ids)
    assert {sample.correct for sample in walk.rollout.kept} == {0.0, 1.0}


def test_a_call_is_parked_and_goes_on_and_every_row_ends(walk):
    (letters,) = walk.see_generation()
    rows = ["".join(row) for row in letters.values()]
    assert all(re.fullmatch("wd+(p+d+)*f*", row) for row in rows)
    assert ["p" in row for row in rows] == [bool(answer.calls) for answer in walk.group]


def test_one_step_makes_good_answers_likelier_and_bad_ones_less_so(printed):
    step = printed[printed.index("One step of the optimiser") :]
    names = ("before", "after", "advantage")
    columns = zip(*[map(float, cells(step, name)) for name in names], strict=True)
    assert all((after > before) == (A > 0) for before, after, A in columns)


def test_the_same_code_prints_the_same(printed, walk):
    pages = [tour.page(walk, name) for name in tour.STOPS]
    assert "\n\n\n".join(pages).split() == printed.split()


def test_the_page_is_100_columns_wide_and_without_colour_in_a_pipe(printed):
    assert max(map(len, printed.splitlines())) <= 100
    assert "\x1b" not in printed


def test_a_wide_table_goes_on_below_with_its_first_column():
    text = tour.table({"a": ["x" * 40] * 5, "b": [*"vwxyz"]})
    assert max(map(len, text.splitlines())) <= tour.WIDTH
    assert cells(text, "a") == ["x" * 40] * 5
    assert cells(text, "b") == [*"vwxyz"]


def test_one_stop_alone(walk, monkeypatch, capsys):
    monkeypatch.setattr(tour, "small_walk", lambda: walk)
    tour.main(["--stop", "draws"])
    assert re.findall(r"^nanotir/\S+\.py", capsys.readouterr().out, re.M) == ["nanotir/draws.py"]


def test_an_unknown_stop_is_told_which_there_are(capsys):
    with pytest.raises(SystemExit) as exit:
        tour.main(["--stop", "loses"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert exit.value.code == 2
    assert "'loses'" in error and "losses" in error


def test_no_run_folder_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        tour.main(["--run", str(tmp_path)])
    assert exit.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_run_folder_can_be_walked_with(walk, tmp_path, capsys):
    sampler = SamplerConfig(max_new_tokens=8)
    config = RunConfig(data="generated:mul", model=walk.model.config, sampler=sampler)
    parts = (walk.model, walk.tokenizer, Format(), [], [], [])
    Run(tmp_path / "run", config, *parts).create()
    tour.main(["--run", str(tmp_path / "run")])
    out = capsys.readouterr().out
    assert f"that of {tmp_path / 'run'}" in out
    assert len(files_of(out)) == len(tour.STOPS)
