"""Controlled experiments on toy problems: what each idea of the published systems contributes."""
