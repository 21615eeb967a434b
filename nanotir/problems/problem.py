"""What a problem is, and `load`: one door to generated problems and to files."""

from __future__ import annotations

from dataclasses import dataclass

from nanotir.problems import files, generate


@dataclass(frozen=True)
class Problem:
    """A question, its gold answer and, where known, ways to get there that a teacher can demonstrate.

    `solution` is tool-integrated: pieces ("text", words), ("python", program), ("search", query), in order, the tools' outputs left
    out because the tools will say them. `rationale` is the same reasoning in words alone. Both end without the final answer.
    """

    question: str
    answer: str
    family: str = "file"
    kind: str = ""  # A compute-hard, B code cannot help, C easy by head, D look up, E put the result into words
    solution: tuple[tuple[str, str], ...] = ()
    rationale: str = ""


def load(
    spec: str, split: str = "train", n: int | None = None, seed: int = 0, level: int = 1
) -> list[Problem]:
    """Problems by name: "generated", "generated:lin,mul", "gsm8k:PATH", "math:PATH" or "jsonl:PATH".

    Generated problems are made on demand (n of them, 1000 by default, `level` sets how hard), and the two splits share no question.
    A file is read whole, or its first n problems; which split it is, is the file's own affair. Errors: ValueError, in one line.
    """
    source, _, rest = spec.partition(":")
    if source == "generated":
        rows = generate.generate(
            1000 if n is None else n,
            split,
            seed,
            families=rest.split(",") if rest else None,
            level=level,
        )
    else:
        rows = files.read(source, rest)[:n]
    return [Problem(**row) for row in rows]
