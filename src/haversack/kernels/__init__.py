"""Arithmetic on arrays: a native kernel and a numpy twin of each, and the one place that picks between them."""
