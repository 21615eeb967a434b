"""AutoCode (Wang et al. 2025, arXiv 2502.00691): learn *when* to call a tool, by EM.

The decision c is the first id of an answer: <think> (reason in words) or <python> (write code).
log P(right | x) = log sum_c pi(c|x) P(right | x, c).

    E-step   for some problems force each c and draw K rollouts, whatever the policy prefers
             Q(x, c) = share of them that is right
             s*(c|x) = exp(alpha pi(c|x) Q(x, c)) / Z(x); alpha 0 stands for infinity: all of s* is
             on the c with the larger pi Q, and equal ones share it
             draw K of the 2 K rollouts by s*
    M-step   rl.iterations times, minimise
             -mean over what was drawn of min(rho A, clip(rho, 1 - eps, 1 + eps) A)
             + CE(s*(.|x) || pi(.|x))
             rho = pi(y|x, c) / pi_old(y|x, c) of the ids after the decision, pi_old the policy that
             explored, A the advantage among the rollouts of the same x and c

This is written from notes and reviews of the paper; its text and code could not be read. They say:
K = 8 (5 in its first version), about 7,000 problems an E-step, 2-3 rounds, eps = 0.2, alpha
infinite in the first version and unknown in the second. They print the second term of the M-step as
-E[log pi], a cross-entropy to be minimised, and rho of whole answers; here each id has its own
(`--rl.ratio-level sequence`: their geometric mean). There are more, smaller E-steps here, and
advantages among rollouts of one decision are our choice.

The derivation gives s* = pi Q / sum pi Q, but the formula exponentiates the product. The first is
`--autocode.strategy posterior`. With either, a decision that the policy hardly takes needs a much
larger Q to be preferred. `--autocode.strategy quality` leaves the prior out: it prefers the larger
Q, and words, which are cheaper, where both are equal. The M-step is an update of rl.py, by the
settings `rl.*`, without a reference policy. The paper's baselines are in nanotir/lab/autocode.py.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from nanotir import optim, rl
from nanotir.batches import micro_batches
from nanotir.checks import Amount, Several, check_settings, one_of
from nanotir.demonstrate import act_out, answer_sentence
from nanotir.logps import at_least_fp32, autocast
from nanotir.losses import group_advantages
from nanotir.metrics import step_metrics
from nanotir.problems import Problem
from nanotir.processes import gather, once
from nanotir.rewards import score
from nanotir.rl import RLConfig, drawing_of, make_sampler, rescore, split
from nanotir.rollout import hash_of
from nanotir.sampler import Sampler
from nanotir.scores import mean
from nanotir.trajectory import Trajectory

DECISIONS = ("<think>", "<python>")
STRATEGIES = ("product", "posterior", "quality")
CLEAR = 0.25  # decisions whose shares of right answers differ by more than this differ clearly
UNUSED = ("keep", "drop_void", "beta", "budgets", "observations")  # settings of RL
SETTINGS = {
    "tools": "python",
    "data": "generated:mul,power,det,queue,same,parity,last,first",
    "sft.steps": 300,
    "rl.steps": 24,
    "rl.updates": 2,
    "rl.iterations": 2,
    "rl.epsilon": 0.2,
    "rl.epsilon_high": 0.2,
}


@dataclass
class AutoCodeConfig:
    samples: Several = 4  # forced rollouts of each decision a problem (K)
    strategy: str = "product"  # s* prefers the decision with the larger pi Q; posterior: is
    # proportional to it; quality: prefers the larger Q, and words where both are equal
    alpha: Amount = 0.0  # how sharply s* prefers it; 0 stands for infinity

    def __post_init__(self):
        check_settings(self, "autocode")
        one_of("strategy", self.strategy, STRATEGIES)
        if self.alpha and self.strategy != "product":
            raise ValueError("autocode.alpha needs --autocode.strategy product: leave it out")


def check(config):
    """ValueError for settings of a RunConfig that this recipe cannot follow."""
    if config.recipe != "autocode":
        return
    if "python" not in config.tools:
        raise ValueError("--recipe autocode decides whether to call python: add it to --tools")
    for name in UNUSED:
        if getattr(config.rl, name) != getattr(RLConfig, name):
            flag = f"--rl.{name.replace('_', '-')}"
            raise ValueError(f"--recipe autocode has no use for {flag}: leave it out")
    if config.rl.scale not in ("group", "none"):
        why = "the answers that begin with one decision are compared among themselves"
        raise ValueError(f"--recipe autocode needs --rl.scale group or none: {why}")


@dataclass
class Explored:
    """What an E-step finds out about one problem. Lists have one entry for each decision."""

    problem: Problem
    rollouts: list[list[Trajectory]] = field(default_factory=list)
    advantages: list[list[float]] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)  # log pi(c|x)
    Q: list[float] = field(default_factory=list)  # share of rollouts that were paid for as right
    accuracy: list[float] = field(default_factory=list)  # share that is right
    target: list[float] = field(default_factory=list)  # s*(c|x)

    @property
    def prior(self) -> list[float]:
        """pi(c|x) among the two decisions."""
        return torch.tensor(self.logps).softmax(0).tolist()


def demonstrations(run) -> list[Trajectory]:
    """Each problem once for each decision: a rationale inside <think>, and the program."""
    scripts = [in_words(problem) for problem in run.problems]
    scripts += [in_code(problem) for problem in run.problems]
    return act_out(run.problems * 2, scripts, run.tokenizer, run.format, run.tools_by_name)


def in_words(problem: Problem) -> list[tuple[str, str]]:
    return [("think", problem.rationale), ("text", answer_sentence(problem.answer))]


def in_code(problem: Problem) -> list[tuple[str, str]]:
    """The program; if there is none, one that prints the question's last word."""
    programs = [text for kind, text in problem.solution if kind == "python"]
    if programs:
        return [("python", programs[0]), ("text", answer_sentence(problem.answer))]
    word = (problem.question.rstrip("?.").split() or ["?"])[-1]
    return [("python", repr(word)), ("text", answer_sentence(word))]


