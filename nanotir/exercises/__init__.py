"""The classroom: exercises on the package's own functions. `python -m nanotir.exercises`."""
