"""Failing calls: what the cold starts hold, and that arms differ in what they are about."""

from random import Random

from nanotir.demonstrate import TeacherConfig, script
from nanotir.lab import dapo
from nanotir.lab.experiments import EXPERIMENTS
from nanotir.problems import load


def programs(bugs: float, n: int = 300) -> list[int]:
    """How many programs each demonstration has, of problems with one."""
    config = TeacherConfig(quality=1.0, bugs=bugs)
    pieces = [script(p, Random(i), config) for i, p in enumerate(load("plain:mul,power", n=n))]
    return [sum(kind == "python" for kind, _ in row) for row in pieces]


def test_a_share_of_demonstrations_has_a_program_that_fails_first():
    counts = programs(bugs=0.5)
    assert set(counts) == {1, 2}
    assert abs(counts.count(2) - 150) < 35  # four standard deviations
    assert set(programs(bugs=1.0)) == {2} and set(programs(bugs=0.0)) == {1}


def settings_of(experiment: str, arm: str) -> dict:
    """The settings that an arm adds to its cold start's."""
    run = EXPERIMENTS[experiment].arms[arm].run
    return dict(zip(run.__code__.co_freevars, run.__closure__))["settings"].cell_contents


def test_the_void_filter_is_all_that_its_arms_differ_in():
    filtered = settings_of("void-turns", "filtered")
    assert filtered == settings_of("void-turns", "all answers") | {"rl.drop_void": True}


def test_resampling_learns_from_as_many_answers_as_plain_grpo():
    chosen = settings_of("resampling", "8 of 16")
    assert chosen["rl.group_size"] == settings_of("resampling", "16 of 16")["rl.group_size"]
    assert chosen["rl.keep"] == 8 and settings_of("resampling", "8 of 8") is None


def test_every_rung_of_the_ladder_keeps_those_below():
    rungs = [dapo.GRPO, dapo.CLIP, dapo.OVERLONG, dapo.TOKENS, dapo.DYNAMIC]
    changed = []
    for below, above in zip(rungs, rungs[1:]):
        assert below.keys() <= above.keys()
        changed += [{name for name in above if above[name] != below.get(name)}]
    lengths = {"reward.length", "reward.max_completion_len", "reward.soft_punish_cache"}
    steps = [{"rl.epsilon_high"}, lengths, {"rl.loss_type"}, {"rl.dynamic", "rl.refills"}]
    assert changed == steps
