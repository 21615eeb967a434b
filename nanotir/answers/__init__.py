"""Find the final answer in what a model wrote, and decide whether two answers are equal.

    extract.py                        the last box, or what "the answer is" names
    tokens.py -> parser.py            text to trees of nested tuples, ("+", a, b) or ("sym", "x"); nothing is ever evaluated as code
    compare.py -> values.py           whether two trees are one answer: by their form, by exact rationals, by 50-digit values at random points
    verdict.py                        the cheap ways first; a pair that might take long goes to a process that is killed at the deadline

What counts as equal: tuples are ordered, lists and sets are not; \\pm a is two answers; an integer or a decimal is exact, anything else may
be given by at least six correct digits; a unit may be missing on one side, but two units must agree; x = 3 is 3 and 50% is 0.5 or 50;
a number written in base 8 is not that number, since to convert it may be the question.
"""

from nanotir.answers.extract import extract_answer as extract_answer
from nanotir.answers.verdict import equivalent as equivalent
