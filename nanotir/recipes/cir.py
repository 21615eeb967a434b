"""CIR, code-integrated reasoning (Bai et al. 2025, arXiv 2505.24480): what keeps reinforcement learning with a code tool stable.

    for each problem sample G answers; a finished ```python block is cut out, run, and the answer goes on after its output
    R = +1 if the answer is right, else -1
    A = R - mean of the group, then brought to mean 0 and variance 1 over all ids of the groups that differ (REINFORCE++ with a baseline)
    minimise - sum_t min(rho A, clip(rho, 1 - 0.2, 1 + 0.28) A) / active ids;   no KL, no entropy bonus
    blocks that an answer may have run: 2, then 3, then 4, a third of the steps each. The next one is not run; there the answer
        goes on as if it were words, here it is told so, once, and may go on

What the paper finds to matter, and where it is here: outputs masked (`rl.observations`; in its code a regular expression over decoded
text, here the spans), exact matching of blocks (`TextSampler`, against a stop string), the budget (`rl.budgets`), clip-higher
(`rl.epsilon_high`), no KL (`rl.beta`), no entropy bonus (`rl.entropy_coef`). +1/-1 or 1/0 is all one here: whitening undoes any scale and shift.

The paper: 128 problems x 16, 300 steps, learning rate 1e-6, 4,096 ids on Qwen2.5-Math-7B, budget raised at steps 100 and 200 by hand.
"""

from __future__ import annotations

import re

from nanotir import rl
from nanotir.answers import equivalent
from nanotir.checkpoint import write_json
from nanotir.recipes import cold_start
from nanotir.rewards import completion, is_correct
from nanotir.sampler import Generation, Sampler
from nanotir.trajectory import Trajectory

SETTINGS = {
    "tools": "python",
    "data": "generated:mul,power,gcd,lin,det,choose,quot,clock",
    "format": "fences",
    "sft.steps": 400,
    "rl.budgets": "2,3,4",
    "sampler.last_turn": True,
    "rl.scale": "whiten",
    "rl.dynamic": False,
    "rl.refills": 0,
    "reward.length": 0.0,
}


def train(run):
    cold_start(run)
    rl.train(run)
    write_json(run.out / "analysis.json", analyse(run))


class TextSampler(Sampler):
    """How to find blocks where fences are ordinary text, of several ids, that can be spelled in more than one way: the paper's question.

    exact: search the decoded text for a whole block; it is found however it is spelled, and nothing after it is read. Else the stop-string
    rule as inference servers apply it to ids: a block ends where the last ids are those that the closing fence encodes to.
    Only Python; `nanotir`'s own fences are single ids, for which there is nothing to decide.
    """

    def __init__(self, *arguments, exact: bool = True):
        super().__init__(*arguments)
        self.openers, self.exact = {}, exact
        self.stop_ids = self.tokenizer.encode_untrusted("\n```\n")

    def block(self, ids) -> str | None:
        """The code of the block that ends with the last of ids, those written since the last output."""
        if not self.exact and ids[-len(self.stop_ids) :] != self.stop_ids:
            return None
        found = re.search(r"```python\n(.+?)\n```\n", self.tokenizer.decode(ids), re.DOTALL)
        return found and found[1]

    def _generation(self, *state):
        return TextGeneration(self, *state)


class TextGeneration(Generation):
    def _accept(self, slot, row, id, logp):
        super()._accept(slot, row, id, logp)
        if not row.trajectory.finish_reason and self._code(row) is not None:
            row.tool = "python"
            self._call(slot, row)

    def _code(self, row) -> str | None:
        span = row.trajectory.spans[-1]
        return self.sampler.block(row.trajectory.ids[span.start : span.end])


def spelled_out(trajectory: Trajectory, tokenizer) -> Trajectory:
    """A demonstration in fences of single ids, with the fences of its programs as ordinary text."""
    plain = Trajectory(finish_reason=trajectory.finish_reason, calls=trajectory.calls)
    for span in trajectory.spans:
        ids, trained = trajectory.ids[span.start : span.end], trajectory.trained[span.start]
        if span.kind == "python":
            plain.append("text", tokenizer.encode_untrusted(tokenizer.decode(ids)), trained)
        else:
            plain.append(span.kind, ids, trained)
    return plain


def analyse(run) -> dict:
    """What the code was good for, over one sampled answer to each held-out problem; overall, and by family."""
    sampler = Sampler(run.model, run.tokenizer, run.tools, run.format, run.config.sampler)
    rows = sampler.generate([problem.question for problem in run.held_out], seed=run.config.seed)
    seen = [
        (row, is_correct(completion(row, run.tokenizer), problem.answer), problem)
        for row, problem in zip(rows, run.held_out)
    ]
    families = {
        family: [item for item in seen if item[2].family == family]
        for family in sorted({p.family for p in run.held_out})
    }
    return {"all": fate_of_code(seen)} | {
        family: fate_of_code(members) for family, members in families.items()
    }


def fate_of_code(seen) -> dict:
    """Ratios over (trajectory, right, problem); None where nothing is there to be counted. Calls that were cut off count for nothing."""
    share = lambda values: sum(values) / len(values) if values else None
    calls = lambda wanted: [
        call.result.ok for row, right, _ in seen if right in wanted for call in row.calls
    ]
    failed = [
        (row, right) for row, right, _ in seen if any(not call.result.ok for call in row.calls)
    ]
    repairs = [
        b.result.ok
        for row, _ in failed
        for a, b in zip(row.calls, row.calls[1:])
        if not a.result.ok
    ]
    misled = [
        right
        for row, right, p in seen
        if row.calls
        and row.calls[-1].result.ok
        and not equivalent(row.calls[-1].result.output, p.answer)
    ]
    return {
        "code_ratio": share([bool(row.calls) for row, *_ in seen]),
        "pass_ratio": share(calls((True, False))),
        "pass_ratio_right": share(calls((True,))),
        "pass_ratio_wrong": share(calls((False,))),
        "repair_rate": share(repairs),
        "right_after_failure": share([right for _, right in failed]),  # code that did not run
        "right_after_wrong_value": share(
            misled
        ),  # code that ran, and printed something else than the answer
        "tokens_per_correct": sum(row.new_tokens for row, *_ in seen)
        / max(1, sum(right for _, right, _ in seen)),
        "accuracy": share([right for _, right, _ in seen]),
    }
