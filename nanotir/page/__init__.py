"""A run as one HTML page, and the pictures of the README: `python -m nanotir.page RUN`."""
