import json
import math

import pytest

from nanotir.lab.experiment import (
    QUANTILES,
    Arm,
    Compare,
    Experiment,
    interval,
    judge,
    overall,
    summarise,
)


def nothing(seed, quick, folder):
    return {}


def experiment(*compare, arms=("a", "b"), **settings) -> Experiment:
    return Experiment(
        number=1,
        name="toy",
        system="none",
        claim="a beats b",
        source="nobody",
        published="none known",
        measure="counting",
        expected="a > b",
        arms={name: Arm(name, nothing) for name in arms},
        compare=compare or (Compare("a", "b"),),
        **settings,
    )


def cells(**arms) -> dict:
    """{arm: one dict of metrics a seed, or one accuracy a seed} as cells of 60 seconds each."""
    made = {}
    for arm, row in arms.items():
        made[arm] = {}
        for seed, value in enumerate(row):
            metrics = value if isinstance(value, dict) else {"accuracy": value}
            made[arm][seed] = {"seconds": 60.0, "metrics": metrics}
    return made


def verdict(compare: Compare, a, b) -> str:
    return judge(experiment(compare), cells(a=a, b=b))[0]["verdict"]


def test_the_interval_is_the_one_computed_by_hand():
    mean, low, high = interval([1.0, 2.0, 3.0])  # s = 1, so 4.303 * 1 / sqrt(3)
    assert mean == 2.0
    assert high - mean == pytest.approx(2.4843, abs=1e-4)
    assert mean - low == pytest.approx(high - mean)


def density_of_t(x: float, df: int) -> float:
    scale = math.gamma((df + 1) / 2) / (math.sqrt(df * math.pi) * math.gamma(df / 2))
    return scale * (1 + x * x / df) ** (-(df + 1) / 2)


def cdf_of_t(t: float, df: int, n: int = 4000) -> float:
    """Simpson's rule on the density from 0 to t."""
    total = density_of_t(0, df) + density_of_t(t, df)
    for i in range(1, n):
        total += (4 if i % 2 else 2) * density_of_t(t * i / n, df)
    return 0.5 + t / n / 3 * total


def test_the_quantiles_are_those_of_students_distribution():
    found = [cdf_of_t(t, df) for df, t in enumerate(QUANTILES, 1)]
    assert found == pytest.approx([0.975] * 10, abs=2e-5)


def test_one_value_has_no_interval():
    assert interval([0.5]) == (0.5, None, None)
    assert interval([]) == (None, None, None)


def test_undefined_values_do_not_count():
    assert interval([1.0, None, 3.0]) == interval([1.0, 3.0])


@pytest.mark.parametrize(
    "a, b, expected",
    [
        ([0.80, 0.81, 0.82], [0.5, 0.5, 0.5], "shown"),
        ([0.50, 0.51, 0.52], [0.8, 0.8, 0.8], "reversed"),
        ([0.90, 0.10, 0.80], [0.5, 0.5, 0.5], "not shown"),
        ([0.50, 0.50, 0.50], [0.5, 0.5, 0.5], "not shown"),
        ([0.90], [0.1], "not shown"),
    ],
)
def test_the_verdict_follows_from_the_interval(a, b, expected):
    assert verdict(Compare("a", "b"), a, b) == expected


def test_where_less_is_better_the_verdict_turns_around():
    a, b = [1.0, 1.1, 1.2], [3.0, 3.0, 3.0]
    assert verdict(Compare("a", "b", lower=True), a, b) == "shown"
    assert verdict(Compare("a", "b"), a, b) == "reversed"


@pytest.mark.parametrize(
    "margin, expected", [(0.0, "reversed"), (0.02, "shown"), (0.009, "not shown")]
)
def test_a_margin_forgives_a_small_loss_and_no_large_one(margin, expected):
    a, b = [0.490, 0.491, 0.492], [0.5, 0.5, 0.5]
    assert verdict(Compare("a", "b", margin=margin), a, b) == expected


@pytest.mark.parametrize(
    "a, expected",
    [
        ([100.0, 100.0, 100.0], "shown"),
        ([100.2, 99.9, 100.1], "not shown"),
        ([9000.0, 9000.0, 9000.0], "reversed"),
        ([1.0, 1.0, 1.0], "reversed"),
    ],
)
def test_an_equality_is_lost_on_either_side(a, expected):
    equal = Compare("a", "b", margin=0.1, equal=True)
    assert verdict(equal, a, [100.0] * 3) == expected


