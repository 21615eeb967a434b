"""Find the final answer in what a model wrote, and decide whether two answers are equal."""

from nanotir.answers.extract import extract_answer as extract_answer
from nanotir.answers.extract import likely_answers as likely_answers
from nanotir.answers.verdict import equivalent as equivalent
