"""CIR's ideas: tools in RL, the mask on tool output, a growing budget of calls; and pass@k."""

from __future__ import annotations

from nanotir.evaluate import pass_at_k
from nanotir.lab.analysis import analyse
from nanotir.lab.experiment import Arm, Compare, Experiment
from nanotir.lab.toy import (
    FIRST_WITHIN,
    cold_start,
    curve,
    largest,
    mean_of,
    measure,
    reinforce,
    right_counts,
    trained,
)

COLD = {
    "data": "plain:mul,power,gcd,det,quot,last,parity",
    "tools": "python",
    "format": "fences",
    "teacher.quality": 0.4,
    "teacher.rationales": 0.2,
    "sft.steps": 800,
    "rl.steps": 0,
}
RL = {"rl.steps": 24, "rl.budgets": "", "sampler.forge": True}
HARD = COLD | {"level": 2}  # one more digit, so that RL leaves something to be learned
TEXT = HARD | {"format": "text"}
HOT = {"sampler.temperature": 1.2}  # some programs fail after RL, too
WORDS = {"tools": "", "rl.steps": 6}  # a policy trained so still calls now and then
# One call suffices, or words (last, first); four calls of ten are made twice; outputs are numbers.
NUMBERS = COLD | {
    "data": "plain:mul,power,gcd,last,first",
    "teacher.twice": 0.4,
    "teacher.rationales": 0.0,
    "sft.steps": 300,
    "sampler.max_new_tokens": 96,
}
HOPS = COLD | {
    "data": "plain:fact,home,gap",
    "tools": "python,search",
    "teacher.quality": 0.5,
    "teacher.rationales": 0.0,
    "sft.steps": 350,
}
FIRST_SEED = 6  # with seeds 1 to 5, the cold start had 450 steps, and did not copy numbers
FIRST_HARD = 14  # with seeds 6 to 10, numbers had a digit less, and RL ended above 95%
CONTROL = "random rewards"
RANDOM = {"reward.coin": True}
KS = [2**i for i in range(9)]
NUMBERS_TUNED = (
    "Three families of five that words do not suffice for, and tools that are asked twice in the "
    "cold start. From CIR's cold start of that time, 300 steps, RL on seed 0 learned nothing."
)
TUNED = (
    "A cold start of 800 steps on a mediocre teacher, two in ten answers in words: the fewest "
    "after which the tuning seeds 11 to 13 all copy most numbers right. After 450 steps, seed 0 "
    "did, but not 13, nor four of the seeds 1 to 5: RL learned little there."
)
HARD_TUNED = f"{TUNED} Numbers have up to 6 digits: with 5, RL ended at 0.97 on seeds 6 to 10."


def rl_arm(key: str, settings=None, name: str = "cir", start=None, mode: str = "tools") -> Arm:
    """RL by CIR's recipe from the cold start `name`, which the settings `start` describe."""

    def run_arm(seed, quick, folder):
        own = RL | (settings or {})
        with reinforce(folder, "cir", start or COLD, own, seed, quick, name) as run:
            return rl_metrics(run, mode)

    return Arm(f"cir-{key}", run_arm)


def hard(key: str, settings=None, mode: str = "tools") -> Arm:
    """The same on problems of level 2."""
    return rl_arm(f"hard-{key}", settings, "hard", HARD, mode)


def rl_metrics(run, mode: str = "tools") -> dict:
    """What RL has led to, and what became of the code."""
    result = measure(run, modes=mode)
    accuracies = curve(run, "accuracy")
    return analyse(run)["all"] | {
        "accuracy": result["accuracy"],
        "calls": result["calls_per_problem"],
        "curve": accuracies,
        "sampled_accuracy": mean_of(accuracies, 0.25),
        "grad_norm_max": largest(curve(run, "grad_norm")),
    }


def hops(budgets: str, random: bool = False) -> Arm:
    """Problems of up to three calls, with RL under a budget of calls."""
    key = f"hops-{budgets.replace(',', '')}" + "-random" * random
    return rl_arm(key, {"rl.budgets": budgets} | (RANDOM if random else {}), "hops", HOPS)


def passes(model: str, mode: str) -> Arm:
    """pass@k up to 256 on 20 problems, in "code" or words, of the cold start ("base") or "RL"."""

    def run_arm(seed, quick, folder):
        n, problems = (16, 8) if quick else (256, 20)
        with policy(folder, model, seed, quick, level=3) as run:
            counts = right_counts(run, run.held_out[:problems], n, tools=mode == "code")
        return pass_metrics(n, counts)

    return Arm(f"cir-longer-pass-{model}-{mode}", run_arm)


