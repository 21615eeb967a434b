"""What a problem is: a question, its answer and, where known, a solution that can be taught."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Problem:
    """A question and its correct answer. The other fields are optional.

    `solution` uses tools. It is a sequence of pieces: ("text", words), ("python", program) or
    ("search", query). The outputs of the tools are left out, because the tools produce them.
    `rationale` solves the same problem in words alone. Neither contains the final answer sentence.
    """

    question: str
    answer: str
    family: str = "file"
    kind: str = ""  # of a generated problem: A to E, see families.py
    solution: tuple[tuple[str, str], ...] = ()
    rationale: str = ""
    source: str = field(default="", compare=False)  # of a problem from a file: the file and line

    @property
    def name(self) -> str:
        """How to name it in a message: where it was read, or how it begins."""
        return self.source or repr(self.question[:60])

    def summary(self) -> dict[str, str]:
        """What a trace says of the problem."""
        return {"question": self.question, "answer": self.answer, "family": self.family}


def program(thought: str, code: str) -> tuple[tuple[str, str], ...]:
    """The solution that consists of a thought and a program."""
    return (("text", thought), ("python", code))
