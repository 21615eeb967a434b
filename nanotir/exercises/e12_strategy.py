"""Exercise 12: AutoCode's E-step."""

from __future__ import annotations

import random

from nanotir.exercises.exercise import Case, Exercise, Mistake
from nanotir.recipes.autocode import AutoCodeConfig


def cases(seed: int) -> list[Case]:
    rng = random.Random(f"e12 {seed}")

    def case(name: str, alpha: float, prior: float | None = None, Q=None) -> Case:
        p = rng.uniform(0.15, 0.35) if prior is None else prior
        Q = [rng.uniform(0.4, 0.6), rng.uniform(0.7, 0.9)] if Q is None else Q
        return Case(name, ([p, 1 - p], list(Q), AutoCodeConfig(alpha=alpha)))

    return [
        case("code is better and likelier", 3.0),
        case("code is better, but words are likelier", 3.0, prior=0.8),
        case("words are better, but code is likelier", 2.0, Q=[0.75, 0.25]),
        case("a small alpha", 0.1),
        case("a large alpha", 4000.0),
        case("both are as good", 2.0, Q=[0.5, 0.5]),
        case("nothing is ever right", 2.0, Q=[0.0, 0.0]),
        case("alpha is infinite", 0.0),
        case("alpha is infinite, and the prior is against the better one", 0.0, 0.9),
        case("alpha is infinite, and words are better", 0.0, 0.1, [0.5, 0.25]),
        case("alpha is infinite, and both are as good", 0.0, 0.3, [0.5, 0.5]),
        case("alpha is infinite, and both are as good and as likely", 0.0, 0.5, [0.5, 0.5]),
        case("alpha is infinite, and nothing is ever right", 0.0, 0.3, [0.0, 0.0]),
    ]


HARD = "[share / sum(best) for share in best]"
SCORES = "[config.alpha * p * q for p, q in zip(prior, Q)]"
SOFT = f"return torch.tensor({SCORES}).softmax(0).tolist()"

EXERCISE = Exercise(
    number=12,
    name="strategy",
    lab="D",
    target="nanotir.recipes.autocode:strategy",
    teaches="Whether to call the tool is a latent variable: an E-step finds where it pays.",
    minutes=30,
    points=30,
    stars=3,
    cases=cases,
    mistakes=(
        Mistake(
            "you forget the prior: the scores are alpha * pi(c|x) * Q(x, c)",
            ((SCORES, "[config.alpha * q for q in Q]"),),
            bug=True,
        ),
        Mistake(
            "you forget Q: the policy would only be told what it does already",
            ((SCORES, "[config.alpha * p for p in prior]"),),
            bug=True,
        ),
        Mistake(
            "you divide by alpha: it is a sharpness, not a temperature",
            ((SCORES, "[p * q / config.alpha for p, q in zip(prior, Q)]"),),
            bug=True,
        ),
        Mistake(
            "you normalise pi Q itself: the product is in the exponent",
            (
                (
                    SOFT,
                    "s = [p * q + 1e-9 for p, q in zip(prior, Q)]\n"
                    "    return [x / sum(s) for x in s]",
                ),
            ),
            bug=True,
        ),
        Mistake(
            "you leave the prior outside of the exponent: pi exp(alpha Q) is another posterior",
            (
                (
                    SOFT,
                    "s = torch.tensor([config.alpha * q for q in Q])\n"
                    "    return (s + torch.tensor(prior).log()).softmax(0).tolist()",
                ),
            ),
            bug=True,
        ),
        Mistake(
            "you add the prior to Q, where they are multiplied",
            ((SCORES, "[config.alpha * (p + q) for p, q in zip(prior, Q)]"),),
            bug=True,
        ),
        Mistake(
            "you do not divide by Z: the two shares must sum to 1",
            ((".softmax(0)", ".exp()"),),
        ),
        Mistake(
            "you exponentiate large numbers: exp(4000 / 2) is inf, and inf / inf is nan; subtract "
            "the largest first, as softmax does",
            ((SOFT, f"s = torch.tensor({SCORES}).exp()\n    return (s / s.sum()).tolist()"),),
        ),
        Mistake(
            "alpha = 0 stands for infinity: the better decision alone",
            (("if not config.alpha:", "if False:"),),
            bug=True,
        ),
        Mistake(
            "with alpha infinite you leave the prior out: the larger pi Q wins, not the larger Q",
            (("scores = [p * q for p, q in zip(prior, Q)]", "scores = Q"),),
            bug=True,
        ),
        Mistake(
            "you leave a tie to words where alpha is infinite: equal decisions share",
            ((HARD, "[1.0, 0.0] if scores[0] >= scores[1] else [0.0, 1.0]"),),
            bug=True,
        ),
        Mistake(
            "you always choose the better decision: only an infinite alpha is that sharp",
            (("if not config.alpha:", "if True:"),),
            bug=True,
        ),
        Mistake(
            "you have swapped the decisions: words come first, as in DECISIONS",
            (
                (HARD, "[share / sum(best) for share in reversed(best)]"),
                (".tolist()", ".flip(0).tolist()"),
            ),
        ),
    ),
    hints=(
        "A policy writes code nine times out of ten, and words are right more often. What should "
        "it be taught, and how fast?",
        "Score each decision by how likely it is times how often it is right, and let alpha say "
        "how sharply the better score is preferred. A softmax makes shares of the scores.",
        "s*(c|x) = exp(alpha pi(c|x) Q(x, c)) / sum over c' of exp(alpha pi(c'|x) Q(x, c')); "
        "alpha 0: 1 for the c with the larger product, shared where both are equal",
    ),
    read=("nanotir/recipes/autocode.py:force", "arXiv 2502.00691, section 3"),
    look="a few lines choose what the M-step learns; Q comes from `force`, which makes the policy "
    "try the decision that it does not prefer",
    question="Why are K rollouts forced for each decision, whatever the policy prefers, and what "
    "would happen to Q(x, code) of a policy that never writes code?",
    answer="Without forcing, a decision that is never taken is never tried, so its Q stays unknown "
    "and it can never be found to be better. Forcing makes exploration complete.",
)
