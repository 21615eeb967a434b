"""Exercise 9: the clipped loss of PPO and DAPO."""

from __future__ import annotations

import torch

from nanotir.exercises.exercise import Case, Exercise, Mistake
from nanotir.losses import LossOptions, loss_terms


def cases(seed: int) -> list[Case]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    old = -normal(4, 6).abs()
    logps = old + 0.5 * normal(4, 6)
    advantages = torch.tensor([1.5, -0.7, 1.0, -2.0], dtype=torch.float64)
    small = torch.tensor([0.5, -0.5, 0.0, 0.0], dtype=torch.float64)
    mask = torch.ones(4, 6).bool()
    mask[0, 3:] = mask[1, :2] = mask[3] = False

    ratios = torch.tensor([0.5, 0.9, 1.1, 1.3, 1.5, 3.0], dtype=torch.float64)
    steps = old + ratios.log()  # every row has a ratio on every side of every bound

    def case(name: str, new: torch.Tensor, advantages: torch.Tensor, **options) -> Case:
        return Case(name, (new.clone(), old, advantages, mask), options, of_log_probs)

    return [
        case("each side of the bounds", steps, advantages),
        case("each side of the bounds and of delta", steps, advantages, delta=1.4),
        case("advantages of both signs, ratios on both sides", logps, advantages),
        case("another upper bound than the lower one", logps, advantages, epsilon_high=0.6),
        case("narrow bounds", logps, advantages, epsilon=0.05, epsilon_high=0.1),
        case("a bound below the clip", logps, advantages, delta=1.1),
        case("an advantage for each id", logps, normal(4, 6)),
        case("nothing has moved yet: all ratios are 1", old, advantages),
        case("advantages of 0, and small ones", steps, small, delta=1.4),
        case("a bound between a ratio and the clip", steps, advantages, delta=1.05),
        case("far away", old + 2 * normal(4, 6), advantages, delta=3.0),
    ]


def of_log_probs(function, logps, old_logps, advantages, mask, **options):
    """The function's outputs on the terms that policy_loss makes of these tensors."""
    options = LossOptions(**options)
    return function(loss_terms(logps, old_logps, advantages, mask, None, options), options)


LOSS = "-torch.minimum(bounded * t.A, t.ratio.clamp(low, high) * t.A)"
EXERCISE = Exercise(
    number=9,
    name="clipped",
    lab="C",
    target="nanotir.losses:clipped",
    teaches="An update may not profit from moving far away from the policy that sampled.",
    minutes=30,
    points=30,
    stars=3,
    cases=cases,
    gradient="logps",
    mistakes=(
        Mistake(
            "the sign is wrong: a loss is minimised, so it is minus what should grow",
            ((LOSS, LOSS.removeprefix("-")),),
            bug=True,
        ),
        Mistake(
            "you take the larger of the two terms: the smaller one is the pessimistic one, which "
            "never rewards a step beyond the bounds",
            ((LOSS, LOSS.replace("minimum", "maximum")),),
            bug=True,
        ),
        Mistake(
            "you do not clip: the ratio times the advantage has no bound",
            ((LOSS, "-bounded * t.A"),),
            bug=True,
        ),
        Mistake(
            "you take the clipped term alone: an id that has moved to the wrong side of the bounds "
            "has no gradient to come back",
            ((LOSS, "-t.ratio.clamp(low, high) * t.A"),),
            bug=True,
        ),
        Mistake(
            "you use the log-ratio as it is: the ratio is its exponential",
            ((LOSS, LOSS.replace("bounded", "t.log_ratio").replace("ratio.c", "log_ratio.c")),),
        ),
        Mistake(
            "your ratio is upside down: it is the new probability by the old one",
            (
                (
                    LOSS,
                    LOSS.replace("bounded", "1 / t.ratio").replace("t.ratio.c", "(1 / t.ratio).c"),
                ),
            ),
        ),
        Mistake(
            "the upper bound is 1 + epsilon_high, not 1 + epsilon (DAPO's clip-higher)",
            (("1 + options.epsilon_high", "1 + options.epsilon"),),
            bug=True,
        ),
        Mistake(
            "the lower bound is 1 - epsilon, not 1 - epsilon_high",
            (("1 - options.epsilon", "1 - options.epsilon_high"),),
            bug=True,
        ),
        Mistake(
            "you clip by the sizes of epsilon, not by 1 - epsilon and 1 + epsilon_high",
            (("1 - options.epsilon", "-options.epsilon"), ("1 + options.eps", "options.eps")),
        ),
        Mistake(
            "delta has no effect: where A < 0, the ratio is bounded by it",
            (("t.ratio.clamp(max=options.delta)", "t.ratio"),),
        ),
        Mistake(
            "you keep the advantage's sign alone: how much better an answer is must count",
            ((LOSS, LOSS.replace("t.A", "t.A.sign()")),),
            bug=True,
        ),
        Mistake(
            "no gradient goes through your ratio: it is detached",
            (
                (
                    LOSS,
                    LOSS.replace("bounded", "bounded.detach()").replace(
                        "t.ratio", "t.ratio.detach()"
                    ),
                ),
            ),
        ),
        Mistake(
            "the lower bound stops a gradient only where A < 0; where A > 0 the other term is "
            "the smaller one",
            (("(t.ratio < low) & (t.A < 0)", "(t.ratio < low) & t.mask"),),
        ),
        Mistake(
            "the upper bound stops a gradient only where A > 0, delta only where A < 0",
            (("(t.A > 0) & (t.ratio > min(high, options.delta))", "t.ratio > high"),),
        ),
        Mistake(
            "delta is an upper bound, too: count where it stops the gradient",
            (("high_hit | delta_hit", "high_hit"),),
        ),
    ),
    hints=(
        "An id got likelier by half and its advantage is positive. Should this step go on making "
        "it likelier? And if its advantage is negative?",
        "Compute the term with the ratio as it is, and the one with the ratio clipped. Of the two "
        "take, id by id, the one that promises less.",
        "-min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon_high) A), where the first ratio is at "
        "most delta. The lower bound is hit where ratio < 1 - epsilon and A < 0.",
    ),
    read=(
        "nanotir/losses.py:clipped",
        "nanotir/losses.py:Terms",
        "nanotir/losses.py:LossOptions",
        "arXiv 1707.06347, equation 7",
        "arXiv 2503.14476",
    ),
    look="look at how `low_hit` and `high_hit` say where the gradient is 0, and at cispo below, "
    "which clips without ever losing a gradient",
    question="In the first update after sampling, all ratios are 1. What does the clip do there?",
    answer="Nothing: both terms are equal and the gradient is that of A times the log-prob. The "
    "clip matters from the second update with the same samples on.",
)
