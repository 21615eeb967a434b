"""Variants of mutants.py that no case can tell from the original, and why.

By exercise, then by their first line that differs.
"""

WIDTH = "a tensor of two dimensions: -1 is 1"
DEVICE = "all is on one device"
WHOLE = "a row is nan as a whole, or not at all"
NOTHING = "no rewards go through all steps, too"
MESSAGE = "it is in the text of an error alone"
SHAPE = "the same numbers in another shape"
BOUND = "no ratio lies exactly on a bound, where the gradient is a matter of choice"
SUM = "the sum of two numbers"
PRODUCT = "the product of two numbers"
ORDER = "the order does not count"
LANES = "there is one dimension, the lanes"
NOWHERE = "the file's name is shown in tracebacks alone, of which only the last line is read"

EQUAL = {
    "without_tags": {
        "for part in ('pre_tokenizer', 'normalizer'):": "neither step depends on the other",
        "plain[part] = without_prefix(state[part])": "plain begins with the steps of state",
    },
    "layout_of": {
        "positions = steps.expand(ids.shape) if cache is None else "
        "steps + cache.lengths[:, None]": SUM,
    },
    "pick": {
        "logits = logits.float().index_fill(1, banned, float('-inf'))": WIDTH,
        "logps = (logits / (config.temperature or 1.0)).log_softmax(1)": WIDTH,
        "if logps[:,].isnan().any():": WHOLE,
        "if logps[:, 1].isnan().any():": WHOLE,
        "if logps[:, -1].isnan().any():": WHOLE,
        "ids = logps.max(1).indices": WIDTH,
        "ids = logits.max(-1).indices": "the softmax keeps the order",
        "ids = draw(probs, u)": DEVICE,
        "ids = draw(probs, u).to()": DEVICE,
        "return (ids, logps.gather(1, ids[:, None])[:, 0])": WIDTH,
        "return (ids, logps.gather(-1, ids[:, None])[:, -1])": "of one column, the first is last",
    },
    "intercept": {
        "row.block_start = 1 + len(row.trajectory.ids)": SUM,
    },
    "run_cell": {
        "exec(compile(tree, '<code>x', 'exec'), names)": NOWHERE,
        "value = eval(compile(ast.Expression(last.value), '<code>x', 'eval'), names)": NOWHERE,
        "if stop.code in (0, None):": ORDER,
    },
    "equivalent": {
        "longest = max(len(gold), len(prediction))": ORDER,
        "verdict = decide(prediction, gold, deadline * WORK) "
        "if longest <= CHARS_HERE else None": PRODUCT,
    },
    "collect": {
        "for attempt in range(settings.refills + 1):": SUM,
        "drawn = rng.sample(problems, min(len(problems), missing))": ORDER,
        "for start in range(0, len(outcome), size):": "there is one outcome for each sample",
        "differ = len(set(outcome[start:size + start])) > 1": SUM,
        "rollout.kept += samples[start:size + start]": SUM,
    },
    "forward_kernel": {
        "if tl.load(token + mask) != 0:": SUM,
        "row = token * stride + logits": SUM,
        "row = logits + stride * token": PRODUCT,
        "at = lanes + start": SUM,
        "x = tl.load(at + row, mask=at < V, other=float('-inf')).to(tl.float32) * scale": SUM,
        "x = scale * tl.load(row + at, mask=at < V, other=float('-inf')).to(tl.float32)": PRODUCT,
        "total = tl.zeros([], tl.float32)": "the first block makes a row of it",
        "higher = tl.maximum(tl.max(x, 0), peak)": ORDER,
        "higher = tl.maximum(peak, tl.max(x))": LANES,
        "higher = tl.maximum(peak, tl.max(x, -1))": LANES,
        "total = tl.exp(x - higher) + total * tl.exp(peak - higher)": SUM,
        "total = tl.exp(peak - higher) * total + tl.exp(x - higher)": PRODUCT,
        "lse = tl.log(tl.sum(total, 0)) + peak": SUM,
        "lse = higher + tl.log(tl.sum(total, 0))": "after the last block, peak is higher",
        "lse = peak + tl.log(tl.sum(total))": LANES,
        "lse = peak + tl.log(tl.sum(total, -1))": LANES,
        "logp = scale * tl.load(row + tl.load(ids + token)).to(tl.float32) - lse": PRODUCT,
        "logp = tl.load(tl.load(ids + token) + row).to(tl.float32) * scale - lse": SUM,
        "logp = tl.load(row + tl.load(token + ids)).to(tl.float32) * scale - lse": SUM,
        "tl.store(token + logps, logp)": SUM,
        "tl.store(token + lse_of, lse)": SUM,
    },
    "strategy": {
        "scores = [p * q for p, q in zip(Q, prior)]": PRODUCT,
        "scores = [p * q for q, p in zip(prior, Q)]": PRODUCT,
        "scores = [q * p for p, q in zip(prior, Q)]": PRODUCT,
        "return torch.tensor([config.alpha * p * q for p, q in zip(prior, Q)]).softmax(-1)"
        ".tolist()": "of one dimension, the first is the last",
        "return torch.tensor([q * (config.alpha * p) for p, q in zip(prior, Q)]).softmax(0)"
        ".tolist()": PRODUCT,
        "return torch.tensor([p * config.alpha * q for p, q in zip(prior, Q)]).softmax(0)"
        ".tolist()": PRODUCT,
        "return torch.tensor([config.alpha * p * q for q, p in zip(prior, Q)]).softmax(0)"
        ".tolist()": PRODUCT,
        "return torch.tensor([config.alpha * p * q for p, q in zip(Q, prior)]).softmax(0)"
        ".tolist()": PRODUCT,
    },
    "imitation_loss": {},
    "group_advantages": {
        "without: if not len(rewards):": NOTHING,
        "if False:": NOTHING,
        "pass": NOTHING,
        "if not len(scale):": NOTHING,
        "if not len(baseline):": NOTHING,
        "one_of('scalex', scale, SCALES)": MESSAGE,
        "one_of('baselinex', baseline, BASELINES)": MESSAGE,
        "centred = group_size * centred / max(group_size - 1, 1)": PRODUCT,
        "centred = centred * group_size / max(1, group_size - 1)": ORDER,
        "centred = centred / (eps + groups.std(1, keepdim=True))": SUM,
        "centred = centred / (eps + rewards.std())": SUM,
        "elif scale in ('whiten_all', 'whiten'):": ORDER,
        "tokens = torch.ones_like(groups) if num_tokens is None else num_tokens": SHAPE,
        "tokens = torch.ones_like(centred) if num_tokens is None else num_tokens": SHAPE,
        "centred = centred / (groups.std() + eps)": SHAPE,
        "tokens = torch.where(constant, 0, tokens.view_as(centred)).reshape(-1)": SHAPE,
    },
    "clipped": {
        "high = options.epsilon_high + 1": SUM,
        "low_hit = (t.A < 0) & (t.ratio < low)": ORDER,
        "high_hit = (t.ratio > min(high, options.delta)) & (t.A > 0)": ORDER,
        "delta_hit = (t.ratio > max(high, options.delta)) & (t.A < 0)": ORDER,
        "loss = -torch.minimum(t.ratio.clamp(low, high) * t.A, bounded * t.A)": ORDER,
        "return (loss, low_hit, delta_hit | high_hit)": ORDER,
        "loss = -torch.minimum(t.A * bounded, t.ratio.clamp(low, high) * t.A)": PRODUCT,
        "loss = -torch.minimum(bounded * t.A, t.A * t.ratio.clamp(low, high))": PRODUCT,
        "high_hit = (t.A > 0) & (t.ratio > min(options.delta, high))": ORDER,
        "delta_hit = (t.A < 0) & (t.ratio > max(options.delta, high))": ORDER,
        "low_hit = (t.ratio <= low) & (t.A < 0)": BOUND,
        "high_hit = (t.A > 0) & (t.ratio >= min(high, options.delta))": BOUND,
        "delta_hit = (t.A < 0) & (t.ratio >= max(high, options.delta))": BOUND,
    },
    "efficiency_reward": {
        "fewest[prompt] = min(fewest.get(prompt, m), m)": ORDER,
    },
    "pass_at_k": {},
}
