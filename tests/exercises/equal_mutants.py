"""Variants of mutants.py that no case can tell from the original, and why.

By exercise, then by their first line that differs.
"""

WIDTH = "a tensor of two dimensions: -1 is 1"
SUM = "the sum of two numbers"
NOWHERE = "the file's name is shown in tracebacks alone, of which only the last line is read"
EMPTY = "an empty answer cannot be read, so `decide` says no, as the shortcut does"

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
        "logits = logits.float().index_fill(1, ban, float('-inf'))": WIDTH,
        "logps = (logits / (config.temperature or 1.0)).log_softmax(1)": WIDTH,
        "if not logps.amax(1).isfinite().all():": WIDTH,
        "if not logps.amax().isfinite().all():": "a row is finite or nan, and so is the whole",
        "ids = logps.argmax(1)": WIDTH,
        "ids = logits.argmax(-1)": "the softmax keeps the order",
        "ids = draw(probs, u)": "all is on one device",
        "ids = draw(probs, u).to()": "all is on one device",
        "return (ids, logps.gather(1, ids[:, None])[:, 0])": WIDTH,
        "return (ids, logps.gather(-1, ids[:, None])[:, -1])": "of one column, the first is last",
    },
    "intercept": {
        "row.block_start = 1 + len(row.trajectory.ids)": SUM,
    },
    "run_cell": {
        "exec(compile(tree, '<code>x', 'exec'), names)": NOWHERE,
        "value = eval(compile(ast.Expression(last.value), '<code>x', 'eval'), names)": NOWHERE,
        "if stop.code in (0, None):": "the order does not count",
    },
    "equivalent": {
        "longest = max(len(gold), len(prediction))": "the order does not count",
        "if prediction == gold or longest > MAX_CHARS:": EMPTY,
        "if prediction == gold or not gold or longest > MAX_CHARS:": EMPTY,
        "if prediction == gold or not longest or longest > MAX_CHARS:": EMPTY,
        "verdict = decide(prediction, gold, deadline * WORK) "
        "if longest <= CHARS_HERE else None": "the product of two numbers",
    },
}
