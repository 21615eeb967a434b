import io
import re
from contextlib import ExitStack, redirect_stdout
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
        tour.main(["--seed", "0"])
    return out.getvalue()


@pytest.fixture(scope="module")
def walk():
    with ExitStack() as stack:
        yield tour.small_walk(0, stack)


def cells(text: str, label: str) -> list[str]:
    """All cells of the rows of a table that have this label, from left to right."""
    rows = [line.split() for line in text.splitlines()]
    return [cell for row in rows if row and row[0] == label for cell in row[1:]]


def test_the_stops_are_the_readmes_core_modules_in_its_order():
    _, _, section = (PROJECT / "README.md").read_text().partition("\n## Read it\n")
    section, _, _ = section.partition("\n## ")
    tables = [
        re.findall(r"^\| `((?:tools/)?\w+\.py)` \|", part, re.M) for part in section.split("\n\n")
    ]
    tables = [files for files in tables if files]
    if not tables:
        pytest.skip("the README has no table of core modules under 'Read it' yet")
    assert [stop.file for stop in tour.STOPS] == tables[0]


def test_every_stop_has_a_file_of_its_own():
    files = [stop.file for stop in tour.STOPS]
    assert len(set(files)) == len(files) == 13


def test_every_stop_prints_lines_that_stand_in_the_file_at_those_numbers(printed):
    places = re.findall(r"^(nanotir/\S+\.py):(\d+)\n\n((?: *\d+  .*\n)+)", printed, re.M)
    assert [path for path, _, _ in places] == [f"nanotir/{stop.file}" for stop in tour.STOPS]
    for path, start, code in places:
        lines = (PROJECT / path).read_text().splitlines()
        shown = [SOURCE.match(line).groups() for line in code.splitlines()]
        assert shown[0][0] == start
        assert all(text and text in lines[int(number) - 1] for number, text in shown)


def test_what_is_printed_of_a_trajectory_is_the_trajectorys(walk):
    text = "\n".join(tour.see_trajectory(walk))
    assert cells(text, "id") == [str(id) for id in walk.answer.ids]
    assert cells(text, "mask") == [str(mask) for mask in walk.answer.mask]
    assert cells(text, "logp") == [f"{logp:.2f}" for logp in walk.answer.logps]


def test_the_small_policy_calls_python_and_its_answers_differ_in_correctness(walk):
    assert walk.answer.calls[0].result.output in walk.tokenizer.decode(walk.answer.ids)
    assert set(walk.right) == {0.0, 1.0}
    assert walk.sampled.kept


def test_a_call_is_parked_and_goes_on(walk):
    (timeline,) = tour.see_generation(walk)
    assert re.search(r"parked.*\n.*decoding", timeline)
    assert timeline.splitlines()[-1].count("finished") == tour.GROUP


def test_one_step_makes_right_answers_likelier_and_wrong_ones_less_so(printed):
    rows = {name: list(map(float, cells(printed, name))) for name in ("before", "after", "right")}
    pairs = zip(rows["before"], rows["after"], rows["right"], strict=True)
    assert all((after > before) == bool(right) for before, after, right in pairs)


def test_the_same_seed_prints_the_same(printed, walk):
    pages = [stop.page(walk, colour=False) for stop in tour.STOPS]
    assert "\n\n\n".join(pages).split() == printed.split()


def test_the_page_is_100_columns_wide_and_without_colour_in_a_pipe(printed):
    assert max(map(len, printed.splitlines())) <= 100
    assert "\x1b" not in printed


def test_a_wide_table_goes_on_below_with_its_first_column():
    rows = [["a", *["x" * 40] * 5], ["b", *["y"] * 5]]
    text = tour.table(*rows)
    assert max(map(len, text.splitlines())) <= tour.WIDTH
    assert cells(text, "a") == rows[0][1:]
    assert cells(text, "b") == rows[1][1:]


def test_one_stop_alone(walk, monkeypatch, capsys):
    monkeypatch.setattr(tour, "small_walk", lambda seed, stack: walk)
    tour.main(["--stop", "draws"])
    assert re.findall(r"^nanotir/\S+\.py", capsys.readouterr().out, re.M) == ["nanotir/draws.py"]


def test_an_unknown_stop_is_one_line(capsys):
    with pytest.raises(SystemExit) as exit:
        tour.main(["--stop", "loses"])
    error = capsys.readouterr().err
    assert exit.value.code == 2
    assert error == "tour: no stop 'loses': did you mean 'losses'?\n"


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
    assert len(re.findall(r"^nanotir/\S+\.py:", out, re.M)) == len(tour.STOPS)
