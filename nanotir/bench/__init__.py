"""Measurements of speed: `python -m nanotir.bench`."""
