"""A draft that ships without its anchor: the tensors of the target that it shares lie with the target alone.

Its folder has config.json, model.safetensors.index.json, which names the file of the bridge, and family.json
with `anchor_from`, the name of a bundled model. Nothing is copied: the view has the tensors of both folders.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from haversack.core.errors import DamagedFileError
from haversack.core.pack import TensorEntry, TensorSource
from haversack.formats.safetensors import HubFolder
from haversack.models._bundled import bundled_names, model_folder
from haversack.models._factored import factored
from haversack.models._family import FAMILY_FILE, FILE_MOST, anchor_tensors
from haversack.models.language import read_architecture

FIELD = "anchor_from"
BRIDGE_FILE = "bridge.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class Borrowed:
    """The folder `source` with the anchor's tensors out of `lender`, another folder. All else is its own.

    Raises DamagedFileError for a bridge whose file is called as the lender's, or an anchor that is not
    there.
    """

    def __init__(self, source: HubFolder, lender: HubFolder, names: Mapping[str, tuple[int, ...]]) -> None:
        self.source, self._lender = source, lender
        own = {path.name for path in source.files}
        taken = [path.name for path in lender.files if path.name in own]
        missing = [name for name in names if name not in source.tensors and name not in lender.tensors]
        if taken or missing:
            what = (
                f"it and its anchor both have a file {taken[0]}" if taken else f"{missing[0]} is in neither"
            )
            raise DamagedFileError(source.path, what)
        self._lent = {name for name in names if name not in source.tensors}
        self.tensors: dict[str, TensorEntry] = {
            **{name: lender.tensors[name] for name in names if name in self._lent},
            **source.tensors,
        }

    def __getattr__(self, name: str) -> Any:
        if name == "source":  # of a view that is being copied
            raise AttributeError(name)
        return getattr(self.source, name)

    @property
    def path(self) -> Path:
        """The draft's own folder."""
        return self.source.path

    @property
    def files(self) -> tuple[Path, ...]:
        """The anchor's files, then its own."""
        return (*self._lender.files, *self.source.files)

    def bytes(self, name: str) -> memoryview:
        """See TensorSource."""
        return self._lender.bytes(name) if name in self._lent else self.source.bytes(name)


def open_folder(path: Path) -> TensorSource:
    """The checkpoint folder `path`, with the anchor that it borrows and the factors that it has.

    Raises like HubFolder.open, and DamagedFileError where a borrowed anchor is no bundled model.
    """
    source = HubFolder.open(path)
    lender = _lender(source)
    if lender is None:
        return factored(source)
    architecture = read_architecture(source.config)
    names = anchor_tensors(architecture, len(architecture.blocks) - 1)
    view: Any = Borrowed(source, HubFolder.open(lender), names)
    return factored(view)


def _lender(source: HubFolder) -> Path | None:
    family = source.path / FAMILY_FILE
    if not family.is_file() or not (source.path / BRIDGE_FILE).is_file():
        return None
    try:
        named = json.loads(family.read_text(encoding="utf-8")[:FILE_MOST]).get(FIELD)
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise DamagedFileError(family, "it is no table of JSON") from error
    if named is None:
        return None
    if named not in bundled_names():
        raise DamagedFileError(family, f"{FIELD}={str(named)[:80]!r} is no bundled model")
    return model_folder(str(named))
