"""Opening the network at a path by whichever kind recognises it."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

from haversack.core.errors import UserError
from haversack.models._bundled import bundled_names
from haversack.train._network import Network


def kinds() -> dict[str, Any]:
    """Kind -> its module, by name: every file of this folder without an underscore or `_torch` at its end."""
    package = importlib.import_module("haversack.train.networks")
    return {
        found.name: importlib.import_module(f"{package.__name__}.{found.name}")
        for found in pkgutil.iter_modules(package.__path__)
        if not found.name.startswith("_") and not found.name.endswith("_torch")
    }


def kind_of(path: Path) -> str | None:
    """The kind that recognises `path`; None where none does."""
    return next((name for name, module in kinds().items() if module.recognises(path)), None)


def open_network(path: str | Path, seed: int = 0) -> Network:
    """The network at `path`, with the head that it came with. Raises UserError where there is none."""
    place = Path(path)
    if not place.exists() and str(path) not in bundled_names():
        raise UserError(f"there is no network at {place}.", field="model", given=str(place))
    found = kind_of(place)
    if found is None:
        raise UserError(
            f"{place} is no network that learns from labels here (kinds: {', '.join(kinds())}); see "
            "docs/train.md.",
            field="model",
            given=str(place),
        )
    network: Network = kinds()[found].open_network(place, seed)
    return network