def policy(folder, model: str, seed: int, quick: bool, name: str = "cir", start=COLD, **asked):
    """The Run of a cold start ("base"), or of RL from it ("RL" or "words"), on problems `asked`."""
    init = cold_start(name, start, seed, quick)
    if model != "base":
        settings = start | RL | {"init": init, "sft.steps": 0}
        kind, own = ("rl", {}) if model == "RL" else ("words", WORDS)
        init = cold_start(f"{name}-{kind}", settings | own, seed, quick, recipe="cir")
    return trained(folder, "cir", start | {"init": init, "sft.steps": 0} | asked, seed, quick)


def pass_metrics(n: int, counts: list[int]) -> dict:
    """pass@k for all k, from the number of right answers among n to each problem."""
    found = dict.fromkeys(f"pass@{k}" for k in KS)
    points = []
    for k in KS:
        if k <= n:
            share = sum(pass_at_k(n, c, k) for c in counts) / len(counts)
            found[f"pass@{k}"] = share
            points.append([k, share])
    return found | {"pass by k": points}


TOOLS_OR_TEXT = Experiment(
    number=4,
    name="tools-or-text",
    system="CIR",
    claim="RL with a code tool ends above RL in words alone from the same cold start, and writes "
    "fewer ids for each right answer.",
    source="CIR, table 1, and its comparison with long chains of thought; ToRL",
    published="7B, average of five benchmarks: 52.4 with code, 39.3 without (Oat-Zero)",
    measure="greedy accuracy on held-out problems, each arm as it was trained; ids for each right "
    "answer, in one sampled answer a problem",
    expected="tool > text, and more concise; random rewards change little",
    arms={
        "tool": hard("tool"),
        "text": hard("text", {"tools": ""}, mode="text"),
        CONTROL: hard("random", RANDOM),
    },
    compare=(
        Compare("tool", "text"),
        Compare("tool", CONTROL, claimed=False),
        Compare("tool", "text", "tokens_per_correct", lower=True),
    ),
    control=CONTROL,
    figure=("curve",),
    tuned=HARD_TUNED,
    first_seed=FIRST_HARD,
)

RL_MASK = Experiment(
    number=5,
    name="rl-mask",
    system="CIR",
    claim="Learning from tool output as if the model had said it makes RL worse, or less stable.",
    source="Search-R1, mask ablation; CIR",
    published="exact match 0.431 with the mask, 0.343 without (Search-R1)",
    measure="accuracy after RL, greedy and sampled over its last quarter; largest gradient norm, "
    "each arm's loss being a mean over what it learns from",
    expected="masked > learned; gradients of learned are larger",
    arms={
        "masked": hard("tool"),
        "learned": hard("learned", {"rl.observations": "learned"}),
        CONTROL: hard("random", RANDOM),
    },
    compare=(
        Compare("masked", "learned"),
        Compare("masked", "learned", "sampled_accuracy"),
        Compare("masked", "learned", "grad_norm_max", lower=True),
    ),
    control=CONTROL,
    figure=("curve",),
    tuned=HARD_TUNED,
    first_seed=FIRST_HARD,
)

MATCHING = Experiment(
    number=7,
    name="matching",
    system="CIR",
    claim="Blocks of code that are matched exactly, in plain text, fail less often than blocks "
    "that a stop string ends, and RL with them ends higher.",
    source="CIR, ablation of precise matching",
    published="in words only",
    measure="share of programs that run, in one sampled answer a held-out problem; accuracy after "
    "RL, greedy and sampled over its last quarter; exact blocks in the cold start; temperature 1.2",
    expected="exact > stop string",
    arms={
        "exact": rl_arm("exact", HOT, "text", TEXT),
        "stop string": rl_arm("stop-string", HOT | {"sampler.stop_string": True}, "text", TEXT),
        CONTROL: rl_arm("exact-random", HOT | RANDOM, "text", TEXT),
    },
    compare=(
        Compare("exact", "stop string", "pass_ratio"),
        Compare("exact", "stop string"),
        Compare("exact", "stop string", "sampled_accuracy"),
        Compare("exact", CONTROL, claimed=False),
    ),
    control=CONTROL,
    figure=("curve",),
    tuned=f"{HARD_TUNED} At temperature 1.2, fewer than 97% of programs run.",
    first_seed=FIRST_WITHIN,
)

