"""The laboratory's README agrees with the committed results and the experiments' definitions."""

import re

from nanotir.lab import __main__ as lab
from nanotir.lab.experiment import Experiment, overall, summarise
from nanotir.lab.experiments import EXPERIMENTS
from nanotir.lab.tables import at_the_ends, markdown

README = lab.README.read_text()


def stated(results: dict) -> list:
    """What a result says of its experiment's definition."""
    fields = ("better", "worse", "metric", "lower", "margin", "equal", "claimed")
    parts = [[part[name] for name in fields] for part in results["parts"]]
    return [results["claim"], results["measure"], sorted(results["arms"]), parts]


def defined(experiment: Experiment) -> list:
    empty = {
        arm: {1: {"seconds": 0, "metrics": dict.fromkeys(experiment.metrics)}}
        for arm in experiment.arms
    }
    return stated(summarise(experiment, empty, quick=False))


def test_every_result_is_that_of_the_experiment_as_it_is_defined_now():
    results = {results["name"]: results for results in lab.committed()}
    assert results.keys() == EXPERIMENTS.keys()
    for name, experiment in EXPERIMENTS.items():
        assert stated(results[name]) == defined(experiment), name
        first = experiment.first_seed
        for arm in results[name]["arms"].values():
            assert [int(seed) for seed in arm["seeds"]] == [*range(first, first + 5)], name


def test_every_verdict_is_that_of_the_parts():
    for results in lab.committed():
        assert results["verdict"] == overall(results["parts"]), results["name"]


def test_every_result_is_that_of_one_commit():
    for results in lab.committed():
        assert re.fullmatch("[0-9a-f]{7}", results["commit"]), results["name"]


def test_no_arm_is_below_a_tenth_or_above_95_percent_where_a_difference_is_claimed():
    assert not [results["name"] for results in lab.committed() if at_the_ends(results)]


def test_the_readme_gives_every_verdict_before_and_now():
    table = README.split("## Before and now")[1].split("\n## ")[0]
    for results in lab.committed():
        row = rf"^\| `{results['name']}` \| [a-z ]+ \| {results['verdict']} \|"
        assert re.search(row, table, re.M), results["name"]


def test_the_readme_names_the_controls_that_are_reported_only():
    (said,) = re.findall(r"The arm is only reported in (.*)\.", README)
    without = set()
    for name, experiment in EXPERIMENTS.items():
        compared = {arm for part in experiment.compare for arm in (part.better, part.worse)}
        if experiment.control and experiment.control not in compared:
            without.add(f"`{name}`")
    assert set(re.findall("`[^`]+`", said)) == without


def test_the_readmes_tables_are_those_of_the_committed_results():
    tables = markdown(lab.committed())
    found = lab.MARKERS.search(lab.README.read_text())
    assert found[0] == f"<!-- lab -->\n\n{tables}\n\n<!-- /lab -->"
