"""What the loss's denominator does to the length of wrong answers; ratios of whole answers."""

from __future__ import annotations

import math
import random
from concurrent.futures import Future

from nanotir.demonstrate import act_out, answer_sentence, wrong_guess
from nanotir.lab.cir import COLD, FIRST_HARD
from nanotir.lab.experiment import Arm, Compare, Experiment
from nanotir.lab.experts import KINDS, expert_disagreement, expert_use, kinds_of_tokens
from nanotir.lab.toy import cold_start, curve, largest, mean_of, measure, reinforce, trained
from nanotir.rl import make_sampler
from nanotir.tools import Tool, ToolResult

# One call an answer, to a tool that is down half of the time. It tells rows apart by their
# sessions.
LINE = {
    "data": "plain:mul,power,gcd",
    "tools": "python",
    "sft.steps": 300,
    "rl.steps": 24,
    "sampler.max_new_tokens": 128,
    "sampler.sessions": True,
    "eval.problems": 1,
}
LONG = COLD | {"level": 3}  # up to 7 digits, so that RL leaves something to be learned
MOE = {"model.n_experts": 8, "model.n_experts_per_token": 2}
GSPO_CLIP = {"rl.epsilon": 3e-4, "rl.epsilon_high": 4e-4}  # the paper's, for ratios of whole rows
CONTROL = "random rewards"


class BadLine(Tool):
    """Another tool that is down half of the time, as the row and the code decide; or always."""

    def __init__(self, tool: Tool, down: bool = False):
        self.tool = tool
        self.name = tool.name
        self.down = down

    def submit(self, text, session=None):
        if not self.down and random.Random(f"{text} {session.index}").random() < 0.5:
            return self.tool.submit(text)
        # The result is ok: it is an answer, not a failure of the tool, so the run may go on.
        future = Future()
        future.set_result(ToolResult("The line is down."))
        return future


def demonstrations(run) -> list:
    """Demonstrations of all problems, of every second one with the tool down.

    There the teacher hesitates for a random time and then guesses, always wrongly.
    """
    rng = random.Random(f"line {run.config.seed}")
    up, down = run.problems[::2], run.problems[1::2]
    answered = [[*p.solution, ("text", answer_sentence(p.answer))] for p in up]
    guessed = []
    for problem in down:
        words = hesitation(rng) + answer_sentence(wrong_guess(problem.answer, rng))
        guessed.append([*problem.solution, ("text", words)])

    (line,) = run.tools
    with_tool = act_out(up, answered, run.tokenizer, run.format, {"python": line.tool})
    always_down = {"python": BadLine(line.tool, down=True)}
    return with_tool + act_out(down, guessed, run.tokenizer, run.format, always_down)


def hesitation(rng: random.Random) -> str:
    """At most 30 times "Hmm. ": it goes on with probability 0.9."""
    times = 0
    while times < 30 and rng.random() >= 0.1:
        times += 1
    return "Hmm. " * times


def lengths(key: str, coin: bool = False, **loss) -> Arm:
    """How much longer wrong answers are in the last quarter of RL than in the first."""

    def run_arm(seed, quick, folder):
        taught = {"wrap": BadLine, "teach": demonstrations}
        start = cold_start("lengths", LINE | {"rl.steps": 0}, seed, quick, "grpo", **taught)
        settings = LINE | {"reward.coin": coin, "init": start, "sft.steps": 0}
        for name, value in loss.items():
            settings[f"rl.{name}"] = value
        with trained(folder, "grpo", settings, seed, quick, wrap=BadLine) as run:
            wrong = curve(run, "new_tokens_wrong")
            return {
                "wrong_growth": growth(wrong),
                "right_growth": growth(curve(run, "new_tokens_right")),
                "wrong_tokens": mean_of(wrong, 0.25),
                "sampled_accuracy": mean_of(curve(run, "accuracy"), 0.25),
                "wrong tokens by step": wrong,
            }

    return Arm(f"grpo-lengths-{key}", run_arm)


