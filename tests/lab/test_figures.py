"""The pictures of experiments: which curves become lines, which become maps, and where they lie."""

import re
from xml.etree import ElementTree

import pytest

from nanotir.lab.figures import figure, lines_of, mean_curve, placed
from nanotir.page.svg import bars

LINES = {"a": {"1": [[1, 0.0], [2, 1.0]], "2": [[1, 1.0], [3, 0.5]]}, "b": {"1": []}}
MAP = {"a": {"1": [[0.05, 0.25], [0.15, 0.75]], "2": [[0.05, 1.0], [0.15, 0.0]]}}


def results(**curves) -> dict:
    arms = {arm: {"mean": {}} for arm in ("a", "b")}
    return {
        "number": 1,
        "name": "toy & more",
        "metrics": ["accuracy"],
        "arms": arms,
        "curves": curves,
    }


def texts(picture: str) -> list[str]:
    return [node.text for node in ElementTree.fromstring(picture).iter() if node.text]


def test_a_line_is_the_mean_where_all_seeds_have_a_value():
    assert mean_curve(list(LINES["a"].values())) == [(1, 0.5)]
    assert mean_curve([[[1, None], [2, 3.0]]]) == [(2, 3.0)]


def test_an_arm_without_points_has_no_line():
    assert [line.label for line in lines_of(LINES, "loss", ["a", "b"])] == ["a"]


def test_without_curves_there_is_no_figure():
    assert figure(results()) == figure(results(loss={"b": {"1": []}})) == ""


def test_the_main_metric_is_a_bar_an_arm_with_its_interval():
    found = results()
    found["arms"] = {
        "a": {"mean": {"accuracy": [0.5, 0.25, 1.0], "other": [9.0, 8.0, 10.0]}},
        "b": {"mean": {"accuracy": [0.25, None, None]}},
        "c": {"mean": {"accuracy": [None, None, None]}},
    }
    drawn = figure(found)
    assert [word for word in texts(drawn) if word in "abc"] == ["a", "b"]
    assert {"0.5", "0.25"} <= set(texts(drawn)) and "9" not in texts(drawn)
    a, b = re.findall(r'x="([\d.]+)" y="[\d.]+" width="([\d.]+)" \S+ rx="2" class="c0 tint"', drawn)
    assert a[0] == b[0] and float(a[1]) == pytest.approx(2 * float(b[1]), abs=0.2)
    (interval,) = re.findall(r'class="c1 line" d="M([\d.]+) \d+H([\d.]+)"', drawn)
    zero, half = float(a[0]), float(a[1])
    assert [float(x) for x in interval] == pytest.approx(
        [zero + half / 2, zero + 2 * half], abs=0.2
    )


def test_bars_below_zero_reach_up_to_it():
    marks, _ = bars({"a": (-2.0, -3.0, -1.0), "b": (1.0, None, None)}, "t", "u", 300)
    a, b = re.findall(r'x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', marks)
    assert float(a[0]) + float(a[1]) == pytest.approx(float(b[0]), abs=0.2)


def test_an_arm_has_one_colour_in_all_charts_and_the_seventh_is_dashed():
    arms = list("abcdefgh")
    (line,) = lines_of({"h": LINES["a"]}, "loss", arms)
    assert line.style == "c1 dash"


def test_pass_by_k_is_drawn_over_the_logarithm_of_k():
    (line,) = lines_of({"a": {"1": [[1, 0.2], [256, 0.9]]}}, "pass by k", ["a"])
    assert line.points == [(0.0, 0.2), (8.0, 0.9)]
    assert "log2 of k" in texts(
        figure(results(**{"pass by k": {"a": {"1": [[1, 0.2], [4, 0.9]]}}}))
    )


@pytest.mark.parametrize("name, label", [("loss", "step"), ("accuracy by rollouts", "rollouts")])
def test_the_x_axis_is_named_by_the_metric(name, label):
    assert label in texts(figure(results(**{name: LINES})))


def test_metrics_with_a_colon_are_the_rows_of_a_map_of_the_first_seed():
    words = texts(figure(results(**{"rate: start": MAP, "rate: end": MAP})))
    assert words.count("rate: a") == 1
    assert [word for word in words if word in ("start", "end", "0.05")] == ["0.05", "start", "end"]
    assert words.count("25") == words.count("75") == 2
    assert "100" not in words  # that is the second seed


def test_a_larger_share_has_a_darker_box():
    opacities = re.findall(
        r'fill-opacity="([\d.]+)"><rect', figure(results(**{"rate: start": MAP}))
    )
    assert list(map(float, opacities)) == [0.25, 0.75]


def test_two_narrow_parts_stand_beside_each_other_and_a_wide_one_alone():
    marks, height = placed([("A", 100, 390), ("B", 200, 390), ("C", 50, 798), ("D", 10, 390)])
    assert re.findall(r"translate\(([\d.]+),([\d.]+)\)", "".join(marks)) == [
        ("16.0", "70.0"),
        ("424.0", "70.0"),
        ("16.0", "286.0"),
        ("16.0", "352.0"),
    ]
    assert height == 378


def test_a_picture_is_one_svg_file_whose_texts_are_escaped():
    root = ElementTree.fromstring(figure(results(loss=LINES)))
    assert root.tag.endswith("svg")
    assert "1. toy & more" in texts(figure(results(loss=LINES)))
