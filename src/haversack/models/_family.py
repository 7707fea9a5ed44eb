"""Families: targets that share an anchor, and the one draft that serves them all.

The anchor of a model is its embedding, its lowest blocks, its last norm and its output matrix. Targets of a
family differ only in the blocks above; the family's draft is the anchor and one block more. Who holds the
anchor's hash can tell whether a draft knows a target without holding both: a device compares two packs'
records, a checkpoint is held against its own tensors. docs/format.md defines the hash.

A pack's `family` is what its float checkpoint had; nothing on a device could take the hash of quantized
weights. A checkpoint folder carries the same in family.json, which counts only as far as its tensors bear it
out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from haversack.core._record import DTYPE_OF_KIND, FamilyEntry, check_family
from haversack.core.errors import DamagedFileError, UserError
from haversack.core.pack import Pack, TensorSource
from haversack.models._architecture import Architecture
from haversack.models._checkpoint import NUMBERS, checkpoint

__all__ = ["FamilyEntry"]

FAMILY_FILE = "family.json"
VERSION = 1
FILE_MOST = 1 << 20
HASH_HEAD = b"haversack-anchor-1\n"
_PIECE = 1 << 24
_FIELDS = ("name", "anchor_sha256", "anchor_layers")


def default_layers(architecture: Architecture) -> int:
    """Blocks of an anchor where nobody says how many: a quarter of them, at least one."""
    return max(1, len(architecture.blocks) // 4)


def anchor_tensors(architecture: Architecture, layers: int) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape of the anchor with `layers` blocks.

    Raises UserError unless at least one block lies in the anchor and one above it.
    """
    most = len(architecture.blocks) - 1
    if not 1 <= layers <= most:
        allowed = f"allowed 1 to {most}" if most else "the model has a single block, so it has no anchor"
        raise UserError(
            f"an anchor of {layers} blocks is not possible here ({allowed}).",
            field="anchor_layers",
            given=layers,
            nearest=min(max(layers, 1), most) or None,
        )
    found = architecture.first_tensors()
    for block in architecture.blocks[:layers]:
        found.update(block.tensors())
    return found | architecture.last_tensors()


def anchor_sha256(source: TensorSource, architecture: Architecture, layers: int) -> str:
    """The hash of the anchor of a float checkpoint, 64 hexadecimal digits; the tensors are read once.

    Raises UserError for weights that are packed or have a form, DamagedFileError for a missing tensor.
    """
    import hashlib

    view = checkpoint(source, architecture)
    found = hashlib.sha256(HASH_HEAD)
    for name, shape in sorted(anchor_tensors(architecture, layers).items(), key=lambda one: one[0].encode()):
        entry = view.tensors.get(name)
        if entry is None and name not in getattr(view, "forms", {}):
            raise DamagedFileError(source.path, f"the tensor {name} is missing", field=name)
        if entry is None or entry.kind not in NUMBERS or entry.shape != shape:
            stored = "in parts" if entry is None else f"as {entry.kind} {list(entry.shape)}"
            raise UserError(
                f"{source.path}: {name} of the anchor is stored {stored}, and the hash of a family is that "
                f"of floats {list(shape)}; give the float checkpoint.",
                field=name,
                given=stored,
            )
        sizes = "x".join(str(size) for size in shape)
        found.update(f"{name} {DTYPE_OF_KIND[entry.kind]} {sizes}\n".encode())
        data = view.bytes(name)
        for start in range(0, len(data), _PIECE):
            found.update(data[start : start + _PIECE])
    return found.hexdigest()


def make_family(
    source: TensorSource, architecture: Architecture, layers: int | None = None, name: str | None = None
) -> FamilyEntry:
    """The family of a base target: the anchor of `layers` blocks (default: a quarter), called `name`
    (default: what its folder is called). Raises like `anchor_sha256`."""
    count = default_layers(architecture) if layers is None else layers
    found = FamilyEntry(
        name=name or source.path.resolve().name,
        anchor_sha256=anchor_sha256(source, architecture, count),
        anchor_layers=count,
    )
    try:
        check_family(found)
    except ValueError as error:
        raise UserError(f"{error}; give another --name.", field="name", given=name) from error
    return found


class Located(Protocol):
    """Anything with a folder: a source, or an adapter."""

    @property
    def path(self) -> Path:
        """The folder."""


def declared_family(source: Located) -> FamilyEntry | None:
    """What a pack's record, or the family.json of a checkpoint folder, says; None where nothing does.

    Raises DamagedFileError for a family.json that is none.
    """
    if isinstance(source, Pack):
        return source.record.family
    path = source.path / FAMILY_FILE
    return read_family(path) if path.is_file() else None


def family_of(source: TensorSource, architecture: Architecture) -> FamilyEntry | None:
    """The family that `source` belongs to: of a pack what it declares, of a folder that too, after its
    anchor was found to have the hash.

    Raises UserError for a folder whose anchor is another: someone trained all of it and kept family.json.
    """
    found = declared_family(source)
    if found is not None and not isinstance(source, Pack):
        require_family(source, architecture, found, f"{source.path / FAMILY_FILE}")
    return found


def require_family(source: TensorSource, architecture: Architecture, family: FamilyEntry, who: str) -> None:
    """Raises UserError unless the model `source` has the anchor of `family`, which `who` belongs to.

    The hash of a float checkpoint is taken; a pack must declare it.
    """
    if isinstance(source, Pack):
        declared = source.record.family
        if declared is None:
            raise UserError(
                f"{source.path} belongs to no family and {who} to {family.name}: whether they share an "
                "anchor cannot be told; pack the target with --family DRAFT.",
                field="family",
                given=str(source.path),
                nearest=family.name,
            )
        layers, found = declared.anchor_layers, declared.anchor_sha256
    else:
        layers = family.anchor_layers
        if layers >= len(architecture.blocks):
            raise UserError(
                f"{source.path} has {len(architecture.blocks)} blocks and {who} belongs to the family "
                f"{family.name}, whose anchor alone has {layers}; it is of another family.",
                field="family",
                given=len(architecture.blocks),
                nearest=layers + 1,
            )
        found = anchor_sha256(source, architecture, layers)
    if (layers, found) != (family.anchor_layers, family.anchor_sha256):
        raise UserError(
            f"{source.path} has another anchor ({found[:12]}, {_blocks(layers)}) than {who} of the family "
            f"{family.name} ({family.anchor_sha256[:12]}, {_blocks(family.anchor_layers)}): more than the "
            "blocks above the anchor was trained, so it needs a new draft (haversack train draft).",
            field="family",
            given=found,
            nearest=family.anchor_sha256,
        )


def read_family(path: Path) -> FamilyEntry:
    """What family.json says. Raises DamagedFileError for what does not hold."""
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(FILE_MOST).decode("utf-8"))
        if document["format"] != VERSION:
            raise ValueError(f"it is of format {document['format']}, not {VERSION}")
        found = FamilyEntry(**{field: document[field] for field in _FIELDS})
        if not isinstance(found.anchor_layers, int) or isinstance(found.anchor_layers, bool):
            raise ValueError("anchor_layers is no whole number")
        check_family(found)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedFileError(path, f"it describes no family ({error})") from error
    return found


def family_json(family: FamilyEntry, **facts: Any) -> str:
    """The content of family.json; `facts` say how the model was made."""
    said = {field: getattr(family, field) for field in _FIELDS}
    return json.dumps({"format": VERSION, **said, **facts}, indent=1) + "\n"


def _blocks(count: int) -> str:
    return f"{count} block{'s' if count != 1 else ''}"
