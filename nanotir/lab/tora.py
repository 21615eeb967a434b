"""ToRA's ideas: interleaving words and programs, masking tool output, output-space shaping.

All arms imitate; none uses RL.
"""

from __future__ import annotations

import random
from dataclasses import replace

import torch

from nanotir.lab.analysis import share
from nanotir.lab.experiment import Arm, Compare, Experiment
from nanotir.lab.toy import FIRST_WITHIN, cold_start, measure, trained, untrained
from nanotir.model import Transformer
from nanotir.recipes import tora
from nanotir.sampler import Sampler

DATA = {
    "data": "plain:mul,power,gcd,det,quot,clock,parity,last",
    "tools": "python",
    "teacher.quality": 1.0,
    "sft.steps": 200,
    "tora.samples": 0,
    "tora.covered": 1.0,
}
SHAPING = DATA | {
    "data": "plain:mul,power,quot,cost",
    "tools": "python,search",
    "problems": 600,
    "tora.covered": 0.5,
    "teacher.styles": 3,
    "sft.steps": 250,
    "tora.samples": 8,
    "model.token_shifts": 3,  # so that 300 demonstrations teach how to copy numbers
}


def imitate(format: str) -> Arm:
    """Imitation of solutions in one of three formats."""

    def run_arm(seed, quick, folder):
        with trained(folder, "tora", DATA | {"teacher.format": format}, seed, quick) as run:
            result = measure(run)
        found = {"accuracy": result["accuracy"], "calls": result["calls_per_problem"]}
        if format == "program":
            # A program is the whole answer: what its last call prints is graded.
            return found | {"accuracy": result["program_accuracy"]}
        for kind, row in result["by_kind"].items():
            found[f"accuracy_{kind}"] = row["accuracy"]
        return found

    return Arm(f"tora-{format}", run_arm)


def shape(name: str, control: bool = False, covered: bool = False, **settings) -> Arm:
    """Output-space shaping, from the imitation that all arms share to the retrained model.

    The control learns from as many copies of demonstrations instead; `covered` from answers to
    problems that were demonstrated alone.
    """

    def run_arm(seed, quick, folder):
        start = cold_start("shaping", SHAPING | {"tora.samples": 0}, seed, quick, recipe="tora")
        options = {f"tora.{key}": value for key, value in settings.items()}
        values = SHAPING | options | {"init": start}
        with untrained(folder, "tora", values, seed, quick) as run:
            corpus = tora.demonstrations(run)
            if covered:
                run.problems = run.problems[: len(corpus)]
            shaped = tora.shape(run, corpus) if run.config.tora.keep else []
            if control:
                shaped = random.Random(f"control {seed}").choices(corpus, k=len(shaped))
            # The shared start has imitated already. The retraining begins at random weights,
            # as it would in a run that had imitated by itself.
            run.state["base"] = Transformer(run.config.model, seed).state_dict()
            tora.retrain(run, corpus + shaped)
            return {"accuracy": measure(run)["accuracy"], "shaped": len(shaped)}

    return Arm(f"tora-shape-{name}", run_arm)


def observations(how: str) -> Arm:
    """Imitation with tool output masked, or learned like the rest."""

    def run_arm(seed, quick, folder):
        settings = DATA | {"sft.observations": how, "sampler.forge": True}
        with trained(folder, "tora", settings, seed, quick) as run:
            return {"accuracy": measure(run)["accuracy"], **inventions(run)}

    return Arm(f"tora-observations-{how}", run_arm)


def inventions(run) -> dict:
    """How readily a model makes up a tool's output when nothing runs its calls."""
    greedy = replace(run.config.sampler, temperature=0.0)
    sampler = Sampler(run.model, run.tokenizer, run.tools, run.format, greedy)
    sampler.openers.clear()  # calls can still be written, but the sampler does not notice them
    rows = sampler.generate([problem.question for problem in run.held_out])
    output = run.tokenizer.tags[run.format.delimiters("output")[0]]
    closer = run.tokenizer.tags[run.format.delimiters("python")[1]]
    called = [row.ids[: row.ids.index(closer) + 1] for row in rows if closer in row.ids]
    return {
        "invented": sum(output in row.ids for row in rows) / len(rows),
        "log_odds": share([log_odds(run.model, ids, output) for ids in called]),
    }


