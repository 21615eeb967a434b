from nanotir.problems.problem import Problem
from nanotir.problems.sources import load

__all__ = ["Problem", "load"]
