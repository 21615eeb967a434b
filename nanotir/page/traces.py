"""Recorded trajectories as HTML: every id in the colour of what the reader wants to see."""

from __future__ import annotations

from html import escape
from itertools import groupby

from nanotir.page.records import Recorded, author, safe

BYTES = 1_800_000  # of all trajectories of a page
GROUPS, QUESTIONS = 12, 6  # at most of a run
SAMPLES, IDS, CALLS = 12, 300, 20  # at most of a group, of a sample, of a sample

LEGENDS = {
    "author": {"prompt": "prompt", "text": "model", "call": "model, in a call", "output": "tool"},
    "mask": {"m": "1, chosen by the model", "": "0, not in the loss"},
    "advantage": {
        "v0": "-1 or less",
        "v1": "negative",
        "v2": "0",
        "v3": "positive",
        "v4": "1 or more",
    },
    "log-prob": {
        "l0": "over 90%",
        "l1": "over 50%",
        "l2": "over 10%",
        "l3": "over 1%",
        "l4": "less",
    },
    "gap": {"g0": "to 0.0001", "g1": "to 0.001", "g2": "to 0.01", "g3": "to 0.1", "g4": "more"},
}
MEANINGS = {
    "author": "who wrote an id",
    "mask": "which ids the loss sees",
    "advantage": "how much better the sample did than its group",
    "log-prob": "how likely the sampler was to choose an id",
    "gap": "distance between the sampler's and the trainer's log-prob",
}
BOUNDS = {
    "v": (-1.0, -1e-9, 0.0, 1.0 - 1e-9),
    "l": (0.105, 0.693, 2.303, 4.605),  # -log of 90%, 50%, 10%, 1%
    "g": (0.000101, 0.00101, 0.0101, 0.101),  # the log rounds to four decimals
}
CSS = """
.cards { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(17rem, 1fr);
  gap: .7rem; overflow-x: auto; padding-bottom: .5rem }
article { border: 1px solid var(--line); border-radius: 6px; padding: .5rem .7rem }
article p, article ul { font-size: .85rem; margin: 0 0 .4rem; padding: 0; list-style: none }
.ids { font: 13px/1.8 monospace; white-space: pre-wrap; max-height: 22rem; overflow-y: auto }
h4 { margin: 1.4rem 0 0 } pre { font: 13px/1.5 monospace }
i { display: inline-block; max-width: 100%; white-space: break-spaces; unicode-bidi: isolate;
  font-style: normal; line-height: 1.4; border-radius: 3px; padding: 0 1px; margin: 1px 1px 0 0;
  --c: var(--c0); --p: 0%; background: color-mix(in srgb, var(--c) var(--p), transparent) }
body:not(:has(#author:checked)) i:not(.m) { color: var(--soft) }
body:has(#author:checked) {
  .prompt { color: var(--soft) } .text { --p: 20% }
  .call { --c: var(--c1); --p: 32%; box-shadow: inset 0 -2px var(--c) }
  .output { --c: var(--c2); --p: 12%; outline: 1px dashed var(--c); outline-offset: -1px } }
body:has(#author:checked) .legend.author, body:has(#mask:checked) .legend.mask,
body:has(#advantage:checked) .legend.advantage, body:has(#gap:checked) .legend.gap,
body:has(#log-prob:checked) .legend.log-prob { display: block }
body:has(#mask:checked) .m { --p: 30% }
body:has(#advantage:checked) {
  .v0 .m, .v1 .m { --c: var(--c1); --p: 55% } .v3 .m, .v4 .m { --c: var(--c0); --p: 55% }
  .v1 .m, .v3 .m { --p: 22% } .v2 .m { --c: var(--c5); --p: 15% } }
body:is(:has(#log-prob:checked), :has(#gap:checked)) .m { --p: 6% }
body:has(#log-prob:checked) .l1, body:has(#gap:checked) .g1 { --p: 22% }
body:has(#log-prob:checked) .l2, body:has(#gap:checked) .g2 { --p: 38% }
body:has(#log-prob:checked) .l3, body:has(#gap:checked) .g3 { --p: 55% }
body:has(#log-prob:checked) .l4, body:has(#gap:checked) .g4 { --p: 100%; color: var(--card) }
"""


def choice() -> str:
    """The switch between the colourings, with a legend for each. CSS alone makes it work."""
    inputs, legends = "", ""
    for i, (name, entries) in enumerate(LEGENDS.items()):
        checked = " checked" if i == 0 else ""
        radio = f'<input type="radio" name="colouring" id="{name}"{checked}>'
        inputs += f"<label>{radio} {name}</label> "
        samples = " ".join(sample(style, words) for style, words in entries.items())
        legends += f'<div class="legend {name}">{MEANINGS[name]}: {samples}</div>'
    return f"<fieldset><legend>Colour of the ids</legend>{inputs}{legends}</fieldset>"


def sample(style: str, words: str) -> str:
    chosen = f"m {style}" if style else ""
    return f'<span class="{style}"><i class="{chosen}">{words}</i></span>'


