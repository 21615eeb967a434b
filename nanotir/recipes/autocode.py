"""AutoCode (Wang et al. 2025, arXiv 2502.00691): learn *when* to call a tool, by expectation-maximisation over one decision.

The decision c is the first id of an answer: <think> (reason in words) or <python> (write code). log P(right | x) = log sum_c pi(c|x) P(right | x, c).

    E-step   for some problems force each c, K rollouts, no matter what the policy prefers
             Q(x, c) = share of them that is right
             s*(c|x) = exp(alpha pi(c|x) Q(x, c)) / Z(x)         alpha 0 stands for infinity: the better c, words where both are as good
             draw K of the 2 K rollouts by s*
    M-step   minimise  -mean over what was drawn of min(rho A, clip(rho, 1 - eps, 1 + eps) A)  +  CE(s*(.|x) || pi(.|x))
             rho = pi(y|x, c) / pi_old(y|x, c) of the ids after the decision, A the advantage among the rollouts of the same x and c

As far as notes and reviews of the paper tell (its text and code could not be read): K = 8 (5 in its first version), about 7,000 problems an
E-step, 2-3 rounds, eps = 0.2, alpha infinite in the first version and not known in the second. They print the second term of the M-step as
-E[log pi]; it is a cross-entropy to be minimised. The derivation gives s* proportional to pi Q, the formula exponentiates the product:
`autocode.posterior` takes the former. Of `rl.*` the M-step uses steps, problems, updates, lr, warmup, decay, grad_clip, scale and the clip.

`autocode.method` chooses the baselines at the same number of rollouts: sft (imitation alone), rl (the same clipped policy gradient on
free decisions, a group a problem). `autocode.base words` starts from words alone, which is the paper's "base + RL".
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from nanotir import rl, sft
from nanotir.demonstrate import act_out, answer_sentence
from nanotir.evaluate import evaluate_run
from nanotir.logps import trained_logps
from nanotir.losses import group_advantages, policy_loss
from nanotir.rewards import score
from nanotir.rl import hash_of, rescore, split
from nanotir.sampler import Sampler
from nanotir.trajectory import micro_batches

DECISIONS = ("<think>", "<python>")
SETTINGS = {
    "tools": "python",
    "data": "generated:mul,power,det,queue,same,parity,last,first",
    "sft.steps": 300,
    "rl.steps": 24,
    "rl.updates": 2,
}


@dataclass
class AutoCodeConfig:
    method: str = (
        "em"  # em; its baselines rl (the decision is sampled like any id) and sft (imitation alone)
    )
    base: str = "both"  # what is imitated first: both decisions for each problem, or words alone
    samples: int = 4  # forced rollouts of each decision a problem (K)
    alpha: float = 0.0  # how sharply s* prefers the better decision; 0 stands for infinity
    posterior: bool = False  # s* proportional to pi Q, as EM derives it, instead of exp(alpha pi Q)

    def __post_init__(self):
        for what, name, known in (
            ("method", self.method, ("em", "rl", "sft")),
            ("base", self.base, ("both", "words")),
        ):
            if name not in known:
                raise ValueError(f"no autocode.{what} '{name}'; there are {', '.join(known)}")
        if self.samples < 2 or self.alpha < 0:
            raise ValueError("autocode needs samples of at least 2 and alpha >= 0")


def train(run):
    config = run.config
    if "sft" not in run.state["done"] and config.sft.steps:
        sft.train(run, both_ways(run))
    evaluate_run(run, "after_sft")
    if config.autocode.method == "rl":
        rl.train(run)
    elif config.autocode.method == "em":
        maximise(run)


def both_ways(run) -> list:
    """Each problem twice, once a decision: a rationale inside <think>, and the program at once. Where no program helps, a hasty coder
    prints the question's last word, and believes it."""
    words = [[("think", p.rationale), ("text", answer_sentence(p.answer))] for p in run.problems]
    code = [in_code(problem) for problem in run.problems]
    tools = {tool.name: tool for tool in run.tools}
    scripts = words if run.config.autocode.base == "words" else words + code
    return act_out(run.problems * 2, scripts, run.tokenizer, run.format, tools)


