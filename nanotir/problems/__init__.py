from nanotir.problems.problem import Problem, load

__all__ = ["Problem", "load"]
