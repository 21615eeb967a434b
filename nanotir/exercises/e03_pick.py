"""Exercise 3: the next id, and how likely it was."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nanotir.exercises.exercise import Case, Exercise, Mistake
from nanotir.sampler import SamplerConfig

ONE = torch.tensor([1])


def cases(seed: int) -> list[Case]:
    generator = torch.Generator().manual_seed(seed)

    def logits(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def draws(n: int) -> list[float]:
        return torch.rand(n, generator=generator, dtype=torch.float64).tolist()

    # Probabilities in no order, and uniforms on both sides of every border between them.
    known = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log().repeat(8, 1)
    borders = [0.0, 0.05, 0.15, 0.45, 0.55, 0.65, 0.75, 0.9999999]
    some, others = logits(6, 9), logits(6, 9)
    forced = torch.tensor([-1, 0, 8, 3, -1, 5])
    bad = torch.stack([torch.zeros(4), torch.full((4,), torch.nan)])
    given = {
        "known probabilities": (known, borders),
        "random logits": (some, draws(6)),
        "a low temperature": (others, draws(6), {"temperature": 0.6}),
        "a high temperature": (others, draws(6), {"temperature": 2.5}),
        "greedy": (some, draws(6), {"temperature": 0.0}),
        "top_p, crossed by an id": (known, borders, {"top_p": 0.6}),
        "top_p below the likeliest": (known, borders, {"top_p": 0.3}),
        "top_k": (known, borders, {"top_k": 3}),
        "top_k and top_p": (known, borders, {"top_k": 3, "top_p": 0.77}),
        "top_p when it is warm": (known * 2, borders, {"temperature": 2.0, "top_p": 0.6}),
        "banned ids": (known, borders, {}, [1, 2]),
        "a banned id is the likeliest": (known, borders, {"temperature": 0.0}, [1]),
        "forced ids": (some, draws(6), {}, [4], forced),
        "forced and greedy": (some, draws(6), {"temperature": 0.0}, [4], forced),
        "a banned id is forced": (some, draws(6), {}, [8], forced),
        "logits in bfloat16": (others.bfloat16(), draws(6)),
        "logits of one row are not numbers": (bad, [0.5, 0.5]),
        "a logit is infinite": (known.clone().index_fill(1, ONE, torch.inf), borders),
        "no id is left": (known, borders, {}, [0, 1, 2, 3]),
    }
    tail = Case("a large vocabulary with a long tail", (20000, draws(4)), {}, chosen_from_tail)
    return [*(Case(name, arguments, {}, chosen) for name, arguments in given.items()), tail]


def chosen(function, logits, u, settings=None, banned=(), forced=None):
    """Ids and log-probs."""
    config = SamplerConfig(**settings or {})
    ban = torch.tensor(list(banned), dtype=torch.long)
    return function(logits, np.array(u), config, ban, forced)


def chosen_from_tail(function, size, u):
    """The first id has all but 0.0003 of the probability, the uniforms are in the rest."""
    logits = torch.zeros(len(u), size)
    logits[:, 0] = 18.0
    return chosen(function, logits, [1 - 1e-4 * number for number in u])


TEMPERATURE = "(logits / (config.temperature or 1.0)).log_softmax(-1)"
BANNED = 'logits.float().index_fill(-1, banned, float("-inf"))'
PROBS = "probs = truncate(precise(logps.exp()), config.top_p, config.top_k)"
DRAWN = "ids = draw(probs, u).to(logits.device)"
FORCED = "        ids = torch.where(forced >= 0, forced, ids)\n"
LOGPS = "    return ids, logps.gather(-1, ids[:, None])[:, 0]"
CROSSING = """ranked, order = logps.exp().sort(-1, descending=True)
        if config.top_k:
            ranked[:, config.top_k :] = 0
        ranked[:, 1:] *= ranked.cumsum(-1)[:, 1:] <= config.top_p * ranked.sum(-1, keepdim=True)
        probs = precise(torch.zeros_like(ranked).scatter(-1, order, ranked))"""
EXERCISE = Exercise(
    number=3,
    name="pick",
    lab="A",
    target="nanotir.sampler:pick",
    tolerance=1e-5,
    teaches="An id is drawn from what top_p and top_k leave, but its log-prob is the policy's own: "
    "the one that a trainer computes again.",
    minutes=30,
    points=30,
    stars=2,
    cases=cases,
    mistakes=(
        Mistake(
            "your log-probs are those of the truncated distribution: a trainer, which knows no "
            "top_p, finds others",
            (
                (
                    DRAWN,
                    f"{DRAWN}\n        logps = (probs / probs.sum(-1, keepdim=True)).float().log()",
                ),
            ),
            bug=True,
        ),
        Mistake(
            "you return the log-prob of the likeliest id, not of the one that was chosen",
            ((LOGPS, "    return ids, logps.amax(-1)"),),
            bug=True,
        ),
        Mistake(
            "all rows share the first row's uniform number: rows of one prompt become copies",
            ((DRAWN, DRAWN.replace("u)", "[u[0]] * len(probs))")),),
            bug=True,
        ),
        Mistake(
            "you ignore the temperature",
            ((TEMPERATURE, "logits.log_softmax(-1)"),),
            bug=True,
        ),
        Mistake(
            "you multiply by the temperature: a low one must make the likely ids likelier",
            ((TEMPERATURE, TEMPERATURE.replace("/", "*")),),
            bug=True,
        ),
        Mistake(
            "you draw at the temperature but return the log-prob without it",
            (
                (TEMPERATURE, "logits.log_softmax(-1)"),
                (PROBS, PROBS.replace("logps.exp()", TEMPERATURE.replace("log_", ""))),
            ),
            bug=True,
        ),
        Mistake(
            "banned ids can be drawn: a model could write the tags of a tool's output",
            ((BANNED, "logits.float()"),),
            bug=True,
        ),
        Mistake(
            "you give a banned id the logit 0, which is likely enough: it is -inf",
            ((BANNED, BANNED.replace('float("-inf")', "0.0")),),
            bug=True,
        ),
        Mistake(
            "banned ids are not drawn, but count in your log-probs: leave them out of the softmax",
            (
                (BANNED, "logits.float()"),
                (PROBS, PROBS.replace("logps.exp()", "logps.exp().index_fill(-1, ban, 0.0)")),
                ("logps.max(-1)", 'logps.index_fill(-1, ban, float("-inf")).max(-1)'),
            ),
            bug=True,
        ),
        Mistake(
            "the id that crosses top_p is lost: the set that stays has at least the mass top_p",
            ((PROBS, CROSSING),),
        ),
        Mistake(
            "top_k comes before top_p, which is a share of what top_k leaves",
            (
                (
                    PROBS,
                    PROBS.replace("truncate(", "truncate(truncate(").replace(
                        "config.top_p, config.top_k)", "config.top_p, 0), 1.0, config.top_k)"
                    ),
                ),
            ),
        ),
        Mistake(
            "you take a forced id 0 for none: only -1 is free",
            (("forced >= 0", "forced > 0"),),
        ),
        Mistake(
            "a forced id gets the log-prob of the id that was drawn in its place",
            (
                (FORCED, FORCED.replace("ids =", "chosen =")),
                (
                    LOGPS,
                    LOGPS.replace("return ids", "return chosen if forced is not None else ids"),
                ),
            ),
            bug=True,
        ),
        Mistake(
            "you compute in the model's bfloat16, which has two to three digits: use float()",
            ((".float()", ""),),
            bug=True,
        ),
        Mistake(
            "single precision is too coarse for a large vocabulary: see `precise`",
            (("precise(logps.exp())", "logps.exp()"),),
        ),
    ),
    hints=(
        "An answer is drawn with top_p = 0.9. A trainer computes its log-probs again from the "
        "model. Which number must it find?",
        "Mask the banned ids, divide by the temperature, take the log-softmax: these are the "
        "log-probs. Draw from their exponentials, narrowed by `truncate`, and gather at the end.",
        "logp = log_softmax(logits / T)[id]; id = draw(truncate(exp(logp), top_p, top_k), u), or "
        "argmax at T = 0, where the log-prob is that at T = 1.",
    ),
    read=("nanotir/sampler.py:pick", "nanotir/draws.py:draw", "arXiv 1904.09751, section 3.1"),
    look="the id is replaced by a forced one before its log-prob is gathered, so one line serves "
    "drawn, greedy and forced ids",
    question="With top_p = 0.9, the log-prob that is stored is not that of the distribution from "
    "which the id was drawn. Why is it stored all the same, and what does it cost?",
    answer="The ratio of a policy gradient compares the model with itself, before and after an "
    "update, and a trainer knows the model's whole softmax only: so the first ratio is 1. The cost "
    "is a bias: the ids that were cut are never drawn, so the estimate is of another policy's "
    "gradient. Hence training samples with top_p = 1.",
)