def improve(run):
    """rl.steps rounds of an E-step on rl.problems problems and an M-step.

    An M-step learns from its rows rl.iterations times, in rl.updates parts each time.
    """
    model, settings = run.model, run.config.rl
    optimizer = optim.adamw(model.parameters(), settings.lr)
    sampler = make_sampler(run)
    for step in run.remaining("em", [optimizer], settings.steps):
        optim.schedule([optimizer], step, settings)
        explored = explore(run, sampler, step)
        drawn = subsample(explored, run, step)
        # The policy that explored is the old one in all updates.
        rescore(model, [t for t, _, _ in drawn], settings, drawing_of(sampler))
        shares = split(list(range(len(drawn))), settings.updates, run.config.seed, step)
        updates = []
        for rows in shares * settings.iterations:
            updates.append(m_step(model, optimizer, [drawn[i] for i in rows], settings, sampler))
        metrics = em_metrics(explored) | step_metrics(updates)
        run.finish_step(step + 1, metrics, [optimizer], last=step + 1 == settings.steps)


def explore(run, sampler: Sampler, step: int) -> list[Explored]:
    """The E-step."""
    config = run.config
    rng = random.Random(f"em {config.seed} {step}")
    problems = rng.sample(run.problems, min(config.rl.problems, len(run.problems)))
    seed = hash_of(config.seed, step)
    explored = force(run, sampler, problems, config.autocode.samples, seed)
    for row in explored:
        row.target = target_of(row.prior, row.Q, config.autocode)
    return explored


def force(run, sampler: Sampler, problems, K: int, seed: int) -> list[Explored]:
    """K answers to each problem that begin with each decision."""
    settings = run.config.rl
    explored = [Explored(problem) for problem in problems]
    questions = [problem.question for problem in problems]
    asked = [problem for problem in problems for _ in range(K)]
    for i, decision in enumerate(DECISIONS):
        tag = run.tokenizer.tags[decision]
        rows = sampler.generate(questions, K, seed + i, force=[tag])
        rewards, parts = once(score, rows, asked, run.tokenizer, run.config.reward)
        for n, found in enumerate(explored):
            group = slice(n * K, (n + 1) * K)
            first = rows[n * K]  # log pi(c|x) is the same in all K
            A = group_advantages(rewards[group], K, settings.scale, settings.baseline)
            found.rollouts.append(rows[group])
            found.advantages.append(A.tolist())
            found.logps.append(first.logps[first.mask.index(1)])
            found.Q.append(mean(parts["outcome"][group]))
            found.accuracy.append(mean(parts["accuracy"][group]))
    return explored


def target_of(prior: list[float], Q: list[float], config: AutoCodeConfig) -> list[float]:
    """s*(c|x), as config.strategy says. Where nothing is ever right, the posterior is the prior."""
    if config.strategy == "quality":
        return [0.0, 1.0] if better(Q) else [1.0, 0.0]
    if config.strategy == "posterior":
        scores = [p * q for p, q in zip(prior, Q)]
        return [score / sum(scores) for score in scores] if any(scores) else prior
    return strategy(prior, Q, config)