def traces(run: Recorded, budget: int) -> str:
    """Groups of samples, and the same prompts before and after training."""
    if not run.traces:
        return f"<p>No trajectory of {safe(run.name)} was recorded: traces.jsonl has no rows.</p>"
    if not run.token_text:
        return f"<p>No id of {safe(run.name)} can be read: tokenizer.json is missing.</p>"
    return prompts(run, budget // 3) + groups(run, budget * 2 // 3)


def prompts(run: Recorded, budget: int) -> str:
    """The same questions at each evaluation, side by side."""
    rows = [row for row in run.traces if row["phase"] == "eval"]
    asked = {}
    for row in rows:
        if row.get("mode") == rows[0].get("mode"):  # the first one: with tools
            asked.setdefault(row["question"], []).append(row)
    drawn = [prompt(rows, run) for rows in list(asked.values())[:QUESTIONS]]
    title = f"The same prompts as training went on: {safe(run.name)}"
    return fitting(drawn, len(asked), budget, "question", title)


def prompt(rows: list[dict], run: Recorded) -> str:
    cards = [card(row, safe(row["name"]), run) for row in thinned(rows, 4)]
    return side_by_side(rows[0], "", cards)


def groups(run: Recorded, budget: int) -> str:
    """Whole groups of RL, the best sample first."""
    found = [list(rows) for (phase, *_), rows in groupby(run.traces, group_key) if phase != "eval"]
    drawn = [group(rows, run) for rows in thinned(found, GROUPS)]
    return fitting(drawn, len(found), budget, "group", f"Groups of samples: {safe(run.name)}")


def group_key(row: dict) -> tuple:
    return row["phase"], row["step"], row["question"]


def group(rows: list[dict], run: Recorded) -> str:
    best_first = sorted(rows, key=advantage, reverse=True)
    cards = []
    for row in thinned(best_first, SAMPLES):
        head = f"advantage {advantage(row):+.2f}, reward {row.get('reward', 0.0):.3g}"
        cards.append(card(row, head, run))
    left_out = f", {len(cards)} of its {len(rows)} samples" if len(cards) < len(rows) else ""
    return side_by_side(rows[0], f"Step {rows[0]['step']}{left_out}: ", cards)


def advantage(row: dict) -> float:
    return row.get("advantage", 0.0)


def thinned(items: list, most: int) -> list:
    """At most `most` items, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return items
    return [items[i * (len(items) - 1) // (most - 1)] for i in range(most)]


def fitting(drawn: list[str], total: int, budget: int, what: str, title: str) -> str:
    """A section of what was drawn; every other one is dropped until the rest is small enough."""
    while len("".join(drawn).encode()) > budget and len(drawn) > 1:
        drawn = drawn[::2]
    if not drawn:
        return ""
    left_out = f"{len(drawn)} of {total} recorded {what}s are shown." if len(drawn) < total else ""
    return f"<h3>{title}</h3><p>{left_out}</p>{''.join(drawn)}"


def side_by_side(row: dict, head: str, cards: list[str]) -> str:
    title = f"<h4>{head}{safe(row['question'])}</h4><p>Answer: {safe(row['answer'])}</p>"
    return f'{title}<div class="cards" tabindex="0">{"".join(cards)}</div>'


def card(row: dict, head: str, run: Recorded) -> str:
    """One trajectory: how it went, its ids, its calls."""
    style = f"v{level('v', advantage(row))}" if "advantage" in row else ""
    verdict = "right" if row["correct"] else "wrong"
    written = sum(sum(span["mask"]) for span in row["spans"])
    facts = f"{verdict}, {written} ids by the model, end: {safe(row['finish_reason'])}"
    calls = "".join(call(entry) for entry in row["calls"][:CALLS])
    if len(row["calls"]) > CALLS:
        calls += f"<li>and {len(row['calls']) - CALLS} more</li>"
    ids = cut(tokens(row, run))
    body = f'<p><b>{head}</b>, {facts}</p><div class="ids">{ids}</div><ul>{calls}</ul>'
    return f'<article class="{style}">{body}</article>'


def tokens(row: dict, run: Recorded) -> list[str]:
    """Every id as HTML. A new line begins after a line break, and after several only once."""
    drawn, last = [], ""
    for who, id, *numbers in cells(row):
        words = run.token_text(id)
        breaks = last.endswith("↵") and not words.startswith("↵")
        drawn.append("\n" * breaks + token(who, id, words, *numbers))
        last = words
    return drawn


def cells(row: dict):
    """(author, id, mask, the sampler's log-prob, the trainer's or None) of every id."""
    for span in row["spans"]:
        old_logps = span.get("old_logps") or [None] * len(span["ids"])
        for cell in zip(span["ids"], span["mask"], span["logps"], old_logps):
            yield author(span["kind"]), *cell


def cut(drawn: list[str]) -> str:
    if len(drawn) <= IDS:
        return "".join(drawn)
    left_out = f"<b>[{len(drawn) - IDS} ids left out]</b>"
    return "".join([*drawn[: IDS // 2], left_out, *drawn[-IDS // 2 :]])


def token(who: str, id: int, words: str, chosen: int, logp: float, old: float | None) -> str:
    """One id: its text, its classes for the colourings, and its numbers as title."""
    style, title = who, f"id {id}"
    if chosen:
        style += f" m l{level('l', -logp)}"
        title += f", log-prob {logp:.4f}"
    if chosen and old is not None:
        style += f" g{level('g', abs(logp - old))}"
        title += f", gap {logp - old:+.4f}"
    return f'<i class="{style}" title="{title}">{escape(words)}</i>'


def level(bounds: str, value: float) -> int:
    return sum(value > bound for bound in BOUNDS[bounds])


def call(entry: dict) -> str:
    result = entry["result"]
    facts = f"{safe(entry['tool'], 40)}: {safe(result['status'], 40)}, {result['seconds']:.3f} s"
    return f"<li>{facts}{', output cut' if result['truncated'] else ''}</li>"
