"""Exercise 7: what imitation learns, and what it does not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nanotir.batches import Batch
from nanotir.exercises.exercise import Case, Exercise, Mistake
from nanotir.routing import Routing

ROWS = (  # who wrote each id: prompt, the teacher's words, output of a tool, padding
    "pppwwwwww",
    "ppwwwoowww",
    "pwoowoooww",
    "ppp",
)
VOCABULARY = 7


class Fixed:
    """A model whose logits are given: row by row, whatever the ids are."""

    def __init__(self, logits: Tensor):
        self.logits = logits
        self.head = nn.Linear(VOCABULARY, VOCABULARY, bias=False, dtype=logits.dtype)
        nn.init.eye_(self.head.weight).requires_grad_(False)

    def __call__(self, ids: Tensor) -> Tensor:
        return self.logits[:, : ids.shape[1]]

    def hidden(self, ids: Tensor, *, mask: Tensor | None = None, routing=None) -> Tensor:
        hidden = self(ids)
        if routing is not None:
            routing.logits.append(hidden)
        return hidden if mask is None else hidden[mask][None]


def with_fixed(function, logits: Tensor, micro: Batch, num_active_tokens: int) -> Tensor:
    return function(Fixed(logits), micro, num_active_tokens)


def with_experts(function, logits: Tensor, micro: Batch, num_active_tokens: int) -> tuple:
    """The loss, and how many forward passes the routing has recorded."""
    routing = Routing()
    loss = function(Fixed(logits), micro, num_active_tokens, routing)
    return loss, len(routing.logits)


def cases(seed: int) -> list[Case]:
    generator = torch.Generator().manual_seed(seed)

    def case(name: str, *rows: str, others: int = 0, through=with_fixed) -> Case:
        T = max(map(len, rows))
        written = [[letter == "w" for letter in row.ljust(T)] for row in rows]
        real = [[letter != " " for letter in row.ljust(T)] for row in rows]
        shape = (len(rows), T)
        ids = torch.randint(VOCABULARY, shape, generator=generator)
        empty = torch.zeros(shape)
        numbers = list(range(len(rows)))
        micro = Batch(ids, torch.tensor(written), empty, empty, torch.tensor(real), numbers)
        logits = 2 * torch.randn(*shape, VOCABULARY, generator=generator, dtype=torch.float64)
        n = max(1, int(micro.mask.sum()) + others)
        return Case(name, (logits, micro, n), through=through)

    return [
        case("a prompt, words and a stop id", ROWS[0]),
        case("a tool's output between words", ROWS[1]),
        case("two calls", ROWS[2]),
        case("rows of different lengths", *ROWS[:3]),
        case("a row without any word", *ROWS[1:]),
        case("half of the step's ids are in another micro-batch", *ROWS[:2], others=13),
        case("the first id is the teacher's, too", "wwwoow", "pww"),
        case("nothing to learn", ROWS[3]),
        case("a mixture of experts", *ROWS[:3], through=with_experts),
    ]


BODY = """    logps, _ = masked_logps(model, micro.ids, micro.mask, routing=routing)  # (B, T)
    return -logps.sum() / num_active_tokens