def strategy(prior: list[float], Q: list[float], config: AutoCodeConfig) -> list[float]:
    """s*(c|x) of words and code: exp(alpha pi(c|x) Q(x, c)), divided by their sum.

    alpha 0 stands for infinity: the decision with the larger pi Q gets 1; equal ones share it.
    """
    if not config.alpha:
        scores = [p * q for p, q in zip(prior, Q)]
        best = [score == max(scores) for score in scores]
        return [share / sum(best) for share in best]
    return torch.tensor([config.alpha * p * q for p, q in zip(prior, Q)]).softmax(0).tolist()


def subsample(explored: list[Explored], run, step: int) -> list[tuple]:
    """Of each problem's 2 K rollouts K, drawn by s*: (trajectory, its advantage, s*)."""
    rng = random.Random(f"subsample {run.config.seed} {step}")
    drawn = []
    for row in explored:
        pools = [list(zip(*both)) for both in zip(row.rollouts, row.advantages)]
        for _ in range(run.config.autocode.samples):
            weights = [share if pool else 0.0 for share, pool in zip(row.target, pools)]
            pool = rng.choices(pools, weights)[0]
            trajectory, advantage = pool.pop(rng.randrange(len(pool)))
            drawn.append((trajectory, advantage, row.target))
    return drawn


def m_step(model, optimizer, drawn: list[tuple], settings, sampler: Sampler) -> dict:
    """One optimiser step on the clipped policy gradient and on the decision's cross-entropy."""
    trajectories, advantages, targets = zip(*drawn)
    given = (trajectories, torch.tensor(targets), settings, sampler)
    decision_loss = learn_to_decide(model, *given)
    rest = [after_decision(trajectory) for trajectory in trajectories]
    given = (rest, torch.tensor(advantages), settings, drawing_of(sampler))
    return rl.update(model, optimizer, *given) | {"decision_loss": decision_loss}


def learn_to_decide(model, trajectories, targets: Tensor, settings, sampler: Sampler) -> float:
    """CE(s* || pi) of the decisions, whose gradient is added to the weights'. targets: (N, 2)."""
    device = model.embed.weight.device
    prompts = [trajectory.first(spans=1, calls=0) for trajectory in trajectories]
    pad_id = sampler.tokenizer.pad_id
    total = 0.0
    for micro in micro_batches(prompts, pad_id, settings.micro_batch_tokens, device):
        with autocast(device, settings.bf16):
            logps = decision_logps(model, micro.ids, micro.real.sum(1), sampler)
        loss = -(targets[micro.rows].to(device) * logps).sum() / len(prompts)
        loss.backward()
        total += loss.item()
    return sum(gather([total]))


def after_decision(trajectory: Trajectory) -> Trajectory:
    """The same without its decision in the mask."""
    mask = list(trajectory.mask)
    mask[mask.index(1)] = 0
    return replace(trajectory, mask=mask)


def decision_logps(model, ids: Tensor, first: Tensor, sampler: Sampler) -> Tensor:
    """log pi(c|x) (B, 2) of the two decisions, after the first `first` (B,) ids of ids (B, T).

    At the sampler's temperature, as any other id is drawn, and among all ids that can be sampled,
    not among the two: otherwise nothing would keep the policy deciding at all.
    """
    hidden = model.hidden(ids)[torch.arange(len(ids)), first - 1]  # (B, d)
    banned = torch.tensor(sampler.banned, device=ids.device)
    logits = at_least_fp32(model.head(hidden)).index_fill(-1, banned, float("-inf"))  # (B, V)
    logps = (logits / sampler.config.temperature).log_softmax(-1)
    return logps[:, [sampler.tokenizer.tags[c] for c in DECISIONS]]


def better(Q: list[float]) -> int:
    """The decision that answers right more often; words where both do as often."""
    return int(Q[1] > Q[0])


def em_metrics(explored: list[Explored]) -> dict[str, float]:
    expected = [sum(p * q for p, q in zip(row.prior, row.accuracy)) for row in explored]
    clear = [row for row in explored if abs(row.accuracy[1] - row.accuracy[0]) > CLEAR]
    metrics = {
        "accuracy": mean(expected),
        "Q_words": mean([row.accuracy[0] for row in explored]),
        "Q_code": mean([row.accuracy[1] for row in explored]),
        "code_rate": mean([row.prior[1] for row in explored]),
        # The probability of deciding at all, not saying something else.
        "decided": mean([sum(map(math.exp, row.logps)) for row in explored]),
        "clear": len(clear) / len(explored),  # share of problems whose decisions differ clearly
    }
    if clear:  # how often the likelier decision is the better one of those
        agrees = [better(row.prior) == better(row.accuracy) for row in clear]
        metrics["clear_selection"] = mean(agrees)
    return metrics
