"""Applied networks: a base with a delta over it, as haversack train apply writes them.

What is here: the base is opened by its own kind and the delta laid over it in memory (train/apply.py has the
folder, train/_delta.py the laying over). The network has the delta's classes, and what is learned further is
a delta whose base is this one.
Cost: as the base. Limits: as the base.
"""

from __future__ import annotations

from pathlib import Path

from haversack.train._network import Network

RECORD = "applied.json"


def recognises(path: Path) -> bool:
    """Whether `path` is a folder with applied.json."""
    return (path / RECORD).is_file()


def open_network(path: Path, seed: int) -> Network:
    """The base in `path` with its delta. Raises UserError and DamagedFileError as train/apply.py does."""
    from haversack.train._delta import apply_delta, read_delta
    from haversack.train.apply import read_applied
    from haversack.train.networks._open import open_network as open_base

    record = read_applied(path)
    network = open_base(path / "base" / record.name, seed)
    apply_delta(network, read_delta(path / "delta"), str(path / "delta"))
    network.name = path.name
    network.classes = read_delta(path / "delta").entry.classes
    return network
