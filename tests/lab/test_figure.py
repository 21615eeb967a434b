import re
from html.parser import HTMLParser

import pytest

from nanotir.lab.experiment import Arm, Compare, Experiment, summarise
from nanotir.lab.figure import HEIGHT, WIDTH, nice, report, shared_points

VOID = {"meta"}


class Page(HTMLParser):
    """Counts tags and sees to it that each one opened is closed."""

    def __init__(self, html):
        super().__init__()
        self.open, self.counts, self.words = [], {}, []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def results(seeds=3, value=lambda arm, seed: 0.5 + arm / 10 + seed / 50) -> dict:
    arms = {name: Arm(name, lambda seed, quick, folder: {}) for name in ("a<b", "c & d", "plain")}
    stated = ("toy", "none", "<script>alert(1)</script>", "nobody", "none known", "counting", "up")
    experiment = Experiment(
        7,
        *stated,
        arms=arms,
        compare=(Compare("c & d", "a<b"),),
        control="plain",
        figure=("reward", "pass by k"),
    )
    curve = lambda i, seed: [[x, x * 0.1 + seed] for x in range(5)]
    metrics = lambda i, seed: (
        {"accuracy": value(i, seed), "reward": curve(i, seed)}
        | ({"pass by k": curve(i, seed)} if i else {})
    )
    cells = {
        name: {seed: {"seconds": 1.0, "metrics": metrics(i, seed)} for seed in range(seeds)}
        for i, name in enumerate(arms)
    }
    return summarise(experiment, cells, quick=False)


def test_a_report_is_well_formed_and_has_a_line_for_each_arm_that_has_the_curve():
    page = Page(report(results()))
    assert page.counts["polyline"] == 3 + 2 and page.counts["svg"] == 3


def test_what_others_wrote_is_escaped():
    html = report(results())
    page = Page(html)
    assert (
        "script" not in page.counts
        and "<script>alert(1)</script>" in "".join(page.words)
        and "a&lt;b" in html
    )


def test_a_report_loads_nothing():
    assert not re.search(r"https?:|src=|href=|url\(|@import", report(results()))


def test_a_bar_ends_where_its_value_is():
    html = report(results(value=lambda arm, seed: 0.25 * (arm + 1)))
    heights = [
        float(h)
        for h in re.findall(r'<rect x="[\d.]+" y="[\d.]+" width="[\d.]+" height="([\d.]+)"', html)
    ][:3]
    assert [h / heights[0] for h in heights] == pytest.approx([1, 2, 3], abs=0.01)


def test_one_seed_draws_no_interval():
    whiskers = lambda html: html.count('stroke="#333"')
    assert (whiskers(report(results(seeds=1))), whiskers(report(results(seeds=3)))) == (0, 3)


def test_an_arm_where_the_metric_is_undefined_has_no_bar():
    html = report(results(value=lambda arm, seed: None if arm == 0 else 0.5))
    assert html.count('stroke="#333"') == 2


def test_nothing_is_drawn_outside_the_figure():
    html = report(results(value=lambda arm, seed: (-1) ** arm * (seed + 1) * 40.0))
    points = [
        tuple(map(float, point.split(",")))
        for line in re.findall(r'points="([^"]*)"', html)
        for point in line.split()
    ]
    assert points and all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
    whiskers = [
        float(y)
        for pair in re.findall(r'd="M[\d.]+ (\S+?)V(\S+?)" stroke="#333"', html)
        for y in pair
    ]
    assert len(whiskers) == 6 and all(0 <= y <= HEIGHT for y in whiskers)


def test_the_axes_and_the_lines_are_named():
    words = Page(report(results())).words
    assert {"accuracy", "reward", "step", "pass", "k", "a<b"} <= set(words)


def test_a_mean_is_taken_only_where_all_seeds_have_a_value():
    assert shared_points([[[0, 1.0], [1, 2.0], [2, None]], [[0, 3.0], [2, 4.0]]]) == [
        (0, [1.0, 3.0])
    ]


@pytest.mark.parametrize(
    "values",
    [
        [0.0, 1.0],
        [0.0],
        [-3.2, 0.0, 7.7],
        [5.0, 5.0],
        [1e-7, 0.0],
        [0.31, 0.3100001],
        [12345.6, 0.0],
    ],
)
def test_ticks_are_round_and_enclose_the_values(values):
    low, high, ticks = nice(values)
    assert low <= min(values) + 1e-12 and max(values) <= high + 1e-12 and 2 <= len(ticks) <= 8
    assert low < high and ticks[0] == pytest.approx(low) and ticks[-1] == pytest.approx(high)
