"""The laboratory: what each idea of the published systems buys, measured on toy problems, with a verdict computed from the data."""