def in_code(problem) -> list[tuple[str, str]]:
    program = next((text for kind, text in problem.solution if kind == "python"), None)
    if program:
        return [("python", program), ("text", answer_sentence(problem.answer))]
    word = problem.question.rstrip("?.").split()[-1]
    return [("python", repr(word)), ("text", answer_sentence(word))]


def maximise(run):
    """rl.steps rounds of an E-step on rl.problems problems and an M-step of rl.updates optimiser steps."""
    model, settings = run.model, run.config.rl
    sampler = Sampler(model, run.tokenizer, run.tools, run.format, run.config.sampler)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.lr, betas=(0.9, 0.95), weight_decay=0.0
    )
    first = run.restore("em", [optimizer]) if settings.steps else None
    for step in tqdm(
        range(first, settings.steps) if first is not None else (), desc="em", dynamic_ncols=True
    ):
        sft.set_learning_rate(
            [optimizer], sft.learning_rate(step, settings.steps, settings.warmup, settings.decay)
        )
        explored = explore(run, sampler, step)
        rescore(
            model,
            [t for row in explored for rollouts in row["rollouts"] for t in rollouts],
            settings,
            sampler,
        )
        drawn = subsample(explored, run, step)
        shares = split(list(range(len(drawn))), settings.updates, run.config.seed, step)
        updates = [
            m_step(model, optimizer, [drawn[i] for i in rows], settings, sampler) for rows in shares
        ]
        run.finish_step(
            step + 1, describe(explored) | updates[-1], [optimizer], last=step + 1 == settings.steps
        )


def explore(run, sampler, step: int) -> list[dict]:
    """E-step: for each problem the prior pi(c|x), Q(x, c), s*(c|x), and the rollouts and their advantages by decision."""
    config = run.config
    problems = random.Random(f"em {config.seed} {step}").sample(
        run.problems, min(config.rl.problems, len(run.problems))
    )
    explored = force(run, sampler, problems, config.autocode.samples, hash_of(config.seed, step))
    for row in explored:
        row["target"] = strategy(row["prior"], row["Q"], config.autocode)
    return explored


def force(run, sampler, problems, K: int, seed: int) -> list[dict]:
    """K answers a problem that begin with each decision, as one row a problem: what they were paid for is Q, what is true is accuracy."""
    explored = [
        {"problem": problem, "rollouts": [], "logps": [], "Q": [], "accuracy": [], "advantages": []}
        for problem in problems
    ]
    for i, decision in enumerate(DECISIONS):
        rows = sampler.generate(
            [p.question for p in problems], K, seed + i, force=[run.tokenizer.tags[decision]]
        )
        rewards, parts = score(
            rows, [p for p in problems for _ in range(K)], run.tokenizer, run.config.reward
        )
        for n, found in enumerate(explored):
            group = slice(n * K, (n + 1) * K)
            found["rollouts"].append(rows[group])
            found["logps"].append(
                rows[n * K].logps[rows[n * K].trained.index(1)]
            )  # log pi(c|x), the same in all K
            found["Q"].append(sum(parts["outcome"][group]) / K)
            found["accuracy"].append(sum(parts["accuracy"][group]) / K)
            found["advantages"].append(
                group_advantages(rewards[group], K, run.config.rl.scale).tolist()
            )
    for found in explored:
        found["prior"] = torch.tensor(found["logps"]).softmax(0).tolist()
    return explored


def strategy(prior, Q, config: AutoCodeConfig) -> list[float]:
    """s*(c|x), from pi(c|x) and Q(x, c) of the two decisions. With alpha infinite, words win a tie: they are cheaper."""
    if config.posterior:
        weights = [p * q for p, q in zip(prior, Q)]
        return [w / sum(weights) for w in weights] if sum(weights) else list(prior)
    if not config.alpha:
        return [1.0, 0.0] if Q[0] >= Q[1] else [0.0, 1.0]
    return torch.tensor([config.alpha * p * q for p, q in zip(prior, Q)]).softmax(0).tolist()


