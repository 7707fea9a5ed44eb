"""A checkpoint folder whose layers were factored: `X.led.0.weight`, `X.led.1.weight`, and the ranks as JSON.

shrink/structure/low_rank_files_torch.py writes such folders. Here the two weights of a layer X become the
parts of the matrix X.weight (run/forms/low_rank.py), its bias X.bias, so that the folder opens like any
other. A layer that an architecture sees as several, as GPT-2's query, key and value, shares its first factor;
each has rows of the second. Nothing is copied.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from haversack.core.errors import DamagedFileError, UserError
from haversack.core.pack import TensorEntry, TensorSource
from haversack.models._architecture import Architecture

RANKS = "low_rank.json"
VERSION = 1


class FactoredHub:
    """The folder `source` with the parts of its factored layers under the names that packs give them.

    `forms`: matrix -> how its parts make it up. Raises DamagedFileError for ranks that its tensors do not
    have, UserError for a factored convolution.
    """

    def __init__(self, source: TensorSource) -> None:
        self.source = source
        layers, shared = read_ranks(source.path)
        self.tensors: dict[str, TensorEntry] = {}
        self.forms: dict[str, dict[str, Any]] = {}
        self._names: dict[str, str] = {}
        held = {**source.tensors, **{name: source.tensors[own] for name, own in _known(source, shared)}}
        renamed = {f"{layer}.{old}": new for layer in layers for old, new in _named(layer)}
        for name, entry in held.items():
            new = renamed.get(name, name)
            self.tensors[new] = msgspec.structs.replace(entry, name=new)
            self._names[new] = entry.name
        for layer, rank in layers.items():
            self._add(layer, rank)

    def _add(self, layer: str, rank: int) -> None:
        name = f"{layer}.weight"
        first, second = (self.tensors.get(f"{name}.{part}") for part in ("first", "second"))
        if f"{layer}.ced.0.weight" in self.tensors:
            raise UserError(
                f"{self.path}: {layer} is a factored convolution, which no engine here runs.", field="model"
            )
        if first is None or second is None:
            raise DamagedFileError(self.path, f"{layer} is factored by {RANKS} and its weights are missing")
        if len(first.shape) != 2 or len(second.shape) != 2 or not first.shape[0] == second.shape[1] == rank:
            shapes = f"{list(first.shape)} and {list(second.shape)}"
            raise DamagedFileError(
                self.path, f"{layer} has rank {rank} by {RANKS} and weights of the shapes {shapes}"
            )
        shape = [second.shape[0], first.shape[1]]
        self.forms[name] = {"form": "low-rank", "rank": rank, "shape": shape}

    def __getattr__(self, name: str) -> Any:
        if name == "source":  # of a view that is being copied
            raise AttributeError(name)
        return getattr(self.source, name)

    @property
    def path(self) -> Path:
        """The folder."""
        return self.source.path

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold tensors."""
        return self.source.files

    def bytes(self, name: str) -> memoryview:
        """See TensorSource."""
        return self.source.bytes(self._names.get(name, name))


class FactoredCheckpoint:
    """A factored folder seen through its architecture: `view` has the tensors that stayed whole."""

    def __init__(self, view: Any, hub: FactoredHub, architecture: Architecture, bare: str) -> None:
        self.source, self._hub = view, hub
        self.tensors: dict[str, TensorEntry] = dict(view.tensors)
        self.forms: dict[str, dict[str, Any]] = {}
        self._spans: dict[str, tuple[str, int, int]] = {}
        parts = {part.name: part for part in architecture.parts}
        for name, shape in architecture.tensors().items():
            part = parts.get(name)
            holder = (name if part is None else part.holder).removeprefix(bare)
            form = hub.forms.get(holder)
            if name in self.tensors or form is None:
                continue
            row = 0 if part is None else part.first
            self.forms[name] = {**form, "shape": list(shape) if part is not None else form["shape"]}
            rows = shape[0] if part is not None else int(form["shape"][0])
            self._add(hub, f"{holder}.first", f"{name}.first", 0, int(form["rank"]))
            self._add(hub, f"{holder}.second", f"{name}.second", row, rows)

    def _add(self, hub: FactoredHub, own: str, name: str, start: int, rows: int) -> None:
        """`rows` rows from `start` of the tensor `own` of the folder, as the tensor `name`."""
        entry = hub.tensors[own]
        row = entry.nbytes // entry.shape[0]
        self._spans[name] = (own, start * row, rows * row)
        self.tensors[name] = msgspec.structs.replace(
            entry,
            name=name,
            shape=(rows, *entry.shape[1:]),
            offset=entry.offset + start * row,
            nbytes=rows * row,
        )

    def __getattr__(self, name: str) -> Any:
        if name == "source":
            raise AttributeError(name)
        return getattr(self.source, name)

    @property
    def path(self) -> Path:
        """The folder."""
        path: Path = self.source.path
        return path

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold tensors."""
        files: tuple[Path, ...] = self.source.files
        return files

    def bytes(self, name: str) -> memoryview:
        """See TensorSource."""
        span = self._spans.get(name)
        if span is None:
            data: memoryview = self.source.bytes(name)
            return data
        own, start, nbytes = span
        return self._hub.bytes(own)[start : start + nbytes]


def factored(source: TensorSource) -> TensorSource:
    """`source`, or, where it is a folder with factored layers, its view that has them as parts."""
    return FactoredHub(source) if (source.path / RANKS).is_file() else source


def read_ranks(folder: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Layer -> rank, and tensor -> the tensor of the same numbers, of the folder's low_rank.json.

    Raises DamagedFileError for what does not hold.
    """
    path = folder / RANKS
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        layers = {str(name): entry["rank"] for name, entry in document["layers"].items()}
        shared = dict(document["shared"])
        whole = all(isinstance(rank, int) and rank > 0 for rank in layers.values())
        sound = document["format"] == VERSION and whole and all(isinstance(n, str) for n in shared.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedFileError(path, f"it holds no ranks ({error})") from error
    if not sound:
        raise DamagedFileError(path, f"it is not of format {VERSION}, or a rank is no positive number")
    return layers, shared


def _named(layer: str) -> Iterator[tuple[str, str]]:
    """(what follows the layer's name in the folder, the name here)."""
    yield "led.0.weight", f"{layer}.weight.first"
    yield "led.1.weight", f"{layer}.weight.second"
    yield "led.1.bias", f"{layer}.bias"


def _known(source: TensorSource, shared: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(name, name of the tensor with its numbers) of tensors that the folder holds under another name."""
    for name, own in shared.items():
        if name not in source.tensors and own in source.tensors:
            yield name, own
