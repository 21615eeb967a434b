"""Exercise 4: notice that the model has written a call."""

from __future__ import annotations

import random
from types import SimpleNamespace

from nanotir.blocks import Blocks
from nanotir.exercises.exercise import Case, Exercise, Mistake
from nanotir.rows import Row

PROMPT = (30, 31, 32)
TAGS = ({7: "python", 5: "search"}, {"python": 8, "search": 6})  # openers and closers
FENCES = ({7: "python", 5: "search"}, {"python": 9, "search": 9})  # one id closes all blocks
ONE_ID = ({7: "python"}, {"python": 7})  # one id opens a block and closes it


def cases(seed: int) -> list[Case]:
    rng = random.Random(seed)
    ids = rng.choices([5, 6, 7, 8, 9, 11, 12, 13], k=40)
    text = "I run\n```python\n1+1\n```\nand\n```search\nx`y``\n```ab ```python\n1"
    scripts = {
        "words alone": ([11, 12, 13], *TAGS),
        "one call": ([11, 7, 12, 13, 8, 11], *TAGS),
        "calls of two tools": ([7, 12, 8, 11, 5, 13, 6, 12], *TAGS),
        "two calls of a tool, one behind the other": ([7, 12, 8, 7, 13, 8], *TAGS),
        "an empty block": ([11, 7, 8, 12], *TAGS),
        "a block that is never closed": ([11, 7, 12, 13], *TAGS),
        "a closing tag without a block": ([11, 8, 12], *TAGS),
        "the closing tag of another tool": ([7, 12, 6, 13, 8], *TAGS),
        "an opening tag inside a block": ([7, 12, 7, 5, 13, 8, 11], *TAGS),
        "one id closes the blocks of all tools": ([9, 7, 12, 9, 11, 5, 13, 9, 9], *FENCES),
        "one id opens a block and closes it": ([11, 7, 12, 13, 7, 12, 7], *ONE_ID),
        "a long random row": (ids, *TAGS),
        "another one": (rng.choices([5, 7, 9, 11], k=40), *FENCES),
        "fences in plain text, which row.blocks finds": (text, {}, {}),
    }
    return [Case(name, script, {}, written) for name, script in scripts.items()]


def written(function, ids, openers, closers) -> dict:
    """A row after the model has written these ids, and the harness has answered its calls.

    A text stands for ids that are its characters, in a tokenizer that knows no tags.
    """
    blocks = None
    if isinstance(ids, str):
        decoder = SimpleNamespace(decode=lambda ids: "".join(map(chr, ids)))
        ids, blocks = [*map(ord, ids)], Blocks(decoder, {"python", "search"})
    row, seen, closed, calls = Row(3, PROMPT, 20, 99, blocks), [], [], []
    row.trajectory.append("prompt", list(PROMPT), 0)

    def watch(*event):
        seen.append(event)

    row.watch = watch
    for n, id in enumerate(ids):
        closed.append(function(row, id, -n / 8, openers, closers))
        if closed[-1]:
            code = row.trajectory.ids[row.block_start : -1]
            calls.append((row.tool, blocks.code if blocks else code))
            row.append("output", [40, 41], 0)
            row.tool = None
    made = row.trajectory
    spans = [(s.kind, made.ids[s.start : s.end], made.mask[s.start : s.end]) for s in made.spans]
    found = {"a row's spans, ids and mask": spans[1:], "calls": calls, "closes": closed}
    found |= {"logps": made.logps, "open block": row.tool, "row.written": row.written}
    return found | {"told to row.watch": seen}