def growth(points: list) -> float | None:
    """The mean of the last quarter of a curve, less the mean of its first quarter."""
    if not points:
        return None
    return mean_of(points, 0.25) - mean_of(points[: max(1, len(points) // 4)])


def experts(
    level: str, moe: bool, coin: bool = False, tight: bool = False, balance: bool = True
) -> Arm:
    """How much the ratios vary that the loss uses: of ids or of answers, with experts or not.

    All arms divide by the rows' own lengths, then by the rows, as GSPO does. They clip at 0.2, or,
    `tight`, as GSPO does. Without `balance` nothing ever spreads the load of the experts.
    """
    name, start = ("moe", LONG | MOE) if moe else ("dense", LONG)
    if not balance:
        name, start = "moe-free", start | {"model.router_aux_coef": 0.0}
    settings = {
        "rl.loss_type": "grpo",
        "rl.steps": 16,
        "rl.updates": 4,
        "rl.ratio_level": level,
        "reward.coin": coin,
    } | (GSPO_CLIP if tight else {})

    def run_arm(seed, quick, folder):
        with reinforce(folder, "grpo", start, settings, seed, quick, name) as run:
            result = measure(run)
            variances = curve(run, "ratio_variance")
            variance = mean_of(variances)
            found = {
                "ratio_variance": variance,
                "log_ratio_variance": math.log10(variance) if variance else None,
                "ratio_max": largest(curve(run, "ratio_max")),
                "clipped": mean_of(curve(run, "clip_low")) + mean_of(curve(run, "clip_high")),
                "accuracy": result["accuracy"],
                "variance by step": variances,
            }
            return found | (choices(run) if moe else {})

    kind = f"{'-tight' if tight else ''}{'-random' if coin else ''}{'' if balance else '-free'}"
    return Arm(f"grpo-rows-{'moe' if moe else 'dense'}-{level}{kind}", run_arm)


def choices(run) -> dict:
    """Which experts read what in greedy answers to the held-out problems, and how even the load is.

    `load` is that of RL's last quarter: 1 where all experts are chosen as often, 4 where two of
    eight are always chosen. The x of a map's column is the layer, then the expert.
    """
    greedy = make_sampler(run, temperature=0.0)
    rows = greedy.generate([p.question for p in run.held_out], seed=run.config.seed)
    given = (run.model, run.tokenizer, rows)
    by_token = expert_use(*given, kinds_of_tokens)
    found = {
        "experts_apart": apart(expert_use(*given)),
        "disagreement": expert_disagreement(run.model, rows[:64], run.tokenizer.pad_id),
        "load": mean_of(curve(run, "router_aux"), 0.25),
    }
    for kind in KINDS:
        columns = []
        for layer, shares in enumerate(by_token.get(kind, [])):
            columns += [[round(layer + 1 + e / 10, 1), share] for e, share in enumerate(shares, 1)]
        found[f"experts: {kind}"] = columns
    return found


def apart(use: dict) -> float:
    """How different the experts of code are from those of words, from 0 to 1.

    In each layer, half the sum of the differences of their shares; then the mean over layers.
    """
    layers = []
    for code, text in zip(use.get("python", use["text"]), use["text"]):
        layers.append(sum(abs(a - b) for a, b in zip(code, text)) / 2)
    return sum(layers) / len(layers)


LENGTHS = Experiment(
    number=13,
    name="lengths",
    system="GRPO",
    claim="Dividing each row's loss by its own length makes wrong answers grow longer; one "
    "denominator for all ids does not.",
    source="Liu et al. 2025, Dr. GRPO",
    published="wrong answers grow under GRPO, not under Dr. GRPO; no figure in common units",
    measure="ids in wrong sampled answers (at most 128): the mean over the last quarter of 24 "
    "steps, less that over the first",
    expected="growth under grpo > under dr_grpo and dapo",
    arms={
        "grpo": lengths("grpo", loss_type="grpo"),
        "dr_grpo": lengths("dr", loss_type="dr_grpo", scale="none"),
        "dapo": lengths("dapo", loss_type="dapo"),
        CONTROL: lengths("random", coin=True, loss_type="grpo"),
    },
    compare=(
        Compare("grpo", "dr_grpo", "wrong_growth"),
        Compare("grpo", "dapo", "wrong_growth"),
    ),
    control=CONTROL,
    figure=("wrong tokens by step",),
    tuned="A tool that is down half of the time, by chance: then no answer is right, and how long "
    "the model hesitates is its own affair.",
)

EXPERTS = Experiment(
    number=14,
    name="experts",
    system="GRPO",
    claim="With experts the ratios of ids vary more than in a dense policy, and a ratio per row "
    "costs no accuracy there, at GSPO's clip or at 0.2; the auxiliary loss spreads the load.",
    source="Zheng et al. 2025, GSPO; the first part is our own hypothesis",
    published="GSPO trains a mixture of 30B parameters stably, and clips 100 times as many ids",
    measure="greedy accuracy; log10 of the mean of (ratio - 1)^2 over the ids of four updates a "
    "rollout (a logarithm, since single ids have ratios of 7); equal active parameters, and one "
    "denominator in all arms: each row's length, then the rows; load of the experts in RL's last "
    "quarter, E sum f P: 1 if all serve as much, 4 if two do everything",
    expected="experts > dense in variance; no arm loses 5 points of accuracy by a ratio per row; "
    "load near 1 with the auxiliary loss, above without",
    arms={
        "experts, token": experts("token", moe=True),
        "experts, sequence": experts("sequence", moe=True),
        "experts, sequence, 3e-4": experts("sequence", moe=True, tight=True),
        "experts, no auxiliary loss": experts("token", moe=True, balance=False),
        "dense, token": experts("token", moe=False),
        "dense, sequence": experts("sequence", moe=False),
        CONTROL: experts("token", moe=True, coin=True),
    },
    compare=(
        Compare("dense, token", "experts, token", "log_ratio_variance", lower=True),
        Compare("experts, sequence, 3e-4", "experts, token", margin=0.05),
        Compare("experts, sequence", "experts, token", margin=0.05),
        Compare("dense, sequence", "dense, token", margin=0.05),
        Compare("experts, token", CONTROL, claimed=False),
        Compare("experts, token", "experts, no auxiliary loss", "load", lower=True),
    ),
    control=CONTROL,
    figure=("variance by step", *(f"experts: {kind}" for kind in KINDS)),
    tuned="As for CIR; 8 experts, 2 a token. Numbers have up to 7 digits: with 5, RL ended at 0.97 "
    "on seeds 6 to 10, with 6 at 0.98 on seed 0, with 7 at 0.94. That a mean over a row varies "
    "less than its terms is arithmetic, and no part of the claim.",
    first_seed=FIRST_HARD,
)

EXPERIMENTS = [LENGTHS, EXPERTS]