def test_differences_are_paired_by_seed():
    # The arms vary between seeds far more than they differ.
    a, b = [0.1, 0.5, 0.9], [0.05, 0.44, 0.85]
    part = judge(experiment(), cells(a=a, b=b))[0]
    assert part["verdict"] == "shown"
    assert part["difference"] == pytest.approx(0.16 / 3, abs=1e-6)


def test_two_metrics_of_one_arm_can_be_compared():
    rows = [{"code": 0.9, "text": 0.2}, {"code": 0.8, "text": 0.1}, {"code": 0.9, "text": 0.1}]
    compare = Compare("a", "a", "code", metric_worse="text")
    part = judge(experiment(compare), cells(a=rows, b=rows))[0]
    assert part["verdict"] == "shown"
    assert (part["metric"], part["metric_worse"]) == ("code", "text")


def test_a_seed_where_a_metric_is_undefined_has_no_difference():
    part = judge(experiment(), cells(a=[0.9, None, 0.8], b=[0.1, 0.1, 0.1]))[0]
    assert part["seeds"] == 2
    assert part["difference"] == pytest.approx(0.75)


def test_an_overflow_shows_nothing():
    part = judge(experiment(), cells(a=[math.inf] * 3, b=[0.1] * 3))[0]
    assert part["verdict"] == "not shown"
    assert part["difference"] is None


def test_a_missing_metric_is_named():
    with pytest.raises(ValueError, match="arm 'a' gives no 'calls', but accuracy"):
        judge(experiment(Compare("a", "b", "calls")), cells(a=[0.1], b=[0.1]))


@pytest.mark.parametrize(
    "parts, expected",
    [
        (["shown", "shown"], "shown"),
        (["shown", "not shown"], "partly shown"),
        (["not shown"], "not shown"),
        (["reversed", "not shown"], "reversed"),
        (["reversed"], "reversed"),
        (["shown", "reversed"], "not shown"),
    ],
)
def test_the_verdicts_on_the_parts_make_one(parts, expected):
    assert overall(with_verdicts(parts)) == expected


@pytest.mark.parametrize(
    "parts, conditions, expected",
    [
        (["shown"], ["shown"], "shown"),
        (["shown"], ["not shown"], "partly shown"),
        (["shown"], ["reversed"], "partly shown"),
        (["shown", "not shown"], ["shown"], "partly shown"),
        (["not shown"], ["shown"], "not shown"),
        (["reversed"], ["shown"], "reversed"),
    ],
)
def test_a_condition_only_lowers_the_verdict(parts, conditions, expected):
    assert overall(with_verdicts(parts) + with_verdicts(conditions, claimed=False)) == expected


def with_verdicts(verdicts, claimed=True):
    return [{"verdict": verdict, "claimed": claimed} for verdict in verdicts]


@pytest.mark.parametrize("wrong", [{"arms": ("a", "c")}, {"control": "c"}])
def test_an_experiment_compares_only_arms_that_it_has(wrong):
    with pytest.raises(AssertionError, match="lacks"):
        experiment(**wrong)


def test_a_summary_is_json_and_counts_a_shared_cell_once():
    shared = Arm("same", nothing)
    twice = Experiment(**{**vars(experiment()), "arms": {"a": shared, "b": shared}})
    results = summarise(twice, cells(a=[0.5, 0.6], b=[0.5, 0.6]), quick=False)
    assert results["minutes"] == 2.0
    assert results["seeds"] == 2
    assert json.loads(json.dumps(results)) == {**results, "metrics": list(results["metrics"])}


def test_of_a_map_only_the_first_seed_is_kept():
    rows = [{"accuracy": 1.0, "rate: start": [[0.5, float(seed)]]} for seed in range(3)]
    results = summarise(
        experiment(figure=("rate: start",)), cells(a=rows, b=[1.0] * 3), quick=False
    )
    assert results["curves"] == {"rate: start": {"a": {"0": [[0.5, 0.0]]}}}


def test_only_curves_to_be_drawn_are_kept_and_shortened():
    row = [{"accuracy": 0.5, "reward": [[0, 1 / 3], [1, math.nan]], "other": [[0, 1.0]]}]
    results = summarise(experiment(figure=("reward",)), cells(a=row, b=[0.5]), quick=False)
    assert results["curves"] == {"reward": {"a": {"0": [[0, 0.3333], [1, None]]}}}
    assert results["arms"]["a"]["seeds"] == {"0": {"accuracy": 0.5}}
