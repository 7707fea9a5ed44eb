"""Kinds of networks that learn from labelled rows, one a file; see `haversack.train.networks._open`.

A file NAME.py has `recognises(path) -> bool`, which looks at names and first bytes alone and imports nothing
heavy, and `open_network(path, seed) -> Network` (train/_network.py). No two files recognise the same path.
"""
