"""What ToRA's ideas buy: interleaving words and programs, masking tool output, output-space shaping. Imitation only, no RL."""

from __future__ import annotations

from dataclasses import replace

from nanotir.lab.experiment import Arm, Compare, Experiment
from nanotir.lab.toy import cold_start, measure, trained
from nanotir.sampler import Sampler

DATA = {
    "data": "generated:mul,power,gcd,det,quot,clock",
    "tools": "python",
    "teacher.quality": 1.0,
    "sft.steps": 200,
    "tora.samples": 0,
    "tora.covered": 1.0,
}
SHAPING = DATA | {
    "data": "generated:mul,power,quot,cost",
    "tools": "python,search",
    "problems": 600,
    "tora.covered": 0.5,
    "teacher.styles": 3,
    "sft.steps": 250,
    "tora.samples": 8,
}


def imitate(format: str) -> Arm:
    def run_arm(seed, quick, folder):
        with trained(folder, "tora", DATA | {"teacher.format": format}, seed, quick) as run:
            result = measure(run)
        accuracy = "program_accuracy" if format == "program" else "accuracy"
        families = (
            {f"accuracy_{kind}": row["accuracy"] for kind, row in result["by_kind"].items()}
            if format != "program"
            else {}
        )
        return {"accuracy": result[accuracy], "calls": result["calls_per_problem"], **families}

    return Arm(f"tora-{format}", run_arm)


def shape(name: str, **settings) -> Arm:
    """The second half of the recipe, from the cold start that all these arms share to the model that was retrained from its base."""

    def run_arm(seed, quick, folder):
        start = cold_start("shaping", SHAPING | {"tora.samples": 0}, seed, quick, recipe="tora")
        options = {f"tora.{key}": value for key, value in settings.items()}
        with trained(
            folder,
            "tora",
            SHAPING | options | {"init": start},
            seed,
            quick,
            done=["sft"],
            fresh=True,
        ) as run:
            shaped = (
                (run.out / "shaped.jsonl").read_text().count("\n")
                if (run.out / "shaped.jsonl").exists()
                else 0
            )
            return {"accuracy": measure(run)["accuracy"], "shaped": shaped}

    return Arm(f"tora-shape-{name}", run_arm)


def observations(how: str) -> Arm:
    def run_arm(seed, quick, folder):
        settings = DATA | {"sft.observations": how, "sampler.forge": True}
        with trained(folder, "tora", settings, seed, quick) as run:
            return {"accuracy": measure(run)["accuracy"], "invented": invented(run)}

    return Arm(f"tora-observations-{how}", run_arm)


def invented(run) -> float:
    """The share of answers that make up a tool's output when nobody runs the calls."""
    sampler = Sampler(
        run.model,
        run.tokenizer,
        run.tools,
        run.format,
        replace(run.config.sampler, temperature=0.0),
    )
    sampler.openers.clear()  # blocks may still be written, but none is noticed
    rows = sampler.generate([problem.question for problem in run.held_out])
    return sum(
        run.tokenizer.tags[run.format.delimiters("output")[0]] in row.ids for row in rows
    ) / len(rows)


EXPERIMENTS = [
    Experiment(
        1,
        "formats",
        "ToRA",
        "Interleaving words and programs beats programs alone, which beat words alone.",
        "Gou et al. 2024, figure 4",
        "MATH, 7B: 33.6 / 27.8 / 7.2",
        "greedy accuracy on held-out problems of kinds A and E; of the program arm, what its last call printed",
        "tool > program > rationale",
        {"tool": imitate("tool"), "program": imitate("program"), "rationale": imitate("rationale")},
        (Compare("tool", "program"), Compare("program", "rationale"), Compare("tool", "rationale")),
        tuned="Four compute-hard families and two whose answer is a sentence. What a program prints is graded as it stands: 67% is that arm's ceiling.",
    ),
    Experiment(
        2,
        "shaping",
        "ToRA",
        "Learning from one's own valid answers, and from mistakes that a teacher completed, beats as much data without them.",
        "Gou et al. 2024, figure 5; control after its reviews",
        "CodeLLaMA 7B, MATH: 40.2 to 44.6 with 4 answers a problem; no control",
        "greedy accuracy; all arms retrain from the base for the same number of steps",
        "accuracy grows with the number of answers kept; the control does not gain",
        {
            **{str(keep): shape(str(keep), keep=keep, correct=False) for keep in (0, 4)},
            "4 + corrected": shape("4c", keep=4),
            "control": shape("control", keep=4, control=True),
        },
        (Compare("4 + corrected", "control"), Compare("4", "control"), Compare("4", "0")),
        tuned="600 problems of one and two calls; the teacher demonstrates half, too few to generalise well from, and of the others the answers are known.",
    ),
    Experiment(
        3,
        "sft-mask",
        "ToRA",
        "A model that imitates tool output too invents it when the tool is silent; one with the outputs masked does not.",
        "Gou et al. 2024, eq. 4, against the released script",
        "none known",
        "share of greedy answers that contain an output block of the model's own making, with nobody running its calls; accuracy with the tool",
        "invented: learned near 1, masked near 0; accuracy about the same",
        {"masked": observations("masked"), "learned": observations("learned")},
        (
            Compare("masked", "learned", "invented", lower=True),
            Compare("masked", "learned", "accuracy", margin=0.05),
        ),
    ),
]