APPEND = 'row.append(row.tool or "text", [id], 1, [logp])'
CLOSES = "return row.tool is not None and not opens and id == closers[row.tool]"
EXERCISE = Exercise(
    number=4,
    name="intercept",
    lab="B",
    target="nanotir.rows:intercept",
    teaches="A call is noticed at the id that closes its block: no text is searched, and every id "
    "that the model chose is kept as it was sampled.",
    minutes=30,
    points=30,
    stars=2,
    cases=cases,
    mistakes=(
        Mistake(
            "the ids of a call have mask 0: the model chose them, so it must learn from them",
            ((APPEND, APPEND.replace("1,", "int(row.tool is None),")),),
            bug=True,
        ),
        Mistake(
            "the id that opens a block is counted as words: it belongs to its tool's span",
            ((APPEND, APPEND.replace("row.tool or", "(None if opens else row.tool) or")),),
        ),
        Mistake(
            "the code begins with the id that opens the block: block_start is the place after it",
            (("len(row.trajectory.ids) + 1", "len(row.trajectory.ids)"),),
            bug=True,
        ),
        Mistake(
            "the id that closes the block is left out: the model would not learn to close it",
            ((APPEND, f"if opens or id != closers.get(row.tool):\n        {APPEND}"),),
            bug=True,
        ),
        Mistake(
            "the closing id of any tool closes the block: only that of the open one does",
            ((CLOSES, CLOSES.replace("== closers[row.tool]", "in closers.values()")),),
        ),
        Mistake(
            "an opening id inside a block begins another one: there it is code like any other",
            (("opens = row.tool is None and id in openers", "opens = id in openers"),),
        ),
        Mistake(
            "a closing id calls a tool although no block is open",
            ((CLOSES, "return not opens and id == closers.get(row.tool or 'python')"),),
        ),
        Mistake(
            "you call the tool when its block opens: the program is not written yet",
            ((CLOSES, "return opens"),),
        ),
        Mistake(
            "you lose the log-probs: they are those of the policy that drew the ids, and cannot be "
            "had again once it has learned",
            ((APPEND, APPEND.replace("[logp]", "[0.0]")),),
            bug=True,
        ),
        Mistake(
            "you count words alone: the ids of a call are written by the model as well",
            (("row.written += 1", "row.written += row.tool is None"),),
            bug=True,
        ),
        Mistake(
            "you write to the trajectory past the row: whoever watches is not told (row.append)",
            ((APPEND, APPEND.replace("row.append", "row.trajectory.append")),),
        ),
        Mistake(
            "you forget whose block it was: row.tool stays until the tool has answered",
            (
                (
                    CLOSES,
                    CLOSES.replace("return", "closes =") + "\n    if closes:\n"
                    "        row.tool = None\n    return closes",
                ),
            ),
        ),
        Mistake(
            "you take the id that opens a block for the one that closes it",
            ((CLOSES, CLOSES.replace("not opens and ", "")),),
        ),
        Mistake(
            "you do not ask row.blocks: in style text no single id opens or closes a block",
            (("if row.blocks:", "if False:"),),
            bug=True,
        ),
    ),
    hints=(
        "The model writes <python>, 1+1 and </python>. At which of these ids does anything happen, "
        "and which of them does it learn from?",
        "Keep in the row which tool's block is open (row.tool) and where its code begins "
        "(row.block_start). Append every id with mask 1, as of kind row.tool or 'text', and count "
        "it. Where row.blocks is set, row.blocks.read(row.trajectory) gives (tool, closes) after "
        "that.",
        "opens = no block is open, and id in openers; closes = a block is open, id does not open "
        "it, and id == closers[row.tool].",
    ),
    read=("nanotir/rows.py:intercept", "nanotir/generation.py:Generation"),
    look="the row's text is never decoded: what was sampled is what is learned from, and the text "
    "of the code is made for the tool alone",
    question="Other systems decode the whole row after each result and encode it again. What goes "
    "wrong, although the text is the same?",
    answer="One text has many spellings in ids, and the tokenizer gives but one. So the row then "
    "holds ids that the model never chose, with log-probs of others, and a boundary between its "
    "words and a result may fall inside an id: ratios and the mask are wrong, silently.",
)