"""
LOGITS = "    logits = model.head(model.hidden(micro.ids, routing=routing))  # (B, T, V)\n"
PREDICTED = "    logps = logits.log_softmax(-1)[:, :-1]  # (B, T - 1, V)\n"
CHOSEN = "    logps = logps.gather(-1, micro.ids[:, 1:, None])[..., 0]\n"
MASK = "micro.ids, micro.mask,"


def mask_is(expression: str) -> tuple[tuple[str, str], ...]:
    return ((MASK, f"micro.ids, {expression},"),)


EXERCISE = Exercise(
    number=7,
    name="imitation_loss",
    lab="C",
    target="nanotir.sft:imitation_loss",
    teaches="Logits at one position predict the next id; only what the teacher wrote counts.",
    minutes=25,
    points=25,
    stars=2,
    cases=cases,
    gradient="logits",
    mistakes=(
        Mistake(
            "you train on everything but padding: prompts and tool output are not the teacher's, "
            "so use micro.mask",
            mask_is("micro.real"),
            bug=True,
        ),
        Mistake(
            "you train on what the tool wrote: the model would learn to invent outputs",
            mask_is("micro.real & (micro.mask.cumsum(1) > 0)"),
            bug=True,
        ),
        Mistake(
            "your mask is upside down: it is True on what IS to be learned",
            mask_is("micro.real & ~micro.mask"),
            bug=True,
        ),
        Mistake(
            "you shift the ids but not the mask: both belong to position t + 1, whose id the "
            "logits at t predict",
            (
                (
                    BODY,
                    LOGITS
                    + PREDICTED
                    + CHOSEN
                    + "    return -(logps * micro.mask[:, :-1]).sum() / "
                    "num_active_tokens\n",
                ),
            ),
            bug=True,
        ),
        Mistake(
            "you compare the logits at t with the id at t, which the model has already read: they "
            "predict the id at t + 1",
            (
                (
                    BODY,
                    LOGITS + "    logps = logits.log_softmax(-1)\n"
                    "    logps = logps.gather(-1, micro.ids[..., None])[..., 0]\n"
                    "    return -(logps * micro.mask).sum() / num_active_tokens\n",
                ),
            ),
            bug=True,
        ),
        Mistake(
            "you train on the last turn alone: what the teacher wrote before a call's output "
            "counts as well",
            mask_is("micro.mask & ((micro.real & ~micro.mask).flip(1).cumsum(1).flip(1) == 0)"),
            bug=True,
        ),
        Mistake(
            "you leave out the last id of each row, the stop id: the model would not learn to end",
            mask_is("micro.mask & (micro.mask.flip(1).cumsum(1).flip(1) > 1)"),
            bug=True,
        ),
        Mistake(
            "you divide by this micro-batch's own ids: the step has one denominator, "
            "num_active_tokens, so that an id counts alike in every micro-batch",
            (("/ num_active_tokens", "/ micro.mask[:, 1:].sum().clamp(min=1)"),),
            bug=True,
        ),
        Mistake(
            "you divide by B * T: prompts, tool output and padding do not count",
            (("/ num_active_tokens", "/ micro.ids.numel()"),),
            bug=True,
        ),
        Mistake(
            "you take the mean of each row first: an id of a long answer would count less",
            (
                (
                    "-logps.sum() / num_active_tokens",
                    "-(logps.sum(1) / micro.mask.sum(1).clamp(min=1)).mean()",
                ),
            ),
            bug=True,
        ),
        Mistake(
            "you do not hand `routing` on to the model: a mixture of experts records there what it "
            "chose",
            (("micro.mask, routing=routing", "micro.mask"),),
        ),
        Mistake(
            "the sign: a loss is minimised, and log-probs are to rise",
            (("-logps.sum()", "logps.sum()"),),
            bug=True,
        ),
        Mistake(
            "you sum probabilities, not their logarithms: the gradient of an unlikely id vanishes",
            (("-logps.sum()", "-(logps.exp() * (logps != 0)).sum()"),),
            bug=True,
        ),
    ),
    hints=(
        "The model has read ids 0 to t. Which id do its logits at t speak of, and who wrote it?",
        "Drop the last logits and the first id. Take the log-prob of each id, leave out those "
        "that the teacher did not write by the mask WITHOUT its first column, and sum.",
        "loss = - sum_t mask[t + 1] log softmax(logits[t])[ids[t + 1]] / num_active_tokens",
    ),
    read=("nanotir/sft.py:imitate", "nanotir/logps.py:masked_logps", "nanotir/batches.py:Batch"),
    look="masked_logps hands only the masked hidden states to the head: where nothing is learned, "
    "no logits are ever made",
    question="A micro-batch of 100 ids of the teacher's and one of 10 are one step. What happens "
    "to an id of the small one if each micro-batch is divided by its own count?",
    answer="Its gradient counts ten times as much as that of an id in the large one. With one "
    "denominator (110) the micro-batches' gradients add up to that of the whole batch.",
)