ABLATIONS = Experiment(
    number=21,
    name="ablations",
    system="CIR",
    claim="An entropy bonus, a KL term or an upper clip as low as the lower one makes CIR's RL "
    "worse.",
    source="CIR, ablations",
    published="in words only",
    measure="accuracy sampled over the last quarter of RL; greedy against the coin and, with a "
    "margin, against whitening over groups that differ",
    expected="CIR > each of the three; both ways of whitening are as good",
    arms={
        "CIR": hard("tool"),
        "entropy bonus": hard("entropy", {"rl.entropy_coef": 0.01}),
        "KL": hard("kl", {"rl.beta": 0.04}),
        "low clip": hard("low-clip", {"rl.epsilon_high": 0.2}),
        "whitened where groups differ": hard("whiten", {"rl.scale": "whiten"}),
        CONTROL: hard("random", RANDOM),
    },
    compare=(
        Compare("CIR", "entropy bonus", "sampled_accuracy"),
        Compare("CIR", "KL", "sampled_accuracy"),
        Compare("CIR", "low clip", "sampled_accuracy"),
        Compare("CIR", "whitened where groups differ", margin=0.05, claimed=False),
        Compare("CIR", CONTROL, claimed=False),
    ),
    control=CONTROL,
    figure=("curve",),
    tuned=f"{HARD_TUNED} The coefficients, 0.01 and 0.04, were chosen before any run.",
    first_seed=FIRST_HARD,
)

BUDGET = Experiment(
    number=6,
    name="budget",
    system="CIR",
    claim="A budget of calls that grows from 2 to 4 is at least as good as one call or four "
    "throughout.",
    source="CIR, figure 3",
    published="AIME24 0.19 to 0.42 over 300 steps, with dips where the budget is raised; fixed "
    "budgets: not known",
    measure="greedy accuracy at four calls",
    expected="progressive >= both",
    arms={
        "2, 3, 4": hops("2,3,4"),
        "1": hops("1"),
        "4": hops("4"),
        CONTROL: hops("2,3,4", random=True),
    },
    compare=(Compare("2, 3, 4", "1", margin=0.05), Compare("2, 3, 4", "4", margin=0.05)),
    control=CONTROL,
    figure=("curve",),
    tuned="Problems of one, two and three calls, as many of each, from a cold start of a teacher "
    "who guesses half of the time.",
)

PASS_AT_K = Experiment(
    number=8,
    name="pass-at-k",
    system="CIR",
    claim="With code, more of the problems are within reach than in words at every k up to 256, "
    "before RL and after it; RL gains at k = 1.",
    source="CIR, figure on pass@k",
    published="AIME25 at k = 1024: about 0.83 with code, 0.63 in words; base and RL meet at "
    "large k",
    measure="unbiased pass@k of 256 samples at temperature 1 on 20 held-out problems with numbers "
    "of up to 7 digits, 5 in training; output ids are free, both modes may write 64 ids",
    expected="code > text at every k; RL above base at small k, perhaps not at large",
    arms={
        "RL code": passes("RL", "code"),
        "RL text": passes("RL", "text"),
        "base code": passes("base", "code"),
        "base text": passes("base", "text"),
    },
    compare=(
        Compare("RL code", "base code", "pass@1"),
        Compare("RL code", "RL text", "pass@1"),
        Compare("RL code", "RL text", "pass@16"),
        Compare("RL code", "RL text", "pass@256"),
        Compare("base code", "base text", "pass@1"),
        Compare("base code", "base text", "pass@16"),
        Compare("base code", "base text", "pass@256"),
    ),
    figure=("pass by k",),
    tuned=f"{TUNED} Numbers longer than in training: on seeds 6 to 10, 256 samples with code found "
    "0.99 of problems like those, on seed 0 all of them, and of longer ones 0.75.",
    first_seed=FIRST_HARD,
)

RANDOM_REWARD = Experiment(
    number=17,
    name="random-reward",
    system="all",
    claim="From random weights, RL on random rewards teaches nothing, unlike on models that were "
    "pretrained on mathematics.",
    source="Shao et al. 2025, Spurious rewards",
    published="Qwen2.5-Math-7B, MATH-500: +21.4 points from random rewards",
    measure="greedy accuracy with the tool, after RL and before",
    expected="right answers paid > cold start; random rewards paid: no better than the cold start",
    arms={
        "real rewards": hard("tool"),
        CONTROL: hard("random", RANDOM),
        "cold start": hard("start", {"rl.steps": 0}),
    },
    compare=(
        Compare("real rewards", "cold start"),
        Compare("cold start", CONTROL, margin=0.05),
    ),
    control=CONTROL,
    figure=("curve",),
    tuned=HARD_TUNED,
    first_seed=FIRST_HARD,
)

EXPERIMENTS = [TOOLS_OR_TEXT, RL_MASK, BUDGET, MATCHING, PASS_AT_K, RANDOM_REWARD, ABLATIONS]
