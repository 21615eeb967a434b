from nanotir.bench import medians


def test_every_figure_is_its_median_over_the_rounds_but_for_the_one_that_warms_up():
    assert medians(lambda number: {"same": 1.0, "number": 1000.0 if number < 0 else number**2 / 3}, rounds=5) == {"same": 1.0, "number": 1.33333}