@torch.no_grad()
def log_odds(model, ids: list[int], next_id: int) -> float:
    """log p / (1 - p) of the probability p that `next_id` follows `ids`."""
    logits = model(torch.tensor([ids]))[0, -1]  # (V,)
    others = logits.index_fill(0, torch.tensor(next_id), -torch.inf)
    return float(logits[next_id] - others.logsumexp(0))


FORMATS = Experiment(
    number=1,
    name="formats",
    system="ToRA",
    claim="Interleaving words and programs beats programs alone, which beat words alone.",
    source="Gou et al. 2024, figure 4",
    published="MATH, 7B: 33.6 / 27.8 / 7.2",
    measure="greedy accuracy on held-out problems of kinds A, C and E; "
    "of the program arm, what its last call printed",
    expected="tool > program > rationale",
    arms={
        "tool": imitate("tool"),
        "program": imitate("program"),
        "rationale": imitate("rationale"),
    },
    compare=(
        Compare("tool", "program"),
        Compare("program", "rationale"),
        Compare("tool", "rationale"),
    ),
    tuned="Four compute-hard families, two whose answer is a sentence, which a program prints, and "
    "two that are easy by head, so that no arm is near 0 or 1.",
)

SHAPED = Experiment(
    number=2,
    name="shaping",
    system="ToRA",
    claim="Learning from one's own valid answers, and from mistakes that a teacher completed, "
    "beats as much data without them, also where they answer the demonstrated problems alone; the "
    "others gain more.",
    source="Gou et al. 2024, figure 5; control after its reviews",
    published="CodeLLaMA 7B, MATH: 40.2, 41.8, 43.4, 44.6 with 0, 1, 2, 4 answers; no control",
    measure="greedy accuracy; all arms retrain from the base for the same number of steps",
    expected="accuracy grows with the number of answers kept; the control does not gain",
    arms={
        "0": shape("0", keep=0),
        "1": shape("1c", keep=1),
        "2": shape("2c", keep=2),
        "4": shape("4c", keep=4),
        "4, not corrected": shape("4", keep=4, correct=False),
        "4, covered": shape("covered", keep=4, covered=True),
        "control": shape("control", keep=4, control=True),
        "control, covered": shape("control-covered", keep=4, covered=True, control=True),
    },
    compare=(
        Compare("4", "control"),
        Compare("4, not corrected", "control"),
        Compare("4, covered", "control, covered"),
        Compare("4", "4, covered"),
        Compare("4", "1"),
        Compare("4", "0"),
    ),
    tuned="600 problems of one and two calls; the teacher demonstrates half, too few to "
    "generalise well from, and of the others the answers are known. The toy's model, which has no "
    "token shifts, learned nothing from so few: on seeds 1 to 5 most arms were below 10%.",
    first_seed=6,
)

SFT_MASK = Experiment(
    number=3,
    name="sft-mask",
    system="ToRA",
    claim="A model that imitates tool output too is readier to invent it when the tool is silent "
    "than one with the outputs masked, at no higher accuracy.",
    source="Gou et al. 2024, eq. 4, against the released script",
    published="none known",
    measure="log-odds that an output of its own making follows a greedy answer's first call, with "
    "nobody running calls (a logarithm, since masked models hardly ever invent one); accuracy with "
    "the tool",
    expected="log-odds: learned above 0, masked far below; accuracy about the same",
    arms={"masked": observations("masked"), "learned": observations("learned")},
    compare=(
        Compare("masked", "learned", "log_odds", lower=True),
        Compare("masked", "learned", "accuracy", margin=0.05),
    ),
    first_seed=FIRST_WITHIN,
)

EXPERIMENTS = [FORMATS, SHAPED, SFT_MASK]