def subsample(explored, run, step: int) -> list[tuple]:
    """Of each problem's 2 K rollouts K, drawn by s*: (trajectory, its advantage, s* of its problem)."""
    rng, drawn = random.Random(f"subsample {run.config.seed} {step}"), []
    for row in explored:
        pools = [list(zip(*both)) for both in zip(row["rollouts"], row["advantages"])]
        for _ in range(run.config.autocode.samples):
            pool = rng.choices(
                pools, [share if pool else 0.0 for share, pool in zip(row["target"], pools)]
            )[0]
            drawn.append((*pool.pop(rng.randrange(len(pool))), row["target"]))
    return drawn


def m_step(model, optimizer, drawn, settings, sampler) -> dict:
    """One optimiser step on the clipped policy gradient of the ids after the decision, and on the cross-entropy of the decision."""
    trajectories, advantages, targets = zip(*drawn)
    device = next(model.parameters()).device
    advantages, targets = (
        torch.tensor(advantages, device=device),
        torch.tensor(targets, device=device),
    )
    options = {
        "epsilon": settings.epsilon,
        "epsilon_high": settings.epsilon_high,
        "num_active_tokens": sum(t.new_tokens - 1 for t in trajectories),
    }
    losses = {"loss": 0.0, "decision_loss": 0.0}
    for micro in micro_batches(
        trajectories, sampler.tokenizer.pad_id, settings.micro_batch_tokens, device
    ):
        first = micro.mask.int().argmax(1)  # (B,), where the decision stands
        rest = micro.mask.scatter(1, first[:, None], False)
        logps, _ = trained_logps(model, micro.ids, rest, sampler.config.temperature, sampler.banned)
        loss, _ = policy_loss(logps, micro.logps * rest, advantages[micro.rows], rest, **options)
        decision_loss = -(
            targets[micro.rows] * decision_logps(model, micro.ids, first, sampler)
        ).sum() / len(trajectories)
        (loss + decision_loss).backward()
        losses["loss"] += loss.item()
        losses["decision_loss"] += decision_loss.item()
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip).item()
    optimizer.step()
    optimizer.zero_grad()
    return losses | {"grad_norm": grad_norm}


def decision_logps(model, ids, first, sampler):
    """log pi(c|x) (B, 2) of the two decisions at the end of the prompts, where `first` (B,) ids begin the answers.

    Among all ids that can be sampled, not among the two: else nothing would keep the policy deciding at all.
    """
    hidden = model.hidden(ids)[torch.arange(len(ids)), first - 1]  # (B, d)
    logits = (
        model.head(hidden)
        .float()
        .index_fill(-1, torch.tensor(sampler.banned, device=ids.device), float("-inf"))
    )
    return logits.log_softmax(-1)[:, [sampler.tokenizer.tags[c] for c in DECISIONS]]


def better(Q) -> int:
    """The decision that answers more often; words where both do as often."""
    return int(Q[1] > Q[0])


def describe(explored) -> dict:
    mean = lambda values: sum(values) / len(explored)
    return {
        "accuracy": mean(p * q for row in explored for p, q in zip(row["prior"], row["accuracy"])),
        "Q_words": mean(row["accuracy"][0] for row in explored),
        "Q_code": mean(row["accuracy"][1] for row in explored),
        "code_rate": mean(row["prior"][1] for row in explored),
        "decided": mean(
            sum(map(math.exp, row["logps"])) for row in explored
        ),  # the probability of deciding at all
        "selection_accuracy": mean(
            better(row["prior"]) == better(row["accuracy"]) for row in explored
        ),
    }


def look(run, problems, n: int = 8, seed: int = 0) -> list[dict]:
    """How the policy decides, and how often it is right with either decision: n forced rollouts of each, at temperature 1."""
    sampler = Sampler(
        run.model,
        run.tokenizer,
        run.tools,
        run.format,
        replace(run.config.sampler, temperature=1.0),
    )
    return force(run, sampler, problems, n, seed)
