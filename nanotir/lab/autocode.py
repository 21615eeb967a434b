"""AutoCode's expectation-maximisation: learning when to call a tool.

It is compared with imitation and with plain RL, which get as many rollouts and updates (imitation
gets none). Other choices of s* have arms of their own.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from nanotir import rl, sft
from nanotir.demonstrate import act_out
from nanotir.lab.experiment import Arm, Compare, Experiment
from nanotir.lab.toy import cold_start, curve, measure, train, trained, untrained
from nanotir.recipes.autocode import (
    CLEAR,
    Explored,
    better,
    decision_logps,
    em_metrics,
    force,
    in_words,
)
from nanotir.rl import make_sampler
from nanotir.run import write_json
from nanotir.scores import mean

# Three families that only code solves, two that a hasty program gets wrong, three that both solve
# and where words are cheaper.
COLD = {
    "data": "plain:mul,power,det,queue,same,parity,last,first",
    "tools": "python",
    "sft.steps": 450,
    "rl.steps": 0,
}
ROUNDS = {
    "rl.steps": 20,
    "rl.problems": 16,
    "rl.group_size": 8,
    "rl.refills": 0,
    "rl.dynamic": False,
    "rl.updates": 2,
    "rl.iterations": 2,
    "rl.epsilon_high": 0.2,
    "reward.length": 0.0,
    "autocode.samples": 4,
}
PROBLEMS = 96  # held-out ones whose decisions are looked at
PARTS = (0, 25, 50, 75, 100)  # percent of training after which rates of code are written down
CONTROL = "random rewards"


def both(seed: int, quick: bool) -> str:
    """The cold start that imitates both decisions."""
    return cold_start("autocode-both", COLD, seed, quick, recipe="autocode")


def arm(key: str, recipe: str = "autocode", **settings) -> Arm:
    """One method of learning when to call, from the cold start that can do both."""

    def run_arm(seed, quick, folder):
        own = {"init": both(seed, quick), "sft.steps": 0, **settings}
        with untrained(folder, recipe, COLD | ROUNDS | own, seed, quick) as run:
            rates = watched(run)
            train(run)
            return measured(run, rates, folder, seed, quick)

    return Arm(f"autocode-{key}", run_arm)


def from_words(seed, quick, folder):
    """RL after imitation of words alone."""
    with untrained(folder, "tapo", COLD | ROUNDS, seed, quick) as run:
        scripts = [in_words(problem) for problem in run.problems]
        given = (run.tokenizer, run.format, run.tools_by_name)
        sft.train(run, act_out(run.problems, scripts, *given))
        rates = watched(run)
        rl.train(run)
        return measured(run, rates, folder, seed, quick)


def watched(run) -> dict[int, list[float]]:
    """{step: the rate of code on each held-out problem}, filled in as the run is trained.

    Step 0 is what training starts from.
    """
    rates = {0: code_rates(run)}
    finish_step = run.finish_step

    def finish(step, *rest, **options):
        rates[step] = code_rates(run)
        finish_step(step, *rest, **options)

    run.finish_step = finish
    return rates


@torch.no_grad()
def code_rates(run) -> list[float]:
    """pi(code|x) of the two decisions, of each problem that the oracle looks at."""
    problems = run.held_out[:PROBLEMS]
    prompts = [torch.tensor(run.format.prompt(run.tokenizer, p.question)) for p in problems]
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    ids = pad_sequence(prompts, batch_first=True, padding_value=run.tokenizer.pad_id)
    logps = decision_logps(run.model, ids, lengths, make_sampler(run, temperature=1.0))  # (B, 2)
    return logps.softmax(-1)[:, 1].tolist()


def measured(run, rates: dict, folder, seed: int, quick: bool) -> dict:
    problems, gaps = oracle(folder, run.held_out, seed, quick)
    rows = look(run, problems, n=4 if quick else 16, seed=seed)
    found = metrics(rows, gaps) | {"accuracy": measure(run)["accuracy"]}
    found["accuracy by rollouts"] = by_rollouts(run, found["own_accuracy"])
    found["clear selection by step"] = by_step(rates, gaps)
    return found | histograms(rates)


def by_rollouts(run, accuracy: float) -> list[list]:
    """Accuracy at temperature 1 by the rollouts that were paid for (the paper's figure 4).

    A step has as many in all arms that have any. Imitation has none: its own accuracy throughout.
    """
    points = curve(run, "accuracy", "em") or curve(run, "accuracy")
    rows = ROUNDS["rl.problems"] * ROUNDS["rl.group_size"]
    if not points:
        return [[0, accuracy], [rows * ROUNDS["rl.steps"], accuracy]]
    return [[rows * step, value] for step, value in points]


def by_step(rates: dict, gaps: list[float]) -> list[list]:
    """[[step, share of the clear problems whose likelier decision is the better one], ...]."""
    points = []
    for step, row in rates.items():
        right = [(p > 0.5) == (gap > 0) for p, gap in zip(row, gaps) if abs(gap) > CLEAR]
        if right:
            points.append([step, mean(right)])
    return points


def histograms(rates: dict) -> dict[str, list[list]]:
    """{"code rate: 50%": [[0.05, share of problems with a rate below 0.1], ...], ...}.

    That is halfway through training (the paper's figure 5).
    """
    found = {}
    for percent in PARTS:
        row = rates[round(max(rates) * percent / 100)]
        tenths = [min(9, int(10 * rate)) for rate in row]
        shares = [[i / 10 + 0.05, tenths.count(i) / len(row)] for i in range(10)]
        found[f"code rate: {percent}%"] = shares
    return found


def look(run, problems, n: int = 8, seed: int = 0) -> list[Explored]:
    """How the policy decides, and how often either decision is right: n forced rollouts of each."""
    return force(run, make_sampler(run, temperature=1.0), problems, n, seed)


def oracle(folder, held_out: list, seed: int, quick: bool) -> tuple[list, list]:
    """(held-out problems, Q(code) - Q(words) of each): what the better decision is.

    The cold start that can do both decides, the same one for all arms of a seed.
    """
    init = Path(both(seed, quick))
    problems = held_out[:PROBLEMS]
    path = init.parent / "oracle.json"
    if not path.exists():
        settings = COLD | {"init": str(init), "sft.steps": 0}
        with trained(folder / "oracle", "autocode", settings, seed, quick) as run:
            rows = look(run, problems, n=4 if quick else 16, seed=seed)
        write_json(path, [row.Q[1] - row.Q[0] for row in rows])
    return problems, json.loads(path.read_text())


def metrics(rows: list[Explored], gaps: list[float]) -> dict:
    """How often the likelier decision is the better one.

    By the oracle, which is the cold start, and, in `own_clear_selection`, by what the policy itself
    can do. Where decisions differ clearly; ties, for which nothing pays, are reported apart.
    """
    right = [better(row.prior) == (gap > 0) for row, gap in zip(rows, gaps)]
    ties = [row.prior[1] for row, gap in zip(rows, gaps) if gap == 0]
    clear = [good for good, gap in zip(right, gaps) if abs(gap) > CLEAR]
    found = {
        "clear_selection": mean(clear) if clear else None,
        "clear": len(clear) / len(rows),
        "ties": len(ties) / len(rows),
        "code_rate_on_ties": mean(ties) if ties else None,
        "selection_accuracy": mean(right),  # of all problems; on ties, words count as right
        "code rate by gap": by_gap(rows, gaps),
        "own_clear_selection": None,  # of a policy without a clear problem
    }
    for name, value in em_metrics(rows).items():
        found[f"own_{name}"] = value
    return found


def by_gap(rows: list[Explored], gaps: list[float]) -> list[list]:
    """[[Q(code) - Q(words), rounded to quarters; mean rate of code], ...]."""
    bins = {}  # is code used where it is the better choice?
    for row, gap in zip(rows, gaps):
        bins.setdefault(round(4 * gap) / 4, []).append(row.prior[1])
    return [[gap, sum(rates) / len(rates)] for gap, rates in sorted(bins.items())]


AUTOCODE = Experiment(
    number=10,
    name="autocode",
    system="AutoCode",
    claim="Expectation-maximisation over the decision to call learns when code pays, better than "
    "imitation or plain RL at as many rollouts.",
    source="Wang et al. 2025, figures 4 and 5",
    published="selection accuracy 89.5% on MATH-500, about 50% for models without it",
    measure="clear_selection: of 96 held-out problems, those whose decisions differ by more than "
    "0.25 in 16 rollouts of each by the cold start; the share of them whose likelier decision is "
    "the better one. own_clear_selection: the same by the arm's own rollouts. accuracy: greedy",
    expected="EM 85% or more, above imitation and plain RL; RL from words alone decides well for "
    "what it can do, which is less",
    arms={
        "EM": arm("em-product"),
        "EM, posterior": arm("em-posterior", **{"autocode.strategy": "posterior"}),
        "EM, alpha 8": arm("em-alpha", **{"autocode.alpha": 8.0}),
        "EM, argmax Q": arm("em-quality", **{"autocode.strategy": "quality"}),
        "SFT + RL": arm("rl", "tapo"),
        "SFT": arm("sft", **{"rl.steps": 0}),
        "words + RL": Arm("autocode-words-rl", from_words),
        CONTROL: arm("random", **{"reward.coin": True}),
    },
    compare=(
        Compare("EM", "SFT", "clear_selection"),
        Compare("EM", "SFT + RL", "clear_selection"),
        Compare("EM", CONTROL, "clear_selection", claimed=False),
        Compare("EM", "SFT", "own_clear_selection"),
        Compare("EM", "SFT + RL", "own_clear_selection"),
        Compare("EM", "words + RL", "own_clear_selection", margin=0.05),
        Compare("EM", "words + RL"),
    ),
    control=CONTROL,
    figure=(
        "accuracy by rollouts",
        "clear selection by step",
        "code rate by gap",
        *(f"code rate: {percent}%" for percent in PARTS),
    ),
    tuned="Three families that only code solves, two that it misleads, three where both do; both "
    "ways are imitated alike.",
)

EXPERIMENTS = [AUTOCODE]
