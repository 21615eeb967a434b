"""Silent bugs: edits of the package's own text, with which nothing crashes and training goes on.

So they cannot drift from it: a test fails where an old text does not occur exactly once.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bug:
    file: str  # in the folder nanotir
    old: str
    new: str
    what: str  # it does
    silent: str  # why nothing is heard of it
    points: int  # 2: a probe is not solved; 3: logs or traces show it; 4: only reading does

    def planted(self, source: str) -> str:
        """The file's text with the bug. ValueError unless the old text occurs exactly once."""
        if (times := source.count(self.old)) != 1:
            raise ValueError(f"{self.file}: '{self.old}' occurs {times} times, not once")
        return source.replace(self.old, self.new)

    def lines(self, source: str) -> range:
        """The lines of the planted file that differ from the package's."""
        start = source[: source.index(self.old)].count("\n") + 1
        return range(start, start + self.new.count("\n") + 1)


BUGS = [
    Bug(
        "batches.py",
        "padded([t.mask for t in batch], 0)",
        "padded([[m * n for m, n in zip(t.mask, [0, *t.mask])] for t in batch], 0)",
        "The mask is off by one: the first id of every turn is not learned.",
        "Of long turns nearly all ids are still learned, and the loss falls as ever.",
        2,
    ),
    Bug(
        "losses.py",
        "    mask = mask.bool()\n    if advantages",
        "    mask = ~mask.bool()\n    if advantages",
        "The loss is computed where the model chose nothing, and there nothing depends on it.",
        "The loss is a plausible number. Only the gradient's norm is 0.",
        2,
    ),
    Bug(
        "generation.py",
        '            row.trajectory.append("prompt", list(row.prompt), 0)',
        '            row.trajectory.append("prompt", list(row.prompt), 0)\n'
        "            row.trajectory.mask[1:-1] = [1] * (len(row.prompt) - 2)",
        "The question is learned as if the model had chosen it.",
        "The advantages of a group add up to 0, so its prompt is hardly pushed. But its ids count "
        "in the denominator and in new_tokens, and with the log-prob 0: logp_gap.",
        3,
    ),
    Bug(
        "generation.py",
        '        row.append("output", ids, 0)',
        '        row.append("output", ids[:1], 0)\n'
        '        row.append("output", ids[1:-1], 1)\n'
        '        row.append("output", ids[-1:], 0)',
        "What a tool says between its tags is learned as if the model had chosen it.",
        "The model learns to expect good results, which does its own ids no harm in a short run. "
        "Its log-prob when it was sampled is 0, so logp_gap is large.",
        3,
    ),
    Bug(
        "generation.py",
        '        row.append("output", ids, 0)',
        '        row.append("output", ids, 0)\n'
        "        row.trajectory.mask[:] = [0] * len(row.trajectory.mask)",
        "Only the last turn is learned: a result takes the mask off all that came before it.",
        "Answers get better, and rows without a call, which are learned whole, are pushed up or "
        "down. In the traces the mask of every call is 0.",
        3,
    ),
    Bug(
        "generation.py",
        "        if id in self.tokenizer.end_ids:\n            self.end(row, full)",
        "        if id in self.tokenizer.end_ids:\n"
        "            row.trajectory.mask[-1] = 0\n"
        "            self.end(row, full)",
        "The id that ends an answer is not learned.",
        "Where a model has learned by imitation to end, it goes on ending. Rows get longer slowly.",
        2,
    ),
    Bug(
        "generation.py",
        "extend(self.model, cache, chunks, starts)",
        "extend(self.model, cache, chunks, [0] * len(starts))",
        "A result is put at the beginning of the row's cache: over the prompt, at its positions.",
        "The trainer reads whole rows and finds other log-probs; only logp_gap says so.",
        2,
    ),
    Bug(
        "generation.py",
        "lengths = [len(row.trajectory.ids) for row in rows]",
        "lengths = [len(row.prompt) for row in rows]",
        "A row draws all of its ids with one and the same random number.",
        "Each id alone is drawn as it should be. But an unsure model says the same id again and "
        "again, and many rows are never tried.",
        2,
    ),
    Bug(
        "generation.py",
        "copies = [prompt for prompt in prompts for _ in range(n)]",
        "copies = [prompt for _ in range(n) for prompt in prompts]",
        "Rows come prompt by prompt, not group by group: most are graded as answers to others.",
        "Each row is a good answer to its own prompt. The reward is that of chance.",
        2,
    ),
    Bug(
        "generation.py",
        "ids = row.trajectory.ids[row.block_start : -1]",
        "ids = row.trajectory.ids[row.block_start + 1 : -1]",
        "A tool gets the code without its first id.",
        "Many programs still run and print something else. A call's code and its span differ in "
        "the traces.",
        3,
    ),
    Bug(
        "advantages.py",
        "groups - groups.mean(1, keepdim=True)",
        "groups",
        "Rewards are not centred: a row is never pushed down where rewards are not negative.",
        "Right answers are still pushed up, and that is enough where there are some. In the traces "
        "no advantage is negative.",
        3,
    ),
    Bug(
        "advantages.py",
        "groups - groups.mean(1, keepdim=True)",
        "groups - rewards.mean()",
        "The baseline is the mean of the whole batch, not that of the prompt's group.",
        "Where all prompts are equally hard there is no difference. Otherwise the answers to an "
        "easy prompt are all pushed up, right or wrong.",
        3,
    ),
    Bug(
        "losses.py",
        "masked(logps - old_logps.detach(), mask)",
        "masked(old_logps.detach() - logps, mask)",
        "The ratio is upside down: old probability by new. So is the gradient.",
        "In the first update the ratio is 1 either way. The loss, the clip and the norm look well.",
        2,
    ),
    Bug(
        "losses.py",
        "loss = -torch.minimum(",
        "loss = -torch.maximum(",
        "The larger of the two terms is taken: the clip holds where it should let go.",
        "In the first update both are equal, and few ids leave the bounds in the second.",
        4,
    ),
    Bug(
        "losses.py",
        "torch.minimum(bounded * t.A, t.ratio.clamp(low, high) * t.A)",
        "torch.minimum(bounded * t.A, bounded * t.A)",
        "Nothing is clipped, although the metrics go on counting what would be.",
        "Few ids leave the bounds in two updates, and clip_low and clip_high look as ever.",
        4,
    ),
    Bug(
        "losses.py",
        "return per_token.sum() / max(float(tokens), 1.0)",
        "return per_token.sum() / max(float(mask.sum()), 1.0)",
        "Each micro-batch is divided by its own ids, so its weight depends on how rows were dealt.",
        "The gradient is as many times too large as there are micro-batches, and it is clipped.",
        2,
    ),
    Bug(
        "rl.py",
        "advantages[micro.rows].to(device)",
        "advantages[: len(micro.rows)].to(device)",
        "Micro-batches are sorted by length, but advantages are taken in the old order.",
        "Rows of one length keep their order, so what is learned depends on the lengths.",
        2,
    ),
    Bug(
        "rl.py",
        "masked_logps(model, micro.ids, micro.mask, how.temperature, how.banned)",
        "masked_logps(model, micro.ids, micro.mask, 1.0, how.banned)",
        "The old log-probs are computed at temperature 1, whatever the sampler's is.",
        "At temperature 1 there is no difference. Otherwise the second update's ratios do not "
        "begin at 1: ratio_mean and logp_gap say so.",
        3,
    ),
    Bug(
        "optim.py",
        "            optimizer.step()\n        optimizer.zero_grad()",
        "            optimizer.step()",
        "Gradients are never cleared: every step goes by the sum of all so far.",
        "It acts as a long momentum. grad_norm grows from step to step.",
        2,
    ),
    Bug(
        "model.py",
        "qk = rotate(qk, layout.cos, layout.sin)",
        "turned = rotate(qk, layout.cos, layout.sin)[:, :, self.heads :]\n"
        "        qk = torch.cat((qk[:, :, : self.heads], turned), dim=2)",
        "Queries are not turned by their positions, so attention knows where a key stands, but not "
        "how far away.",
        "Sampler and trainer share the mistake, and short rows do without.",
        4,
    ),
]
