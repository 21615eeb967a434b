"""The five pictures of the README, drawn from a run: `python -m nanotir.page --pictures RUN`."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

import torch

from nanotir.losses import policy_loss
from nanotir.page.records import Recorded, author, visible
from nanotir.page.svg import STYLE, Line, box, chart, legend, moved, scale, text, ticks
from nanotir.page.timeline import SLOWNESS, questions, sample

WIDTH = 830  # of a README on GitHub, in pixels
LETTER = 7.9  # width of a monospace letter of 13 pixels
AUTHORS = {
    "prompt": ("c5 tint", "the prompt"),
    "text": ("c0 tint", "the model, in words"),
    "call": ("c1 tint", "the model, calling a tool"),
    "output": ("c2 tint", "the tool"),
}
STATES = {
    "decoding": ("c0 fill", "decoding"),
    "parked": ("c5 tint", "parked"),
    "tool": ("c1 fill", "its tool runs"),
    "resumed": ("c2 fill", "decoding again"),
}
KINDS = {
    "A": "A: hard to compute",
    "B": "B: code cannot help",
    "C": "C: easy without a tool",
    "D": "D: to be looked up",
    "E": "E: result to rewrite",
}
COLOURS = {
    "Core modules": "c0",
    "Supporting: to learn, to measure": "c2",
    "Supporting: models, runs, commands": "c2",
    "Recipes": "c1",
    "Standing apart": "c5",
}
HOUSE = {
    "Core modules": {
        "trajectory.py": "what a rollout is: ids, mask, log-probs",
        "tokenizer.py": "text to ids and back",
        "model.py": "the transformer",
        "draws.py": "random draws, keyed by row and position",
        "sampler.py": "many rows at once, with tool calls",
        "generation.py": "one call of the sampler: its rows",
        "tools/tool.py": "what a tool is",
        "rewards.py": "what a finished trajectory is worth",
        "advantages.py": "an answer against its group",
        "logps.py": "log-probs of given ids",
        "losses.py": "ratios, clipping, KL",
        "rollout.py": "sample groups, grade them, keep some",
        "rl.py": "rollout, reward, advantage, loss, step",
    },
    "Supporting: to learn, to measure": {
        "tools": "Python in a sandbox, search",
        "blocks.py": "tool calls as plain Markdown",
        "grammar.py": "TAPO's grammar of an answer",
        "problems": "generated families, files",
        "answers": "extract an answer, compare two",
        "demonstrate.py": "the scripted teacher",
        "sft.py": "masked imitation",
        "batches.py": "trajectories as tensors",
        "optim.py": "Muon, AdamW, the optimiser step",
        "kernels.py": "log-probs, attention, draws in Triton",
        "selection.py": "answers that are learned from",
        "reference.py": "the policy to stay near",
        "routing.py": "mixtures of experts",
        "lora.py": "low-rank adapters",
        "metrics.py": "what to watch while it learns",
        "evaluate.py": "accuracy and its intervals",
        "held_out.py": "accuracy while training",
        "scores.py": "pass@k, maj@k, statistics",
        "trust.py": "which answers are doubtful",
    },
    "Supporting: models, runs, commands": {
        "rope.py": "rotary position embedding",
        "cache.py": "the model's KV cache",
        "gradients.py": "gradients in closed form",
        "rows.py": "one row, and how far it is",
        "slots.py": "where rows sit in the cache",
        "graphs.py": "faster decoding steps",
        "native.py": "formulas in C++ for a CPU",
        "huggingface": "pretrained models, in and out",
        "turns.py": "how pretrained models talk",
        "processes.py": "several processes train as one",
        "threads.py": "micro-batches side by side",
        "workers.py": "processes that sample beside this one",
        "policy.py": "what a run trains and uses",
        "run.py": "a run, saved and resumed",
        "run_files.py": "what lies in its folder",
        "room.py": "what fits into a row",
        "memory.py": "what a run needs of memory",
        "config.py": "all settings of a run",
        "commands.py": "flags, mistakes, exit codes",
        "checks.py": "checks of settings",
        "show.py": "a trajectory in the terminal",
    },
    "Recipes": {
        "recipes/grpo.py": "GRPO with tools",
        "recipes/tora.py": "imitation, output space shaping",
        "recipes/cir.py": "code-integrated reasoning",
        "recipes/autocode.py": "learning when to call a tool",
        "recipes/tapo.py": "DAPO with tools, the default",
    },
    "Standing apart": {
        "page": "a run as one HTML page",
        "tour.py": "one problem, step by step",
        "replay.py": "recorded transcripts, graded again",
        "lab": "experiments and their results",
        "exercises": "functions to write, checked",
        "bench": "measurements of speed",
    },
}


def picture(height: float, title: str, caption: str, marks: list[str]) -> str:
    """A whole SVG file. Its card has a background of its own, so it is legible on any page."""
    size = f'width="{WIDTH}" height="{height:.0f}" viewBox="0 0 {WIDTH} {height:.0f}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n'
        f"<title>{escape(title)}</title><style>{STYLE}</style>\n"
        f'<rect class="card" x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1:.0f}" rx="8"/>\n'
        + text(16, 28, title, "bold")
        + text(16, 48, caption, "soft")
        + "\n".join(["", *marks, "</svg>", ""])
    )


def write_pictures(run: Recorded, out: Path):
    """Draw the five pictures from a run's records and its trained model."""
    config, asked = run.config, questions(run.traces)
    pictures = {
        "trajectory": trajectory_picture(example(run.traces), run.token_text),
        "rows": rows_picture(asked, sample(run.folder, asked, 3, config["seed"])),
        "rl": rl_picture([row for row in run.metrics if row["phase"] == "rl"]),
        "clip": clip_picture(config["rl"]["epsilon"], config["rl"]["epsilon_high"]),
        "house": house_picture(),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, drawn in pictures.items():
        (out / f"{name}.svg").write_text(drawn, encoding="utf-8")


def example(traces: list[dict]) -> dict:
    """The shortest right trajectory with several calls that went well, or with one."""
    good = [row for row in traces if row["correct"] and went_well(row["calls"])]
    if not good:
        raise ValueError("no recorded trajectory is right after a tool call: train for longer")
    return min(good, key=lambda row: (len(row["calls"]) == 1, number_of_ids(row)))


def went_well(calls: list[dict]) -> bool:
    """Whether there are calls, all of them succeeded and none was made twice."""
    different = {(call["tool"], call["code"]) for call in calls}
    return 0 < len(calls) == len(different) and all(call["result"]["ok"] for call in calls)


def number_of_ids(row: dict) -> int:
    return sum(len(span["ids"]) for span in row["spans"])


def trajectory_picture(row: dict, token_text) -> str:
    """A trajectory as strips of ids. Beneath each id: its number, its mask and its log-prob."""
    names, _ = legend(AUTHORS.values(), WIDTH)
    marks, x, y = [moved(16, 62, names)], 84.0, 100
    for span in row["spans"]:
        for id, chosen, logp in zip(span["ids"], span["mask"], span["logps"]):
            words = token_text(id).replace(" ", "·")
            width = LETTER * max(len(words), len(str(id)) - 0.4) + 10
            if x + width > WIDTH - 12:
                x, y = 84.0, y + 102
            style, _ = AUTHORS[author(span["kind"])]
            marks.append(moved(x, y, column(id, words, chosen, logp, style, width - 3)))
            x += width
    labels = ((16, "text"), (34, "id"), (51, "mask"), (68, "log-prob"))
    for strip in range(100, y + 1, 102):
        marks += [text(16, strip + down, words, "soft") for down, words in labels]
    caption = "Each column is one id. The loss sees those with mask 1. Bars are log-probs, 0 to -3."
    return picture(y + 102, "One trajectory, id by id", caption, marks)


def column(id: int, words: str, chosen: int, logp: float, style: str, width: float) -> str:
    colour = style.split()[0]
    depth = 24 * min(-logp, 3.0) / 3.0
    return (
        box(0, 0, width, 22, style)
        + text(width / 2, 15, words, "mono", "middle")
        + text(width / 2, 35, id, "small soft", "middle")
        + box(0.5, 42, width - 1, 10, f"{colour} {'fill' if chosen else 'hollow'}")
        + (box(0, 58, width, max(depth, 1.0), f"{colour} fill") if chosen else "")
    )


def rows_picture(prompts: list[str], rows: list[list[tuple]]) -> str:
    """Rows against time, the rows of one prompt together."""
    names, _ = legend(STATES.values(), WIDTH)
    marks, y, n = [moved(16, 62, names)], 110, len(rows) // len(prompts)
    last = max(end for row in rows for _, _, end in row)
    at = scale(0, last, 16, WIDTH - 16)
    for i, row in enumerate(rows):
        if i % n == 0:
            marks.append(text(16, y + 6, visible(prompts[i // n])[:100], "soft"))
            y += 14
        for state, start, end in row:
            marks.append(box(at(start), y, at(end) - at(start), 14, STATES[state][0]))
        y += 18 if (i + 1) % n else 36
    for tick in ticks(0, last, n=8):
        if tick < 0.95 * last:
            marks.append(text(at(tick), y, f"{tick:g} ms", "soft"))
    title = f"{n} rows of {len(prompts)} prompts, sampled together"
    caption = (
        "A row that calls a tool is parked while the others go on. "
        f"Here the tools were made {1000 * SLOWNESS:g} ms slower."
    )
    return picture(y + 16, title, caption, marks)


def rl_picture(rows: list[dict]) -> str:
    """Reward, accuracy and calls by kind of problem over the steps of RL."""
    if not rows:
        raise ValueError("metrics.jsonl has no row of RL: train for longer")
    kinds = sorted({kind for row in rows for kind in row["calls_by_kind"]})
    calls = []
    for i, kind in enumerate(kinds):
        points = [
            (row["step"], row["calls_by_kind"][kind])
            for row in rows
            if kind in row["calls_by_kind"]
        ]
        calls.append(Line(visible(KINDS.get(kind, kind)), points, f"c{i % 6}"))
    reward = Line("reward", [(row["step"], row["reward"]) for row in rows])
    accuracy = Line("accuracy", [(row["step"], row["accuracy"]) for row in rows], "c2")
    left, _ = chart([reward], "Reward", "mean of a trajectory")
    right, down = chart([accuracy], "Accuracy", "share of right answers")
    below, height = chart(calls, "Calls by kind of problem", "mean of a trajectory", width=798)
    marks = [moved(16, 70, left), moved(424, 70, right), moved(16, 80 + down, below)]
    caption = "Reward, accuracy and tool calls of the sampled trajectories."
    return picture(90 + down + height, f"Reinforcement learning, {len(rows)} steps", caption, marks)


def clip_picture(epsilon: float, epsilon_high: float) -> str:
    """The clipped loss of one id against its ratio, as policy_loss computes it."""
    ratios = [i / 100 for i in range(20, 201)]
    marks = []
    for x, advantage in ((16, 1.0), (424, -1.0)):
        clipped = [(r, clipped_loss(r, advantage, epsilon, epsilon_high)) for r in ratios]
        plain = [(r, -r * advantage) for r in ratios]
        lines = [Line("clipped", clipped), Line("not clipped", plain, "c1 dash")]
        drawn, height = chart(lines, f"Advantage {advantage:+g}", "loss of one id", "ratio")
        marks.append(moved(x, 70, drawn))
    caption = (
        f"Where the loss is flat, the gradient is 0: above {1 + epsilon_high:g} for a "
        f"positive advantage, below {1 - epsilon:g} for a negative one."
    )
    return picture(80 + height, "The clipped loss against the ratio", caption, marks)


def clipped_loss(ratio: float, advantage: float, epsilon: float, epsilon_high: float) -> float:
    loss, _ = policy_loss(
        torch.tensor([[math.log(ratio)]]),
        torch.zeros(1, 1),
        torch.tensor([advantage]),
        torch.ones(1, 1),
        epsilon=epsilon,
        epsilon_high=epsilon_high,
    )
    return loss.item()


def house_picture() -> str:
    """The files of the package: what a reader must know, and what stands around it."""
    core, learning, running, recipes, apart = HOUSE
    columns = ((core, recipes), (learning,), (running, apart))
    marks, bottom = [], 0
    for x, groups in zip((16, 287, 558), columns):
        y = 70
        for group in groups:
            marks.append(moved(x, y, group_marks(group)))
            y += 44 + 38 * len(HOUSE[group])
        bottom = max(bottom, y)
    caption = "Read the core modules from top to bottom. No other file imports what stands apart."
    return picture(bottom, "The package", caption, marks)


def group_marks(name: str) -> str:
    marks = [text(0, 12, name, "bold")]
    for i, (file, does) in enumerate(HOUSE[name].items()):
        marks.append(box(0, 24 + 38 * i, 256, 34, f"{COLOURS[name]} tint"))
        marks.append(text(8, 38 + 38 * i, file, "mono") + text(8, 53 + 38 * i, does, "small"))
    return "".join(marks)
