"""Opening the network at a path by whichever kind recognises it; what that takes at least, from headers."""

from __future__ import annotations

import importlib
import math
import pkgutil
from pathlib import Path
from typing import Any

from haversack.core.errors import UserError
from haversack.formats.safetensors import SafetensorsFile
from haversack.models._bundled import bundled_names, model_folder
from haversack.train._network import Network, Tokens


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


def open_network(path: str | Path, seed: int = 0, length: int | None = None) -> Network:
    """The network at `path`, with the head that it came with; `length`: tokens that it reads of a text.

    Raises UserError where there is none, and for a length that its context does not hold.
    """
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
    if length is not None:
        read_tokens(network, length)
    return network


def read_tokens(network: Network, length: int) -> None:
    """Let `network` read `length` tokens of a text. Raises UserError for one that takes no texts, and for a
    length that its context does not hold."""
    if not isinstance(network.form, Tokens):
        raise UserError(
            f"length is for texts, and {network.name} takes none; leave it out.", field="length", given=length
        )
    reading: Any = network
    reading.read_tokens(length)


def least_nbytes(path: str | Path) -> int:
    """Bytes that the weights at `path` take in 32 bits, by their headers alone (a file of integers: its own);
    0 where nothing says so."""
    place = Path(path)
    if not place.exists() and str(path) in bundled_names():
        place = model_folder(str(path))
    if place.is_dir():
        files = sorted({*place.glob("*.safetensors"), *place.glob("base/*/*.safetensors")})
    else:
        files = [place] if place.suffix == ".safetensors" else []
    if not files:
        return place.stat().st_size if place.is_file() else 0
    tensors = [entry for file in files for entry in SafetensorsFile.open(file).tensors.values()]
    return sum(
        math.prod(entry.shape) * (4 if entry.kind in ("f32", "f16", "bf16") else 1) for entry in tensors
    )
